
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * The way to the engine: an mx_client, which never waits, in nginx's event
 * loop.
 *
 * The client owns the socket; an ngx_connection_t is put around it to have
 * its events.  A timer on the connection looks once a second whether a stream
 * has been silent for long, and sends a comment on it.  The timer also keeps a
 * worker that is to leave alive until the stream has ended.
 *
 * An engine may be silent because a prompt is long or because it hangs.  One
 * that has said nothing for half of mixtral_timeout is asked for its models,
 * which it answers at any time; if that brings nothing for the other half, it
 * is given up.
 *
 * ngx_http_mixtral_pump takes events until there are none, or until the
 * client of the stream is behind.  It may end the request: nobody touches
 * the exchange after it.
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_TICK      1000    /* ms */
#define NGX_HTTP_MIXTRAL_SILENCE   10000   /* ms, before a ping */
#define NGX_HTTP_MIXTRAL_CALLS     64      /* at a time, of an exchange */
#define NGX_HTTP_MIXTRAL_RETRY     5       /* s, until an engine may be back */
#define NGX_HTTP_MIXTRAL_BATCH     16384   /* bytes, before they are sent */


static ngx_msec_t ngx_http_mixtral_interval(ngx_http_mixtral_exchange_t *x);
static void ngx_http_mixtral_event_handler(ngx_event_t *ev);


ngx_int_t
ngx_http_mixtral_calls(ngx_http_mixtral_exchange_t *x, ngx_uint_t n)
{
    x->calls = ngx_pcalloc(x->request->pool,
                           n * sizeof(ngx_http_mixtral_call_t));
    if (x->calls == NULL) {
        return NGX_ERROR;
    }

    x->ncalls = n;

    return NGX_OK;
}


/* Makes a call's request; gives its options, with the model in them. */

json_t *
ngx_http_mixtral_call(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    const char *op)
{
    json_t  *options, *model;

    x->calls[index].request = json_pack("{s:s, s:{}}", "op", op, "options");
    options = json_object_get(x->calls[index].request, "options");
    if (options == NULL) {
        return NULL;
    }

    model = ngx_http_mixtral_field(x->body, "model");
    if (model != NULL && json_object_set(options, "model", model) != 0) {
        return NULL;
    }

    /* what asks for nothing but facts needs no tenant */

    if (ngx_strcmp(op, "models") != 0
        && ngx_http_mixtral_add_tenant(x, options) != NGX_OK)
    {
        return NULL;
    }

    return options;
}


/* How many calls may be under way: no more than the key's own limit, which
 * the calls of one request are not to exceed by themselves, nor any limit
 * with a stream of /v1/messages, which is one request */

static ngx_uint_t
ngx_http_mixtral_window(ngx_http_mixtral_exchange_t *x)
{
    if (x->api != NULL && x->api->anthropic) {
        return 1;
    }

    if (x->key != NULL && x->key->requests > 0) {
        return ngx_min((ngx_uint_t) x->key->requests, NGX_HTTP_MIXTRAL_CALLS);
    }

    return NGX_HTTP_MIXTRAL_CALLS;
}


/* Sends calls as long as not too many are under way. */

static ngx_int_t
ngx_http_mixtral_submit(ngx_http_mixtral_exchange_t *x)
{
    char                     *text;
    mx_status                 status;
    ngx_http_mixtral_call_t  *call;

    while (x->nsent < x->ncalls
           && x->nsent - x->ndone < ngx_http_mixtral_window(x))
    {
        call = &x->calls[x->nsent];

        text = json_dumps(call->request, JSON_COMPACT);
        json_decref(call->request);
        call->request = NULL;

        if (text == NULL) {
            return NGX_ERROR;
        }

        status = mx_client_request(x->client, text, &call->id, &x->error);
        free(text);

        if (status == MX_TOO_LARGE) {
            ngx_cpystrn((u_char *) x->error.field, (u_char *) "body",
                        sizeof(x->error.field));
        }

        if (status != MX_OK) {
            return NGX_DECLINED;
        }

        x->nsent++;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_watch(ngx_http_mixtral_exchange_t *x)
{
    ngx_event_t  *wev;

    if (ngx_handle_read_event(x->connection->read, 0) != NGX_OK) {
        return NGX_ERROR;
    }

    wev = x->connection->write;
    wev->ready = !(mx_client_events(x->client) & POLLOUT);

    return ngx_handle_write_event(wev, 0);
}


/* NGX_DECLINED while an engine of our own is not ready */

static ngx_int_t
ngx_http_mixtral_is_ready(ngx_http_mixtral_exchange_t *x)
{
    const ngx_http_mixtral_page_t  *page;

    page = x->engine->page;

    if (x->engine->command == NULL
        || (page != NULL && page->state == NGX_HTTP_MIXTRAL_READY))
    {
        return NGX_OK;
    }

    if (page != NULL && page->state == NGX_HTTP_MIXTRAL_LOADING) {
        (void) ngx_http_mixtral_refuse(x, MX_UNAVAILABLE, NULL,
                                       "The engine is loading its model.");
        x->error.retry_after_ms = 1000;

    } else {
        (void) ngx_http_mixtral_refuse(x, MX_UNAVAILABLE, NULL,
                                       "The engine does not run; the server's "
                                       "log says why.");
        x->error.retry_after_ms = 1000 * (page ? page->retry
                                               : NGX_HTTP_MIXTRAL_RETRY);
    }

    return NGX_DECLINED;
}


/* x->calls are made.  NGX_OK, NGX_DECLINED, NGX_ERROR. */

ngx_int_t
ngx_http_mixtral_connect(ngx_http_mixtral_exchange_t *x)
{
    ngx_int_t          rc;
    mx_status          status;
    ngx_connection_t  *c;

    if (ngx_http_mixtral_is_ready(x) != NGX_OK) {
        return NGX_DECLINED;
    }

    status = mx_client_connect(x->engine->path, &x->client, &x->error);

    if (status != MX_OK) {
        ngx_log_error(NGX_LOG_ERR, x->request->connection->log, 0,
                      "mixtral: engine \"%V\": %s", &x->engine->name,
                      x->error.text);

        if (status == MX_UNAVAILABLE) {
            (void) ngx_http_mixtral_refuse(x, MX_UNAVAILABLE, NULL,
                                           "The engine does not answer.");
            x->error.retry_after_ms = NGX_HTTP_MIXTRAL_RETRY * 1000;
        }

        return NGX_DECLINED;
    }

    c = ngx_get_connection(mx_client_fd(x->client),
                           x->request->connection->log);
    if (c == NULL) {
        (void) ngx_http_mixtral_refuse(x, MX_BUSY, NULL,
                                       "The server has no connection left.");
        return NGX_DECLINED;
    }

    x->connection = c;

    c->data = x;
    c->pool = x->request->pool;
    c->log = x->request->connection->log;
    c->log_error = x->request->connection->log_error;
    c->read->log = c->log;
    c->write->log = c->log;
    c->read->handler = ngx_http_mixtral_event_handler;
    c->write->handler = ngx_http_mixtral_event_handler;
    c->number = ngx_atomic_fetch_add(ngx_connection_counter, 1);

    x->heard = ngx_current_msec;
    ngx_add_timer(c->read, ngx_http_mixtral_interval(x));

    rc = ngx_http_mixtral_submit(x);
    if (rc != NGX_OK) {
        return rc;
    }

    return ngx_http_mixtral_watch(x);
}


/* Closes the connection and with it what the engine still does for it. */

void
ngx_http_mixtral_cleanup(void *data)
{
    ngx_http_mixtral_exchange_t  *x = data;

    ngx_connection_t  *c;

    c = x->connection;

    if (c != NULL) {
        x->connection = NULL;

        if (c->read->timer_set) {
            ngx_del_timer(c->read);
        }

        if (ngx_del_conn) {
            if (c->read->active || c->write->active) {
                ngx_del_conn(c, 0);
            }

        } else {
            if (c->read->active || c->read->disabled) {
                ngx_del_event(c->read, NGX_READ_EVENT, 0);
            }

            if (c->write->active || c->write->disabled) {
                ngx_del_event(c->write, NGX_WRITE_EVENT, 0);
            }
        }

        if (c->read->posted) {
            ngx_delete_posted_event(c->read);
        }

        if (c->write->posted) {
            ngx_delete_posted_event(c->write);
        }

        c->read->closed = 1;
        c->write->closed = 1;

        ngx_reusable_connection(c, 0);
        ngx_free_connection(c);
        c->fd = (ngx_socket_t) -1;
    }

    mx_client_close(x->client);
    x->client = NULL;
}


/* The end of the exchange's memory */

void
ngx_http_mixtral_destroy(void *data)
{
    ngx_http_mixtral_exchange_t  *x = data;

    ngx_uint_t  i;

    ngx_http_mixtral_cleanup(x);

    for (i = 0; i < x->ncalls; i++) {
        json_decref(x->calls[i].request);
        json_decref(x->calls[i].result);
    }

    json_decref(x->body);
}


/* The first token has come: for $mixtral_ttft */

static void
ngx_http_mixtral_note_first(ngx_http_mixtral_exchange_t *x)
{
    ngx_time_t      *tp;
    ngx_msec_int_t   ms;

    if (x->has_first) {
        return;
    }

    tp = ngx_timeofday();
    ms = (ngx_msec_int_t) ((tp->sec - x->request->start_sec) * 1000
                           + (tp->msec - x->request->start_msec));

    x->first = ngx_max(ms, 0);
    x->has_first = 1;
}


static ngx_int_t
ngx_http_mixtral_take(ngx_http_mixtral_exchange_t *x, const mx_event *event)
{
    ngx_int_t     rc;
    ngx_uint_t    i;
    json_error_t  why;

    x->heard = ngx_current_msec;

    if (x->probe && event->id == x->probe) {
        x->probe = 0;
        return NGX_OK;
    }

    for (i = 0; i < x->nsent && x->calls[i].id != event->id; i++) {
        /* void */
    }

    if (i == x->nsent) {
        return ngx_http_mixtral_refuse(x, MX_INTERNAL, NULL,
                                       "an event of an unknown request");
    }

    switch (event->type) {

    case MX_EVENT_PIECE:

        ngx_http_mixtral_note_first(x);

        if (!x->stream) {
            return NGX_OK;
        }

        if (!x->header_sent && ngx_http_mixtral_stream_header(x) != NGX_OK) {
            return NGX_ERROR;
        }

        if (!x->begun) {
            x->begun = 1;

            rc = x->api->begin(x);
            if (rc != NGX_OK) {
                return rc;
            }
        }

        return x->api->piece(x, i * x->choices + event->choice, event);

    case MX_EVENT_RESULT:

        if (x->calls[i].result != NULL) {
            return NGX_ERROR;
        }

        x->calls[i].result = json_loadb(event->json, event->json_bytes, 0,
                                        &why);
        if (x->calls[i].result == NULL) {
            return NGX_ERROR;
        }

        x->ndone++;
        ngx_http_mixtral_count(x, x->calls[i].result);

        return ngx_http_mixtral_submit(x);

    default: /* MX_EVENT_ERROR */

        x->error = event->error;
        ngx_http_mixtral_check_trust(x);
        return NGX_DECLINED;
    }
}


/* Whether there is enough to be sent before more is taken */

static ngx_uint_t
ngx_http_mixtral_is_full(ngx_http_mixtral_exchange_t *x)
{
    size_t        size;
    ngx_chain_t  *cl;

    size = 0;

    for (cl = x->out; cl; cl = cl->next) {
        size += cl->buf->last - cl->buf->pos;
    }

    return size >= NGX_HTTP_MIXTRAL_BATCH;
}


void
ngx_http_mixtral_pump(ngx_http_mixtral_exchange_t *x)
{
    mx_event             event;
    ngx_int_t            rc;
    mx_status            status;
    ngx_http_request_t  *r;

    r = x->request;

    while (!x->blocked) {

        status = mx_client_next(x->client, &event, &x->error);

        if (status == MX_OK) {
            rc = ngx_http_mixtral_take(x, &event);

        } else if (status == MX_AGAIN) {
            rc = NGX_AGAIN;
            x->connection->read->ready = 0;

        } else {
            rc = NGX_DECLINED;
            x->error.retry_after_ms = NGX_HTTP_MIXTRAL_RETRY * 1000;
        }

        if (rc == NGX_DECLINED) {
            ngx_http_mixtral_fail(x);
            return;
        }

        if (rc == NGX_OK && x->ndone == x->ncalls) {
            ngx_http_mixtral_finish(x);
            return;
        }

        if (rc == NGX_AGAIN
            || (rc == NGX_OK && ngx_http_mixtral_is_full(x)))
        {
            if (ngx_http_mixtral_flush(x) == NGX_ERROR) {
                rc = NGX_ERROR;
            }
        }

        if (rc == NGX_ERROR) {
            ngx_http_mixtral_cleanup(x);
            ngx_http_finalize_request(r, x->header_sent
                                         ? NGX_ERROR
                                         : NGX_HTTP_INTERNAL_SERVER_ERROR);
            return;
        }

        if (rc == NGX_AGAIN) {
            break;
        }
    }

    if (ngx_http_mixtral_watch(x) != NGX_OK) {
        ngx_http_mixtral_cleanup(x);
        ngx_http_finalize_request(r, NGX_ERROR);
    }
}


/* Between two looks, of which each half of a short timeout has some */

static ngx_msec_t
ngx_http_mixtral_interval(ngx_http_mixtral_exchange_t *x)
{
    return ngx_min(NGX_HTTP_MIXTRAL_TICK, x->timeout / 8 + 1);
}


/* Whether the engine answers at all; NGX_DECLINED: it does not. */

static ngx_int_t
ngx_http_mixtral_probe(ngx_http_mixtral_exchange_t *x)
{
    if (x->blocked
        || (x->engine->page != NULL
            && x->engine->page->state == NGX_HTTP_MIXTRAL_LOADING))
    {
        /* nothing is read from it; or it will say when it is ready */

        x->heard = ngx_current_msec;
        return NGX_OK;
    }

    if (x->probe == 0) {

        if (ngx_current_msec - x->heard < x->timeout / 2) {
            return NGX_OK;
        }

        if (mx_client_request(x->client, "{\"op\":\"models\"}", &x->probe,
                              &x->error)
            != MX_OK)
        {
            return NGX_DECLINED;
        }

        x->asked = ngx_current_msec;

        return NGX_OK;
    }

    if (ngx_current_msec - x->heard < x->timeout / 2
        || ngx_current_msec - x->asked < x->timeout / 2)
    {
        return NGX_OK;
    }

    ngx_log_error(NGX_LOG_ERR, x->request->connection->log, 0,
                  "mixtral: engine \"%V\" has said nothing for %M ms",
                  &x->engine->name, ngx_current_msec - x->heard);

    (void) ngx_http_mixtral_refuse(x, MX_UNAVAILABLE, NULL,
                                   "The engine does not answer.");
    x->error.retry_after_ms = NGX_HTTP_MIXTRAL_RETRY * 1000;

    return NGX_DECLINED;
}


/* Once a second: false after the request has ended */

static ngx_uint_t
ngx_http_mixtral_tick(ngx_http_mixtral_exchange_t *x)
{
    if (x->engine->page != NULL
        && x->engine->page->state == NGX_HTTP_MIXTRAL_FAILED
        && ngx_http_mixtral_is_ready(x) == NGX_DECLINED)
    {
        /* it waits in the backlog of an engine that will not come soon */

        ngx_http_mixtral_fail(x);
        return 0;
    }

    ngx_add_timer(x->connection->read, ngx_http_mixtral_interval(x));

    if (ngx_http_mixtral_probe(x) == NGX_DECLINED) {
        ngx_http_mixtral_fail(x);
        return 0;
    }

    if (!x->stream || x->blocked
        || (ngx_msec_int_t) (ngx_current_msec - x->spoke)
           < NGX_HTTP_MIXTRAL_SILENCE)
    {
        return 1;
    }

    if ((x->header_sent || ngx_http_mixtral_stream_header(x) == NGX_OK)
        && ngx_http_mixtral_write(x, ": ping\n\n", 8) == NGX_OK
        && ngx_http_mixtral_flush(x) != NGX_ERROR)
    {
        return 1;
    }

    ngx_http_mixtral_cleanup(x);
    ngx_http_finalize_request(x->request, NGX_ERROR);

    return 0;
}


static void
ngx_http_mixtral_event_handler(ngx_event_t *ev)
{
    ngx_uint_t                    alive;
    ngx_connection_t             *c, *client;
    ngx_http_request_t           *r;
    ngx_http_mixtral_exchange_t  *x;

    c = ev->data;
    x = c->data;
    r = x->request;
    client = r->connection;

    ngx_http_set_log_request(client->log, r);

    if (c->close) {
        /* worker_shutdown_timeout */

        (void) ngx_http_mixtral_refuse(x, MX_UNAVAILABLE, NULL,
                                       "The server is shutting down.");
        ngx_http_mixtral_fail(x);

    } else {
        alive = 1;

        if (ev->timedout) {
            ev->timedout = 0;
            alive = ngx_http_mixtral_tick(x);
        }

        if (alive) {
            ngx_http_mixtral_pump(x);
        }
    }

    ngx_http_run_posted_requests(client);
}
