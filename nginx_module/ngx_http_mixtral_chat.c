
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * The chat page: files of chat/, which the build puts together into one.  It
 * is completed when the configuration is read: the location's engine and
 * the API's path get into it, and the hashes of its style and its script into
 * the policy that allows it these and connections to its own origin, and
 * nothing else.
 */


#include "ngx_http_mixtral.h"
#include "ngx_http_mixtral_page.h"


#define NGX_HTTP_MIXTRAL_HASH                                                 \
    (sizeof("'sha256-'") + sodium_base64_ENCODED_LEN(                         \
        crypto_hash_sha256_BYTES, sodium_base64_VARIANT_ORIGINAL))


static ngx_int_t ngx_http_mixtral_chat_handler(ngx_http_request_t *r);


/* Replaces the one mark in a text, which becomes a new one. */

static ngx_int_t
ngx_http_mixtral_chat_fill(ngx_conf_t *cf, ngx_str_t *text, char *mark,
    const ngx_str_t *value)
{
    u_char  *at, *p, *data;
    size_t   size, before;

    size = ngx_strlen(mark);

    at = ngx_strnstr(text->data, mark, text->len);
    if (at == NULL) {
        return NGX_ERROR;
    }

    data = ngx_pnalloc(cf->pool, text->len - size + value->len);
    if (data == NULL) {
        return NGX_ERROR;
    }

    before = at - text->data;

    p = ngx_cpymem(data, text->data, before);
    p = ngx_cpymem(p, value->data, value->len);
    p = ngx_cpymem(p, at + size, text->len - before - size);

    text->data = data;
    text->len = p - data;

    return NGX_OK;
}


/* The source expression of what is between two tags, as CSP has it */

static ngx_int_t
ngx_http_mixtral_chat_hash(const ngx_str_t *page, char *open, char *close,
    u_char *hash)
{
    u_char  *begin, *end, digest[crypto_hash_sha256_BYTES];
    char     base64[sodium_base64_ENCODED_LEN(
                        crypto_hash_sha256_BYTES,
                        sodium_base64_VARIANT_ORIGINAL)];

    begin = ngx_strnstr(page->data, open, page->len);
    if (begin == NULL) {
        return NGX_ERROR;
    }

    begin += ngx_strlen(open);

    end = ngx_strnstr(begin, close, page->data + page->len - begin);
    if (end == NULL) {
        return NGX_ERROR;
    }

    crypto_hash_sha256(digest, begin, end - begin);
    sodium_bin2base64(base64, sizeof(base64), digest, sizeof(digest),
                      sodium_base64_VARIANT_ORIGINAL);

    ngx_sprintf(hash, "'sha256-%s'%Z", base64);

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_chat_make(ngx_conf_t *cf, ngx_http_mixtral_chat_t *chat,
    const ngx_str_t *engine, const ngx_str_t *api)
{
    u_char  *p, digest[crypto_hash_sha256_BYTES];
    u_char   style[NGX_HTTP_MIXTRAL_HASH], script[NGX_HTTP_MIXTRAL_HASH];

    chat->page.data = ngx_http_mixtral_page;
    chat->page.len = sizeof(ngx_http_mixtral_page);

    if (ngx_http_mixtral_chat_fill(cf, &chat->page, "@api@", api) != NGX_OK
        || ngx_http_mixtral_chat_fill(cf, &chat->page, "@engine@", engine)
           != NGX_OK
        || ngx_http_mixtral_chat_hash(&chat->page, "<style>", "</style>",
                                      style)
           != NGX_OK
        || ngx_http_mixtral_chat_hash(&chat->page, "<script>", "</script>",
                                      script)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    chat->policy = ngx_pnalloc(cf->pool, 512);
    chat->etag.data = ngx_pnalloc(cf->pool, 2 + 32);
    if (chat->policy == NULL || chat->etag.data == NULL) {
        return NGX_ERROR;
    }

    ngx_sprintf(chat->policy, "default-src 'none'; script-src %s; "
                "style-src %s; connect-src 'self'; img-src data:; "
                "base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'%Z", script, style);

    crypto_hash_sha256(digest, chat->page.data, chat->page.len);

    p = chat->etag.data;
    *p++ = '"';
    p = ngx_hex_dump(p, digest, 16);
    *p++ = '"';
    chat->etag.len = p - chat->etag.data;

    return NGX_OK;
}


/* mixtral_chat NAME [api=PATH]; */

char *
ngx_http_mixtral_set_chat(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_loc_conf_t  *lcf = conf;

    ngx_str_t                   api, *value;
    ngx_uint_t                  i;
    ngx_http_core_loc_conf_t   *clcf;
    ngx_http_mixtral_engine_t  *engine;

    value = cf->args->elts;

    if (lcf->chat != NULL) {
        return "is duplicate";
    }

    if (lcf->engine != NULL || lcf->metrics != NULL) {
        return "is in a location with \"mixtral_api\" or \"mixtral_metrics\"";
    }

    engine = ngx_http_mixtral_named_engine(cf, &value[1]);
    if (engine == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_str_set(&api, "/v1");

    if (cf->args->nelts == 3) {

        if (value[2].len <= 4 || ngx_strncmp(value[2].data, "api=", 4) != 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\": expected "
                               "\"api=\" and a path", &value[2]);
            return NGX_CONF_ERROR;
        }

        api.data = value[2].data + 4;
        api.len = value[2].len - 4;
    }

    for (i = 0; i < api.len; i++) {

        /* it stands in an attribute; "//" would begin another host */

        if ((!isalnum(api.data[i]) && ngx_strchr("/-._~", api.data[i]) == NULL)
            || (i > 0 && api.data[i] == '/' && api.data[i - 1] == '/'))
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid path \"%V\": expected letters, "
                               "digits, and any of \"/-._~\"", &api);
            return NGX_CONF_ERROR;
        }
    }

    lcf->chat = ngx_pcalloc(cf->pool, sizeof(ngx_http_mixtral_chat_t));
    if (lcf->chat == NULL
        || ngx_http_mixtral_chat_make(cf, lcf->chat, &engine->name, &api)
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_mixtral_chat_handler;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_mixtral_chat_handler(ngx_http_request_t *r)
{
    ngx_int_t                     rc;
    ngx_table_elt_t              *etag;
    ngx_http_mixtral_chat_t      *chat;
    ngx_http_core_loc_conf_t     *clcf;
    ngx_http_mixtral_loc_conf_t  *lcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);
    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);
    chat = lcf->chat;

    /* a location such as "/" gets all that no other takes */

#if (NGX_PCRE)
    if (clcf->regex == NULL)
#endif
    {
        if (r->uri.len != clcf->name.len
            || ngx_strncmp(r->uri.data, clcf->name.data, r->uri.len) != 0)
        {
            return NGX_HTTP_NOT_FOUND;
        }
    }

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    if (ngx_http_mixtral_add_header(r, "Content-Security-Policy",
                                    (char *) chat->policy)
        != NGX_OK
        || ngx_http_mixtral_add_header(r, "X-Content-Type-Options", "nosniff")
           != NGX_OK
        || ngx_http_mixtral_add_header(r, "Referrer-Policy", "no-referrer")
           != NGX_OK
        || ngx_http_mixtral_add_header(r, "Cache-Control", "no-cache")
           != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    etag = ngx_list_push(&r->headers_out.headers);
    if (etag == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    etag->hash = 1;
    ngx_str_set(&etag->key, "ETag");
    etag->value = chat->etag;
    r->headers_out.etag = etag;

    ngx_str_set(&r->headers_out.charset, "utf-8");

    return ngx_http_mixtral_send(r, NGX_HTTP_OK, "text/html",
                                 chat->page.data, chat->page.len);
}
