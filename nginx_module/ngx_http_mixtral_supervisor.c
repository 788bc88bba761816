
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * The supervisor: a small process that keeps one engine running.
 *
 * It is forked by the master and is no child of it, so that nothing nginx
 * does to its children, at a reload for one, concerns it.  It holds the
 * engine's listening socket: connections wait in its backlog while an engine
 * is started again.  What it shares with the others:
 *
 *   lifeline   a pipe whose other end only the master has.  At its end the
 *              supervisor kills the engine and leaves.
 *   users      a pipe whose other end the master and those workers have that
 *              may talk to this engine.  At its end nobody does any more: the
 *              engine has been replaced, and leaves in order.
 *   log        a pipe for lines, its own and the engine's, which a worker
 *              writes to the error_log.  It never blocks; what does not fit
 *              is lost.
 *   page       what the engine is doing, for the workers
 *
 * An engine that has ended is started again: at once after one that has
 * lasted, with growing pauses (1 s to 60 s) after one that has not.  It is
 * ready when it has answered a question that waits in its backlog from the
 * beginning.
 *
 * The process has nginx's memory as it was at the fork, and uses of it the
 * command and the page.  It has nginx's user from the beginning on.
 */


#include "ngx_http_mixtral.h"

#include <sys/prctl.h>
#include <sys/signalfd.h>


/* descriptors of the supervisor besides those that an engine has too */
#define NGX_HTTP_MIXTRAL_USERS     5
#define NGX_HTTP_MIXTRAL_NODE      6
#define NGX_HTTP_MIXTRAL_NODE_PATH "/proc/self/fd/"                           \
                                   ngx_value(NGX_HTTP_MIXTRAL_NODE)
#define NGX_HTTP_MIXTRAL_NFILES    4
#define NGX_HTTP_MIXTRAL_OTHERS    7       /* the first that has no use */

#define NGX_HTTP_MIXTRAL_LASTED    10000   /* ms, that are no failed start */
#define NGX_HTTP_MIXTRAL_PAUSE     60      /* s, between starts, at most */
#define NGX_HTTP_MIXTRAL_OOM       500     /* above the workers' */
#define NGX_HTTP_MIXTRAL_GRACE     5000    /* ms, to leave in order */


typedef struct {
    const ngx_http_mixtral_command_t  *command;
    ngx_http_mixtral_page_t           *page;

    int                                signals;
    sigset_t                           set;      /* what they are */

    ngx_pid_t                          engine;   /* 0: none runs */
    int                                lifeline; /* of the engine */
    mx_client                         *probe;    /* NULL: it has answered */
    ngx_msec_t                         ready;    /* since */

    ngx_uint_t                         failures; /* in a row */
    ngx_msec_t                         retry;    /* no start before */

    ngx_msec_t                         deadline; /* of leaving */
    unsigned                           leaving:1;
} ngx_http_mixtral_supervisor_t;


static ngx_msec_t
ngx_http_mixtral_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (ngx_msec_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


/* A line, in the engine's own form */

static void
ngx_http_mixtral_say(const char *level, const char *format, ...)
{
    int      n;
    char     line[1024];
    va_list  args;

    n = snprintf(line, sizeof(line), "mixtral: %s: ", level);

    va_start(args, format);
    n += vsnprintf(line + n, sizeof(line) - n - 1, format, args);
    va_end(args);

    n = ngx_min(n, (int) sizeof(line) - 2);
    line[n++] = '\n';

    if (write(STDERR_FILENO, line, n) < 0) {
        return; /* nobody reads them, or there are too many */
    }
}


/* ---- The process ---- */


static ngx_int_t
ngx_http_mixtral_keep_files(ngx_http_mixtral_process_t *p)
{
    int         i, fd, null, log, limit;
    int         kept[NGX_HTTP_MIXTRAL_NFILES];
    const int   files[NGX_HTTP_MIXTRAL_NFILES] = {
        p->listener, p->lifeline[0], p->users[0], p->node
    };

    null = open("/dev/null", O_RDWR);
    log = fcntl(p->log[1], F_DUPFD, NGX_HTTP_MIXTRAL_OTHERS);

    if (null < 0 || log < 0
        || dup2(null, STDIN_FILENO) < 0
        || dup2(log, STDOUT_FILENO) < 0
        || dup2(log, STDERR_FILENO) < 0)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < NGX_HTTP_MIXTRAL_NFILES; i++) {
        kept[i] = fcntl(files[i], F_DUPFD, NGX_HTTP_MIXTRAL_OTHERS);
        if (kept[i] < 0) {
            return NGX_ERROR;
        }
    }

    for (i = 0; i < NGX_HTTP_MIXTRAL_NFILES; i++) {
        if (dup3(kept[i], NGX_HTTP_MIXTRAL_LISTENER + i, O_CLOEXEC) < 0) {
            return NGX_ERROR;
        }
    }

    if (close_range(NGX_HTTP_MIXTRAL_OTHERS, ~0U, 0) < 0) {
        limit = (int) sysconf(_SC_OPEN_MAX);

        for (fd = NGX_HTTP_MIXTRAL_OTHERS; fd < limit; fd++) {
            (void) close(fd);
        }
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_mixtral_become(const ngx_http_mixtral_command_t *command)
{
    if (geteuid() != 0) {
        return NGX_OK;
    }

    if (setgid(command->gid) < 0
        || initgroups(command->user, command->gid) < 0
        || setuid(command->uid) < 0)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/*
 * Linux weighs sessions first (sched_autogroup_enabled): in one of our own,
 * the priority has to be the session's too.
 */

static void
ngx_http_mixtral_set_priority(ngx_int_t priority)
{
    int  fd;

    if (setpriority(PRIO_PROCESS, 0, (int) priority) < 0) {
        ngx_http_mixtral_say("warning", "cannot set priority %d: %s",
                             (int) priority, strerror(errno));
    }

    fd = open("/proc/self/autogroup", O_WRONLY|O_CLOEXEC);
    if (fd < 0) {
        return; /* a kernel that does not */
    }

    (void) dprintf(fd, "%d", (int) priority);
    (void) close(fd);
}


static ngx_int_t
ngx_http_mixtral_settle(ngx_http_mixtral_process_t *p,
    ngx_http_mixtral_supervisor_t *s)
{
    int       signo;
    char      title[128];

    if (ngx_http_mixtral_keep_files(p) != NGX_OK) {
        return NGX_ERROR;
    }

    for (signo = 1; signo < NSIG; signo++) {
        (void) signal(signo, SIG_DFL);
    }

    (void) signal(SIGPIPE, SIG_IGN);

    sigemptyset(&s->set);
    sigaddset(&s->set, SIGCHLD);
    sigaddset(&s->set, SIGTERM);

    if (sigprocmask(SIG_SETMASK, &s->set, NULL) < 0) {
        return NGX_ERROR;
    }

    s->signals = signalfd(-1, &s->set, SFD_CLOEXEC|SFD_NONBLOCK);
    if (s->signals < 0) {
        return NGX_ERROR;
    }

    ngx_http_mixtral_set_priority(p->command->priority);

    if (ngx_http_mixtral_become(p->command) != NGX_OK || chdir("/") < 0) {
        return NGX_ERROR;
    }

    (void) snprintf(title, sizeof(title), "mixtral supervisor %s",
                    p->command->name);
    ngx_setproctitle(title);

    return NGX_OK;
}


/* ---- The engine ---- */


/* Above the workers': when memory runs out it is the engine that goes. */

static void
ngx_http_mixtral_oom_score(void)
{
    int   fd;
    char  text[16];

    /* without this, /proc/self is root's after setuid() */

    (void) prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);

    fd = open("/proc/self/oom_score_adj", O_RDWR|O_CLOEXEC);
    if (fd < 0) {
        return;
    }

    ngx_memzero(text, sizeof(text));

    if (read(fd, text, sizeof(text) - 1) > 0) {
        (void) dprintf(fd, "%d", ngx_min(atoi(text) + NGX_HTTP_MIXTRAL_OOM,
                                         1000));
    }

    (void) close(fd);
}


/* In the child */

static void
ngx_http_mixtral_exec(ngx_http_mixtral_supervisor_t *s, int lifeline,
    ngx_pid_t parent)
{
    sigset_t                           none;
    const ngx_http_mixtral_command_t  *command;

    command = s->command;

    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || getppid() != parent) {
        _exit(2);
    }

    if (dup2(lifeline, NGX_HTTP_MIXTRAL_LIFELINE) < 0
        || fcntl(NGX_HTTP_MIXTRAL_LISTENER, F_SETFD, 0) < 0)
    {
        _exit(2);
    }

    ngx_http_mixtral_oom_score();

    (void) signal(SIGPIPE, SIG_DFL);
    sigemptyset(&none);
    (void) sigprocmask(SIG_SETMASK, &none, NULL);

    (void) execv(command->program, command->argv);

    ngx_http_mixtral_say("error", "cannot run %s: %s", command->program,
                         strerror(errno));
    _exit(2);
}


/* The next start: at once, or after a pause that grows with the failures */

static void
ngx_http_mixtral_plan(ngx_http_mixtral_supervisor_t *s, ngx_uint_t at_once)
{
    ngx_uint_t  pause;

    if (at_once) {
        s->retry = ngx_http_mixtral_now();
        s->page->state = NGX_HTTP_MIXTRAL_LOADING;
        return;
    }

    pause = (ngx_uint_t) 1 << (ngx_min(s->failures, 7) - 1);
    pause = ngx_min(pause, NGX_HTTP_MIXTRAL_PAUSE);

    s->retry = ngx_http_mixtral_now() + pause * 1000;
    s->page->retry = pause;
    s->page->state = NGX_HTTP_MIXTRAL_FAILED;
}


static void
ngx_http_mixtral_spawn(ngx_http_mixtral_supervisor_t *s)
{
    int        life[2];
    uint32_t   id;
    mx_error   error;
    ngx_pid_t  pid, self;

    self = getpid();
    pid = -1;

    if (pipe2(life, O_CLOEXEC) == 0) {

        pid = fork();

        if (pid == 0) {
            ngx_http_mixtral_exec(s, life[0], self);
        }

        (void) close(life[0]);

        if (pid < 0) {
            (void) close(life[1]);
        }
    }

    if (pid < 0) {
        ngx_http_mixtral_say("error", "cannot start an engine: %s",
                             strerror(errno));
        s->failures++;
        ngx_http_mixtral_plan(s, 0);
        return;
    }

    s->engine = pid;
    s->lifeline = life[1];
    s->page->state = NGX_HTTP_MIXTRAL_LOADING;

    if (mx_client_connect(NGX_HTTP_MIXTRAL_NODE_PATH,
                          &s->probe, &error)
        != MX_OK
        || mx_client_request(s->probe, "{\"op\":\"models\"}", &id, &error)
           != MX_OK)
    {
        ngx_http_mixtral_say("error", "cannot reach the engine: %s",
                             error.text);
        (void) kill(pid, SIGKILL);
    }
}


/* Has it answered? */

static void
ngx_http_mixtral_probe(ngx_http_mixtral_supervisor_t *s)
{
    mx_event   event;
    mx_error   error;
    mx_status  status;

    status = mx_client_next(s->probe, &event, &error);

    if (status == MX_AGAIN) {
        return;
    }

    if (status == MX_OK && event.type == MX_EVENT_RESULT) {
        s->ready = ngx_http_mixtral_now();
        s->page->state = NGX_HTTP_MIXTRAL_READY;

    } else {
        (void) kill(s->engine, SIGKILL);
    }

    mx_client_close(s->probe);
    s->probe = NULL;
}


/* The engine has ended. */

static void
ngx_http_mixtral_bury(ngx_http_mixtral_supervisor_t *s, int status)
{
    ngx_uint_t  served, lasted;

    served = (s->ready != 0);
    lasted = served
             && ngx_http_mixtral_now() - s->ready > NGX_HTTP_MIXTRAL_LASTED;

    if (!s->leaving && WIFSIGNALED(status)) {
        ngx_http_mixtral_say("error", "engine process %d exited on signal %d",
                             (int) s->engine, WTERMSIG(status));

    } else if (!s->leaving) {
        ngx_http_mixtral_say("error", "engine process %d exited with code %d",
                             (int) s->engine, WEXITSTATUS(status));
    }

    s->engine = 0;
    s->ready = 0;
    (void) close(s->lifeline);
    mx_client_close(s->probe);
    s->probe = NULL;

    s->failures = lasted ? 0 : s->failures + 1;
    ngx_http_mixtral_plan(s, served && s->failures <= 1);
}


static void
ngx_http_mixtral_signals(ngx_http_mixtral_supervisor_t *s)
{
    int                      status;
    struct signalfd_siginfo  info;

    while (read(s->signals, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGTERM && s->engine) {
            /* an administrator's wish: another engine */
            (void) kill(s->engine, SIGTERM);
        }
    }

    if (s->engine && waitpid(s->engine, &status, WNOHANG) == s->engine) {
        ngx_http_mixtral_bury(s, status);
    }
}


/* ---- The end ---- */


static void
ngx_http_mixtral_leave(ngx_http_mixtral_supervisor_t *s)
{
    if (s->engine) {
        (void) kill(s->engine, SIGKILL);
        (void) waitpid(s->engine, NULL, 0);
    }

    _exit(0);
}


/* Nobody uses the engine any more. */

static void
ngx_http_mixtral_retire(ngx_http_mixtral_supervisor_t *s)
{
    s->leaving = 1;
    s->deadline = ngx_http_mixtral_now() + NGX_HTTP_MIXTRAL_GRACE;

    if (s->engine) {
        (void) kill(s->engine, SIGTERM);
    }
}


static int
ngx_http_mixtral_wait_ms(ngx_http_mixtral_supervisor_t *s)
{
    ngx_msec_int_t  left;

    if (s->leaving) {
        left = (ngx_msec_int_t) (s->deadline - ngx_http_mixtral_now());

    } else if (s->engine == 0) {
        left = (ngx_msec_int_t) (s->retry - ngx_http_mixtral_now());

    } else {
        return -1;
    }

    return left > 0 ? (int) left : 0;
}


static void
ngx_http_mixtral_supervise(ngx_http_mixtral_supervisor_t *s)
{
    struct pollfd  fds[4];

    for ( ;; ) {

        if (s->leaving
            && (s->engine == 0 || ngx_http_mixtral_wait_ms(s) == 0))
        {
            ngx_http_mixtral_leave(s);
        }

        if (s->engine == 0 && ngx_http_mixtral_wait_ms(s) == 0) {
            ngx_http_mixtral_spawn(s);
        }

        ngx_memzero(fds, sizeof(fds));

        fds[0].fd = NGX_HTTP_MIXTRAL_LIFELINE;
        fds[0].events = POLLIN;

        fds[1].fd = s->leaving ? -1 : NGX_HTTP_MIXTRAL_USERS;
        fds[1].events = POLLIN;

        fds[2].fd = s->signals;
        fds[2].events = POLLIN;

        fds[3].fd = s->probe ? mx_client_fd(s->probe) : -1;
        fds[3].events = s->probe ? mx_client_events(s->probe) : 0;

        if (poll(fds, 4, ngx_http_mixtral_wait_ms(s)) < 0) {
            continue;
        }

        if (fds[0].revents) {
            ngx_http_mixtral_leave(s);
        }

        if (fds[1].revents) {
            ngx_http_mixtral_retire(s);
        }

        if (fds[2].revents) {
            ngx_http_mixtral_signals(s);
        }

        if (fds[3].revents && s->probe) {
            ngx_http_mixtral_probe(s);
        }
    }
}


/*
 * In the master: forks the supervisor of a process whose descriptors and
 * page are made.  It is the grandchild, so that its end is not the master's
 * concern.
 */

ngx_int_t
ngx_http_mixtral_fork_supervisor(ngx_http_mixtral_process_t *p,
    ngx_log_t *log)
{
    int                            status;
    ngx_pid_t                      pid;
    ngx_http_mixtral_supervisor_t  s;

    pid = fork();

    if (pid == -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_errno, "fork() failed");
        return NGX_ERROR;
    }

    if (pid > 0) {
        while (waitpid(pid, &status, 0) == -1 && ngx_errno == NGX_EINTR) {
            /* void */
        }

        return NGX_OK;
    }

    if (setsid() == -1 || fork() != 0) {
        _exit(0);
    }

    ngx_memzero(&s, sizeof(s));
    s.command = p->command;
    s.page = p->page;

    if (ngx_http_mixtral_settle(p, &s) == NGX_OK) {
        ngx_http_mixtral_supervise(&s);
    }

    ngx_http_mixtral_say("error", "cannot supervise an engine: %s",
                         strerror(errno));
    p->page->state = NGX_HTTP_MIXTRAL_FAILED;
    _exit(2);
}
