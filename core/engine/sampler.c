/*
 * sampler.c: logits to a token, in the order that sampler.h gives.
 *
 * logit_bias and penalties change logits in place. What remains works on a list of candidates:
 * top_k fills it through a heap of k, so that one pass over the vocabulary is all it costs; without
 * top_k the list is the vocabulary, and top_p sorts only those that can be among its most likely
 * ones. A list is sorted by falling logit, then rising id, or, where no step needs that, in order
 * of id: either way a function of the logits alone.
 *
 * Probabilities of top_p and min_p are the softmax at temperature 1 of the candidates that are
 * left; temperature comes last. NaN counts as minus infinity, and plus infinity as the largest
 * float: no file's logits can do worse than choose oddly.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "sampler.h"

#define LOGPROB_MIN (-9999.0f) /* of a token that the model rules out: JSON holds no infinity */

typedef struct {
    int32_t id;
    float logit;
} candidate;

struct mx_sampler {
    int n_vocab;
    candidate *list; /* [n_vocab] */
    float *raw;      /* [n_vocab] logits as they came, for logprobs */
    int32_t *count;  /* [n_vocab] zero between calls */
};

void mx_sampling_default(mx_sampling *sampling)
{
    *sampling = (mx_sampling){
        .temperature = 0.2f,
        .top_k = 40,
        .top_p = 0.9f,
        .repeat_penalty = 1.1f,
        .repeat_last_n = 64,
        .top_logprobs = -1,
    };
}

mx_status mx_sampler_open(int n_vocab, mx_sampler **sampler, mx_error *error)
{
    mx_sampler *s = calloc(1, sizeof *s);
    size_t n = (size_t)n_vocab;

    *sampler = NULL;
    if (s) {
        s->n_vocab = n_vocab;
        s->list = malloc(n * sizeof *s->list);
        s->raw = malloc(n * sizeof *s->raw);
        s->count = calloc(n, sizeof *s->count);
    }
    if (!s || !s->list || !s->raw || !s->count) {
        mx_sampler_close(s);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a sampler of %d pieces", n_vocab);
    }
    *sampler = s;
    return MX_OK;
}

void mx_sampler_close(mx_sampler *s)
{
    if (!s)
        return;
    free(s->list);
    free(s->raw);
    free(s->count);
    free(s);
}

/* ---- Logits -----------------------------------------------------------------------------------*/

static float clean(float logit)
{
    if (isnan(logit))
        return -INFINITY;
    return logit > FLT_MAX ? FLT_MAX : logit;
}

static void apply_bias(const mx_sampling *o, float *logits)
{
    for (int i = 0; i < o->n_logit_bias; i++) {
        float *logit = &logits[o->logit_bias[i].id];
        *logit = clean(*logit + o->logit_bias[i].bias);
    }
}

/* Every token of the window once, however often it is there. */
static void penalize_repetition(mx_sampler *s, const mx_sampling *o, float *logits,
                                const int32_t *window, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float *logit = &logits[window[i]];
        if (s->count[window[i]]++ > 0)
            continue;
        *logit = clean(*logit > 0 ? *logit / o->repeat_penalty : *logit * o->repeat_penalty);
    }
    for (size_t i = 0; i < n; i++)
        s->count[window[i]] = 0;
}

/* Every generated token once, by how often it was generated. */
static void penalize_presence(mx_sampler *s, const mx_sampling *o, float *logits,
                              const int32_t *generated, size_t n)
{
    for (size_t i = 0; i < n; i++)
        s->count[generated[i]]++;
    for (size_t i = 0; i < n; i++) {
        int32_t id = generated[i];
        if (s->count[id] == 0)
            continue;
        logits[id] =
            clean(logits[id] - o->presence_penalty - o->frequency_penalty * (float)s->count[id]);
        s->count[id] = 0;
    }
}

static void penalize(mx_sampler *s, const mx_sampling *o, float *logits, const int32_t *history,
                     size_t n_history, size_t n_generated)
{
    size_t window = n_history;

    if (o->repeat_last_n >= 0 && (size_t)o->repeat_last_n < n_history)
        window = (size_t)o->repeat_last_n;
    if (o->repeat_penalty != 1)
        penalize_repetition(s, o, logits, history + n_history - window, window);
    if (o->presence_penalty != 0 || o->frequency_penalty != 0)
        penalize_presence(s, o, logits, history + n_history - n_generated, n_generated);
}

static int32_t argmax(const float *logits, int n)
{
    int32_t best = 0;

    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* ---- Candidates -------------------------------------------------------------------------------*/

static bool better(candidate a, candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int by_rank(const void *a, const void *b)
{
    const candidate *x = a, *y = b;

    return better(*x, *y) ? -1 : better(*y, *x) ? 1 : 0;
}

static void sort(candidate *list, int n)
{
    qsort(list, (size_t)n, sizeof *list, by_rank);
}

/* Restores a heap of n (the worst of them at 0) after its element i has become better. */
static void sift_down(candidate *heap, int n, int i)
{
    candidate moved = heap[i];

    while (2 * i + 1 < n) {
        int child = 2 * i + 1;
        if (child + 1 < n && better(heap[child], heap[child + 1]))
            child++;
        if (better(heap[child], moved))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

/* Fills list with the k best, sorted. */
static void take_best(candidate *list, int k, const float *logits, int n_vocab)
{
    for (int i = 0; i < k; i++)
        list[i] = (candidate){i, logits[i]};
    for (int i = k / 2 - 1; i >= 0; i--)
        sift_down(list, k, i);
    for (int i = k; i < n_vocab; i++)
        if (logits[i] > list[0].logit) { /* an equal one has the higher id */
            list[0] = (candidate){i, logits[i]};
            sift_down(list, k, 0);
        }
    sort(list, k);
}

/* exp(logit - max): the largest probability is 1, the others are relative to it. */
static double relative(float logit, float max)
{
    return exp((double)logit - (double)max);
}

static double total_mass(const candidate *list, int n, float max)
{
    double total = 0;

    for (int i = 0; i < n; i++)
        total += relative(list[i].logit, max);
    return total;
}

/* Keeps those whose relative probability is at least `least`; there is always one. */
static int drop_unlikely(candidate *list, int n, float max, double least)
{
    int kept = 0;

    for (int i = 0; i < n; i++)
        if (relative(list[i].logit, max) >= least)
            list[kept++] = list[i];
    return kept;
}

/* The fewest most likely candidates whose probabilities together reach top_p. */
static int cut_top_p(candidate *list, int n, float max, float top_p, bool sorted)
{
    double total = total_mass(list, n, max), mass = 0;

    if (!sorted) {
        /* All those below (1 - top_p) / n together are less than 1 - top_p: the cut comes before
         * any of them, and they need no sorting. Half of that leaves room for rounding. */
        n = drop_unlikely(list, n, max, 0.5 * (1 - (double)top_p) / n * total);
        sort(list, n);
    }
    for (int i = 0; i < n; i++) {
        mass += relative(list[i].logit, max);
        if (mass >= (double)top_p * total)
            return i + 1;
    }
    return n;
}

/* ---- The draw ---------------------------------------------------------------------------------*/

/* The output function of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
 * Generators, 2014). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* In [0, 1). Number `index` of the splitmix64 sequence whose key is number `choice` of the one that
 * starts at the seed: a counter, not a state, so that a request that is computed again draws the
 * same. */
static double uniform(uint64_t seed, int choice, size_t index)
{
    const uint64_t golden = 0x9e3779b97f4a7c15u;
    uint64_t key = mix(seed + golden * ((uint64_t)choice + 1));

    return (double)(mix(key + golden * ((uint64_t)index + 1)) >> 11) * 0x1p-53;
}

static int32_t draw(const candidate *list, int n, float max, float temperature, double u)
{
    double total = 0, mass = 0;
    int last = 0; /* of those that can be drawn at all: for u * total rounded up to the total */

    for (int i = 0; i < n; i++)
        total += exp(((double)list[i].logit - (double)max) / (double)temperature);
    for (int i = 0; i < n; i++) {
        double p = exp(((double)list[i].logit - (double)max) / (double)temperature);
        mass += p;
        if (p > 0)
            last = i;
        if (mass > u * total)
            return list[i].id;
    }
    return list[last].id;
}

/* ---- Log-probabilities ------------------------------------------------------------------------*/

static float logprob_of(float logit, float max, double log_total)
{
    double p = (double)logit - (double)max - log_total;

    return p > (double)LOGPROB_MIN ? (float)p
                                   : LOGPROB_MIN; /* also where all logits are minus infinity */
}

/* Of `chosen` and the best alternatives, from the logits as they came. Uses the list. */
static void report(mx_sampler *s, int top, int32_t chosen, mx_logprobs *logprobs)
{
    float max = s->raw[argmax(s->raw, s->n_vocab)];
    double total = 0;

    for (int i = 0; i < s->n_vocab; i++)
        total += relative(s->raw[i], max);
    total = log(total);
    if (top > s->n_vocab)
        top = s->n_vocab;
    logprobs->logprob = logprob_of(s->raw[chosen], max, total);
    logprobs->n_top = top;
    if (top > 0)
        take_best(s->list, top, s->raw, s->n_vocab);
    for (int i = 0; i < top; i++) {
        logprobs->top_id[i] = s->list[i].id;
        logprobs->top_logprob[i] = logprob_of(s->list[i].logit, max, total);
    }
}

/* ---- All of it --------------------------------------------------------------------------------*/

static int32_t pick(mx_sampler *s, const mx_sampling *o, const float *logits, double u)
{
    bool sorted = o->top_k > 0 && o->top_k < s->n_vocab;
    int n = sorted ? o->top_k : s->n_vocab;
    float max;

    if (o->temperature <= 0)
        return argmax(logits, s->n_vocab);
    if (sorted) {
        take_best(s->list, n, logits, s->n_vocab);
        max = s->list[0].logit;
    } else {
        for (int i = 0; i < n; i++)
            s->list[i] = (candidate){i, logits[i]};
        max = logits[argmax(logits, n)];
    }
    if (max == -INFINITY) /* nothing is possible: any answer will do */
        return s->list[0].id;
    if (o->top_p < 1)
        n = cut_top_p(s->list, n, max, o->top_p, sorted);
    if (o->min_p > 0)
        n = drop_unlikely(s->list, n, max, (double)o->min_p);
    return draw(s->list, n, max, o->temperature, u);
}

int32_t mx_sampler_pick(mx_sampler *s, const mx_sampling *sampling, float *logits,
                        const int32_t *history, size_t n_history, size_t n_generated, int choice,
                        mx_logprobs *logprobs)
{
    bool want_logprobs = logprobs && sampling->top_logprobs >= 0;
    int32_t id;

    for (int i = 0; i < s->n_vocab; i++)
        logits[i] = clean(logits[i]);
    if (want_logprobs)
        memcpy(s->raw, logits, (size_t)s->n_vocab * sizeof *logits);
    apply_bias(sampling, logits);
    penalize(s, sampling, logits, history, n_history, n_generated);
    id = pick(s, sampling, logits, uniform(sampling->seed, choice, n_generated));
    if (want_logprobs)
        report(s, sampling->top_logprobs, id, logprobs);
    return id;
}
