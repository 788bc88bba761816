
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * API keys: the directive mixtral_keys, and who a request is from.
 *
 * Key files (core/server/keys.h) are read with the configuration, by the
 * master: workers need no access to them, and a reload reads them anew.  A
 * request is checked before its body is read.  What a key may use is counted
 * by the engine, for all workers: a key is a tenant there.
 */


#include "ngx_http_mixtral.h"


typedef struct {
    ngx_str_t    path;
    mx_keys      keys;
} ngx_http_mixtral_key_file_t;


static void
ngx_http_mixtral_free_keys(void *data)
{
    mx_keys_free(data);
}


/* The whole file; its text is not kept longer than cf->temp_pool is. */

static ngx_int_t
ngx_http_mixtral_read_keys(ngx_conf_t *cf, ngx_str_t *path, ngx_str_t *text)
{
    size_t            size;
    ssize_t           n;
    ngx_fd_t          fd;
    ngx_int_t         rc;
    ngx_file_info_t   fi;

    rc = NGX_ERROR;

    /* non-blocking: a FIFO is refused, not waited for */

    fd = ngx_open_file(path->data, NGX_FILE_RDONLY|NGX_FILE_NONBLOCK,
                       NGX_FILE_OPEN, 0);
    if (fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_open_file_n " \"%V\" failed", path);
        return NGX_ERROR;
    }

    if (ngx_fd_info(fd, &fi) == NGX_FILE_ERROR || !ngx_is_file(&fi)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" is no regular file", path);
        goto done;
    }

    if (ngx_file_size(&fi) > MX_KEYS_BYTES_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" has more than %d bytes", path,
                           MX_KEYS_BYTES_MAX);
        goto done;
    }

    size = ngx_file_size(&fi);

    text->len = 0;
    text->data = ngx_palloc(cf->temp_pool, size + 1);
    if (text->data == NULL) {
        goto done;
    }

    while (text->len < size) {
        n = ngx_read_fd(fd, text->data + text->len, size - text->len);

        if (n <= 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, n < 0 ? ngx_errno : 0,
                               ngx_read_fd_n " \"%V\" failed", path);
            goto done;
        }

        text->len += n;
    }

    rc = NGX_OK;

done:

    if (ngx_close_file(fd) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_ALERT, cf, ngx_errno,
                           ngx_close_file_n " \"%V\" failed", path);
    }

    return rc;
}


/* The keys of a file, which is read once however many locations name it */

static mx_keys *
ngx_http_mixtral_open_keys(ngx_conf_t *cf, ngx_str_t *path)
{
    mx_error                        error;
    ngx_str_t                       text;
    ngx_uint_t                      i;
    ngx_pool_cleanup_t             *cln;
    ngx_http_mixtral_key_file_t    *file, **slot;
    ngx_http_mixtral_main_conf_t   *mcf;

    mcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_mixtral_module);
    slot = mcf->key_files.elts;

    for (i = 0; i < mcf->key_files.nelts; i++) {
        if (slot[i]->path.len == path->len
            && ngx_strncmp(slot[i]->path.data, path->data, path->len) == 0)
        {
            return &slot[i]->keys;
        }
    }

    if (ngx_http_mixtral_read_keys(cf, path, &text) != NGX_OK) {
        return NULL;
    }

    file = ngx_pcalloc(cf->pool, sizeof(ngx_http_mixtral_key_file_t));
    cln = ngx_pool_cleanup_add(cf->pool, 0);
    slot = ngx_array_push(&mcf->key_files);
    if (file == NULL || cln == NULL || slot == NULL) {
        return NULL;
    }

    *slot = file;
    file->path = *path;

    if (sodium_init() < 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "libsodium finds no randomness");
        return NULL;
    }

    if (mx_keys_parse((char *) text.data, text.len, &file->keys, &error)
        != MX_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "key file \"%V\", %s", path,
                           error.text);
        return NULL;
    }

    cln->handler = ngx_http_mixtral_free_keys;
    cln->data = &file->keys;

    return &file->keys;
}


/* mixtral_keys FILE | off */

char *
ngx_http_mixtral_set_keys(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_loc_conf_t  *lcf = conf;

    ngx_str_t  *value;

    value = cf->args->elts;

    if (lcf->keys != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    /* nginx -s must work with a file that is wrong, too */

    if (ngx_strcmp(value[1].data, "off") == 0
        || ngx_process == NGX_PROCESS_SIGNALLER)
    {
        lcf->keys = NULL;
        return NGX_CONF_OK;
    }

    if (ngx_conf_full_name(cf->cycle, &value[1], 1) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    lcf->keys = ngx_http_mixtral_open_keys(cf, &value[1]);

    return lcf->keys ? NGX_CONF_OK : NGX_CONF_ERROR;
}


/* What the client gives as its key; len 0: nothing */

static ngx_str_t
ngx_http_mixtral_given_key(ngx_http_request_t *r)
{
    ngx_str_t         value;
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    ngx_str_null(&value);

    h = r->headers_in.authorization;

    if (h != NULL && h->value.len > 7
        && ngx_strncasecmp(h->value.data, (u_char *) "Bearer ", 7) == 0)
    {
        value.data = h->value.data + 7;
        value.len = h->value.len - 7;

        while (value.len && *value.data == ' ') {
            value.data++;
            value.len--;
        }

        return value;
    }

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */ ; i++) {

        if (i >= part->nelts) {
            if (part->next == NULL) {
                return value;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == sizeof("x-api-key") - 1
            && ngx_strncasecmp(h[i].key.data, (u_char *) "x-api-key",
                               sizeof("x-api-key") - 1)
               == 0)
        {
            return h[i].value;
        }
    }
}


/* The key of a request; NULL: it has none, or none is asked for here. */

const mx_key *
ngx_http_mixtral_find_key(ngx_http_request_t *r)
{
    ngx_str_t                     value;
    ngx_http_mixtral_loc_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);

    if (lcf->engine == NULL || lcf->keys == NULL) {
        return NULL;
    }

    value = ngx_http_mixtral_given_key(r);

    return value.len ? mx_keys_find(lcf->keys, (char *) value.data, value.len)
                     : NULL;
}


/* The body of a refused request, which a client may not even have sent */

static ngx_int_t
ngx_http_mixtral_leave_body(ngx_http_request_t *r)
{
    if (r->headers_in.expect) {

        /* no 100 (Continue); what follows may be a body, or a request */

        r->expect_tested = 1;
        r->keepalive = 0;
    }

    return ngx_http_discard_request_body(r);
}


/* Whether the request may go on; *key is NULL where none is asked for. */

ngx_uint_t
ngx_http_mixtral_allowed(ngx_http_request_t *r, const mx_key **key)
{
    ngx_http_mixtral_loc_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);

    *key = ngx_http_mixtral_find_key(r);

    return *key != NULL || lcf->keys == NULL;
}


/* Answers a request that may not; returns what the handler returns then. */

ngx_int_t
ngx_http_mixtral_unauthorized(ngx_http_request_t *r)
{
    mx_error                      error;
    ngx_int_t                     rc;
    ngx_str_t                     value;
    ngx_http_mixtral_exchange_t  *x;

    rc = ngx_http_mixtral_leave_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    /* so that the filter of refusals sees that this one is ours */

    x = ngx_pcalloc(r->pool, sizeof(ngx_http_mixtral_exchange_t));
    if (x == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    x->request = r;
    ngx_http_set_ctx(r, x, ngx_http_mixtral_module);

    value = ngx_http_mixtral_given_key(r);

    if (value.len) {
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                      "mixtral: a wrong API key");
    }

    ngx_memzero(&error, sizeof(mx_error));
    error.status = MX_DENIED;
    ngx_cpystrn((u_char *) error.field, (u_char *) "key",
                sizeof(error.field));
    ngx_cpystrn((u_char *) error.text,
                (u_char *) (value.len
                            ? "There is no such API key."
                            : "An API key is needed: \"Authorization: Bearer "
                              "KEY\" or \"x-api-key: KEY\"."),
                sizeof(error.text));

    if (ngx_http_mixtral_add_header(r, "WWW-Authenticate", "Bearer")
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    return ngx_http_mixtral_send_error(r, &error);
}


/* A call is its key's tenant; the engine counts what that uses. */

ngx_int_t
ngx_http_mixtral_add_tenant(ngx_http_mixtral_exchange_t *x, json_t *options)
{
    char  tenant[MX_KEY_TENANT_BYTES];

    if (x->key == NULL) {
        return NGX_OK;
    }

    mx_key_tenant(x->key, tenant);

    if (json_object_set_new(options, "tenant", json_string(tenant)) != 0) {
        return NGX_ERROR;
    }

    if (x->key->requests >= 0
        && json_object_set_new(options, "tenant_requests",
                               json_integer(x->key->requests))
           != 0)
    {
        return NGX_ERROR;
    }

    if (x->key->tokens_per_minute >= 0
        && json_object_set_new(options, "tenant_tokens_per_minute",
                               json_integer(x->key->tokens_per_minute))
           != 0)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


/* An engine that does not trust us: whoever runs the server can help that,
 * the client cannot. */

void
ngx_http_mixtral_check_trust(ngx_http_mixtral_exchange_t *x)
{
    if (x->key == NULL || x->error.status != MX_DENIED
        || ngx_strncmp(x->error.field, "tenant", 6) != 0)
    {
        return;
    }

    ngx_log_error(NGX_LOG_ERR, x->request->connection->log, 0,
                  "mixtral: engine \"%V\" does not let nginx name tenants, "
                  "which API keys need: start it with \"--allow-uid %d\" (%s)",
                  &x->engine->name, (int) geteuid(), x->error.text);

    (void) ngx_http_mixtral_refuse(x, MX_INTERNAL, NULL,
                                   "The server's engine is not set up for API "
                                   "keys.");
}
