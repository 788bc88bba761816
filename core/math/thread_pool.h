/*
 * thread_pool.h: N compute threads that run one function together, with barriers inside it.
 *
 * The calling thread is the first of the N. The others are started by the first mx_threads_run (never at open: a host may
 * fork in between), block all signals, spin briefly between runs and then park on a futex: an idle pool uses no CPU.
 */
#ifndef MX_MATH_THREAD_POOL_H
#define MX_MATH_THREAD_POOL_H

#include <stdatomic.h>
#include "../mx.h"

#define MX_THREADS_MAX 256

typedef struct mx_threads mx_threads;

mx_status mx_threads_open(int n, mx_threads **threads, mx_error *error);
void mx_threads_close(mx_threads *threads); /* joins; takes NULL */
int mx_threads_count(const mx_threads *threads);

/* Runs fn(arg, i, n) for i in 0 .. n-1 and returns when all have. One run at a time, from one thread. If a thread cannot be
 * started the run goes on with fewer (n is what did start); MX_OK all the same. */
void mx_threads_run(mx_threads *threads, void (*fn)(void *arg, int thread, int n_threads), void *arg);

/* Inside a run: waits until all its threads have come. */
void mx_threads_barrier(mx_threads *threads);

/* Physical cores within the affinity mask and the cgroup's CPU quota; at least 1. */
int mx_threads_default(void);

#endif
