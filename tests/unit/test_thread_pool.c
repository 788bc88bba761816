/*
 * test_thread_pool.c: runs, barriers, parking, signals, and the number of threads that is the
 * default.
 */
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/math/thread_pool.h"

static double seconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static mx_threads *open_pool(int n)
{
    mx_threads *pool;
    mx_error error;

    assert_int_equal(mx_threads_open(n, &pool, &error), MX_OK);
    assert_int_equal(mx_threads_count(pool), n);
    return pool;
}

/* ---- Runs -------------------------------------------------------------------------------------*/

typedef struct {
    int calls[MX_THREADS_MAX]; /* plain: each thread writes its own, the caller reads after the run
                                */
    int n_seen[MX_THREADS_MAX];
} roll;

static void answer(void *arg, int thread, int n)
{
    roll *r = arg;

    r->calls[thread]++;
    r->n_seen[thread] = n;
}

static void runs_every_thread_once(void **state)
{
    static const int counts[] = {1, 2, 3, 8};
    (void)state;

    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        mx_threads *pool = open_pool(counts[c]);
        roll r = {0};

        for (int run = 0; run < 2000; run++)
            mx_threads_run(pool, answer, &r);
        for (int i = 0; i < counts[c]; i++) {
            assert_int_equal(r.calls[i], 2000);
            assert_int_equal(r.n_seen[i], counts[c]);
        }
        assert_int_equal(r.calls[counts[c]], 0);
        mx_threads_close(pool);
    }
}

static void open_refuses_counts(void **state)
{
    mx_threads *pool;
    mx_error error;
    (void)state;

    assert_int_equal(mx_threads_open(0, &pool, &error), MX_INVALID);
    assert_null(pool);
    assert_string_equal(error.field, "threads");
    assert_int_equal(mx_threads_open(MX_THREADS_MAX + 1, &pool, &error), MX_INVALID);
    assert_non_null(strstr(error.text, "257"));
    mx_threads_close(NULL);
    mx_threads_close(open_pool(4)); /* never run */
}

/* ---- Barriers ---------------------------------------------------------------------------------*/

#define ROUNDS 400

typedef struct {
    mx_threads *pool;
    int cell[2][MX_THREADS_MAX];
    int wrong[MX_THREADS_MAX];
} relay;

/* Each round, a thread writes its own cell and after the barrier reads all others': plain memory,
 * so that TSan checks the ordering as well. Two rows in turn: one barrier a round is enough. */
static void pass_on(void *arg, int thread, int n)
{
    relay *r = arg;

    for (int round = 0; round < ROUNDS; round++) {
        r->cell[round & 1][thread] = round;
        mx_threads_barrier(r->pool);
        for (int i = 0; i < n; i++)
            if (r->cell[round & 1][i] != round)
                r->wrong[thread]++;
    }
}

static void barrier_orders(int n)
{
    relay *r = calloc(1, sizeof *r);

    assert_non_null(r);
    r->pool = open_pool(n);
    for (int run = 0; run < 5; run++)
        mx_threads_run(r->pool, pass_on, r);
    for (int i = 0; i < n; i++)
        assert_int_equal(r->wrong[i], 0);
    mx_threads_close(r->pool);
    free(r);
}

static void barrier_orders_memory(void **state)
{
    (void)state;
    barrier_orders(1);
    barrier_orders(2);
    barrier_orders(4);
}

/* 16 threads on one CPU: if waiters only spun, each of these 2,000 barriers would cost time slices
 * (many seconds in all). */
static void crowded_barriers_do_not_collapse(void **state)
{
    cpu_set_t before, one;
    double begin;
    (void)state;

    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
            break;
        }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    begin = seconds(CLOCK_MONOTONIC);
    barrier_orders(16);
    double took = seconds(CLOCK_MONOTONIC) - begin;
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_true(took < 20.0);
}

/* ---- Rest, and signals ------------------------------------------------------------------------*/

static void idle_pool_uses_no_cpu(void **state)
{
    mx_threads *pool = open_pool(4);
    roll r = {0};
    (void)state;

    mx_threads_run(pool, answer, &r);
    usleep(50000); /* past the spinning */
    double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    usleep(300000);
    assert_true(seconds(CLOCK_PROCESS_CPUTIME_ID) - before < 0.01);
    mx_threads_run(pool, answer, &r); /* and wakes up again */
    for (int i = 0; i < 4; i++)
        assert_int_equal(r.calls[i], 2);
    mx_threads_close(pool);
}

static void note_mask(void *arg, int thread, int n)
{
    sigset_t *masks = arg;
    (void)n;

    pthread_sigmask(SIG_SETMASK, NULL, &masks[thread]);
}

static void threads_block_signals(void **state)
{
    sigset_t masks[3], caller;
    mx_threads *pool = open_pool(3);
    (void)state;

    pthread_sigmask(SIG_SETMASK, NULL, &caller);
    mx_threads_run(pool, note_mask, masks);
    for (int i = 1; i < 3; i++) {
        assert_int_equal(sigismember(&masks[i], SIGINT), 1);
        assert_int_equal(sigismember(&masks[i], SIGTERM), 1);
        assert_int_equal(sigismember(&masks[i], SIGALRM), 1);
    }
    assert_int_equal(sigismember(&masks[0], SIGINT), sigismember(&caller, SIGINT));
    mx_threads_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_every_thread_once),
        cmocka_unit_test(open_refuses_counts),
        cmocka_unit_test(barrier_orders_memory),
        cmocka_unit_test(crowded_barriers_do_not_collapse),
        cmocka_unit_test(idle_pool_uses_no_cpu),
        cmocka_unit_test(threads_block_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
