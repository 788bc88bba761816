
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * Anthropic's /v1/messages and /v1/messages/count_tokens.
 *
 * The first event of a stream says how many tokens the prompt has, which the
 * engine says of an answer at its end only: a stream is two calls, one after
 * the other, of which the first counts.
 */


#include "ngx_http_mixtral.h"


static ngx_int_t ngx_http_mixtral_messages_parse(
    ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_messages_begin(
    ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_messages_piece(
    ngx_http_mixtral_exchange_t *x, ngx_uint_t index, const mx_event *event);
static ngx_int_t ngx_http_mixtral_messages_end(ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_messages_answer(
    ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_count_tokens_parse(
    ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_count_tokens_answer(
    ngx_http_mixtral_exchange_t *x);


const ngx_http_mixtral_api_t  ngx_http_mixtral_messages_api = {
    ngx_string("/messages"),
    NGX_HTTP_POST,
    ngx_http_mixtral_messages_parse,
    ngx_http_mixtral_messages_begin,
    ngx_http_mixtral_messages_piece,
    ngx_http_mixtral_messages_end,
    ngx_http_mixtral_messages_answer,
    1
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_count_tokens_api = {
    ngx_string("/messages/count_tokens"),
    NGX_HTTP_POST,
    ngx_http_mixtral_count_tokens_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_count_tokens_answer,
    1
};


/* ---- The request ---- */


/* What asks for more than text is refused, rather than left out. */

static ngx_int_t
ngx_http_mixtral_messages_check(ngx_http_mixtral_exchange_t *x)
{
    json_t      *field, *type;
    const char  *name;

    field = ngx_http_mixtral_field(x->body, "tools");

    if (json_array_size(field) > 0) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "tools",
                                       "tools: this server calls none");
    }

    field = ngx_http_mixtral_field(x->body, "thinking");
    type = json_object_get(field, "type");
    name = json_string_value(type);

    if (field != NULL && (name == NULL || ngx_strcmp(name, "disabled") != 0)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "thinking",
                                       "thinking: this server has none; "
                                       "expected {\"type\": \"disabled\"}");
    }

    field = ngx_http_mixtral_field(x->body, "output_config");

    if (ngx_http_mixtral_field(field, "format") != NULL) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "output_config",
                                       "output_config.format: this server "
                                       "answers in plain text only");
    }

    return NGX_OK;
}


/*
 * Adds a message, of all the texts in `parts`, which it takes over.  NULL is
 * no message.
 */

static ngx_int_t
ngx_http_mixtral_messages_add(ngx_http_mixtral_exchange_t *x, json_t *messages,
    const char *role, json_t *parts)
{
    json_t     *text;
    ngx_int_t   rc;

    if (parts == NULL) {
        return NGX_OK;
    }

    rc = ngx_http_mixtral_text(x, "messages", parts, &text);
    json_decref(parts);

    if (rc != NGX_OK) {
        return rc;
    }

    return json_array_append_new(messages, json_pack("{s:s, s:o}", "role",
                                                     role, "content", text))
           == 0 ? NGX_OK : NGX_ERROR;
}


/* A message's role and text, which is the caller's */

static ngx_int_t
ngx_http_mixtral_messages_take(ngx_http_mixtral_exchange_t *x, json_t *message,
    ngx_uint_t index, const char **role, json_t **text)
{
    char     field[64];
    json_t  *name;

    name = json_object_get(message, "role");
    *role = json_string_value(name);

    if (*role == NULL || (ngx_strcmp(*role, "user") != 0
                          && ngx_strcmp(*role, "assistant") != 0))
    {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "messages",
                                       "messages[%d].role: expected \"user\" "
                                       "or \"assistant\", got %.40s",
                                       (int) index, *role ? *role
                                       : ngx_http_mixtral_kind(name));
    }

    ngx_snprintf((u_char *) field, sizeof(field), "messages[%ui].content%Z",
                 index);

    return ngx_http_mixtral_text(x, field,
                                 ngx_http_mixtral_field(message, "content"),
                                 text);
}


/* Adds all messages; neighbours of one role are one turn, as Anthropic has it,
 * and as templates need it */

static ngx_int_t
ngx_http_mixtral_messages_turns(ngx_http_mixtral_exchange_t *x,
    json_t *messages, json_t *given)
{
    size_t       i;
    json_t      *message, *text, *parts;
    ngx_int_t    rc;
    const char  *role, *last;

    parts = NULL;
    last = "";

    json_array_foreach(given, i, message) {

        rc = ngx_http_mixtral_messages_take(x, message, i, &role, &text);
        if (rc != NGX_OK) {
            json_decref(parts);
            return rc;
        }

        if (ngx_strcmp(role, last) != 0) {
            rc = ngx_http_mixtral_messages_add(x, messages, last, parts);
            parts = NULL;

            if (rc != NGX_OK) {
                json_decref(text);
                return rc;
            }

            parts = json_array();
            last = role;

        } else if (json_array_append_new(parts,
                                         json_pack("{s:s, s:s}", "type",
                                                   "text", "text", "\n"))
                   != 0)
        {
            json_decref(text);
            json_decref(parts);
            return NGX_ERROR;
        }

        if (json_array_append_new(parts, json_pack("{s:s, s:o}", "type",
                                                   "text", "text", text))
            != 0)
        {
            json_decref(parts);
            return NGX_ERROR;
        }
    }

    return ngx_http_mixtral_messages_add(x, messages, last, parts);
}


/* The conversation, into a call's request */

static ngx_int_t
ngx_http_mixtral_messages_conversation(ngx_http_mixtral_exchange_t *x,
    json_t *request)
{
    json_t     *given, *messages, *system, *text;
    ngx_int_t   rc;

    rc = ngx_http_mixtral_given_messages(x, &given);
    if (rc != NGX_OK) {
        return rc;
    }

    messages = json_array();

    if (json_object_set_new(request, "messages", messages) != 0) {
        return NGX_ERROR;
    }

    system = ngx_http_mixtral_field(x->body, "system");

    if (system != NULL) {
        rc = ngx_http_mixtral_text(x, "system", system, &text);
        if (rc != NGX_OK) {
            return rc;
        }

        if (json_string_length(text) == 0) {
            json_decref(text);

        } else if (json_array_append_new(messages,
                                         json_pack("{s:s, s:o}", "role",
                                                   "system", "content", text))
                   != 0)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_mixtral_messages_turns(x, messages, given);
}


static ngx_int_t
ngx_http_mixtral_messages_options(ngx_http_mixtral_exchange_t *x,
    json_t *options)
{
    size_t   i;
    json_t  *field, *item;

    field = ngx_http_mixtral_field(x->body, "max_tokens");

    if (!json_is_integer(field)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "max_tokens",
                                       "max_tokens: expected an integer, "
                                       "got %s", ngx_http_mixtral_kind(field));
    }

    field = ngx_http_mixtral_field(x->body, "stop_sequences");

    if (field != NULL && !json_is_array(field)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "stop_sequences",
                                       "stop_sequences: expected an array of "
                                       "strings, got %s",
                                       ngx_http_mixtral_kind(field));
    }

    json_array_foreach(field, i, item) {
        if (json_string_length(item) == 0) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "stop_sequences",
                                           "stop_sequences[%d]: expected a "
                                           "string that is not empty, got %s",
                                           (int) i, json_is_string(item)
                                           ? "an empty one"
                                           : ngx_http_mixtral_kind(item));
        }
    }

    if (ngx_http_mixtral_copy(x, options, "max_tokens", "max_tokens") != NGX_OK
        || ngx_http_mixtral_copy(x, options, "temperature", "temperature")
           != NGX_OK
        || ngx_http_mixtral_copy(x, options, "top_p", "top_p") != NGX_OK
        || ngx_http_mixtral_copy(x, options, "top_k", "top_k") != NGX_OK
        || ngx_http_mixtral_copy(x, options, "stop_sequences", "stop")
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_messages_parse(ngx_http_mixtral_exchange_t *x)
{
    json_t      *options, *request;
    ngx_int_t    rc;
    ngx_uint_t   chat;

    chat = x->stream ? 1 : 0;

    rc = ngx_http_mixtral_messages_check(x);
    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_mixtral_calls(x, chat + 1) != NGX_OK) {
        return NGX_ERROR;
    }

    options = ngx_http_mixtral_call(x, chat, "chat");
    if (options == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_mixtral_messages_options(x, options);
    if (rc != NGX_OK) {
        return rc;
    }

    request = x->calls[chat].request;

    rc = ngx_http_mixtral_messages_conversation(x, request);
    if (rc != NGX_OK || !x->stream) {
        return rc;
    }

    if (ngx_http_mixtral_call(x, 0, "token_count") == NULL
        || json_object_set(x->calls[0].request, "messages",
                           json_object_get(request, "messages"))
           != 0)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* ---- The answer ---- */


/*
 * As Anthropic counts: input_tokens are those that the cache did not have.
 */

static json_t *
ngx_http_mixtral_messages_usage(ngx_uint_t prompt, ngx_uint_t cached,
    ngx_uint_t made)
{
    return json_pack("{s:i, s:i, s:i, s:i}",
                     "input_tokens", (int) (prompt - cached),
                     "cache_creation_input_tokens", 0,
                     "cache_read_input_tokens", (int) cached,
                     "output_tokens", (int) made);
}


/* Both fields about the end, as they stand in an answer and in a delta */

static ngx_int_t
ngx_http_mixtral_messages_stop(ngx_http_mixtral_exchange_t *x, json_t *object)
{
    json_t      *choice, *stop;
    const char  *reason;

    choice = json_array_get(json_object_get(x->calls[x->ncalls - 1].result,
                                            "choices"), 0);
    stop = json_object_get(choice, "stop");
    reason = json_string_value(json_object_get(choice, "finish_reason"));

    if (reason == NULL) {
        return NGX_ERROR;
    }

    if (stop != NULL) {
        reason = "stop_sequence";

    } else if (ngx_strcmp(reason, "stop") == 0) {
        reason = "end_turn";

    } else {
        reason = "max_tokens";
    }

    if (json_object_set_new(object, "stop_reason", json_string(reason)) != 0
        || json_object_set_new(object, "stop_sequence",
                               stop ? json_incref(stop) : json_null())
           != 0)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* A message; takes over the array of what is in it. */

static json_t *
ngx_http_mixtral_messages_object(ngx_http_mixtral_exchange_t *x,
    json_t *content, json_t *usage)
{
    return json_pack("{s:o, s:s, s:s, s:s, s:o, s:n, s:n, s:o}",
                     "id", json_sprintf("msg_%s", x->id),
                     "type", "message", "role", "assistant",
                     "model", ngx_http_mixtral_answer_model(x),
                     "content", content, "stop_reason", "stop_sequence",
                     "usage", usage);
}


static json_t *
ngx_http_mixtral_messages_answer(ngx_http_mixtral_exchange_t *x)
{
    json_t  *message, *content;

    content = json_pack("[{s:s, s:O}]", "type", "text", "text",
                        json_object_get(x->calls[0].result, "text"));

    message = ngx_http_mixtral_messages_object(x, content,
                  ngx_http_mixtral_messages_usage(x->prompt_tokens,
                                                  x->cached_tokens,
                                                  x->completion_tokens));

    if (message == NULL
        || ngx_http_mixtral_messages_stop(x, message) != NGX_OK)
    {
        json_decref(message);
        return NULL;
    }

    return message;
}


/* ---- The stream ---- */


/* An event with its name, which is its data's type too; data is released. */

static ngx_int_t
ngx_http_mixtral_messages_event(ngx_http_mixtral_exchange_t *x, json_t *data)
{
    const char  *type;

    type = json_string_value(json_object_get(data, "type"));

    if (type == NULL
        || ngx_http_mixtral_write(x, "event: ", 7) != NGX_OK
        || ngx_http_mixtral_write(x, type, ngx_strlen(type)) != NGX_OK
        || ngx_http_mixtral_write(x, "\n", 1) != NGX_OK)
    {
        json_decref(data);
        return NGX_ERROR;
    }

    return ngx_http_mixtral_sse(x, data);
}


static ngx_int_t
ngx_http_mixtral_messages_begin(ngx_http_mixtral_exchange_t *x)
{
    json_t      *message;
    ngx_uint_t   prompt;

    prompt = json_integer_value(json_object_get(x->calls[0].result, "count"));

    message = ngx_http_mixtral_messages_object(x, json_array(),
                  ngx_http_mixtral_messages_usage(prompt, 0, 0));

    if (ngx_http_mixtral_messages_event(x,
            json_pack("{s:s, s:o}", "type", "message_start", "message",
                      message))
        != NGX_OK
        || ngx_http_mixtral_messages_event(x,
               json_pack("{s:s, s:i, s:{s:s, s:s}}", "type",
                         "content_block_start", "index", 0, "content_block",
                         "type", "text", "text", ""))
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_messages_event(x, json_pack("{s:s}", "type",
                                                        "ping"));
}


static ngx_int_t
ngx_http_mixtral_messages_piece(ngx_http_mixtral_exchange_t *x,
    ngx_uint_t index, const mx_event *event)
{
    return ngx_http_mixtral_messages_event(x,
               json_pack("{s:s, s:i, s:{s:s, s:s%}}", "type",
                         "content_block_delta", "index", 0, "delta",
                         "type", "text_delta", "text", event->text,
                         event->text_bytes));
}


static ngx_int_t
ngx_http_mixtral_messages_end(ngx_http_mixtral_exchange_t *x)
{
    json_t  *delta;

    if (ngx_http_mixtral_messages_event(x, json_pack("{s:s, s:i}", "type",
                                                     "content_block_stop",
                                                     "index", 0))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    delta = json_object();

    if (ngx_http_mixtral_messages_stop(x, delta) != NGX_OK) {
        json_decref(delta);
        return NGX_ERROR;
    }

    if (ngx_http_mixtral_messages_event(x,
            json_pack("{s:s, s:o, s:o}", "type", "message_delta", "delta",
                      delta, "usage",
                      ngx_http_mixtral_messages_usage(x->prompt_tokens,
                                                      x->cached_tokens,
                                                      x->completion_tokens)))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_messages_event(x, json_pack("{s:s}", "type",
                                                        "message_stop"));
}


/* ---- Counting ---- */


static ngx_int_t
ngx_http_mixtral_count_tokens_parse(ngx_http_mixtral_exchange_t *x)
{
    ngx_int_t  rc;

    rc = ngx_http_mixtral_messages_check(x);
    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_mixtral_calls(x, 1) != NGX_OK
        || ngx_http_mixtral_call(x, 0, "token_count") == NULL)
    {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_messages_conversation(x, x->calls[0].request);
}


static json_t *
ngx_http_mixtral_count_tokens_answer(ngx_http_mixtral_exchange_t *x)
{
    return json_pack("{s:O}", "input_tokens",
                     json_object_get(x->calls[0].result, "count"));
}
