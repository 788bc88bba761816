/*
 * scheduler.c: requests in, steps of the model, pieces out.
 *
 * Read run_step first: it is all that the scheduler's thread does. A request enters through the
 * inbox. Its sequences (choices) wait in the queue, then run: in each step a running sequence
 * computes the next tokens of its history that have no keys and values yet. There is no difference
 * between reading a prompt, making a token and computing a preempted sequence again: when the last
 * token of the history is computed, its logits give the next one.
 *
 * Order is age, the order of submission. The queue is admitted in order; when the pool is full, the
 * youngest running sequence gives its blocks up and goes back into the queue, so that the oldest
 * always gets on: nothing is lost and nothing starves. A sequence whose reader is behind makes no
 * tokens, is passed over, and gives its blocks up first.
 *
 * No prefix is computed twice (prefix.h): before it takes tokens, a sequence takes what the index
 * has of its history, and where an older one is just computing the same block, it waits for that.
 * Full blocks are named after each step. They outlive their sequence until their room is needed.
 *
 * While somebody waits for the next piece of an answer, prompts are read in chunks whose size is
 * led by the steps' measured times, so that a step stays under max_step_ms (or under two steps of
 * the answers alone, where one pass over the weights takes longer than that).
 *
 * Threads and locks. `lock` guards the inbox, the links of `active`, `stopping` and `roused`; it is
 * held for moments, never during a step or a call of a sink. Any thread submits, cancels (a flag in
 * the request) and reads the counters, which are atomics. All else is the scheduler's thread's
 * alone. That thread is started by the first submission, so that a host may fork before; it is the
 * first compute thread, and sleeps on `rouse` when there is nothing to do.
 */
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../error.h"
#include "request.h"

#define MAX_RUNNING 64   /* sequences that run: rows of logits */
#define STEP_TOKENS 512  /* of a step */
#define CHUNK_MIN 32     /* prompt tokens of a step while somebody waits for the next piece */
#define CHUNK_MAX (STEP_TOKENS - MAX_RUNNING)
#define STEP_AIM 0.75    /* of the time that a step may take */
#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 60000
#define RETRY_UNKNOWN_MS 1000 /* what a refused request is told before any has waited */

typedef struct {
    atomic_llong waiting, running, done, failed; /* requests */
    atomic_int live;                             /* that have not ended, in the sink too */
    atomic_llong prompt_tokens, cached_tokens, completion_tokens, preemptions, steps;
    atomic_llong batch[MX_BATCH_BUCKETS], first_tokens, queue_us, first_token_us;
    atomic_llong queue_times[MX_TIME_BUCKETS], first_token_times[MX_TIME_BUCKETS];
    atomic_llong turnover_us; /* between two ends while others wait, smoothed; 0: not known yet */
} counters;

struct mx_scheduler {
    /* Immutable after open. */
    mx_scheduler_options options;
    mx_request_limits limits;
    mx_kv_pool *pool;
    mx_prefix *prefix; /* scheduler thread only, but for its keys */
    mx_threads *threads;
    mx_forward *forward;
    mx_sampler *sampler;

    /* Under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t rouse;
    mx_request *inbox, **inbox_end; /* oldest first */
    mx_request *active;             /* oldest first; its thread reads it without the lock */
    uint64_t last_handle;
    bool started, roused;
    atomic_bool stopping; /* also read during a step */
    pthread_t thread;

    /* The scheduler's thread's. */
    mx_sequence *queue;                /* oldest first */
    mx_sequence *running[MAX_RUNNING]; /* [n_running], oldest first */
    int n_running;
    int64_t last_end_ns; /* of a request; 0: none */
    bool told_threads; /* that fewer have started */
    int chunk;         /* prompt tokens of a step while somebody waits for the next piece */
    double decode_ms;  /* what a step of the answers alone takes, smoothed; 0: not known yet */

    /* The step at hand. */
    mx_sequence *member[MAX_RUNNING]; /* [n_members] running ones that take tokens */
    int n_members;
    int n_making; /* of them make a token; the others read histories */
    const int32_t *blocks[MAX_RUNNING]; /* [n_members] */
    int32_t token[STEP_TOKENS], position[STEP_TOKENS], sequence[STEP_TOKENS];
    uint8_t token_class[STEP_TOKENS], want[STEP_TOKENS];
    float *logits;       /* [MAX_RUNNING][n_vocab] */
    float *first_logits; /* [n_vocab] the same row for each choice of a request */
    float *hidden;       /* [STEP_TOKENS][dim] */

    counters count; /* any thread reads */
};

static void add(atomic_llong *counter, long long n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* ---- The queue and the running ones -----------------------------------------------------------*/

static void enqueue(mx_scheduler *s, mx_sequence *q)
{
    mx_sequence **link = &s->queue;

    while (*link && mx_sequence_older(*link, q))
        link = &(*link)->next;
    q->next = *link;
    *link = q;
}

static void dequeue(mx_scheduler *s, mx_sequence *q)
{
    mx_sequence **link = &s->queue;

    while (*link && *link != q)
        link = &(*link)->next;
    if (*link)
        *link = q->next;
}

static void start_running(mx_scheduler *s, mx_sequence *q)
{
    int i = s->n_running++;

    for (; i > 0 && mx_sequence_older(q, s->running[i - 1]); i--)
        s->running[i] = s->running[i - 1];
    s->running[i] = q;
}

/* Takes it out of the running ones, with its blocks. */
static void stop_running(mx_scheduler *s, mx_sequence *q)
{
    int kept = 0;

    mx_sequence_release(q, s->prefix);
    for (int i = 0; i < s->n_running; i++)
        if (s->running[i] != q)
            s->running[kept++] = s->running[i];
    s->n_running = kept;
}

/* Puts a running sequence back into the queue; its history is computed again when there is room. */
static void preempt(mx_scheduler *s, mx_sequence *q)
{
    stop_running(s, q);
    enqueue(s, q);
    add(&s->count.preemptions, 1);
}

/* Its blocks are in the hands of a session's reader or writer. */
static bool is_lent(const mx_request *r)
{
    return atomic_load(&r->lent) != MX_LENT_NOT;
}

static bool can_give_way(const mx_sequence *q)
{
    return q->n_blocks > 0 && !is_lent(q->request);
}

/* The youngest running sequence that holds blocks and whose reader is behind; NULL: none. */
static mx_sequence *youngest_paused(mx_scheduler *s)
{
    for (int i = s->n_running - 1; i >= 0; i--)
        if (s->running[i]->request->paused && can_give_way(s->running[i]))
            return s->running[i];
    return NULL;
}

/* Who gives its blocks up so that an older one can grow: at worst the one that wants to grow
 * itself. */
static mx_sequence *choose_victim(mx_scheduler *s, mx_sequence *growing)
{
    mx_sequence *paused = youngest_paused(s);

    if (paused)
        return paused;
    for (int i = s->n_running - 1; i >= 0; i--)
        if (can_give_way(s->running[i]) || s->running[i] == growing)
            return s->running[i];
    return growing;
}

/* ---- Between steps: who comes, who goes -------------------------------------------------------*/

static void collect_new(mx_scheduler *s)
{
    mx_request *fresh, **end = &s->active;

    pthread_mutex_lock(&s->lock);
    fresh = s->inbox;
    s->inbox = NULL;
    s->inbox_end = &s->inbox;
    s->roused = false;
    while (*end)
        end = &(*end)->next;
    *end = fresh;
    pthread_mutex_unlock(&s->lock);
    for (mx_request *r = fresh; r; r = r->next)
        enqueue(s, &r->sequences[0]);
}

/* How long a place in the queue takes to become free: what a refused one is told. */
static void note_turnover(mx_scheduler *s)
{
    int64_t now = mx_now_ns(), us = (now - s->last_end_ns) / 1000, before = atomic_load(&s->count.turnover_us);

    if (s->last_end_ns != 0 && atomic_load(&s->count.waiting) > 0)
        atomic_store(&s->count.turnover_us, before > 0 ? (4 * before + us) / 5 : us);
    s->last_end_ns = now;
}

/* The sink's last call, and the request is gone. */
static void end_request(mx_scheduler *s, mx_request **link, const mx_error *error)
{
    mx_request *r = *link;

    for (int i = 0; i < r->n; i++) {
        dequeue(s, &r->sequences[i]);
        stop_running(s, &r->sequences[i]);
    }
    add(r->begun ? &s->count.running : &s->count.waiting, -1);
    add(error ? &s->count.failed : &s->count.done, 1);
    note_turnover(s);
    mx_request_end(r, error);
    atomic_fetch_sub(&s->count.live, 1);
    pthread_mutex_lock(&s->lock); /* a canceller may be looking at it */
    *link = r->next;
    pthread_mutex_unlock(&s->lock);
    mx_request_close(r);
}

static bool is_wanted(const mx_request *r, int64_t now)
{
    return !atomic_load(&r->cancelled) && now < r->deadline_ns;
}

/* What a session's request has lent out and has back: it is done. */
static void take_back(mx_scheduler *s, mx_request *r)
{
    mx_sequence *q = &r->sequences[0];

    if (atomic_load(&r->lent) == MX_LENT_BACK_FILLED) {
        q->n_computed = q->n_history;
        mx_sequence_publish(q, s->prefix);
    }
    q->done = true;
    r->n_done = r->n;
    stop_running(s, q);
}

/* Ends what is done, has failed, or is not wanted any more; asks the others' readers whether they
 * keep up. */
static void end_finished(mx_scheduler *s)
{
    int64_t now = mx_now_ns();

    for (mx_request **link = &s->active; *link;) {
        mx_request *r = *link;
        mx_error error;

        if (is_lent(r) && atomic_load(&r->lent) != MX_LENT)
            take_back(s, r);
        if (atomic_load(&r->lent) == MX_LENT) {
            link = &r->next;
        } else if (r->failure.status != MX_OK) {
            end_request(s, link, &r->failure);
        } else if (r->n_done == r->n && !(is_lent(r) && atomic_load(&r->cancelled))) {
            end_request(s, link, NULL);
        } else if (atomic_load(&r->cancelled)) {
            mx_fail(&error, MX_CANCELLED, NULL, "the request was cancelled");
            end_request(s, link, &error);
        } else if (!is_wanted(r, now)) {
            mx_fail(&error, MX_TIMEOUT, "timeout_ms", "the request took longer than its %d ms",
                    r->timeout_ms);
            end_request(s, link, &error);
        } else {
            r->paused = r->sink.paused && r->sink.paused(r->sink.arg);
            link = &r->next;
        }
    }
}

/* Blocks that a sequence takes, with the token that comes after its history. */
static int blocks_to_go_on(const mx_sequence *q)
{
    return mx_blocks_for(q->n_history + (mx_request_makes_text(q->request) ? 1 : 0));
}

/* True if there is a place for it and, beside what the running ones still need for their histories,
 * enough blocks. */
static bool fits(const mx_scheduler *s, const mx_sequence *q)
{
    int total = mx_kv_pool_total(s->pool), places = q->request->begun ? 1 : q->request->n;
    int64_t taken = mx_kv_pool_used(s->pool);
    int64_t needed =
        blocks_to_go_on(q) + places - 1 - /* each other choice writes a block of its own */
        mx_sequence_found_in_use(q, s->pool, s->prefix);

    for (int i = 0; i < s->n_running; i++) {
        const mx_sequence *other = s->running[i];
        if (!other->follows && blocks_to_go_on(other) > other->n_blocks)
            taken += blocks_to_go_on(other) - other->n_blocks;
    }
    return s->n_running + places <= MAX_RUNNING &&
           taken + (needed < total ? needed : total) <= total;
}

static void admit(mx_scheduler *s, mx_sequence *q)
{
    mx_request *r = q->request;

    dequeue(s, q);
    start_running(s, q);
    if (r->begun)
        return;
    r->begun = true;
    r->begun_ns = mx_now_ns();
    for (int i = 1; i < r->n; i++)
        start_running(s, &r->sequences[i]);
    add(&s->count.waiting, -1);
    add(&s->count.running, 1);
}

/* In order: one that does not fit holds up those behind it. */
static void admit_waiting(mx_scheduler *s)
{
    while (true) {
        mx_sequence *q = s->queue, *victim;

        while (q && q->request->paused)
            q = q->next;
        if (!q)
            return;
        if (fits(s, q)) {
            admit(s, q);
        } else {
            victim = youngest_paused(s);
            if (!victim)
                return;
            preempt(s, victim);
        }
    }
}

/* ---- Planning a step --------------------------------------------------------------------------*/

static int pending(const mx_sequence *q)
{
    return q->follows || q->request->paused || is_lent(q->request) ? 0 : q->n_history - q->n_computed;
}

/* An older one is computing the very block that this one needs next: it will be there for both. */
static bool waits_for_elder(const mx_scheduler *s, const mx_sequence *q)
{
    for (int i = 0; s->running[i] != q; i++)
        if (!s->running[i]->request->paused && mx_sequence_wants_same(q, s->running[i]))
            return true;
    return false;
}

/* As much of a history as the budget allows, in whole blocks unless it is the rest. */
static int chunk_of(const mx_scheduler *s, const mx_sequence *q, int budget)
{
    int rest = pending(q);

    if (rest == 0 || waits_for_elder(s, q))
        return 0;
    return rest <= budget ? rest : budget / MX_KV_SPAN * MX_KV_SPAN;
}

/* Tokens for each running sequence: first one for each that makes tokens, then chunks of histories,
 * oldest first. */
static void share_out_budget(mx_scheduler *s)
{
    int budget = STEP_TOKENS;

    s->n_making = 0;
    for (int i = 0; i < s->n_running; i++) {
        mx_sequence *q = s->running[i];
        if (pending(q) > 1)
            mx_sequence_adopt(q, s->pool, s->prefix);
        q->take = pending(q) == 1 && mx_sequence_generated(q) > 0 ? 1 : 0;
        s->n_making += q->take;
    }
    if (s->n_making > 0)
        budget = s->chunk; /* MAX_RUNNING and this fit in STEP_TOKENS */
    for (int i = 0; i < s->n_running; i++) {
        mx_sequence *q = s->running[i];
        if (q->take > 0)
            continue;
        if (q->request->session == MX_SESSION_LOAD) { /* room for all of it, and nothing to compute */
            q->take = pending(q);
            continue;
        }
        q->take = chunk_of(s, q, budget);
        budget -= q->take;
    }
}

/* Blocks for what each takes, oldest first: whoever gives way is younger, or paused and takes
 * nothing. */
static void find_blocks(mx_scheduler *s)
{
    mx_sequence *before[MAX_RUNNING];
    int n = s->n_running;

    memcpy(before, s->running, sizeof before);
    for (int i = 0; i < n; i++) {
        mx_sequence *q = before[i];
        while (q->take > 0 && !mx_sequence_grow(q, s->pool, s->prefix)) /* a preempted one takes nothing */
            preempt(s, choose_victim(s, q));
    }
}

static void plan_step(mx_scheduler *s)
{
    share_out_budget(s);
    find_blocks(s);
    s->n_members = 0;
    for (int i = 0; i < s->n_running; i++) {
        mx_sequence *q = s->running[i];
        if (q->take > 0 && q->request->session == MX_SESSION_LOAD) {
            q->take = 0;
            mx_sequence_lend(q, s->pool);
        }
        if (q->take > 0)
            s->member[s->n_members++] = q;
    }
}

/* ---- Computing a step -------------------------------------------------------------------------*/

static bool gives_logits(const mx_sequence *q)
{
    return mx_request_makes_text(q->request) && q->n_computed + q->take == q->n_history;
}

static int fill_batch(mx_scheduler *s)
{
    int n = 0;

    for (int m = 0; m < s->n_members; m++) {
        const mx_sequence *q = s->member[m];
        const mx_request *r = q->request;

        s->blocks[m] = q->blocks;
        for (int i = 0; i < q->take; i++, n++) {
            int position = q->n_computed + i;
            s->token[n] = q->history[position];
            s->position[n] = position;
            s->sequence[n] = m;
            s->token_class[n] =
                position < r->n_prompt ? r->classes[position] : (uint8_t)MX_CLASS_DECODE;
            s->want[n] = r->embed ? MX_WANT_HIDDEN : 0;
        }
        if (gives_logits(q))
            s->want[n - 1] = MX_WANT_LOGITS;
    }
    return n;
}

/* Asked during a step: true if nobody wants any of the step's results. */
static bool is_abandoned(void *arg)
{
    mx_scheduler *s = arg;
    int64_t now = mx_now_ns();

    for (int m = 0; m < s->n_members && !atomic_load(&s->stopping); m++)
        if (is_wanted(s->member[m]->request, now))
            return false;
    return true;
}

/* Leads the chunk to the size with which a step takes STEP_AIM of the time that it may take. */
static void adapt_chunk(mx_scheduler *s, int n_tokens, double ms)
{
    int n_read = n_tokens - s->n_making;
    double allowed, chunk;

    if (s->n_making == 0)
        return;
    if (n_read == 0) {
        s->decode_ms = s->decode_ms > 0 ? 0.8 * s->decode_ms + 0.2 * ms : ms;
        return;
    }
    allowed = s->options.max_step_ms;
    if (allowed < 2 * s->decode_ms)
        allowed = 2 * s->decode_ms;
    chunk = n_read * STEP_AIM * allowed / ms;
    if (chunk > s->chunk && n_read < s->chunk) /* it was not full: that says nothing of a larger one */
        return;
    if (chunk > 2.0 * s->chunk)
        chunk = 2.0 * s->chunk;
    s->chunk = chunk < CHUNK_MIN ? CHUNK_MIN : chunk > CHUNK_MAX ? CHUNK_MAX : (int)chunk;
}

static void count_step(mx_scheduler *s, int n_tokens)
{
    int bucket = 0;

    while (bucket < MX_BATCH_BUCKETS - 1 && n_tokens > 1 << bucket)
        bucket++;
    add(&s->count.batch[bucket], 1);
    add(&s->count.steps, 1);
}

/* Once, where the system has not given all the threads that were asked for. */
static void tell_threads(mx_scheduler *s)
{
    int threads = mx_threads_count(s->threads);
    char line[96];

    if (threads >= s->options.threads || s->told_threads || !s->options.log)
        return;
    snprintf(line, sizeof line, "only %d of %d compute threads could be started", threads,
             s->options.threads);
    s->options.log(s->options.log_arg, MX_LOG_WARNING, line);
    s->told_threads = true;
}

static mx_status compute_step(mx_scheduler *s)
{
    mx_batch batch = {
        .n_tokens = fill_batch(s),
        .token = s->token,
        .position = s->position,
        .sequence = s->sequence,
        .token_class = s->token_class,
        .want = s->want,
        .blocks = s->blocks,
    };
    int64_t begin = mx_now_ns();
    mx_status status = mx_forward_step(s->forward, &batch, s->logits, s->hidden, is_abandoned, s);

    if (status == MX_OK)
        adapt_chunk(s, batch.n_tokens, (double)(mx_now_ns() - begin) * 1e-6);
    count_step(s, batch.n_tokens);
    tell_threads(s);
    return status;
}

/* ---- Handing out a step's results -------------------------------------------------------------*/

static void send_piece(const mx_sequence *q, const mx_piece *piece)
{
    const mx_sink *sink = &q->request->sink;

    if (piece->bytes > 0 && !sink->piece(sink->arg, q->choice, piece->text, piece->bytes))
        mx_fail(&q->request->failure, MX_NOMEM, NULL, "out of memory for a piece of the answer");
}

static void finish_choice(mx_scheduler *s, mx_sequence *q, mx_finish finish)
{
    q->finish = finish;
    q->done = true;
    q->request->n_done++;
    stop_running(s, q);
}

/* The choice ends without a stop string, unless what was held back completes one. */
static void finish_text(mx_scheduler *s, mx_sequence *q, mx_finish finish)
{
    mx_piece piece;

    if (mx_output_finish(q->output, &piece, &q->request->failure) != MX_OK)
        return;
    send_piece(q, &piece);
    finish_choice(s, q, piece.stopped ? MX_FINISH_STOP : finish);
}

/* The next token from the logits of the last one. They are overwritten. */
static void make_token(mx_scheduler *s, mx_sequence *q, float *logits)
{
    mx_request *r = q->request;
    int generated = mx_sequence_generated(q);
    mx_logprobs *logprobs = NULL;
    mx_piece piece;
    int32_t token;

    if (r->sampling.top_logprobs >= 0 && !(logprobs = mx_sequence_next_logprobs(q))) {
        mx_fail(&r->failure, MX_NOMEM, NULL, "out of memory for logprobs");
        return;
    }
    token = mx_sampler_pick(s->sampler, &r->sampling, logits, q->history, (size_t)q->n_history,
                            (size_t)generated, q->choice, logprobs);
    if (!r->ignore_eos && mx_token_ends_turn(s->options.tokenizer, token)) {
        finish_text(s, q, MX_FINISH_STOP);
        return;
    }
    q->history[q->n_history++] = token;
    add(&s->count.completion_tokens, 1);
    mx_tenant_spend(r->account, 1);
    if (mx_output_add(q->output, token, &piece, &r->failure) != MX_OK)
        return;
    send_piece(q, &piece);
    if (piece.stopped)
        finish_choice(s, q, MX_FINISH_STOP);
    else if (generated + 1 == r->max_tokens)
        finish_text(s, q, MX_FINISH_LENGTH);
}

static void count_time(atomic_llong times[MX_TIME_BUCKETS], int64_t us)
{
    int bucket = 0;

    while (bucket < MX_TIME_BUCKETS - 1 && us > INT64_C(1000) << bucket)
        bucket++;
    add(&times[bucket], 1);
}

static void note_first_token(mx_scheduler *s, mx_request *r)
{
    int64_t queue_us, first_us;

    if (r->first_token_ns != 0)
        return;
    r->first_token_ns = mx_now_ns();
    queue_us = (r->begun_ns - r->arrived_ns) / 1000;
    first_us = (r->first_token_ns - r->arrived_ns) / 1000;
    r->cached_tokens = r->sequences[0].n_cached;
    add(&s->count.prompt_tokens, r->n_prompt);
    add(&s->count.cached_tokens, r->cached_tokens);
    add(&s->count.first_tokens, 1);
    add(&s->count.queue_us, queue_us);
    add(&s->count.first_token_us, first_us);
    count_time(s->count.queue_times, queue_us);
    count_time(s->count.first_token_times, first_us);
    if (r->sink.begun && !r->embed)
        r->sink.begun(r->sink.arg, r->cached_tokens);
}

/* The prompt is computed: the other choices share its blocks and take their first tokens from the
 * same logits. */
static void fork_choices(mx_scheduler *s, mx_request *r, const float *logits)
{
    for (int i = 1; i < r->n; i++)
        if (mx_sequence_fork(&r->sequences[i], s->pool, &r->failure) != MX_OK)
            return;
    for (int i = 1; i < r->n && r->failure.status == MX_OK; i++) {
        memcpy(s->first_logits, logits, (size_t)s->limits.n_vocab * sizeof *logits);
        make_token(s, &r->sequences[i], s->first_logits);
    }
}

static void hand_out_embedding(mx_scheduler *s, mx_sequence *q, const float *hidden, int n)
{
    mx_request *r = q->request;

    mx_request_add_hidden(r, hidden, n);
    if (q->n_computed < q->n_history)
        return;
    note_first_token(s, r);
    if (mx_request_finish_embedding(r, &r->failure) == MX_OK)
        finish_choice(s, q, MX_FINISH_STOP);
}

static void hand_out_results(mx_scheduler *s)
{
    float *logits = s->logits;
    const float *hidden = s->hidden;

    for (int m = 0; m < s->n_members; m++) {
        mx_sequence *q = s->member[m];
        mx_request *r = q->request;
        bool has_logits = gives_logits(q);
        int n = q->take;

        q->n_computed += n;
        q->take = 0;
        mx_sequence_publish(q, s->prefix);
        if (r->embed) {
            hand_out_embedding(s, q, hidden, n);
            hidden += (size_t)n * (size_t)s->limits.dim;
        }
        if (r->session == MX_SESSION_SAVE && q->n_computed == q->n_history)
            mx_sequence_lend(q, s->pool);
        if (!has_logits)
            continue;
        note_first_token(s, r);
        if (r->sequences[r->n - 1].follows)
            fork_choices(s, r, logits);
        if (r->failure.status == MX_OK)
            make_token(s, q, logits);
        logits += s->limits.n_vocab;
    }
}

static void fail_members(mx_scheduler *s, mx_status status)
{
    for (int m = 0; m < s->n_members; m++)
        mx_fail(&s->member[m]->request->failure, status, NULL, "a step of the model failed");
}

/* ---- The thread -------------------------------------------------------------------------------*/

/* One step. False: there is nothing to compute until somebody rouses the scheduler. */
static bool run_step(mx_scheduler *s)
{
    mx_status status;

    collect_new(s);
    end_finished(s);
    admit_waiting(s);
    plan_step(s);
    if (s->n_members == 0)
        return false;
    status = compute_step(s);
    if (status == MX_OK)
        hand_out_results(s);
    else if (status != MX_CANCELLED) /* abandoned: the next step ends its members */
        fail_members(s, status);
    return true;
}

/* Until something happens or the next request runs out of time. The close may have roused the
 * thread just before it looked for what is new: hence `stopping`. */
static void rest(mx_scheduler *s)
{
    int64_t until = INT64_MAX;
    struct timespec t;

    for (const mx_request *r = s->active; r; r = r->next)
        if (r->deadline_ns < until && atomic_load(&r->lent) != MX_LENT)
            until = r->deadline_ns;
    t = (struct timespec){.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    pthread_mutex_lock(&s->lock);
    while (!s->roused && !atomic_load(&s->stopping) && mx_now_ns() < until)
        if (until == INT64_MAX)
            pthread_cond_wait(&s->rouse, &s->lock);
        else
            pthread_cond_timedwait(&s->rouse, &s->lock, &t);
    pthread_mutex_unlock(&s->lock);
}

static void *run(void *arg)
{
    mx_scheduler *s = arg;
    mx_error error;

    while (!atomic_load(&s->stopping))
        if (!run_step(s))
            rest(s);
    collect_new(s);
    mx_fail(&error, MX_UNAVAILABLE, NULL, "the engine was closed");
    while (s->active)
        end_request(s, &s->active, &error);
    return NULL;
}

static void rouse(mx_scheduler *s) /* under the lock */
{
    s->roused = true;
    pthread_cond_signal(&s->rouse);
}

/* The host's signals are not ours to take. Under the lock. */
static mx_status start_thread(mx_scheduler *s, mx_error *error)
{
    sigset_t all, before;
    int rc;

    if (s->started)
        return MX_OK;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&s->thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return mx_fail(error, MX_NOMEM, NULL, "cannot start the scheduler's thread: %s",
                       strerror(rc));
    pthread_setname_np(s->thread, "mixtral-step");
    s->started = true;
    return MX_OK;
}

/* ---- From other threads -----------------------------------------------------------------------*/

/* When a place in the queue may be free again. */
static int64_t retry_after_ms(const mx_scheduler *s)
{
    int64_t ms = atomic_load(&s->count.turnover_us) / 1000;

    if (ms == 0)
        return RETRY_UNKNOWN_MS;
    return ms < RETRY_MIN_MS ? RETRY_MIN_MS : ms > RETRY_MAX_MS ? RETRY_MAX_MS : ms;
}

static mx_status enter(mx_scheduler *s, mx_request *r, mx_error *error) /* under the lock */
{
    long long waiting = atomic_load(&s->count.waiting);
    mx_status status;

    if (atomic_load(&s->stopping))
        return mx_fail(error, MX_UNAVAILABLE, NULL, "the engine is closed");
    if (waiting >= s->options.max_queue) {
        mx_fail(error, MX_BUSY, NULL, "the queue is full: %lld requests wait already; try again in %lld ms", waiting,
                (long long)retry_after_ms(s));
        return mx_retry_after(error, retry_after_ms(s));
    }
    status = start_thread(s, error);
    if (status != MX_OK)
        return status;
    r->handle = ++s->last_handle;
    *s->inbox_end = r;
    s->inbox_end = &r->next;
    add(&s->count.waiting, 1);
    atomic_fetch_add(&s->count.live, 1);
    mx_tenant_spend(r->account, r->n_prompt);
    rouse(s);
    return MX_OK;
}

mx_status mx_scheduler_submit(mx_scheduler *s, const mx_request_spec *spec, uint64_t *handle,
                              mx_error *error)
{
    mx_request *r;
    mx_status status = mx_request_open(spec, &s->limits, &r, error);

    if (status != MX_OK)
        return status;
    pthread_mutex_lock(&s->lock);
    status = enter(s, r, error);
    if (status == MX_OK)
        *handle = r->handle; /* once unlocked, it may end at any time */
    pthread_mutex_unlock(&s->lock);
    if (status != MX_OK)
        mx_request_close(r);
    return status;
}

void mx_scheduler_cancel(mx_scheduler *s, uint64_t handle)
{
    mx_request *lists[2];

    pthread_mutex_lock(&s->lock);
    lists[0] = s->inbox;
    lists[1] = s->active;
    for (int i = 0; i < 2; i++)
        for (mx_request *r = lists[i]; r; r = r->next)
            if (r->handle == handle)
                atomic_store(&r->cancelled, true);
    rouse(s);
    pthread_mutex_unlock(&s->lock);
}

void mx_scheduler_release(mx_scheduler *s, uint64_t handle, bool filled)
{
    pthread_mutex_lock(&s->lock);
    for (mx_request *r = s->active; r; r = r->next)
        if (r->handle == handle)
            atomic_store(&r->lent, filled ? MX_LENT_BACK_FILLED : MX_LENT_BACK);
    rouse(s);
    pthread_mutex_unlock(&s->lock);
}

void mx_scheduler_wake(mx_scheduler *s)
{
    pthread_mutex_lock(&s->lock);
    rouse(s);
    pthread_mutex_unlock(&s->lock);
}

int mx_scheduler_live(const mx_scheduler *s)
{
    return atomic_load(&s->count.live);
}

size_t mx_scheduler_block_bytes(const mx_scheduler *s)
{
    return mx_kv_block_bytes(mx_kv_pool_shape(s->pool));
}

mx_kv_type mx_scheduler_kv_type(const mx_scheduler *s)
{
    return s->options.kv_type;
}

void mx_scheduler_get_stats(const mx_scheduler *s, mx_scheduler_stats *stats)
{
    int total = mx_kv_pool_total(s->pool), used = mx_kv_pool_used(s->pool);
    int cached = mx_kv_pool_cached(s->pool);

    *stats = (mx_scheduler_stats){
        .requests_running = atomic_load(&s->count.running),
        .requests_waiting = atomic_load(&s->count.waiting),
        .requests_done = atomic_load(&s->count.done),
        .requests_failed = atomic_load(&s->count.failed),
        .kv_blocks_total = total,
        .kv_blocks_used = used,
        .kv_blocks_cached = cached,
        .kv_blocks_free = total - used - cached > 0 ? total - used - cached : 0,
        .prompt_tokens = atomic_load(&s->count.prompt_tokens),
        .cached_tokens = atomic_load(&s->count.cached_tokens),
        .completion_tokens = atomic_load(&s->count.completion_tokens),
        .preemptions = atomic_load(&s->count.preemptions),
        .steps = atomic_load(&s->count.steps),
        .first_tokens = atomic_load(&s->count.first_tokens),
        .queue_us = atomic_load(&s->count.queue_us),
        .first_token_us = atomic_load(&s->count.first_token_us),
        .weight_bytes = (int64_t)mx_model_weight_bytes(s->options.model),
        .kv_bytes = (int64_t)total * (int64_t)mx_kv_block_bytes(mx_kv_pool_shape(s->pool)),
    };
    for (int i = 0; i < MX_BATCH_BUCKETS; i++)
        stats->batch[i] = atomic_load(&s->count.batch[i]);
    for (int i = 0; i < MX_TIME_BUCKETS; i++) {
        stats->queue_times[i] = atomic_load(&s->count.queue_times[i]);
        stats->first_token_times[i] = atomic_load(&s->count.first_token_times[i]);
    }
}

/* ---- Open and close ---------------------------------------------------------------------------*/

static mx_status open_parts(mx_scheduler *s, mx_error *error)
{
    const mx_scheduler_options *o = &s->options;
    const mx_hparams *h = &o->model->hparams;
    mx_kv_shape shape = {h->n_layers, h->n_kv_heads, h->head_dim, o->kv_type};
    size_t n_vocab = (size_t)h->n_vocab, dim = (size_t)h->dim;
    int64_t pool_tokens;
    mx_status status = mx_kv_pool_open(&shape, o->kv_pool_bytes, &s->pool, error);

    if (status == MX_OK)
        status = mx_threads_open(o->threads, &s->threads, error);
    if (status == MX_OK)
        status = mx_forward_open(o->model, o->kernels, s->threads, s->pool, STEP_TOKENS,
                                 &s->forward, error);
    if (status == MX_OK)
        status = mx_prefix_open(s->pool, &s->prefix, error);
    if (status == MX_OK)
        status = mx_sampler_open(h->n_vocab, &s->sampler, error);
    if (status != MX_OK)
        return status;
    s->logits = malloc(MAX_RUNNING * n_vocab * sizeof *s->logits);
    s->first_logits = malloc(n_vocab * sizeof *s->first_logits);
    s->hidden = malloc(STEP_TOKENS * dim * sizeof *s->hidden);
    if (!s->logits || !s->first_logits || !s->hidden)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %d rows of %d logits", MAX_RUNNING,
                       h->n_vocab);
    pool_tokens = (int64_t)mx_kv_pool_total(s->pool) * MX_KV_SPAN;
    s->limits = (mx_request_limits){
        .tokenizer = o->tokenizer,
        .prefix = s->prefix,
        .n_vocab = h->n_vocab,
        .dim = h->dim,
        .context = o->context,
        .pool_tokens = pool_tokens < INT_MAX ? (int)pool_tokens : INT_MAX,
    };
    return MX_OK;
}

mx_status mx_scheduler_open(const mx_scheduler_options *options, mx_scheduler **scheduler,
                            mx_error *error)
{
    mx_scheduler *s = calloc(1, sizeof *s);
    pthread_condattr_t monotonic;
    mx_status status;

    *scheduler = NULL;
    if (!s)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a scheduler");
    s->options = *options;
    s->inbox_end = &s->inbox;
    s->chunk = CHUNK_MIN;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->rouse, &monotonic);
    pthread_condattr_destroy(&monotonic);
    status = open_parts(s, error);
    if (status == MX_OK)
        *scheduler = s;
    else
        mx_scheduler_close(s);
    return status;
}

void mx_scheduler_close(mx_scheduler *s)
{
    bool started;

    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->stopping, true);
    started = s->started;
    rouse(s);
    pthread_mutex_unlock(&s->lock);
    if (started)
        pthread_join(s->thread, NULL);
    mx_forward_close(s->forward);
    mx_threads_close(s->threads);
    mx_prefix_close(s->prefix);
    mx_kv_pool_close(s->pool);
    mx_sampler_close(s->sampler);
    free(s->logits);
    free(s->first_logits);
    free(s->hidden);
    pthread_cond_destroy(&s->rouse);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
