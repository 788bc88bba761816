/*
 * worker.h: the one thread that tokenises texts and renders conversations.
 *
 * Calls wait in a queue bounded in number and bytes. What the worker can answer itself (tokenize, detokenize, token_count,
 * chunks) it ends; the others it hands to the scheduler. A call that is cancelled or out of time leaves the queue at once, and the
 * running one at the tokenizer's next look. The thread starts with the first call.
 */
#ifndef MX_SERVER_WORKER_H
#define MX_SERVER_WORKER_H

#include "sessions.h"

typedef struct mx_worker mx_worker;

/* max_queue: calls that wait, before MX_BUSY. */
/* Saves go on to `sessions`, which outlives the worker. */
mx_status mx_worker_open(int max_queue, mx_sessions *sessions, mx_worker **worker, mx_error *error);
void mx_worker_close(mx_worker *worker); /* ends its calls with MX_UNAVAILABLE, joins; takes NULL */

/* Takes the caller's reference over where it succeeds. MX_BUSY when the queue is full. Any thread. */
mx_status mx_worker_add(mx_worker *worker, mx_call *call, mx_error *error);

/* Ends a call that was cancelled while it waits in the queue; others end by themselves. Any thread. */
void mx_worker_drop(mx_worker *worker, mx_call *call);

/* Calls that wait or are being worked on. Any thread. */
int mx_worker_pending(mx_worker *worker);

/* Cancels calls that are past their option timeout_ms; how long until the next look is due, in ms, -1: for ever. Any thread. */
int mx_worker_expire(mx_worker *worker);

/* pthread_create for the server's threads: with all signals blocked. */
mx_status mx_thread_start(pthread_t *thread, void *(*run)(void *), void *arg, mx_error *error);

#endif
