
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * mixtral_engine NAME model=... threads=... : the parameters become the
 * command line of `mixtral serve`.  Those before the first model hold for all
 * models, those behind a model for it.
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_PRIORITY  5


static char *ngx_http_mixtral_find_program(ngx_conf_t *cf, ngx_str_t *name);


typedef enum {
    NGX_HTTP_MIXTRAL_TEXT,
    NGX_HTTP_MIXTRAL_FILE,
    NGX_HTTP_MIXTRAL_NUMBER,
    NGX_HTTP_MIXTRAL_SIZE,
    NGX_HTTP_MIXTRAL_TIME,
    NGX_HTTP_MIXTRAL_NICE,
    NGX_HTTP_MIXTRAL_PROGRAM
} ngx_http_mixtral_kind_e;


static const struct {
    ngx_str_t                 name;
    const char               *flag;
    ngx_http_mixtral_kind_e   kind;
    const char               *expected;
} ngx_http_mixtral_parameters[] = {
    { ngx_string("model"), "--model", NGX_HTTP_MIXTRAL_FILE, "a file" },
    { ngx_string("name"), "--name", NGX_HTTP_MIXTRAL_TEXT, "a name" },
    { ngx_string("threads"), "--threads", NGX_HTTP_MIXTRAL_NUMBER,
      "a number of 1 to 256" },
    { ngx_string("context"), "--context", NGX_HTTP_MIXTRAL_NUMBER,
      "a number of tokens" },
    { ngx_string("kv_pool"), "--kv-pool", NGX_HTTP_MIXTRAL_SIZE,
      "a size such as 2g" },
    { ngx_string("kv_type"), "--kv-type", NGX_HTTP_MIXTRAL_TEXT,
      "f16, bf16 or q8_0" },
    { ngx_string("max_queue"), "--max-queue", NGX_HTTP_MIXTRAL_NUMBER,
      "a number of requests" },
    { ngx_string("max_step"), "--max-step-ms", NGX_HTTP_MIXTRAL_TIME,
      "a time such as 250ms" },
    { ngx_string("stall_timeout"), "--stall-timeout-ms",
      NGX_HTTP_MIXTRAL_TIME, "a time such as 60s" },
    { ngx_string("tenant_requests"), "--tenant-requests",
      NGX_HTTP_MIXTRAL_NUMBER, "a number of requests" },
    { ngx_string("tenant_tokens_per_minute"), "--tenant-tokens-per-minute",
      NGX_HTTP_MIXTRAL_NUMBER, "a number of tokens" },
    { ngx_string("priority"), NULL, NGX_HTTP_MIXTRAL_NICE,
      "a number of -20 to 19" },
    { ngx_string("program"), NULL, NGX_HTTP_MIXTRAL_PROGRAM,
      "an executable file" },
};


static const ngx_uint_t  ngx_http_mixtral_nparameters =
    sizeof(ngx_http_mixtral_parameters)
    / sizeof(ngx_http_mixtral_parameters[0]);


/* The value as the engine's command line has it; NULL: it is none. */

static char *
ngx_http_mixtral_value(ngx_conf_t *cf, ngx_http_mixtral_kind_e kind,
    ngx_str_t *value)
{
    off_t       size;
    ngx_int_t   number;
    char       *text;

    if (value->len == 0) {
        return NULL;
    }

    switch (kind) {

    case NGX_HTTP_MIXTRAL_FILE:

        if (ngx_conf_full_name(cf->cycle, value, 0) != NGX_OK) {
            return NULL;
        }

        return (char *) value->data;

    case NGX_HTTP_MIXTRAL_TEXT:

        return (char *) value->data;

    case NGX_HTTP_MIXTRAL_NUMBER:

        number = ngx_atoi(value->data, value->len);

        return number > 0 && number <= NGX_MAX_INT32_VALUE
               ? (char *) value->data : NULL;

    case NGX_HTTP_MIXTRAL_SIZE:

        size = ngx_parse_offset(value);
        break;

    default: /* NGX_HTTP_MIXTRAL_TIME */

        size = ngx_parse_time(value, 0);
        break;
    }

    if (size <= 0) {
        return NULL;
    }

    text = ngx_pnalloc(cf->pool, NGX_OFF_T_LEN + 1);
    if (text != NULL) {
        ngx_sprintf((u_char *) text, "%O%Z", size);
    }

    return text;
}


static ngx_int_t
ngx_http_mixtral_priority(ngx_str_t *value, ngx_int_t *priority)
{
    ngx_int_t   n;
    ngx_uint_t  minus;

    minus = (value->len > 1 && value->data[0] == '-');

    n = ngx_atoi(value->data + minus, value->len - minus);

    if (n == NGX_ERROR || (minus ? n > 20 : n > 19)) {
        return NGX_ERROR;
    }

    *priority = minus ? -n : n;

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_parameter(ngx_conf_t *cf, ngx_http_mixtral_command_t *command,
    ngx_uint_t *argc, ngx_str_t *argument)
{
    char        *text;
    u_char      *equals;
    ngx_int_t    rc;
    ngx_str_t    value;
    ngx_uint_t   i;

    equals = (u_char *) ngx_strchr(argument->data, '=');

    for (i = 0; equals && i < ngx_http_mixtral_nparameters; i++) {

        if (ngx_http_mixtral_parameters[i].name.len
            == (size_t) (equals - argument->data)
            && ngx_strncmp(argument->data,
                           ngx_http_mixtral_parameters[i].name.data,
                           ngx_http_mixtral_parameters[i].name.len)
               == 0)
        {
            break;
        }
    }

    if (equals == NULL || i == ngx_http_mixtral_nparameters) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                           argument);
        return NGX_ERROR;
    }

    value.data = equals + 1;
    value.len = argument->data + argument->len - value.data;

    if (ngx_http_mixtral_parameters[i].kind == NGX_HTTP_MIXTRAL_NICE) {
        rc = ngx_http_mixtral_priority(&value, &command->priority);

    } else if (ngx_http_mixtral_parameters[i].kind
               == NGX_HTTP_MIXTRAL_PROGRAM)
    {
        command->program = ngx_http_mixtral_find_program(cf, &value);
        rc = command->program ? NGX_OK : NGX_ERROR;

    } else {
        text = ngx_http_mixtral_value(cf, ngx_http_mixtral_parameters[i].kind,
                                      &value);
        rc = text ? NGX_OK : NGX_ERROR;

        command->argv[(*argc)++] = (char *) ngx_http_mixtral_parameters[i].flag;
        command->argv[(*argc)++] = text;
    }

    if (rc != NGX_OK) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid parameter \"%V\": expected %s", argument,
                           ngx_http_mixtral_parameters[i].expected);
    }

    return rc;
}


/* A path, or a name that is looked for as a shell does; NULL: none */

static char *
ngx_http_mixtral_find_program(ngx_conf_t *cf, ngx_str_t *name)
{
    char    *path, *p, *end;
    size_t   size;

    if (ngx_process == NGX_PROCESS_SIGNALLER) {
        /* nginx -s must work without it, too */
        return (char *) name->data;
    }

    if (ngx_strlchr(name->data, name->data + name->len, '/') != NULL) {

        if (ngx_conf_full_name(cf->cycle, name, 0) != NGX_OK
            || access((char *) name->data, X_OK) != 0)
        {
            return NULL;
        }

        return (char *) name->data;
    }

    p = getenv("PATH");
    size = (p ? ngx_strlen(p) : 0) + sizeof(":/usr/local/bin:/usr/bin");

    path = ngx_pnalloc(cf->pool, size);
    if (path == NULL) {
        return NULL;
    }

    ngx_sprintf((u_char *) path, "%s:/usr/local/bin:/usr/bin%Z", p ? p : "");

    for (p = path; *p; p = *end ? end + 1 : end) {
        end = p + strcspn(p, ":");

        if (*p != '/') {
            continue;
        }

        size = end - p;

        path = ngx_pnalloc(cf->pool, size + name->len + 2);
        if (path == NULL) {
            return NULL;
        }

        ngx_sprintf((u_char *) path, "%*s/%V%Z", size, p, name);

        if (access(path, X_OK) == 0) {
            return path;
        }
    }

    return NULL;
}


/* The parameters from the second on; NULL: it has been logged why not. */

ngx_http_mixtral_command_t *
ngx_http_mixtral_parse_command(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_str_t                   *value;
    ngx_uint_t                   i, argc, models;
    ngx_http_mixtral_command_t  *command;

    static ngx_str_t  program = ngx_string("mixtral");
    static char      *begin[] = {
        "serve",
        "--listen-fd", ngx_value(NGX_HTTP_MIXTRAL_LISTENER),
        "--lifeline-fd", ngx_value(NGX_HTTP_MIXTRAL_LIFELINE)
    };

    value = cf->args->elts;

    command = ngx_pcalloc(cf->pool, sizeof(ngx_http_mixtral_command_t));
    if (command == NULL) {
        return NULL;
    }

    argc = sizeof(begin) / sizeof(begin[0]) + 1;

    command->argv = ngx_pcalloc(cf->pool, (argc + 2 * cf->args->nelts + 1)
                                          * sizeof(char *));
    command->name = (char *) name->data;
    command->priority = NGX_HTTP_MIXTRAL_PRIORITY;

    if (command->argv == NULL) {
        return NULL;
    }

    /* what ps shows */

    command->argv[0] = ngx_pnalloc(cf->pool, name->len
                                             + sizeof("nginx: mixtral engine "));
    if (command->argv[0] == NULL) {
        return NULL;
    }

    ngx_sprintf((u_char *) command->argv[0], "nginx: mixtral engine %V%Z",
                name);
    ngx_memcpy(command->argv + 1, begin, sizeof(begin));

    models = 0;

    for (i = 2; i < cf->args->nelts; i++) {

        models += (ngx_strncmp(value[i].data, "model=", 6) == 0);

        if (ngx_http_mixtral_parameter(cf, command, &argc, &value[i])
            != NGX_OK)
        {
            return NULL;
        }
    }

    if (models == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "engine \"%V\" has neither \"unix:PATH\" nor "
                           "\"model=FILE\"", name);
        return NULL;
    }

    if (command->program == NULL) {
        command->program = ngx_http_mixtral_find_program(cf, &program);
    }

    if (command->program == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "there is no program \"mixtral\" in PATH nor in "
                           "/usr/local/bin; \"program=\" names it");
        return NULL;
    }

    return command;
}
