/*
 * forward_internal.h: what forward.c, attention.c and moe.c share: the step's arena and the queue of row tiles.
 *
 * Inside a step tokens stand in class order: decode class first, then prompt class, each in the batch's order. A product over
 * all tokens is then two products over two ranges, each with its class's kernels.
 */
#ifndef MX_ENGINE_FORWARD_INTERNAL_H
#define MX_ENGINE_FORWARD_INTERNAL_H

#include <stdatomic.h>
#include "forward.h"

enum { PHASES = 5 }; /* of a layer, each with its own task counter */

typedef struct { /* one product, cut into tiles of rows; workers take tiles from one atomic queue */
    const mx_weight *w;
    const mx_weight *up;   /* not NULL: gate, up and SiLU as one operation, into the columns of f->hidden */
    const mx_acts *x;
    const int32_t *column; /* [n_columns] columns of x */
    int n_columns;
    int first;             /* of the columns of f->hidden, where up is not NULL */
    float *y;              /* [n_columns, w->rows], otherwise */
    bool decode;           /* class of the columns */
} mx_job;

typedef struct { /* (token, expert) pairs sorted by expert, class and token: column p of f->hidden is pair p */
    int n_jobs;
    mx_job *jobs;          /* [2 * n_experts] */
    int32_t *pair_token;   /* [n_tokens * used] */
    int32_t *begin;        /* [n_experts + 1] */
} mx_expert_plan;

typedef struct { /* one thread's own */
    void *scratch;       /* MX_SCRATCH_BYTES */
    float *up;           /* [max_tokens][UP_ROWS] */
    mx_expert_plan plan; /* every thread makes the same one: cheaper than a barrier */
    float *router_logits; /* [n_experts] */
} mx_worker;

enum { UP_ROWS = 64 };

typedef struct { /* tokens of one sequence, one after the other, that attention takes together */
    int first, n;
} mx_query_run;

struct mx_forward {
    const mx_model *model;
    const mx_kernels *kernels;
    mx_threads *threads;
    mx_kv_pool *pool;
    int max_tokens;
    bool quantize_dim, quantize_heads, quantize_ff; /* the width is a multiple of MX_GROUP */

    /* of the step */
    const mx_batch *batch;
    int n_tokens, n_decode;
    int32_t *order;           /* [max_tokens] token's index in the batch */
    int32_t *place;           /* [max_tokens] the inverse: batch index's token */
    int32_t *identity;        /* [max_tokens * used] 0, 1, 2, ... */
    int32_t *wanted;          /* [max_tokens] tokens that want logits, in the batch's order */
    int n_wanted, n_runs;
    mx_query_run *runs;       /* [max_tokens] */
    float *logits, *hidden_out;
    bool (*abandoned)(void *arg);
    void *abandoned_arg;
    atomic_bool stop;         /* set by the first thread, see mx_given_up */
    atomic_int *counters;     /* [n_layers * PHASES + 1] */

    float *x;                 /* [n_tokens, dim] the residual stream */
    float *q, *k, *v;         /* [n_tokens, heads * head_dim] */
    float *cosine, *sine;     /* [n_tokens, rope_dim / 2] */
    float *projected;         /* [n_tokens, dim] */
    float *expert_out;        /* [n_tokens * used, dim] */
    int32_t *expert;          /* [n_tokens, used] by rank */
    float *expert_weight;     /* [n_tokens, used] */
    int32_t *expert_pair;     /* [n_tokens, used] the pair's column */
    mx_acts normed;           /* [n_tokens, dim] */
    mx_acts attended;         /* [n_tokens, heads * head_dim] */
    mx_acts hidden;           /* [n_tokens * used, n_ff] */

    mx_worker *workers;       /* [threads] */
    double *frequency;        /* [rope_dim / 2] radians a position */
    void *arena;
};

/* True if nobody wants the step any more; its results may then be anything. Asked before each piece of work that many tokens make
 * long, between the first barrier of a layer and the last. */
bool mx_given_up(mx_forward *f, const mx_worker *worker);

/* Takes tiles of the jobs until none is left. */
void mx_run_jobs(mx_forward *f, mx_worker *worker, const mx_job *jobs, int n_jobs, atomic_int *counter, int n_threads);

/* The products of w with all tokens' columns of x, into y: up to two jobs, one a class; their number. */
int mx_token_jobs(const mx_forward *f, const mx_weight *w, const mx_acts *x, float *y, mx_job *jobs);

/* attention.c */
void mx_rope_prepare(mx_forward *f, int token);                       /* the token's angles */
void mx_rope_store(mx_forward *f, int layer, int token);              /* rotates q and k, stores k and v */
void mx_attention_runs(mx_forward *f);                                /* fills f->runs */
void mx_attention_run(mx_forward *f, mx_worker *worker, int layer, atomic_int *counter);

/* moe.c */
void mx_moe_route(mx_forward *f, mx_worker *worker, const mx_layer *layer, int token); /* chooses the token's experts */
void mx_moe_plan(mx_forward *f, mx_worker *worker, const mx_layer *layer);             /* sorts the pairs */
void mx_moe_down(mx_forward *f, mx_worker *worker, const mx_layer *layer);             /* turns the plan's jobs to the down products */
void mx_moe_combine(mx_forward *f, int token);                                         /* adds the experts' outputs to x */

#endif
