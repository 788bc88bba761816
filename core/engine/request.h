/*
 * request.h: a request inside the scheduler: what was asked, and its sequences, one a choice. Private to the engine.
 *
 * What was asked is copied at submission and does not change; `cancelled` is written by any thread; all else belongs to the
 * scheduler's thread from submission on. A sequence's state is its history (prompt, then generated tokens) and how much of it lies
 * in the KV pool: blocks can be given up at any time and are computed again from the history. What has gone to the sink
 * lies in its output and is not touched by that.
 */
#ifndef MX_ENGINE_REQUEST_H
#define MX_ENGINE_REQUEST_H

#include <stdatomic.h>
#include "output.h"
#include "prefix.h"
#include "scheduler.h"

typedef struct mx_sequence mx_sequence;

typedef enum { MX_LENT_NOT, MX_LENT, MX_LENT_BACK, MX_LENT_BACK_FILLED } mx_lending;

struct mx_sequence {
    mx_request *request;
    int choice;
    mx_sequence *next; /* in the scheduler's queue */
    int32_t *history;  /* [n_history of n_prompt + max_tokens]; NULL while it follows */
    int n_history;
    int32_t *blocks;   /* [n_blocks of what the longest history takes] */
    int n_blocks;
    int n_computed;    /* tokens of history whose keys and values lie in blocks */
    int take;          /* tokens of history that the step at hand computes */
    int n_named;       /* blocks that the prefix index knows, or whose contents came from it */
    int n_cached;      /* tokens that came from it */
    mx_prefix_name name; /* of block n_named - 1 */
    bool follows;      /* waits for choice 0 to compute the prompt */
    bool done;
    mx_finish finish;
    mx_output *output; /* NULL: an embedding */
    mx_logprobs *logprobs; /* [generated tokens of logprobs_capacity], where the request wants them */
    int logprobs_capacity;
};

struct mx_request {
    uint64_t handle; /* rises with submission: the lower, the older */
    mx_request *next;

    mx_session_kind session;
    bool embed, ignore_eos, cache;
    int n_prompt;
    uint8_t *classes; /* [n_prompt] */
    mx_tenant *account;    /* the host's; NULL: not counted */
    mx_prefix_key key;     /* the tenant's */
    mx_prefix_name *names; /* [n_prompt / MX_KV_SPAN] of the prompt's blocks; NULL without `cache` */
    mx_sampling sampling;
    int n, max_tokens;
    char **stop; /* [n_stop], one piece of memory */
    int timeout_ms;
    mx_sink sink;
    int64_t arrived_ns, deadline_ns; /* INT64_MAX: none */

    atomic_bool cancelled;

    atomic_int lent;        /* mx_lending, of a session's blocks */
    uint8_t **lent_blocks;  /* [n_prompt / MX_KV_SPAN] of a session */
    bool begun;             /* has left the queue once */
    bool paused;            /* as the sink said at the step's begin */
    mx_error failure;       /* status other than MX_OK: ends with it */
    int n_done;             /* choices */
    int64_t begun_ns, first_token_ns; /* 0: not yet */
    int cached_tokens;      /* of the prompt */
    int dim;
    double *sum;      /* [dim] of the hidden states so far, of an embedding */
    float *embedding; /* [dim] */
    mx_sequence sequences[MX_CHOICES_MAX]; /* [n] */
};

typedef struct {
    const mx_tokenizer *tokenizer;
    const mx_prefix *prefix;
    int n_vocab, dim;
    int context, pool_tokens; /* what one request's sequence may hold */
} mx_request_limits;

/* Checks and copies `spec`. MX_INVALID, MX_NOMEM; MX_TOO_LARGE with the numbers. */
mx_status mx_request_open(const mx_request_spec *spec, const mx_request_limits *limits, mx_request **request, mx_error *error);
void mx_request_close(mx_request *request); /* its sequences hold no blocks any more; takes NULL */

/* The last word: the outcome where error is NULL. */
void mx_request_end(mx_request *request, const mx_error *error);

/* It computes no more than its prompt: an embedding, a session. */
bool mx_request_makes_text(const mx_request *request);

/* Adds hidden [n][dim] to an embedding's sum; makes the unit vector of it. MX_CORRUPT: not finite. */
void mx_request_add_hidden(mx_request *request, const float *hidden, int n);
mx_status mx_request_finish_embedding(mx_request *request, mx_error *error);

/* ---- Sequences ---- */

int mx_blocks_for(int n_tokens);                        /* blocks that so many tokens take */
int mx_sequence_generated(const mx_sequence *sequence); /* tokens */
bool mx_sequence_older(const mx_sequence *a, const mx_sequence *b);

/* Takes from the index what it has of the history from here on, at the boundary of a block; the last token of the history is left
 * to compute, since its logits are wanted. */
void mx_sequence_adopt(mx_sequence *sequence, mx_kv_pool *pool, mx_prefix *prefix);

/* Gives names to the blocks that have become full. */
void mx_sequence_publish(mx_sequence *sequence, mx_prefix *prefix);

/* The block that `sequence` is to compute next is one that `other` is on the way to compute. */
bool mx_sequence_wants_same(const mx_sequence *sequence, const mx_sequence *other);

/* How many of its prompt's blocks are in use by others, so that it takes no room for them. */
int mx_sequence_found_in_use(const mx_sequence *sequence, const mx_kv_pool *pool, const mx_prefix *prefix);

/* Blocks for the next `take` tokens, all its own to write: a shared one that is not full is copied first. False: the pool is full. */
bool mx_sequence_grow(mx_sequence *sequence, mx_kv_pool *pool, mx_prefix *prefix);

/* Gives its blocks up: nothing of it is computed any more. */
void mx_sequence_release(mx_sequence *sequence, mx_prefix *prefix);

/* A choice that follows goes on by itself, from choice 0's blocks, which hold just the prompt. MX_NOMEM. */
mx_status mx_sequence_fork(mx_sequence *sequence, mx_kv_pool *pool, mx_error *error);

/* Lends all blocks of a session's request to its sink. */
void mx_sequence_lend(mx_sequence *sequence, mx_kv_pool *pool);

/* Where the next token's logprobs go; NULL: out of memory. */
mx_logprobs *mx_sequence_next_logprobs(mx_sequence *sequence);

#endif
