
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * The module and its directives:
 *
 *     mixtral_engine   NAME unix:PATH;
 *     mixtral_engine   NAME model=FILE [threads=N] [kv_pool=SIZE] ...;
 *     mixtral_api      NAME;         the API's endpoints, in a location
 *     mixtral_keys     FILE | off;   who may use them
 *     mixtral_metrics  NAME;         figures for Prometheus
 *     mixtral_chat     NAME;         a page to chat on
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_BODY  (32 * 1024 * 1024)


static void *ngx_http_mixtral_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_mixtral_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_mixtral_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_mixtral_engine(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_mixtral_location(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_mixtral_keys(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


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
      (void *) ngx_http_mixtral_handler },

    { ngx_string("mixtral_metrics"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_mixtral_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      (void *) ngx_http_mixtral_metrics_handler },

    { ngx_string("mixtral_chat"),
      NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_mixtral_location,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      (void *) ngx_http_mixtral_chat_handler },

    { ngx_string("mixtral_keys"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_mixtral_keys,
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


/* Parameters of mixtral_engine that are options of `mixtral serve` */
static const struct {
    ngx_str_t    name;
    const char  *option;
} ngx_http_mixtral_parameters[] = {
    { ngx_string("model"), "--model" },
    { ngx_string("name"), "--name" },
    { ngx_string("threads"), "--threads" },
    { ngx_string("context"), "--context" },
    { ngx_string("kv_pool"), "--kv-pool" },
    { ngx_string("kv_type"), "--kv-type" },
    { ngx_string("kernels"), "--kernels" },
    { ngx_string("max_queue"), "--max-queue" },
    { ngx_string("max_step_ms"), "--max-step-ms" },
    { ngx_string("stall_timeout_ms"), "--stall-timeout-ms" },
    { ngx_string("tenant_requests"), "--tenant-requests" },
    { ngx_string("tenant_tokens_per_minute"), "--tenant-tokens-per-minute" },
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

    if (!conf->api) {
        return NGX_CONF_OK;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (conf->keys == NGX_CONF_UNSET_PTR) {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "location \"%V\" has \"mixtral_api\" and no "
                      "\"mixtral_keys\": expected a file of keys, or \"off\" "
                      "for an API that is open to everybody", &clcf->name);
        return NGX_CONF_ERROR;
    }

    /* nginx's default, which prompts with documents in them exceed */

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


/* A string of the configuration is NUL-ended already. */

static char *
ngx_http_mixtral_push(ngx_array_t *array, char *text)
{
    char  **elt;

    elt = ngx_array_push(array);
    if (elt == NULL) {
        return NGX_CONF_ERROR;
    }

    *elt = text;

    return NGX_CONF_OK;
}


/* "2g" as nginx writes it is "2G" for the engine. */

static void
ngx_http_mixtral_raise_unit(ngx_str_t *value)
{
    u_char  *last;

    if (value->len == 0) {
        return;
    }

    last = value->data + value->len - 1;

    if (*last == 'k' || *last == 'm' || *last == 'g') {
        *last = ngx_toupper(*last);
    }
}


static char *
ngx_http_mixtral_parameter(ngx_conf_t *cf, ngx_http_mixtral_engine_t *engine,
    ngx_str_t *parameter)
{
    u_char      *equals;
    ngx_int_t    n;
    ngx_str_t    name, value;
    ngx_uint_t   i;

    equals = ngx_strlchr(parameter->data, parameter->data + parameter->len,
                         '=');
    if (equals == NULL || equals[1] == '\0') {
        goto invalid;
    }

    name.data = parameter->data;
    name.len = equals - parameter->data;
    value.data = equals + 1;
    value.len = parameter->len - name.len - 1;

    if (name.len == 8 && ngx_strncmp(name.data, "priority", 8) == 0) {

        n = (value.data[0] == '-') ? NGX_ERROR
                                   : ngx_atoi(value.data, value.len);
        if (n == NGX_ERROR || n > 19) {
            goto invalid;
        }

        engine->priority = n;
        return NGX_CONF_OK;
    }

    if (name.len == 7 && ngx_strncmp(name.data, "program", 7) == 0) {
        engine->program = (char *) value.data;
        return NGX_CONF_OK;
    }

    for (i = 0; i < sizeof(ngx_http_mixtral_parameters)
                    / sizeof(ngx_http_mixtral_parameters[0]); i++)
    {
        if (name.len != ngx_http_mixtral_parameters[i].name.len
            || ngx_strncmp(name.data, ngx_http_mixtral_parameters[i].name.data,
                           name.len)
               != 0)
        {
            continue;
        }

        if (i == 0) {
            if (ngx_conf_full_name(cf->cycle, &value, 0) != NGX_OK
                || ngx_http_mixtral_push(&engine->models, (char *) value.data)
                   != NGX_CONF_OK)
            {
                return NGX_CONF_ERROR;
            }

        } else if (name.data[0] != 'n') {
            ngx_http_mixtral_raise_unit(&value);
        }

        if (ngx_http_mixtral_push(&engine->args,
                              (char *) ngx_http_mixtral_parameters[i].option)
            != NGX_CONF_OK)
        {
            return NGX_CONF_ERROR;
        }

        return ngx_http_mixtral_push(&engine->args, (char *) value.data);
    }

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                       "invalid parameter \"%V\" of \"mixtral_engine\"",
                       parameter);

    return NGX_CONF_ERROR;
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
    engine->priority = 5;
    engine->program = MIXTRAL_PROGRAM;

    if (ngx_array_init(&engine->args, cf->pool, 8, sizeof(char *)) != NGX_OK
        || ngx_array_init(&engine->models, cf->pool, 1, sizeof(char *))
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    if (ngx_strncmp(value[2].data, "unix:", 5) == 0) {
        engine->path = (char *) value[2].data + 5;

        if (cf->args->nelts > 3) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "engine \"%V\" is another process's, which "
                               "takes no parameter \"%V\"", &value[1],
                               &value[3]);
            return NGX_CONF_ERROR;
        }

        if (value[2].len == 5 || value[2].len - 5 > 107) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid socket \"%V\": expected a path of 1 "
                               "to 107 bytes", &value[2]);
            return NGX_CONF_ERROR;
        }

        return NGX_CONF_OK;
    }

    for (i = 2; i < cf->args->nelts; i++) {
        if (ngx_http_mixtral_parameter(cf, engine, &value[i])
            != NGX_CONF_OK)
        {
            return NGX_CONF_ERROR;
        }
    }

    if (engine->models.nelts == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "engine \"%V\" has no model: expected \"unix:PATH\" "
                           "or \"model=FILE\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* mixtral_api, mixtral_metrics and mixtral_chat: cmd->post is the handler. */

static char *
ngx_http_mixtral_location(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_loc_conf_t  *lcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    value = cf->args->elts;

    if (lcf->engine != NULL) {
        return "conflicts with another directive of this location";
    }

    lcf->engine = ngx_http_mixtral_find_engine(cf, &value[1]);
    if (lcf->engine == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "there is no \"mixtral_engine\" named \"%V\" "
                           "before this", &value[1]);
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = (ngx_http_handler_pt) cmd->post;

    lcf->api = clcf->handler == ngx_http_mixtral_handler;

    if (clcf->handler == ngx_http_mixtral_chat_handler
        && ngx_http_mixtral_make_page(cf, &value[1], &lcf->page) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_mixtral_keys(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_loc_conf_t  *lcf = conf;

    ngx_str_t  *value;

    if (lcf->keys != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0) {
        lcf->keys = NULL;
        return NGX_CONF_OK;
    }

    if (ngx_conf_full_name(cf->cycle, &value[1], 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    return ngx_http_mixtral_read_keys(cf, &value[1], &lcf->keys);
}
