/*
 * options.c: a request's JSON, checked. See options.h.
 *
 * Two tables say what there is: `ops` the fields of each operation, `options` each option's type, range and place in the
 * query. An option that an operation has no use for is an error there, not ignored.
 */
#include "options.h"

#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"

#define SEED_MAX 9007199254740991.0 /* 2^53 - 1: JSON numbers hold it everywhere */

/* ---- Saying what came ---- */

typedef struct {
    char text[64];
} got_text;

/* A short rendering of a value for "expected .., got ..". */
static got_text got(const json_t *value)
{
    got_text result = {"nothing"};
    size_t size = sizeof(result.text);

    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        snprintf(result.text, size, "an object");
        break;
    case JSON_ARRAY:
        snprintf(result.text, size, "an array");
        break;
    case JSON_STRING:
        snprintf(result.text, size, json_string_length(value) > 40 ? "\"%.40s...\"" : "\"%s\"", json_string_value(value));
        break;
    case JSON_INTEGER:
        snprintf(result.text, size, "%lld", (long long)json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(result.text, size, "%.9g", json_real_value(value));
        break;
    case JSON_TRUE:
        snprintf(result.text, size, "true");
        break;
    case JSON_FALSE:
        snprintf(result.text, size, "false");
        break;
    default:
        break;
    }
    return result;
}

/* ---- Options ---- */

typedef struct { /* one parse */
    mx_query *query;
    mx_error *error;
} parser;

typedef struct option option;
typedef mx_status take_fn(const parser *, const option *, const json_t *value);

struct option {
    const char *name;
    unsigned ops; /* bits 1 << mx_op that take it */
    take_fn *take;
    size_t offset;   /* of the member it fills */
    double min, max; /* of a number */
};

static void *member(const parser *p, const option *o)
{
    return (char *)p->query + o->offset;
}

/* "option NAME: expected EXPECTED, got VALUE" */
static mx_status mismatch(const parser *p, const option *o, const char *expected, const json_t *value)
{
    return mx_fail(p->error, MX_INVALID, o->name, "option %s: expected %s, got %s", o->name, expected, got(value).text);
}

static mx_status check_number(const parser *p, const option *o, const json_t *value, bool whole)
{
    double number = json_number_value(value);
    char expected[96];

    if (json_is_number(value) && number >= o->min && number <= o->max && (!whole || number == floor(number)))
        return MX_OK;
    snprintf(expected, sizeof(expected), whole ? "an integer from %.0f to %.0f" : "a number from %g to %g", o->min, o->max);
    return mismatch(p, o, expected, value);
}

static mx_status take_float(const parser *p, const option *o, const json_t *value)
{
    mx_status status = check_number(p, o, value, false);

    if (status == MX_OK)
        *(float *)member(p, o) = (float)json_number_value(value);
    return status;
}

static mx_status take_int(const parser *p, const option *o, const json_t *value)
{
    mx_status status = check_number(p, o, value, true);

    if (status == MX_OK)
        *(int *)member(p, o) = (int)json_number_value(value);
    return status;
}

static mx_status take_seed(const parser *p, const option *o, const json_t *value)
{
    mx_status status = check_number(p, o, value, true);

    if (status == MX_OK) {
        *(uint64_t *)member(p, o) = (uint64_t)json_number_value(value);
        p->query->has_seed = true;
    }
    return status;
}

static mx_status take_bool(const parser *p, const option *o, const json_t *value)
{
    if (!json_is_boolean(value))
        return mismatch(p, o, "true or false", value);
    *(bool *)member(p, o) = json_is_true(value);
    return MX_OK;
}

/* A string that C code can hold: not empty, without U+0000. */
static bool is_plain_string(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) > 0 &&
           strlen(json_string_value(value)) == json_string_length(value);
}

static mx_status take_string(const parser *p, const option *o, const json_t *value)
{
    if (!is_plain_string(value))
        return mismatch(p, o, "a string that is not empty, without U+0000", value);
    *(const char **)member(p, o) = json_string_value(value);
    return MX_OK;
}

/* Empty is a system message too: it silences the template's own. */
static mx_status take_system(const parser *p, const option *o, const json_t *value)
{
    if (!json_is_string(value))
        return mismatch(p, o, "a string", value);
    p->query->system = (mx_str){json_string_value(value), json_string_length(value)};
    return MX_OK;
}

/* It was chosen before the others were read: some of their ranges are the model's. */
static mx_status take_model(const parser *p, const option *o, const json_t *value)
{
    (void)o;
    (void)value;
    p->query->names_model = true;
    return MX_OK;
}

static mx_status take_template(const parser *p, const option *o, const json_t *value)
{
    int kind = json_is_string(value) ? mx_template_from_name(json_string_value(value)) : -1;

    if (kind < 0)
        return mismatch(p, o, "\"mixtral\", \"chatml\" or \"llama3\"", value);
    p->query->template_kind = (mx_template_kind)kind;
    return MX_OK;
}

static mx_status take_stop(const parser *p, const option *o, const json_t *value)
{
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    const json_t *item;

    if (count > MX_STOP_MAX)
        return mx_fail(p->error, MX_INVALID, o->name, "option %s: expected at most %d strings, got %zu", o->name, MX_STOP_MAX,
                       count);
    for (size_t i = 0; i < count; i++) {
        item = json_is_array(value) ? json_array_get(value, i) : value;
        if (!is_plain_string(item))
            return mismatch(p, o, "a string or an array of strings, none empty or with U+0000", item);
        p->query->stop[p->query->n_stop++] = json_string_value(item);
    }
    return MX_OK;
}

static int n_vocab_of(const mx_query *query)
{
    return query->served->model->hparams.n_vocab;
}

static mx_status take_logit_bias(const parser *p, const option *o, const json_t *value)
{
    mx_sampling *sampling = &p->query->sampling;
    const char *key;
    json_t *bias;
    char *end;
    long id;

    if (!json_is_object(value))
        return mismatch(p, o, "an object of token id to bias", value);
    if (json_object_size(value) == 0)
        return MX_OK;
    sampling->logit_bias = calloc(json_object_size(value), sizeof(*sampling->logit_bias));
    if (!sampling->logit_bias)
        return mx_fail(p->error, MX_NOMEM, o->name, "option %s: out of memory", o->name);
    json_object_foreach((json_t *)value, key, bias) {
        id = strtol(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || id >= n_vocab_of(p->query))
            return mx_fail(p->error, MX_INVALID, o->name, "option %s: expected token ids from 0 to %d as names, got \"%.40s\"",
                           o->name, n_vocab_of(p->query) - 1, key);
        if (check_number(p, o, bias, false) != MX_OK)
            return MX_INVALID;
        sampling->logit_bias[sampling->n_logit_bias++] =
            (mx_logit_bias){.id = (int32_t)id, .bias = (float)json_number_value(bias)};
    }
    return MX_OK;
}

static mx_status refuse(const parser *p, const option *o, const json_t *value)
{
    (void)value;
    return mx_fail(p->error, MX_INVALID, o->name, "option %s: not built yet", o->name);
}

#define CHAT (1u << MX_OP_CHAT)
#define CONVERSATION (CHAT | 1u << MX_OP_SESSION_SAVE)
#define TEXT (CHAT | 1u << MX_OP_COMPLETE)
#define COMPUTE (TEXT | 1u << MX_OP_EMBED)
#define ALL (~0u)
#define AT(name) offsetof(mx_query, name)

static const option options[] = {
    {"model", ALL, take_model, 0, 0, 0},
    {"tenant", ALL, take_string, AT(tenant), 0, 0},
    {"tenant_requests", ALL, take_int, AT(tenant_requests), 0, INT32_MAX},
    {"tenant_tokens_per_minute", ALL, take_int, AT(tenant_tokens_per_minute), 0, INT32_MAX},
    {"timeout_ms", ALL, take_int, AT(timeout_ms), 0, INT32_MAX},
    {"cache", COMPUTE, take_bool, AT(cache), 0, 0},
    {"template", CONVERSATION, take_template, 0, 0, 0},
    {"system", CONVERSATION, take_system, 0, 0, 0},
    {"max_tokens", TEXT, take_int, AT(max_tokens), 1, INT32_MAX},
    {"temperature", TEXT, take_float, AT(sampling.temperature), 0, 100},
    {"top_k", TEXT, take_int, AT(sampling.top_k), 0, INT32_MAX},
    {"top_p", TEXT, take_float, AT(sampling.top_p), 0, 1},
    {"min_p", TEXT, take_float, AT(sampling.min_p), 0, 1},
    {"repeat_penalty", TEXT, take_float, AT(sampling.repeat_penalty), 0.001, 1000},
    {"repeat_last_n", TEXT, take_int, AT(sampling.repeat_last_n), -1, INT32_MAX},
    {"presence_penalty", TEXT, take_float, AT(sampling.presence_penalty), -2, 2},
    {"frequency_penalty", TEXT, take_float, AT(sampling.frequency_penalty), -2, 2},
    {"seed", TEXT, take_seed, AT(sampling.seed), 0, SEED_MAX},
    {"stop", TEXT, take_stop, 0, 0, 0},
    {"ignore_eos", TEXT, take_bool, AT(ignore_eos), 0, 0},
    {"logit_bias", TEXT, take_logit_bias, 0, -100, 100},
    {"logprobs", TEXT, take_bool, AT(logprobs), 0, 0},
    {"top_logprobs", TEXT, take_int, AT(top_logprobs), 0, MX_TOP_LOGPROBS_MAX},
    {"n", TEXT, take_int, AT(n), 1, MX_CHOICES_MAX},
    {"json_schema", ALL, refuse, 0, 0, 0},
};

/* "a", "b", "c", cut where there is no more room */
static void list_models(const mx_served_list *models, char *text, size_t size)
{
    int n = atomic_load(&models->n);
    size_t used = 0;

    for (int i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, i ? ", \"%s\"" : "\"%s\"", models->models[i]->name);
}

static mx_status choose_model(const json_t *options_given, const mx_served_list *models, mx_query *query, mx_error *error)
{
    const json_t *name = json_object_get(options_given, "model");
    char open[256];

    if (name && !json_is_null(name) && !json_is_string(name))
        return mx_fail(error, MX_INVALID, "model", "option model: expected a string, got %s", got(name).text);
    query->served = mx_served_find(models, json_string_value(name));
    if (query->served)
        return MX_OK;
    list_models(models, open, sizeof(open));
    return mx_fail(error, MX_NOT_FOUND, "model", "option model: %s is not open here; this engine has %s", got(name).text, open);
}

static mx_status take_options(const json_t *given, mx_query *query, mx_error *error)
{
    const size_t n_options = sizeof(options) / sizeof(options[0]);
    const parser p = {query, error};
    mx_status status = MX_OK;
    const char *name;
    json_t *value;
    size_t i;

    if (given && !json_is_object(given))
        return mx_fail(error, MX_INVALID, "options", "options: expected an object, got %s", got(given).text);
    json_object_foreach((json_t *)given, name, value) {
        for (i = 0; i < n_options && strcmp(options[i].name, name) != 0; i++)
            continue;
        if (i == n_options)
            return mx_fail(error, MX_INVALID, name, "option %.40s: there is no such option", name);
        if (json_is_null(value))
            continue;
        if (!(options[i].ops & 1u << query->op))
            return mx_fail(error, MX_INVALID, name, "option %s: %s has no use for it", name, mx_op_name(query->op));
        status = options[i].take(&p, &options[i], value);
        if (status != MX_OK)
            return status;
    }
    if (query->top_logprobs > 0 && !query->logprobs)
        return mx_fail(error, MX_INVALID, "top_logprobs", "option top_logprobs: needs logprobs to be true");
    query->sampling.top_logprobs = query->logprobs ? query->top_logprobs : -1;
    return MX_OK;
}

/* ---- Fields ---- */

static mx_status take_text(const json_t *value, const char *field, mx_str *text, mx_error *error)
{
    if (!json_is_string(value))
        return mx_fail(error, MX_INVALID, field, "%s: expected a string, got %s", field, got(value).text);
    *text = (mx_str){json_string_value(value), json_string_length(value)};
    return MX_OK;
}

static mx_status take_message(const json_t *value, size_t index, mx_message *message, mx_error *error)
{
    static const char *const roles[] = {
        [MX_ROLE_SYSTEM] = "system", [MX_ROLE_USER] = "user", [MX_ROLE_ASSISTANT] = "assistant"};
    const json_t *role = json_object_get(value, "role"), *content = json_object_get(value, "content");
    const char *key;
    json_t *other;
    size_t i;

    if (!json_is_object(value))
        return mx_fail(error, MX_INVALID, "messages", "messages[%zu]: expected an object with role and content, got %s",
                       index, got(value).text);
    for (i = 0; json_is_string(role) && i < sizeof(roles) / sizeof(roles[0]); i++) {
        if (strcmp(roles[i], json_string_value(role)) == 0)
            break;
    }
    if (!json_is_string(role) || i == sizeof(roles) / sizeof(roles[0]))
        return mx_fail(error, MX_INVALID, "messages",
                       "messages[%zu].role: expected \"system\", \"user\" or \"assistant\", got %s", index, got(role).text);
    if (!json_is_string(content))
        return mx_fail(error, MX_INVALID, "messages", "messages[%zu].content: expected a string, got %s", index,
                       got(content).text);
    json_object_foreach((json_t *)value, key, other) {
        if (strcmp(key, "role") != 0 && strcmp(key, "content") != 0)
            return mx_fail(error, MX_INVALID, "messages", "messages[%zu]: unknown field %.40s", index, key);
    }
    *message = (mx_message){(mx_role)i, json_string_value(content), json_string_length(content)};
    return MX_OK;
}

/* The conversation: the option `system`, then `messages` or `prompt` as one user message. */
static mx_status take_conversation(const json_t *prompt, const json_t *messages, mx_query *query, mx_error *error)
{
    size_t count = messages ? json_array_size(messages) : 1;
    mx_status status = MX_OK;
    mx_str text;

    if (!prompt == !messages)
        return mx_fail(error, MX_INVALID, "prompt", "%s: expected either prompt or messages, got %s", mx_op_name(query->op),
                       prompt ? "both" : "neither");
    if (messages && count == 0)
        return mx_fail(error, MX_INVALID, "messages", "messages: expected an array of at least one message, got %s",
                       json_is_array(messages) ? "an empty one" : got(messages).text);
    query->messages = calloc(count + 1, sizeof(*query->messages));
    if (!query->messages)
        return mx_fail(error, MX_NOMEM, "messages", "out of memory for %zu messages", count);
    if (query->system.data)
        query->messages[query->n_messages++] =
            (mx_message){MX_ROLE_SYSTEM, query->system.data, query->system.bytes};
    if (prompt) {
        status = take_text(prompt, "prompt", &text, error);
        if (status == MX_OK)
            query->messages[query->n_messages++] = (mx_message){MX_ROLE_USER, text.data, text.bytes};
        return status;
    }
    for (size_t i = 0; i < count && status == MX_OK; i++) {
        mx_message *message = &query->messages[query->n_messages++];

        status = take_message(json_array_get(messages, i), i, message, error);
        if (status == MX_OK && query->system.data && message->role == MX_ROLE_SYSTEM)
            status = mx_fail(error, MX_INVALID, "system",
                             "option system: messages[%zu] is a system message already; give one of the two", i);
    }
    return status;
}

static mx_status take_tokens(const json_t *tokens, mx_query *query, mx_error *error)
{
    size_t count = json_array_size(tokens);
    const json_t *id;

    if (!json_is_array(tokens))
        return mx_fail(error, MX_INVALID, "tokens", "tokens: expected an array of token ids, got %s", got(tokens).text);
    query->tokens = calloc(count + 1, sizeof(*query->tokens));
    if (!query->tokens)
        return mx_fail(error, MX_NOMEM, "tokens", "out of memory for %zu tokens", count);
    for (size_t i = 0; i < count; i++) {
        id = json_array_get(tokens, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= n_vocab_of(query))
            return mx_fail(error, MX_INVALID, "tokens", "tokens[%zu]: expected an integer from 0 to %d, got %s", i,
                           n_vocab_of(query) - 1, got(id).text);
        query->tokens[query->n_tokens++] = (int32_t)json_integer_value(id);
    }
    return MX_OK;
}

static mx_status take_count(const json_t *value, const char *field, int min, int max, int *count, mx_error *error)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value) || number < min || number > max)
        return mx_fail(error, MX_INVALID, field, "%s: expected an integer from %d to %d, got %s", field, min, max,
                       got(value).text);
    *count = (int)number;
    return MX_OK;
}

/* ---- Operations ---- */

enum { PROMPT = 1, MESSAGES = 2, STRING = 4, TOKENS = 8, EXTENT = 16 };

static const struct {
    const char *name;
    unsigned fields;
} ops[MX_OP_COUNT] = {
    [MX_OP_CHAT] = {"chat", PROMPT | MESSAGES},
    [MX_OP_COMPLETE] = {"complete", PROMPT},
    [MX_OP_EMBED] = {"embed", STRING},
    [MX_OP_TOKENIZE] = {"tokenize", STRING},
    [MX_OP_DETOKENIZE] = {"detokenize", TOKENS},
    [MX_OP_TOKEN_COUNT] = {"token_count", STRING | PROMPT | MESSAGES},
    [MX_OP_CHUNKS] = {"chunks", STRING | EXTENT},
    [MX_OP_MODELS] = {"models", 0},
    [MX_OP_STATS] = {"stats", 0},
    [MX_OP_SESSION_SAVE] = {"session_save", PROMPT | MESSAGES},
    [MX_OP_SESSION_LOAD] = {"session_load", 0},
};

static const struct {
    const char *name;
    unsigned bit;
} fields[] = {{"prompt", PROMPT}, {"messages", MESSAGES}, {"text", STRING},   {"tokens", TOKENS},
              {"size", EXTENT},   {"overlap", EXTENT},    {"op", UINT32_MAX}, {"options", UINT32_MAX}};

const char *mx_op_name(mx_op op)
{
    return ops[op].name;
}

int mx_op_files(mx_op op)
{
    return op == MX_OP_SESSION_SAVE || op == MX_OP_SESSION_LOAD ? 2 : 0;
}

static mx_status take_op(const json_t *json, mx_op *op, mx_error *error)
{
    const json_t *name = json_object_get(json, "op");
    const size_t n_fields = sizeof(fields) / sizeof(fields[0]);
    const char *key;
    json_t *value;
    size_t i;

    for (i = 0; json_is_string(name) && i < MX_OP_COUNT; i++) {
        if (strcmp(ops[i].name, json_string_value(name)) == 0)
            break;
    }
    if (!json_is_string(name) || i == MX_OP_COUNT)
        return mx_fail(error, MX_INVALID, "op", "op: expected chat, complete, embed, tokenize, detokenize, token_count, "
                       "chunks, models, stats, session_save or session_load, got %s", got(name).text);
    *op = (mx_op)i;
    json_object_foreach((json_t *)json, key, value) {
        for (i = 0; i < n_fields && strcmp(fields[i].name, key) != 0; i++)
            continue;
        if (i == n_fields || (!(ops[*op].fields & fields[i].bit) && fields[i].bit != UINT32_MAX))
            return mx_fail(error, MX_INVALID, key, "%.40s: %s has no such field", key, ops[*op].name);
    }
    return MX_OK;
}

/* The field's value, NULL where it is missing or null. */
static const json_t *given(const json_t *json, const char *name)
{
    const json_t *value = json_object_get(json, name);

    return json_is_null(value) ? NULL : value;
}

static mx_status take_fields(mx_query *query, mx_error *error)
{
    const json_t *json = query->json;
    mx_status status = MX_OK;

    switch (query->op) {
    case MX_OP_CHAT:
    case MX_OP_SESSION_SAVE:
        return take_conversation(given(json, "prompt"), given(json, "messages"), query, error);
    case MX_OP_COMPLETE:
        return take_text(given(json, "prompt"), "prompt", &query->text, error);
    case MX_OP_DETOKENIZE:
        return take_tokens(given(json, "tokens"), query, error);
    case MX_OP_CHUNKS:
        status = take_count(given(json, "size"), "size", 1, INT32_MAX, &query->size, error);
        if (status == MX_OK && given(json, "overlap"))
            status = take_count(given(json, "overlap"), "overlap", 0, query->size - 1, &query->overlap, error);
        if (status == MX_OK)
            status = take_text(given(json, "text"), "text", &query->text, error);
        return status;
    case MX_OP_TOKEN_COUNT:
        if (given(json, "text") && (given(json, "prompt") || given(json, "messages")))
            return mx_fail(error, MX_INVALID, "text", "token_count: expected either text or a conversation, got both");
        if (!given(json, "text") && (given(json, "prompt") || given(json, "messages")))
            return take_conversation(given(json, "prompt"), given(json, "messages"), query, error);
        return take_text(given(json, "text"), "text", &query->text, error);
    case MX_OP_EMBED:
    case MX_OP_TOKENIZE:
        return take_text(given(json, "text"), "text", &query->text, error);
    default: /* models, stats, session_load: nothing */
        return MX_OK;
    }
}

mx_status mx_query_parse(json_t *json, const mx_served_list *models, mx_query *query, mx_error *error)
{
    mx_status status;

    memset(query, 0, sizeof(*query));
    query->json = json;
    query->n = 1;
    query->cache = true;
    query->tenant_requests = query->tenant_tokens_per_minute = -1;
    mx_sampling_default(&query->sampling);
    status = take_op(json, &query->op, error);
    if (status == MX_OK)
        status = choose_model(given(json, "options"), models, query, error);
    if (status == MX_OK)
        status = take_options(given(json, "options"), query, error);
    if (status == MX_OK)
        status = take_fields(query, error);
    if (status != MX_OK)
        mx_query_free(query);
    return status;
}

void mx_query_free(mx_query *query)
{
    json_decref(query->json);
    free(query->messages);
    free(query->tokens);
    free(query->sampling.logit_bias);
    memset(query, 0, sizeof(*query));
}
