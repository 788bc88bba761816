
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * Errors: the one table of what an engine's status is in HTTP, the shapes in
 * which OpenAI's and Anthropic's clients look for a message, and a filter
 * that gives nginx's own refusals (413, limit_req's 503, access rules) the
 * same shape in locations with mixtral_api: in HTML, clients show nothing.
 */


#include "ngx_http_mixtral.h"
#include "error.h"


static ngx_int_t ngx_http_mixtral_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_mixtral_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


static const ngx_uint_t  ngx_http_mixtral_statuses[] = {
    [MX_OK] = NGX_HTTP_INTERNAL_SERVER_ERROR,
    [MX_AGAIN] = NGX_HTTP_INTERNAL_SERVER_ERROR,
    [MX_BUSY] = NGX_HTTP_SERVICE_UNAVAILABLE,  /* 429: a tenant's own limit */
    [MX_NOMEM] = NGX_HTTP_INTERNAL_SERVER_ERROR,
    [MX_INVALID] = NGX_HTTP_BAD_REQUEST,
    [MX_NOT_FOUND] = NGX_HTTP_NOT_FOUND,
    [MX_DENIED] = NGX_HTTP_FORBIDDEN,
    [MX_TOO_LARGE] = NGX_HTTP_BAD_REQUEST,     /* more than the context */
    [MX_UNAVAILABLE] = NGX_HTTP_SERVICE_UNAVAILABLE,
    [MX_CORRUPT] = NGX_HTTP_INTERNAL_SERVER_ERROR,
    [MX_CANCELLED] = NGX_HTTP_SERVICE_UNAVAILABLE,
    [MX_TIMEOUT] = NGX_HTTP_SERVICE_UNAVAILABLE,
    [MX_IO] = NGX_HTTP_INTERNAL_SERVER_ERROR,
    [MX_INTERNAL] = NGX_HTTP_INTERNAL_SERVER_ERROR,
};


static const struct {
    ngx_uint_t   status;
    const char  *type;          /* OpenAI's */
    const char  *code;          /* NULL: none */
    const char  *anthropic;     /* type */
    const char  *message;       /* where nginx itself refuses */
} ngx_http_mixtral_kinds[] = {
    { 400, "invalid_request_error", NULL,
      "invalid_request_error",
      "The request is malformed." },
    { 401, "invalid_request_error", "invalid_api_key",
      "authentication_error",
      "Access needs credentials." },
    { 403, "permission_error", NULL,
      "permission_error",
      "Access is denied." },
    { 404, "invalid_request_error", NULL,
      "not_found_error",
      "There is nothing here." },
    { 405, "invalid_request_error", NULL,
      "invalid_request_error",
      "This endpoint does not take that method." },
    { 408, "invalid_request_error", NULL,
      "invalid_request_error",
      "The request took too long to come." },
    { 413, "invalid_request_error", "request_too_large",
      "request_too_large",
      "The body is larger than this server takes." },
    { 429, "rate_limit_error", "rate_limit_exceeded",
      "rate_limit_error",
      "There were too many requests." },
    { 503, "server_error", "unavailable",
      "overloaded_error",
      "The server is busy, or not ready yet." },
    { 500, "server_error", NULL,
      "api_error",
      "The server failed." },
};


static const ngx_uint_t  ngx_http_mixtral_nkinds =
    sizeof(ngx_http_mixtral_kinds) / sizeof(ngx_http_mixtral_kinds[0]);


static ngx_uint_t
ngx_http_mixtral_kind_of(ngx_uint_t status)
{
    ngx_uint_t  i;

    for (i = 0; i < ngx_http_mixtral_nkinds; i++) {
        if (ngx_http_mixtral_kinds[i].status == status) {
            return i;
        }
    }

    return status < 500 ? 0 : ngx_http_mixtral_nkinds - 1;
}


ngx_int_t
ngx_http_mixtral_refuse(ngx_http_mixtral_exchange_t *x, mx_status status,
    const char *field, const char *format, ...)
{
    va_list  args;

    ngx_memzero(&x->error, sizeof(mx_error));
    x->error.status = status;

    if (field) {
        ngx_cpystrn((u_char *) x->error.field, (u_char *) field,
                    sizeof(x->error.field));
    }

    va_start(args, format);
    (void) vsnprintf(x->error.text, sizeof(x->error.text), format, args);
    va_end(args);

    mx_line_clean(x->error.text, 1);

    return NGX_DECLINED;
}


static ngx_uint_t
ngx_http_mixtral_http_status(const mx_error *error)
{
    if (error->status == MX_BUSY
        && ngx_strncmp(error->field, "tenant", 6) == 0)
    {
        return NGX_HTTP_TOO_MANY_REQUESTS;
    }

    if (error->status == MX_DENIED && ngx_strcmp(error->field, "key") == 0) {
        return NGX_HTTP_UNAUTHORIZED;
    }

    if (error->status == MX_TOO_LARGE && ngx_strcmp(error->field, "body") == 0)
    {
        return NGX_HTTP_REQUEST_ENTITY_TOO_LARGE;
    }

    if ((size_t) error->status >= sizeof(ngx_http_mixtral_statuses)
                                  / sizeof(ngx_http_mixtral_statuses[0]))
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_mixtral_statuses[error->status];
}


/* By the URI: nginx refuses before there is an exchange. */

static ngx_uint_t
ngx_http_mixtral_is_anthropic(ngx_http_request_t *r)
{
    const ngx_http_mixtral_api_t  *api;

    api = ngx_http_mixtral_find_api(&r->uri);

    return api != NULL && api->anthropic;
}


static json_t *
ngx_http_mixtral_shape(ngx_uint_t anthropic, ngx_uint_t status,
    const char *code, const char *param, const char *message)
{
    ngx_uint_t  i;

    i = ngx_http_mixtral_kind_of(status);

    if (anthropic) {
        return json_pack("{s:s, s:{s:s, s:s}}", "type", "error", "error",
                         "type", ngx_http_mixtral_kinds[i].anthropic,
                         "message", message);
    }

    return json_pack("{s:{s:s, s:s, s:s?, s:s?}}", "error",
                     "message", message,
                     "type", ngx_http_mixtral_kinds[i].type,
                     "param", param,
                     "code", code ? code : ngx_http_mixtral_kinds[i].code);
}


json_t *
ngx_http_mixtral_error_json(const mx_error *error, ngx_uint_t anthropic)
{
    const char  *code, *param;
    ngx_uint_t   status;

    status = ngx_http_mixtral_http_status(error);
    code = NULL;

    /* neither a key nor a tenant is a field of the request */

    param = (status == NGX_HTTP_UNAUTHORIZED
             || status == NGX_HTTP_TOO_MANY_REQUESTS || error->field[0] == '\0')
            ? NULL : error->field;

    if (error->status == MX_NOT_FOUND
        && ngx_strcmp(error->field, "model") == 0)
    {
        code = "model_not_found";

    } else if (error->status == MX_TOO_LARGE
               && status == NGX_HTTP_BAD_REQUEST)
    {
        code = "context_length_exceeded";
    }

    return ngx_http_mixtral_shape(anthropic, status, code, param, error->text);
}


ngx_int_t
ngx_http_mixtral_add_header(ngx_http_request_t *r, const char *name,
    const char *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.data = (u_char *) name;
    h->key.len = ngx_strlen(name);
    h->value.data = (u_char *) value;
    h->value.len = ngx_strlen(value);

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_retry_header(ngx_http_request_t *r, ngx_uint_t seconds)
{
    u_char  *text;

    text = ngx_pnalloc(r->pool, NGX_INT_T_LEN + 1);
    if (text == NULL) {
        return NGX_ERROR;
    }

    ngx_sprintf(text, "%ui%Z", seconds ? seconds : 1);

    return ngx_http_mixtral_add_header(r, "Retry-After", (char *) text);
}


/* Before a header is sent; returns what the request is finalized with. */

ngx_int_t
ngx_http_mixtral_send_error(ngx_http_request_t *r, const mx_error *error)
{
    ngx_uint_t  level, status;

    status = ngx_http_mixtral_http_status(error);
    level = (status < 500) ? NGX_LOG_INFO : NGX_LOG_ERR;

    ngx_log_error(level, r->connection->log, 0, "mixtral: %s: %s",
                  mx_status_name(error->status), error->text);

    if ((status == NGX_HTTP_TOO_MANY_REQUESTS
         || status == NGX_HTTP_SERVICE_UNAVAILABLE)
        && ngx_http_mixtral_retry_header(r, (error->retry_after_ms + 999)
                                            / 1000)
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_mixtral_send_json(r, status,
                                      ngx_http_mixtral_error_json(error,
                                          ngx_http_mixtral_is_anthropic(r)));
}


/* nginx's refusals, which come without an answer of ours */

static ngx_uint_t
ngx_http_mixtral_is_refusal(ngx_http_request_t *r)
{
    ngx_http_mixtral_exchange_t  *x;
    ngx_http_mixtral_loc_conf_t  *lcf;

    if (r != r->main || r->headers_out.status < 400) {
        return 0;
    }

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);
    if (lcf->engine == NULL) {
        return 0;
    }

    x = ngx_http_get_module_ctx(r, ngx_http_mixtral_module);

    return x == NULL || !x->replied;
}


static ngx_int_t
ngx_http_mixtral_header_filter(ngx_http_request_t *r)
{
    if (ngx_http_mixtral_is_refusal(r)) {
        ngx_str_set(&r->headers_out.content_type, "application/json");
        r->headers_out.content_type_len = r->headers_out.content_type.len;
        ngx_str_null(&r->headers_out.charset);
        r->headers_out.content_type_lowcase = NULL;
        ngx_http_clear_content_length(r);
        ngx_http_clear_accept_ranges(r);
        ngx_http_clear_last_modified(r);
        ngx_http_clear_etag(r);
    }

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_mixtral_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    char         *text;
    size_t        size;
    json_t       *json;
    ngx_buf_t    *b;
    ngx_uint_t    i;
    ngx_chain_t  *cl, out;

    if (in == NULL || !ngx_http_mixtral_is_refusal(r)) {
        return ngx_http_next_body_filter(r, in);
    }

    for (cl = in; cl; cl = cl->next) {
        cl->buf->pos = cl->buf->last;
        cl->buf->file_pos = cl->buf->file_last;

        if (cl->buf->last_buf) {
            break;
        }
    }

    if (cl == NULL) {
        return NGX_OK;
    }

    i = ngx_http_mixtral_kind_of(r->headers_out.status);
    json = ngx_http_mixtral_shape(ngx_http_mixtral_is_anthropic(r),
                                  r->headers_out.status, NULL, NULL,
                                  ngx_http_mixtral_kinds[i].message);
    text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);

    if (text == NULL) {
        return NGX_ERROR;
    }

    size = ngx_strlen(text);

    b = ngx_create_temp_buf(r->pool, size);
    if (b == NULL) {
        free(text);
        return NGX_ERROR;
    }

    b->last = ngx_cpymem(b->last, text, size);
    free(text);

    b->last_buf = 1;
    b->last_in_chain = 1;

    out.buf = b;
    out.next = NULL;

    return ngx_http_next_body_filter(r, &out);
}


ngx_int_t
ngx_http_mixtral_filter_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_mixtral_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_mixtral_body_filter;

    return NGX_OK;
}
