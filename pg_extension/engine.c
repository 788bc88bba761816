/*-------------------------------------------------------------------------
 *
 * engine.c
 *	  The engine program as a child process of the worker.
 *
 * An engine is `mixtral serve` with three things from us: listening sockets,
 * which stay ours so that calls find them while no engine runs; a lifeline, a
 * pipe whose closing ends it at once; and a pipe for its log.  It asks the
 * kernel to be killed when the worker dies, so it cannot outlive the
 * cluster, whatever ends that.  It leads a session of its own: PostgreSQL
 * signals whole process groups, and a cancel that is meant for the
 * worker is not meant for it.
 *
 * It is ready when it has answered the question for its models on a
 * connection that waits in its backlog from the beginning.
 *
 * All of this runs in the worker, which has one thread.  Between fork and
 * exec the child touches nothing of PostgreSQL's.  Memory: malloc'd by the
 * client, else in the memory context of the worker; an engine's is freed by
 * mixtral_engine_free.
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libpq/pqsignal.h"
#include "port.h"
#include "utils/timestamp.h"

#define LISTEN_FD		3		/* in the engine */
#define LIFELINE_FD		4
#define OUTSIDE_FD		5		/* the socket for others, if there is one */
#define FIRST_OTHER_FD	6
#define GRACE_MS		"86400000"	/* an engine that is replaced finishes what it runs */
#define OOM_SCORE_ADD	500		/* the kernel takes the engine before a backend */
#define ARGUMENTS_MAX	256		/* more than with the 16 models and 64 uids that an engine takes */

/* ---- What to run ---- */

static void
add(MixtralCommand *command, const char *argument)
{
	Assert(command->argc < ARGUMENTS_MAX - 1);
	command->argv[command->argc++] = pstrdup(argument);
}

static void
add_number(MixtralCommand *command, const char *flag, int number, const char *unit)
{
	if (number == 0)
		return;					/* the engine's default */
	add(command, flag);
	add(command, psprintf("%d%s", number, unit));
}

/* The file behind a name: renaming another file over it changes it */
static void
append_identity(StringInfo key, const char *path)
{
	struct stat st;

	if (stat(path, &st) == 0)
		appendStringInfo(key, "%llu %llu %lld %lld.%09ld",
						 (unsigned long long) st.st_dev, (unsigned long long) st.st_ino,
						 (long long) st.st_size, (long long) st.st_mtim.tv_sec,
						 st.st_mtim.tv_nsec);
	else
		appendStringInfo(key, "error %d", errno);
}

static char *
find_program(void)
{
	char		folder[MAXPGPATH];

	if (*mixtral_program != '\0')
		return pstrdup(mixtral_program);
	strlcpy(folder, my_exec_path, sizeof(folder));
	get_parent_directory(folder);
	return psprintf("%s/mixtral", folder);
}

/*
 * The next model of a list: file, or name=file, between commas, without
 * blanks around it.  NULL: that was all.  A name has no slash in it.
 */
static char *
next_model(const char **list, char **name)
{
	const char *begin = *list + strspn(*list, " ,");
	size_t		length = strcspn(begin, ",");
	size_t		of_name;

	*list = begin + length;
	*name = NULL;
	while (length > 0 && begin[length - 1] == ' ')
		length--;
	if (length == 0)
		return NULL;
	of_name = strcspn(begin, "=/");
	if (of_name < length && begin[of_name] == '=')
	{
		*name = pnstrdup(begin, of_name);
		begin += of_name + 1;
		length -= of_name + 1;
	}
	return pnstrdup(begin, length);
}

/* From the settings as they are.  --listen-fd OUTSIDE_FD is put in where there is such a socket. */
MixtralCommand *
mixtral_command_build(const MixtralListen *listen)
{
	MixtralCommand *command = palloc0(sizeof(*command));
	StringInfoData key;
	const char *list = mixtral_model;
	char	   *model;
	char	   *name;

	command->argv = palloc0(ARGUMENTS_MAX * sizeof(char *));
	add(command, find_program());
	add(command, "serve");
	add(command, "--listen-fd");
	add(command, psprintf("%d", LISTEN_FD));
	add(command, "--lifeline-fd");
	add(command, psprintf("%d", LIFELINE_FD));
	add(command, "--grace-ms");
	add(command, GRACE_MS);
	for (int i = 0; i < listen->n_uids; i++)
	{
		add(command, "--allow-uid");
		add(command, psprintf("%u", listen->uids[i]));
	}
	add_number(command, "--threads", mixtral_threads, "");
	add_number(command, "--context", mixtral_context, "");
	add_number(command, "--kv-pool", mixtral_kv_pool, "M");
	add(command, "--kv-type");
	add(command, mixtral_kv_types[mixtral_kv_type].name);
	add_number(command, "--max-queue", mixtral_max_queue, "");
	add_number(command, "--max-step-ms", mixtral_max_step, "");
	while ((model = next_model(&list, &name)) != NULL && command->argc < ARGUMENTS_MAX - 4)
	{
		add(command, "--model");
		add(command, model);
		if (name != NULL)
		{
			add(command, "--name");
			add(command, name);
		}
	}

	initStringInfo(&key);
	for (int i = 0; i < command->argc; i++)
		appendStringInfo(&key, "%s\n", command->argv[i]);
	append_identity(&key, command->argv[0]);
	for (list = mixtral_model; (model = next_model(&list, &name)) != NULL;)
	{
		appendStringInfoChar(&key, '\n');
		append_identity(&key, model);
	}
	command->key = key.data;
	command->model = pstrdup(mixtral_model);
	return command;
}

MixtralCommand *
mixtral_command_copy(const MixtralCommand *command)
{
	MixtralCommand *copy = palloc0(sizeof(*copy));

	copy->argv = palloc0(ARGUMENTS_MAX * sizeof(char *));
	for (int i = 0; i < command->argc; i++)
		add(copy, command->argv[i]);
	copy->key = pstrdup(command->key);
	copy->model = pstrdup(command->model);
	return copy;
}

void
mixtral_command_free(MixtralCommand *command)
{
	if (command == NULL)
		return;
	for (int i = 0; i < command->argc; i++)
		pfree(command->argv[i]);
	pfree(command->argv);
	pfree(command->key);
	pfree(command->model);
	pfree(command);
}

/* ---- Fork and exec ---- */

typedef struct ChildFiles
{
	int			listener;
	int			outside;		/* -1: none */
	int			lifeline;		/* the end that is read */
	int			log;			/* the end that is written */
} ChildFiles;

static void
child_fail(const char *what, const char *name)
{
	dprintf(STDERR_FILENO, "mixtral: %s %s: %s\n", what, name, strerror(errno));
	_exit(127);
}

/* Above our own, so that it is the engine that goes when memory runs out */
static void
child_oom_score(void)
{
	char		text[16] = "";
	int			fd = open("/proc/self/oom_score_adj", O_RDWR);

	if (fd < 0)
		return;					/* a kernel without it */
	if (read(fd, text, sizeof(text) - 1) > 0)
		dprintf(fd, "%d", Min(atoi(text) + OOM_SCORE_ADD, 1000));
	close(fd);
}

/* In the child: never returns */
static void
child_exec(char **argv, const ChildFiles *files, pid_t parent)
{
	int			listener = fcntl(files->listener, F_DUPFD, FIRST_OTHER_FD);
	int			outside = files->outside >= 0 ? fcntl(files->outside, F_DUPFD, FIRST_OTHER_FD) : -1;
	int			lifeline = fcntl(files->lifeline, F_DUPFD, FIRST_OTHER_FD);
	int			log = fcntl(files->log, F_DUPFD, FIRST_OTHER_FD);
	int			null = open("/dev/null", O_RDWR);
	int			limit = (int) sysconf(_SC_OPEN_MAX);
	sigset_t	none;

	/* from here on what goes wrong is said in the log */
	if (log < 0 || dup2(log, STDERR_FILENO) < 0)
		_exit(127);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		child_fail("cannot be bound to", "the worker");
	if (getppid() != parent)
		_exit(127);				/* it died before that */
	setsid();
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		child_fail("cannot open", "/dev/null");
	if (listener < 0 || dup2(listener, LISTEN_FD) < 0 ||
		lifeline < 0 || dup2(lifeline, LIFELINE_FD) < 0)
		child_fail("cannot hand over", "the socket");
	if (files->outside >= 0 && (outside < 0 || dup2(outside, OUTSIDE_FD) < 0))
		child_fail("cannot hand over", "the socket of mixtral.listen");
	if (files->outside < 0)
		close(OUTSIDE_FD);
	if (close_range(FIRST_OTHER_FD, ~0U, 0) < 0)
		for (int fd = FIRST_OTHER_FD; fd < limit; fd++)
			close(fd);
	child_oom_score();
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(argv[0], argv);
	child_fail("cannot run", argv[0]);
}

/* The child's pid; -1: errno says why not */
static pid_t
spawn(const MixtralCommand *command, int listener, int outside, int *lifeline, int *log)
{
	char	   *argv[ARGUMENTS_MAX + 2];
	int			life[2] = {-1, -1};
	int			output[2] = {-1, -1};
	pid_t		parent = getpid();
	pid_t		pid = -1;
	sigset_t	all;
	sigset_t	old;

	memcpy(argv, command->argv, (command->argc + 1) * sizeof(char *));
	if (outside >= 0)
	{
		argv[command->argc] = "--listen-fd";
		argv[command->argc + 1] = CppAsString2(OUTSIDE_FD);
		argv[command->argc + 2] = NULL;
	}
	if (pipe2(life, O_CLOEXEC) == 0 && pipe2(output, O_CLOEXEC) == 0 &&
		fcntl(output[0], F_SETFL, O_NONBLOCK) == 0)
	{
		ChildFiles	files = {listener, outside, life[0], output[1]};

		sigfillset(&all);		/* no handler of ours runs in the child */
		sigprocmask(SIG_SETMASK, &all, &old);
		pid = fork();
		if (pid == 0)
			child_exec(argv, &files, parent);
		sigprocmask(SIG_SETMASK, &old, NULL);
	}
	if (life[0] >= 0)
		close(life[0]);
	if (output[1] >= 0)
		close(output[1]);
	if (pid > 0)
	{
		*lifeline = life[1];
		*log = output[0];
		return pid;
	}
	if (life[1] >= 0)
		close(life[1]);
	if (output[0] >= 0)
		close(output[0]);
	return -1;
}

static bool
watch(int poll_fd, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event) == 0)
		return true;
	ereport(LOG, (errmsg("could not watch a descriptor: %m")));
	return false;
}

/*
 * Starts an engine on a listening socket, which is at `path` and stays the
 * caller's, as the one for others does, if there is one.  The command is the engine's from then on, also on failure (NULL,
 * which has been logged).  What it has to say makes poll_fd readable.
 */
MixtralEngine *
mixtral_engine_start(MixtralCommand *command, int listener, const char *path,
					 const MixtralOutside *outside, int poll_fd)
{
	MixtralEngine *engine = palloc0(sizeof(*engine));
	mx_error	error;
	uint32_t	id;

	engine->command = command;
	engine->lifeline = engine->log = -1;
	engine->started = GetCurrentTimestamp();
	if (mx_client_connect(path, &engine->probe, &error) != MX_OK ||
		mx_client_request(engine->probe, "{\"op\":\"models\"}", &id, &error) != MX_OK)
	{
		ereport(LOG, (errmsg("could not reach the mixtral engine's socket: %s", error.text)));
		mixtral_engine_free(engine);
		return NULL;
	}
	engine->outside = outside->fd >= 0 ? outside->number : 0;
	engine->pid = spawn(command, listener, outside->fd, &engine->lifeline, &engine->log);
	if (engine->pid < 0)
	{
		ereport(LOG, (errmsg("could not start the mixtral engine: %m")));
		engine->pid = 0;
		mixtral_engine_free(engine);
		return NULL;
	}
	if (!watch(poll_fd, engine->log) || !watch(poll_fd, mx_client_fd(engine->probe)))
	{
		mixtral_engine_kill(engine);
		mixtral_engine_free(engine);
		return NULL;
	}
	ereport(LOG,
			(errmsg("starting mixtral engine (PID %d) with model \"%s\"",
					(int) engine->pid, command->model)));
	return engine;
}

/* ---- What it says ---- */

static void
log_line(MixtralEngine *engine)
{
	static const char info[] = "mixtral: info: ";
	const char *line = engine->line;

	engine->line[engine->line_length] = '\0';
	engine->line_length = 0;
	if (strncmp(line, info, strlen(info)) == 0)
	{
		ereport(LOG, (errmsg("mixtral engine (PID %d): %s", (int) engine->pid, line + strlen(info))));
		return;
	}
	if (strncmp(line, "mixtral: ", strlen("mixtral: ")) == 0)
		line += strlen("mixtral: ");
	strlcpy(engine->trouble, line, sizeof(engine->trouble));
	ereport(WARNING, (errmsg("mixtral engine (PID %d): %s", (int) engine->pid, line)));
}

/* Takes what is in the pipe, line by line */
void
mixtral_engine_read_log(MixtralEngine *engine)
{
	char		buffer[4096];
	ssize_t		got;

	while (engine->log >= 0)
	{
		got = read(engine->log, buffer, sizeof(buffer));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return;
		for (ssize_t i = 0; i < got; i++)
		{
			bool		full = engine->line_length == (int) sizeof(engine->line) - 1;

			if (buffer[i] == '\n' || full)
				log_line(engine);
			if (buffer[i] != '\n')
				engine->line[engine->line_length++] = buffer[i];
		}
		if (got <= 0)
		{
			if (engine->line_length > 0)
				log_line(engine);
			close(engine->log);
			engine->log = -1;
		}
	}
}

/* Has it answered by now?  True once, when it has. */
bool
mixtral_engine_probe(MixtralEngine *engine)
{
	mx_event	event;
	mx_error	error;
	mx_status	status;

	if (engine->probe == NULL)
		return false;
	status = mx_client_next(engine->probe, &event, &error);
	if (status == MX_AGAIN)
		return false;
	if (status == MX_OK && event.type == MX_EVENT_RESULT)
	{
		engine->serving = true;
		engine->serving_since = GetCurrentTimestamp();
	}
	else
	{
		strlcpy(engine->trouble, status == MX_OK ? event.error.text : error.text, sizeof(engine->trouble));
		mixtral_engine_kill(engine);	/* it runs, perhaps, but is none of ours */
	}
	mx_client_close(engine->probe);
	engine->probe = NULL;
	return engine->serving;
}

/* ---- Its end ---- */

/* No more requests; it ends when those that run are done */
void
mixtral_engine_drain(MixtralEngine *engine)
{
	if (kill(engine->pid, SIGTERM) < 0)
		ereport(LOG, (errmsg("could not signal mixtral engine (PID %d): %m", (int) engine->pid)));
}

/* At once.  It is still to be waited for. */
void
mixtral_engine_kill(MixtralEngine *engine)
{
	if (engine->pid > 0 && kill(engine->pid, SIGKILL) < 0 && errno != ESRCH)
		ereport(LOG, (errmsg("could not kill mixtral engine (PID %d): %m", (int) engine->pid)));
}

void
mixtral_engine_free(MixtralEngine *engine)
{
	mx_client_close(engine->probe);
	if (engine->lifeline >= 0)
		close(engine->lifeline);
	if (engine->log >= 0)
		close(engine->log);
	mixtral_command_free(engine->command);
	pfree(engine);
}

/* How it ended, for people; palloc'd */
char *
mixtral_engine_death(const MixtralEngine *engine, int status)
{
	if (WIFSIGNALED(status))
		return psprintf("the engine process was terminated by signal %d: %s",
						WTERMSIG(status), pg_strsignal(WTERMSIG(status)));
	if (engine->trouble[0] != '\0')
		return pstrdup(engine->trouble);
	return psprintf("the engine process exited with status %d", WEXITSTATUS(status));
}
