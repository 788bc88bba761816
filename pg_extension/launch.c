/*-------------------------------------------------------------------------
 *
 * launch.c
 *	  The way from a session to an engine: the socket, and the worker that is
 *	  started when nobody listens there.
 *
 * There is one worker in a cluster: the process that holds the lock on
 * MIXTRAL_LOCK, an fcntl lock, which goes with its process however that
 * ends.  A session asks the kernel who holds it.  While somebody does, the
 * session waits for the socket; otherwise it registers a dynamic worker.
 * Of many sessions that find no worker, the one that gets MIXTRAL_START_LOCK
 * registers, so that a cluster with few worker slots does not run out of
 * them.  (Closing any descriptor of a file drops the process's fcntl locks on
 * it, hence two files.)
 *
 * The worker listens before it has an engine, so that calls wait in the
 * socket's backlog while a model is loaded.  What the worker knows it
 * writes to MIXTRAL_STATE: a session that has waited for a while reads
 * there whether it is worth to wait on.  The file says nothing unless the
 * process that it names holds the lock.
 *
 * Nothing here needs shared_preload_libraries.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "catalog/pg_authid.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#define LOOK_MS			20		/* between two looks at a socket that is to come */
#define RELOAD_MS		200		/* that a reload may take to reach the session that has asked for it */
#define TELL_AFTER_MS	1000	/* a call that waits longer says what for */
#define STATE_MAX		65536	/* bytes */
#define RESTART_S		5		/* a preloaded worker that ended is started again */

/* ---- Locks ---- */

/*
 * Takes the lock on a file, without waiting.  False: another process has it.
 * The lock lives as long as the descriptor, which is the caller's to close.
 */
bool
mixtral_lock_file(const char *path, int *fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	*fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
	if (*fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	if (fcntl(*fd, F_SETLK, &lock) == 0)
		return true;
	close(*fd);
	*fd = -1;
	return false;
}

/* The process that has the lock; 0: nobody.  Takes no lock itself. */
pid_t
mixtral_lock_holder(const char *path)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int			fd = open(path, O_RDWR | O_CLOEXEC);
	int			rc;

	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", path)));
	rc = fcntl(fd, F_GETLK, &lock);
	close(fd);
	return rc == 0 && lock.l_type != F_UNLCK ? lock.l_pid : 0;
}

/* ---- What the worker says ---- */

/* The worker's state as an object in the database's encoding; NULL: there is no worker */
Jsonb *
mixtral_read_state(void)
{
	pid_t		worker = mixtral_lock_holder(MIXTRAL_LOCK);
	char	   *buffer;
	ssize_t		got;
	int			fd;
	Jsonb	   *state;
	const char *pid;

	if (worker == 0)
		return NULL;
	fd = open(MIXTRAL_STATE, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;			/* it has only just got its lock */
	buffer = palloc(STATE_MAX + 1);
	got = read(fd, buffer, STATE_MAX);
	close(fd);
	if (got <= 0)
		return NULL;
	buffer[got] = '\0';
	state = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											   CStringGetDatum(mixtral_from_utf8(buffer, got))));
	pid = mixtral_state_text(state, "worker_pid");
	return pid != NULL && atoi(pid) == (int) worker ? state : NULL;
}

/* A string or number of the state as text; NULL: there is none */
const char *
mixtral_state_text(Jsonb *state, const char *key)
{
	JsonbValue	value;

	if (state == NULL || mixtral_member(state, key, &value) == NULL)
		return NULL;
	if (value.type == jbvString)
		return pnstrdup(value.val.string.val, value.val.string.len);
	if (value.type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));
	return NULL;
}

pg_noreturn static void
raise_no_model(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("there is no model: mixtral.model is not set"),
			 errhint("As a superuser: LOAD 'mixtral'; ALTER SYSTEM SET mixtral.model = '/models/x.gguf'; "
					 "SELECT pg_reload_conf();")));
}

static void
judge_state(Jsonb *state, bool *told, TimestampTz since)
{
	const char *name = mixtral_state_text(state, "state");
	bool		is_late = TimestampDifferenceExceeds(since, GetCurrentTimestamp(), TELL_AFTER_MS);
	const char *trouble;

	if (name == NULL)
		return;
	if (strcmp(name, "idle") == 0 && is_late)
		raise_no_model();		/* the worker knows better than this session's settings */
	if (strcmp(name, "failed") == 0)
	{
		/* it names files */
		trouble = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) ?
			mixtral_state_text(state, "last_error") : "The server log says why.";
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the mixtral engine does not run"),
				 trouble != NULL ? errdetail("%s", trouble) : 0,
				 errhint("It is tried again by itself, and at once after SELECT pg_reload_conf().")));
	}
	if (!*told && strcmp(name, "serving") != 0 && is_late)
	{
		*told = true;
		ereport(NOTICE,
				(errmsg("waiting for the mixtral engine, which is being started")));
	}
}

/*
 * For a call that has been waiting since `since`: an error if the worker has
 * no engine and is not about to have one; a notice, once, if it waits long.
 * Leaves no memory behind: a model may take minutes to load.
 */
void
mixtral_check_state(bool *told, TimestampTz since)
{
	MemoryContext look;
	MemoryContext old;

	if (*mixtral_socket != '\0')
		return;
	look = AllocSetContextCreate(CurrentMemoryContext, "mixtral state", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(look);
	judge_state(mixtral_read_state(), told, since);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(look);
}

/* ---- Starting the worker ---- */

static void
describe_worker(BackgroundWorker *worker)
{
	memset(worker, 0, sizeof(*worker));
	worker->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker->bgw_start_time = BgWorkerStart_ConsistentState;
	snprintf(worker->bgw_name, BGW_MAXLEN, "mixtral supervisor");
	snprintf(worker->bgw_type, BGW_MAXLEN, "mixtral supervisor");
	snprintf(worker->bgw_library_name, BGW_MAXLEN, "mixtral");
	snprintf(worker->bgw_function_name, BGW_MAXLEN, "mixtral_worker_main");
}

/* At the server's start, from shared_preload_libraries */
void
mixtral_register_worker(void)
{
	BackgroundWorker worker;

	describe_worker(&worker);
	worker.bgw_restart_time = RESTART_S;
	worker.bgw_main_arg = BoolGetDatum(true);
	RegisterBackgroundWorker(&worker);
}

/* Registers a worker and waits until it has its lock */
static void
start_worker(void)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	BgwHandleStatus status;
	pid_t		pid;

	describe_worker(&worker);
	worker.bgw_restart_time = BGW_NEVER_RESTART;	/* the next call starts it */
	worker.bgw_main_arg = BoolGetDatum(false);
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("there is no free slot for the mixtral worker"),
				 errdetail("max_worker_processes is %d, and all are in use.", max_worker_processes),
				 errhint("Raise max_worker_processes, or put mixtral into shared_preload_libraries.")));
	status = WaitForBackgroundWorkerStartup(handle, &pid);
	while (status == BGWH_STARTED && mixtral_lock_holder(MIXTRAL_LOCK) == 0)
	{
		mixtral_pause(LOOK_MS);
		status = GetBackgroundWorkerPid(handle, &pid);
	}
	if (status == BGWH_POSTMASTER_DIED)
		ereport(FATAL,
				(errcode(ERRCODE_ADMIN_SHUTDOWN),
				 errmsg("the postmaster has died")));
	if (status != BGWH_STARTED && mixtral_lock_holder(MIXTRAL_LOCK) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the mixtral worker ended right after its start"),
				 errhint("The server log says why.")));
	pfree(handle);
}

/* Sees to it that there is a worker; another session may be at it already */
static void
ensure_worker(void)
{
	int			lock;

	if (mixtral_lock_holder(MIXTRAL_LOCK) != 0 || !mixtral_lock_file(MIXTRAL_START_LOCK, &lock))
	{
		mixtral_pause(LOOK_MS);
		return;
	}
	PG_TRY();
	{
		if (mixtral_lock_holder(MIXTRAL_LOCK) == 0)
			start_worker();
	}
	PG_FINALLY();
	{
		close(lock);
	}
	PG_END_TRY();
}

/* ---- The socket ---- */

static int
try_dial(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int			fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int			saved;

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_socket_access(),
				 errmsg("could not create a socket: %m")));
	strlcpy(address.sun_path, path, sizeof(address.sun_path));
	if (connect(fd, (struct sockaddr *) &address, sizeof(address)) == 0)
		return fd;
	saved = errno;
	close(fd);
	errno = saved;
	return -1;
}

/*
 * A script may call right after its pg_reload_conf().  This session takes the
 * new settings between two commands only, perhaps not before the next one, but
 * that a reload has come is enough to go and ask the worker.
 */
static void
check_model(void)
{
	if (*mixtral_socket != '\0' || *mixtral_model != '\0')
		return;
	for (int waited = 0; !ConfigReloadPending && waited < RELOAD_MS; waited += LOOK_MS)
		mixtral_pause(LOOK_MS);
	if (!ConfigReloadPending)
		raise_no_model();
}

/*
 * A descriptor that is connected to the engine, or to a backlog that an
 * engine will take it from.  Waits as long as it takes, interruptibly; starts
 * the worker if there is none.
 */
int
mixtral_dial(void)
{
	const char *path = *mixtral_socket != '\0' ? mixtral_socket : MIXTRAL_SOCKET;
	TimestampTz since = GetCurrentTimestamp();
	bool		told = false;
	int			fd;

	check_model();
	while ((fd = try_dial(path)) < 0)
	{
		if (errno == EAGAIN || errno == EINTR)
			mixtral_pause(LOOK_MS); /* its backlog is full */
		else if ((errno == ENOENT || errno == ECONNREFUSED) && *mixtral_socket == '\0')
			ensure_worker();
		else
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("no mixtral engine answers at \"%s\": %m", path),
					 *mixtral_socket != '\0' ? errhint("mixtral.socket names the socket of `mixtral serve --socket`.") : 0));
		mixtral_check_state(&told, since);
	}
	return fd;
}
