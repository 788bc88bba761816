/*
 * cmd_serve.c: `mixtral serve`: an engine as a process, for clients that come over a unix socket.
 *
 *     mixtral serve --model x.gguf --socket /run/mixtral.sock [--socket-mode 0660] [--allow-uid N ...]
 *     mixtral serve --model x.gguf --listen-fd 3 [--listen-fd 5 ...] --lifeline-fd 4           under a supervisor
 *     mixtral serve --socket S --threads 1 --model x.gguf --kv-pool 2G --model y.gguf --kv-pool 512M
 *
 * The first model is what requests get that name none. A model's options stand behind it; those before the first are for all.
 *
 * Up to four sockets listen, one of them made here, the others inherited: --listen-fd, or systemd's LISTEN_FDS. Who may connect is the socket's mode;
 * who may name a tenant is our own uid and --allow-uid. A socket that nobody serves any more is replaced, one that somebody serves
 * is an error. Connections that come while the model is opened wait in the socket's backlog.
 *
 * SIGTERM and SIGINT end it: no new requests, those that run have --grace-ms to finish, then they are cancelled. A second
 * one, or the end of file on the lifeline (whose other end the supervisor holds), ends it at once. SIGHUP changes nothing:
 * what a process serves is on its command line. Lines for the log go to standard error.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "cli.h"

#define BACKLOG 1024
#define UIDS_MAX 64
#define MODELS_MAX 16
#define SOCKETS_MAX 4 /* that listen */
#define DESCRIPTORS 4096 /* files, threads' and all connections */
#define DEFAULT_GRACE_MS 10000
#define DRAIN_LOOK_MS 20
#define SYSTEMD_FD 3 /* SD_LISTEN_FDS_START */

typedef struct {
    const char *socket;
    mode_t mode;
    int listen_fds[SOCKETS_MAX - 1]; /* [n_listen_fds] */
    int n_listen_fds;
    int lifeline_fd; /* -1: not given */
    int grace_ms;
    uint32_t uids[UIDS_MAX];
    size_t n_uids;
    mx_engine_options all; /* of every model, where it has none of its own */
    struct {
        const char *path;
        mx_engine_options options;
    } models[MODELS_MAX];
    int n_models;
} serve_options;

/* ---- Options ---- */

typedef enum { TEXT, NUMBER, SIZE, DESCRIPTOR, LISTENER, MODE, UID, MODEL } flag_kind;

static int take_value(const char *flag, flag_kind kind, const char *text, void *to, serve_options *o)
{
    int64_t number = 0;
    char *end;

    switch (kind) {
    case TEXT:
        *(const char **)to = text;
        return 0;
    case NUMBER:
        if (mx_cli_number(flag, text, false, INT32_MAX, &number))
            return 1;
        *(int *)to = (int)number;
        return 0;
    case SIZE:
        return mx_cli_number(flag, text, true, INT64_MAX, to);
    case DESCRIPTOR:
        return mx_cli_int(text, 0, INT32_MAX, to) ? 0 : mx_cli_fail("%s: expected a descriptor, got %s", flag, text);
    case LISTENER:
        if (o->n_listen_fds == SOCKETS_MAX - 1)
            return mx_cli_fail("%s: expected at most %d of them", flag, SOCKETS_MAX - 1);
        to = &o->listen_fds[o->n_listen_fds++];
        return mx_cli_int(text, 0, INT32_MAX, to) ? 0 : mx_cli_fail("%s: expected a descriptor, got %s", flag, text);
    case MODE:
        o->mode = (mode_t)strtoul(text, &end, 8);
        return *text && !*end && o->mode <= 0777 ? 0 : mx_cli_fail("%s: expected an octal mode such as 0660, got %s", flag, text);
    case UID:
        if (o->n_uids == UIDS_MAX || !mx_cli_int(text, 0, INT32_MAX, (int *)&o->uids[o->n_uids]))
            return mx_cli_fail("%s: expected a uid, of at most %d, got %s", flag, UIDS_MAX, text);
        o->n_uids++;
        return 0;
    case MODEL:
        if (o->n_models == MODELS_MAX)
            return mx_cli_fail("%s: expected at most %d models", flag, MODELS_MAX);
        o->models[o->n_models].path = text;
        o->models[o->n_models++].options = o->all;
        return 0;
    }
    return 1;
}

static int parse(int argc, char **argv, serve_options *o)
{
    static const struct {
        const char *name;
        flag_kind kind;
        bool of_model; /* offset is in mx_engine_options, else in serve_options */
        size_t offset;
    } flags[] = {
        {"--model", MODEL, false, 0},
        {"--socket", TEXT, false, offsetof(serve_options, socket)},
        {"--socket-mode", MODE, false, 0},
        {"--allow-uid", UID, false, 0},
        {"--listen-fd", LISTENER, false, 0},
        {"--lifeline-fd", DESCRIPTOR, false, offsetof(serve_options, lifeline_fd)},
        {"--grace-ms", NUMBER, false, offsetof(serve_options, grace_ms)},
        {"--tenant-requests", NUMBER, false, offsetof(serve_options, all.tenant_requests)},
        {"--tenant-tokens-per-minute", SIZE, false, offsetof(serve_options, all.tenant_tokens_per_minute)},
        {"--stall-timeout-ms", NUMBER, false, offsetof(serve_options, all.stall_timeout_ms)},
        {"--threads", NUMBER, true, offsetof(mx_engine_options, threads)},
        {"--context", NUMBER, true, offsetof(mx_engine_options, context)},
        {"--kv-pool", SIZE, true, offsetof(mx_engine_options, kv_pool_bytes)},
        {"--kv-type", TEXT, true, offsetof(mx_engine_options, kv_type)},
        {"--max-queue", NUMBER, true, offsetof(mx_engine_options, max_queue)},
        {"--max-step-ms", NUMBER, true, offsetof(mx_engine_options, max_step_ms)},
        {"--kernels", TEXT, true, offsetof(mx_engine_options, kernels)},
        {"--name", TEXT, true, offsetof(mx_engine_options, name)},
    };
    const size_t n_flags = sizeof(flags) / sizeof(flags[0]);
    char *to;
    size_t f;

    for (int i = 1; i < argc; i += 2) {
        for (f = 0; f < n_flags && strcmp(flags[f].name, argv[i]) != 0; f++)
            continue;
        if (f == n_flags)
            return mx_cli_fail("serve: there is no option %s; `mixtral help` lists them", argv[i]);
        if (!argv[i + 1])
            return mx_cli_fail("%s: expected a value after it", argv[i]);
        to = !flags[f].of_model ? (char *)o : (char *)(o->n_models ? &o->models[o->n_models - 1].options : &o->all);
        if (take_value(argv[i], flags[f].kind, argv[i + 1], to + flags[f].offset, o))
            return 1;
    }
    if (o->n_models == 0)
        return mx_cli_fail("serve: expected --model MODEL");
    o->models[0].options.tenant_requests = o->all.tenant_requests; /* the engine's come from its first model */
    o->models[0].options.tenant_tokens_per_minute = o->all.tenant_tokens_per_minute;
    o->models[0].options.stall_timeout_ms = o->all.stall_timeout_ms;
    return 0;
}

/* ---- The socket ---- */

/* systemd's socket activation (sd_listen_fds(3)): how many sockets there are, from SYSTEMD_FD on. */
static int activated_fds(void)
{
    const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
    int count = n ? atoi(n) : 0;

    return pid && atol(pid) == (long)getpid() && count > 0 && count < SOCKETS_MAX ? count : 0;
}

static int bind_new(int fd, const struct sockaddr_un *address, mode_t mode)
{
    mode_t before = umask(0777 & ~mode);
    int rc = bind(fd, (const struct sockaddr *)address, sizeof(*address));

    umask(before);
    return rc;
}

/* Removes a socket at which nobody listens any more. */
static bool remove_stale(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;
    bool stale = fd >= 0 && lstat(address->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
                 connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 && errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return stale && unlink(address->sun_path) == 0;
}

static int make_socket(const char *path, mode_t mode, int *fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int rc;

    if (strlen(path) == 0 || strlen(path) >= sizeof(address.sun_path))
        return mx_cli_fail("--socket: expected a path of 1 to %zu bytes, got %zu", sizeof(address.sun_path) - 1, strlen(path));
    memcpy(address.sun_path, path, strlen(path));
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return mx_cli_fail("cannot make a socket: %s", strerror(errno));
    rc = bind_new(*fd, &address, mode);
    if (rc < 0 && errno == EADDRINUSE) {
        if (!remove_stale(&address)) {
            close(*fd);
            return mx_cli_fail("%s: another engine serves there, or it is no socket", path);
        }
        rc = bind_new(*fd, &address, mode);
    }
    if (rc < 0 || listen(*fd, BACKLOG) < 0) {
        rc = mx_cli_fail("%s: cannot listen: %s", path, strerror(errno));
        close(*fd);
        return rc;
    }
    return 0;
}

/* All that listen: what was inherited, and what is made here. */
static int find_sockets(const serve_options *o, int fds[SOCKETS_MAX], int *n)
{
    int n_activated = o->n_listen_fds == 0 && !o->socket ? activated_fds() : 0;

    *n = 0;
    for (int i = 0; i < o->n_listen_fds; i++)
        fds[(*n)++] = o->listen_fds[i];
    for (int i = 0; i < n_activated; i++)
        fds[(*n)++] = SYSTEMD_FD + i;
    if (*n == 0 && !o->socket)
        return mx_cli_fail("serve: expected --socket PATH, --listen-fd N, or a socket from systemd");
    return o->socket ? make_socket(o->socket, o->mode, &fds[(*n)++]) : 0;
}

/* ---- Serving ---- */

static void log_line(void *arg, mx_log_level level, const char *line)
{
    static const char *const names[] = {
        [MX_LOG_ERROR] = "error", [MX_LOG_WARNING] = "warning", [MX_LOG_INFO] = "info"};
    (void)arg;
    fprintf(stderr, "mixtral: %s: %s\n", names[level], line);
}

typedef enum { NOTHING, STOP, STOP_NOW } wish;

/* Waits for a signal or the lifeline's end, for timeout_ms at most (-1: for ever). */
static wish wait_for_wish(int signals, int lifeline, int timeout_ms)
{
    struct pollfd fds[] = {{.fd = signals, .events = POLLIN}, {.fd = lifeline, .events = POLLIN}};
    struct signalfd_siginfo info;
    char byte;

    if (poll(fds, 2, timeout_ms) <= 0)
        return NOTHING;
    if (fds[1].revents && read(lifeline, &byte, 1) <= 0)
        return STOP_NOW;
    if (!(fds[0].revents & POLLIN) || read(signals, &info, sizeof(info)) != (ssize_t)sizeof(info) || info.ssi_signo == SIGHUP)
        return NOTHING;
    return STOP;
}

static void serve_until_told(mx_engine *engine, const serve_options *o, int signals)
{
    wish w;

    do
        w = wait_for_wish(signals, o->lifeline_fd, -1);
    while (w == NOTHING);
    for (int waited = 0; w == STOP && waited < o->grace_ms && mx_engine_drain(engine) > 0; waited += DRAIN_LOOK_MS)
        if (wait_for_wish(signals, o->lifeline_fd, DRAIN_LOOK_MS) != NOTHING)
            w = STOP_NOW;
}

/* A shell's or systemd's soft limit of 1,024 descriptors is less than the connections that an engine takes. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < DESCRIPTORS) {
        limit.rlim_cur = limit.rlim_max < DESCRIPTORS ? limit.rlim_max : DESCRIPTORS;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int serve(const serve_options *o, const int *fds, int n_fds)
{
    sigset_t set;
    mx_engine *engine;
    mx_error error;
    mx_status status;
    int signals, taken = 0;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0 || sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return mx_cli_fail("cannot take signals: %s", strerror(errno));
    raise_descriptor_limit();
    status = mx_engine_open(o->models[0].path, &o->models[0].options, &engine, &error);
    for (int i = 1; i < o->n_models && status == MX_OK; i++)
        status = mx_engine_add(engine, o->models[i].path, &o->models[i].options, &error);
    while (taken < n_fds && status == MX_OK)
        status = mx_engine_listen(engine, fds[taken++], o->uids, o->n_uids, &error);
    while (taken < n_fds)
        close(fds[taken++]);
    if (status == MX_OK) {
        for (int i = 0; i < o->n_models; i++)
            fprintf(stderr, "mixtral: info: serving %s\n", o->models[i].path);
        serve_until_told(engine, o, signals);
    }
    mx_engine_close(engine);
    close(signals);
    return status == MX_OK ? 0 : mx_cli_fail("%s", error.text);
}

int mx_cmd_serve(int argc, char **argv)
{
    serve_options o = {.mode = 0600, .lifeline_fd = -1, .grace_ms = DEFAULT_GRACE_MS, .all.log = log_line};
    int fds[SOCKETS_MAX], n_fds = 0, failed = parse(argc, argv, &o);

    if (!failed)
        failed = find_sockets(&o, fds, &n_fds);
    if (failed)
        return failed;
    failed = serve(&o, fds, n_fds);
    if (o.socket)
        unlink(o.socket);
    return failed;
}
