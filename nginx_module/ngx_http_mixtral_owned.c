
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * Engines that nginx owns: mixtral_engine NAME model=... .
 *
 * A configuration asks for commands; what runs are processes, which the
 * master keeps in a list of its own across configurations.  When a
 * configuration has been read (ngx_http_mixtral_init_module), each command
 * finds the process that runs the same, or a new one is made; processes that
 * no command asks for lose the master as a user and leave with their last
 * worker.
 *
 * A process's socket has no name: it is bound, opened as a path and unlinked
 * at once, and reached through /proc/self/fd by those who have inherited the
 * descriptor.  So there is nothing to clean up after a crash, and nobody
 * else can connect.
 *
 * What engines and supervisors say comes through pipes, which the first
 * worker writes to the error_log.
 */


#include "ngx_http_mixtral.h"

#include <sys/resource.h>


#define NGX_HTTP_MIXTRAL_BACKLOG  1024
#define NGX_HTTP_MIXTRAL_CHECK    20000    /* ms, for nginx -t */
#define NGX_HTTP_MIXTRAL_REPLACE  2000     /* ms, a reload waits for an engine */


static ngx_int_t ngx_http_mixtral_run(ngx_cycle_t *cycle,
    ngx_http_mixtral_engine_t *engine);
static ngx_int_t ngx_http_mixtral_check(ngx_cycle_t *cycle,
    ngx_http_mixtral_engine_t *engine);
static ngx_uint_t ngx_http_mixtral_is_alive(ngx_http_mixtral_process_t *p);
static void ngx_http_mixtral_forget(ngx_http_mixtral_process_t *p);
static void ngx_http_mixtral_log_handler(ngx_event_t *rev);


/* the master's, copied into its workers */
static ngx_http_mixtral_process_t  *ngx_http_mixtral_processes;


/* ---- What a configuration asks for ---- */


static u_char *
ngx_http_mixtral_append(u_char *p, const char *text)
{
    return ngx_cpymem(p, text, ngx_strlen(text) + 1);
}


/* A file as it is now: another one under the same name is another model. */

static u_char *
ngx_http_mixtral_identity(u_char *p, const char *path)
{
    ngx_file_info_t  fi;

    if (stat(path, &fi) != 0) {
        return ngx_sprintf(p, "%s %d%Z", path, (int) ngx_errno);
    }

    return ngx_sprintf(p, "%s %uL %uL %O %T %l%Z", path,
                       (uint64_t) fi.st_dev, (uint64_t) fi.st_ino,
                       (off_t) fi.st_size, fi.st_mtim.tv_sec,
                       fi.st_mtim.tv_nsec);
}


/* All that makes two processes the same */

static ngx_int_t
ngx_http_mixtral_make_key(ngx_cycle_t *cycle,
    ngx_http_mixtral_command_t *command)
{
    u_char      *p;
    size_t       size;
    ngx_uint_t   i;

    size = 256;

    for (i = 0; command->argv[i]; i++) {
        size += 2 * ngx_strlen(command->argv[i]) + 160;
    }

    p = ngx_pnalloc(cycle->pool, size + ngx_strlen(command->program));
    if (p == NULL) {
        return NGX_ERROR;
    }

    command->key.data = p;

    p = ngx_sprintf(p, "%d %d %i%Z", (int) command->uid, (int) command->gid,
                    command->priority);
    p = ngx_http_mixtral_identity(p, command->program);

    for (i = 0; command->argv[i]; i++) {
        p = ngx_http_mixtral_append(p, command->argv[i]);

        if (i && ngx_strcmp(command->argv[i - 1], "--model") == 0) {
            p = ngx_http_mixtral_identity(p, command->argv[i]);
        }
    }

    command->key.len = p - command->key.data;

    return NGX_OK;
}


/* The user is known when the whole configuration has been read. */

static ngx_int_t
ngx_http_mixtral_complete(ngx_cycle_t *cycle,
    ngx_http_mixtral_command_t *command)
{
    ngx_core_conf_t  *ccf;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);

    command->user = ccf->username;
    command->uid = (geteuid() == 0) ? ccf->user : geteuid();
    command->gid = (geteuid() == 0) ? ccf->group : getegid();

    return ngx_http_mixtral_make_key(cycle, command);
}


ngx_int_t
ngx_http_mixtral_init_module(ngx_cycle_t *cycle)
{
    ngx_uint_t                      i;
    ngx_http_mixtral_engine_t     **engines;
    ngx_http_mixtral_process_t     *p, **link;
    ngx_http_mixtral_main_conf_t   *mcf;

    mcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_mixtral_module);

    if (mcf == NULL && ngx_http_mixtral_processes == NULL) {
        return NGX_OK;
    }

    for (p = ngx_http_mixtral_processes; p; p = p->next) {
        p->wanted = 0;
    }

    engines = mcf ? mcf->engines.elts : NULL;

    for (i = 0; mcf && i < mcf->engines.nelts; i++) {

        if (engines[i]->command == NULL) {
            continue;
        }

        if (ngx_http_mixtral_complete(cycle, engines[i]->command) != NGX_OK) {
            return NGX_OK;
        }

        if (ngx_test_config) {
            if (ngx_http_mixtral_check(cycle, engines[i]) != NGX_OK) {
                return NGX_ERROR;
            }

            continue;
        }

        if (ngx_http_mixtral_run(cycle, engines[i]) != NGX_OK) {
            ngx_log_error(NGX_LOG_ALERT, cycle->log, 0,
                          "mixtral: engine \"%V\" cannot be started: its "
                          "requests will be answered with 503",
                          &engines[i]->name);
        }
    }

    link = &ngx_http_mixtral_processes;

    while ((p = *link) != NULL) {

        if (!p->wanted && p->users[1] != -1) {
            ngx_log_error(NGX_LOG_NOTICE, cycle->log, 0,
                          "mixtral: engine \"%s\" leaves with its last client",
                          p->name);
            (void) close(p->users[1]);
            p->users[1] = -1;
        }

        if (!p->wanted && !ngx_http_mixtral_is_alive(p)) {
            *link = p->next;
            ngx_http_mixtral_forget(p);
            continue;
        }

        link = &p->next;
    }

    return NGX_OK;
}


/* ---- Processes ---- */


/* Whether the supervisor holds its end of the lifeline */

static ngx_uint_t
ngx_http_mixtral_is_alive(ngx_http_mixtral_process_t *p)
{
    struct pollfd  pfd;

    pfd.fd = p->lifeline[1];
    pfd.events = 0;
    pfd.revents = 0;

    return poll(&pfd, 1, 0) == 0;
}


static void
ngx_http_mixtral_close_pair(int *pair)
{
    if (pair[0] != -1) {
        (void) close(pair[0]);
    }

    if (pair[1] != -1) {
        (void) close(pair[1]);
    }

    pair[0] = -1;
    pair[1] = -1;
}


static void
ngx_http_mixtral_forget(ngx_http_mixtral_process_t *p)
{
    ngx_http_mixtral_close_pair(p->lifeline);
    ngx_http_mixtral_close_pair(p->users);
    ngx_http_mixtral_close_pair(p->log);

    if (p->listener != -1) {
        (void) close(p->listener);
    }

    if (p->node != -1) {
        (void) close(p->node);
    }

    if (p->page != NULL) {
        (void) munmap((void *) p->page, sizeof(ngx_http_mixtral_page_t));
    }

    ngx_free(p);
}


/* A listening socket without a name; p->node is the way to it. */

static ngx_int_t
ngx_http_mixtral_bind(ngx_cycle_t *cycle, ngx_http_mixtral_process_t *p)
{
    int                  folder, rc;
    char                *slash, path[NGX_MAX_PATH];
    ngx_str_t           *pid;
    ngx_core_conf_t     *ccf;
    struct sockaddr_un   address;

    ccf = (ngx_core_conf_t *) ngx_get_conf(cycle->conf_ctx, ngx_core_module);
    pid = &ccf->pid;

    /* nginx writes its pid file there: it is a folder of its own, and local */

    (void) ngx_cpystrn((u_char *) path, pid->data,
                       ngx_min(pid->len + 1, sizeof(path)));
    slash = strrchr(path, '/');
    if (slash) {
        slash[1] = '\0';
    }

    folder = open(slash ? path : ".", O_PATH|O_DIRECTORY|O_CLOEXEC);
    if (folder == -1) {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, ngx_errno,
                      "open(\"%s\") failed", slash ? path : ".");
        return NGX_ERROR;
    }

    ngx_memzero(&address, sizeof(address));
    address.sun_family = AF_UNIX;
    ngx_sprintf((u_char *) address.sun_path,
                "/proc/self/fd/%d/.mixtral-%P-%xD%xD%Z", folder, ngx_getpid(),
                (uint32_t) ngx_random(), (uint32_t) ngx_random());

    p->listener = socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0);

    rc = -1;

    if (p->listener != -1
        && bind(p->listener, (struct sockaddr *) &address, sizeof(address))
           == 0)
    {
        if ((geteuid() != 0
             || chown(address.sun_path, p->command->uid, p->command->gid) == 0)
            && chmod(address.sun_path, 0600) == 0
            && listen(p->listener, NGX_HTTP_MIXTRAL_BACKLOG) == 0)
        {
            p->node = open(address.sun_path, O_PATH|O_NOFOLLOW|O_CLOEXEC);
            rc = (p->node == -1) ? -1 : 0;
        }

        if (unlink(address.sun_path) == -1) {
            rc = -1;
        }
    }

    if (rc == -1) {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, ngx_errno,
                      "mixtral: cannot make a socket in \"%s\" (this needs "
                      "/proc)", slash ? path : ".");
    }

    (void) close(folder);

    return rc == 0 ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_mixtral_make(ngx_cycle_t *cycle, ngx_http_mixtral_process_t *p)
{
    p->page = mmap(NULL, sizeof(ngx_http_mixtral_page_t),
                   PROT_READ|PROT_WRITE, MAP_ANON|MAP_SHARED, -1, 0);

    if (p->page == MAP_FAILED) {
        p->page = NULL;
    }

    if (p->page == NULL
        || pipe2(p->lifeline, O_CLOEXEC) == -1
        || pipe2(p->users, O_CLOEXEC) == -1
        || pipe2(p->log, O_CLOEXEC|O_NONBLOCK) == -1)
    {
        ngx_log_error(NGX_LOG_ALERT, cycle->log, ngx_errno,
                      "mixtral: cannot make the pipes of an engine");
        return NGX_ERROR;
    }

    if (ngx_http_mixtral_bind(cycle, p) != NGX_OK
        || ngx_http_mixtral_fork_supervisor(p, cycle->log) != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* what the supervisor alone keeps */

    (void) close(p->listener);
    (void) close(p->lifeline[0]);
    (void) close(p->users[0]);
    (void) close(p->log[1]);

    p->listener = -1;
    p->lifeline[0] = -1;
    p->users[0] = -1;
    p->log[1] = -1;

    return NGX_OK;
}


static ngx_http_mixtral_process_t *
ngx_http_mixtral_new_process(ngx_http_mixtral_engine_t *engine)
{
    ngx_http_mixtral_process_t  *p;

    p = ngx_calloc(sizeof(ngx_http_mixtral_process_t)
                   + engine->command->key.len, ngx_cycle->log);
    if (p == NULL) {
        return NULL;
    }

    p->key.len = engine->command->key.len;
    p->key.data = (u_char *) (p + 1);
    ngx_memcpy(p->key.data, engine->command->key.data, p->key.len);

    (void) ngx_cpystrn((u_char *) p->name, (u_char *) engine->command->name,
                       sizeof(p->name));

    p->command = engine->command;
    p->lifeline[0] = p->lifeline[1] = -1;
    p->users[0] = p->users[1] = -1;
    p->log[0] = p->log[1] = -1;
    p->listener = -1;
    p->node = -1;

    return p;
}


/*
 * The master may wait a moment here: its workers go on.  After it, requests
 * that come while the engine is not ready are answered with 503.
 */

static void
ngx_http_mixtral_wait_ready(ngx_http_mixtral_process_t *p)
{
    ngx_uint_t  waited;

    for (waited = 0; waited < NGX_HTTP_MIXTRAL_REPLACE; waited += 10) {

        if (p->page->state == NGX_HTTP_MIXTRAL_READY
            || p->page->state == NGX_HTTP_MIXTRAL_FAILED)
        {
            return;
        }

        ngx_msleep(10);
    }
}


/* Finds the engine's process, or makes it. */

static ngx_int_t
ngx_http_mixtral_run(ngx_cycle_t *cycle, ngx_http_mixtral_engine_t *engine)
{
    ngx_uint_t                   replaces;
    ngx_http_mixtral_process_t  *p;

    replaces = 0;

    for (p = ngx_http_mixtral_processes; p; p = p->next) {

        if (ngx_strcmp(p->name, engine->command->name) != 0
            || p->users[1] == -1 || !ngx_http_mixtral_is_alive(p))
        {
            continue;
        }

        if (p->key.len == engine->command->key.len
            && ngx_memcmp(p->key.data, engine->command->key.data, p->key.len)
               == 0)
        {
            break;
        }

        replaces = 1;
    }

    if (p == NULL) {

        p = ngx_http_mixtral_new_process(engine);
        if (p == NULL) {
            return NGX_ERROR;
        }

        if (ngx_http_mixtral_make(cycle, p) != NGX_OK) {
            ngx_http_mixtral_forget(p);
            return NGX_ERROR;
        }

        p->next = ngx_http_mixtral_processes;
        ngx_http_mixtral_processes = p;

        ngx_sprintf((u_char *) p->path, "/proc/self/fd/%d%Z", p->node);

        if (replaces) {
            ngx_http_mixtral_wait_ready(p);
        }
    }

    p->wanted = 1;
    p->command = NULL;      /* which goes with its configuration */

    engine->path = p->path;
    engine->page = p->page;

    return NGX_OK;
}


/* ---- Workers ---- */


ngx_int_t
ngx_http_mixtral_init_process(ngx_cycle_t *cycle)
{
    ngx_connection_t            *c;
    ngx_http_mixtral_process_t  *p;

    for (p = ngx_http_mixtral_processes; p; p = p->next) {

        if (ngx_process != NGX_PROCESS_SINGLE) {
            (void) close(p->lifeline[1]);
            p->lifeline[1] = -1;
        }

        if (p->log[0] == -1
            || (ngx_process != NGX_PROCESS_SINGLE
                && (ngx_process != NGX_PROCESS_WORKER || ngx_worker != 0)))
        {
            continue;
        }

        c = ngx_get_connection(p->log[0], cycle->log);
        if (c == NULL) {
            continue;
        }

        c->data = p;
        c->idle = 1;        /* it keeps no worker that is to leave */
        c->read->handler = ngx_http_mixtral_log_handler;
        c->read->log = cycle->log;
        c->write->log = cycle->log;

        if (ngx_handle_read_event(c->read, 0) != NGX_OK) {
            ngx_free_connection(c);
        }
    }

    return NGX_OK;
}


static void
ngx_http_mixtral_log_line(ngx_http_mixtral_process_t *p, ngx_log_t *log)
{
    char        *line;
    size_t       i;
    ngx_uint_t   level;

    static const struct {
        const char  *prefix;
        ngx_uint_t   level;
    } levels[] = {
        { "mixtral: error: ", NGX_LOG_ERR },
        { "mixtral: warning: ", NGX_LOG_WARN },
        { "mixtral: info: ", NGX_LOG_NOTICE },
        { "mixtral: ", NGX_LOG_ERR }
    };

    p->line[p->nline] = '\0';
    p->nline = 0;

    line = p->line;
    level = NGX_LOG_ERR;

    for (i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (ngx_strncmp(line, levels[i].prefix, ngx_strlen(levels[i].prefix))
            == 0)
        {
            line += ngx_strlen(levels[i].prefix);
            level = levels[i].level;
            break;
        }
    }

    ngx_log_error(level, log, 0, "mixtral: engine \"%s\": %s", p->name, line);
}


static void
ngx_http_mixtral_log_handler(ngx_event_t *rev)
{
    char                         buffer[4096];
    ssize_t                      i, n;
    ngx_connection_t            *c;
    ngx_http_mixtral_process_t  *p;

    c = rev->data;
    p = c->data;

    if (c->close || ngx_exiting) {
        ngx_close_connection(c);
        return;
    }

    for ( ;; ) {

        n = read(c->fd, buffer, sizeof(buffer));

        if (n == -1 && ngx_errno == NGX_EINTR) {
            continue;
        }

        if (n == -1 && ngx_errno == NGX_EAGAIN) {
            rev->ready = 0;
            break;
        }

        if (n <= 0) {
            ngx_close_connection(c);
            p->log[0] = -1;
            return;
        }

        for (i = 0; i < n; i++) {

            if (buffer[i] == '\n' || p->nline == sizeof(p->line) - 1) {
                ngx_http_mixtral_log_line(p, ngx_cycle->log);
            }

            if (buffer[i] != '\n') {
                p->line[p->nline++] = buffer[i];
            }
        }
    }

    if (ngx_handle_read_event(rev, 0) != NGX_OK) {
        ngx_close_connection(c);
    }
}


/* ---- nginx -t ---- */


/* In a child: the program looks at a file, as the user who will read it. */

static void
ngx_http_mixtral_exec_info(ngx_http_mixtral_command_t *command,
    const char *model, int output)
{
    int            null;
    char          *argv[4];
    struct rlimit  limit;

    argv[0] = command->program;
    argv[1] = (char *) "info";
    argv[2] = (char *) model;
    argv[3] = NULL;

    null = open("/dev/null", O_RDWR);

    limit.rlim_cur = NGX_HTTP_MIXTRAL_CHECK / 1000;
    limit.rlim_max = limit.rlim_cur;

    if (null == -1
        || dup2(null, STDIN_FILENO) == -1
        || dup2(null, STDOUT_FILENO) == -1
        || dup2(output, STDERR_FILENO) == -1
        || setrlimit(RLIMIT_CPU, &limit) == -1
        || ngx_http_mixtral_become(command) != NGX_OK
        || chdir("/") == -1)
    {
        _exit(2);
    }

    (void) close_range(3, ~0U, 0);
    (void) execv(command->program, argv);

    (void) dprintf(STDERR_FILENO, "cannot run %s: %s\n", command->program,
                   strerror(errno));
    _exit(2);
}


/* Takes what the child says until it ends; kills it when it takes long. */

static int
ngx_http_mixtral_listen_to(ngx_pid_t pid, int input, char *text, size_t size)
{
    int              status;
    size_t           used;
    ssize_t          n;
    struct pollfd    pfd;
    struct timeval   now;
    ngx_msec_int_t   left;
    ngx_msec_t       end;

    used = 0;

    ngx_gettimeofday(&now);
    end = now.tv_sec * 1000 + now.tv_usec / 1000 + NGX_HTTP_MIXTRAL_CHECK;

    do {
        ngx_gettimeofday(&now);
        left = (ngx_msec_int_t) (end - (now.tv_sec * 1000
                                        + now.tv_usec / 1000));

        pfd.fd = input;
        pfd.events = POLLIN;
        pfd.revents = 0;

        if (left <= 0 || poll(&pfd, 1, (int) left) <= 0) {
            (void) kill(pid, SIGKILL);
            used = ngx_snprintf((u_char *) text, size - 1,
                                "it took more than %d s to look at the file",
                                NGX_HTTP_MIXTRAL_CHECK / 1000)
                   - (u_char *) text;
            break;
        }

        n = read(input, text + used, size - 1 - used);
        used += (n > 0) ? n : 0;

    } while (n > 0 && used < size - 1);

    if (used == size - 1) {
        (void) kill(pid, SIGKILL); /* enough has been said */
    }

    text[used] = '\0';
    text[strcspn(text, "\n")] = '\0';

    while (waitpid(pid, &status, 0) == -1) {
        if (ngx_errno != NGX_EINTR) {
            return -1;
        }
    }

    return status;
}


static ngx_int_t
ngx_http_mixtral_check_model(ngx_cycle_t *cycle,
    ngx_http_mixtral_engine_t *engine, const char *model)
{
    int        fds[2], status;
    char       text[512];
    ngx_pid_t  pid;

    if (pipe2(fds, O_CLOEXEC) == -1) {
        return NGX_ERROR;
    }

    pid = fork();

    if (pid == 0) {
        ngx_http_mixtral_exec_info(engine->command, model, fds[1]);
    }

    (void) close(fds[1]);

    status = (pid == -1) ? -1 : ngx_http_mixtral_listen_to(pid, fds[0], text,
                                                           sizeof(text));
    (void) close(fds[0]);

    if (status == 0) {
        return NGX_OK;
    }

    ngx_log_error(NGX_LOG_EMERG, cycle->log, 0,
                  "mixtral: engine \"%V\": model \"%s\" cannot be served by "
                  "user \"%s\": %s", &engine->name, model,
                  engine->command->user ? engine->command->user : "?",
                  pid != -1 && text[0] ? text : "the check failed");

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_mixtral_check(ngx_cycle_t *cycle, ngx_http_mixtral_engine_t *engine)
{
    char        **argv;
    ngx_uint_t    i;

    argv = engine->command->argv;

    for (i = 0; argv[i]; i++) {
        if (ngx_strcmp(argv[i], "--model") == 0
            && ngx_http_mixtral_check_model(cycle, engine, argv[i + 1])
               != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}
