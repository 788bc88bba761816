/*
 * call.c: calls, their channels, and the sink through which the scheduler answers. See call.h.
 */
#include "call.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../error.h"
#include "result.h"

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

void mx_channel_close(mx_channel *channel, int fd)
{
    pthread_mutex_lock(&channel->lock);
    mx_buffer_send(&channel->out, fd, NULL);
    channel->closed = true;
    mx_buffer_free(&channel->out);
    atomic_store(&channel->paused, false);
    pthread_mutex_unlock(&channel->lock);
}

/* Queues a frame under the lock; false if it is too large for one. */
static bool queue_frame(mx_channel *channel, mx_frame_type type, uint32_t id, const char *body, size_t bytes,
                        mx_error *error)
{
    mx_status status = MX_OK;

    if (channel->closed || channel->broken) /* nothing may follow what was lost */
        return true;
    if (mx_buffer_bytes(&channel->out) > MX_UNSENT_MAX)
        channel->broken = true;
    else
        status = mx_frame_append(&channel->out, type, id, body, bytes, error);
    if (status == MX_TOO_LARGE)
        return false;
    if (status != MX_OK)
        channel->broken = true;
    if (mx_buffer_bytes(&channel->out) > MX_STREAM_PAUSE_BYTES)
        atomic_store(&channel->paused, true);
    return true;
}

/* After the lock is given back. */
static void announce(mx_channel *channel)
{
    if (!atomic_exchange(&channel->dirty, true))
        mx_wake_up(channel->wake);
}

/* Sends a body as text (NULL: out of memory) and frees it; a call that is given ends with it. */
static mx_status send_text(mx_channel *channel, mx_call *ending, mx_frame_type type, uint32_t id, char *body, size_t bytes,
                           mx_error *error)
{
    mx_call **link;
    bool queued = true;

    pthread_mutex_lock(&channel->lock);
    if (body)
        queued = queue_frame(channel, type, id, body, bytes, error);
    else
        channel->broken = true;
    if (ending && queued) {
        for (link = &channel->calls; *link != ending; link = &(*link)->next)
            continue;
        *link = ending->next;
        channel->n_calls--;
    }
    pthread_mutex_unlock(&channel->lock);
    free(body);
    if (!queued)
        return MX_TOO_LARGE;
    announce(channel);
    return MX_OK;
}

void mx_channel_send(mx_channel *channel, mx_frame_type type, uint32_t id, json_t *body)
{
    size_t bytes = 0;
    char *text = body ? mx_json_dump(body, &bytes) : NULL;

    json_decref(body);
    if (send_text(channel, NULL, type, id, text, bytes, NULL) != MX_OK) {
        pthread_mutex_lock(&channel->lock);
        channel->broken = true;
        pthread_mutex_unlock(&channel->lock);
        announce(channel);
    }
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
    mx_query_free(&call->query);
    mx_channel_release(call->channel);
    free(call);
}

void mx_call_error(mx_call *call, const mx_error *error)
{
    mx_channel *channel = call->channel;
    mx_error reason = *error;
    json_t *body;
    size_t bytes = 0;
    char *text = NULL;

    if (error->status == MX_CANCELLED) {
        pthread_mutex_lock(&channel->lock);
        if (call->cancel_error.status != MX_OK)
            reason = call->cancel_error;
        pthread_mutex_unlock(&channel->lock);
    }
    body = mx_json_of_error(&reason);
    if (body)
        text = mx_json_dump(body, &bytes);
    json_decref(body);
    send_text(channel, call, MX_FRAME_ERROR, call->id, text, bytes, NULL);
}

void mx_call_result(mx_call *call, json_t *result)
{
    mx_error error = {.status = MX_NOMEM, .text = "out of memory for the result"};
    size_t bytes = 0;
    char *text = result ? mx_json_dump(result, &bytes) : NULL;

    json_decref(result);
    if (!text || send_text(call->channel, call, MX_FRAME_RESULT, call->id, text, bytes, &error) != MX_OK)
        mx_call_error(call, &error);
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

static void sink_piece(void *arg, int choice, const char *text, size_t bytes)
{
    mx_call *call = arg;

    mx_channel_send(call->channel, MX_FRAME_PIECE, call->id,
                    json_pack("{s:i, s:o}", "choice", choice, "text", mx_json_text(text, bytes)));
}

static void sink_end(void *arg, const mx_outcome *outcome, const mx_error *error)
{
    mx_call *call = arg;

    if (error)
        mx_call_error(call, error);
    else
        mx_call_result(call, mx_result_of_outcome(outcome, call->tokenizer, call->model_name));
    mx_call_release(call);
}

static bool sink_paused(void *arg)
{
    mx_call *call = arg;

    return atomic_load(&call->channel->paused);
}

mx_sink mx_call_sink(mx_call *call)
{
    return (mx_sink){.piece = sink_piece, .end = sink_end, .paused = sink_paused, .arg = call};
}
