/*
 * thread_pool.c: the compute threads.
 *
 * Everything threads wait for is a gate: a counter that only moves forward, on which a thread spins
 * for a few tens of microseconds and then sleeps on a futex. There are three: `start` (a run has
 * begun), `phase` (a barrier is complete) and `done` (all other threads have left the run).
 * Spinning keeps a barrier at a microsecond while every thread has a core of its own; sleeping
 * keeps more runnable threads than cores from burning each other's time.
 *
 * fn, arg and n are written by the caller before `start` moves and read by the others after it: the
 * gate orders them. A thread only ever waits for the next value of a gate, and none of them can
 * move twice without that thread's part in between, so that comparing for inequality is enough and
 * wrapping around is harmless.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../error.h"
#include "thread_pool.h"

#define SPIN_NS 30000   /* longer than a balanced barrier takes, shorter than a time slice */
#define SPINS_A_LOOK 16 /* pauses between two looks at the clock */

typedef struct {
    _Alignas(64) atomic_uint value; /* a line of its own: it is what the others spin on */
    atomic_int sleepers;
} gate;

typedef struct {
    mx_threads *pool;
    int index;
    pthread_t handle;
} worker;

struct mx_threads {
    int n;          /* with the caller; lowered to what did start */
    bool started;   /* the others run: only the caller's thread looks */
    worker *others; /* [n - 1], threads 1 .. n-1 */

    void (*fn)(void *arg, int thread, int n_threads); /* NULL: leave */
    void *arg;

    gate start, phase, done;
    _Alignas(64) atomic_int at_barrier; /* threads that have come to the barrier under way */
    _Alignas(64) atomic_int running;    /* of the others, those still inside the run */
};

static void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Returns once the gate's value is no longer `old`. */
static void gate_wait(gate *g, unsigned old)
{
    int64_t give_up = 0;

    while (true) {
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            if (atomic_load_explicit(&g->value, memory_order_acquire) != old)
                return;
            cpu_relax();
        }
        int64_t now = now_ns();
        if (give_up == 0)
            give_up = now + SPIN_NS;
        else if (now >= give_up)
            break;
    }
    /* The sleeper announces itself before its last look at the value, the mover moves before its
     * look for sleepers: in one order of all four, one of the two sees the other. */
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->value) == old)
        syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&g->sleepers, 1);
}

static void gate_move(gate *g)
{
    atomic_fetch_add(&g->value, 1);
    if (atomic_load(&g->sleepers) > 0)
        syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, MX_THREADS_MAX, NULL, NULL, 0);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    mx_threads *pool = w->pool;
    unsigned seen = 0;

    while (true) {
        gate_wait(&pool->start, seen);
        seen++;
        if (!pool->fn)
            return NULL;
        pool->fn(pool->arg, w->index, pool->n);
        if (atomic_fetch_sub(&pool->running, 1) == 1)
            gate_move(&pool->done);
    }
}

mx_status mx_threads_open(int n, mx_threads **threads, mx_error *error)
{
    mx_threads *pool = NULL;

    *threads = NULL;
    if (n < 1 || n > MX_THREADS_MAX)
        return mx_fail(error, MX_INVALID, "threads", "threads: expected 1 to %d, got %d",
                       MX_THREADS_MAX, n);
    if (posix_memalign((void **)&pool, _Alignof(mx_threads), sizeof *pool) != 0)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %d threads", n);
    *pool = (mx_threads){.n = n};
    if (n > 1) {
        pool->others = calloc((size_t)n - 1, sizeof *pool->others);
        if (!pool->others) {
            free(pool);
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for %d threads", n);
        }
    }
    *threads = pool;
    return MX_OK;
}

void mx_threads_close(mx_threads *pool)
{
    if (!pool)
        return;
    if (pool->started) {
        pool->fn = NULL;
        gate_move(&pool->start);
        for (int i = 0; i < pool->n - 1; i++)
            pthread_join(pool->others[i].handle, NULL);
    }
    free(pool->others);
    free(pool);
}

int mx_threads_count(const mx_threads *pool)
{
    return pool->n;
}

/* The host's signals are the host's threads' business: ours are born with all of them blocked. */
static void start_others(mx_threads *pool)
{
    sigset_t all, before;
    int n = 1;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; n < pool->n; n++) {
        worker *w = &pool->others[n - 1];
        *w = (worker){.pool = pool, .index = n};
        if (pthread_create(&w->handle, NULL, worker_main, w) != 0)
            break;
        pthread_setname_np(w->handle, "mixtral-compute");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pool->n = n;
    pool->started = true;
}

void mx_threads_run(mx_threads *pool, void (*fn)(void *arg, int thread, int n_threads), void *arg)
{
    if (!pool->started)
        start_others(pool);
    if (pool->n == 1) {
        fn(arg, 0, 1);
        return;
    }
    unsigned seen = atomic_load_explicit(&pool->done.value, memory_order_relaxed);
    pool->fn = fn;
    pool->arg = arg;
    atomic_store_explicit(&pool->running, pool->n - 1, memory_order_relaxed);
    gate_move(&pool->start);
    fn(arg, 0, pool->n);
    gate_wait(&pool->done, seen);
}

void mx_threads_barrier(mx_threads *pool)
{
    /* Read before arriving: the phase cannot move until this thread has come. */
    unsigned seen = atomic_load_explicit(&pool->phase.value, memory_order_relaxed);

    if (atomic_fetch_add(&pool->at_barrier, 1) < pool->n - 1) {
        gate_wait(&pool->phase, seen);
        return;
    }
    atomic_store_explicit(&pool->at_barrier, 0, memory_order_relaxed);
    gate_move(&pool->phase);
}
