/*-------------------------------------------------------------------------
 *
 * activity.c
 *	  Who is asking what of the engine: mixtral_activity(), the source of the
 *	  view mixtral_stat_activity.
 *
 * A slot for each backend that there can be, in a dynamic shared memory
 * segment, because the library need not be preloaded.  The first session that
 * needs it makes the segment and pins it until the server ends; its handle is
 * in the file MIXTRAL_ACTIVITY, under that file's fcntl lock.  A handle
 * that a server left behind that is gone finds no segment, or one without
 * our mark.
 *
 * Only its own backend writes a slot, others copy it: `changes` is odd while
 * it is written, and a copy counts if it was even and is the same afterwards
 * (the protocol of PgBackendStatus).  A slot counts while its backend lives,
 * which the view sees to, comparing pid and start with pg_stat_activity.
 *
 * Nothing fails for want of this table: there is a warning, once in a session.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_authid.h"
#include "port/atomics.h"
#include "storage/dsm.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(mixtral_activity);

#define TABLE_MARK	0x6D697874
#define COLUMNS		9

typedef struct Activity
{
	int			pid;			/* 0: nothing is going on */
	Oid			role;
	TimestampTz backend_start;
	TimestampTz since;			/* of the last change of state */
	char		function[32];	/* the last one, if there are several */
	MixtralActivityState state;
	int			requests;		/* in the engine */
	int64		tokens;			/* that have come, of all that is open */
	int64		cached;			/* tokens of their prompts that came from the cache; -1: not known yet */
} Activity;

typedef struct Slot
{
	pg_atomic_uint32 changes;
	Activity	activity;
} Slot;

typedef struct Table
{
	uint32		mark;
	int			n_slots;
	Slot		slots[FLEXIBLE_ARRAY_MEMBER];
} Table;

static const char *const state_names[] = {
	[MIXTRAL_CONNECTING] = "connecting",
	[MIXTRAL_WAITING] = "waiting",
	[MIXTRAL_GENERATING] = "generating",
};

static Table *table;			/* NULL: not attached */
static bool table_failed;		/* it has been warned about */
static int	n_open;				/* connections of this backend */
static Activity own;			/* what our slot says, or would */

/* ---- The table ---- */

/* Attaches the segment that the file names; NULL: there is none */
static Table *
attach(int fd)
{
	char		text[16] = "";
	dsm_segment *segment;
	Table	   *found;

	if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
		return NULL;
	segment = dsm_attach((dsm_handle) strtoul(text, NULL, 10));
	if (segment == NULL)
		return NULL;
	found = dsm_segment_address(segment);
	if (dsm_segment_map_length(segment) < sizeof(Table) || found->mark != TABLE_MARK ||
		found->n_slots != MaxBackends)
	{
		dsm_detach(segment);
		return NULL;
	}
	dsm_pin_mapping(segment);
	return found;
}

static Table *
create(int fd)
{
	dsm_segment *segment = dsm_create(offsetof(Table, slots) + MaxBackends * sizeof(Slot),
									  DSM_CREATE_NULL_IF_MAXSEGMENTS);
	Table	   *made;
	char		text[16];
	int			length;

	if (segment == NULL)
		return NULL;
	made = dsm_segment_address(segment);
	memset(made, 0, offsetof(Table, slots) + MaxBackends * sizeof(Slot));
	made->n_slots = MaxBackends;
	for (int i = 0; i < MaxBackends; i++)
		pg_atomic_init_u32(&made->slots[i].changes, 0);
	made->mark = TABLE_MARK;
	length = snprintf(text, sizeof(text), "%u\n", (unsigned) dsm_segment_handle(segment));
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, length, 0) != length)
	{
		dsm_detach(segment);
		return NULL;
	}
	dsm_pin_segment(segment);
	dsm_pin_mapping(segment);
	return made;
}

/* The segment that the file names, or a new one.  The lock is held while one is made. */
static Table *
attach_or_create(int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	Table	   *found;

	if (fcntl(fd, F_SETLKW, &lock) < 0)
		return NULL;
	found = attach(fd);
	return found != NULL ? found : create(fd);
}

static void
find_table(void)
{
	int			fd;

	if (table != NULL || table_failed)
		return;
	table_failed = true;		/* also if there is an error below */
	fd = open(MIXTRAL_ACTIVITY, O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
	if (fd >= 0)
	{
		PG_TRY();
		{
			table = attach_or_create(fd);
		}
		PG_FINALLY();
		{
			close(fd);
		}
		PG_END_TRY();
	}
	table_failed = table == NULL;
	if (table_failed)
		ereport(WARNING,
				(errmsg("mixtral_stat_activity does not show this session"),
				 errdetail("No shared memory could be had for it.")));
}

static void
write_slot(void)
{
	Slot	   *slot;

	if (table == NULL || MIXTRAL_BACKEND_NUMBER < 0 || MIXTRAL_BACKEND_NUMBER >= table->n_slots)
		return;
	slot = &table->slots[MIXTRAL_BACKEND_NUMBER];
	pg_atomic_write_u32(&slot->changes, pg_atomic_read_u32(&slot->changes) | 1);
	pg_write_barrier();
	slot->activity = own;
	pg_write_barrier();
	pg_atomic_write_u32(&slot->changes, pg_atomic_read_u32(&slot->changes) + 1);
}

/* ---- Our own slot ---- */

void
mixtral_activity_begin(const char *function)
{
	n_open++;
	own.pid = MyProcPid;
	own.role = GetUserId();
	own.backend_start = MyStartTimestamp;
	own.since = GetCurrentTimestamp();
	strlcpy(own.function, function, sizeof(own.function));
	own.state = MIXTRAL_CONNECTING;
	if (n_open == 1)
		own.cached = -1;
	find_table();
	write_slot();
}

void
mixtral_activity_state(MixtralActivityState state)
{
	if (own.state == state)
		return;
	own.state = state;
	own.since = GetCurrentTimestamp();
	write_slot();
}

void
mixtral_activity_requests(int change)
{
	own.requests += change;
	write_slot();
}

/* A piece has come; `cached` as in mx_event: with a request's first one, else -1 */
void
mixtral_activity_piece(int cached)
{
	own.tokens++;
	if (cached >= 0)
		own.cached = Max(own.cached, 0) + cached;
	write_slot();
}

void
mixtral_activity_end(void)
{
	if (--n_open > 0)
		return;
	memset(&own, 0, sizeof(own));
	write_slot();
}

/* ---- Everybody's ---- */

static bool
read_slot(Slot *slot, Activity *activity)
{
	for (int attempt = 0; attempt < 100; attempt++)
	{
		uint32		before = pg_atomic_read_u32(&slot->changes);

		pg_read_barrier();
		*activity = slot->activity;
		pg_read_barrier();
		if ((before & 1) == 0 && pg_atomic_read_u32(&slot->changes) == before)
			return activity->pid != 0;
	}
	return false;				/* its backend died while it wrote */
}

Datum
mixtral_activity(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		sees_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
	Activity	a;

	mixtral_materialize(fcinfo);
	find_table();
	for (int i = 0; table != NULL && i < table->n_slots; i++)
	{
		Datum		values[COLUMNS];
		bool		nulls[COLUMNS] = {false};

		if (!read_slot(&table->slots[i], &a) || !(sees_all || has_privs_of_role(GetUserId(), a.role)))
			continue;
		values[0] = Int32GetDatum(a.pid);
		values[1] = TimestampTzGetDatum(a.backend_start);
		values[2] = ObjectIdGetDatum(a.role);
		values[3] = CStringGetTextDatum(a.function);
		values[4] = CStringGetTextDatum(state_names[a.state]);
		values[5] = Int32GetDatum(a.requests);
		values[6] = Int64GetDatum(a.tokens);
		values[7] = Int64GetDatum(a.cached);
		nulls[7] = a.cached < 0;
		values[8] = TimestampTzGetDatum(a.since);
		Assert(rsinfo->setDesc->natts == COLUMNS);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
