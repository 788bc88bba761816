/*
 * test_concurrency.c: the SQLite extension under threads, interrupts, forks, and for a long time.
 *
 *     MX_TEST_EXTENSION   build/mixtral.so
 *     MX_TEST_MODEL       a chat model
 *     MX_TEST_CHATS       how many rounds the test of memory makes (default 150; `make soak`:
 * 10000)
 */
#include <pthread.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW 10
#else
#define SLOW 1
#endif

#define N_THREADS 6
#define ENDLESS \
    "SELECT mixtral_chat('Count to a million.', '{\"max_tokens\": 4000, \"ignore_eos\": true}')"
#define SHORT                                                                                      \
    "SELECT mixtral_chat('Tell me about number ' || ?1, '{\"max_tokens\": 6, \"temperature\": 1, " \
    "\"seed\": 3}')"

static double now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static void sleep_ms(int ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&time, NULL);
}

/* A connection to ":memory:" with the extension; NULL, with a message, when that fails. */
static sqlite3 *connect_db(void)
{
    sqlite3 *db = NULL;
    char *message = NULL;

    if (sqlite3_open(":memory:", &db) != SQLITE_OK ||
        sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL) != SQLITE_OK ||
        sqlite3_load_extension(db, getenv("MX_TEST_EXTENSION"), NULL, &message) != SQLITE_OK) {
        fprintf(stderr, "cannot load %s: %s\n", getenv("MX_TEST_EXTENSION"),
                message ? message : sqlite3_errmsg(db));
        sqlite3_free(message);
        sqlite3_close(db);
        return NULL;
    }
    return db;
}

/* Runs a query with ?1 bound to `number`; the first column of its last row goes to text[256].
 * Returns the result code. */
static int query(sqlite3 *db, const char *sql, int number, char *text)
{
    sqlite3_stmt *statement;
    int rc = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);

    text[0] = '\0';
    if (rc != SQLITE_OK)
        return rc;
    if (sqlite3_bind_parameter_count(statement) > 0)
        sqlite3_bind_int(statement, 1, number);
    while ((rc = sqlite3_step(statement)) == SQLITE_ROW)
        snprintf(text, 256, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static int must(sqlite3 *db, const char *sql, int number, char *text)
{
    int rc = query(db, sql, number, text);

    if (rc != SQLITE_OK)
        fprintf(stderr, "%s: %s\n", sql, sqlite3_errmsg(db));
    return rc;
}

/* ---- Threads ---- */

typedef struct {
    pthread_t thread;
    int number;
    bool failed;
    char text[256];
} worker;

static void *work(void *arg)
{
    worker *w = arg;
    sqlite3 *db = connect_db();

    w->failed = db == NULL || must(db, SHORT, w->number, w->text) != SQLITE_OK;
    sqlite3_close(db);
    return NULL;
}

static void test_threads_get_the_answers_they_get_alone(void **state)
{
    worker workers[N_THREADS] = {0};
    sqlite3 *db = connect_db();
    char alone[256];

    (void)state;
    assert_non_null(db);
    for (int i = 0; i < N_THREADS; i++) {
        workers[i].number = i;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    for (int i = 0; i < N_THREADS; i++) {
        assert_false(workers[i].failed);
        assert_int_equal(must(db, SHORT, i, alone), SQLITE_OK);
        assert_string_equal(workers[i].text, alone);
    }
    sqlite3_close(db);
}

/* ---- Interrupts ---- */

typedef struct {
    sqlite3 *db;
    int after_ms;
    double at_ms;
} interrupter;

static void *interrupt(void *arg)
{
    interrupter *i = arg;

    sleep_ms(i->after_ms);
    i->at_ms = now_ms();
    sqlite3_interrupt(i->db);
    return NULL;
}

/* Runs a statement that is interrupted after a while; the result code, and how long it took to
 * come. */
static int interrupted(sqlite3 *db, const char *sql, int after_ms, double *took_ms)
{
    interrupter i = {.db = db, .after_ms = after_ms};
    pthread_t thread;
    char text[256];
    double end;
    int rc;

    assert_int_equal(pthread_create(&thread, NULL, interrupt, &i), 0);
    rc = query(db, sql, 0, text);
    end = now_ms();
    pthread_join(thread, NULL);
    *took_ms = end - i.at_ms;
    return rc;
}

static void test_interrupts_within_a_transaction(void **state)
{
    sqlite3 *db = connect_db();
    char text[256];
    double took_ms, worst_ms = 0;

    (void)state;
    assert_non_null(db);
    assert_int_equal(must(db, SHORT, 0, text), SQLITE_OK);
    assert_int_equal(must(db, "CREATE TABLE t(x)", 0, text), SQLITE_OK);
    assert_int_equal(must(db, "BEGIN IMMEDIATE", 0, text), SQLITE_OK);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(must(db, "INSERT INTO t VALUES (?1)", i, text), SQLITE_OK);
        assert_int_equal(interrupted(db, ENDLESS, 50 + 37 * i, &took_ms), SQLITE_INTERRUPT);
        worst_ms = took_ms > worst_ms ? took_ms : worst_ms;
        assert_int_equal(sqlite3_get_autocommit(db), 0);
    }
    assert_int_equal(must(db, "COMMIT", 0, text), SQLITE_OK);
    assert_int_equal(must(db, "SELECT count(*) FROM t", 0, text), SQLITE_OK);
    assert_string_equal(text, "10");
    assert_int_equal(must(db, SHORT, 0, text), SQLITE_OK);
    print_message("an interrupt took %.1f ms at most\n", worst_ms);
    assert_true(worst_ms < 100 * SLOW);
    sqlite3_close(db);
}

static void test_interrupts_at_any_moment(void **state)
{
    sqlite3 *db = connect_db();
    char before[256], after[256];
    double took_ms;

    (void)state;
    assert_non_null(db);
    assert_int_equal(must(db, SHORT, 1, before), SQLITE_OK);
    for (int i = 0; i < 40; i++) {
        int rc = interrupted(db, SHORT, i % 20 * SLOW, &took_ms);

        assert_true(rc == SQLITE_OK || rc == SQLITE_INTERRUPT);
    }
    assert_int_equal(must(db, SHORT, 1, after), SQLITE_OK);
    assert_string_equal(before, after);
    sqlite3_close(db);
}

static void test_interrupts_while_a_model_opens(void **state)
{
    char text[256];
    double took_ms;

    (void)state;
    for (int i = 0; i < 8; i++) {
        sqlite3 *db = connect_db();
        int rc;

        assert_non_null(db);
        assert_int_equal(must(db, "SELECT mixtral_close(mixtral_models()->0->>'path')", 0, text),
                         SQLITE_OK);
        rc = interrupted(db, ENDLESS, 10 * i * SLOW, &took_ms);
        assert_int_equal(rc, SQLITE_INTERRUPT);
        assert_true(took_ms < 100 * SLOW);
        sqlite3_close(db);
    }
}

/* ---- Engines come and go ---- */

typedef struct {
    pthread_t thread;
    volatile int *stop;
    int answers, refusals, failures;
} talker;

static void *talk(void *arg)
{
    talker *t = arg;
    sqlite3 *db = connect_db();
    char text[256];

    if (db == NULL)
        t->failures++;
    while (db != NULL && !__atomic_load_n(t->stop, __ATOMIC_RELAXED)) {
        int rc = query(db, SHORT, t->answers, text);

        if (rc == SQLITE_OK)
            __atomic_fetch_add(&t->answers, 1, __ATOMIC_RELAXED);
        else if (rc == SQLITE_ERROR)
            t->refusals++;
        else
            t->failures++;
    }
    sqlite3_close(db);
    return NULL;
}

static void start_talking(talker *talkers, int n, volatile int *stop)
{
    for (int i = 0; i < n; i++) {
        talkers[i] = (talker){.stop = stop};
        assert_int_equal(pthread_create(&talkers[i].thread, NULL, talk, &talkers[i]), 0);
    }
}

static void stop_talking(talker *talkers, int n, volatile int *stop)
{
    __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < n; i++)
        pthread_join(talkers[i].thread, NULL);
}

static bool all_have_answers(talker *talkers, int n)
{
    for (int i = 0; i < n; i++)
        if (__atomic_load_n(&talkers[i].answers, __ATOMIC_RELAXED) == 0)
            return false;
    return true;
}

/* A request that runs when its engine is closed fails; the next one opens the engine again. */
static void test_closing_under_running_requests(void **state)
{
    talker talkers[3];
    volatile int stop = 0;
    sqlite3 *db = connect_db();
    char path[256], text[256];

    (void)state;
    assert_non_null(db);
    assert_int_equal(must(db, "SELECT mixtral_models()->0->>'path'", 0, path), SQLITE_OK);
    start_talking(talkers, 3, &stop);
    for (int i = 0; i < 6; i++) {
        sqlite3_stmt *statement;

        sleep_ms(150 * SLOW);
        assert_int_equal(sqlite3_prepare_v2(db, "SELECT mixtral_close(?1)", -1, &statement, NULL),
                         SQLITE_OK);
        sqlite3_bind_text(statement, 1, path, -1, SQLITE_STATIC);
        assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
        sqlite3_finalize(statement);
    }
    for (int waited = 0; waited < 30000 * SLOW && !all_have_answers(talkers, 3); waited += 20)
        sleep_ms(20); /* on a busy machine none may have come between two closings */
    stop_talking(talkers, 3, &stop);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(talkers[i].failures, 0);
        assert_true(talkers[i].answers > 0);
        assert_true(talkers[i].refusals <= 6);
    }
    assert_int_equal(must(db, SHORT, 0, text), SQLITE_OK);
    sqlite3_close(db);
}

/* In a child: 0 when a connection that the parent made, and a new one, both give the parent's
 * answer. */
static int answer_in_child(sqlite3 *inherited, const char *expected)
{
    char text[256];
    sqlite3 *db;

    if (must(inherited, SHORT, 2, text) != SQLITE_OK || strcmp(text, expected) != 0)
        return 1;
    db = connect_db();
    if (db == NULL || must(db, SHORT, 2, text) != SQLITE_OK || strcmp(text, expected) != 0)
        return 2;
    sqlite3_close(db);
    return 0;
}

/*
 * The engine is at work for a stream while we fork. (No other thread may be inside SQLite then:
 * SQLite's own locks do not survive a fork.)
 */
static void test_forks_while_the_engine_works(void **state)
{
    sqlite3 *db = connect_db(), *other = connect_db();
    sqlite3_stmt *stream;
    char expected[256];
    int rows = 0;

    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* it does not follow a fork of a process with threads */
#endif
    assert_non_null(db);
    assert_non_null(other);
    assert_int_equal(must(db, SHORT, 2, expected), SQLITE_OK);
    assert_int_equal(
        sqlite3_prepare_v2(other,
                           "SELECT piece FROM mixtral_stream('Count.', '{\"ignore_eos\": true}')",
                           -1, &stream, NULL),
        SQLITE_OK);
    for (int i = 0; i < 6; i++) {
        int status;
        pid_t child;

        assert_int_equal(sqlite3_step(stream), SQLITE_ROW);
        child = fork();
        if (child == 0)
            _exit(answer_in_child(db, expected));
        assert_true(child > 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
    while (sqlite3_step(stream) == SQLITE_ROW)
        rows++;
    assert_int_equal(sqlite3_finalize(stream), SQLITE_OK);
    assert_true(rows > 20);
    assert_int_equal(answer_in_child(db, expected), 0);
    sqlite3_close(other);
    sqlite3_close(db);
}

/* ---- A long time ---- */

static double rss_mb(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long total = 0, resident = 0;

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%ld %ld", &total, &resident), 2);
    fclose(file);
    return (double)resident * (double)sysconf(_SC_PAGESIZE) / 1048576;
}

/* One of everything; a new connection every 16 rounds. Without the cache, which may fill the KV pool. */
static sqlite3 *make_round(sqlite3 *db, int i)
{
    char text[256];

    if (i % 16 == 0) {
        sqlite3_close(db);
        db = connect_db();
        assert_non_null(db);
    }
    assert_int_equal(
        must(db, "SELECT mixtral_chat('Number ' || ?1, '{\"max_tokens\": 1, \"cache\": false}')",
             i % 100, text),
        SQLITE_OK);
    if (i % 4 == 0) {
        assert_int_equal(
            must(db,
                 "SELECT piece FROM mixtral_stream('Hi', '{\"max_tokens\": 9, \"cache\": false}') "
                 "LIMIT 1",
                 0, text),
            SQLITE_OK);
        assert_int_equal(must(db, "SELECT length(mixtral_embed('text ' || ?1))", i % 10, text),
                         SQLITE_OK);
        assert_int_equal(must(db, "SELECT count(*) FROM mixtral_tokenize('a few words')", 0, text),
                         SQLITE_OK);
        assert_int_equal(query(db, "SELECT mixtral_chat('x', '{\"nothing\": 1}')", 0, text),
                         SQLITE_ERROR);
    }
    return db;
}

static void test_memory_does_not_grow(void **state)
{
    int chats = getenv("MX_TEST_CHATS") ? atoi(getenv("MX_TEST_CHATS")) : 150;
    int warm = chats / 3;
    sqlite3 *db = NULL;
    double begin = 0, end;

    (void)state;
    for (int i = 0; i < chats; i++) {
        db = make_round(db, i);
        if (i == warm)
            begin = rss_mb();
    }
    end = rss_mb();
    sqlite3_close(db);
    print_message("%d chats: %.1f MiB after %d, %.1f MiB at the end\n", chats, begin, warm, end);
#ifndef __SANITIZE_ADDRESS__ /* which keeps what was freed for a while */
    assert_true(end - begin < 6);
#endif
}

/* For leak checkers: nothing is left of an engine that was closed. */
static int close_engine(void **state)
{
    sqlite3 *db = connect_db();
    char text[256];
    int rc = must(db, "SELECT mixtral_close(mixtral_models()->0->>'path')", 0, text);

    (void)state;
    sqlite3_close(db);
    return rc == SQLITE_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_get_the_answers_they_get_alone),
        cmocka_unit_test(test_interrupts_within_a_transaction),
        cmocka_unit_test(test_interrupts_at_any_moment),
        cmocka_unit_test(test_interrupts_while_a_model_opens),
        cmocka_unit_test(test_closing_under_running_requests),
        cmocka_unit_test(test_forks_while_the_engine_works),
        cmocka_unit_test(test_memory_does_not_grow),
    };

    if (getenv("MX_TEST_EXTENSION") == NULL || getenv("MX_TEST_MODEL") == NULL) {
        fprintf(stderr, "MX_TEST_EXTENSION and MX_TEST_MODEL are needed\n");
        return 1;
    }
    setenv("MIXTRAL_MODEL", getenv("MX_TEST_MODEL"), 1);
    return cmocka_run_group_tests_name("sqlite/concurrency", tests, NULL, close_engine);
}
