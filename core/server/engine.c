/*
 * engine.c: mx_engine_*: one model with everything it needs, opened and closed in order.
 *
 * Immutable after open but for what its parts guard themselves; any thread may connect. Whoever closes an engine makes sure that
 * nobody uses it any more; clients may outlive it and see MX_UNAVAILABLE.
 */
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "../math/machine.h"
#include "server.h"

#define DEFAULT_MAX_QUEUE 256
#define DEFAULT_MAX_STEP_MS 250
#define DEFAULT_STALL_TIMEOUT_MS 60000
#define THREADS_MAX 256

struct mx_engine {
    mx_model *model;
    mx_tokenizer *tokenizer;
    mx_chat_template *chat;
    mx_scheduler *scheduler;
    mx_server *server;
    char name[128]; /* what requests call the model */
};

static mx_status check_range(const char *option, int64_t value, int64_t max, mx_error *error)
{
    if (value >= 0 && value <= max)
        return MX_OK;
    return mx_fail(error, MX_INVALID, option, "option %s: expected an integer from 0 to %lld, got %lld", option,
                   (long long)max, (long long)value);
}

static mx_status check_options(const mx_engine_options *options, mx_error *error)
{
    mx_status status = check_range("threads", options->threads, THREADS_MAX, error);

    if (status == MX_OK)
        status = check_range("context", options->context, INT_MAX, error);
    if (status == MX_OK)
        status = check_range("kv_pool_bytes", options->kv_pool_bytes, INT64_MAX, error);
    if (status == MX_OK)
        status = check_range("max_queue", options->max_queue, INT_MAX, error);
    if (status == MX_OK)
        status = check_range("max_step_ms", options->max_step_ms, INT_MAX, error);
    if (status == MX_OK)
        status = check_range("stall_timeout_ms", options->stall_timeout_ms, INT_MAX, error);
    if (status == MX_OK && options->name && strlen(options->name) >= sizeof(((mx_engine *)0)->name))
        status = mx_fail(error, MX_INVALID, "name", "option name: at most %zu bytes, got %zu",
                         sizeof(((mx_engine *)0)->name) - 1, strlen(options->name));
    return status;
}

/* One full context, or a quarter of the available memory where that is less. */
static int64_t default_kv_pool_bytes(const mx_hparams *h, mx_kv_type type, int context)
{
    mx_kv_shape shape = {h->n_layers, h->n_kv_heads, h->head_dim, type};
    int64_t blocks = ((int64_t)context + MX_KV_SPAN - 1) / MX_KV_SPAN;
    int64_t block_bytes = (int64_t)mx_kv_block_bytes(&shape), available = mx_machine_available_bytes("");

    if (available / 4 / block_bytes < blocks)
        return available / 4;
    return blocks * block_bytes;
}

static mx_status open_model(mx_engine *engine, const char *path, const mx_engine_options *options, mx_error *error)
{
    mx_status status = mx_model_open(path, &engine->model, error);
    const mx_hparams *h;

    if (status == MX_OK)
        status = mx_tokenizer_open(engine->model->gguf, &engine->tokenizer, error);
    if (status == MX_OK)
        status = mx_chat_template_open(engine->model->gguf, engine->tokenizer, &engine->chat, error);
    if (status != MX_OK)
        return status;
    h = &engine->model->hparams;
    if (mx_tokenizer_n_vocab(engine->tokenizer) < h->n_vocab)
        return mx_fail(error, MX_CORRUPT, "tokenizer.ggml.tokens", "tokenizer.ggml.tokens: expected %d pieces, as "
                       "token_embd.weight has rows, got %d", h->n_vocab, mx_tokenizer_n_vocab(engine->tokenizer));
    if (options->context > h->context)
        return mx_fail(error, MX_INVALID, "context", "option context: expected at most %d, the model's own, got %d",
                       h->context, options->context);
    snprintf(engine->name, sizeof(engine->name), "%s", options->name ? options->name : engine->model->name);
    return MX_OK;
}

static mx_status open_scheduler(mx_engine *engine, const mx_engine_options *options, int context, mx_error *error)
{
    mx_scheduler_options o = {
        .model = engine->model,
        .tokenizer = engine->tokenizer,
        .kernels = mx_kernels_get(options->kernels),
        .threads = options->threads ? options->threads : mx_threads_default(),
        .context = context,
        .kv_pool_bytes = options->kv_pool_bytes,
        .max_queue = options->max_queue ? options->max_queue : DEFAULT_MAX_QUEUE,
        .max_step_ms = options->max_step_ms ? options->max_step_ms : DEFAULT_MAX_STEP_MS,
        .log = options->log,
        .log_arg = options->log_arg,
    };
    mx_status status;

    if (!o.kernels)
        return mx_fail(error, MX_INVALID, "kernels", "option kernels: expected one that this machine runs (%s), got %s",
                       mx_kernels_names(), options->kernels);
    status = mx_kv_type_choose(options->kv_type, engine->model->hparams.head_dim, &o.kv_type, error);
    if (status != MX_OK)
        return status;
    if (o.kv_pool_bytes == 0)
        o.kv_pool_bytes = default_kv_pool_bytes(&engine->model->hparams, o.kv_type, context);
    return mx_scheduler_open(&o, &engine->scheduler, error);
}

static mx_status open_server(mx_engine *engine, const mx_engine_options *options, int context, mx_error *error)
{
    mx_server_options o = {
        .model = engine->model,
        .tokenizer = engine->tokenizer,
        .chat = engine->chat,
        .scheduler = engine->scheduler,
        .model_name = engine->name,
        .context = context,
        .max_queue = options->max_queue ? options->max_queue : DEFAULT_MAX_QUEUE,
        .stall_timeout_ms = options->stall_timeout_ms ? options->stall_timeout_ms : DEFAULT_STALL_TIMEOUT_MS,
        .log = options->log,
        .log_arg = options->log_arg,
    };

    return mx_server_open(&o, &engine->server, error);
}

mx_status mx_engine_open(const char *path, const mx_engine_options *options, mx_engine **engine, mx_error *error)
{
    const mx_engine_options defaults = {0};
    mx_engine *e = NULL;
    mx_status status;
    int context;

    *engine = NULL;
    if (!options)
        options = &defaults;
    if (sodium_init() < 0)
        return mx_fail(error, MX_INTERNAL, NULL, "libsodium cannot be initialised");
    status = check_options(options, error);
    if (status != MX_OK)
        return status;
    e = calloc(1, sizeof(*e));
    if (!e)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for an engine");
    status = open_model(e, path, options, error);
    if (status == MX_OK) {
        context = options->context ? options->context : e->model->hparams.context;
        status = open_scheduler(e, options, context, error);
        if (status == MX_OK)
            status = open_server(e, options, context, error);
    }
    if (status != MX_OK)
        mx_engine_close(e);
    else
        *engine = e;
    return status;
}

mx_status mx_engine_connect(mx_engine *engine, int *fd, mx_error *error)
{
    return mx_server_connect(engine->server, fd, error);
}

mx_status mx_engine_listen(mx_engine *engine, int fd, const uint32_t *trusted_uids, size_t n_trusted, mx_error *error)
{
    _Static_assert(sizeof(uid_t) == sizeof(uint32_t), "a uid has 32 bits");
    return mx_server_listen(engine->server, fd, trusted_uids, n_trusted, error);
}

int mx_engine_drain(mx_engine *engine)
{
    mx_scheduler_stats stats;
    int pending;

    mx_server_drain(engine->server);
    pending = mx_server_pending(engine->server); /* first: what leaves the worker is with the scheduler */
    mx_scheduler_get_stats(engine->scheduler, &stats);
    return pending + (int)(stats.requests_running + stats.requests_waiting);
}

void mx_engine_close(mx_engine *engine)
{
    if (!engine)
        return;
    if (engine->server)
        mx_server_stop(engine->server);
    mx_scheduler_close(engine->scheduler);
    mx_server_close(engine->server);
    mx_chat_template_close(engine->chat);
    mx_tokenizer_close(engine->tokenizer);
    mx_model_close(engine->model);
    free(engine);
}

void mx_engine_abandon(mx_engine *engine)
{
    if (engine)
        mx_server_abandon(engine->server);
}
