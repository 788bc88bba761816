/*
 * forward.h: one step of the model over a batch of tokens from any number of sequences.
 *
 * The batch carries each token's sequence, position and class; the sequences' keys and values lie in the pool's blocks.
 * A step allocates nothing: its arena is sized at open by the token budget. One step at a time, from the scheduler's thread.
 */
#ifndef MX_ENGINE_FORWARD_H
#define MX_ENGINE_FORWARD_H

#include <stdbool.h>
#include "../math/thread_pool.h"
#include "../model/weights.h"
#include "kv_pool.h"

typedef enum {
    MX_CLASS_PROMPT, /* prompt text: panel kernels */
    MX_CLASS_DECODE  /* generated tokens and the text of assistant turns: dot kernels */
} mx_token_class;

enum { MX_WANT_LOGITS = 1, MX_WANT_HIDDEN = 2 };

typedef struct { /* tokens of a sequence are adjacent and in order of position; positions have their blocks */
    int n_tokens;                       /* 1 .. max_tokens */
    const int32_t *token;               /* [n_tokens] ids, 0 .. n_vocab-1 */
    const int32_t *position;            /* [n_tokens] */
    const int32_t *sequence;            /* [n_tokens] index into blocks */
    const uint8_t *token_class;         /* [n_tokens] mx_token_class */
    const uint8_t *want;                /* [n_tokens] MX_WANT_*; 0: only its keys and values */
    const int32_t *const *blocks;       /* [n_sequences] pool blocks: position p lies in blocks[s][p / MX_KV_SPAN] */
} mx_batch;

typedef struct mx_forward mx_forward;

/* `model`, `pool` and `threads` stay the caller's and outlive the forward. max_wants bounds the tokens with MX_WANT_LOGITS a step. */
mx_status mx_forward_open(const mx_model *model, const mx_kernels *kernels, mx_threads *threads, mx_kv_pool *pool,
                          int max_tokens, mx_forward **forward, mx_error *error);
void mx_forward_close(mx_forward *forward); /* takes NULL */
int mx_forward_max_tokens(const mx_forward *forward);

/*
 * Runs one step. logits [number of tokens with MX_WANT_LOGITS][n_vocab] and hidden [number with MX_WANT_HIDDEN][dim] (after the
 * output norm) are filled in the order of the batch; either may be NULL where no token wants it.
 * `abandoned` (may be NULL) is asked many times, by the calling thread: once it says true the step ends early with MX_CANCELLED and
 * its results and the keys of its tokens are worthless.
 */
mx_status mx_forward_step(mx_forward *forward, const mx_batch *batch, float *logits, float *hidden,
                          bool (*abandoned)(void *arg), void *arg);

#endif
