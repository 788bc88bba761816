/*
 * request.c: making, checking and ending requests; the blocks of their sequences.
 */
#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../error.h"
#include "request.h"

int64_t mx_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- Checks -----------------------------------------------------------------------------------*/

static mx_status check_size(const mx_request_spec *spec, const mx_request_limits *limits,
                            mx_error *error)
{
    bool makes_text = !spec->embed && spec->session == MX_SESSION_NONE;
    const char *and_one = makes_text ? " and one to come" : "";
    size_t needed = spec->n_tokens + (makes_text ? 1 : 0);
    const char *field = spec->embed ? "text" : "prompt";

    if (spec->n_tokens == 0)
        return mx_fail(error, MX_INVALID, field, "%s: expected at least one token, got none",
                       field);
    if (needed > (size_t)limits->context)
        return mx_fail(error, MX_TOO_LARGE, field,
                       "%s: %zu tokens%s do not fit in the context of %d", field, spec->n_tokens,
                       and_one, limits->context);
    if (needed > (size_t)limits->pool_tokens)
        return mx_fail(error, MX_TOO_LARGE, field,
                       "%s: %zu tokens%s do not fit in the KV pool of %d tokens", field,
                       spec->n_tokens, and_one, limits->pool_tokens);
    return MX_OK;
}

static mx_status check_spec(const mx_request_spec *spec, const mx_request_limits *limits,
                            mx_error *error)
{
    mx_status status = check_size(spec, limits, error);

    for (size_t i = 0; i < spec->n_tokens && status == MX_OK; i++)
        if (spec->tokens[i] < 0 || spec->tokens[i] >= limits->n_vocab)
            status = mx_fail(error, MX_INVALID, "tokens",
                             "token %zu: expected an id from 0 to %d, got %d", i,
                             limits->n_vocab - 1, spec->tokens[i]);
    for (int i = 0; i < spec->sampling.n_logit_bias && status == MX_OK; i++)
        if (spec->sampling.logit_bias[i].id < 0 ||
            spec->sampling.logit_bias[i].id >= limits->n_vocab)
            status = mx_fail(error, MX_INVALID, "logit_bias",
                             "option logit_bias: expected ids from 0 to %d, got %d",
                             limits->n_vocab - 1, spec->sampling.logit_bias[i].id);
    if (status == MX_OK && (spec->n < 1 || spec->n > MX_CHOICES_MAX))
        status = mx_fail(error, MX_INVALID, "n", "option n: expected 1 to %d, got %d",
                         MX_CHOICES_MAX, spec->n);
    if (status == MX_OK && spec->sampling.top_logprobs > MX_TOP_LOGPROBS_MAX)
        status = mx_fail(error, MX_INVALID, "top_logprobs",
                         "option top_logprobs: expected at most %d, got %d", MX_TOP_LOGPROBS_MAX,
                         spec->sampling.top_logprobs);
    if (status == MX_OK && spec->max_tokens < 0)
        status = mx_fail(error, MX_INVALID, "max_tokens",
                         "option max_tokens: expected 0 or more, got %d", spec->max_tokens);
    return status;
}

/* ---- Copies -----------------------------------------------------------------------------------*/

static void *copy_of(const void *from, size_t bytes)
{
    void *to = malloc(bytes ? bytes : 1);

    if (to && bytes)
        memcpy(to, from, bytes);
    return to;
}

/* The pointers, then the strings they point to. */
static char **copy_strings(const char *const *strings, int n)
{
    size_t bytes = (size_t)n * sizeof(char *);
    char **copy, *at;

    for (int i = 0; i < n; i++)
        bytes += strlen(strings[i]) + 1;
    copy = malloc(bytes ? bytes : 1);
    if (!copy)
        return NULL;
    at = (char *)(copy + n);
    for (int i = 0; i < n; i++) {
        copy[i] = at;
        at = stpcpy(at, strings[i]) + 1;
    }
    return copy;
}

static bool copy_spec(mx_request *r, const mx_request_spec *spec)
{
    r->classes = copy_of(spec->classes, spec->n_tokens);
    r->stop = copy_strings(spec->stop, spec->n_stop);
    r->sampling.logit_bias =
        copy_of(spec->sampling.logit_bias,
                (size_t)spec->sampling.n_logit_bias * sizeof *spec->sampling.logit_bias);
    return r->classes && r->stop && r->sampling.logit_bias;
}

/* The names of all blocks that the prompt fills. */
static bool name_prompt(mx_request *r, const mx_request_spec *spec, const mx_prefix *prefix)
{
    int n = r->n_prompt / MX_KV_SPAN;
    mx_prefix_name before = {{0}};

    if (!r->cache)
        return true;
    r->names = malloc((size_t)(n + 1) * sizeof *r->names);
    if (!r->names)
        return false;
    mx_prefix_tenant_key(prefix, spec->tenant ? spec->tenant : "", &r->key);
    for (int b = 0; b < n; b++) {
        mx_prefix_next(&r->key, &before, spec->tokens + b * MX_KV_SPAN, spec->classes + b * MX_KV_SPAN,
                       &r->names[b]);
        before = r->names[b];
    }
    return true;
}

/* Room for the longest history that the request can come to. */
static int32_t *new_history(const mx_request *r, const int32_t *prompt)
{
    size_t n = (size_t)r->n_prompt + (size_t)r->max_tokens;
    int32_t *history = malloc(n * sizeof *history);

    if (history)
        memcpy(history, prompt, (size_t)r->n_prompt * sizeof *history);
    return history;
}

static mx_status open_sequence(mx_request *r, int choice, const mx_request_spec *spec,
                               const mx_tokenizer *tokenizer, mx_error *error)
{
    mx_sequence *q = &r->sequences[choice];

    q->request = r;
    q->choice = choice;
    q->follows = choice > 0;
    q->blocks = malloc((size_t)mx_blocks_for(r->n_prompt + r->max_tokens) * sizeof *q->blocks);
    if (!q->follows) {
        q->history = new_history(r, spec->tokens);
        q->n_history = r->n_prompt;
    }
    if (!q->blocks || (!q->follows && !q->history))
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a request of %d tokens",
                       r->n_prompt + r->max_tokens);
    if (!mx_request_makes_text(r))
        return MX_OK;
    return mx_output_open(tokenizer, (const char *const *)r->stop, spec->n_stop, spec->strip_space,
                          &q->output, error);
}

/* As many as asked for, but no more than context and pool have room for. */
static int tokens_to_make(const mx_request_spec *spec, const mx_request_limits *limits)
{
    int holds = limits->context < limits->pool_tokens ? limits->context : limits->pool_tokens;
    int room = holds - (int)spec->n_tokens;

    return spec->max_tokens > 0 && spec->max_tokens < room ? spec->max_tokens : room;
}

mx_status mx_request_open(const mx_request_spec *spec, const mx_request_limits *limits,
                          mx_request **request, mx_error *error)
{
    mx_status status = check_spec(spec, limits, error);
    mx_request *r;

    *request = NULL;
    if (status != MX_OK)
        return status;
    r = calloc(1, sizeof *r);
    if (!r)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a request");
    r->session = spec->session;
    r->embed = spec->embed;
    r->ignore_eos = spec->ignore_eos;
    r->cache = spec->cache && !spec->embed; /* an embedding needs every token's hidden state */
    r->n_prompt = (int)spec->n_tokens;
    r->sampling = spec->sampling;
    r->n = mx_request_makes_text(r) ? spec->n : 1;
    r->max_tokens = mx_request_makes_text(r) ? tokens_to_make(spec, limits) : 0;
    r->timeout_ms = spec->timeout_ms;
    r->sink = spec->sink;
    r->account = spec->account;
    r->dim = limits->dim;
    atomic_init(&r->cancelled, false);
    atomic_init(&r->lent, MX_LENT_NOT);
    r->arrived_ns = spec->arrived_ns ? spec->arrived_ns : mx_now_ns();
    r->deadline_ns =
        spec->timeout_ms > 0 ? r->arrived_ns + (int64_t)spec->timeout_ms * 1000000 : INT64_MAX;
    if (!copy_spec(r, spec) || !name_prompt(r, spec, limits->prefix))
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for a request");
    for (int i = 0; i < r->n && status == MX_OK; i++)
        status = open_sequence(r, i, spec, limits->tokenizer, error);
    if (r->embed && status == MX_OK) {
        r->sum = calloc((size_t)r->dim, sizeof *r->sum);
        r->embedding = calloc((size_t)r->dim, sizeof *r->embedding);
        if (!r->sum || !r->embedding)
            status = mx_fail(error, MX_NOMEM, NULL, "out of memory for an embedding");
    }
    if (r->session != MX_SESSION_NONE && status == MX_OK) {
        r->lent_blocks = malloc((size_t)mx_blocks_for(r->n_prompt) * sizeof *r->lent_blocks);
        if (!r->lent_blocks)
            status = mx_fail(error, MX_NOMEM, NULL, "out of memory for a session of %d tokens", r->n_prompt);
    }
    if (status == MX_OK)
        *request = r;
    else
        mx_request_close(r);
    return status;
}

bool mx_request_makes_text(const mx_request *r)
{
    return !r->embed && r->session == MX_SESSION_NONE;
}

void mx_request_close(mx_request *r)
{
    if (!r)
        return;
    for (int i = 0; i < r->n; i++) {
        assert(r->sequences[i].n_blocks == 0);
        mx_output_close(r->sequences[i].output);
        free(r->sequences[i].history);
        free(r->sequences[i].blocks);
        free(r->sequences[i].logprobs);
    }
    free(r->classes);
    free(r->names);
    free(r->lent_blocks);
    free(r->stop);
    free(r->sampling.logit_bias);
    free(r->sum);
    free(r->embedding);
    free(r);
}

/* ---- The end ----------------------------------------------------------------------------------*/

static mx_choice choice_of(const mx_sequence *q)
{
    mx_choice c = {.finish = q->finish, .stop = mx_output_stopped_by(q->output), .completion_tokens = mx_sequence_generated(q)};

    c.text = mx_output_text(q->output, &c.text_bytes);
    if (q->logprobs) {
        c.n_logprobs = c.completion_tokens;
        c.token = q->history + q->request->n_prompt;
        c.logprobs = q->logprobs;
    }
    return c;
}

void mx_request_end(mx_request *r, const mx_error *error)
{
    mx_choice choices[MX_CHOICES_MAX];
    mx_outcome o = {.prompt_tokens = r->n_prompt,
                    .cached_tokens = r->cached_tokens,
                    .seed = r->sampling.seed};

    if (error) {
        r->sink.end(r->sink.arg, NULL, error);
        return;
    }
    if (r->embed) {
        o.embedding = r->embedding;
        o.dim = r->dim;
    } else if (r->session == MX_SESSION_NONE) {
        o.choices = choices;
        o.n_choices = r->n;
        for (int i = 0; i < r->n; i++) {
            choices[i] = choice_of(&r->sequences[i]);
            o.completion_tokens += choices[i].completion_tokens;
        }
    }
    o.first_token_ms = (double)(r->first_token_ns - r->arrived_ns) * 1e-6;
    o.total_ms = (double)(mx_now_ns() - r->arrived_ns) * 1e-6;
    r->sink.end(r->sink.arg, &o, NULL);
}

void mx_request_add_hidden(mx_request *r, const float *hidden, int n)
{
    for (int t = 0; t < n; t++)
        for (int i = 0; i < r->dim; i++)
            r->sum[i] += (double)hidden[(size_t)t * (size_t)r->dim + (size_t)i];
}

/* The length of the mean does not matter to its direction: there is nothing to divide by. */
mx_status mx_request_finish_embedding(mx_request *r, mx_error *error)
{
    double square = 0, length;

    for (int i = 0; i < r->dim; i++)
        square += r->sum[i] * r->sum[i];
    if (!isfinite(square))
        return mx_fail(error, MX_CORRUPT, NULL, "the model's hidden states are not finite");
    length = sqrt(square);
    for (int i = 0; i < r->dim && length > 0; i++)
        r->embedding[i] = (float)(r->sum[i] / length);
    return MX_OK;
}

/* ---- Sequences --------------------------------------------------------------------------------*/

int mx_blocks_for(int n_tokens)
{
    return (int)(((int64_t)n_tokens + MX_KV_SPAN - 1) / MX_KV_SPAN);
}

int mx_sequence_generated(const mx_sequence *q)
{
    return q->follows ? 0 : q->n_history - q->request->n_prompt;
}

bool mx_sequence_older(const mx_sequence *a, const mx_sequence *b)
{
    uint64_t x = a->request->handle, y = b->request->handle;

    return x < y || (x == y && a->choice < b->choice);
}

/* The name of its block n_named, whose tokens are all in the history. */
static mx_prefix_name next_name(const mx_sequence *q)
{
    const mx_request *r = q->request;
    int begin = q->n_named * MX_KV_SPAN;
    uint8_t classes[MX_KV_SPAN];
    mx_prefix_name name;

    if (q->n_named < r->n_prompt / MX_KV_SPAN)
        return r->names[q->n_named];
    for (int i = 0; i < MX_KV_SPAN; i++)
        classes[i] = begin + i < r->n_prompt ? r->classes[begin + i] : (uint8_t)MX_CLASS_DECODE;
    mx_prefix_next(&r->key, &q->name, q->history + begin, classes, &name);
    return name;
}

static bool is_at_boundary(const mx_sequence *q)
{
    return q->request->cache && q->n_computed == q->n_named * MX_KV_SPAN;
}

void mx_sequence_adopt(mx_sequence *q, mx_kv_pool *pool, mx_prefix *prefix)
{
    while (is_at_boundary(q) && q->n_computed + MX_KV_SPAN <= q->n_history) {
        mx_prefix_name name = next_name(q);
        int32_t block = mx_prefix_take(prefix, &name);
        int before = q->n_computed;

        if (block < 0)
            return;
        if (q->n_blocks > q->n_named) /* left from a step that was abandoned */
            mx_kv_pool_unref(pool, q->blocks[q->n_named]);
        else
            q->n_blocks++;
        q->blocks[q->n_named++] = block;
        q->name = name;
        q->n_computed += MX_KV_SPAN;
        if (q->n_computed == q->n_history)
            q->n_computed--;
        q->n_cached += q->n_computed - before;
    }
}

void mx_sequence_publish(mx_sequence *q, mx_prefix *prefix)
{
    while (q->request->cache && (q->n_named + 1) * MX_KV_SPAN <= q->n_computed) {
        q->name = next_name(q);
        q->blocks[q->n_named] = mx_prefix_add(prefix, &q->name, q->blocks[q->n_named]);
        q->n_named++;
    }
}

bool mx_sequence_wants_same(const mx_sequence *q, const mx_sequence *other)
{
    const mx_request *mine = q->request, *theirs = other->request;
    int b = q->n_named;

    return theirs->cache && !other->follows && is_at_boundary(q) && b < mine->n_prompt / MX_KV_SPAN &&
           b < theirs->n_prompt / MX_KV_SPAN && other->n_named <= b &&
           memcmp(&mine->names[b], &theirs->names[b], sizeof *mine->names) == 0;
}

int mx_sequence_found_in_use(const mx_sequence *q, const mx_kv_pool *pool, const mx_prefix *prefix)
{
    const mx_request *r = q->request;
    int n = 0;

    for (int b = q->n_blocks; r->cache && b < r->n_prompt / MX_KV_SPAN; b++) {
        int32_t block = mx_prefix_find(prefix, &r->names[b]);

        if (block < 0)
            break;
        n += !mx_kv_pool_is_cached(pool, block);
    }
    return n;
}

bool mx_sequence_grow(mx_sequence *q, mx_kv_pool *pool, mx_prefix *prefix)
{
    int first = q->n_computed / MX_KV_SPAN, needed = mx_blocks_for(q->n_computed + q->take);

    if (first < q->n_blocks && mx_kv_pool_is_shared(pool, q->blocks[first])) {
        int32_t own = mx_prefix_alloc(prefix);
        if (own < 0)
            return false;
        mx_kv_pool_copy(pool, q->blocks[first], own);
        mx_prefix_leave(prefix, q->blocks[first]);
        q->blocks[first] = own;
    }
    while (q->n_blocks < needed) {
        int32_t block = mx_prefix_alloc(prefix);
        if (block < 0)
            return false;
        q->blocks[q->n_blocks++] = block;
    }
    return true;
}

void mx_sequence_release(mx_sequence *q, mx_prefix *prefix)
{
    while (q->n_blocks > 0)
        mx_prefix_leave(prefix, q->blocks[--q->n_blocks]);
    if (q->request->embed)
        memset(q->request->sum, 0, (size_t)q->request->dim * sizeof *q->request->sum);
    memset(&q->name, 0, sizeof q->name);
    q->n_named = q->n_cached = 0;
    q->n_computed = 0;
    q->take = 0;
}

mx_status mx_sequence_fork(mx_sequence *q, mx_kv_pool *pool, mx_error *error)
{
    const mx_request *r = q->request;
    const mx_sequence *first = &r->sequences[0];

    assert(q->follows && first->n_computed == r->n_prompt);
    q->history = new_history(r, first->history);
    if (!q->history)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for choice %d", q->choice);
    q->follows = false;
    q->n_history = q->n_computed = r->n_prompt;
    q->n_named = first->n_named;
    q->name = first->name;
    for (q->n_blocks = 0; q->n_blocks < mx_blocks_for(r->n_prompt); q->n_blocks++) {
        q->blocks[q->n_blocks] = first->blocks[q->n_blocks];
        mx_kv_pool_ref(pool, q->blocks[q->n_blocks]);
    }
    return MX_OK;
}

void mx_sequence_lend(mx_sequence *q, mx_kv_pool *pool)
{
    mx_request *r = q->request;
    mx_session_blocks lent = {.handle = r->handle,
                              .n = q->n_blocks,
                              .n_known = r->session == MX_SESSION_LOAD ? q->n_named : q->n_blocks,
                              .block_bytes = mx_kv_block_bytes(mx_kv_pool_shape(pool)),
                              .blocks = r->lent_blocks};

    assert(q->n_blocks == mx_blocks_for(r->n_prompt));
    for (int b = 0; b < q->n_blocks; b++)
        r->lent_blocks[b] = mx_kv_pool_block(pool, q->blocks[b]);
    r->first_token_ns = mx_now_ns();
    r->cached_tokens = q->n_cached;
    atomic_store(&r->lent, MX_LENT);
    r->sink.ready(r->sink.arg, &lent);
}

mx_logprobs *mx_sequence_next_logprobs(mx_sequence *q)
{
    int n = mx_sequence_generated(q);

    if (n == q->logprobs_capacity) {
        int capacity = n < 16 ? 16 : 2 * n;
        mx_logprobs *grown = realloc(q->logprobs, (size_t)capacity * sizeof *grown);
        if (!grown)
            return NULL;
        q->logprobs = grown;
        q->logprobs_capacity = capacity;
    }
    return &q->logprobs[n];
}
