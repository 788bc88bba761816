/*
 * server.c: the I/O thread: reads and checks frames, answers what needs no computation, sends what others produce.
 *
 * Connections belong to the I/O thread; a new one waits in `arrivals`, under the lock, until the thread takes it. What other
 * threads send a connection goes through its channel (call.h). The thread never computes and never waits but in
 * epoll_wait, so that stats and cancellation are always answered.
 *
 * Flow control: a connection with more than MX_STREAM_PAUSE_BYTES unsent has its streams paused; they go on when the reader has
 * taken most of them, and are cancelled with MX_TIMEOUT when it takes nothing for stall_timeout_ms. Beyond
 * READ_PAUSE_BYTES nothing more is read from it either, and beyond MX_UNSENT_MAX it is closed.
 *
 * Listening sockets, if there are any, are watched like the connections. A peer that the host does not trust is a tenant of its
 * own, "uid:N", and may not name another. When the process runs out of descriptors, listening pauses until a
 * connection is closed, or for a second.
 *
 * The descriptors are also kept in `fds`, which a child of fork can read whatever its parent's threads were at.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "../error.h"
#include "result.h"
#include "worker.h"

#define READ_PAUSE_BYTES ((size_t)1 << 20)
#define ACCEPTS_A_TURN 16
#define LISTEN_PAUSE_MS 1000
#define READS_A_TURN 8 /* of a connection, before others have theirs */
#define EVENTS_A_TURN 64

typedef struct connection {
    int fd;
    int slot;                 /* in server->fds */
    uint32_t events;          /* registered with epoll; 0: not yet */
    bool greeted;             /* the client's HELLO has come */
    bool dead;                /* to be closed at the end of the turn */
    char tenant[24];          /* "uid:N" of a peer that may not name its tenant; "": it may */
    size_t unsent;            /* bytes that the last send left */
    int64_t blocked_since_ms; /* the socket has taken nothing since; 0: it is not full */
    mx_buffer in;
    mx_descriptors files;     /* of requests that are still to come whole */
    mx_channel *channel;
    struct connection *next;
} connection;

typedef struct { /* a socket that listens; fd and what it trusts are written before n_listeners counts it */
    int fd;            /* -1: closed again */
    bool watched;      /* registered with epoll */
    int64_t again_ms;  /* after a pause; 0: there is none */
    uid_t *trusted;    /* [n_trusted] besides our own */
    size_t n_trusted;
} listener;

struct mx_server {
    mx_server_options options;
    mx_sessions *sessions;
    mx_worker *worker;
    int epoll;
    mx_wake wake;
    pthread_t thread;
    bool running;             /* the thread was started and not yet joined */
    atomic_bool stopping, draining;
    listener listeners[MX_LISTENERS_MAX];
    atomic_int n_listeners;
    connection *connections;  /* the I/O thread's */
    pthread_mutex_t lock;     /* of what follows */
    connection *arrivals;
    int n_connections;
    atomic_int fds[MX_CONNECTIONS_MAX]; /* -1: free */
};

static void server_log(const mx_server *server, mx_log_level level, const char *line)
{
    if (server->options.log)
        server->options.log(server->options.log_arg, level, line);
}

/* ---- Cancelling ---- */

/* The call ends with `reason` as soon as whoever has it notices. */
static void cancel_call(mx_server *server, mx_call *call, const mx_error *reason)
{
    uint64_t handle;

    if (mx_call_cancel(call, reason, &handle))
        mx_scheduler_cancel(call->query.served->scheduler, handle);
    else
        mx_worker_drop(server->worker, call);
}

/* All of a connection's calls, or the one with that id. */
static void cancel_calls(mx_server *server, connection *c, uint32_t id, const mx_error *reason)
{
    mx_call *calls[MX_CALLS_MAX];
    int n = mx_channel_calls(c->channel, id, calls);

    for (int i = 0; i < n; i++) {
        cancel_call(server, calls[i], reason);
        mx_call_release(calls[i]);
    }
}

/* ---- Requests ---- */

/* The tenant of a request is what the peer names, if it may, or the peer itself; likewise its limits. */
static mx_status check_tenant(const connection *c, const mx_query *query, mx_error *error)
{
    if (!c->tenant[0])
        return MX_OK;
    if (query->tenant && strcmp(query->tenant, c->tenant) != 0)
        return mx_fail(error, MX_DENIED, "tenant", "option tenant: this connection is the tenant %s and may name no other",
                       c->tenant);
    if (query->tenant_requests >= 0 || query->tenant_tokens_per_minute >= 0)
        return mx_fail(error, MX_DENIED, "tenant_requests", "options tenant_requests and tenant_tokens_per_minute: the tenant "
                       "%s may not set its own limits", c->tenant);
    return MX_OK;
}

static mx_status enter_tenant(mx_server *server, mx_call *call, mx_error *error)
{
    const mx_query *query = &call->query;
    mx_tenant_limits limits = server->options.tenant_limits;

    if (query->tenant_requests >= 0)
        limits.requests = query->tenant_requests;
    if (query->tenant_tokens_per_minute >= 0)
        limits.tokens_per_minute = query->tenant_tokens_per_minute;
    return mx_tenants_enter(server->options.tenants, mx_call_tenant(call), &limits, call->arrived_ns, &call->account, error);
}

/* What no limit holds up: it asks for nothing but facts. */
static bool is_inquiry(const mx_query *query)
{
    return query->op == MX_OP_STATS || query->op == MX_OP_MODELS;
}

static void answer_inquiry(mx_server *server, mx_call *call)
{
    const mx_served_list *models = server->options.models;
    const mx_served *only = call->query.names_model ? call->query.served : NULL;

    mx_call_result(call, call->query.op == MX_OP_STATS ? mx_result_stats(models, only) : mx_result_models(models, only));
}

/* The files that came with a request are its own, or nobody's. */
static mx_status attach_files(const connection *c, mx_call *call, const int *files, int n, mx_error *error)
{
    mx_op op = call->query.op;
    mx_status status = MX_OK;

    if (n != mx_op_files(op))
        status = mx_fail(error, MX_INVALID, "op", "%s: expected %d files to come with it, got %d", mx_op_name(op), mx_op_files(op), n);
    else if (n > 0 && c->tenant[0])
        status = mx_fail(error, MX_DENIED, "op", "%s: not for the tenant %s", mx_op_name(op), c->tenant);
    else if (n > 0)
        status = mx_session_attach(call, files, error);
    for (int i = 0; i < n && status != MX_OK; i++)
        close(files[i]);
    return status;
}

/* Takes the caller's reference over where it succeeds. */
static mx_status pass_on(mx_server *server, mx_call *call, mx_error *error)
{
    mx_status status = enter_tenant(server, call, error);

    if (status != MX_OK)
        return status;
    if (call->query.op == MX_OP_SESSION_LOAD)
        return mx_sessions_load(server->sessions, call, error);
    return mx_worker_add(server->worker, call, error);
}

/* A request as a call, the files of the frame with it. Failures but MX_CORRUPT are the request's alone. */
static mx_status open_call(mx_server *server, connection *c, const mx_frame *frame, mx_call **call, mx_error *error)
{
    int files[MX_FRAME_DESCRIPTORS_MAX], n = frame->n_descriptors;
    json_t *json;
    mx_query query;
    mx_status status;

    if (!mx_descriptors_take(&c->files, files, n))
        return mx_fail(error, MX_CORRUPT, NULL, "request: %d descriptors should have come with it, got %d", n, c->files.n);
    json = mx_json_parse(frame->body, frame->body_bytes, error);
    status = json ? mx_query_parse(json, server->options.models, &query, error) : error->status;
    if (status == MX_OK) {
        status = check_tenant(c, &query, error);
        if (status == MX_OK && atomic_load(&server->draining) && !is_inquiry(&query))
            status = mx_fail(error, MX_UNAVAILABLE, NULL, "the engine is shutting down");
        if (status != MX_OK)
            mx_query_free(&query);
    }
    if (status == MX_OK)
        status = mx_call_open(c->channel, frame->id, &query, call, error);
    if (status != MX_OK) {
        for (int i = 0; i < n; i++)
            close(files[i]);
        return status;
    }
    (*call)->queue_bytes = frame->body_bytes;
    snprintf((*call)->tenant, sizeof((*call)->tenant), "%s", c->tenant);
    status = attach_files(c, *call, files, n, error);
    if (status == MX_OK)
        return MX_OK;
    mx_call_error(*call, error);
    mx_call_release(*call);
    *call = NULL;
    return MX_AGAIN; /* it is answered */
}

/* MX_CORRUPT is the connection's end; any other failure has been answered under the request's id. */
static mx_status take_request(mx_server *server, connection *c, const mx_frame *frame, mx_error *error)
{
    mx_call *call = NULL;
    mx_status status = open_call(server, c, frame, &call, error);

    if (status == MX_CORRUPT || status == MX_AGAIN)
        return status;
    if (status != MX_OK) {
        mx_channel_error(c->channel, frame->id, error);
        return status;
    }
    if (is_inquiry(&call->query)) {
        answer_inquiry(server, call);
    } else {
        status = pass_on(server, call, error);
        if (status == MX_OK)
            return MX_OK;
        mx_call_error(call, error);
    }
    mx_call_release(call);
    return status;
}

/* One frame. MX_CORRUPT: the connection ends with an error. */
static mx_status take_frame(mx_server *server, connection *c, const mx_frame *frame, mx_error *error)
{
    mx_error reason;
    mx_status status;

    if (!c->greeted) {
        status = mx_hello_check(frame, error);
        c->greeted = status == MX_OK;
        return status;
    }
    switch (frame->type) {
    case MX_FRAME_REQUEST:
        return take_request(server, c, frame, error) == MX_CORRUPT ? MX_CORRUPT : MX_OK;
    case MX_FRAME_CANCEL:
        mx_fail(&reason, MX_CANCELLED, NULL, "the request was cancelled by the client");
        cancel_calls(server, c, frame->id, &reason);
        return MX_OK;
    default:
        return mx_fail(error, MX_CORRUPT, NULL, "frame: a second hello");
    }
}

/* Everything whole that has come. */
static mx_status take_frames(mx_server *server, connection *c, mx_error *error)
{
    mx_frame frame;
    mx_status status;

    while (true) {
        status = mx_frame_peek(&c->in, MX_FROM_CLIENT, &frame, error);
        if (status != MX_OK)
            return status == MX_AGAIN ? MX_OK : status;
        status = take_frame(server, c, &frame, error);
        if (status != MX_OK)
            return status;
        mx_frame_consume(&c->in, &frame);
    }
}

/* ---- Connections ---- */

/* What came. A hostile frame gets an error, as far as the socket takes it, and is the connection's last. */
static void read_connection(mx_server *server, connection *c)
{
    mx_status status = MX_OK;
    mx_error error;

    for (int i = 0; i < READS_A_TURN && status == MX_OK; i++) {
        status = mx_buffer_receive(&c->in, c->fd, &c->files, &error);
        if (status == MX_OK)
            status = take_frames(server, c, &error);
    }
    if (status == MX_OK || status == MX_AGAIN)
        return;
    if (status == MX_UNAVAILABLE) /* it may have shut down one side only, and still listen */
        mx_fail(&error, MX_UNAVAILABLE, NULL, "the client closed its side of the connection: its requests are cancelled");
    else
        server_log(server, MX_LOG_WARNING, error.text);
    mx_channel_error(c->channel, 0, &error);
    c->dead = true;
}

/* What the socket takes of the channel's output. */
static void write_connection(mx_server *server, connection *c, int64_t now_ms)
{
    mx_channel *channel = c->channel;
    mx_status status;
    bool resumed = false;
    size_t before;

    pthread_mutex_lock(&channel->lock);
    before = mx_buffer_bytes(&channel->out);
    status = mx_buffer_send(&channel->out, c->fd, NULL, NULL);
    c->unsent = mx_buffer_bytes(&channel->out);
    if (c->unsent <= MX_STREAM_RESUME_BYTES)
        resumed = atomic_exchange(&channel->paused, false);
    if (channel->broken || status == MX_UNAVAILABLE)
        c->dead = true;
    pthread_mutex_unlock(&channel->lock);

    if (c->unsent == 0)
        c->blocked_since_ms = 0;
    else if (c->unsent < before || c->blocked_since_ms == 0)
        c->blocked_since_ms = now_ms;
    for (int i = 0; resumed && i < atomic_load(&server->options.models->n); i++)
        mx_scheduler_wake(server->options.models->models[i]->scheduler);
}

/* Tells epoll what to wait for: input unless too much output waits, output if there is any. */
static void watch_connection(mx_server *server, connection *c)
{
    struct epoll_event event = {.events = EPOLLRDHUP, .data.ptr = c};

    if (c->unsent < READ_PAUSE_BYTES)
        event.events |= EPOLLIN;
    if (c->unsent > 0)
        event.events |= EPOLLOUT;
    if (event.events == c->events)
        return;
    if (epoll_ctl(server->epoll, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event) < 0)
        c->dead = true; /* out of memory */
    c->events = event.events;
}

/* A reader that has taken nothing for too long loses its streams; how long it has left otherwise, -1: for ever. */
static int64_t check_stall(mx_server *server, connection *c, int64_t now_ms)
{
    int64_t left_ms;
    mx_error reason;

    if (c->blocked_since_ms == 0 || !atomic_load(&c->channel->paused))
        return -1;
    left_ms = c->blocked_since_ms + server->options.stall_timeout_ms - now_ms;
    if (left_ms > 0)
        return left_ms;
    mx_fail(&reason, MX_TIMEOUT, NULL, "the reader took nothing of the answer for %d ms",
            server->options.stall_timeout_ms);
    cancel_calls(server, c, 0, &reason);
    return -1;
}

/* The copy of a connection that a child of fork holds would hide the end and keep epoll's registration: hence more than
 * a close. The scheduler may be gone by now, if the server is stopping. */
static void close_connection(mx_server *server, connection *c)
{
    mx_error reason;

    mx_channel_close(c->channel, c->fd);
    if (!atomic_load(&server->stopping)) {
        mx_fail(&reason, MX_CANCELLED, NULL, "the connection was closed");
        cancel_calls(server, c, 0, &reason);
    }
    if (c->events)
        epoll_ctl(server->epoll, EPOLL_CTL_DEL, c->fd, NULL);
    shutdown(c->fd, SHUT_RDWR);
    pthread_mutex_lock(&server->lock);
    atomic_store(&server->fds[c->slot], -1);
    server->n_connections--;
    pthread_mutex_unlock(&server->lock);
    close(c->fd);
    for (int i = 0; i < atomic_load(&server->n_listeners); i++)
        server->listeners[i].again_ms = 0; /* there is a descriptor now */
    mx_channel_release(c->channel);
    mx_buffer_free(&c->in);
    mx_descriptors_close(&c->files);
    free(c);
}

/* ---- New connections ---- */

/* Hands a connection to the I/O thread, if there is room for it. */
static mx_status add_connection(mx_server *server, connection *c, mx_error *error)
{
    mx_status status = MX_OK;

    pthread_mutex_lock(&server->lock);
    if (server->n_connections == MX_CONNECTIONS_MAX) {
        status = mx_fail(error, MX_BUSY, NULL, "%d connections are open, and no more can be; close one",
                         MX_CONNECTIONS_MAX);
    } else {
        while (atomic_load(&server->fds[c->slot]) >= 0)
            c->slot++;
        atomic_store(&server->fds[c->slot], c->fd);
        server->n_connections++;
        c->next = server->arrivals;
        server->arrivals = c;
    }
    pthread_mutex_unlock(&server->lock);
    return status;
}

/* A connection over `fd`, which stays the caller's on failure. Any thread; the I/O thread is to be woken. */
static mx_status adopt_descriptor(mx_server *server, int fd, const char *tenant, mx_error *error)
{
    connection *c = calloc(1, sizeof(*c));
    mx_status status;

    if (!c)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a connection");
    c->fd = fd;
    snprintf(c->tenant, sizeof(c->tenant), "%s", tenant);
    status = mx_channel_open(&server->wake, &c->channel, error);
    if (status == MX_OK)
        status = mx_hello_append(&c->channel->out, error);
    if (status == MX_OK) {
        atomic_store(&c->channel->dirty, true);
        status = add_connection(server, c, error);
    }
    if (status == MX_OK)
        return MX_OK;
    if (c->channel)
        mx_channel_release(c->channel);
    free(c);
    return status;
}

/* "" where the peer may name its tenant, "uid:N" otherwise. */
static void name_peer(const listener *l, int fd, char *tenant, size_t size)
{
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t length = sizeof(peer);
    bool trusted;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        peer.uid = (uid_t)-1; /* nobody's */
    trusted = peer.uid == geteuid();
    for (size_t i = 0; i < l->n_trusted && !trusted; i++)
        trusted = peer.uid == l->trusted[i];
    tenant[0] = '\0';
    if (!trusted)
        snprintf(tenant, size, "uid:%u", (unsigned)peer.uid);
}

/* Tells the client why, as far as there is memory, and closes its connection. */
static void refuse_descriptor(int fd, const mx_error *why)
{
    json_t *body = mx_json_of_error(why);
    size_t bytes = 0;
    char *text = body ? mx_json_dump(body, &bytes) : NULL;
    mx_buffer out = {0};

    if (text && mx_frame_append(&out, MX_FRAME_ERROR, 0, text, bytes, NULL) == MX_OK)
        mx_buffer_send(&out, fd, NULL, NULL);
    mx_buffer_free(&out);
    free(text);
    json_decref(body);
    close(fd);
}

static void accept_connections(mx_server *server, listener *l, int64_t now_ms)
{
    char tenant[24];
    mx_error error;

    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                server_log(server, MX_LOG_WARNING, "no descriptor is left for a new connection: listening pauses");
                epoll_ctl(server->epoll, EPOLL_CTL_DEL, l->fd, NULL);
                l->watched = false;
                l->again_ms = now_ms + LISTEN_PAUSE_MS;
            }
            return;
        }
        name_peer(l, fd, tenant, sizeof(tenant));
        if (adopt_descriptor(server, fd, tenant, &error) != MX_OK) {
            server_log(server, MX_LOG_WARNING, error.text);
            refuse_descriptor(fd, &error);
        }
    }
}

/* Registers a listener once it is there, and after a pause; lets it go when draining. How long the pause still lasts, -1: none. */
static int watch_listener(mx_server *server, listener *l, int64_t now_ms)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = l};

    if (l->fd < 0)
        return -1;
    if (atomic_load(&server->draining)) {
        if (l->watched) /* a supervisor's copy of the socket would keep epoll's registration */
            epoll_ctl(server->epoll, EPOLL_CTL_DEL, l->fd, NULL);
        l->watched = false;
        close(l->fd);
        l->fd = -1;
    } else if (!l->watched) {
        if (now_ms < l->again_ms)
            return (int)(l->again_ms - now_ms);
        l->watched = epoll_ctl(server->epoll, EPOLL_CTL_ADD, l->fd, &event) == 0;
        l->again_ms = l->watched ? 0 : now_ms + LISTEN_PAUSE_MS;
        return l->watched ? -1 : LISTEN_PAUSE_MS;
    }
    return -1;
}

static int watch_listeners(mx_server *server, int64_t now_ms)
{
    int wait_ms = -1;

    for (int i = 0; i < atomic_load(&server->n_listeners); i++) {
        int pause_ms = watch_listener(server, &server->listeners[i], now_ms);

        if (pause_ms >= 0 && (wait_ms < 0 || pause_ms < wait_ms))
            wait_ms = pause_ms;
    }
    return wait_ms;
}

static listener *listener_of(mx_server *server, void *watched)
{
    for (int i = 0; i < atomic_load(&server->n_listeners); i++)
        if (watched == &server->listeners[i])
            return &server->listeners[i];
    return NULL;
}

static void take_arrivals(mx_server *server)
{
    connection *c;

    pthread_mutex_lock(&server->lock);
    while ((c = server->arrivals)) {
        server->arrivals = c->next;
        c->next = server->connections;
        server->connections = c;
    }
    pthread_mutex_unlock(&server->lock);
}

/* ---- The thread ---- */

/* Looks after every connection once; how long epoll may wait, in ms, -1: until something happens. */
static int turn(mx_server *server)
{
    int64_t now_ms = mx_now_ns() / 1000000, left_ms;
    connection **link = &server->connections, *c;
    int wait_ms = mx_worker_expire(server->worker), pause_ms = watch_listeners(server, now_ms);

    if (pause_ms >= 0 && (wait_ms < 0 || pause_ms < wait_ms))
        wait_ms = pause_ms;
    take_arrivals(server);
    while ((c = *link)) {
        if (atomic_exchange(&c->channel->dirty, false) && !c->dead) {
            write_connection(server, c, now_ms);
            watch_connection(server, c);
        }
        left_ms = check_stall(server, c, now_ms);
        if (left_ms >= 0 && (wait_ms < 0 || left_ms < wait_ms))
            wait_ms = (int)left_ms + 1;
        if (c->dead) {
            *link = c->next;
            close_connection(server, c);
        } else {
            link = &c->next;
        }
    }
    return wait_ms;
}

static void take_event(mx_server *server, const struct epoll_event *event)
{
    connection *c = event->data.ptr;
    listener *l = listener_of(server, event->data.ptr);
    uint64_t count;

    if (!c) { /* the eventfd; if it cannot be read, it was not written */
        if (read(server->wake.fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
            atomic_store(&server->wake.pending, false);
        return;
    }
    if (l) {
        accept_connections(server, l, mx_now_ns() / 1000000);
        return;
    }
    if (event->events & EPOLLOUT)
        atomic_store(&c->channel->dirty, true); /* written in the turn */
    if (event->events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        read_connection(server, c);
}

static void *run(void *arg)
{
    mx_server *server = arg;
    struct epoll_event events[EVENTS_A_TURN];
    int n;

    while (!atomic_load(&server->stopping)) {
        n = epoll_wait(server->epoll, events, EVENTS_A_TURN, turn(server));
        for (int i = 0; i < n; i++)
            take_event(server, &events[i]);
    }
    return NULL;
}

/* ---- Opening and closing ---- */

mx_status mx_server_open(const mx_server_options *options, mx_server **server, mx_error *error)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    mx_server *s = calloc(1, sizeof(*s));
    mx_status status;

    *server = NULL;
    if (!s || pthread_mutex_init(&s->lock, NULL) != 0) {
        free(s);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the server");
    }
    s->options = *options;
    for (int i = 0; i < MX_CONNECTIONS_MAX; i++)
        atomic_init(&s->fds[i], -1);
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    s->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->epoll < 0 || s->wake.fd < 0 || epoll_ctl(s->epoll, EPOLL_CTL_ADD, s->wake.fd, &event) < 0)
        status = mx_fail(error, MX_IO, NULL, "cannot make the server's descriptors: %m");
    else
        status = mx_sessions_open(&s->sessions, error);
    if (status == MX_OK)
        status = mx_worker_open(options->max_queue, s->sessions, &s->worker, error);
    if (status == MX_OK)
        status = mx_thread_start(&s->thread, run, s, error);
    s->running = status == MX_OK;
    if (status != MX_OK)
        mx_server_close(s);
    else
        *server = s;
    return status;
}

mx_status mx_server_connect(mx_server *server, int *fd, mx_error *error)
{
    int pair[2];
    mx_status status;

    *fd = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        return mx_fail(error, MX_IO, NULL, "cannot make a socket pair: %m");
    status = adopt_descriptor(server, pair[0], "", error);
    if (status != MX_OK) {
        close(pair[0]);
        close(pair[1]);
        return status;
    }
    mx_wake_up(&server->wake);
    *fd = pair[1];
    return MX_OK;
}

mx_status mx_server_listen(mx_server *server, int fd, const uid_t *trusted, size_t n_trusted, mx_error *error)
{
    int flags = fcntl(fd, F_GETFL), accepts = 0, n;
    socklen_t size = sizeof(accepts);
    uid_t *copy = n_trusted > 0 ? malloc(n_trusted * sizeof(*trusted)) : NULL;
    mx_status status = MX_OK;

    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size) < 0 || !accepts)
        status = mx_fail(error, MX_INVALID, NULL, "descriptor %d: expected a listening socket", fd);
    else if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        status = mx_fail(error, MX_IO, NULL, "descriptor %d: %m", fd);
    else if (n_trusted > 0 && !copy)
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu uids", n_trusted);
    if (copy)
        memcpy(copy, trusted, n_trusted * sizeof(*trusted));
    pthread_mutex_lock(&server->lock);
    n = atomic_load(&server->n_listeners);
    if (status == MX_OK && n == MX_LISTENERS_MAX)
        status = mx_fail(error, MX_INVALID, NULL, "the engine listens at %d sockets already", n);
    if (status == MX_OK) {
        server->listeners[n] = (listener){.fd = fd, .trusted = copy, .n_trusted = n_trusted};
        atomic_store(&server->n_listeners, n + 1); /* the I/O thread finds it in its next turn */
    }
    pthread_mutex_unlock(&server->lock);
    if (status != MX_OK) {
        free(copy);
        close(fd);
        return status;
    }
    mx_wake_up(&server->wake);
    return MX_OK;
}

int mx_server_pending(mx_server *server)
{
    return mx_worker_pending(server->worker) + mx_sessions_pending(server->sessions);
}

void mx_server_drain(mx_server *server)
{
    atomic_store(&server->draining, true);
    mx_wake_up(&server->wake);
}

void mx_server_stop(mx_server *server)
{
    atomic_store(&server->stopping, true);
    if (server->running) {
        mx_wake_up(&server->wake);
        pthread_join(server->thread, NULL);
        server->running = false;
    }
    mx_worker_close(server->worker);
    server->worker = NULL;
    if (server->sessions)
        mx_sessions_stop(server->sessions);
}

void mx_server_close(mx_server *server)
{
    connection *c;

    if (!server)
        return;
    mx_server_stop(server);
    take_arrivals(server);
    while ((c = server->connections)) {
        server->connections = c->next;
        close_connection(server, c);
    }
    mx_sessions_close(server->sessions);
    for (int i = 0; i < atomic_load(&server->n_listeners); i++) {
        if (server->listeners[i].fd >= 0)
            close(server->listeners[i].fd);
        free(server->listeners[i].trusted);
    }
    if (server->epoll >= 0)
        close(server->epoll);
    if (server->wake.fd >= 0)
        close(server->wake.fd);
    pthread_mutex_destroy(&server->lock);
    free(server);
}

void mx_server_abandon(mx_server *server)
{
    int fd;

    for (int i = 0; i < MX_CONNECTIONS_MAX; i++) {
        fd = atomic_load(&server->fds[i]);
        if (fd >= 0)
            close(fd);
    }
    for (int i = 0; i < atomic_load(&server->n_listeners); i++)
        if (server->listeners[i].fd >= 0)
            close(server->listeners[i].fd);
    close(server->epoll);
    close(server->wake.fd);
}
