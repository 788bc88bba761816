/*
 * test_sampler.c: each step of sampling on logits made for it, and all of them against a plain
 * reference.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../../core/engine/sampler.h"

#define N 8

/* Greedy, and everything else off: tests turn on what they test. */
static mx_sampling plain(void)
{
    mx_sampling o;

    mx_sampling_default(&o);
    o.temperature = 0;
    o.top_k = 0;
    o.top_p = 1;
    o.repeat_penalty = 1;
    return o;
}

static mx_sampler *open_sampler(int n_vocab)
{
    mx_sampler *s;
    mx_error error;

    assert_int_equal(mx_sampler_open(n_vocab, &s, &error), MX_OK);
    return s;
}

/* What it picks from N logits; `index` is the number of generated tokens, whose ids are of no
 * account. */
static int32_t pick(const mx_sampling *o, const float logits[N], size_t index)
{
    static const int32_t history[4096];
    mx_sampler *s = open_sampler(N);
    float copy[N];

    memcpy(copy, logits, sizeof copy);
    int32_t id = mx_sampler_pick(s, o, copy, history, index, index, 0, NULL);
    mx_sampler_close(s);
    return id;
}

static void defaults_are_chinese_mixtral(void **state)
{
    mx_sampling o;
    (void)state;

    mx_sampling_default(&o);
    assert_float_equal(o.temperature, 0.2, 1e-6);
    assert_int_equal(o.top_k, 40);
    assert_float_equal(o.top_p, 0.9, 1e-6);
    assert_float_equal(o.min_p, 0, 0);
    assert_float_equal(o.repeat_penalty, 1.1, 1e-6);
    assert_int_equal(o.repeat_last_n, 64);
    assert_int_equal(o.top_logprobs, -1);
    mx_sampler_close(NULL);
}

static void greedy_takes_the_best_and_lowest(void **state)
{
    const float one[N] = {0, 1, 5, 2, -1, 4, 3, 0}, tie[N] = {0, 1, 1, 5, 5, 5, 2, 5};
    mx_sampling o = plain();
    (void)state;

    assert_int_equal(pick(&o, one, 0), 2);
    assert_int_equal(pick(&o, tie, 0), 3);
}

static void nonsense_logits_are_survived(void **state)
{
    const float nan_first[N] = {NAN, NAN, 1, 2, NAN, 0, 0, NAN};
    const float infinite[N] = {-INFINITY, INFINITY, 0, INFINITY, 0, 0, 0, NAN};
    const float none[N] = {NAN,       -INFINITY, -INFINITY, NAN,
                           -INFINITY, -INFINITY, -INFINITY, -INFINITY};
    mx_sampling o = plain();
    mx_sampling drawn[4];
    (void)state;

    assert_int_equal(pick(&o, nan_first, 0), 3);
    assert_int_equal(pick(&o, infinite, 0), 1);
    assert_int_equal(pick(&o, none, 0), 0);
    for (int i = 0; i < 4; i++) {
        drawn[i] = plain();
        drawn[i].temperature = 0.7f;
        drawn[i].top_k = i & 1 ? 3 : 0;
        drawn[i].top_p = i & 2 ? 0.9f : 1;
        drawn[i].min_p = 0.01f;
        for (size_t index = 0; index < 50; index++) {
            int32_t id = pick(&drawn[i], infinite, index);
            assert_true(id == 1 || id == 3);
            assert_int_equal(pick(&drawn[i], none, index), 0);
            id = pick(&drawn[i], nan_first, index);
            assert_true(id == 2 || id == 3 || id == 5 || id == 6);
        }
    }
}

static void bias_comes_before_penalties(void **state)
{
    const float logits[N] = {1, 2, 3, 4, 0, 0, 0, 0};
    mx_logit_bias up[] = {{1, 100}}, down[] = {{3, -100}, {2, -INFINITY}};
    mx_sampling o = plain();
    (void)state;

    o.logit_bias = up;
    o.n_logit_bias = 1;
    assert_int_equal(pick(&o, logits, 0), 1);
    o.logit_bias = down;
    o.n_logit_bias = 2;
    assert_int_equal(pick(&o, logits, 0), 1);

    /* 2 + 1.5 = 3.5 is divided by 2 to 1.75 < 1.8; penalised first it would be 2 / 2 + 1.5 = 2.5.
     */
    const float order[N] = {0, 2, 1.8f, 0, 0, 0, 0, 0};
    mx_logit_bias some[] = {{1, 1.5f}};
    const int32_t history[] = {1};
    mx_sampler *s = open_sampler(N);
    float copy[N];
    o.logit_bias = some;
    o.n_logit_bias = 1;
    o.repeat_penalty = 2;
    memcpy(copy, order, sizeof copy);
    assert_int_equal(mx_sampler_pick(s, &o, copy, history, 1, 0, 0, NULL), 2);
    mx_sampler_close(s);
}

/* The penalised logits themselves: pick leaves them in place. */
static void penalties_change_logits(void **state)
{
    const int32_t history[] = {5, 1, 1, 2, 3, 3, 4}; /* the last 3 generated */
    const float logits[N] = {1, 2, -2, 4, 0, 8, 1, 1};
    mx_sampler *s = open_sampler(N);
    mx_sampling o = plain();
    float x[N];
    (void)state;

    o.repeat_penalty = 2;
    o.repeat_last_n = 5; /* 1 2 3 3 4: 5 is out of sight */
    memcpy(x, logits, sizeof x);
    assert_int_equal(mx_sampler_pick(s, &o, x, history, 7, 3, 0, NULL), 5);
    const float repeated[N] = {1, 1, -4, 2, 0, 8, 1, 1};
    assert_memory_equal(x, repeated, sizeof x);

    o.repeat_last_n = -1; /* the whole history */
    memcpy(x, logits, sizeof x);
    mx_sampler_pick(s, &o, x, history, 7, 3, 0, NULL);
    assert_float_equal(x[5], 4, 0);

    o.repeat_last_n = 0;
    memcpy(x, logits, sizeof x);
    mx_sampler_pick(s, &o, x, history, 7, 3, 0, NULL);
    assert_memory_equal(x, logits, sizeof x);

    o.repeat_penalty = 1;
    o.presence_penalty = 0.5f; /* generated: 3 3 4 */
    o.frequency_penalty = 0.25f;
    memcpy(x, logits, sizeof x);
    mx_sampler_pick(s, &o, x, history, 7, 3, 0, NULL);
    const float counted[N] = {1, 2, -2, 4 - 0.5f - 2 * 0.25f, 0 - 0.5f - 0.25f, 8, 1, 1};
    assert_memory_equal(x, counted, sizeof x);
    mx_sampler_close(s);
}

/* ---- Against a reference ----------------------------------------------------------------------*/

typedef struct {
    int id;
    double p; /* at temperature 1, relative to the best: exp(logit - max) */
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;

    return x->p > y->p ? -1 : x->p < y->p ? 1 : x->id - y->id;
}

/* Probability of every id as sampler.h says, by sorting everything at every step. */
static void reference(const mx_sampling *o, const float *logits, int n, double *out)
{
    ranked *list = calloc((size_t)n, sizeof *list);
    double max = -INFINITY, total = 0, mass = 0;
    int left = n;

    assert_non_null(list);
    for (int i = 0; i < n; i++)
        max = fmax(max, (double)logits[i]);
    for (int i = 0; i < n; i++)
        list[i] = (ranked){i, exp((double)logits[i] - max)};
    qsort(list, (size_t)n, sizeof *list, by_rank);
    if (o->top_k > 0 && o->top_k < n)
        left = o->top_k;
    for (int i = 0; i < left; i++)
        total += list[i].p;
    for (int i = 0; i < left && o->top_p < 1; i++) {
        mass += list[i].p;
        if (mass >= (double)o->top_p * total)
            left = i + 1;
    }
    while (left > 1 && list[left - 1].p < (double)o->min_p)
        left--;
    total = 0;
    memset(out, 0, (size_t)n * sizeof *out);
    for (int i = 0; i < left; i++)
        total += out[list[i].id] = pow(list[i].p, 1 / (double)o->temperature);
    for (int i = 0; i < n; i++)
        out[i] /= total;
    free(list);
}

#define VOCAB 300
#define DRAWS 6000

/* Draws follow the reference's distribution: nothing outside its support, and frequencies within
 * five standard deviations. */
static void follows_reference(const mx_sampling *o, float spread, unsigned seed)
{
    static float logits[VOCAB], copy[VOCAB];
    static double p[VOCAB];
    static int32_t history[DRAWS];
    static int count[VOCAB];
    mx_sampler *s = open_sampler(VOCAB);

    srand(seed);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = spread * (float)(rand() % 1000) / 1000; /* with ties */
    reference(o, logits, VOCAB, p);
    memset(count, 0, sizeof count);
    for (size_t i = 0; i < DRAWS; i++) {
        memcpy(copy, logits, sizeof copy);
        count[mx_sampler_pick(s, o, copy, history, i, i, 0, NULL)]++;
    }
    for (int i = 0; i < VOCAB; i++) {
        if (p[i] == 0)
            assert_int_equal(count[i], 0);
        assert_true(fabs(count[i] - DRAWS * p[i]) <= 5 * sqrt(DRAWS * p[i] * (1 - p[i])) + 1);
    }
    mx_sampler_close(s);
}

static void draws_follow_the_distribution(void **state)
{
    static const struct {
        float temperature, top_p, min_p;
        int top_k;
    } cases[] = {
        {1, 1, 0, 0},         {0.5f, 1, 0, 0},       {2, 1, 0, 5},       {1, 0.9f, 0, 0},
        {1, 0.5f, 0, 40},     {1, 1, 0.2f, 0},       {0.7f, 1, 0.5f, 9}, {1.5f, 0.8f, 0.1f, 100},
        {1, 0, 0, 0},         {1, 0, 0, 7},          {1, 1, 1, 0},       {0.2f, 0.9f, 0, 40},
        {3, 0.99f, 0.05f, 0}, {1, 0.9999f, 0, 1000},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_sampling o = plain();
        o.temperature = cases[i].temperature;
        o.top_p = cases[i].top_p;
        o.min_p = cases[i].min_p;
        o.top_k = cases[i].top_k;
        o.seed = 42 + i;
        follows_reference(&o, 12, (unsigned)i);
        follows_reference(&o, 1, (unsigned)i + 100);
    }
}

/* ---- Random numbers ---------------------------------------------------------------------------*/

static int sequence_of(uint64_t seed, int choice, int32_t *ids, int n)
{
    static const int32_t history[256];
    mx_sampler *s = open_sampler(1000);
    mx_sampling o = plain();
    int sum = 0;

    o.temperature = 1;
    o.seed = seed;
    for (int i = 0; i < n; i++) {
        float logits[1000] = {0};
        ids[i] = mx_sampler_pick(s, &o, logits, history, (size_t)(20 + i), (size_t)i, choice, NULL);
        sum += ids[i];
    }
    mx_sampler_close(s);
    return sum;
}

static int same(const int32_t *a, const int32_t *b, int n)
{
    int count = 0;

    for (int i = 0; i < n; i++)
        count += a[i] == b[i];
    return count;
}

static void draw_depends_on_seed_choice_and_index_alone(void **state)
{
    int32_t a[100], b[100];
    (void)state;

    int sum = sequence_of(7, 0, a, 100);
    assert_true(sum > 35000 && sum < 65000); /* over the whole range */
    sequence_of(7, 0, b, 100);
    assert_int_equal(same(a, b, 100), 100);
    sequence_of(8, 0, b, 100);
    assert_true(same(a, b, 100) < 5);
    sequence_of(7, 1, b, 100);
    assert_true(same(a, b, 100) < 5);
    assert_true(same(a, a + 1, 99) < 5);
    /* These ids are part of what "same seed, same text" promises across versions. */
    sequence_of(0, 0, a, 4);
    const int32_t known[4] = {652, 701, 387, 656};
    assert_memory_equal(a, known, sizeof known);
}

/* ---- Log-probabilities ------------------------------------------------------------------------*/

static void logprobs_are_of_the_raw_distribution(void **state)
{
    float logits[N] = {0, 1, 5, 2, -1, 4, 3, NAN};
    const int32_t history[] = {2};
    mx_logit_bias bias[] = {{4, 100}};
    mx_sampler *s = open_sampler(N);
    mx_sampling o = plain();
    mx_logprobs l = {0};
    double total = 0;
    (void)state;

    for (int i = 0; i < 7; i++)
        total += exp((double)logits[i]);
    o.logit_bias = bias;
    o.n_logit_bias = 1;
    o.repeat_penalty = 2;
    o.top_logprobs = 3;
    assert_int_equal(mx_sampler_pick(s, &o, logits, history, 1, 1, 0, &l), 4);
    assert_float_equal(l.logprob, -1 - log(total), 1e-5);
    assert_int_equal(l.n_top, 3);
    assert_int_equal(l.top_id[0], 2);
    assert_int_equal(l.top_id[1], 5);
    assert_int_equal(l.top_id[2], 6);
    assert_float_equal(l.top_logprob[0], 5 - log(total), 1e-5);
    assert_float_equal(l.top_logprob[2], 3 - log(total), 1e-5);

    float again[N] = {0, 1, 5, 2, -1, 4, 3, NAN};
    mx_logit_bias impossible[] = {{7, 1e30f}};
    o.logit_bias = impossible;
    o.top_logprobs = 20; /* more than there are pieces */
    mx_sampler_pick(s, &o, again, history, 1, 1, 0, &l);
    assert_int_equal(l.n_top, N);
    assert_int_equal(l.top_id[N - 1], 7);
    assert_float_equal(l.top_logprob[N - 1], -9999, 0); /* finite */
    mx_sampler_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_chinese_mixtral),
        cmocka_unit_test(greedy_takes_the_best_and_lowest),
        cmocka_unit_test(nonsense_logits_are_survived),
        cmocka_unit_test(bias_comes_before_penalties),
        cmocka_unit_test(penalties_change_logits),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(draw_depends_on_seed_choice_and_index_alone),
        cmocka_unit_test(logprobs_are_of_the_raw_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
