/*
 * scheduling.h: what the tests of the scheduler share: a tiny mixture of random weights, a sink that remembers, and requests of
 * random ids. Each program that includes it is one translation unit.
 */
#ifndef MX_TESTS_SCHEDULING_H
#define MX_TESTS_SCHEDULING_H

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/engine/scheduler.h"
#include "../../core/model/synth.h"

#define CONTEXT 1024
#define EOS 2

static mx_model *model;
static mx_tokenizer *tokenizer;

static int open_model(void **state)
{
    mx_synth_options o = mx_synth_defaults();
    char path[] = "/tmp/mixtral-scheduler-XXXXXX";
    mx_error error = {0};
    mx_status status;
    (void)state;

    o.layers = 2;
    o.dim = 64;
    o.ff = 64;
    o.heads = 4;
    o.kv_heads = 2;
    o.experts = 4;
    o.experts_used = 2;
    o.vocab_size = 600;
    o.context = CONTEXT;
    o.type = MX_TYPE_Q8_0;
    int fd = mkstemp(path);
    if (fd < 0 || close(fd) != 0)
        return -1;
    status = mx_synth_model(path, &o, &error);
    if (status == MX_OK)
        status = mx_model_open(path, &model, &error);
    if (status == MX_OK)
        status = mx_tokenizer_open(model->gguf, &tokenizer, &error);
    unlink(path);
    if (status != MX_OK)
        print_error("%s\n", error.text);
    return status == MX_OK ? 0 : -1;
}

static int close_model(void **state)
{
    (void)state;
    mx_tokenizer_close(tokenizer);
    mx_model_close(model);
    return 0;
}

static mx_kv_shape shape_of_model(void)
{
    const mx_hparams *h = &model->hparams;

    return (mx_kv_shape){h->n_layers, h->n_kv_heads, h->head_dim, MX_KV_F16};
}

typedef struct {
    int threads, blocks, context, max_queue;
} setup;

static const setup roomy = {.threads = 1, .blocks = 1000, .context = CONTEXT, .max_queue = 256};

static mx_scheduler *open_scheduler_with(setup u, int max_step_ms)
{
    mx_kv_shape shape = shape_of_model();
    mx_scheduler_options o = {
        .model = model,
        .tokenizer = tokenizer,
        .kernels = mx_kernels_get(NULL),
        .threads = u.threads,
        .context = u.context,
        .kv_pool_bytes = u.blocks * (int64_t)mx_kv_block_bytes(&shape),
        .max_queue = u.max_queue,
        .max_step_ms = max_step_ms,
    };
    mx_scheduler *s;
    mx_error error;

    assert_int_equal(mx_scheduler_open(&o, &s, &error), MX_OK);
    return s;
}

static mx_scheduler *open_scheduler(setup u)
{
    return open_scheduler_with(u, 250);
}

/* ---- A listener: a sink that remembers --------------------------------------------------------------*/

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool paused, ended, signals_blocked;
    int pause_at; /* pieces; 0: never */
    int pieces, late; /* late: after the end */
    char *streamed[MX_CHOICES_MAX];
    /* of the end */
    mx_error error; /* status MX_OK: an outcome */
    char *text[MX_CHOICES_MAX];
    mx_finish finish[MX_CHOICES_MAX];
    int n_choices, n_logprobs, prompt_tokens, cached_tokens, completion_tokens, choice_tokens[MX_CHOICES_MAX];
    int32_t ids[CONTEXT];
    float *embedding;
    double first_token_ms, total_ms;
    uint64_t seed;
} listener;

static bool on_piece(void *arg, int choice, const char *text, size_t bytes)
{
    listener *l = arg;
    sigset_t mask;

    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    pthread_mutex_lock(&l->lock);
    char *old = l->streamed[choice];
    size_t n = old ? strlen(old) : 0;
    char *grown = realloc(old, n + bytes + 1);
    if (grown) {
        memcpy(grown + n, text, bytes);
        grown[n + bytes] = '\0';
        l->streamed[choice] = grown;
    }
    l->pieces++;
    l->paused |= l->pieces == l->pause_at;
    l->late += l->ended;
    l->signals_blocked = sigismember(&mask, SIGINT) && sigismember(&mask, SIGALRM);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    return grown != NULL;
}

static void on_end(void *arg, const mx_outcome *o, const mx_error *error)
{
    listener *l = arg;

    pthread_mutex_lock(&l->lock);
    if (error)
        l->error = *error;
    if (o) {
        l->n_choices = o->n_choices;
        l->prompt_tokens = o->prompt_tokens;
        l->cached_tokens = o->cached_tokens;
        l->completion_tokens = o->completion_tokens;
        l->first_token_ms = o->first_token_ms;
        l->total_ms = o->total_ms;
        l->seed = o->seed;
        for (int i = 0; i < o->n_choices; i++) {
            l->text[i] = strdup(o->choices[i].text);
            l->finish[i] = o->choices[i].finish;
            l->choice_tokens[i] = o->choices[i].completion_tokens;
        }
        if (o->n_choices > 0 && (l->n_logprobs = o->choices[0].n_logprobs) > 0)
            memcpy(l->ids, o->choices[0].token, (size_t)l->n_logprobs * sizeof(int32_t));
        if (o->embedding && (l->embedding = malloc((size_t)o->dim * sizeof(float))))
            memcpy(l->embedding, o->embedding, (size_t)o->dim * sizeof(float));
    }
    l->late += l->ended;
    l->ended = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

static bool is_paused(void *arg)
{
    listener *l = arg;

    pthread_mutex_lock(&l->lock);
    bool paused = l->paused;
    pthread_mutex_unlock(&l->lock);
    return paused;
}

static listener *new_listener(void)
{
    listener *l = calloc(1, sizeof *l);

    assert_non_null(l);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    return l;
}

static void free_listener(listener *l)
{
    assert_int_equal(l->late, 0);
    for (int i = 0; i < MX_CHOICES_MAX; i++) {
        free(l->text[i]);
        free(l->streamed[i]);
    }
    free(l->embedding);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->changed);
    free(l);
}

static void set_paused(listener *l, bool paused)
{
    pthread_mutex_lock(&l->lock);
    l->paused = paused;
    pthread_mutex_unlock(&l->lock);
}

/* Until it has so many pieces (0: until its end); a minute at most. */
static void wait_for(listener *l, int pieces)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&l->lock);
    while (!l->ended && (pieces == 0 || l->pieces < pieces) && rc == 0)
        rc = pthread_cond_timedwait(&l->changed, &l->lock, &until);
    pthread_mutex_unlock(&l->lock);
    assert_int_equal(rc, 0);
}

/* ---- Requests ---------------------------------------------------------------------------------------*/

typedef struct {
    int32_t tokens[CONTEXT];
    uint8_t classes[CONTEXT];
    mx_request_spec spec;
} request;

/* A prompt of n random ids, and an answer of max_tokens: this model seldom ends a turn, and must
 * not here. */
static request *new_request(int n, int max_tokens, unsigned seed)
{
    request *r = calloc(1, sizeof *r);

    assert_non_null(r);
    srand(seed);
    r->tokens[0] = 1;
    for (int i = 1; i < n; i++) {
        r->tokens[i] = 3 + rand() % 590;
        r->classes[i] = rand() % 4 == 0 ? MX_CLASS_DECODE : MX_CLASS_PROMPT;
    }
    r->spec = (mx_request_spec){
        .tokens = r->tokens,
        .classes = r->classes,
        .n_tokens = (size_t)n,
        .n = 1,
        .max_tokens = max_tokens,
        .ignore_eos = true,
    };
    mx_sampling_default(&r->spec.sampling);
    r->spec.sampling.temperature = 1;
    r->spec.sampling.seed = seed;
    return r;
}

static uint64_t submit(mx_scheduler *s, request *r, listener *l)
{
    uint64_t handle;
    mx_error error;

    r->spec.sink = (mx_sink){.piece = on_piece, .end = on_end, .paused = is_paused, .arg = l};
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_OK);
    return handle;
}

static listener *run_alone(setup u, request *r)
{
    mx_scheduler *s = open_scheduler(u);
    listener *l = new_listener();

    submit(s, r, l);
    wait_for(l, 0);
    mx_scheduler_close(s);
    return l;
}

static void assert_same_answer(const listener *a, const listener *b)
{
    assert_int_equal(a->error.status, b->error.status);
    assert_int_equal(a->n_choices, b->n_choices);
    assert_int_equal(a->completion_tokens, b->completion_tokens);
    for (int i = 0; i < a->n_choices; i++) {
        assert_string_equal(a->text[i], b->text[i]);
        assert_string_equal(a->streamed[i] ? a->streamed[i] : "", a->text[i]);
        assert_string_equal(b->streamed[i] ? b->streamed[i] : "", b->text[i]);
        assert_int_equal(a->finish[i], b->finish[i]);
    }
}

static mx_scheduler_stats stats_of(const mx_scheduler *s)
{
    mx_scheduler_stats stats;

    mx_scheduler_get_stats(s, &stats);
    return stats;
}

/* `end` comes just before the request is gone for the counters' sake too. */
static void assert_at_rest(const mx_scheduler *s)
{
    mx_scheduler_stats t = stats_of(s);

    assert_int_equal(t.requests_running, 0);
    assert_int_equal(t.requests_waiting, 0);
    assert_int_equal(t.kv_blocks_used, 0);
    assert_int_equal(t.kv_blocks_free + t.kv_blocks_cached, t.kv_blocks_total);
}

#endif
