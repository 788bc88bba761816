
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * Variables for access_log and limits: what a request has used, and whose key
 * it came with.  What is not known is not found, which a log shows as "-":
 * figures before the engine's result, all of them where no engine was asked.
 */


#include "ngx_http_mixtral.h"


static ngx_int_t ngx_http_mixtral_figure_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_mixtral_ttft_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_mixtral_model_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_mixtral_key_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


static ngx_http_variable_t  ngx_http_mixtral_variables[] = {

    { ngx_string("mixtral_prompt_tokens"), NULL,
      ngx_http_mixtral_figure_variable,
      offsetof(ngx_http_mixtral_exchange_t, prompt_tokens),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("mixtral_completion_tokens"), NULL,
      ngx_http_mixtral_figure_variable,
      offsetof(ngx_http_mixtral_exchange_t, completion_tokens),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("mixtral_cached_tokens"), NULL,
      ngx_http_mixtral_figure_variable,
      offsetof(ngx_http_mixtral_exchange_t, cached_tokens),
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("mixtral_ttft"), NULL, ngx_http_mixtral_ttft_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("mixtral_model"), NULL, ngx_http_mixtral_model_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("mixtral_key"), NULL, ngx_http_mixtral_key_variable, 0,
      NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("mixtral_prefix"), NULL, ngx_http_mixtral_prefix_variable, 0,
      0, 0 },

      ngx_http_null_variable
};


ngx_int_t
ngx_http_mixtral_add_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var, *v;

    for (v = ngx_http_mixtral_variables; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


/* The exchange whose figures are known, or NULL */

static ngx_http_mixtral_exchange_t *
ngx_http_mixtral_counted(ngx_http_request_t *r, ngx_http_variable_value_t *v)
{
    ngx_http_mixtral_exchange_t  *x;

    x = ngx_http_get_module_ctx(r->main, ngx_http_mixtral_module);

    if (x == NULL || !x->counted) {
        v->not_found = 1;
        return NULL;
    }

    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return x;
}


static ngx_int_t
ngx_http_mixtral_figure_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_mixtral_exchange_t  *x;

    x = ngx_http_mixtral_counted(r, v);
    if (x == NULL) {
        return NGX_OK;
    }

    v->data = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
    if (v->data == NULL) {
        return NGX_ERROR;
    }

    v->len = ngx_sprintf(v->data, "%ui",
                         *(ngx_uint_t *) ((u_char *) x + data))
             - v->data;

    return NGX_OK;
}


/* From the request's first byte, as $request_time is */

static ngx_int_t
ngx_http_mixtral_ttft_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_mixtral_exchange_t  *x;

    x = ngx_http_get_module_ctx(r->main, ngx_http_mixtral_module);

    if (x == NULL || !x->has_first) {
        v->not_found = 1;
        return NGX_OK;
    }

    v->data = ngx_pnalloc(r->pool, NGX_TIME_T_LEN + 4);
    if (v->data == NULL) {
        return NGX_ERROR;
    }

    v->len = ngx_sprintf(v->data, "%T.%03M", (time_t) x->first / 1000,
                         x->first % 1000)
             - v->data;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


/* What the engine calls it; embeddings do not say, so there what was asked */

static ngx_int_t
ngx_http_mixtral_model_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    json_t                       *asked;
    ngx_http_mixtral_exchange_t  *x;

    x = ngx_http_mixtral_counted(r, v);
    if (x == NULL) {
        return NGX_OK;
    }

    if (x->model.data != NULL) {
        v->data = x->model.data;
        v->len = x->model.len;
        return NGX_OK;
    }

    asked = ngx_http_mixtral_field(x->body, "model");

    if (!json_is_string(asked)) {
        v->not_found = 1;
        return NGX_OK;
    }

    v->data = (u_char *) json_string_value(asked);
    v->len = json_string_length(asked);

    return NGX_OK;
}


/* Also before the request has come to its handler, for limit_req_zone */

static ngx_int_t
ngx_http_mixtral_key_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    const mx_key  *key;

    key = ngx_http_mixtral_find_key(r->main);

    if (key == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    v->data = (u_char *) key->name;
    v->len = ngx_strlen(key->name);
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}
