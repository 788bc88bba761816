
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * JSON of clients: reading a body, parsing it within bounds, and taking
 * fields with errors that name them.  A field that is null is as one that is
 * not there.
 */


#include "ngx_http_mixtral.h"
#include "error.h"


/* What the engine takes, see core/server/wire.h: a value costs memory */
#define NGX_HTTP_MIXTRAL_JSON_DEPTH   32
#define NGX_HTTP_MIXTRAL_JSON_VALUES  (1 << 18)


/* Says whether the text stays within the bounds, before it costs memory. */

static const char *
ngx_http_mixtral_exceeds(const u_char *p, const u_char *end)
{
    ngx_int_t   depth;
    ngx_uint_t  nvalues, string;

    depth = 0;
    nvalues = 1;
    string = 0;

    for ( /* void */ ; p < end; p++) {

        if (string) {
            if (*p == '\\') {
                p++;

            } else if (*p == '"') {
                string = 0;
            }

            continue;
        }

        switch (*p) {

        case '"':
            string = 1;
            break;

        case '{':
        case '[':
            nvalues++;

            if (++depth > NGX_HTTP_MIXTRAL_JSON_DEPTH) {
                return "nested deeper than 32";
            }

            break;

        case '}':
        case ']':
            depth--;
            break;

        case ',':
            nvalues++;
            break;
        }

        if (nvalues > NGX_HTTP_MIXTRAL_JSON_VALUES) {
            return "more than 262144 values";
        }
    }

    return NULL;
}


/* A JSON object; NULL after the error is filled. */

json_t *
ngx_http_mixtral_parse_json(const u_char *data, size_t size, mx_error *error)
{
    json_t        *json;
    const char    *exceeds;
    json_error_t   why;

    ngx_memzero(error, sizeof(mx_error));
    error->status = MX_INVALID;

    exceeds = ngx_http_mixtral_exceeds(data, data + size);
    if (exceeds != NULL) {
        ngx_snprintf((u_char *) error->text, sizeof(error->text) - 1,
                     "the body's JSON is %s", exceeds);
        return NULL;
    }

    json = json_loadb((const char *) data, size, JSON_REJECT_DUPLICATES, &why);

    if (json == NULL) {
        if (json_error_code(&why) == json_error_out_of_memory) {
            error->status = MX_NOMEM;
        }

        ngx_snprintf((u_char *) error->text, sizeof(error->text) - 1,
                     "the body is no JSON: %s (line %d, column %d)", why.text,
                     why.line, why.column);
        mx_line_clean(error->text, 1);
        return NULL;
    }

    if (!json_is_object(json)) {
        json_decref(json);
        ngx_snprintf((u_char *) error->text, sizeof(error->text) - 1,
                     "the body: expected a JSON object");
        return NULL;
    }

    error->status = MX_OK;

    return json;
}


/* The whole body, from memory or from the file that nginx put it into */

ngx_int_t
ngx_http_mixtral_read_body(ngx_http_request_t *r, ngx_str_t *body)
{
    size_t        size;
    u_char       *p;
    ssize_t       n;
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    ngx_str_null(body);

    if (r->request_body == NULL || r->request_body->bufs == NULL) {
        return NGX_OK;
    }

    cl = r->request_body->bufs;

    if (cl->next == NULL && !cl->buf->in_file) {
        body->data = cl->buf->pos;
        body->len = cl->buf->last - cl->buf->pos;
        return NGX_OK;
    }

    size = 0;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        size += ngx_buf_size(cl->buf);
    }

    body->data = ngx_pnalloc(r->pool, size);
    if (body->data == NULL) {
        return NGX_ERROR;
    }

    p = body->data;

    for (cl = r->request_body->bufs; cl; cl = cl->next) {
        b = cl->buf;

        if (!b->in_file) {
            p = ngx_cpymem(p, b->pos, b->last - b->pos);
            continue;
        }

        n = ngx_read_file(b->file, p, b->file_last - b->file_pos, b->file_pos);
        if (n != b->file_last - b->file_pos) {
            return NGX_ERROR;
        }

        p += n;
    }

    body->len = p - body->data;

    return NGX_OK;
}


json_t *
ngx_http_mixtral_field(const json_t *object, const char *name)
{
    json_t  *value;

    value = json_object_get(object, name);

    return json_is_null(value) ? NULL : value;
}


const char *
ngx_http_mixtral_kind(const json_t *value)
{
    static const char  *kinds[] = {
        "an object", "an array", "a string", "an integer", "a number", "true",
        "false", "null"
    };

    return value ? kinds[json_typeof(value)] : "nothing";
}


/* *value stays what it is where the field is not there. */

ngx_int_t
ngx_http_mixtral_flag(ngx_http_mixtral_exchange_t *x, const json_t *object,
    const char *name, ngx_uint_t *value)
{
    json_t  *field;

    field = ngx_http_mixtral_field(object, name);
    if (field == NULL) {
        return NGX_OK;
    }

    if (!json_is_boolean(field)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, name,
                                       "%s: expected true or false, got %s",
                                       name, ngx_http_mixtral_kind(field));
    }

    *value = json_is_true(field);

    return NGX_OK;
}


/* A field becomes an option; the engine checks its type and range. */

ngx_int_t
ngx_http_mixtral_copy(ngx_http_mixtral_exchange_t *x, json_t *options,
    const char *from, const char *to)
{
    json_t  *field;

    field = ngx_http_mixtral_field(x->body, from);
    if (field == NULL) {
        return NGX_OK;
    }

    return json_object_set(options, to, field) == 0 ? NGX_OK : NGX_ERROR;
}


/* A message's content: a string, or an array of parts that are text */

ngx_int_t
ngx_http_mixtral_text(ngx_http_mixtral_exchange_t *x, const char *field,
    json_t *content, json_t **text)
{
    char        *all, *p;
    size_t       i, size;
    json_t      *part;
    const char  *type;

    if (json_is_string(content)) {
        *text = json_incref(content);
        return NGX_OK;
    }

    if (!json_is_array(content)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, field,
                                       "%s: expected a string or an array of "
                                       "text parts, got %s", field,
                                       ngx_http_mixtral_kind(content));
    }

    size = 0;

    json_array_foreach(content, i, part) {
        type = json_string_value(json_object_get(part, "type"));

        if (type == NULL || ngx_strcmp(type, "text") != 0
            || !json_is_string(json_object_get(part, "text")))
        {
            return ngx_http_mixtral_refuse(x, MX_INVALID, field,
                                           "%s: part %d: expected {\"type\": "
                                           "\"text\", \"text\": string}; this "
                                           "model takes nothing but text",
                                           field, (int) i);
        }

        size += json_string_length(json_object_get(part, "text"));
    }

    all = ngx_pnalloc(x->request->pool, size + 1);
    if (all == NULL) {
        return NGX_ERROR;
    }

    p = all;

    json_array_foreach(content, i, part) {
        part = json_object_get(part, "text");
        p = (char *) ngx_cpymem(p, json_string_value(part),
                                json_string_length(part));
    }

    *text = json_stringn(all, size);

    return *text ? NGX_OK : NGX_ERROR;
}


/* The body's messages, of which there is at least one */

ngx_int_t
ngx_http_mixtral_given_messages(ngx_http_mixtral_exchange_t *x,
    json_t **messages)
{
    *messages = ngx_http_mixtral_field(x->body, "messages");

    if (json_array_size(*messages) > 0) {
        return NGX_OK;
    }

    return ngx_http_mixtral_refuse(x, MX_INVALID, "messages",
                                   "messages: expected an array of at least "
                                   "one message, got %s",
                                   json_is_array(*messages) ? "an empty one"
                                   : ngx_http_mixtral_kind(*messages));
}


/* The figures of a result join those of the request. */

void
ngx_http_mixtral_count(ngx_http_mixtral_exchange_t *x, json_t *result)
{
    json_t      *model;
    const char  *name;

    if (json_is_integer(json_object_get(result, "prompt_tokens"))
        || json_is_integer(json_object_get(result, "tokens")))
    {
        x->counted = 1;
    }

    x->prompt_tokens += json_integer_value(json_object_get(result,
                                                           "prompt_tokens"));
    x->prompt_tokens += json_is_integer(json_object_get(result, "tokens"))
                 ? json_integer_value(json_object_get(result, "tokens")) : 0;
    x->cached_tokens += json_integer_value(json_object_get(result,
                                                           "cached_tokens"));
    x->completion_tokens += json_integer_value(
                             json_object_get(result, "completion_tokens"));

    model = json_object_get(result, "model");
    name = json_string_value(model);

    if (name == NULL) {
        return;
    }

    x->model.data = ngx_pnalloc(x->request->pool,
                                json_string_length(model) + 1);
    if (x->model.data == NULL) {
        return;
    }

    x->model.len = json_string_length(model);
    ngx_memcpy(x->model.data, name, x->model.len + 1);
}


/* Of an answer.  All chunks of a stream say the same. */

const char *
ngx_http_mixtral_answer_model(ngx_http_mixtral_exchange_t *x)
{
    json_t  *model;

    if (!x->stream && x->model.data != NULL) {
        return (char *) x->model.data;
    }

    model = ngx_http_mixtral_field(x->body, "model");

    return json_is_string(model) ? json_string_value(model)
                                 : (char *) x->engine->name.data;
}
