/*
 * call.c: calls, their channels, and the sink through which the scheduler answers. See call.h.
 */
#include "call.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../error.h"
#include "result.h"
#include "sessions.h"

void mx_wake_up(mx_wake *wake)
{
    uint64_t one = 1;

    /* a counter that cannot be written is already rousing the reader */
    if (!atomic_exchange(&wake->pending, true) && write(wake->fd, &one, sizeof(one)) < 0)
        return;
}

/* ---- Channels ---- */

mx_status mx_channel_open(mx_wake *wake, mx_channel **channel, mx_error *error)
{
    mx_channel *c = calloc(1, sizeof(*c));

    *channel = NULL;
    if (!c || pthread_mutex_init(&c->lock, NULL) != 0) {
        free(c);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a connection");
    }
    atomic_init(&c->references, 1);
    c->wake = wake;
    *channel = c;
    return MX_OK;
}

void mx_channel_release(mx_channel *channel)
{
    if (atomic_fetch_sub(&channel->references, 1) > 1)
        return;
    mx_buffer_free(&channel->out);
    pthread_mutex_destroy(&channel->lock);
    free(channel);
}

void mx_channel_count(mx_channel *channel)
{
    bool unsent = mx_buffer_bytes(&channel->out) > 0;

    if (unsent != channel->unsent)
        atomic_fetch_add(&channel->wake->unsent, unsent ? 1 : -1);
    channel->unsent = unsent;
}

void mx_channel_close(mx_channel *channel, int fd)
{
    pthread_mutex_lock(&channel->lock);
    mx_buffer_send(&channel->out, fd, NULL, NULL);
    channel->closed = true;
    mx_buffer_free(&channel->out);
    mx_channel_count(channel);
    atomic_store(&channel->paused, false);
    pthread_mutex_unlock(&channel->lock);
}

/* Queues a frame under the lock. What must not be lost and cannot be queued breaks the channel, whose output ends there. */
static mx_status queue_frame(mx_channel *channel, mx_frame_type type, uint32_t id, const char *body, size_t bytes,
                             mx_error *error)
{
    mx_status status = MX_OK;

    if (channel->closed || channel->broken)
        return MX_OK;
    if (mx_buffer_bytes(&channel->out) > MX_UNSENT_MAX)
        channel->broken = true;
    else
        status = mx_frame_append(&channel->out, type, id, body, bytes, error);
    if (status != MX_OK && type == MX_FRAME_ERROR)
        channel->broken = true;
    mx_channel_count(channel);
    if (mx_buffer_bytes(&channel->out) > MX_STREAM_PAUSE_BYTES)
        atomic_store(&channel->paused, true);
    return channel->broken ? MX_OK : status;
}

/* After the lock is given back. */
static void announce(mx_channel *channel)
{
    if (!atomic_exchange(&channel->dirty, true))
        mx_wake_up(channel->wake);
}

/* Sends a frame; a call that is given ends with it. MX_TOO_LARGE, MX_NOMEM: nothing was done. */
static mx_status send_frame(mx_channel *channel, mx_call *ending, mx_frame_type type, uint32_t id, const char *body,
                            size_t bytes, mx_error *error)
{
    mx_call **link;
    mx_status status;

    pthread_mutex_lock(&channel->lock);
    status = queue_frame(channel, type, id, body, bytes, error);
    if (ending && status == MX_OK) {
        for (link = &channel->calls; *link != ending; link = &(*link)->next)
            continue;
        *link = ending->next;
        channel->n_calls--;
    }
    pthread_mutex_unlock(&channel->lock);
    if (status == MX_OK)
        announce(channel);
    return status;
}

/* An error goes out, if need be in words that need no memory, or the channel is broken. */
static void send_error(mx_channel *channel, mx_call *ending, uint32_t id, const mx_error *error)
{
    static const char no_memory[] = "{\"status\":\"nomem\",\"field\":\"\",\"text\":\"out of memory for the answer\"}";
    json_t *body = mx_json_of_error(error);
    size_t bytes = 0;
    char *text = body ? mx_json_dump(body, &bytes) : NULL;

    json_decref(body);
    if (text)
        send_frame(channel, ending, MX_FRAME_ERROR, id, text, bytes, NULL);
    else
        send_frame(channel, ending, MX_FRAME_ERROR, id, no_memory, sizeof(no_memory) - 1, NULL);
    free(text);
}

void mx_channel_error(mx_channel *channel, uint32_t id, const mx_error *error)
{
    send_error(channel, NULL, id, error);
}

int mx_channel_calls(mx_channel *channel, uint32_t id, mx_call *calls[MX_CALLS_MAX])
{
    int n = 0;

    pthread_mutex_lock(&channel->lock);
    for (mx_call *call = channel->calls; call; call = call->next) {
        if (id == 0 || call->id == id) {
            mx_call_hold(call);
            calls[n++] = call;
        }
    }
    pthread_mutex_unlock(&channel->lock);
    return n;
}

/* ---- Calls ---- */

mx_status mx_call_open(mx_channel *channel, uint32_t id, mx_query *query, mx_call **call, mx_error *error)
{
    mx_call *c = calloc(1, sizeof(*c)), *other;
    mx_status status = MX_OK;

    *call = NULL;
    if (!c) {
        mx_query_free(query);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a request");
    }
    c->channel = channel;
    c->id = id;
    c->query = *query;
    c->cached_tokens = -1;
    c->arrived_ns = mx_now_ns();
    atomic_init(&c->references, 1);
    pthread_mutex_lock(&channel->lock);
    for (other = channel->calls; other && other->id != id; other = other->next)
        continue;
    if (other) {
        status = mx_fail(error, MX_CORRUPT, NULL, "request id %u is in use", id);
    } else if (channel->n_calls == MX_CALLS_MAX) {
        status = mx_fail(error, MX_BUSY, NULL, "this connection has %d requests running; open another one or wait",
                         MX_CALLS_MAX);
    } else {
        c->next = channel->calls;
        channel->calls = c;
        channel->n_calls++;
        atomic_fetch_add(&channel->references, 1);
    }
    pthread_mutex_unlock(&channel->lock);
    if (status != MX_OK) {
        mx_query_free(&c->query);
        free(c);
        return status;
    }
    *call = c;
    return MX_OK;
}

void mx_call_hold(mx_call *call)
{
    atomic_fetch_add(&call->references, 1);
}

void mx_call_release(mx_call *call)
{
    if (atomic_fetch_sub(&call->references, 1) > 1)
        return;
    mx_session_free(call->session);
    mx_query_free(&call->query);
    mx_channel_release(call->channel);
    free(call);
}

const char *mx_call_tenant(const mx_call *call)
{
    if (call->tenant[0])
        return call->tenant;
    return call->query.tenant ? call->query.tenant : "";
}

/* Before the last frame goes out: the client's next request may follow at once. */
static void leave_tenant(mx_call *call)
{
    mx_tenant_leave(call->account);
    call->account = NULL;
}

void mx_call_error(mx_call *call, const mx_error *error)
{
    mx_channel *channel = call->channel;
    mx_error reason = *error;

    leave_tenant(call);
    if (error->status == MX_CANCELLED) {
        pthread_mutex_lock(&channel->lock);
        if (call->cancel_error.status != MX_OK)
            reason = call->cancel_error;
        pthread_mutex_unlock(&channel->lock);
    }
    send_error(channel, call, call->id, &reason);
}

void mx_call_result(mx_call *call, json_t *result)
{
    mx_error error = {.status = MX_NOMEM, .text = "out of memory for the result"};
    size_t bytes = 0;
    char *text = result ? mx_json_dump(result, &bytes) : NULL;

    json_decref(result);
    leave_tenant(call);
    if (!text || send_frame(call->channel, call, MX_FRAME_RESULT, call->id, text, bytes, &error) != MX_OK)
        mx_call_error(call, &error);
    free(text);
}

bool mx_call_cancel(mx_call *call, const mx_error *reason, uint64_t *handle)
{
    bool submitted;

    pthread_mutex_lock(&call->channel->lock);
    if (!atomic_exchange(&call->cancelled, true))
        call->cancel_error = *reason;
    submitted = call->submitted;
    *handle = call->handle;
    pthread_mutex_unlock(&call->channel->lock);
    return submitted;
}

bool mx_call_submitted(mx_call *call, uint64_t handle)
{
    bool cancelled;

    pthread_mutex_lock(&call->channel->lock);
    call->submitted = true;
    call->handle = handle;
    cancelled = atomic_load(&call->cancelled);
    pthread_mutex_unlock(&call->channel->lock);
    return cancelled;
}

/* ---- The scheduler's side ---- */

static void sink_begun(void *arg, int cached_tokens)
{
    mx_call *call = arg;

    call->cached_tokens = cached_tokens;
}

/* The first piece says how much of the prompt came from the cache. */
static json_t *piece_body(mx_call *call, int choice, const char *text, size_t bytes)
{
    int cached_tokens = call->cached_tokens;

    call->cached_tokens = -1;
    if (cached_tokens < 0)
        return json_pack("{s:i, s:o}", "choice", choice, "text", mx_json_text(text, bytes));
    return json_pack("{s:i, s:o, s:i}", "choice", choice, "text", mx_json_text(text, bytes), "cached_tokens", cached_tokens);
}

static bool sink_piece(void *arg, int choice, const char *text, size_t bytes)
{
    mx_call *call = arg;
    json_t *body = piece_body(call, choice, text, bytes);
    size_t body_bytes = 0;
    char *frame = body ? mx_json_dump(body, &body_bytes) : NULL;
    bool sent = frame && send_frame(call->channel, NULL, MX_FRAME_PIECE, call->id, frame, body_bytes, NULL) == MX_OK;

    json_decref(body);
    free(frame);
    return sent;
}

static void sink_end(void *arg, const mx_outcome *outcome, const mx_error *error)
{
    mx_call *call = arg;

    if (error)
        mx_call_error(call, error);
    else
        mx_call_result(call, mx_result_of_outcome(outcome, call->query.served->tokenizer, call->query.served->name));
    mx_call_release(call);
}

static bool sink_paused(void *arg)
{
    mx_call *call = arg;

    return atomic_load(&call->channel->paused);
}

mx_sink mx_call_sink(mx_call *call)
{
    return (mx_sink){.begun = sink_begun, .piece = sink_piece, .end = sink_end, .paused = sink_paused, .arg = call};
}
