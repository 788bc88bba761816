/*
 * served.c: opening a model with its tokenizer, template, pool and scheduler, in order. See served.h.
 */
#include "served.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "../math/machine.h"

#define DEFAULT_MAX_QUEUE 256
#define DEFAULT_MAX_STEP_MS 250
#define THREADS_MAX 256

/* ---- Options ---- */

static mx_status check_range(const char *option, int64_t value, int64_t max, mx_error *error)
{
    if (value >= 0 && value <= max)
        return MX_OK;
    return mx_fail(error, MX_INVALID, option, "option %s: expected an integer from 0 to %lld, got %lld", option,
                   (long long)max, (long long)value);
}

static mx_status check_options(const mx_engine_options *o, mx_error *error)
{
    const struct {
        const char *name;
        int64_t value, max;
    } numbers[] = {
        {"threads", o->threads, THREADS_MAX},
        {"context", o->context, INT_MAX},
        {"kv_pool_bytes", o->kv_pool_bytes, INT64_MAX},
        {"max_queue", o->max_queue, INT_MAX},
        {"max_step_ms", o->max_step_ms, INT_MAX},
        {"stall_timeout_ms", o->stall_timeout_ms, INT_MAX},
        {"tenant_requests", o->tenant_requests, INT_MAX},
        {"tenant_tokens_per_minute", o->tenant_tokens_per_minute, INT_MAX},
    };
    const size_t name_max = sizeof(((mx_served *)0)->name) - 1;
    mx_status status = MX_OK;

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && status == MX_OK; i++)
        status = check_range(numbers[i].name, numbers[i].value, numbers[i].max, error);
    if (status == MX_OK && o->name && strlen(o->name) > name_max)
        status = mx_fail(error, MX_INVALID, "name", "option name: at most %zu bytes, got %zu", name_max, strlen(o->name));
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

/* ---- Parts ---- */

static mx_status open_model(mx_served *s, const char *path, const mx_engine_options *options, mx_error *error)
{
    mx_status status = mx_model_open(path, &s->model, error);
    const mx_hparams *h;

    if (status == MX_OK)
        status = mx_tokenizer_open(s->model->gguf, &s->tokenizer, error);
    if (status == MX_OK)
        status = mx_chat_template_open(s->model->gguf, s->tokenizer, &s->chat, error);
    if (status != MX_OK)
        return status;
    h = &s->model->hparams;
    if (mx_tokenizer_n_vocab(s->tokenizer) < h->n_vocab)
        return mx_fail(error, MX_CORRUPT, "tokenizer.ggml.tokens", "tokenizer.ggml.tokens: expected %d pieces, as "
                       "token_embd.weight has rows, got %d", h->n_vocab, mx_tokenizer_n_vocab(s->tokenizer));
    if (options->context > h->context)
        return mx_fail(error, MX_INVALID, "context", "option context: expected at most %d, the model's own, got %d",
                       h->context, options->context);
    s->context = options->context ? options->context : h->context;
    snprintf(s->name, sizeof(s->name), "%s", options->name ? options->name : s->model->name);
    return MX_OK;
}

static mx_status open_scheduler(mx_served *s, const mx_engine_options *options, mx_error *error)
{
    mx_scheduler_options o = {
        .model = s->model,
        .tokenizer = s->tokenizer,
        .kernels = mx_kernels_get(options->kernels),
        .threads = options->threads ? options->threads : mx_threads_default(),
        .context = s->context,
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
    status = mx_kv_type_choose(options->kv_type, s->model->hparams.head_dim, &o.kv_type, error);
    if (status != MX_OK)
        return status;
    if (o.kv_pool_bytes == 0)
        o.kv_pool_bytes = default_kv_pool_bytes(&s->model->hparams, o.kv_type, s->context);
    return mx_scheduler_open(&o, &s->scheduler, error);
}

mx_status mx_served_open(const char *path, const mx_engine_options *options, mx_served **served, mx_error *error)
{
    mx_served *s = NULL;
    mx_status status = check_options(options, error);

    *served = NULL;
    if (status != MX_OK)
        return status;
    s = calloc(1, sizeof(*s));
    if (!s)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a model");
    status = open_model(s, path, options, error);
    if (status == MX_OK)
        status = open_scheduler(s, options, error);
    if (status != MX_OK)
        mx_served_close(s);
    else
        *served = s;
    return status;
}

void mx_served_close(mx_served *s)
{
    if (!s)
        return;
    mx_scheduler_close(s->scheduler);
    mx_chat_template_close(s->chat);
    mx_tokenizer_close(s->tokenizer);
    mx_model_close(s->model);
    free(s);
}

const mx_served *mx_served_find(const mx_served_list *list, const char *name)
{
    int n = atomic_load(&list->n);

    if (!name)
        return list->models[0];
    for (int i = 0; i < n; i++)
        if (strcmp(list->models[i]->name, name) == 0)
            return list->models[i];
    return NULL;
}
