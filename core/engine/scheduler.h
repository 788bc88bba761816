/*
 * scheduler.h: many requests, one batch.
 *
 * The scheduler's thread is the first compute thread. Each step it takes the decode tokens of the running requests, fills
 * the step's token budget with prompt tokens in chunks, runs the forward pass, samples, and hands each request its output through
 * the request's sink. Requests join and leave between steps. Submitting and cancelling are safe from any thread.
 */
#ifndef MX_ENGINE_SCHEDULER_H
#define MX_ENGINE_SCHEDULER_H

#include "../model/tokenizer.h"
#include "forward.h"
#include "sampler.h"
#include "tenants.h"

typedef struct mx_scheduler mx_scheduler;
typedef struct mx_request mx_request;

#define MX_CHOICES_MAX 16

int64_t mx_now_ns(void); /* monotonic */

typedef enum { MX_FINISH_STOP, MX_FINISH_LENGTH } mx_finish;

typedef struct { /* of one choice */
    mx_finish finish;
    const char *stop; /* the stop string that ended it; NULL: it ended otherwise */
    const char *text; /* whole text, valid UTF-8, NUL-terminated */
    size_t text_bytes;
    int completion_tokens;
    int n_logprobs;              /* 0, or one a generated token */
    const int32_t *token;        /* [n_logprobs] */
    const mx_logprobs *logprobs; /* [n_logprobs] */
} mx_choice;

typedef struct {
    int n_choices;
    const mx_choice *choices;
    const float *embedding; /* [dim], of an embedding request; NULL otherwise */
    int dim;
    int prompt_tokens, cached_tokens, completion_tokens;
    double first_token_ms, total_ms; /* from arrival */
    uint64_t seed;
} mx_outcome;

/* A session's request makes no text: it reads its prompt, or makes room for it, and lends out the blocks. */
typedef enum {
    MX_SESSION_NONE,
    MX_SESSION_SAVE, /* computes the prompt's blocks, for the caller to read */
    MX_SESSION_LOAD  /* blocks for the caller to fill with what another such request has read */
} mx_session_kind;

typedef struct { /* the caller's between the sink's `ready` and mx_scheduler_release */
    uint64_t handle;
    int n, n_known;         /* of them the first n_known have their contents: they are not to be written */
    size_t block_bytes;
    uint8_t *const *blocks; /* [n] */
} mx_session_blocks;

/* Where a request's output goes. Called on the scheduler's thread, never after `end`; must not block. */
typedef struct {
    /* Before the first piece: how many tokens of the prompt came from the cache. NULL: not wanted. */
    void (*begun)(void *arg, int cached_tokens);
    /* Whole UTF-8 characters. False: there is no memory for them, and the request fails. */
    bool (*piece)(void *arg, int choice, const char *text, size_t bytes);
    void (*end)(void *arg, const mx_outcome *outcome, const mx_error *error); /* exactly one of the two is not NULL; once, last */
    bool (*paused)(void *arg); /* true: the reader is behind; make no further tokens for now */
    void (*ready)(void *arg, const mx_session_blocks *blocks); /* of a session's request: at most once, before `end` */
    void *arg;
} mx_sink;

typedef struct { /* what a request asks for; mx_scheduler_submit copies everything */
    mx_session_kind session;    /* n_tokens is then a multiple of MX_KV_SPAN */
    bool embed;                 /* the mean of the hidden states, L2-normalised, instead of text */
    const int32_t *tokens;      /* [n_tokens] prompt, BOS included */
    const uint8_t *classes;     /* [n_tokens] mx_token_class */
    size_t n_tokens;
    const char *tenant;         /* whose blocks it may share; NULL: "" */
    mx_tenant *account;         /* what its tokens are taken from, until `end`; NULL: they are not counted */
    bool cache;                 /* takes blocks that are computed already, and leaves its own to be found */
    mx_sampling sampling;
    int n;                      /* choices, 1 .. MX_CHOICES_MAX */
    int max_tokens;             /* 0: as many as the context holds */
    bool ignore_eos;
    const char *const *stop;    /* [n_stop] strings that end the text and are not part of it */
    int n_stop;
    bool strip_space;           /* a SentencePiece answer begins with an artificial space: take it off (chat, not complete) */
    int timeout_ms;             /* from arrival; 0: none */
    int64_t arrived_ns;         /* on mx_now_ns's clock; 0: now */
    mx_sink sink;
} mx_request_spec;

typedef struct {
    const mx_model *model;
    const mx_tokenizer *tokenizer;
    const mx_kernels *kernels;
    int threads;
    int context;
    int64_t kv_pool_bytes;
    mx_kv_type kv_type; /* fits the model's head_dim */
    int max_queue;
    int max_step_ms;            /* see mx_engine_options */
    void (*log)(void *arg, mx_log_level level, const char *line);
    void *log_arg;
} mx_scheduler_options;

/* Allocates pool, arena and sampler; starts no thread. */
mx_status mx_scheduler_open(const mx_scheduler_options *options, mx_scheduler **scheduler, mx_error *error);

/* Ends every request with MX_UNAVAILABLE, joins the threads. Takes NULL. */
void mx_scheduler_close(mx_scheduler *scheduler);

/* Queues a request and returns a handle that lives until its sink's `end` has returned. Starts the threads on first use.
 * MX_TOO_LARGE at once, with the numbers, when prompt and one token exceed the context or the pool; MX_BUSY when the queue is full. */
mx_status mx_scheduler_submit(mx_scheduler *scheduler, const mx_request_spec *spec, uint64_t *handle, mx_error *error);

/* The request ends with MX_CANCELLED at the end of the running step (in its midst, when nobody wants any of its results).
 * A handle that has ended is ignored. */
void mx_scheduler_cancel(mx_scheduler *scheduler, uint64_t handle);
void mx_scheduler_wake(mx_scheduler *scheduler); /* a paused sink may go on */

/* Gives the blocks of a session's request back, which ends with that. `filled`: all of them hold what their tokens say, and can be
 * found from now on. Every `ready` is followed by one, also when the request was cancelled. */
void mx_scheduler_release(mx_scheduler *scheduler, uint64_t handle, bool filled);

#define MX_BATCH_BUCKETS 10
#define MX_TIME_BUCKETS 17

typedef struct { /* a snapshot; never waits for computation */
    int64_t requests_running, requests_waiting, requests_done, requests_failed;
    int64_t kv_blocks_total, kv_blocks_used, kv_blocks_cached, kv_blocks_free;
    int64_t prompt_tokens, cached_tokens, completion_tokens, preemptions, steps;
    int64_t batch[MX_BATCH_BUCKETS]; /* steps of 1, 2, 3-4, 5-8, ... tokens */
    int64_t first_tokens, queue_us, first_token_us; /* requests that had one, and their times in all, from arrival */
    int64_t queue_times[MX_TIME_BUCKETS], first_token_times[MX_TIME_BUCKETS]; /* of them up to 1, 2, 4, ... 32,768 ms, and longer */
    int64_t weight_bytes, kv_bytes; /* mapped, of the model's file; reserved for the pool, of which what was used once is memory */
} mx_scheduler_stats;

/* Requests whose sink's `end` has not returned; any thread. */
int mx_scheduler_live(const mx_scheduler *scheduler);

/* Of the KV pool; immutable. */
size_t mx_scheduler_block_bytes(const mx_scheduler *scheduler);
mx_kv_type mx_scheduler_kv_type(const mx_scheduler *scheduler);

void mx_scheduler_get_stats(const mx_scheduler *scheduler, mx_scheduler_stats *stats);

#endif
