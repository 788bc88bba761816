/*
 * sampler.h: from logits to a token.
 *
 * Order: logit_bias, penalties, top_k, top_p, min_p, temperature. Repetition divides positive and multiplies negative logits of
 * the last repeat_last_n tokens, prompt included; presence and frequency count generated tokens only. Ties go to the lower
 * id. The random number of a token is a function of (seed, choice, index of the token) alone. A sampler is one thread's at a time.
 */
#ifndef MX_ENGINE_SAMPLER_H
#define MX_ENGINE_SAMPLER_H

#include <stdbool.h>
#include "../mx.h"

typedef struct {
    int32_t id;
    float bias;
} mx_logit_bias;

typedef struct { /* defaults are Chinese-Mixtral's: mx_sampling_default */
    float temperature;       /* 0: greedy; 0 .. 100; default 0.2 */
    int top_k;               /* 0: all; default 40 */
    float top_p;             /* 0 .. 1; default 0.9 */
    float min_p;             /* 0 .. 1; default 0 */
    float repeat_penalty;    /* > 0; 1: none; default 1.1 */
    int repeat_last_n;       /* 0: none, -1: the whole context; default 64 */
    float presence_penalty;  /* -2 .. 2; default 0 */
    float frequency_penalty; /* -2 .. 2; default 0 */
    uint64_t seed;
    int top_logprobs;        /* -1: no logprobs; 0: of the chosen token; up to 20: and of so many alternatives */
    mx_logit_bias *logit_bias; /* [n_logit_bias] */
    int n_logit_bias;
} mx_sampling;

void mx_sampling_default(mx_sampling *sampling);

#define MX_TOP_LOGPROBS_MAX 20

typedef struct { /* log-probabilities of the model's distribution before any of the steps above */
    float logprob;                              /* of the chosen token */
    int n_top;
    int32_t top_id[MX_TOP_LOGPROBS_MAX];
    float top_logprob[MX_TOP_LOGPROBS_MAX];
} mx_logprobs;

typedef struct mx_sampler mx_sampler; /* scratch for one vocabulary; serves any number of requests in turn */

mx_status mx_sampler_open(int n_vocab, mx_sampler **sampler, mx_error *error);
void mx_sampler_close(mx_sampler *sampler); /* takes NULL */

/*
 * Picks the next token. logits [n_vocab] are overwritten. history [n_history]: prompt then generated tokens, the last n_generated
 * of them generated. `choice` is the request's choice (option n). logprobs may be NULL.
 */
int32_t mx_sampler_pick(mx_sampler *sampler, const mx_sampling *sampling, float *logits, const int32_t *history, size_t n_history,
                        size_t n_generated, int choice, mx_logprobs *logprobs);

#endif
