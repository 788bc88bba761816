/*
 * runner.h: one sequence through the forward pass, without scheduler and sockets: what `logits` and `bench` measure.
 */
#ifndef MX_CLI_RUNNER_H
#define MX_CLI_RUNNER_H

#include "../engine/forward.h"

enum { RUNNER_CHUNK = 512 }; /* prompt tokens a step, as the scheduler takes when nobody streams */

typedef struct {
    mx_model *model;
    const mx_kernels *kernels;
    mx_threads *threads;
    mx_kv_pool *pool;
    mx_forward *forward;
    int32_t *blocks; /* [n_tokens / MX_KV_SPAN rounded up] */
    int length;      /* tokens read so far */
    int n_tokens;    /* room */
} mx_runner;

/* Room for n_tokens. kernels NULL: the best; kv_type NULL: f16; threads 0: the default. */
mx_status mx_runner_open(const char *path, const char *kernels, const char *kv_type, int threads, int n_tokens, mx_runner *r,
                         mx_error *error);
void mx_runner_close(mx_runner *r);

/* Reads n <= RUNNER_CHUNK further tokens of one class; logits [n][n_vocab] of each, or NULL for none but the last, which then go to
 * last [n_vocab] where that is not NULL. */
void mx_runner_read(mx_runner *r, const int32_t *tokens, int n, mx_token_class token_class, float *logits, float *last);

#endif
