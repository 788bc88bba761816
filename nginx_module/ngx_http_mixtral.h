
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * What the files of the module share.
 *
 * A request of a client is an exchange: its body becomes one or more calls
 * of the engine, over a connection of its own, and what the engine says
 * becomes the answer.  An exchange lives in the request's pool; its cleanup
 * handler, which runs however the request ends, closes the connection, and
 * with that cancels the calls.
 *
 * An api is how an exchange looks from outside: a row of functions that turn
 * a body into calls, and events into an answer.
 */


#ifndef _NGX_HTTP_MIXTRAL_H_INCLUDED_
#define _NGX_HTTP_MIXTRAL_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include <jansson.h>

#include "mx.h"


#define NGX_HTTP_MIXTRAL_KEY_HASH   32


typedef struct ngx_http_mixtral_exchange_s  ngx_http_mixtral_exchange_t;
typedef struct ngx_http_mixtral_api_s       ngx_http_mixtral_api_t;


/* What a supervisor tells the workers: a page that they share. */
typedef enum {
    NGX_HTTP_MIXTRAL_LOADING = 0,
    NGX_HTTP_MIXTRAL_SERVING,
    NGX_HTTP_MIXTRAL_WAITING      /* the engine ended; it starts at retry_at */
} ngx_http_mixtral_state_e;


typedef struct {
    ngx_atomic_t              state;
    ngx_atomic_t              retry_at;     /* seconds since 1970 */
    ngx_atomic_t              starts;       /* of the engine, ever */
    ngx_atomic_t              engine_pid;
} ngx_http_mixtral_status_t;


/*
 * A supervisor that was started, as the master knows it.  It outlives cycles:
 * a cycle whose settings are the same goes on with it.
 */
typedef struct {
    ngx_queue_t                 queue;
    u_char                     *settings;   /* name and arguments; NUL-ended */
    ngx_http_mixtral_status_t  *status;     /* shared with all processes */
    ngx_fd_t                    lifeline;   /* the master alone holds it */
    ngx_fd_t                    users;      /* master and workers hold it */
    unsigned                    wanted:1;   /* by the cycle being made */
    char                        path[108];  /* of the engine's socket */
} ngx_http_mixtral_launched_t;


/* mixtral_engine */
typedef struct {
    ngx_str_t                     name;
    char                         *path;     /* unix: the socket; else NULL */
    ngx_array_t                   args;     /* of char *: of the program */
    ngx_array_t                   models;   /* of char *: the files */
    char                         *program;
    ngx_int_t                     priority;
    ngx_http_mixtral_launched_t  *launched;
} ngx_http_mixtral_engine_t;


typedef struct {
    ngx_str_t                 name;
    u_char                    hash[NGX_HTTP_MIXTRAL_KEY_HASH];
    ngx_int_t                 requests;             /* NGX_CONF_UNSET: none */
    ngx_int_t                 tokens_per_minute;    /* NGX_CONF_UNSET: none */
} ngx_http_mixtral_key_t;


/* A file of keys */
typedef struct {
    u_char                    secret[NGX_HTTP_MIXTRAL_KEY_HASH];
    ngx_array_t               keys;         /* of ngx_http_mixtral_key_t */
} ngx_http_mixtral_keys_t;


typedef struct {
    ngx_array_t               engines;      /* of ngx_http_mixtral_engine_t * */
} ngx_http_mixtral_main_conf_t;


typedef struct {
    ngx_http_mixtral_engine_t  *engine;     /* of the location's directive */
    unsigned                    api:1;      /* mixtral_api is here */
    ngx_http_mixtral_keys_t    *keys;       /* NULL: off */
    ngx_str_t                   page;       /* mixtral_chat's, with the name */
} ngx_http_mixtral_loc_conf_t;


/* A call of the engine, and what came back */
typedef struct {
    json_t                   *request;      /* until it is sent */
    uint32_t                  id;           /* 0: not sent yet */
    json_t                   *result;
} ngx_http_mixtral_call_t;


/*
 * Every function but `parse` may be NULL, where there is nothing to do.  They
 * return NGX_OK, NGX_DECLINED after an error for the client has been put
 * into the exchange (ngx_http_mixtral_refuse), or NGX_ERROR.
 */
struct ngx_http_mixtral_api_s {
    ngx_str_t     path;                     /* the end of the URI */
    ngx_uint_t    method;
    unsigned      anthropic:1;              /* the shape of its errors */

    /* the body becomes calls; x->body is NULL for GET */
    ngx_int_t   (*parse)(ngx_http_mixtral_exchange_t *x);

    /* of a stream: before the first piece, a piece, and the last chunks */
    ngx_int_t   (*begin)(ngx_http_mixtral_exchange_t *x);
    ngx_int_t   (*piece)(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
                         const mx_event *event);
    ngx_int_t   (*end)(ngx_http_mixtral_exchange_t *x);

    /* the answer in one, of all calls' results; NULL: out of memory */
    json_t     *(*answer)(ngx_http_mixtral_exchange_t *x);

    /* the same where it is no JSON; sends by itself */
    ngx_int_t   (*render)(ngx_http_mixtral_exchange_t *x, json_t *result);
};


struct ngx_http_mixtral_exchange_s {
    ngx_http_request_t             *request;
    const ngx_http_mixtral_api_t   *api;
    ngx_http_mixtral_engine_t      *engine;
    const ngx_http_mixtral_key_t   *key;

    mx_client                      *client;
    ngx_connection_t               *connection;   /* around client's socket */
    ngx_atomic_uint_t               starts;       /* when it connected */

    json_t                         *body;
    ngx_http_mixtral_call_t        *calls;
    ngx_uint_t                      ncalls;
    ngx_uint_t                      nsent;
    ngx_uint_t                      ndone;
    ngx_uint_t                      choices;      /* of a call */

    ngx_chain_t                    *out;
    ngx_chain_t                    *tail;         /* of out */
    ngx_chain_t                    *free;
    ngx_chain_t                    *busy;

    u_char                          id[33];       /* random, in hex */
    time_t                          created;
    ngx_msec_t                      arrived;
    ngx_msec_t                      spoke;        /* last byte to the client */
    ngx_msec_int_t                  ttft;         /* -1: none yet */

    ngx_str_t                       model;        /* data NULL: not known */
    ngx_uint_t                      prompt_tokens;
    ngx_uint_t                      cached_tokens;
    ngx_uint_t                      completion_tokens;

    mx_error                        error;        /* for the client */

    unsigned                        stream:1;
    unsigned                        include_usage:1;
    unsigned                        timings:1;
    unsigned                        base64:1;
    unsigned                        header_sent:1;
    unsigned                        begun:1;
    unsigned                        heard:1;      /* an event has come */
    unsigned                        blocked:1;    /* the client reads slowly */
    unsigned                        counted:1;    /* the figures are known */
    unsigned                        ended:1;
    unsigned                        replied:1;    /* the filters let it pass */
};


/* module */
extern ngx_module_t  ngx_http_mixtral_module;

/* handler */
ngx_int_t ngx_http_mixtral_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_mixtral_metrics_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_mixtral_chat_handler(ngx_http_request_t *r);

/* engine: the connection of an exchange */
ngx_int_t ngx_http_mixtral_connect(ngx_http_mixtral_exchange_t *x);
void ngx_http_mixtral_pump(ngx_http_mixtral_exchange_t *x);
void ngx_http_mixtral_cleanup(void *data);
void ngx_http_mixtral_destroy(void *data);
ngx_int_t ngx_http_mixtral_calls(ngx_http_mixtral_exchange_t *x, ngx_uint_t n);
json_t *ngx_http_mixtral_call(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    const char *op);
ngx_uint_t ngx_http_mixtral_retry_after(ngx_http_mixtral_engine_t *engine);
ngx_int_t ngx_http_mixtral_serving(ngx_http_mixtral_engine_t *engine);

/* supervisor, launch */
ngx_int_t ngx_http_mixtral_init_module(ngx_cycle_t *cycle);
ngx_int_t ngx_http_mixtral_init_process(ngx_cycle_t *cycle);
ngx_int_t ngx_http_mixtral_check_models(ngx_cycle_t *cycle,
    ngx_http_mixtral_engine_t *engine);
ngx_int_t ngx_http_mixtral_launch(ngx_cycle_t *cycle,
    ngx_http_mixtral_engine_t *engine, ngx_http_mixtral_launched_t *launched);
ngx_int_t ngx_http_mixtral_become_user(ngx_cycle_t *cycle);
void ngx_http_mixtral_supervise(ngx_cycle_t *cycle,
    ngx_http_mixtral_engine_t *engine, ngx_http_mixtral_launched_t *launched,
    ngx_fd_t listener, ngx_fd_t lifeline, ngx_fd_t users);

/* reply */
ngx_int_t ngx_http_mixtral_write(ngx_http_mixtral_exchange_t *x,
    const void *data, size_t size);
ngx_int_t ngx_http_mixtral_sse(ngx_http_mixtral_exchange_t *x,
    const char *event, json_t *data);
ngx_int_t ngx_http_mixtral_flush(ngx_http_mixtral_exchange_t *x);
ngx_int_t ngx_http_mixtral_stream_header(ngx_http_mixtral_exchange_t *x);
void ngx_http_mixtral_finish(ngx_http_mixtral_exchange_t *x);
void ngx_http_mixtral_fail(ngx_http_mixtral_exchange_t *x);
ngx_int_t ngx_http_mixtral_send_json(ngx_http_request_t *r, ngx_uint_t status,
    json_t *json);
ngx_int_t ngx_http_mixtral_send(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, u_char *data, size_t size);
void ngx_http_mixtral_write_handler(ngx_http_request_t *r);

/* errors */
ngx_int_t ngx_http_mixtral_refuse(ngx_http_mixtral_exchange_t *x,
    mx_status status, const char *field, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
ngx_uint_t ngx_http_mixtral_http_status(const mx_error *error);
json_t *ngx_http_mixtral_error_json(const mx_error *error,
    ngx_uint_t anthropic);
json_t *ngx_http_mixtral_status_json(ngx_uint_t status, const char *message,
    ngx_uint_t anthropic);
ngx_int_t ngx_http_mixtral_send_error(ngx_http_request_t *r,
    const mx_error *error, ngx_uint_t anthropic);
ngx_int_t ngx_http_mixtral_send_unauthorized(ngx_http_request_t *r,
    ngx_uint_t anthropic);
ngx_int_t ngx_http_mixtral_retry_header(ngx_http_request_t *r,
    ngx_uint_t seconds);
ngx_int_t ngx_http_mixtral_add_header(ngx_http_request_t *r, const char *name,
    const char *value);
ngx_int_t ngx_http_mixtral_filter_init(ngx_conf_t *cf);

/* JSON */
json_t *ngx_http_mixtral_parse_json(const u_char *data, size_t size,
    mx_error *error);
ngx_int_t ngx_http_mixtral_read_body(ngx_http_request_t *r, ngx_str_t *body);
json_t *ngx_http_mixtral_field(const json_t *object, const char *name);
ngx_int_t ngx_http_mixtral_flag(ngx_http_mixtral_exchange_t *x,
    const json_t *object, const char *name, ngx_uint_t *value);
const char *ngx_http_mixtral_kind(const json_t *value);
ngx_int_t ngx_http_mixtral_copy(ngx_http_mixtral_exchange_t *x,
    json_t *options, const char *from, const char *to);
ngx_int_t ngx_http_mixtral_text(ngx_http_mixtral_exchange_t *x,
    const char *field, json_t *content, json_t **text);
void ngx_http_mixtral_count(ngx_http_mixtral_exchange_t *x, json_t *result);

/* apis */
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_chat_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_completions_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_embeddings_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_models_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_tokenize_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_detokenize_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_health_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_messages_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_count_tokens_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_metrics_api;

/* keys */
char *ngx_http_mixtral_read_keys(ngx_conf_t *cf, ngx_str_t *path,
    ngx_http_mixtral_keys_t **keys);
const ngx_http_mixtral_key_t *ngx_http_mixtral_find_key(ngx_http_request_t *r,
    ngx_http_mixtral_keys_t *keys);

/* variables */
ngx_int_t ngx_http_mixtral_add_variables(ngx_conf_t *cf);

/* page */
ngx_int_t ngx_http_mixtral_make_page(ngx_conf_t *cf, ngx_str_t *name,
    ngx_str_t *page);


#endif /* _NGX_HTTP_MIXTRAL_H_INCLUDED_ */
