/*
 * result.c: results as JSON. See result.h.
 */
#include "result.h"

#include <string.h>
#include "wire.h"

/* A token as text and as bytes: {"token", "logprob", "bytes"}, as OpenAI's interface has it. */
static json_t *token_logprob(const mx_tokenizer *tokenizer, int32_t id, float logprob)
{
    char text[512];
    size_t length = mx_token_text(tokenizer, id, true, text, sizeof(text));
    json_t *bytes = json_array();

    if (length > sizeof(text))
        length = sizeof(text);
    for (size_t i = 0; i < length; i++) {
        if (json_array_append_new(bytes, json_integer((unsigned char)text[i])) != 0) {
            json_decref(bytes);
            return NULL;
        }
    }
    return json_pack("{s:o, s:f, s:o}", "token", mx_json_text(text, length), "logprob", (double)logprob, "bytes", bytes);
}

/* {"content": [{"token", "logprob", "bytes", "top_logprobs": [{"token", "logprob", "bytes"}]}]} */
static json_t *choice_logprobs(const mx_tokenizer *tokenizer, const mx_choice *choice)
{
    json_t *content = json_array(), *entry, *top;

    for (int i = 0; i < choice->n_logprobs; i++) {
        const mx_logprobs *logprobs = &choice->logprobs[i];

        top = json_array();
        for (int j = 0; j < logprobs->n_top && top; j++) {
            if (json_array_append_new(top, token_logprob(tokenizer, logprobs->top_id[j], logprobs->top_logprob[j])) != 0) {
                json_decref(top);
                top = NULL;
            }
        }
        entry = token_logprob(tokenizer, choice->token[i], logprobs->logprob);
        if (json_object_set_new(entry, "top_logprobs", top) != 0 || json_array_append(content, entry) != 0) {
            json_decref(entry);
            json_decref(content);
            return NULL;
        }
        json_decref(entry);
    }
    return json_pack("{s:o}", "content", content);
}

static const char *finish_name(mx_finish finish)
{
    return finish == MX_FINISH_STOP ? "stop" : "length";
}

static json_t *choices(const mx_outcome *outcome, const mx_tokenizer *tokenizer)
{
    json_t *array = json_array(), *entry;

    for (int i = 0; i < outcome->n_choices; i++) {
        const mx_choice *choice = &outcome->choices[i];

        entry = json_pack("{s:o, s:s}", "text", mx_json_text(choice->text, choice->text_bytes), "finish_reason",
                          finish_name(choice->finish));
        if (entry && choice->stop &&
            json_object_set_new(entry, "stop", mx_json_text(choice->stop, strlen(choice->stop))) != 0) {
            json_decref(entry);
            entry = NULL;
        }
        if (entry && choice->n_logprobs > 0 &&
            json_object_set_new(entry, "logprobs", choice_logprobs(tokenizer, choice)) != 0) {
            json_decref(entry);
            entry = NULL;
        }
        if (json_array_append_new(array, entry) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *embedding(const mx_outcome *outcome)
{
    json_t *array = json_array();

    for (int i = 0; i < outcome->dim; i++) {
        if (json_array_append_new(array, json_real((double)outcome->embedding[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return json_pack("{s:o, s:i}", "embedding", array, "tokens", outcome->prompt_tokens);
}

json_t *mx_result_of_outcome(const mx_outcome *outcome, const mx_tokenizer *tokenizer, const char *model_name)
{
    const mx_choice *first = outcome->choices;

    if (outcome->embedding)
        return embedding(outcome);
    return json_pack("{s:o, s:s, s:i, s:i, s:i, s:f, s:f, s:I, s:o, s:o}",
                     "text", mx_json_text(first->text, first->text_bytes),
                     "finish_reason", finish_name(first->finish),
                     "prompt_tokens", outcome->prompt_tokens,
                     "cached_tokens", outcome->cached_tokens,
                     "completion_tokens", outcome->completion_tokens,
                     "first_token_ms", outcome->first_token_ms,
                     "total_ms", outcome->total_ms,
                     "seed", (json_int_t)outcome->seed,
                     "model", mx_json_text(model_name, strlen(model_name)),
                     "choices", choices(outcome, tokenizer));
}

json_t *mx_result_tokens(const mx_tokenizer *tokenizer, const mx_tokens *tokens)
{
    json_t *array = json_array();

    for (size_t i = 0; i < tokens->count; i++) {
        mx_str piece = mx_token_piece(tokenizer, tokens->ids[i]);

        if (json_array_append_new(array, json_pack("{s:i, s:o}", "id", tokens->ids[i], "piece",
                                                   mx_json_text(piece.data, piece.bytes))) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return json_pack("{s:o}", "tokens", array);
}

json_t *mx_result_chunks(const char *text, const mx_chunk *chunks, size_t n)
{
    json_t *array = json_array();

    for (size_t i = 0; i < n; i++) {
        const mx_chunk *c = &chunks[i];

        if (json_array_append_new(array, json_pack("{s:o, s:I, s:I, s:I}", "text",
                                                   mx_json_text(text + c->start, c->end - c->start), "start",
                                                   (json_int_t)c->start, "end", (json_int_t)c->end, "tokens",
                                                   (json_int_t)c->tokens)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return json_pack("{s:o}", "chunks", array);
}

static json_t *model_facts(const mx_served *served)
{
    static const char *const templates[] = {
        [MX_TEMPLATE_NONE] = NULL, [MX_TEMPLATE_MIXTRAL] = "mixtral", [MX_TEMPLATE_CHATML] = "chatml",
        [MX_TEMPLATE_LLAMA3] = "llama3"};
    const mx_model *model = served->model;
    const mx_hparams *h = &model->hparams;
    char identity[2 * sizeof(model->identity) + 1];

    for (size_t i = 0; i < sizeof(model->identity); i++)
        snprintf(identity + 2 * i, 3, "%02x", model->identity[i]);
    return json_pack("{s:o, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:s, s:s?}",
                     "name", mx_json_text(served->name, strlen(served->name)),
                     "architecture", "llama", /* the one there is: weights.c refuses others */
                     "n_layers", h->n_layers,
                     "dim", h->dim,
                     "n_experts", h->n_experts,
                     "n_experts_used", h->n_experts_used,
                     "n_vocab", h->n_vocab,
                     "context", served->context,
                     "weight_bytes", (json_int_t)mx_model_weight_bytes(model),
                     "identity", identity,
                     "template", templates[mx_chat_template_kind(served->chat)]);
}

/* [of(model), ...] for one or all. */
static json_t *each(const mx_served_list *models, const mx_served *only, json_t *(*of)(const mx_served *))
{
    int n = atomic_load(&models->n);
    json_t *array = json_array();

    for (int i = 0; i < n; i++) {
        if ((!only || models->models[i] == only) && json_array_append_new(array, of(models->models[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

json_t *mx_result_models(const mx_served_list *models, const mx_served *only)
{
    return json_pack("{s:o}", "models", each(models, only, model_facts));
}

/* ---- Statistics ---- */

/* [{bound: limit, counted: count}, ...] with limits 1, 2, 4, ..., null for the last where it has none. */
static json_t *histogram(const char *bound, const char *counted, const int64_t *counts, int n, bool ends)
{
    json_t *array = json_array();

    for (int i = 0; i < n; i++) {
        json_t *limit = i == n - 1 && !ends ? json_null() : json_integer(INT64_C(1) << i);

        if (json_array_append_new(array, json_pack("{s:o, s:I}", bound, limit, counted, (json_int_t)counts[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *figures_of(const mx_scheduler_stats *stats)
{
    const struct {
        const char *name;
        int64_t value;
    } figures[] = {
        {"requests_running", stats->requests_running},   {"requests_waiting", stats->requests_waiting},
        {"requests_done", stats->requests_done},         {"requests_failed", stats->requests_failed},
        {"kv_blocks_total", stats->kv_blocks_total},     {"kv_blocks_used", stats->kv_blocks_used},
        {"kv_blocks_cached", stats->kv_blocks_cached},   {"kv_blocks_free", stats->kv_blocks_free},
        {"prompt_tokens", stats->prompt_tokens},         {"cached_tokens", stats->cached_tokens},
        {"completion_tokens", stats->completion_tokens}, {"preemptions", stats->preemptions},
        {"steps", stats->steps},                         {"first_tokens", stats->first_tokens},
        {"queue_ms_total", stats->queue_us / 1000},      {"first_token_ms_total", stats->first_token_us / 1000},
        {"weight_bytes", stats->weight_bytes},           {"kv_bytes", stats->kv_bytes},
    };
    const struct {
        const char *name;
        json_t *value;
    } histograms[] = {
        {"batch", histogram("tokens", "steps", stats->batch, MX_BATCH_BUCKETS, true)},
        {"queue_ms", histogram("ms", "requests", stats->queue_times, MX_TIME_BUCKETS, false)},
        {"first_token_ms", histogram("ms", "requests", stats->first_token_times, MX_TIME_BUCKETS, false)},
    };
    json_t *object = json_object();
    int failed = 0;

    for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
        failed |= json_object_set_new(object, figures[i].name, json_integer(figures[i].value));
    for (size_t i = 0; i < sizeof(histograms) / sizeof(histograms[0]); i++)
        failed |= json_object_set_new(object, histograms[i].name, histograms[i].value);
    if (!failed)
        return object;
    json_decref(object);
    return NULL;
}

static json_t *stats_of(const mx_served *served)
{
    mx_scheduler_stats stats;
    json_t *object;

    mx_scheduler_get_stats(served->scheduler, &stats);
    object = figures_of(&stats);
    if (json_object_set_new(object, "name", mx_json_text(served->name, strlen(served->name))) == 0)
        return object;
    json_decref(object);
    return NULL;
}

/* A snapshot is nothing but figures. */
static void add_stats(mx_scheduler_stats *sum, const mx_scheduler_stats *stats)
{
    _Static_assert(sizeof(*sum) % sizeof(int64_t) == 0, "every member is an int64_t");
    int64_t *to = (int64_t *)sum;
    const int64_t *from = (const int64_t *)stats;

    for (size_t i = 0; i < sizeof(*sum) / sizeof(int64_t); i++)
        to[i] += from[i];
}

json_t *mx_result_stats(const mx_served_list *models, const mx_served *only)
{
    mx_scheduler_stats sum = {0}, stats;
    int n = atomic_load(&models->n);
    json_t *object;

    if (only)
        return stats_of(only);
    for (int i = 0; i < n; i++) {
        mx_scheduler_get_stats(models->models[i]->scheduler, &stats);
        add_stats(&sum, &stats);
    }
    object = figures_of(&sum);
    if (json_object_set_new(object, "models", each(models, NULL, stats_of)) == 0)
        return object;
    json_decref(object);
    return NULL;
}
