/*
 * sessions.c: see sessions.h.
 *
 * A load is here twice: to read the head of its file, which says what is to be loaded, and to fill the blocks. A save comes when its
 * prompt is computed. The lock guards the queue and `stopping`; nothing else is called while it is held.
 */
#include "sessions.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../error.h"
#include "session_file.h"
#include "worker.h"

#define CALLS_MAX 64

struct mx_session { /* of a call */
    int files[2]; /* session file, key file */
    mx_sessions *sessions;
    mx_session_file *file; /* NULL: not opened yet */
    int32_t *tokens;       /* [n_tokens] of a save, until its file is there */
    uint8_t *classes;      /* [n_tokens] */
    int n_tokens;
    mx_session_blocks lent; /* n 0: not yet */
    int64_t bytes;          /* of the file, when all is done */
};

struct mx_sessions {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    bool started;
    atomic_bool stopping;
    mx_call *first, **last;
    int n_waiting;
    bool busy;
};

/* ---- A call's session ---- */

mx_status mx_session_attach(mx_call *call, const int files[2], mx_error *error)
{
    call->session = calloc(1, sizeof *call->session);
    if (!call->session)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a session");
    memcpy(call->session->files, files, sizeof call->session->files);
    return MX_OK;
}

void mx_session_free(mx_session *session)
{
    if (!session)
        return;
    mx_session_file_close(session->file);
    close(session->files[0]);
    close(session->files[1]);
    free(session->tokens);
    free(session->classes);
    free(session);
}

/* Blocks go back unfilled, and the request ends with `reason`. Also on the scheduler's thread. */
static void give_up(mx_call *call, const mx_error *reason)
{
    mx_scheduler *scheduler = call->query.served->scheduler;
    uint64_t handle, lent = call->session->lent.handle;

    mx_call_cancel(call, reason, &handle);
    mx_scheduler_cancel(scheduler, lent);
    mx_scheduler_release(scheduler, lent, false);
}

/* ---- The queue ---- */

static mx_status enqueue(mx_sessions *s, mx_call *call, mx_error *error)
{
    mx_status status = MX_OK;

    pthread_mutex_lock(&s->lock);
    if (atomic_load(&s->stopping)) {
        status = mx_fail(error, MX_UNAVAILABLE, NULL, "the engine was closed");
    } else if (s->n_waiting == CALLS_MAX) {
        status = mx_fail(error, MX_BUSY, NULL, "%d sessions wait to be saved or loaded already", CALLS_MAX);
    } else {
        call->queue_next = NULL;
        *s->last = call;
        s->last = &call->queue_next;
        s->n_waiting++;
        pthread_cond_signal(&s->work);
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* ---- With the scheduler ---- */

static void ready(void *arg, const mx_session_blocks *blocks)
{
    mx_call *call = arg;
    mx_error error;

    call->session->lent = *blocks;
    mx_call_hold(call); /* the queue's */
    if (enqueue(call->session->sessions, call, &error) == MX_OK)
        return;
    give_up(call, &error);
    mx_call_release(call);
}

static void end(void *arg, const mx_outcome *outcome, const mx_error *error)
{
    mx_call *call = arg;

    if (error)
        mx_call_error(call, error);
    else
        mx_call_result(call, json_pack("{s:i, s:i, s:I}", "tokens", outcome->prompt_tokens, "cached_tokens",
                                       outcome->cached_tokens, "bytes", (json_int_t)call->session->bytes));
    mx_call_release(call);
}

static mx_status submit(mx_sessions *s, mx_call *call, mx_session_kind kind, const int32_t *tokens, const uint8_t *classes,
                        int n_tokens, mx_error *error)
{
    const mx_query *query = &call->query;
    mx_sink sink = mx_call_sink(call);
    mx_request_spec spec = {
        .session = kind,
        .tokens = tokens,
        .classes = classes,
        .n_tokens = (size_t)n_tokens,
        .n = 1,
        .tenant = mx_call_tenant(call),
        .account = kind == MX_SESSION_SAVE ? call->account : NULL, /* a load costs no computation */
        .cache = true,
        .sampling.top_logprobs = -1,
        .timeout_ms = query->timeout_ms,
        .arrived_ns = call->arrived_ns,
    };
    uint64_t handle;
    mx_status status;

    sink.ready = ready;
    sink.end = end;
    spec.sink = sink;
    call->session->sessions = s;
    mx_call_hold(call); /* the sink's */
    status = mx_scheduler_submit(query->served->scheduler, &spec, &handle, error);
    if (status != MX_OK)
        mx_call_release(call);
    else if (mx_call_submitted(call, handle))
        mx_scheduler_cancel(query->served->scheduler, handle);
    return status;
}

/* ---- The thread ---- */

static mx_status open_load(mx_sessions *s, mx_call *call, mx_error *error)
{
    mx_session *session = call->session;
    mx_status status = mx_session_file_open(session->files[0], session->files[1], call->query.served, &session->file, error);

    if (status == MX_OK)
        status = submit(s, call, MX_SESSION_LOAD, mx_session_file_tokens(session->file), mx_session_file_classes(session->file),
                        mx_session_file_n_tokens(session->file), error);
    return status;
}

/* Asked before each block. */
static mx_status check_wanted(const mx_sessions *s, const mx_call *call, mx_error *error)
{
    int64_t deadline_ns = call->arrived_ns + (int64_t)call->query.timeout_ms * 1000000;

    if (atomic_load(&s->stopping))
        return mx_fail(error, MX_UNAVAILABLE, NULL, "the engine was closed");
    if (atomic_load(&call->cancelled))
        return mx_fail(error, MX_CANCELLED, NULL, "the request was cancelled");
    if (call->query.timeout_ms > 0 && mx_now_ns() > deadline_ns)
        return mx_fail(error, MX_TIMEOUT, "timeout_ms", "the request took longer than its %d ms", call->query.timeout_ms);
    return MX_OK;
}

static mx_status write_blocks(const mx_sessions *s, mx_call *call, mx_error *error)
{
    mx_session *session = call->session;
    mx_status status = mx_session_file_create(session->files[0], session->files[1], call->query.served, session->tokens,
                                              session->classes, session->n_tokens, &session->file, error);

    for (int b = 0; b < session->lent.n && status == MX_OK; b++) {
        status = check_wanted(s, call, error);
        if (status == MX_OK)
            status = mx_session_file_write(session->file, session->lent.blocks[b], error);
    }
    return status;
}

/* What the pool has already is read too, and dropped: a file is loaded whole or not at all. */
static mx_status read_blocks(const mx_sessions *s, mx_call *call, mx_error *error)
{
    mx_session *session = call->session;
    uint8_t *dropped = malloc(session->lent.block_bytes);
    mx_status status = MX_OK;

    if (!dropped)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a block of %zu bytes", session->lent.block_bytes);
    for (int b = 0; b < session->lent.n && status == MX_OK; b++) {
        status = check_wanted(s, call, error);
        if (status == MX_OK)
            status = mx_session_file_read(session->file, b < session->lent.n_known ? dropped : session->lent.blocks[b], error);
    }
    free(dropped);
    return status;
}

static void move_blocks(const mx_sessions *s, mx_call *call)
{
    mx_session *session = call->session;
    bool saves = call->query.op == MX_OP_SESSION_SAVE;
    mx_error error;
    mx_status status = saves ? write_blocks(s, call, &error) : read_blocks(s, call, &error);

    if (status != MX_OK) {
        give_up(call, &error);
        return;
    }
    session->bytes = mx_session_file_bytes(session->file);
    mx_scheduler_release(call->query.served->scheduler, session->lent.handle, true);
}

static void serve(mx_sessions *s, mx_call *call)
{
    mx_error error;
    mx_status status;

    if (call->session->lent.n > 0) {
        move_blocks(s, call);
        return;
    }
    status = check_wanted(s, call, &error);
    if (status == MX_OK)
        status = open_load(s, call, &error);
    if (status != MX_OK)
        mx_call_error(call, &error);
}

static void *run(void *arg)
{
    mx_sessions *s = arg;
    mx_call *call;

    pthread_mutex_lock(&s->lock);
    while (true) { /* when stopping, what waits is taken too, and given up */
        while (!s->first && !atomic_load(&s->stopping))
            pthread_cond_wait(&s->work, &s->lock);
        call = s->first;
        if (!call)
            break;
        s->first = call->queue_next;
        if (!s->first)
            s->last = &s->first;
        s->n_waiting--;
        s->busy = true;
        pthread_mutex_unlock(&s->lock);
        serve(s, call);
        mx_call_release(call);
        pthread_mutex_lock(&s->lock);
        s->busy = false;
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static mx_status start_thread(mx_sessions *s, mx_error *error)
{
    mx_status status = MX_OK;

    pthread_mutex_lock(&s->lock);
    if (!s->started && !atomic_load(&s->stopping))
        status = mx_thread_start(&s->thread, run, s, error);
    s->started |= status == MX_OK && !atomic_load(&s->stopping);
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* ---- From other threads ---- */

mx_status mx_sessions_save(mx_sessions *s, mx_call *call, const int32_t *tokens, const uint8_t *classes, size_t n_tokens,
                           mx_error *error)
{
    mx_session *session = call->session;
    size_t n = n_tokens - n_tokens % MX_KV_SPAN;
    mx_status status;

    if (n == 0)
        return mx_fail(error, MX_INVALID, "messages", "session_save: expected a conversation of at least %d tokens, got %zu",
                       MX_KV_SPAN, n_tokens);
    if (n > (size_t)call->query.served->context)
        return mx_fail(error, MX_TOO_LARGE, "messages", "messages: %zu tokens do not fit in the context of %d", n_tokens,
                       call->query.served->context);
    session->n_tokens = (int)n;
    session->tokens = malloc(n * sizeof *session->tokens);
    session->classes = malloc(n);
    if (!session->tokens || !session->classes)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu tokens", n);
    memcpy(session->tokens, tokens, n * sizeof *tokens);
    memcpy(session->classes, classes, n);
    status = start_thread(s, error);
    if (status == MX_OK)
        status = submit(s, call, MX_SESSION_SAVE, session->tokens, session->classes, session->n_tokens, error);
    return status;
}

mx_status mx_sessions_load(mx_sessions *s, mx_call *call, mx_error *error)
{
    mx_status status = start_thread(s, error);

    return status == MX_OK ? enqueue(s, call, error) : status;
}

/* ---- Open and close ---- */

mx_status mx_sessions_open(mx_sessions **sessions, mx_error *error)
{
    mx_sessions *s = calloc(1, sizeof *s);

    *sessions = NULL;
    if (!s || pthread_mutex_init(&s->lock, NULL) != 0) {
        free(s);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for sessions");
    }
    if (pthread_cond_init(&s->work, NULL) != 0) {
        pthread_mutex_destroy(&s->lock);
        free(s);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for sessions");
    }
    s->last = &s->first;
    *sessions = s;
    return MX_OK;
}

void mx_sessions_stop(mx_sessions *s)
{
    bool started;

    pthread_mutex_lock(&s->lock);
    atomic_store(&s->stopping, true);
    started = s->started;
    s->started = false;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    if (started)
        pthread_join(s->thread, NULL);
}

void mx_sessions_close(mx_sessions *s)
{
    if (!s)
        return;
    mx_sessions_stop(s);
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int mx_sessions_pending(mx_sessions *s)
{
    int n;

    pthread_mutex_lock(&s->lock);
    n = s->n_waiting + s->busy;
    pthread_mutex_unlock(&s->lock);
    return n;
}
