
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * The content handler: which api a URI means, and the reading of the body.
 * The client is watched from then on: one that leaves ends the request, also
 * while the engine reads its prompt.
 */


#include "ngx_http_mixtral.h"


static ngx_int_t ngx_http_mixtral_start(ngx_http_request_t *r,
    const ngx_http_mixtral_api_t *api, const mx_key *key);
static void ngx_http_mixtral_body_handler(ngx_http_request_t *r);


static const ngx_http_mixtral_api_t  *ngx_http_mixtral_apis[] = {
    &ngx_http_mixtral_chat_api,
    &ngx_http_mixtral_completions_api,
    &ngx_http_mixtral_messages_api,
    &ngx_http_mixtral_count_tokens_api,
    &ngx_http_mixtral_embeddings_api,
    &ngx_http_mixtral_models_api,
    &ngx_http_mixtral_tokenize_api,
    &ngx_http_mixtral_detokenize_api,
    &ngx_http_mixtral_health_api
};


const ngx_http_mixtral_api_t *
ngx_http_mixtral_find_api(ngx_str_t *uri)
{
    size_t                         best;
    ngx_str_t                      name;
    ngx_uint_t                     i;
    const ngx_str_t               *path;
    const ngx_http_mixtral_api_t  *api;

    api = NULL;
    best = 0;

    for (i = 0; i < sizeof(ngx_http_mixtral_apis)
                    / sizeof(ngx_http_mixtral_apis[0]); i++)
    {
        path = &ngx_http_mixtral_apis[i]->path;

        if (uri->len >= path->len && path->len > best
            && ngx_strncmp(uri->data + uri->len - path->len, path->data,
                           path->len)
               == 0)
        {
            api = ngx_http_mixtral_apis[i];
            best = path->len;
        }
    }

    if (api == NULL && ngx_http_mixtral_model_name(uri, &name)) {
        return &ngx_http_mixtral_model_api;
    }

    return api;
}


ngx_int_t
ngx_http_mixtral_handler(ngx_http_request_t *r)
{
    ngx_int_t                      rc;
    ngx_uint_t                     method;
    const mx_key                  *key;
    const ngx_http_mixtral_api_t  *api;

    api = ngx_http_mixtral_find_api(&r->uri);
    if (api == NULL) {
        return NGX_HTTP_NOT_FOUND;
    }

    if (r->method == NGX_HTTP_OPTIONS) {
        rc = ngx_http_discard_request_body(r);
        if (rc != NGX_OK) {
            return rc;
        }

        if (ngx_http_mixtral_add_header(r, "Allow",
                                        api->method == NGX_HTTP_POST
                                        ? "POST, OPTIONS"
                                        : "GET, HEAD, OPTIONS")
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return ngx_http_mixtral_send(r, NGX_HTTP_NO_CONTENT, "text/plain",
                                     NULL, 0);
    }

    if (!ngx_http_mixtral_allowed(r, &key)) {
        return ngx_http_mixtral_unauthorized(r);
    }

    method = (r->method == NGX_HTTP_HEAD) ? NGX_HTTP_GET : r->method;

    if (method != api->method) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    return ngx_http_mixtral_start(r, api, key);
}


/* An exchange that closes its connection when the request ends */

ngx_http_mixtral_exchange_t *
ngx_http_mixtral_create(ngx_http_request_t *r,
    ngx_http_mixtral_engine_t *engine)
{
    ngx_pool_cleanup_t           *memory;
    ngx_http_cleanup_t           *cln;
    ngx_http_mixtral_exchange_t  *x;
    ngx_http_mixtral_loc_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);

    x = ngx_pcalloc(r->pool, sizeof(ngx_http_mixtral_exchange_t));
    memory = ngx_pool_cleanup_add(r->pool, 0);
    cln = ngx_http_cleanup_add(r, 0);
    if (x == NULL || memory == NULL || cln == NULL) {
        return NULL;
    }

    memory->handler = ngx_http_mixtral_destroy;
    memory->data = x;
    cln->handler = ngx_http_mixtral_cleanup;
    cln->data = x;

    x->request = r;
    x->engine = engine;
    x->timeout = lcf->timeout;

    return x;
}


static ngx_int_t
ngx_http_mixtral_start(ngx_http_request_t *r,
    const ngx_http_mixtral_api_t *api, const mx_key *key)
{
    u_char                        bytes[16];
    ngx_int_t                     rc;
    ngx_uint_t                    i;
    ngx_http_mixtral_exchange_t  *x;
    ngx_http_mixtral_loc_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);

    x = ngx_http_mixtral_create(r, lcf->engine);
    if (x == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    x->api = api;
    x->key = key;
    x->choices = 1;
    x->created = ngx_time();
    x->spoke = ngx_current_msec;

    for (i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (u_char) (ngx_random() >> 7);
    }

    *ngx_hex_dump(x->id, bytes, sizeof(bytes)) = '\0';

    ngx_http_set_ctx(r, x, ngx_http_mixtral_module);

    rc = ngx_http_read_client_request_body(r, ngx_http_mixtral_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


/* NGX_OK: the engine is at it.  NGX_DECLINED: x->error says what is wrong. */

static ngx_int_t
ngx_http_mixtral_ask(ngx_http_mixtral_exchange_t *x)
{
    ngx_int_t            rc;
    ngx_str_t            body;
    ngx_uint_t           stream;
    ngx_http_request_t  *r;

    r = x->request;

    if (x->api->method == NGX_HTTP_POST) {

        if (ngx_http_mixtral_read_body(r, &body) != NGX_OK) {
            return NGX_ERROR;
        }

        x->body = ngx_http_mixtral_parse_json(body.data, body.len, &x->error);
        if (x->body == NULL) {
            return NGX_DECLINED;
        }

        if (x->api->begin) {
            stream = 0;

            rc = ngx_http_mixtral_flag(x, x->body, "stream", &stream);
            if (rc != NGX_OK) {
                return rc;
            }

            x->stream = stream;
        }
    }

    rc = x->api->parse(x);
    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_mixtral_connect(x);
}


static void
ngx_http_mixtral_body_handler(ngx_http_request_t *r)
{
    ngx_int_t                     rc;
    ngx_connection_t             *c;
    ngx_http_mixtral_exchange_t  *x;

    c = r->connection;
    x = ngx_http_get_module_ctx(r, ngx_http_mixtral_module);

    rc = ngx_http_mixtral_ask(x);

    if (rc == NGX_DECLINED) {
        ngx_http_mixtral_fail(x);
        return;
    }

    if (rc != NGX_OK || ngx_handle_read_event(c->read, 0) != NGX_OK) {
        ngx_http_mixtral_cleanup(x);
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    r->read_event_handler = ngx_http_test_reading;
    r->write_event_handler = ngx_http_mixtral_write_handler;

    if (c->read->pending_eof || c->read->error) {
        /* it left while its body was read: there is no event to come */
        ngx_http_test_reading(r);
    }
}
