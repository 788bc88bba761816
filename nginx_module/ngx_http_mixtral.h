
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
#include <poll.h>
#include <sodium.h>

#include "mx.h"
#include "server/keys.h"


typedef struct ngx_http_mixtral_exchange_s  ngx_http_mixtral_exchange_t;
typedef struct ngx_http_mixtral_api_s       ngx_http_mixtral_api_t;


/* What a supervisor tells the workers, in memory that all of them map.  Each
 * figure is written by the supervisor alone and makes sense by itself. */
typedef struct {
    ngx_atomic_t              state;        /* one of the next three */
    ngx_atomic_t              retry;        /* s, until another start */
} ngx_http_mixtral_page_t;


#define NGX_HTTP_MIXTRAL_LOADING  0
#define NGX_HTTP_MIXTRAL_READY    1
#define NGX_HTTP_MIXTRAL_FAILED   2


/* Descriptors that an engine which nginx runs inherits */
#define NGX_HTTP_MIXTRAL_LISTENER  3
#define NGX_HTTP_MIXTRAL_LIFELINE  4


/* An engine that nginx runs: what mixtral_engine's parameters ask for */
typedef struct {
    char                     *name;
    char                     *program;
    char                    **argv;         /* NULL at its end */
    ngx_int_t                 priority;     /* nice(1) */
    char                     *user;         /* NULL: we are not root */
    ngx_uid_t                 uid;
    ngx_gid_t                 gid;
    ngx_str_t                 key;          /* equal: the same process does */
} ngx_http_mixtral_command_t;


typedef struct ngx_http_mixtral_process_s  ngx_http_mixtral_process_t;

/* What runs: the master's side of a supervisor.  Descriptors: -1, not here */
struct ngx_http_mixtral_process_s {
    ngx_http_mixtral_process_t        *next;

    char                               name[64];     /* of the engine */
    ngx_str_t                          key;
    const ngx_http_mixtral_command_t  *command;      /* while it is made */

    int                                lifeline[2];
    int                                users[2];
    int                                log[2];
    int                                listener;
    int                                node;         /* O_PATH */
    char                               path[32];     /* of node, in /proc */
    ngx_http_mixtral_page_t           *page;

    char                               line[1024];   /* of the log, so far */
    size_t                             nline;

    unsigned                           wanted:1;
};


/* mixtral_engine */
typedef struct {
    ngx_str_t                    name;
    char                        *path;      /* of its socket; NULL: there is
                                               none, it could not be started */
    ngx_http_mixtral_command_t  *command;   /* NULL: somebody else's engine */
    ngx_http_mixtral_page_t     *page;      /* NULL too then */
} ngx_http_mixtral_engine_t;


typedef struct {
    ngx_array_t               engines;      /* of ngx_http_mixtral_engine_t * */
    ngx_array_t               key_files;    /* of mixtral_keys */
} ngx_http_mixtral_main_conf_t;


/* mixtral_chat: the page */
typedef struct {
    ngx_str_t                   page;
    ngx_str_t                   etag;
    u_char                     *policy;     /* of its contents */
} ngx_http_mixtral_chat_t;


typedef struct {
    ngx_http_mixtral_engine_t  *engine;     /* NULL: no mixtral_api here */
    mx_keys                    *keys;       /* NULL: mixtral_keys off */
    ngx_array_t                *metrics;    /* of engines; NULL: not here */
    ngx_http_mixtral_chat_t    *chat;       /* NULL: not here */
    ngx_msec_t                  timeout;    /* of an engine's silence */
} ngx_http_mixtral_loc_conf_t;


/* A call of the engine, and what came back */
typedef struct {
    json_t                   *request;      /* until it is sent */
    uint32_t                  id;           /* 0: not sent yet */
    json_t                   *result;
} ngx_http_mixtral_call_t;


/*
 * The functions of a stream are NULL where there are no streams.  All
 * return NGX_OK, NGX_DECLINED after an error for the client has been put
 * into the exchange (ngx_http_mixtral_refuse), or NGX_ERROR.
 */
struct ngx_http_mixtral_api_s {
    ngx_str_t     path;                     /* the end of the URI */
    ngx_uint_t    method;

    /* the body becomes calls; x->body is NULL for GET */
    ngx_int_t   (*parse)(ngx_http_mixtral_exchange_t *x);

    /* of a stream: before the first piece, a piece, and the last chunks */
    ngx_int_t   (*begin)(ngx_http_mixtral_exchange_t *x);
    ngx_int_t   (*piece)(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
                         const mx_event *event);
    ngx_int_t   (*end)(ngx_http_mixtral_exchange_t *x);

    /* the answer in one, of all calls' results; NULL: out of memory */
    json_t     *(*answer)(ngx_http_mixtral_exchange_t *x);

    ngx_uint_t    anthropic;                /* whose shape errors have */
};


struct ngx_http_mixtral_exchange_s {
    ngx_http_request_t             *request;
    const ngx_http_mixtral_api_t   *api;
    ngx_http_mixtral_engine_t      *engine;
    const mx_key                   *key;          /* NULL: none is asked for */

    mx_client                      *client;
    ngx_connection_t               *connection;   /* around client's socket */

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
    ngx_msec_t                      spoke;        /* last byte to the client */

    ngx_msec_t                      timeout;      /* mixtral_timeout */
    ngx_msec_t                      heard;        /* the engine's last event */
    ngx_msec_t                      asked;        /* the probe was sent */
    uint32_t                        probe;        /* 0: none is under way */

    /* instead of an answer, with x->error where the calls have failed */
    void                          (*done)(ngx_http_mixtral_exchange_t *x);
    void                           *scrape;       /* of done: metrics */

    ngx_str_t                       model;        /* data NULL: not known */
    ngx_uint_t                      prompt_tokens;
    ngx_uint_t                      cached_tokens;
    ngx_uint_t                      completion_tokens;
    ngx_msec_t                      first;        /* token, from r's start */

    mx_error                        error;        /* for the client */

    unsigned                        counted:1;    /* the tokens are known */
    unsigned                        has_first:1;
    unsigned                        stream:1;
    unsigned                        include_usage:1;
    unsigned                        timings:1;
    unsigned                        base64:1;
    unsigned                        header_sent:1;
    unsigned                        begun:1;
    unsigned                        blocked:1;    /* the client reads slowly */
    unsigned                        replied:1;    /* the filters let it pass */
};


/* module */
extern ngx_module_t  ngx_http_mixtral_module;
ngx_http_mixtral_engine_t *ngx_http_mixtral_named_engine(ngx_conf_t *cf,
    ngx_str_t *name);

/* handler */
ngx_int_t ngx_http_mixtral_handler(ngx_http_request_t *r);
ngx_http_mixtral_exchange_t *ngx_http_mixtral_create(ngx_http_request_t *r,
    ngx_http_mixtral_engine_t *engine);
const ngx_http_mixtral_api_t *ngx_http_mixtral_find_api(ngx_str_t *uri);

/* command, owned, supervisor: engines that nginx runs */
ngx_http_mixtral_command_t *ngx_http_mixtral_parse_command(ngx_conf_t *cf,
    ngx_str_t *name);
ngx_int_t ngx_http_mixtral_init_module(ngx_cycle_t *cycle);
ngx_int_t ngx_http_mixtral_init_process(ngx_cycle_t *cycle);
ngx_int_t ngx_http_mixtral_fork_supervisor(ngx_http_mixtral_process_t *p,
    ngx_log_t *log);
ngx_int_t ngx_http_mixtral_become(const ngx_http_mixtral_command_t *command);

/* engine: the connection of an exchange */
ngx_int_t ngx_http_mixtral_connect(ngx_http_mixtral_exchange_t *x);
void ngx_http_mixtral_pump(ngx_http_mixtral_exchange_t *x);
void ngx_http_mixtral_cleanup(void *data);
void ngx_http_mixtral_destroy(void *data);
ngx_int_t ngx_http_mixtral_calls(ngx_http_mixtral_exchange_t *x, ngx_uint_t n);
json_t *ngx_http_mixtral_call(ngx_http_mixtral_exchange_t *x, ngx_uint_t index,
    const char *op);

/* reply */
ngx_int_t ngx_http_mixtral_write(ngx_http_mixtral_exchange_t *x,
    const void *data, size_t size);
ngx_int_t ngx_http_mixtral_sse(ngx_http_mixtral_exchange_t *x, json_t *data);
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
json_t *ngx_http_mixtral_error_json(const mx_error *error,
    ngx_uint_t anthropic);
ngx_int_t ngx_http_mixtral_send_error(ngx_http_request_t *r,
    const mx_error *error);
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
ngx_int_t ngx_http_mixtral_given_messages(ngx_http_mixtral_exchange_t *x,
    json_t **messages);
void ngx_http_mixtral_count(ngx_http_mixtral_exchange_t *x, json_t *result);
const char *ngx_http_mixtral_answer_model(ngx_http_mixtral_exchange_t *x);

/* keys */
char *ngx_http_mixtral_set_keys(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
const mx_key *ngx_http_mixtral_find_key(ngx_http_request_t *r);
ngx_uint_t ngx_http_mixtral_allowed(ngx_http_request_t *r, const mx_key **key);
ngx_int_t ngx_http_mixtral_unauthorized(ngx_http_request_t *r);
ngx_int_t ngx_http_mixtral_add_tenant(ngx_http_mixtral_exchange_t *x,
    json_t *options);
void ngx_http_mixtral_check_trust(ngx_http_mixtral_exchange_t *x);

/* chat */
char *ngx_http_mixtral_set_chat(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/* metrics */
char *ngx_http_mixtral_set_metrics(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/* variables */
ngx_int_t ngx_http_mixtral_add_variables(ngx_conf_t *cf);
ngx_int_t ngx_http_mixtral_prefix_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);

/* the name of /models/NAME; false: the URI is another */
ngx_uint_t ngx_http_mixtral_model_name(const ngx_str_t *uri, ngx_str_t *name);

/* apis */
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_chat_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_completions_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_messages_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_count_tokens_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_embeddings_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_models_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_model_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_tokenize_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_detokenize_api;
extern const ngx_http_mixtral_api_t  ngx_http_mixtral_health_api;

#endif /* _NGX_HTTP_MIXTRAL_H_INCLUDED_ */
