/*
 * call.h: a request on its way through the engine, and the half of its connection that threads share.
 *
 * A call is made by the I/O thread, prepared by the worker, run by the scheduler; whoever has it ends it, once, with a result
 * or an error. Its channel outlives it, also when the connection is gone: output is dropped then. What the threads share
 * lies under the channel's lock, which is held for no longer than a copy of one frame; nothing else is called while it is
 * held, so that it can be taken inside the scheduler and the worker. Both are reference-counted.
 */
#ifndef MX_SERVER_CALL_H
#define MX_SERVER_CALL_H

#include <pthread.h>
#include <stdatomic.h>
#include "../engine/scheduler.h"
#include "options.h"
#include "wire.h"

#define MX_CALLS_MAX 256                        /* of a connection, at a time */
#define MX_STREAM_PAUSE_BYTES ((size_t)64 << 10)  /* unsent bytes that pause a connection's streams */
#define MX_STREAM_RESUME_BYTES ((size_t)16 << 10) /* and at which they go on */
#define MX_UNSENT_MAX ((size_t)64 << 20)          /* a connection with more is closed */

typedef struct { /* rouses the I/O thread from any thread */
    int fd;               /* an eventfd */
    atomic_bool pending;  /* written and not yet read */
    atomic_int unsent;    /* channels with output */
} mx_wake;

void mx_wake_up(mx_wake *wake);

typedef struct mx_call mx_call;
typedef struct mx_session mx_session;

typedef struct {
    atomic_int references; /* the connection's and one of each call */
    atomic_bool dirty;     /* changed since the I/O thread looked */
    atomic_bool paused;    /* the reader is behind */
    mx_wake *wake;
    pthread_mutex_t lock;  /* of what follows */
    mx_buffer out;
    bool unsent;           /* as wake->unsent counts it */
    mx_call *calls;        /* that live */
    int n_calls;
    bool closed;           /* nobody reads: output is dropped */
    bool broken;           /* output was lost: the I/O thread shall close the connection */
} mx_channel;

mx_status mx_channel_open(mx_wake *wake, mx_channel **channel, mx_error *error);
void mx_channel_release(mx_channel *channel);
void mx_channel_count(mx_channel *channel); /* after a change of `out`, under the lock */
void mx_channel_close(mx_channel *channel, int fd); /* sends what fd takes; output from now on is dropped */

/* Queues an error of a request, or (id 0) of the connection, and wakes the I/O thread. What cannot be queued breaks the channel. */
void mx_channel_error(mx_channel *channel, uint32_t id, const mx_error *error);

struct mx_call {
    mx_channel *channel;
    uint32_t id;
    mx_query query;
    atomic_int references;  /* whoever works on it */
    atomic_bool cancelled;  /* read while tokenising */
    int64_t arrived_ns;
    mx_session *session;    /* of session_save and session_load; freed with the call */
    mx_tenant *account;     /* until it ends; NULL: its tenant has no limits */

    /* under the channel's lock */
    mx_call *next;          /* in channel->calls */
    bool submitted;         /* to the scheduler, as `handle` */
    uint64_t handle;
    mx_error cancel_error;  /* why, once cancelled */

    /* the worker's, under its lock */
    mx_call *queue_next;
    size_t queue_bytes;

    int cached_tokens;      /* the scheduler's; to go with the next piece; -1: nothing to say */

    char tenant[24];        /* of a peer that may not name one: "uid:N"; "": what the query says */
};

/* A call among the channel's, held by the caller; the query is taken over, also on failure. MX_BUSY: too many.
 * MX_CORRUPT: the id is in use. */
mx_status mx_call_open(mx_channel *channel, uint32_t id, mx_query *query, mx_call **call, mx_error *error);
void mx_call_hold(mx_call *call);
void mx_call_release(mx_call *call);

/* Whose blocks it may share: "uid:N", or what it names, or "". */
const char *mx_call_tenant(const mx_call *call);

/* The last word: takes the call off its channel and sends the frame. A cancelled call's error is the reason it was cancelled
 * for. mx_call_result takes `result` over; NULL is MX_NOMEM; one that is too large for a frame is an error. */
void mx_call_result(mx_call *call, json_t *result);
void mx_call_error(mx_call *call, const mx_error *error);

/* Live calls, up to MX_CALLS_MAX, each held for the caller; with id not 0 that one alone. */
int mx_channel_calls(mx_channel *channel, uint32_t id, mx_call *calls[MX_CALLS_MAX]);

/* Marks a call with the reason (the first one stays). True: it is in the scheduler, as *handle, to be cancelled there. */
bool mx_call_cancel(mx_call *call, const mx_error *reason, uint64_t *handle);

/* After mx_scheduler_submit. True: it was cancelled meanwhile; the caller cancels the handle. */
bool mx_call_submitted(mx_call *call, uint64_t handle);

/* The scheduler's way to the call; `end` releases one reference. */
mx_sink mx_call_sink(mx_call *call);

#endif
