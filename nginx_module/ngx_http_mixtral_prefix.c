
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * $mixtral_prefix: a name of what a conversation begins with, for
 *
 *     upstream machines {
 *         hash $mixtral_prefix consistent;
 *         ...
 *     }
 *
 * in a front server, so that each turn of a conversation comes to the machine
 * whose cache has what was said before.  It is a hash of the bytes of the
 * model's name, the system text and the first message of the user; of
 * completions, which have no messages, of how the prompt begins.  No engine is
 * asked, and none need be configured.
 *
 * A body that is no JSON object, or one of another shape, has the hash of all
 * of its bytes; no body, the hash of none.  Until the body has been read there
 * is no such variable: the machine must be chosen after that, as proxy_pass
 * does unless proxy_request_buffering is off.
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_PROMPT  1024   /* bytes of a prompt, its start */
#define NGX_HTTP_MIXTRAL_NAME    16     /* bytes of the hash */


static void
ngx_http_mixtral_hash_bytes(crypto_generichash_state *state, const void *data,
    size_t size)
{
    /* it cannot fail: it is plain arithmetic */

    (void) crypto_generichash_update(state, data, size);
}


/* Goes before each part: "a", "bc" is not "ab", "c". */

static void
ngx_http_mixtral_hash_size(crypto_generichash_state *state, size_t size)
{
    u_char      bytes[8];
    ngx_uint_t  i;

    for (i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (u_char) ((uint64_t) size >> (8 * i));
    }

    ngx_http_mixtral_hash_bytes(state, bytes, sizeof(bytes));
}


static void
ngx_http_mixtral_hash_string(crypto_generichash_state *state, json_t *string)
{
    ngx_http_mixtral_hash_bytes(state, json_string_value(string),
                                json_string_length(string));
}


/*
 * A string, or the texts of an array of parts as if they were one string: a
 * client may send the same text either way from one turn to the next.
 */

static void
ngx_http_mixtral_hash_text(crypto_generichash_state *state, json_t *content)
{
    size_t   i, size;
    json_t  *part;

    size = json_string_length(content);

    json_array_foreach(content, i, part) {
        size += json_string_length(json_object_get(part, "text"));
    }

    ngx_http_mixtral_hash_size(state, size);
    ngx_http_mixtral_hash_string(state, content);

    json_array_foreach(content, i, part) {
        ngx_http_mixtral_hash_string(state, json_object_get(part, "text"));
    }
}


/* The first message of a role; NULL: there is none. */

static json_t *
ngx_http_mixtral_first(json_t *messages, const char *role)
{
    size_t       i;
    json_t      *message;
    const char  *name;

    json_array_foreach(messages, i, message) {
        name = json_string_value(json_object_get(message, "role"));

        if (name != NULL
            && (ngx_strcmp(name, role) == 0
                || (ngx_strcmp(role, "system") == 0
                    && ngx_strcmp(name, "developer") == 0)))
        {
            return json_object_get(message, "content");
        }
    }

    return NULL;
}


/* NGX_DECLINED where the body has no such beginning */

static ngx_int_t
ngx_http_mixtral_hash_beginning(crypto_generichash_state *state, json_t *body)
{
    size_t   size;
    json_t  *messages, *prompt, *system;

    messages = json_object_get(body, "messages");
    prompt = json_object_get(body, "prompt");

    if (json_array_size(messages) == 0 && !json_is_string(prompt)) {
        return NGX_DECLINED;
    }

    ngx_http_mixtral_hash_text(state, json_object_get(body, "model"));

    if (json_array_size(messages) == 0) {
        size = ngx_min(json_string_length(prompt), NGX_HTTP_MIXTRAL_PROMPT);
        ngx_http_mixtral_hash_bytes(state, json_string_value(prompt), size);
        return NGX_OK;
    }

    system = json_object_get(body, "system");

    ngx_http_mixtral_hash_text(state, system ? system
                               : ngx_http_mixtral_first(messages, "system"));
    ngx_http_mixtral_hash_text(state,
                               ngx_http_mixtral_first(messages, "user"));

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_hash_body(ngx_http_request_t *r,
    u_char name[NGX_HTTP_MIXTRAL_NAME])
{
    json_t                    *json;
    mx_error                   error;
    ngx_str_t                  body;
    ngx_int_t                  rc;
    crypto_generichash_state   state;

    if (ngx_http_mixtral_read_body(r, &body) != NGX_OK) {
        return NGX_ERROR;
    }

    json = ngx_http_mixtral_parse_json(body.data, body.len, &error);

    if (json == NULL && error.status == MX_NOMEM) {
        return NGX_ERROR;
    }

    (void) crypto_generichash_init(&state, NULL, 0, NGX_HTTP_MIXTRAL_NAME);

    rc = json ? ngx_http_mixtral_hash_beginning(&state, json) : NGX_DECLINED;

    if (rc == NGX_DECLINED) {
        ngx_http_mixtral_hash_bytes(&state, body.data, body.len);
    }

    json_decref(json);

    (void) crypto_generichash_final(&state, name, NGX_HTTP_MIXTRAL_NAME);

    return NGX_OK;
}


ngx_int_t
ngx_http_mixtral_prefix_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char  name[NGX_HTTP_MIXTRAL_NAME];

    r = r->main;

    if (r->request_body == NULL || r->reading_body
        || r->request_body_no_buffering)
    {
        /* may be known later */

        v->not_found = 1;
        v->no_cacheable = 1;
        return NGX_OK;
    }

    v->data = ngx_pnalloc(r->pool, 2 * NGX_HTTP_MIXTRAL_NAME);
    if (v->data == NULL || ngx_http_mixtral_hash_body(r, name) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_hex_dump(v->data, name, NGX_HTTP_MIXTRAL_NAME);

    /* kept: what the log shows is what the machine was chosen by */

    v->len = 2 * NGX_HTTP_MIXTRAL_NAME;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}
