/*
 * test_storms.c: requests that are cancelled in heaps, and engines that are closed in the middle of everything: each request ends
 * exactly once.
 *
 * First the scheduler alone, whose sinks count and whose answers are compared; then whole engines over their sockets, where a request's end is its RESULT or
 * ERROR, or the end of the connection. What happens when is random; the seed is printed where something fails.
 */
#include <poll.h>
#include <sys/socket.h>
#include "scheduling.h"
#include "../../core/mx.h"

#define PATIENCE_MS 120000 /* a sanitizer on a busy machine */
#define STORM_MS 2500

static uint64_t random_of(uint64_t *state, uint64_t n)
{
    return mx_synth_random(state) % n;
}

static void rest(uint64_t us)
{
    struct timespec t = {.tv_nsec = (long)us * 1000};

    nanosleep(&t, NULL);
}

static double ms_since(int64_t begin_ns)
{
    return (double)(mx_now_ns() - begin_ns) * 1e-6;
}

/* ---- The scheduler ------------------------------------------------------------------------------------*/

#define CALLERS 4
#define EACH 24 /* requests of a caller */

typedef struct {
    mx_scheduler *scheduler;
    uint64_t random;
    listener *listeners[EACH];
    request *requests[EACH];
    uint64_t handles[EACH];
    int refused, busy;
} caller;

/* Submits, pauses readers and lets them go on, and cancels, also what has ended, and twice. */
static void *call_wildly(void *arg)
{
    caller *c = arg;
    mx_error error;

    for (int i = 0; i < EACH; i++) {
        request *r = c->requests[i];
        listener *l = c->listeners[i];

        r->spec.sink = (mx_sink){.piece = on_piece, .end = on_end, .paused = is_paused, .arg = l};
        l->pause_at = random_of(&c->random, 4) == 0 ? 1 + (int)random_of(&c->random, 5) : 0;
        switch (mx_scheduler_submit(c->scheduler, &r->spec, &c->handles[i], &error)) {
        case MX_OK:
            break;
        case MX_BUSY:
            c->busy++;
            c->handles[i] = 0;
            break;
        default:
            c->refused++;
        }
        for (uint64_t n = random_of(&c->random, 3); n > 0; n--)
            mx_scheduler_cancel(c->scheduler, c->handles[random_of(&c->random, (uint64_t)i + 1)]);
        if (random_of(&c->random, 3) == 0) {
            set_paused(c->listeners[random_of(&c->random, (uint64_t)i + 1)], false);
            mx_scheduler_wake(c->scheduler);
        }
        if (random_of(&c->random, 4) == 0)
            rest(random_of(&c->random, 3000));
    }
    return NULL;
}

static request *wild_request(uint64_t *random)
{
    request *r = new_request(1 + (int)random_of(random, 300), 1 + (int)random_of(random, 40), (unsigned)random_of(random, 1 << 20));

    r->spec.n = 1 + (int)random_of(random, 3) * (int)random_of(random, 2);
    r->spec.cache = random_of(random, 4) > 0;
    r->spec.timeout_ms = random_of(random, 6) == 0 ? 1 + (int)random_of(random, 20) : 0;
    if (random_of(random, 5) == 0) {
        r->spec.embed = true;
        r->spec.max_tokens = 0;
    }
    return r;
}

/* What came to its end in a storm is what it is alone. */
static void compare_with_alone(caller *c)
{
    for (int j = 0; j < EACH; j++) {
        if (!c->listeners[j]->ended || c->listeners[j]->error.status != MX_OK || c->requests[j]->spec.embed)
            continue;
        c->requests[j]->spec.timeout_ms = 0;
        listener *alone = run_alone(roomy, c->requests[j]);
        assert_same_answer(c->listeners[j], alone);
        free_listener(alone);
        return;
    }
}

/* One round: a scheduler with little room, its callers, and its close with whatever still runs, or after all has ended. */
static void storm(uint64_t seed)
{
    const setup small = {.threads = 1 + (int)(seed % 2), .blocks = 24, .context = CONTEXT, .max_queue = 40};
    uint64_t random = seed;
    mx_scheduler *s = open_scheduler_with(small, 20);
    bool in_the_middle = random_of(&random, 2) == 0;
    pthread_t threads[CALLERS];
    caller callers[CALLERS];

    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){.scheduler = s, .random = mx_synth_random(&random)};
        for (int j = 0; j < EACH; j++) {
            callers[i].listeners[j] = new_listener();
            callers[i].requests[j] = wild_request(&random);
        }
    }
    for (int i = 0; i < CALLERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_wildly, &callers[i]), 0);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < CALLERS && !in_the_middle; i++) {
        for (int j = 0; j < EACH; j++) {
            callers[i].listeners[j]->pause_at = 0;
            set_paused(callers[i].listeners[j], false);
            mx_scheduler_wake(s);
            if (callers[i].handles[j])
                wait_for(callers[i].listeners[j], 0);
        }
    }
    if (!in_the_middle) {
        for (int64_t begin = mx_now_ns(); stats_of(s).requests_running + stats_of(s).requests_waiting > 0; rest(200))
            assert_true(ms_since(begin) < PATIENCE_MS);
        assert_at_rest(s);
    }
    mx_scheduler_close(s);
    for (int i = 0; i < CALLERS; i++) {
        assert_int_equal(callers[i].refused, 0);
        compare_with_alone(&callers[i]);
        for (int j = 0; j < EACH; j++) {
            listener *l = callers[i].listeners[j];

            if (l->ended != (callers[i].handles[j] != 0) || l->late)
                fail_msg("seed %llu: request %d of caller %d: %s, %d calls after its end", (unsigned long long)seed, j, i,
                         l->ended ? "ended" : "never ended", l->late);
            if (l->ended && l->error.status != MX_OK && l->error.status != MX_CANCELLED && l->error.status != MX_TIMEOUT &&
                !(in_the_middle && l->error.status == MX_UNAVAILABLE))
                fail_msg("seed %llu: ended as %s: %s", (unsigned long long)seed, mx_status_name(l->error.status), l->error.text);
            free_listener(l);
            free(callers[i].requests[j]);
        }
    }
}

static void a_scheduler_ends_each_request_once(void **state)
{
    int64_t begin = mx_now_ns();
    int rounds = 0;
    (void)state;

    for (; rounds < 4 || (ms_since(begin) < STORM_MS && rounds < 200); rounds++)
        storm(1000 + (uint64_t)rounds);
    print_message("%d storms\n", rounds);
}

static bool has_ended(listener *l)
{
    pthread_mutex_lock(&l->lock);
    bool ended = l->ended;
    pthread_mutex_unlock(&l->lock);
    return ended;
}

/* Closing comes at every moment of the thread's way from an answer to its rest; SIGALRM ends a close that does not return. */
static void a_scheduler_is_closed_at_any_moment(void **state)
{
    request *r = new_request(3, 1, 1);
    (void)state;

    alarm(PATIENCE_MS / 1000);
    for (int i = 0; i < 3000; i++) {
        mx_scheduler *s = open_scheduler(roomy);
        listener *l = new_listener();

        submit(s, r, l);
        while (i % 4 > 0 && !has_ended(l)) /* or before there is an answer */
            sched_yield();
        for (volatile int spin = 0; spin < i % 64 * 16; spin++)
            continue;
        mx_scheduler_close(s);
        assert_true(l->ended);
        free_listener(l);
    }
    alarm(0);
    free(r);
}

/* ---- Engines over their sockets -------------------------------------------------------------------------*/

#define PEERS 6
#define SENT_MAX 400

typedef struct {
    mx_client *client;
    uint64_t random;
    int n_sent;
    int ends[SENT_MAX + 1]; /* [id] */
    int results, cancelled, closed, other;
    bool lost;
    const char *wrong; /* what must not be; NULL: nothing */
} peer;

static const char *const texts[] = {
    "{\"op\":\"complete\",\"prompt\":\"some words to begin with\",\"options\":{\"max_tokens\":30,\"ignore_eos\":true}}",
    "{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"max_tokens\":900,\"ignore_eos\":true,\"n\":3}}",
    "{\"op\":\"chat\",\"prompt\":\"hello\",\"options\":{\"max_tokens\":5,\"ignore_eos\":true,\"timeout_ms\":5}}",
    "{\"op\":\"embed\",\"text\":\"a text that has some more words in it than the others have, so that it takes a while\"}",
    "{\"op\":\"tokenize\",\"text\":\"one two three\"}",
    "{\"op\":\"stats\"}",
    "{\"op\":\"nonsense\"}",
};

static void take_event_of(peer *p, const mx_event *event)
{
    if (event->id == 0 || event->id > (uint32_t)p->n_sent)
        p->wrong = "an event of no request";
    else if (p->ends[event->id] > 0)
        p->wrong = "an event behind a request's end";
    else if (event->type != MX_EVENT_PIECE)
        p->ends[event->id]++;
    if (event->type == MX_EVENT_RESULT)
        p->results++;
    else if (event->type == MX_EVENT_ERROR && event->error.status == MX_CANCELLED)
        p->cancelled++;
    else if (event->type == MX_EVENT_ERROR && event->error.status == MX_UNAVAILABLE)
        p->closed++;
    else if (event->type == MX_EVENT_ERROR)
        p->other++;
}

static int n_open(const peer *p)
{
    int n = 0;

    for (int id = 1; id <= p->n_sent; id++)
        n += p->ends[id] == 0;
    return n;
}

/* What has come, waited for where `ms` is not 0. */
static void read_events(peer *p, int ms)
{
    mx_event event;
    mx_error error;
    mx_status status;

    while ((status = mx_client_next(p->client, &event, &error)) == MX_OK)
        take_event_of(p, &event);
    if (status != MX_AGAIN) {
        p->lost = true;
        if (status != MX_UNAVAILABLE)
            p->wrong = "a connection that is lost otherwise than by a close";
    } else if (ms > 0) {
        poll(&(struct pollfd){.fd = mx_client_fd(p->client), .events = mx_client_events(p->client)}, 1, ms);
    }
}

/* Asks, cancels its own at random (also what has ended, what was cancelled, what never was), reads now and then. */
static void *ask_wildly(void *arg)
{
    peer *p = arg;
    int64_t begin = mx_now_ns();
    uint32_t id;

    while (!p->lost && !p->wrong && p->n_sent < SENT_MAX) {
        const char *text = texts[random_of(&p->random, sizeof texts / sizeof texts[0])];

        if (n_open(p) < 20) {
            if (mx_client_request(p->client, text, &id, NULL) != MX_OK)
                break;
            p->n_sent = (int)id;
        }
        if (random_of(&p->random, 2) == 0)
            mx_client_cancel(p->client, 1 + (uint32_t)random_of(&p->random, (uint64_t)p->n_sent + 3), NULL);
        if (random_of(&p->random, 3) == 0)
            read_events(p, (int)random_of(&p->random, 2));
    }
    while (!p->lost && !p->wrong && n_open(p) > 0) {
        if (ms_since(begin) > PATIENCE_MS)
            p->wrong = "a request that never ends";
        for (id = 1; id <= (uint32_t)p->n_sent; id++)
            if (p->ends[id] == 0)
                mx_client_cancel(p->client, id, NULL);
        read_events(p, 20);
    }
    if (p->lost)
        return NULL;
    read_events(p, 30); /* nothing comes any more */
    return NULL;
}

static char model_path[] = "/tmp/mixtral-storms-XXXXXX";

static int write_model_file(void **state)
{
    mx_synth_options o = mx_synth_defaults();
    mx_error error = {0};
    int fd = mkstemp(model_path);

    o.layers = 1;
    o.dim = o.ff = 64;
    o.heads = 4;
    o.kv_heads = 2;
    o.experts = 4;
    o.experts_used = 2;
    o.vocab_size = 600;
    o.context = CONTEXT;
    o.type = MX_TYPE_Q8_0;
    if (fd < 0 || close(fd) != 0 || mx_synth_model(model_path, &o, &error) != MX_OK)
        return -1;
    return open_model(state);
}

static int remove_model_file(void **state)
{
    unlink(model_path);
    return close_model(state);
}

typedef struct {
    long sent, results, cancelled, closed, other, lost;
} tally;

/* One engine. `after_us` 0: it is closed when all have what they asked for. */
static void storm_of_peers(uint64_t seed, uint64_t after_us, tally *t)
{
    const mx_engine_options options = {.threads = 1, .kv_pool_bytes = 200000, .max_queue = 64, .max_step_ms = 20};
    uint64_t random = seed;
    pthread_t threads[PEERS];
    peer *peers = calloc(PEERS, sizeof *peers);
    mx_engine *engine;
    mx_error error;
    int fd;

    assert_non_null(peers);
    assert_int_equal(mx_engine_open(model_path, &options, &engine, &error), MX_OK);
    for (int i = 0; i < PEERS; i++) {
        peers[i].random = mx_synth_random(&random);
        assert_int_equal(mx_engine_connect(engine, &fd, &error), MX_OK);
        assert_int_equal(mx_client_open(fd, &peers[i].client, &error), MX_OK);
        assert_int_equal(pthread_create(&threads[i], NULL, ask_wildly, &peers[i]), 0);
    }
    if (after_us > 0) {
        rest(after_us);
        mx_engine_close(engine);
    }
    for (int i = 0; i < PEERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < PEERS; i++) {
        peer *p = &peers[i];

        if (p->wrong || (after_us == 0 && (p->lost || n_open(p) > 0)))
            fail_msg("seed %llu, peer %d: %s; %d requests have not ended", (unsigned long long)seed, i,
                     p->wrong ? p->wrong : p->lost ? "the connection is lost" : "not all is well", n_open(p));
        t->sent += p->n_sent;
        t->results += p->results;
        t->cancelled += p->cancelled;
        t->closed += p->closed;
        t->other += p->other;
        t->lost += n_open(p);
        mx_client_close(p->client);
    }
    if (after_us == 0)
        mx_engine_close(engine);
    free(peers);
}

static void print_tally(const tally *t)
{
    print_message("%ld requests: %ld results, %ld cancelled, %ld ended by the close, %ld by other errors, %ld with the connection\n",
                  t->sent, t->results, t->cancelled, t->closed, t->other, t->lost);
}

static void an_engine_ends_each_request_once(void **state)
{
    tally t = {0};
    (void)state;

    storm_of_peers(1, 0, &t);
    print_tally(&t);
    assert_true(t.results > 0 && t.cancelled > 0 && t.other > 0);
    assert_int_equal(t.sent, t.results + t.cancelled + t.other);
}

static void an_engine_that_is_closed_ends_each_request_once(void **state)
{
    int64_t begin = mx_now_ns();
    uint64_t random = 5;
    tally t = {0};
    int rounds = 0;
    (void)state;

    for (; rounds < 5 || (ms_since(begin) < STORM_MS && rounds < 200); rounds++)
        storm_of_peers(100 + (uint64_t)rounds, 1 + random_of(&random, rounds % 4 ? 30000 : 500), &t);
    print_message("%d engines; ", rounds);
    print_tally(&t);
    assert_true(t.results > 0 && t.cancelled > 0 && t.closed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_scheduler_ends_each_request_once),
        cmocka_unit_test(a_scheduler_is_closed_at_any_moment),
        cmocka_unit_test(an_engine_ends_each_request_once),
        cmocka_unit_test(an_engine_that_is_closed_ends_each_request_once),
    };

    return cmocka_run_group_tests(tests, write_model_file, remove_model_file);
}
