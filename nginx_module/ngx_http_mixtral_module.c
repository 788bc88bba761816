
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * The module and its directives:
 *
 *     mixtral_engine   NAME model=FILE ...;    an engine that nginx runs
 *     mixtral_engine   NAME unix:PATH;    `mixtral serve --socket PATH`
 *     mixtral_api      NAME;    the API's endpoints, in a location
 *     mixtral_keys     FILE;    who may use them (`mixtral key`)
 *     mixtral_keys     off;     they are open to everybody who gets there
 *     mixtral_timeout  TIME;    of an engine's silence
 *     mixtral_metrics  NAME ...;  engines' figures for Prometheus
 *     mixtral_chat     NAME [api=PATH];  a page to chat with an engine
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_BODY     (32 * 1024 * 1024)
#define NGX_HTTP_MIXTRAL_TIMEOUT  30000    /* ms */
#define NGX_HTTP_MIXTRAL_SCRAPE   5000     /* ms; Prometheus waits for 10 s */


static void *ngx_http_mixtral_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_mixtral_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_mixtral_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_mixtral_engine(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_mixtral_location(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_conf_num_bounds_t  ngx_http_mixtral_timeout_bounds = {
    ngx_conf_check_num_bounds, 100, 24 * 60 * 60 * 1000
};


static ngx_command_t  ngx_http_mixtral_commands[] = {

    { ngx_string("mixtral_engine"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_2MORE,
      ngx_http_mixtral_engine,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("mixtral_api"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_mixtral_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("mixtral_keys"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_mixtral_set_keys,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("mixtral_timeout"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_mixtral_loc_conf_t, timeout),
      &ngx_http_mixtral_timeout_bounds },

    { ngx_string("mixtral_chat"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_mixtral_set_chat,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("mixtral_metrics"),
      NGX_HTTP_LOC_CONF|NGX_CONF_1MORE,
      ngx_http_mixtral_set_metrics,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_mixtral_module_ctx = {
    ngx_http_mixtral_add_variables,        /* preconfiguration */
    ngx_http_mixtral_filter_init,          /* postconfiguration */

    ngx_http_mixtral_create_main_conf,     /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_mixtral_create_loc_conf,      /* create location configuration */
    ngx_http_mixtral_merge_loc_conf        /* merge location configuration */
};


ngx_module_t  ngx_http_mixtral_module = {
    NGX_MODULE_V1,
    &ngx_http_mixtral_module_ctx,          /* module context */
    ngx_http_mixtral_commands,             /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    ngx_http_mixtral_init_module,          /* init module */
    ngx_http_mixtral_init_process,         /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static void *
ngx_http_mixtral_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_mixtral_main_conf_t  *mcf;

    mcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_mixtral_main_conf_t));
    if (mcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&mcf->engines, cf->pool, 2,
                       sizeof(ngx_http_mixtral_engine_t *))
        != NGX_OK
        || ngx_array_init(&mcf->key_files, cf->pool, 2, sizeof(void *))
           != NGX_OK)
    {
        return NULL;
    }

    return mcf;
}


static void *
ngx_http_mixtral_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_mixtral_loc_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_mixtral_loc_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    conf->keys = NGX_CONF_UNSET_PTR;
    conf->timeout = NGX_CONF_UNSET_MSEC;

    return conf;
}


static char *
ngx_http_mixtral_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_mixtral_loc_conf_t  *prev = parent;
    ngx_http_mixtral_loc_conf_t  *conf = child;
    ngx_http_core_loc_conf_t     *clcf;

    if (conf->keys == NGX_CONF_UNSET_PTR) {
        conf->keys = prev->keys;
    }

    if (conf->timeout == NGX_CONF_UNSET_MSEC) {
        conf->timeout = prev->timeout;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->noname) {
        /* in "if" and "limit_except" the location's own handler runs */

        conf->engine = prev->engine;
        conf->metrics = prev->metrics;
        conf->chat = prev->chat;
    }

    if (conf->metrics != NULL) {
        ngx_conf_init_msec_value(conf->timeout, NGX_HTTP_MIXTRAL_SCRAPE);
    }

    if (conf->engine == NULL) {
        return NGX_CONF_OK;
    }

    ngx_conf_init_msec_value(conf->timeout, NGX_HTTP_MIXTRAL_TIMEOUT);

    if (conf->keys == NGX_CONF_UNSET_PTR) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "location \"%V\" has \"mixtral_api\" and no "
                      "\"mixtral_keys\": a file that says who may use it, or "
                      "\"off\", which opens it to everybody who gets there",
                      &clcf->name);
        return NGX_CONF_ERROR;
    }

    /*
     * nginx's default, which prompts with documents in them exceed.  It
     * cannot be told from an explicit 1m.
     */

    if (clcf->client_max_body_size == 1024 * 1024) {
        clcf->client_max_body_size = NGX_HTTP_MIXTRAL_BODY;
    }

    return NGX_CONF_OK;
}


static ngx_http_mixtral_engine_t *
ngx_http_mixtral_find_engine(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_uint_t                      i;
    ngx_http_mixtral_engine_t     **engine;
    ngx_http_mixtral_main_conf_t   *mcf;

    mcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_mixtral_module);

    engine = mcf->engines.elts;

    for (i = 0; i < mcf->engines.nelts; i++) {
        if (engine[i]->name.len == name->len
            && ngx_strncmp(engine[i]->name.data, name->data, name->len) == 0)
        {
            return engine[i];
        }
    }

    return NULL;
}


/* The engine that a directive names; NULL: it has been logged that there is
 * none. */

ngx_http_mixtral_engine_t *
ngx_http_mixtral_named_engine(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_http_mixtral_engine_t  *engine;

    engine = ngx_http_mixtral_find_engine(cf, name);

    if (engine == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "there is no \"mixtral_engine\" named \"%V\" "
                           "before this", name);
    }

    return engine;
}


static char *
ngx_http_mixtral_engine(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_main_conf_t  *mcf = conf;

    ngx_str_t                   *value;
    ngx_uint_t                   i;
    ngx_http_mixtral_engine_t   *engine, **slot;

    value = cf->args->elts;

    if (ngx_http_mixtral_find_engine(cf, &value[1]) != NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "duplicate engine \"%V\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < value[1].len; i++) {
        if (!isalnum(value[1].data[i]) && value[1].data[i] != '_'
            && value[1].data[i] != '-')
        {
            break;
        }
    }

    if (i < value[1].len || value[1].len == 0 || value[1].len > 32) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid engine name \"%V\": expected 1 to 32 "
                           "letters, digits, \"_\" and \"-\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    engine = ngx_pcalloc(cf->pool, sizeof(ngx_http_mixtral_engine_t));
    slot = ngx_array_push(&mcf->engines);
    if (engine == NULL || slot == NULL) {
        return NGX_CONF_ERROR;
    }

    *slot = engine;
    engine->name = value[1];

    if (ngx_strncmp(value[2].data, "unix:", 5) != 0) {
        engine->command = ngx_http_mixtral_parse_command(cf, &engine->name);

        return engine->command ? NGX_CONF_OK : NGX_CONF_ERROR;
    }

    if (value[2].len == 5 || value[2].len - 5 > 107 || cf->args->nelts > 3) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid engine \"%V\": expected \"unix:\" and a "
                           "path of 1 to 107 bytes, and nothing behind it",
                           &value[2]);
        return NGX_CONF_ERROR;
    }

    engine->path = (char *) value[2].data + 5;

    return NGX_CONF_OK;
}


static char *
ngx_http_mixtral_location(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_loc_conf_t  *lcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    value = cf->args->elts;

    if (lcf->engine != NULL) {
        return "is duplicate";
    }

    if (lcf->metrics != NULL || lcf->chat != NULL) {
        return "is in a location with \"mixtral_metrics\" or "
               "\"mixtral_chat\"";
    }

    lcf->engine = ngx_http_mixtral_named_engine(cf, &value[1]);
    if (lcf->engine == NULL) {
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_mixtral_handler;

    return NGX_CONF_OK;
}
