/*
 * worker.c: the queue of calls, and what is done for each operation before (or instead of) the scheduler. See worker.h.
 *
 * The lock guards the queue, `current` and `stopping`. A channel's lock may be taken inside it, never the other way round;
 * the tokenizer and the scheduler are called without it.
 */
#include "worker.h"

#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "../model/chunks.h"
#include "result.h"

#define QUEUE_BYTES_MAX ((size_t)256 << 20) /* of the queued calls' texts */
#define RETRY_MS 1000                       /* texts are read in moments */
#define LONGEST_LOOK_MS 60000               /* mx_worker_expire's answer at most */
#define SEED_MASK ((UINT64_C(1) << 53) - 1) /* JSON numbers hold it everywhere */

struct mx_worker {
    int max_queue;
    mx_sessions *sessions;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work; /* the queue is not empty, or stopping */
    bool started, stopping;
    mx_call *first, **last;
    int n_queued;
    size_t queued_bytes;
    mx_call *current; /* the one being worked on */
};

mx_status mx_thread_start(pthread_t *thread, void *(*run)(void *), void *arg, mx_error *error)
{
    sigset_t all, before;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return mx_fail(error, MX_NOMEM, NULL, "cannot start a thread: %s", strerror(failed));
    return MX_OK;
}

/* ---- What a call needs ---- */

/* A text that no tokenizer could fit into the context is refused before it is tokenised. */
static mx_status check_fits(const mx_served *served, const char *field, size_t bytes, mx_error *error)
{
    size_t longest = mx_tokenizer_longest_piece(served->tokenizer);

    if (bytes / longest < (size_t)served->context)
        return MX_OK;
    return mx_fail(error, MX_TOO_LARGE, field,
                   "%s: %zu bytes do not fit a context of %d tokens: a token has at most %zu bytes", field, bytes,
                   served->context, longest);
}

/* A text as a prompt: BOS where the vocabulary adds it; EOS likewise at the end of what is to be embedded. */
static mx_status tokenize_prompt(const mx_call *call, mx_tokens *tokens, uint8_t **classes, mx_error *error)
{
    const mx_query *query = &call->query;
    const mx_tokenizer *tokenizer = query->served->tokenizer;
    const char *field = query->op == MX_OP_EMBED ? "text" : "prompt";
    mx_status status = check_fits(query->served, field, query->text.bytes, error);

    if (status == MX_OK && mx_tokenizer_add_bos(tokenizer))
        status = mx_tokens_push(tokens, mx_tokenizer_bos(tokenizer), error);
    if (status == MX_OK)
        status = mx_tokenize(tokenizer, query->text.data, query->text.bytes, 0, &call->cancelled, tokens, error);
    if (status == MX_OK && query->op == MX_OP_EMBED && mx_tokenizer_add_eos(tokenizer))
        status = mx_tokens_push(tokens, mx_tokenizer_eos(tokenizer), error);
    if (status != MX_OK)
        return status;
    if (tokens->count == 0)
        return mx_fail(error, MX_INVALID, field, "%s: it is empty, and this vocabulary has no token to begin with", field);
    *classes = calloc(tokens->count, 1); /* all MX_CLASS_PROMPT */
    if (!*classes)
        return mx_fail(error, MX_NOMEM, field, "out of memory for %zu tokens", tokens->count);
    return MX_OK;
}

static mx_status render_messages(const mx_call *call, mx_tokens *tokens, uint8_t **classes, mx_error *error)
{
    const mx_query *query = &call->query;
    size_t bytes = 0;
    mx_status status;

    for (size_t i = 0; i < query->n_messages; i++)
        bytes += query->messages[i].bytes;
    status = check_fits(query->served, "messages", bytes, error);
    if (status == MX_OK)
        status = mx_chat_render(query->served->chat, query->template_kind, query->messages, query->n_messages,
                                &call->cancelled, tokens, classes, error);
    return status;
}

/* Hands tokens to the scheduler, which ends the call from then on. */
static mx_status submit(mx_call *call, const mx_tokens *tokens, const uint8_t *classes, mx_error *error)
{
    const mx_query *query = &call->query;
    mx_request_spec spec = {
        .embed = query->op == MX_OP_EMBED,
        .tokens = tokens->ids,
        .classes = classes,
        .n_tokens = tokens->count,
        .sampling = query->sampling,
        .n = query->n,
        .max_tokens = query->max_tokens,
        .ignore_eos = query->ignore_eos,
        .tenant = mx_call_tenant(call),
        .account = call->account,
        .cache = query->cache,
        .timeout_ms = query->timeout_ms,
        .arrived_ns = call->arrived_ns,
        .stop = query->stop,
        .n_stop = query->n_stop,
        .strip_space = query->op == MX_OP_CHAT,
        .sink = mx_call_sink(call),
    };
    uint64_t handle;
    mx_status status;

    if (!query->has_seed) {
        randombytes_buf(&spec.sampling.seed, sizeof(spec.sampling.seed));
        spec.sampling.seed &= SEED_MASK;
    }
    mx_call_hold(call); /* the sink's */
    status = mx_scheduler_submit(query->served->scheduler, &spec, &handle, error);
    if (status != MX_OK)
        mx_call_release(call);
    else if (mx_call_submitted(call, handle))
        mx_scheduler_cancel(query->served->scheduler, handle);
    return status;
}

static mx_status compute(const mx_worker *worker, mx_call *call, mx_error *error)
{
    mx_tokens tokens = {0};
    uint8_t *classes = NULL;
    mx_status status;

    if (call->query.op == MX_OP_CHAT || call->query.op == MX_OP_SESSION_SAVE)
        status = render_messages(call, &tokens, &classes, error);
    else
        status = tokenize_prompt(call, &tokens, &classes, error);
    if (status == MX_OK && call->query.op == MX_OP_SESSION_SAVE)
        status = mx_sessions_save(worker->sessions, call, tokens.ids, classes, tokens.count, error);
    else if (status == MX_OK)
        status = submit(call, &tokens, classes, error);
    mx_tokens_free(&tokens);
    free(classes);
    return status;
}

/* Of a text, or of a conversation as the template writes it */
static mx_status count_tokens(const mx_call *call, json_t **result, mx_error *error)
{
    const mx_query *query = &call->query;
    uint8_t *classes = NULL;
    mx_tokens tokens = {0};
    mx_status status;

    if (query->n_messages > 0)
        status = render_messages(call, &tokens, &classes, error);
    else
        status = mx_tokenize(query->served->tokenizer, query->text.data, query->text.bytes, 0, &call->cancelled, &tokens, error);
    if (status == MX_OK)
        *result = json_pack("{s:I}", "count", (json_int_t)tokens.count);
    mx_tokens_free(&tokens);
    free(classes);
    return status;
}

static mx_status tokenize(const mx_call *call, json_t **result, mx_error *error)
{
    const mx_str *text = &call->query.text;
    const mx_tokenizer *tokenizer = call->query.served->tokenizer;
    mx_tokens tokens = {0};
    mx_status status =
        mx_tokenize(tokenizer, text->data, text->bytes, 0, &call->cancelled, &tokens, error);

    if (status == MX_OK)
        *result = mx_result_tokens(tokenizer, &tokens);
    mx_tokens_free(&tokens);
    return status;
}

static mx_status detokenize(const mx_call *call, json_t **result, mx_error *error)
{
    char *text = NULL;
    size_t bytes = 0;
    mx_status status = mx_detokenize(call->query.served->tokenizer, call->query.tokens, call->query.n_tokens, false, &text,
                                     &bytes, error);

    if (status == MX_OK)
        *result = json_pack("{s:o}", "text", mx_json_text(text, bytes));
    free(text);
    return status;
}

static mx_status chunk(const mx_call *call, json_t **result, mx_error *error)
{
    const mx_query *query = &call->query;
    mx_chunk *chunks = NULL;
    size_t n = 0;
    mx_status status = mx_chunks(query->served->tokenizer, query->text.data, query->text.bytes, query->size,
                                 query->overlap, &call->cancelled, &chunks, &n, error);

    if (status != MX_OK)
        return status;
    *result = mx_result_chunks(query->text.data, chunks, n);
    free(chunks);
    return MX_OK;
}

/* Does one call's work. It has ended afterwards, or is the scheduler's. */
static void serve(const mx_worker *worker, mx_call *call)
{
    mx_error error = {0};
    json_t *result = NULL;
    mx_status status;

    switch (call->query.op) {
    case MX_OP_TOKEN_COUNT:
        status = count_tokens(call, &result, &error);
        break;
    case MX_OP_TOKENIZE:
        status = tokenize(call, &result, &error);
        break;
    case MX_OP_DETOKENIZE:
        status = detokenize(call, &result, &error);
        break;
    case MX_OP_CHUNKS:
        status = chunk(call, &result, &error);
        break;
    default:
        status = compute(worker, call, &error);
        if (status == MX_OK)
            return;
        break;
    }
    if (status == MX_OK)
        mx_call_result(call, result);
    else
        mx_call_error(call, &error);
}

/* ---- The queue ---- */

/* Takes *link out of the queue, under the lock. */
static mx_call *unlink_call(mx_worker *worker, mx_call **link)
{
    mx_call *call = *link;

    *link = call->queue_next;
    if (!*link)
        worker->last = link;
    worker->n_queued--;
    worker->queued_bytes -= call->queue_bytes;
    return call;
}

static void end_cancelled(mx_call *call)
{
    mx_error error;

    mx_fail(&error, MX_CANCELLED, NULL, "the request was cancelled");
    mx_call_error(call, &error); /* which says why */
    mx_call_release(call);
}

static void *run(void *arg)
{
    mx_worker *worker = arg;
    mx_call *call;

    pthread_mutex_lock(&worker->lock);
    while (true) {
        while (!worker->first && !worker->stopping)
            pthread_cond_wait(&worker->work, &worker->lock);
        if (worker->stopping)
            break;
        call = worker->current = unlink_call(worker, &worker->first);
        pthread_mutex_unlock(&worker->lock);
        serve(worker, call);
        pthread_mutex_lock(&worker->lock);
        worker->current = NULL;
        mx_call_release(call);
    }
    pthread_mutex_unlock(&worker->lock);
    return NULL;
}

mx_status mx_worker_open(int max_queue, mx_sessions *sessions, mx_worker **worker, mx_error *error)
{
    mx_worker *w = calloc(1, sizeof(*w));

    *worker = NULL;
    if (!w)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the worker");
    if (pthread_mutex_init(&w->lock, NULL) != 0) {
        free(w);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the worker's lock");
    }
    if (pthread_cond_init(&w->work, NULL) != 0) {
        pthread_mutex_destroy(&w->lock);
        free(w);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the worker's queue");
    }
    w->max_queue = max_queue;
    w->sessions = sessions;
    w->last = &w->first;
    *worker = w;
    return MX_OK;
}

void mx_worker_close(mx_worker *worker)
{
    mx_error closing;
    uint64_t handle;

    if (!worker)
        return;
    mx_fail(&closing, MX_UNAVAILABLE, NULL, "the engine was closed");
    pthread_mutex_lock(&worker->lock);
    worker->stopping = true;
    if (worker->current)
        mx_call_cancel(worker->current, &closing, &handle);
    pthread_cond_signal(&worker->work);
    pthread_mutex_unlock(&worker->lock);
    if (worker->started)
        pthread_join(worker->thread, NULL);
    while (worker->first) {
        mx_call *call = unlink_call(worker, &worker->first);

        mx_call_error(call, &closing);
        mx_call_release(call);
    }
    pthread_cond_destroy(&worker->work);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

mx_status mx_worker_add(mx_worker *worker, mx_call *call, mx_error *error)
{
    mx_status status = MX_OK;

    pthread_mutex_lock(&worker->lock);
    if (worker->n_queued >= worker->max_queue || worker->queued_bytes > QUEUE_BYTES_MAX - call->queue_bytes) {
        mx_fail(error, MX_BUSY, NULL, "%d requests with %zu bytes wait to be read already; try again in %d ms",
                worker->n_queued, worker->queued_bytes, RETRY_MS);
        status = mx_retry_after(error, RETRY_MS);
    } else if (!worker->started) {
        status = mx_thread_start(&worker->thread, run, worker, error);
    }
    if (status == MX_OK) {
        worker->started = true;
        call->queue_next = NULL;
        *worker->last = call;
        worker->last = &call->queue_next;
        worker->n_queued++;
        worker->queued_bytes += call->queue_bytes;
        pthread_cond_signal(&worker->work);
    }
    pthread_mutex_unlock(&worker->lock);
    return status;
}

void mx_worker_drop(mx_worker *worker, mx_call *call)
{
    mx_call **link, *dropped = NULL;

    pthread_mutex_lock(&worker->lock);
    for (link = &worker->first; *link && *link != call; link = &(*link)->queue_next)
        continue;
    if (*link)
        dropped = unlink_call(worker, link);
    pthread_mutex_unlock(&worker->lock);
    if (dropped)
        end_cancelled(dropped);
}

int mx_worker_pending(mx_worker *worker)
{
    int n;

    pthread_mutex_lock(&worker->lock);
    n = worker->n_queued + (worker->current != NULL);
    pthread_mutex_unlock(&worker->lock);
    return n;
}

/* Marks a call whose time is over; otherwise *next_ms becomes the time that is left, where that is sooner. */
static bool expired(mx_call *call, int64_t now_ns, int64_t *next_ns)
{
    int64_t left_ns = call->arrived_ns + (int64_t)call->query.timeout_ms * 1000000 - now_ns;
    mx_error reason;
    uint64_t handle;

    if (call->query.timeout_ms == 0)
        return false;
    if (left_ns > 0) {
        if (left_ns < *next_ns)
            *next_ns = left_ns;
        return false;
    }
    mx_fail(&reason, MX_TIMEOUT, "timeout_ms", "the request took longer than its %d ms", call->query.timeout_ms);
    mx_call_cancel(call, &reason, &handle);
    return true;
}

int mx_worker_expire(mx_worker *worker)
{
    int64_t now_ns = mx_now_ns(), next_ns = INT64_MAX;
    mx_call **link, *call, *dropped = NULL;

    pthread_mutex_lock(&worker->lock);
    if (worker->current)
        expired(worker->current, now_ns, &next_ns);
    for (link = &worker->first; *link;) {
        if (!expired(*link, now_ns, &next_ns)) {
            link = &(*link)->queue_next;
            continue;
        }
        call = unlink_call(worker, link);
        call->queue_next = dropped;
        dropped = call;
    }
    pthread_mutex_unlock(&worker->lock);
    while (dropped) {
        call = dropped;
        dropped = call->queue_next;
        end_cancelled(call);
    }
    if (next_ns == INT64_MAX)
        return -1;
    return next_ns > LONGEST_LOOK_MS * INT64_C(1000000) ? LONGEST_LOOK_MS : (int)(next_ns / 1000000) + 1;
}
