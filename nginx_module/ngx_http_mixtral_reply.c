
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * Answers: in one piece, or as a stream of server-sent events.
 *
 * A stream's bytes are gathered in buffers that are used again once they are
 * sent.  When the client does not take them the exchange is blocked: its
 * engine connection is not read until the write event comes, and the engine
 * pauses that one stream.
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_BUFFER  4096


ngx_int_t
ngx_http_mixtral_write(ngx_http_mixtral_exchange_t *x, const void *data,
    size_t size)
{
    size_t         n;
    ngx_buf_t     *b;
    const u_char  *p;
    ngx_chain_t   *cl;

    p = data;

    while (size) {

        cl = x->tail;

        if (cl == NULL || cl->buf->last == cl->buf->end) {

            cl = ngx_chain_get_free_buf(x->request->pool, &x->free);
            if (cl == NULL) {
                return NGX_ERROR;
            }

            b = cl->buf;

            if (b->start == NULL) {
                b->start = ngx_palloc(x->request->pool,
                                      NGX_HTTP_MIXTRAL_BUFFER);
                if (b->start == NULL) {
                    return NGX_ERROR;
                }

                b->end = b->start + NGX_HTTP_MIXTRAL_BUFFER;
            }

            b->pos = b->start;
            b->last = b->start;
            b->temporary = 1;
            b->flush = 0;
            b->last_buf = 0;
            b->tag = (ngx_buf_tag_t) &ngx_http_mixtral_module;

            cl->next = NULL;

            if (x->tail) {
                x->tail->next = cl;

            } else {
                x->out = cl;
            }

            x->tail = cl;
        }

        b = cl->buf;
        n = ngx_min(size, (size_t) (b->end - b->last));

        b->last = ngx_cpymem(b->last, p, n);
        p += n;
        size -= n;
    }

    return NGX_OK;
}


/* An event with its data, which is released */

ngx_int_t
ngx_http_mixtral_sse(ngx_http_mixtral_exchange_t *x, json_t *data)
{
    char       *text;
    ngx_int_t   rc;

    text = data ? json_dumps(data, JSON_COMPACT) : NULL;
    json_decref(data);

    if (text == NULL) {
        return NGX_ERROR;
    }

    rc = NGX_OK;

    if (ngx_http_mixtral_write(x, "data: ", 6) != NGX_OK
        || ngx_http_mixtral_write(x, text, ngx_strlen(text)) != NGX_OK
        || ngx_http_mixtral_write(x, "\n\n", 2) != NGX_OK)
    {
        rc = NGX_ERROR;
    }

    free(text);

    return rc;
}


ngx_int_t
ngx_http_mixtral_stream_header(ngx_http_mixtral_exchange_t *x)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = x->request;

    r->headers_out.status = NGX_HTTP_OK;
    ngx_str_set(&r->headers_out.content_type, "text/event-stream");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    if (ngx_http_mixtral_add_header(r, "Cache-Control", "no-cache") != NGX_OK
        || ngx_http_mixtral_add_header(r, "X-Accel-Buffering", "no")
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    x->header_sent = 1;
    x->replied = 1;

    rc = ngx_http_send_header(r);

    return (rc == NGX_ERROR || rc > NGX_OK) ? NGX_ERROR : NGX_OK;
}


/* NGX_OK, NGX_AGAIN when the client does not take it all, NGX_ERROR */

static ngx_int_t
ngx_http_mixtral_output(ngx_http_mixtral_exchange_t *x)
{
    ngx_int_t                  rc;
    ngx_event_t               *wev;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    r = x->request;
    c = r->connection;
    wev = c->write;

    rc = ngx_http_output_filter(r, x->out);

    ngx_chain_update_chains(r->pool, &x->free, &x->busy, &x->out,
                            (ngx_buf_tag_t) &ngx_http_mixtral_module);
    x->tail = NULL;

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    x->spoke = ngx_current_msec;
    x->blocked = (rc == NGX_AGAIN || c->buffered || r->buffered);

    if (!x->blocked) {

        /* of limit_rate is the timer of an event that is delayed */

        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

        return NGX_OK;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (!wev->delayed) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    if (ngx_handle_write_event(wev, clcf->send_lowat) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_AGAIN;
}


ngx_int_t
ngx_http_mixtral_flush(ngx_http_mixtral_exchange_t *x)
{
    if (x->out == NULL) {
        return NGX_OK;
    }

    x->tail->buf->flush = 1;

    return ngx_http_mixtral_output(x);
}


/* The client takes bytes again. */

void
ngx_http_mixtral_write_handler(ngx_http_request_t *r)
{
    ngx_int_t                     rc;
    ngx_connection_t             *c;
    ngx_http_mixtral_exchange_t  *x;

    c = r->connection;
    x = ngx_http_get_module_ctx(r, ngx_http_mixtral_module);

    if (c->write->timedout) {
        ngx_log_error(NGX_LOG_INFO, c->log, NGX_ETIMEDOUT,
                      "client timed out");
        c->timedout = 1;
        ngx_http_finalize_request(r, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (!x->blocked) {
        return;
    }

    rc = ngx_http_mixtral_output(x);

    if (rc == NGX_ERROR) {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    if (rc == NGX_OK) {
        ngx_http_mixtral_pump(x);
    }
}


ngx_int_t
ngx_http_mixtral_send(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, u_char *data, size_t size)
{
    ngx_int_t                     rc;
    ngx_buf_t                    *b;
    ngx_chain_t                   out;
    ngx_http_mixtral_exchange_t  *x;

    x = ngx_http_get_module_ctx(r, ngx_http_mixtral_module);
    if (x != NULL) {
        x->header_sent = 1;
        x->replied = 1;
    }

    r->headers_out.status = status;
    r->headers_out.content_length_n = size;
    r->headers_out.content_type.data = (u_char *) type;
    r->headers_out.content_type.len = ngx_strlen(type);
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    if (size == 0) {
        r->header_only = 1;
    }

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    b = ngx_calloc_buf(r->pool);
    if (b == NULL) {
        return NGX_ERROR;
    }

    b->pos = data;
    b->last = data + size;
    b->memory = 1;
    b->last_buf = 1;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_output_filter(r, &out);
}


/* Sends a value, which is released; NULL: there was no memory for it. */

ngx_int_t
ngx_http_mixtral_send_json(ngx_http_request_t *r, ngx_uint_t status,
    json_t *json)
{
    char    *text;
    u_char  *copy;
    size_t   size;

    text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);

    if (text == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    size = ngx_strlen(text);
    copy = ngx_pnalloc(r->pool, size);
    if (copy != NULL) {
        ngx_memcpy(copy, text, size);
    }

    free(text);

    if (copy == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_mixtral_send(r, status, "application/json", copy, size);
}


/* The end of a stream */

static void
ngx_http_mixtral_finish_stream(ngx_http_mixtral_exchange_t *x)
{
    ngx_int_t            rc;
    ngx_buf_t           *b;
    ngx_chain_t         *cl;
    ngx_http_request_t  *r;

    r = x->request;

    cl = ngx_alloc_chain_link(r->pool);
    b = ngx_calloc_buf(r->pool);
    if (cl == NULL || b == NULL) {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    b->last_buf = 1;
    b->last_in_chain = 1;
    cl->buf = b;
    cl->next = NULL;

    if (x->tail) {
        x->tail->next = cl;

    } else {
        x->out = cl;
    }

    if (r->connection->write->timer_set && !r->connection->write->delayed) {
        ngx_del_timer(r->connection->write);
    }

    rc = ngx_http_output_filter(r, x->out);

    ngx_http_finalize_request(r, rc);
}


/* All calls have ended well. */

void
ngx_http_mixtral_finish(ngx_http_mixtral_exchange_t *x)
{
    json_t                        *json;
    ngx_int_t                      rc;
    ngx_http_request_t            *r;
    const ngx_http_mixtral_api_t  *api;

    r = x->request;
    api = x->api;

    ngx_http_mixtral_cleanup(x);

    if (x->done) {
        x->done(x);
        return;
    }

    if (x->stream) {
        if (!x->header_sent && ngx_http_mixtral_stream_header(x) != NGX_OK) {
            ngx_http_finalize_request(r, NGX_ERROR);
            return;
        }

        if ((!x->begun && api->begin(x) != NGX_OK) || api->end(x) != NGX_OK) {
            ngx_http_finalize_request(r, NGX_ERROR);
            return;
        }

        ngx_http_mixtral_finish_stream(x);
        return;
    }

    json = api->answer(x);
    rc = ngx_http_mixtral_send_json(r, NGX_HTTP_OK, json);

    ngx_http_finalize_request(r, rc);
}


/* x->error goes to the client, in whichever way is left. */

void
ngx_http_mixtral_fail(ngx_http_mixtral_exchange_t *x)
{
    ngx_http_request_t  *r;

    r = x->request;

    ngx_http_mixtral_cleanup(x);

    if (x->done) {
        x->done(x);
        return;
    }

    if (!x->header_sent) {
        ngx_http_finalize_request(r,
                                  ngx_http_mixtral_send_error(r, &x->error));
        return;
    }

    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                  "mixtral: a stream ends with an error: %s", x->error.text);

    if ((x->api->anthropic
         && ngx_http_mixtral_write(x, "event: error\n", 13) != NGX_OK)
        || ngx_http_mixtral_sse(x,
                                ngx_http_mixtral_error_json(&x->error,
                                                            x->api->anthropic))
           != NGX_OK)
    {
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    ngx_http_mixtral_finish_stream(x);
}
