
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * OpenAI's /v1/chat/completions and /v1/completions.
 */


#include "ngx_http_mixtral.h"


static ngx_int_t ngx_http_mixtral_chat_parse(ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_chat_begin(ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_chat_piece(ngx_http_mixtral_exchange_t *x,
    ngx_uint_t index, const mx_event *event);
static ngx_int_t ngx_http_mixtral_chat_end(ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_chat_answer(ngx_http_mixtral_exchange_t *x);

static ngx_int_t ngx_http_mixtral_text_parse(ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_text_begin(ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_text_piece(ngx_http_mixtral_exchange_t *x,
    ngx_uint_t index, const mx_event *event);
static ngx_int_t ngx_http_mixtral_text_end(ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_text_answer(ngx_http_mixtral_exchange_t *x);


const ngx_http_mixtral_api_t  ngx_http_mixtral_chat_api = {
    ngx_string("/chat/completions"),
    NGX_HTTP_POST,
    ngx_http_mixtral_chat_parse,
    ngx_http_mixtral_chat_begin,
    ngx_http_mixtral_chat_piece,
    ngx_http_mixtral_chat_end,
    ngx_http_mixtral_chat_answer,
    0
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_completions_api = {
    ngx_string("/completions"),
    NGX_HTTP_POST,
    ngx_http_mixtral_text_parse,
    ngx_http_mixtral_text_begin,
    ngx_http_mixtral_text_piece,
    ngx_http_mixtral_text_end,
    ngx_http_mixtral_text_answer,
    0
};


/* Fields that are options of the engine under the same name */
static const char  *ngx_http_mixtral_options[] = {
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty",
    "repeat_last_n", "presence_penalty", "frequency_penalty", "seed", "stop",
    "logit_bias", "n", "ignore_eos", "cache", "template"
};


/* What both endpoints have */

static ngx_int_t
ngx_http_mixtral_common(ngx_http_mixtral_exchange_t *x, json_t *options)
{
    json_t      *field, *type;
    ngx_int_t    rc;
    ngx_uint_t   i, usage, timings;

    for (i = 0; i < sizeof(ngx_http_mixtral_options) / sizeof(char *); i++) {
        rc = ngx_http_mixtral_copy(x, options, ngx_http_mixtral_options[i],
                                   ngx_http_mixtral_options[i]);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    field = json_object_get(options, "n");
    x->choices = json_is_integer(field) && json_integer_value(field) > 0
                 && json_integer_value(field) <= 1024
                 ? json_integer_value(field) : 1;

    timings = 0;

    rc = ngx_http_mixtral_flag(x, x->body, "timings", &timings);
    if (rc != NGX_OK) {
        return rc;
    }

    x->timings = timings;

    field = ngx_http_mixtral_field(x->body, "stream_options");

    if (field != NULL) {

        if (!json_is_object(field)) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "stream_options",
                                           "stream_options: expected an "
                                           "object, got %s",
                                           ngx_http_mixtral_kind(field));
        }

        usage = 0;

        rc = ngx_http_mixtral_flag(x, field, "include_usage", &usage);
        if (rc != NGX_OK) {
            return rc;
        }

        x->include_usage = usage;
    }

    field = ngx_http_mixtral_field(x->body, "response_format");

    if (field != NULL) {
        type = json_object_get(field, "type");

        if (!json_is_string(type)) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "response_format",
                                           "response_format: expected an "
                                           "object with a type, got %s",
                                           ngx_http_mixtral_kind(field));
        }

        if (ngx_strcmp(json_string_value(type), "text") != 0) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "response_format",
                                           "response_format: %.40s is not "
                                           "built yet; expected \"text\"",
                                           json_string_value(type));
        }
    }

    field = ngx_http_mixtral_field(x->body, "tools");

    if (json_array_size(field) > 0) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "tools",
                                       "tools: this server calls none");
    }

    return NGX_OK;
}


static json_t *
ngx_http_mixtral_usage(ngx_http_mixtral_exchange_t *x)
{
    return json_pack("{s:i, s:i, s:i, s:{s:i}}",
                     "prompt_tokens", (int) x->prompt_tokens,
                     "completion_tokens", (int) x->completion_tokens,
                     "total_tokens",
                     (int) (x->prompt_tokens + x->completion_tokens),
                     "prompt_tokens_details",
                     "cached_tokens", (int) x->cached_tokens);
}


/* In the names of llama.cpp's server; of one call */

static ngx_int_t
ngx_http_mixtral_add_timings(ngx_http_mixtral_exchange_t *x, json_t *object)
{
    double   first, total, made;
    json_t  *result;

    if (!x->timings) {
        return NGX_OK;
    }

    result = x->calls[0].result;
    first = json_number_value(json_object_get(result, "first_token_ms"));
    total = json_number_value(json_object_get(result, "total_ms"));
    made = json_number_value(json_object_get(result, "completion_tokens"));

    return json_object_set_new(object, "timings",
               json_pack("{s:O, s:O, s:f, s:O, s:f, s:f}",
                         "prompt_n", json_object_get(result, "prompt_tokens"),
                         "cache_n", json_object_get(result, "cached_tokens"),
                         "prompt_ms", first,
                         "predicted_n",
                         json_object_get(result, "completion_tokens"),
                         "predicted_ms", total - first,
                         "predicted_per_second",
                         total > first && made > 1
                         ? (made - 1) * 1000 / (total - first) : 0.0))
           == 0 ? NGX_OK : NGX_ERROR;
}


/* The object around an array of choices, which it takes over */

static json_t *
ngx_http_mixtral_object(ngx_http_mixtral_exchange_t *x, const char *prefix,
    const char *kind, json_t *choices)
{
    json_t  *object;

    object = json_pack("{s:o, s:s, s:I, s:s, s:s, s:o}",
                       "id", json_sprintf("%s-%s", prefix, x->id),
                       "object", kind, "created", (json_int_t) x->created,
                       "model", ngx_http_mixtral_answer_model(x),
                       "system_fingerprint", "mixtral-" MX_VERSION,
                       "choices", choices);

    if (object != NULL && x->stream && x->include_usage
        && json_object_set_new(object, "usage", json_null()) != 0)
    {
        json_decref(object);
        return NULL;
    }

    return object;
}


/* The choice of a call's result */

static json_t *
ngx_http_mixtral_choice(ngx_http_mixtral_exchange_t *x, ngx_uint_t index)
{
    json_t  *choices;

    choices = json_object_get(x->calls[index / x->choices].result, "choices");

    return json_array_get(choices, index % x->choices);
}


/* ---- Chat ---- */


static ngx_int_t
ngx_http_mixtral_message(ngx_http_mixtral_exchange_t *x, json_t *messages,
    size_t index, json_t *message)
{
    char         field[64];
    json_t      *role, *content, *text;
    ngx_int_t    rc;
    const char  *name;

    ngx_snprintf((u_char *) field, sizeof(field), "messages[%uz]%Z", index);

    if (!json_is_object(message)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "messages",
                                       "%s: expected an object, got %s", field,
                                       ngx_http_mixtral_kind(message));
    }

    role = json_object_get(message, "role");
    name = json_string_value(role);

    if (name == NULL) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "messages",
                                       "%s.role: expected a string, got %s",
                                       field, ngx_http_mixtral_kind(role));
    }

    if (ngx_strcmp(name, "developer") == 0) {
        name = "system";
    }

    content = ngx_http_mixtral_field(message, "content");

    if (content == NULL && ngx_strcmp(name, "assistant") == 0) {
        text = json_string("");
        rc = text ? NGX_OK : NGX_ERROR;

    } else {
        ngx_snprintf((u_char *) field, sizeof(field),
                     "messages[%uz].content%Z", index);
        rc = ngx_http_mixtral_text(x, field, content, &text);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    return json_array_append_new(messages, json_pack("{s:s, s:o}", "role",
                                                     name, "content", text))
           == 0 ? NGX_OK : NGX_ERROR;
}


static ngx_int_t
ngx_http_mixtral_chat_parse(ngx_http_mixtral_exchange_t *x)
{
    size_t       i;
    json_t      *options, *given, *messages, *message;
    ngx_int_t    rc;
    const char  *limit;

    if (ngx_http_mixtral_calls(x, 1) != NGX_OK) {
        return NGX_ERROR;
    }

    options = ngx_http_mixtral_call(x, 0, "chat");
    if (options == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_mixtral_common(x, options);
    if (rc != NGX_OK) {
        return rc;
    }

    limit = ngx_http_mixtral_field(x->body, "max_completion_tokens")
            ? "max_completion_tokens" : "max_tokens";

    if (ngx_http_mixtral_copy(x, options, limit, "max_tokens") != NGX_OK
        || ngx_http_mixtral_copy(x, options, "logprobs", "logprobs") != NGX_OK
        || ngx_http_mixtral_copy(x, options, "top_logprobs", "top_logprobs")
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    rc = ngx_http_mixtral_given_messages(x, &given);
    if (rc != NGX_OK) {
        return rc;
    }

    messages = json_array();

    if (json_object_set_new(x->calls[0].request, "messages", messages) != 0) {
        return NGX_ERROR;
    }

    json_array_foreach(given, i, message) {
        rc = ngx_http_mixtral_message(x, messages, i, message);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


/* A chunk with one choice; `delta` is taken over, `logprobs` is not. */

static ngx_int_t
ngx_http_mixtral_chat_chunk(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    json_t *delta, json_t *logprobs, const char *finish)
{
    json_t  *choice;

    choice = json_pack("[{s:i, s:o, s:O?, s:s?}]", "index", (int) index,
                       "delta", delta, "logprobs", logprobs,
                       "finish_reason", finish);

    if (choice == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_sse(x,
                                ngx_http_mixtral_object(x, "chatcmpl",
                                                        "chat.completion.chunk",
                                                        choice));
}


static ngx_int_t
ngx_http_mixtral_chat_begin(ngx_http_mixtral_exchange_t *x)
{
    ngx_uint_t  i;

    for (i = 0; i < x->choices; i++) {
        if (ngx_http_mixtral_chat_chunk(x, i,
                                        json_pack("{s:s, s:s}", "role",
                                                  "assistant", "content", ""),
                                        NULL, NULL)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_chat_piece(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    const mx_event *event)
{
    return ngx_http_mixtral_chat_chunk(x, index,
                                       json_pack("{s:s%}", "content",
                                                 event->text,
                                                 event->text_bytes),
                                       NULL, NULL);
}


/* The usage chunk, if it is wanted, and [DONE] */

static ngx_int_t
ngx_http_mixtral_last_chunks(ngx_http_mixtral_exchange_t *x,
    const char *prefix, const char *kind)
{
    json_t  *object;

    if (x->include_usage || x->timings) {
        object = ngx_http_mixtral_object(x, prefix, kind, json_array());

        if (object == NULL
            || json_object_set_new(object, "usage", ngx_http_mixtral_usage(x))
               != 0
            || ngx_http_mixtral_add_timings(x, object) != NGX_OK)
        {
            json_decref(object);
            return NGX_ERROR;
        }

        if (ngx_http_mixtral_sse(x, object) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return ngx_http_mixtral_write(x, "data: [DONE]\n\n", 14);
}


static ngx_int_t
ngx_http_mixtral_chat_end(ngx_http_mixtral_exchange_t *x)
{
    json_t      *choice;
    ngx_uint_t   i;

    for (i = 0; i < x->choices; i++) {
        choice = ngx_http_mixtral_choice(x, i);

        if (ngx_http_mixtral_chat_chunk(x, i, json_object(),
                   json_object_get(choice, "logprobs"),
                   json_string_value(json_object_get(choice, "finish_reason")))
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_mixtral_last_chunks(x, "chatcmpl",
                                        "chat.completion.chunk");
}


static json_t *
ngx_http_mixtral_with_usage(ngx_http_mixtral_exchange_t *x, json_t *object)
{
    if (object != NULL
        && json_object_set_new(object, "usage", ngx_http_mixtral_usage(x)) == 0
        && ngx_http_mixtral_add_timings(x, object) == NGX_OK)
    {
        return object;
    }

    json_decref(object);

    return NULL;
}


static json_t *
ngx_http_mixtral_chat_answer(ngx_http_mixtral_exchange_t *x)
{
    json_t      *choices, *choice;
    ngx_uint_t   i;

    choices = json_array();

    for (i = 0; i < x->choices; i++) {
        choice = ngx_http_mixtral_choice(x, i);

        if (json_array_append_new(choices,
                json_pack("{s:i, s:{s:s, s:O, s:n}, s:O?, s:O}",
                          "index", (int) i,
                          "message", "role", "assistant", "content",
                          json_object_get(choice, "text"), "refusal",
                          "logprobs", json_object_get(choice, "logprobs"),
                          "finish_reason",
                          json_object_get(choice, "finish_reason")))
            != 0)
        {
            json_decref(choices);
            return NULL;
        }
    }

    return ngx_http_mixtral_with_usage(x, ngx_http_mixtral_object(x,
                                           "chatcmpl", "chat.completion",
                                           choices));
}


/* ---- Text ---- */


static ngx_int_t
ngx_http_mixtral_text_call(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    json_t *prompt)
{
    json_t     *options, *logprobs;
    ngx_int_t   rc;

    if (!json_is_string(prompt)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "prompt",
                                       "prompt: expected a string or an array "
                                       "of strings, got %s in it",
                                       ngx_http_mixtral_kind(prompt));
    }

    options = ngx_http_mixtral_call(x, index, "complete");
    if (options == NULL
        || json_object_set(x->calls[index].request, "prompt", prompt) != 0)
    {
        return NGX_ERROR;
    }

    rc = ngx_http_mixtral_common(x, options);
    if (rc != NGX_OK) {
        return rc;
    }

    logprobs = ngx_http_mixtral_field(x->body, "logprobs");

    if (logprobs != NULL) {

        if (!json_is_integer(logprobs)) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "logprobs",
                                           "logprobs: expected an integer, "
                                           "got %s",
                                           ngx_http_mixtral_kind(logprobs));
        }

        if (json_object_set_new(options, "logprobs", json_true()) != 0
            || json_object_set(options, "top_logprobs", logprobs) != 0)
        {
            return NGX_ERROR;
        }
    }

    /* OpenAI's default here */

    if (ngx_http_mixtral_field(x->body, "max_tokens") == NULL) {
        return json_object_set_new(options, "max_tokens", json_integer(16))
               == 0 ? NGX_OK : NGX_ERROR;
    }

    return ngx_http_mixtral_copy(x, options, "max_tokens", "max_tokens");
}


static ngx_int_t
ngx_http_mixtral_text_parse(ngx_http_mixtral_exchange_t *x)
{
    size_t       i, n;
    json_t      *prompt;
    ngx_int_t    rc;
    ngx_uint_t   echo;

    echo = 0;

    rc = ngx_http_mixtral_flag(x, x->body, "echo", &echo);
    if (rc != NGX_OK) {
        return rc;
    }

    if (echo || ngx_http_mixtral_field(x->body, "suffix")) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, echo ? "echo" : "suffix",
                                       "%s: this server does not do that",
                                       echo ? "echo" : "suffix");
    }

    prompt = ngx_http_mixtral_field(x->body, "prompt");
    n = json_is_array(prompt) ? json_array_size(prompt) : 1;

    if (n == 0 || n > 1024) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "prompt",
                                       "prompt: expected 1 to 1024 strings, "
                                       "got %d", (int) n);
    }

    if (ngx_http_mixtral_calls(x, n) != NGX_OK) {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        rc = ngx_http_mixtral_text_call(x, i, json_is_array(prompt)
                                              ? json_array_get(prompt, i)
                                              : prompt);
        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_text_begin(ngx_http_mixtral_exchange_t *x)
{
    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_text_piece(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    const mx_event *event)
{
    json_t  *choices;

    choices = json_pack("[{s:i, s:s%, s:n, s:n}]", "index", (int) index,
                        "text", event->text, event->text_bytes, "logprobs",
                        "finish_reason");
    if (choices == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_sse(x,
                                ngx_http_mixtral_object(x, "cmpl",
                                                        "text_completion",
                                                        choices));
}


/*
 * Log probabilities as this endpoint has them: arrays of tokens, of their
 * probabilities, of objects of the likeliest, and of offsets (in characters).
 */

static json_t *
ngx_http_mixtral_text_logprobs(json_t *logprobs)
{
    size_t       i, j;
    json_t      *tokens, *probabilities, *tops, *offsets, *entry, *top, *other;
    json_int_t   offset;
    const char  *p;

    if (logprobs == NULL) {
        return json_null();
    }

    tokens = json_array();
    probabilities = json_array();
    tops = json_array();
    offsets = json_array();
    offset = 0;

    json_array_foreach(json_object_get(logprobs, "content"), i, entry) {

        top = json_object();

        json_array_foreach(json_object_get(entry, "top_logprobs"), j, other) {
            if (json_object_set(top,
                    json_string_value(json_object_get(other, "token")),
                    json_object_get(other, "logprob"))
                != 0)
            {
                json_decref(top);
                goto failed;
            }
        }

        if (json_array_append_new(tops, top) != 0
            || json_array_append(tokens, json_object_get(entry, "token")) != 0
            || json_array_append(probabilities,
                                 json_object_get(entry, "logprob"))
               != 0
            || json_array_append_new(offsets, json_integer(offset)) != 0)
        {
            goto failed;
        }

        p = json_string_value(json_object_get(entry, "token"));

        for ( /* void */ ; p && *p; p++) {
            offset += (*p & 0xc0) != 0x80;
        }
    }

    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens,
                     "token_logprobs", probabilities, "top_logprobs", tops,
                     "text_offset", offsets);

failed:

    json_decref(tokens);
    json_decref(probabilities);
    json_decref(tops);
    json_decref(offsets);

    return NULL;
}


/* With its text where it has not been streamed already */

static json_t *
ngx_http_mixtral_text_choice(ngx_http_mixtral_exchange_t *x, ngx_uint_t index)
{
    json_t  *choice, *logprobs;

    choice = ngx_http_mixtral_choice(x, index);

    logprobs = ngx_http_mixtral_text_logprobs(json_object_get(choice,
                                                              "logprobs"));
    if (logprobs == NULL) {
        return NULL;
    }

    return json_pack("{s:i, s:o, s:o, s:O}", "index", (int) index, "text",
                     x->stream ? json_string("")
                               : json_incref(json_object_get(choice, "text")),
                     "logprobs", logprobs,
                     "finish_reason",
                     json_object_get(choice, "finish_reason"));
}


static ngx_int_t
ngx_http_mixtral_text_end(ngx_http_mixtral_exchange_t *x)
{
    json_t      *choice, *choices;
    ngx_uint_t   i;

    for (i = 0; i < x->ncalls * x->choices; i++) {

        choice = ngx_http_mixtral_text_choice(x, i);
        choices = choice ? json_pack("[o]", choice) : NULL;

        if (choices == NULL
            || ngx_http_mixtral_sse(x,
                                    ngx_http_mixtral_object(x, "cmpl",
                                                            "text_completion",
                                                            choices))
               != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_mixtral_last_chunks(x, "cmpl", "text_completion");
}


static json_t *
ngx_http_mixtral_text_answer(ngx_http_mixtral_exchange_t *x)
{
    json_t      *choices;
    ngx_uint_t   i;

    choices = json_array();

    for (i = 0; i < x->ncalls * x->choices; i++) {
        if (json_array_append_new(choices, ngx_http_mixtral_text_choice(x, i))
            != 0)
        {
            json_decref(choices);
            return NULL;
        }
    }

    return ngx_http_mixtral_with_usage(x, ngx_http_mixtral_object(x, "cmpl",
                                                            "text_completion",
                                                            choices));
}
