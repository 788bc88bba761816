/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background worker: one for the cluster, it supervises the engine.
 *
 *	  current    the engine at MIXTRAL_SOCKET, serving or being started
 *	  next       one that is being started at MIXTRAL_NEW_SOCKET and takes
 *	             over when it answers: new settings, or a socket that was
 *	             removed.  Running requests end where they are.
 *	  retired    engines that finish what they run
 *
 * The socket that mixtral.listen asks for (listen.c) is one for all engines
 * that have it, which take turns at it; an engine that lacks it is exchanged.
 *
 * The loop does the same whatever woke it: it takes what the engines have
 * written and answered, looks who has died, compares what runs with what
 * the settings ask for, and publishes its state.  It never waits for
 * anything but its latch and the descriptors in poll_fd, so that reloads,
 * barriers (DROP DATABASE) and shutdown are served also while a model is
 * loaded.
 *
 * Starting again: at once after an engine that has served, with growing
 * pauses (1 s to 60 s) after one that has failed to start or did not
 * last.  New settings with which no engine starts are reported; the
 * old engine stays, and is also the one that is started again, until the
 * next reload.
 *
 * The worker has the lock on MIXTRAL_LOCK from its beginning to its end.  One
 * that does not get it ends with status 0 and is not started again.  It uses
 * no shared memory but its latch and its entry in pg_stat_activity.  Its memory
 * is TopMemoryContext, freed piece by piece, and `turn_context`, emptied in
 * each turn.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libpq/pqsignal.h"
#include "mb/pg_wchar.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/procsignal.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define TURN_MS			1000	/* between two looks at the socket's file */
#define LASTED_S		10		/* an engine that has served so long has not failed to start */
#define PAUSE_MAX_S		60
#define EXCHANGE_PAUSE_S 10		/* after a failed one, for an engine that lacks a socket but not its settings */
#define EXIT_WAIT_MS	2000

typedef struct Supervisor
{
	int			lock;
	int			poll_fd;
	int			listener;		/* at MIXTRAL_SOCKET; -1: none */
	int			new_listener;	/* at MIXTRAL_NEW_SOCKET; -1: none */
	dev_t		socket_dev;		/* of the file at MIXTRAL_SOCKET, when it was made */
	ino_t		socket_ino;
	bool		socket_lost;	/* somebody has removed or replaced it */
	MixtralOutside outside;		/* what mixtral.listen asks for */
	MixtralEngine *current;
	MixtralEngine *next;
	MixtralEngine *retired;
	MixtralCommand *wanted;		/* what the settings ask for; NULL: no engine */
	MixtralCommand *good;		/* what has served last; NULL: none */
	char	   *failed_key;		/* of a command that did not start; NULL: none */
	int			failures;		/* in a row */
	int64		starts;
	TimestampTz retry_at;		/* no engine is started before */
	TimestampTz exchange_at;	/* none is started to take over before */
	char	   *last_error;
	TimestampTz last_error_at;
	char	   *published;
} Supervisor;

static Supervisor supervisor;
static MemoryContext turn_context;

PGDLLEXPORT void mixtral_worker_main(Datum preloaded);

/* ---- Small things ---- */

static void
child_ended(SIGNAL_ARGS)
{
	int			saved = errno;

	SetLatch(MyLatch);
	errno = saved;
}

static void
replace_string(char **target, const char *value)
{
	if (*target != NULL)
		pfree(*target);
	*target = value != NULL ? MemoryContextStrdup(TopMemoryContext, value) : NULL;
}

static void
note_error(Supervisor *s, const char *text)
{
	replace_string(&s->last_error, text);
	s->last_error_at = GetCurrentTimestamp();
}

static void
set_wanted(Supervisor *s)
{
	MemoryContext old = MemoryContextSwitchTo(turn_context);
	bool		own = *mixtral_model != '\0' && *mixtral_socket == '\0';
	MixtralListen listen;
	char		problem[1024];
	MixtralCommand *command;

	/* the setting has been checked, so that this does not fail */
	if (!mixtral_parse_listen(own ? mixtral_listen_at : "", &listen, problem, sizeof(problem)))
		elog(ERROR, "mixtral.listen: %s", problem);
	mixtral_outside_set(&s->outside, &listen);
	command = own ? mixtral_command_build(&listen) : NULL;
	MemoryContextSwitchTo(old);
	mixtral_command_free(s->wanted);
	s->wanted = command != NULL ? mixtral_command_copy(command) : NULL;
}

static bool
has_key(const MixtralEngine *engine, const MixtralCommand *command)
{
	return command != NULL && strcmp(engine->command->key, command->key) == 0;
}

/* Has it not the socket that mixtral.listen asks for, or one that is asked for no more? */
static bool
lacks_outside(const Supervisor *s, const MixtralEngine *engine)
{
	if (s->outside.listen.path[0] == '\0')
		return engine->outside != 0;
	return s->outside.fd >= 0 && engine->outside != s->outside.number;
}

/* ---- The socket's file ---- */

static bool
open_listener(Supervisor *s)
{
	struct stat st;

	if (s->listener >= 0)
		close(s->listener);
	s->listener = mixtral_listen(MIXTRAL_SOCKET);
	s->socket_lost = false;
	if (s->listener < 0 || lstat(MIXTRAL_SOCKET, &st) < 0)
	{
		note_error(s, "could not listen in the data directory; the server log says why");
		return false;
	}
	s->socket_dev = st.st_dev;
	s->socket_ino = st.st_ino;
	return true;
}

static void
check_sockets(Supervisor *s)
{
	struct stat st;

	if (mixtral_outside_look(&s->outside))
		note_error(s, psprintf("mixtral.listen: %s", s->outside.trouble));

	if (s->socket_lost || s->listener < 0)
		return;
	if (lstat(MIXTRAL_SOCKET, &st) == 0 && st.st_dev == s->socket_dev && st.st_ino == s->socket_ino)
		return;
	s->socket_lost = true;
	ereport(LOG,
			(errmsg("the mixtral engine's socket \"%s\" has been removed; making another", MIXTRAL_SOCKET)));
}

/* ---- Starting ---- */

static void
plan_retry(Supervisor *s, bool has_served)
{
	int			pause_s = has_served && s->failures == 1 ? 0 : 1 << Min(s->failures - 1, 6);

	s->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											  (int64) Min(pause_s, PAUSE_MAX_S) * 1000);
}

static void
start_current(Supervisor *s)
{
	bool		has_failed = s->failed_key != NULL && strcmp(s->failed_key, s->wanted->key) == 0;
	MixtralCommand *command = has_failed && s->good != NULL ? s->good : s->wanted;

	if ((s->socket_lost || s->listener < 0) && !open_listener(s))
	{
		s->failures++;
		plan_retry(s, false);
		return;
	}
	s->starts++;
	s->current = mixtral_engine_start(mixtral_command_copy(command), s->listener, MIXTRAL_SOCKET,
									  &s->outside, s->poll_fd);
	if (s->current == NULL)
	{
		note_error(s, "could not start the engine process; the server log says why");
		s->failures++;
		plan_retry(s, false);
	}
}

static void
close_new_listener(Supervisor *s)
{
	if (s->new_listener < 0)
		return;
	close(s->new_listener);
	s->new_listener = -1;
	unlink(MIXTRAL_NEW_SOCKET);
}

static void
start_next(Supervisor *s)
{
	bool		has_failed = s->failed_key != NULL && strcmp(s->failed_key, s->wanted->key) == 0;
	MixtralCommand *command = has_failed ? s->current->command : s->wanted;

	s->new_listener = mixtral_listen(MIXTRAL_NEW_SOCKET);
	if (s->new_listener >= 0)
	{
		s->starts++;
		s->next = mixtral_engine_start(mixtral_command_copy(command), s->new_listener,
									   MIXTRAL_NEW_SOCKET, &s->outside, s->poll_fd);
	}
	if (s->next == NULL)
	{
		note_error(s, "could not start another engine process; the server log says why");
		s->exchange_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), EXCHANGE_PAUSE_S * 1000);
		replace_string(&s->failed_key, s->wanted->key);
		close_new_listener(s);
	}
}

/* From now on it finishes what it runs, and nobody new finds it */
static void
retire(Supervisor *s, MixtralEngine *engine)
{
	mixtral_engine_drain(engine);
	engine->next = s->retired;
	s->retired = engine;
}

static void
abolish(MixtralEngine *engine)
{
	if (engine == NULL || engine->unwanted)
		return;
	engine->unwanted = true;
	mixtral_engine_kill(engine);
}

/* `next` has answered: its socket takes the place of the old one */
static void
take_over(Supervisor *s)
{
	struct stat st;

	if (rename(MIXTRAL_NEW_SOCKET, MIXTRAL_SOCKET) < 0 || lstat(MIXTRAL_SOCKET, &st) < 0)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not rename \"%s\" to \"%s\": %m", MIXTRAL_NEW_SOCKET, MIXTRAL_SOCKET)));
		abolish(s->next);
		return;
	}
	s->socket_dev = st.st_dev;
	s->socket_ino = st.st_ino;
	s->socket_lost = false;
	if (s->listener >= 0)
		close(s->listener);
	s->listener = s->new_listener;
	s->new_listener = -1;
	if (s->current != NULL && s->current->serving)
		retire(s, s->current);
	else if (s->current != NULL)
	{
		/* started meanwhile in vain; it is reaped among the retired */
		abolish(s->current);
		s->current->next = s->retired;
		s->retired = s->current;
	}
	s->current = s->next;
	s->next = NULL;
}

/* Makes what runs and what is wanted the same, as far as can be done now */
static void
reconcile(Supervisor *s)
{
	bool		has_failed;
	bool		lacks_socket;

	if (s->wanted == NULL)
	{
		abolish(s->next);
		if (s->current != NULL && s->current->serving)
		{
			retire(s, s->current);
			s->current = NULL;
		}
		else
			abolish(s->current);
		return;
	}
	if (s->current == NULL)
	{
		if (s->next == NULL && GetCurrentTimestamp() >= s->retry_at)
			start_current(s);
		return;
	}
	has_failed = s->failed_key != NULL && strcmp(s->failed_key, s->wanted->key) == 0;
	lacks_socket = s->socket_lost || lacks_outside(s, s->current);
	if (has_key(s->current, s->wanted) && !lacks_socket)
		abolish(s->next);
	else if (!s->current->serving)
	{
		/* not what is wanted any more, unless it is there because that has failed */
		if (lacks_socket || !has_failed)
			abolish(s->current);
	}
	else if (s->next != NULL)
	{
		if ((!has_key(s->next, s->wanted) && !has_key(s->next, s->current->command)) ||
			lacks_outside(s, s->next))
			abolish(s->next);
	}
	else if ((lacks_socket || !has_failed) && GetCurrentTimestamp() >= s->exchange_at)
		start_next(s);
}

/* ---- What becomes of engines ---- */

static void
has_answered(Supervisor *s, MixtralEngine *engine)
{
	mixtral_command_free(s->good);
	s->good = mixtral_command_copy(engine->command);
	if (has_key(engine, s->wanted))
		replace_string(&s->failed_key, NULL);
	ereport(DEBUG1,
			(errmsg("mixtral engine (PID %d) serves model \"%s\"",
					(int) engine->pid, engine->command->model)));
	if (engine == s->next)
		take_over(s);
}

static void
current_died(Supervisor *s, MixtralEngine *engine, int status)
{
	char	   *death;
	bool		lasted = engine->serving &&
		TimestampDifferenceExceeds(engine->serving_since, GetCurrentTimestamp(), LASTED_S * 1000);

	if (engine->unwanted)
	{
		s->retry_at = 0;
		return;
	}
	death = mixtral_engine_death(engine, status);
	note_error(s, death);
	ereport(LOG, (errmsg("mixtral engine (PID %d) has ended: %s", (int) engine->pid, death)));
	s->failures = lasted ? 1 : s->failures + 1;
	if (!engine->serving)
	{
		/* a command that has served before goes before one that has not */
		if (has_key(engine, s->wanted))
			replace_string(&s->failed_key, engine->command->key);
		if (s->good != NULL && has_key(engine, s->good))
		{
			mixtral_command_free(s->good);
			s->good = NULL;
		}
		else if (s->good != NULL)
		{
			s->retry_at = 0;
			return;
		}
	}
	plan_retry(s, engine->serving);
}

static void
next_died(Supervisor *s, MixtralEngine *engine, int status)
{
	char	   *death;

	close_new_listener(s);
	if (engine->unwanted)
		return;
	death = mixtral_engine_death(engine, status);
	note_error(s, death);
	s->exchange_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), EXCHANGE_PAUSE_S * 1000);
	replace_string(&s->failed_key, engine->command->key);
	ereport(WARNING,
			(errmsg("the mixtral engine could not be exchanged: %s", death),
			 errdetail("The engine that serves model \"%s\" stays.",
					   s->current != NULL ? s->current->command->model : ""),
			 errhint("Correct the settings or the file, then reload the configuration.")));
}

/* Reads, asks, and waits for one engine; true: it is gone */
static bool
look_at_engine(Supervisor *s, MixtralEngine *engine, int *status)
{
	pid_t		gone = waitpid(engine->pid, status, WNOHANG);

	mixtral_engine_read_log(engine);
	if (gone != engine->pid && !engine->unwanted && mixtral_engine_probe(engine))
		has_answered(s, engine);
	return gone == engine->pid;
}

static void
look_at_engines(Supervisor *s)
{
	MixtralEngine **link = &s->retired;
	MixtralEngine *engine;
	int			status;

	if ((engine = s->current) != NULL && look_at_engine(s, engine, &status))
	{
		s->current = NULL;
		current_died(s, engine, status);
		mixtral_engine_free(engine);
	}
	if ((engine = s->next) != NULL && look_at_engine(s, engine, &status))
	{
		s->next = NULL;
		next_died(s, engine, status);
		mixtral_engine_free(engine);
	}
	while ((engine = *link) != NULL)
	{
		if (look_at_engine(s, engine, &status))
		{
			*link = engine->next;
			ereport(LOG, (errmsg("retired mixtral engine (PID %d) has ended", (int) engine->pid)));
			mixtral_engine_free(engine);
		}
		else
			link = &engine->next;
	}
}

/* ---- What others see ---- */

/* A JSON string; what is no UTF-8 becomes '?' (a path may have any bytes) */
static void
append_string(StringInfo out, const char *key, const char *value)
{
	char	   *clean = pstrdup(value);

	for (unsigned char *c = (unsigned char *) clean; *c != '\0';)
	{
		int			length = pg_utf_mblen(c);

		if (strnlen((char *) c, length) == (size_t) length && pg_utf8_islegal(c, length))
			c += length;
		else
			*c++ = '?';
	}
	appendStringInfo(out, ",\"%s\":", key);
	escape_json(out, clean);
	pfree(clean);
}

static void
append_time(StringInfo out, const char *key, TimestampTz when)
{
	appendStringInfo(out, ",\"%s\":%.3f", key,
					 (double) when / USECS_PER_SEC +
					 (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (double) SECS_PER_DAY);
}

static const char *
state_name(const Supervisor *s)
{
	if (s->current != NULL && s->current->serving)
		return "serving";
	if (s->current != NULL || s->next != NULL)
		return "starting";
	if (s->wanted == NULL)
		return "idle";
	return s->retry_at > GetCurrentTimestamp() ? "failed" : "starting";
}

static void
describe(const Supervisor *s, StringInfo out)
{
	const MixtralEngine *engine = s->current;
	int			retired = 0;

	for (const MixtralEngine *e = s->retired; e != NULL; e = e->next)
		retired++;
	appendStringInfo(out, "{\"state\":\"%s\",\"worker_pid\":%d,\"starts\":" INT64_FORMAT ",\"retired\":%d",
					 state_name(s), MyProcPid, s->starts, retired);
	if (s->wanted != NULL)
		append_string(out, "wanted_model", s->wanted->model);
	if (engine != NULL)
	{
		appendStringInfo(out, ",\"engine_pid\":%d", (int) engine->pid);
		append_string(out, "model", engine->command->model);
		append_time(out, "started", engine->started);
		if (engine->serving)
			append_time(out, "serving_since", engine->serving_since);
	}
	else if (s->wanted != NULL && s->retry_at > 0)
		append_time(out, "retry_at", s->retry_at);
	if (s->last_error != NULL)
	{
		append_string(out, "last_error", s->last_error);
		append_time(out, "last_error_at", s->last_error_at);
	}
	appendStringInfoChar(out, '}');
}

static void
write_state(const char *text)
{
	int			fd = open(MIXTRAL_STATE ".tmp", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR);
	size_t		length = strlen(text);
	bool		written = fd >= 0 && write(fd, text, length) == (ssize_t) length;

	if (fd >= 0 && close(fd) < 0)
		written = false;
	if (!written || rename(MIXTRAL_STATE ".tmp", MIXTRAL_STATE) < 0)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", MIXTRAL_STATE)));
}

static void
publish(Supervisor *s)
{
	StringInfoData out;
	const char *state = state_name(s);

	initStringInfo(&out);
	describe(s, &out);
	if (s->published != NULL && strcmp(s->published, out.data) == 0)
		return;
	replace_string(&s->published, out.data);
	write_state(out.data);
	if (s->current != NULL)
		pgstat_report_activity(STATE_RUNNING,
							   psprintf("%s model %s with engine process %d", state,
										s->current->command->model, (int) s->current->pid));
	else if (strcmp(state, "failed") == 0)
		pgstat_report_activity(STATE_RUNNING, psprintf("no engine runs: %s", s->last_error));
	else
		pgstat_report_activity(STATE_IDLE, "no engine runs: mixtral.model is not set");
}

/* ---- From beginning to end ---- */

static void
wait_for_end(MixtralEngine *engine, int *left_ms)
{
	if (engine == NULL)
		return;
	while (waitpid(engine->pid, NULL, WNOHANG) == 0 && *left_ms > 0)
	{
		pg_usleep(5000);
		*left_ms -= 5;
	}
}

/* However the worker ends in order; if it does not, its engines get the kernel's signal */
static void
shut_down(int code, Datum arg)
{
	Supervisor *s = &supervisor;
	int			left_ms = EXIT_WAIT_MS;

	unlink(MIXTRAL_SOCKET);
	unlink(MIXTRAL_STATE);
	close_new_listener(s);
	mixtral_outside_close(&s->outside);
	if (s->current != NULL)
		mixtral_engine_kill(s->current);
	if (s->next != NULL)
		mixtral_engine_kill(s->next);
	for (MixtralEngine *e = s->retired; e != NULL; e = e->next)
		mixtral_engine_kill(e);
	wait_for_end(s->current, &left_ms);
	wait_for_end(s->next, &left_ms);
	for (MixtralEngine *e = s->retired; e != NULL; e = e->next)
		wait_for_end(e, &left_ms);
}

static void
begin(Supervisor *s)
{
	s->listener = s->new_listener = s->outside.fd = -1;
	if (!mixtral_lock_file(MIXTRAL_LOCK, &s->lock))
	{
		ereport(DEBUG1, (errmsg("there is a mixtral worker already")));
		proc_exit(0);
	}
	on_proc_exit(shut_down, (Datum) 0);
	s->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (s->poll_fd < 0)
		ereport(FATAL, (errmsg("could not create an epoll descriptor: %m")));
	turn_context = AllocSetContextCreate(TopMemoryContext, "mixtral worker's turn", ALLOCSET_DEFAULT_SIZES);
	unlink(MIXTRAL_NEW_SOCKET);
	open_listener(s);

	/* a reload may have come before there was somebody to take it */
	ProcessConfigFile(PGC_SIGHUP);
	set_wanted(s);
}

static void
reload(Supervisor *s)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	MemoryContextSwitchTo(TopMemoryContext);
	set_wanted(s);
	replace_string(&s->failed_key, NULL);
	s->failures = 0;
	s->retry_at = s->exchange_at = 0;
}

static long
turn_ms(const Supervisor *s)
{
	long		ms = s->current == NULL && s->wanted != NULL && s->retry_at > 0 ?
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(), s->retry_at) : TURN_MS;

	return Max(1, Min(ms, TURN_MS));
}

void
mixtral_worker_main(Datum preloaded)
{
	Supervisor *s = &supervisor;
	int			events;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGCHLD, child_ended);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);	/* to be seen in pg_stat_activity */
	MemoryContextSwitchTo(TopMemoryContext);
	begin(s);

	while (!ShutdownRequestPending)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
			reload(s);
		MemoryContextSwitchTo(turn_context);
		check_sockets(s);
		MemoryContextSwitchTo(TopMemoryContext);
		look_at_engines(s);
		reconcile(s);
		MemoryContextSwitchTo(turn_context);
		publish(s);
		MemoryContextReset(turn_context);

		events = WaitLatchOrSocket(MyLatch,
								   WL_LATCH_SET | WL_TIMEOUT | WL_SOCKET_READABLE | WL_EXIT_ON_PM_DEATH,
								   s->poll_fd, turn_ms(s), mixtral_wait_event());
		if (events & WL_LATCH_SET)
			ResetLatch(MyLatch);
	}
	/* one that was preloaded is to come back, unless the server goes down */
	proc_exit(DatumGetBool(preloaded) ? 1 : 0);
}
