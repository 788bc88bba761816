
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * mixtral_metrics NAME ...: the figures of engines in Prometheus's text format
 * (https://prometheus.io/docs/instrumenting/exposition_formats/).
 *
 * Names are those of vLLM with "mixtral_" before them where a figure means the
 * same as there, so that dashboards need no more than another prefix.  Each
 * engine is an exchange with one call, "stats", all of them at a time; one
 * that fails is mixtral_up 0 and has nothing else.
 */


#include "ngx_http_mixtral.h"


typedef struct {
    ngx_http_request_t            *request;
    ngx_http_mixtral_exchange_t  **exchanges;   /* [nengines] */
    ngx_uint_t                     nengines;
    ngx_uint_t                     nwaiting;
} ngx_http_mixtral_scrape_t;


typedef struct {
    const char                    *name;
    const char                    *type;
    const char                    *help;
    const char                    *figure;      /* of a model, in stats */
    const char                    *total;       /* of a histogram: its sum */
    const char                    *label;
} ngx_http_mixtral_metric_t;


static ngx_int_t ngx_http_mixtral_metrics_handler(ngx_http_request_t *r);
static void ngx_http_mixtral_metrics_done(ngx_http_mixtral_exchange_t *x);


static const ngx_http_mixtral_metric_t  ngx_http_mixtral_metrics[] = {

    { "mixtral_num_requests_running", "gauge",
      "Requests that are being computed.", "requests_running", NULL, NULL },

    { "mixtral_num_requests_waiting", "gauge",
      "Requests in the queue.", "requests_waiting", NULL, NULL },

    { "mixtral_request_success_total", "counter",
      "Requests that ended with a result.", "requests_done", NULL, NULL },

    { "mixtral_request_failure_total", "counter",
      "Requests that ended with an error, or were left by their client.",
      "requests_failed", NULL, NULL },

    { "mixtral_prompt_tokens_total", "counter",
      "Tokens of prompts, those from the prefix cache too.", "prompt_tokens",
      NULL, NULL },

    { "mixtral_generation_tokens_total", "counter",
      "Tokens made.", "completion_tokens", NULL, NULL },

    { "mixtral_prefix_cache_queries_total", "counter",
      "Tokens of prompts that were looked for in the prefix cache.",
      "prompt_tokens", NULL, NULL },

    { "mixtral_prefix_cache_hits_total", "counter",
      "Tokens of prompts that came from the prefix cache.", "cached_tokens",
      NULL, NULL },

    { "mixtral_num_preemptions_total", "counter",
      "Requests put back into the queue for lack of KV memory.",
      "preemptions", NULL, NULL },

    { "mixtral_steps_total", "counter",
      "Passes over the weights.", "steps", NULL, NULL },

    { "mixtral_kv_blocks", "gauge",
      "Blocks of KV memory: of running requests, kept for later ones, free.",
      "kv_blocks_used", NULL, "used" },
    { "mixtral_kv_blocks", NULL, NULL, "kv_blocks_cached", NULL, "cached" },
    { "mixtral_kv_blocks", NULL, NULL, "kv_blocks_free", NULL, "free" },

    { "mixtral_kv_bytes", "gauge",
      "KV memory reserved.", "kv_bytes", NULL, NULL },

    { "mixtral_weight_bytes", "gauge",
      "Bytes of the model's file that are mapped.", "weight_bytes", NULL,
      NULL },

    { "mixtral_request_queue_time_seconds", "histogram",
      "From a request's arrival to the first work on it.", "queue_ms",
      "queue_ms_total", NULL },

    { "mixtral_time_to_first_token_seconds", "histogram",
      "From a request's arrival to its first token.", "first_token_ms",
      "first_token_ms_total", NULL }
};


/* mixtral_metrics NAME ... */

char *
ngx_http_mixtral_set_metrics(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_mixtral_loc_conf_t  *lcf = conf;

    ngx_str_t                   *value;
    ngx_uint_t                   i, j;
    ngx_http_core_loc_conf_t    *clcf;
    ngx_http_mixtral_engine_t  **engines;

    if (lcf->metrics != NULL) {
        return "is duplicate";
    }

    if (lcf->engine != NULL || lcf->chat != NULL) {
        return "is in a location with \"mixtral_api\" or \"mixtral_chat\"";
    }

    value = cf->args->elts;

    lcf->metrics = ngx_array_create(cf->pool, cf->args->nelts - 1,
                                    sizeof(ngx_http_mixtral_engine_t *));
    engines = lcf->metrics
              ? ngx_array_push_n(lcf->metrics, cf->args->nelts - 1) : NULL;
    if (engines == NULL) {
        return NGX_CONF_ERROR;
    }

    for (i = 0; i < cf->args->nelts - 1; i++) {

        engines[i] = ngx_http_mixtral_named_engine(cf, &value[i + 1]);
        if (engines[i] == NULL) {
            return NGX_CONF_ERROR;
        }

        for (j = 0; j < i; j++) {
            if (engines[j] == engines[i]) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "duplicate engine \"%V\"", &value[i + 1]);
                return NGX_CONF_ERROR;
            }
        }
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_mixtral_metrics_handler;

    return NGX_CONF_OK;
}


/* NGX_OK, NGX_DECLINED with x->error, NGX_ERROR */

static ngx_int_t
ngx_http_mixtral_ask_stats(ngx_http_mixtral_exchange_t *x)
{
    if (ngx_http_mixtral_calls(x, 1) != NGX_OK) {
        return NGX_ERROR;
    }

    x->calls[0].request = json_pack("{s:s}", "op", "stats");
    if (x->calls[0].request == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_connect(x);
}


static ngx_int_t
ngx_http_mixtral_metrics_handler(ngx_http_request_t *r)
{
    ngx_int_t                      rc;
    ngx_uint_t                     i;
    ngx_http_mixtral_scrape_t     *scrape;
    ngx_http_mixtral_engine_t    **engines;
    ngx_http_mixtral_exchange_t   *x;
    ngx_http_mixtral_loc_conf_t   *lcf;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
    if (rc != NGX_OK) {
        return rc;
    }

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_mixtral_module);
    engines = lcf->metrics->elts;

    scrape = ngx_pcalloc(r->pool, sizeof(ngx_http_mixtral_scrape_t));
    if (scrape == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    scrape->request = r;
    scrape->nengines = lcf->metrics->nelts;
    scrape->nwaiting = lcf->metrics->nelts;
    scrape->exchanges = ngx_pcalloc(r->pool,
                                    scrape->nengines * sizeof(void *));
    if (scrape->exchanges == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < scrape->nengines; i++) {
        x = ngx_http_mixtral_create(r, engines[i]);
        if (x == NULL) {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        x->done = ngx_http_mixtral_metrics_done;
        x->scrape = scrape;
        scrape->exchanges[i] = x;
    }

    /* a client that leaves is seen, as in the api's handler */

    r->main->count++;
    r->read_event_handler = ngx_http_test_reading;

    if (ngx_handle_read_event(r->connection->read, 0) != NGX_OK) {
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return NGX_DONE;
    }

    /* the last one that is done answers, which may be here */

    for (i = 0; i < scrape->nengines; i++) {
        if (ngx_http_mixtral_ask_stats(scrape->exchanges[i]) != NGX_OK) {
            ngx_http_mixtral_cleanup(scrape->exchanges[i]);
            ngx_http_mixtral_metrics_done(scrape->exchanges[i]);
        }
    }

    return NGX_DONE;
}


/* ---- The text, in an array of bytes ---- */


static ngx_int_t
ngx_http_mixtral_put(ngx_array_t *text, const char *format, ...)
{
    u_char    buf[512], *p, *last;
    va_list   args;

    va_start(args, format);
    last = ngx_vslprintf(buf, buf + sizeof(buf), format, args);
    va_end(args);

    p = ngx_array_push_n(text, last - buf);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ngx_memcpy(p, buf, last - buf);

    return NGX_OK;
}


/* A label's value: of an engine's or a model's name, as the format quotes it */

static ngx_int_t
ngx_http_mixtral_put_quoted(ngx_array_t *text, const char *name,
    const u_char *value, size_t size)
{
    size_t     i;
    ngx_int_t  rc;

    rc = ngx_http_mixtral_put(text, "%s=\"", name);

    for (i = 0; i < size && rc == NGX_OK; i++) {

        switch (value[i]) {

        case '\\':
        case '"':
            rc = ngx_http_mixtral_put(text, "\\%c", value[i]);
            break;

        case '\n':
            rc = ngx_http_mixtral_put(text, "\\n");
            break;

        default:
            rc = ngx_http_mixtral_put(text, "%c", value[i]);
            break;
        }
    }

    return rc == NGX_OK ? ngx_http_mixtral_put(text, "\"") : rc;
}


/* name{engine="...",model="... with the last brace left open */

static ngx_int_t
ngx_http_mixtral_put_labels(ngx_array_t *text, const char *name,
    const char *suffix, ngx_http_mixtral_exchange_t *x, json_t *model)
{
    json_t  *title;

    title = json_object_get(model, "name");

    if (ngx_http_mixtral_put(text, "%s%s{", name, suffix) != NGX_OK
        || ngx_http_mixtral_put_quoted(text, "engine", x->engine->name.data,
                                       x->engine->name.len)
           != NGX_OK
        || ngx_http_mixtral_put(text, ",") != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_put_quoted(text, "model",
                                       (u_char *) json_string_value(title),
                                       json_string_length(title));
}


/* A histogram's buckets, which count all that is below their bounds; stats
 * count what is between two.  Milliseconds become seconds. */

static ngx_int_t
ngx_http_mixtral_put_histogram(ngx_array_t *text,
    const ngx_http_mixtral_metric_t *m, ngx_http_mixtral_exchange_t *x,
    json_t *model)
{
    size_t    i;
    json_t   *bucket, *bound;
    int64_t   count, ms;

    count = 0;

    json_array_foreach(json_object_get(model, m->figure), i, bucket) {
        count += json_integer_value(json_object_get(bucket, "requests"));
        bound = json_object_get(bucket, "ms");

        if (!json_is_integer(bound)) {
            continue;
        }

        ms = json_integer_value(bound);

        if (ngx_http_mixtral_put_labels(text, m->name, "_bucket", x, model)
            != NGX_OK
            || ngx_http_mixtral_put(text, ",le=\"%L.%03L\"} %L\n", ms / 1000,
                                    ms % 1000, count)
               != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    ms = json_integer_value(json_object_get(model, m->total));

    if (ngx_http_mixtral_put_labels(text, m->name, "_bucket", x, model)
        != NGX_OK
        || ngx_http_mixtral_put(text, ",le=\"+Inf\"} %L\n", count) != NGX_OK
        || ngx_http_mixtral_put_labels(text, m->name, "_sum", x, model)
           != NGX_OK
        || ngx_http_mixtral_put(text, "} %L.%03L\n", ms / 1000, ms % 1000)
           != NGX_OK
        || ngx_http_mixtral_put_labels(text, m->name, "_count", x, model)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_put(text, "} %L\n", count);
}


static ngx_int_t
ngx_http_mixtral_put_sample(ngx_array_t *text,
    const ngx_http_mixtral_metric_t *m, ngx_http_mixtral_exchange_t *x,
    json_t *model)
{
    if (m->total != NULL) {
        return ngx_http_mixtral_put_histogram(text, m, x, model);
    }

    if (ngx_http_mixtral_put_labels(text, m->name, "", x, model) != NGX_OK
        || (m->label != NULL
            && ngx_http_mixtral_put(text, ",state=\"%s\"", m->label)
               != NGX_OK))
    {
        return NGX_ERROR;
    }

    return ngx_http_mixtral_put(text, "} %L\n",
                                (int64_t) json_integer_value(
                                    json_object_get(model, m->figure)));
}


static ngx_int_t
ngx_http_mixtral_put_metric(ngx_array_t *text,
    const ngx_http_mixtral_metric_t *m, ngx_http_mixtral_scrape_t *scrape)
{
    size_t                        j;
    json_t                       *models, *model;
    ngx_uint_t                    i;
    ngx_http_mixtral_exchange_t  *x;

    if (m->type != NULL
        && ngx_http_mixtral_put(text, "# HELP %s %s\n# TYPE %s %s\n", m->name,
                                m->help, m->name, m->type)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < scrape->nengines; i++) {
        x = scrape->exchanges[i];
        models = json_object_get(x->calls ? x->calls[0].result : NULL,
                                 "models");

        json_array_foreach(models, j, model) {
            if (ngx_http_mixtral_put_sample(text, m, x, model) != NGX_OK) {
                return NGX_ERROR;
            }
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_mixtral_put_all(ngx_array_t *text, ngx_http_mixtral_scrape_t *scrape)
{
    ngx_uint_t                    i;
    ngx_http_mixtral_exchange_t  *x;

    if (ngx_http_mixtral_put(text, "# HELP mixtral_up Whether the engine "
                             "answers.\n# TYPE mixtral_up gauge\n")
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < scrape->nengines; i++) {
        x = scrape->exchanges[i];

        if (ngx_http_mixtral_put(text, "mixtral_up{engine=\"%V\"} %ui\n",
                                 &x->engine->name, x->ndone)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    for (i = 0; i < sizeof(ngx_http_mixtral_metrics)
                    / sizeof(ngx_http_mixtral_metrics[0]); i++)
    {
        if (ngx_http_mixtral_put_metric(text, &ngx_http_mixtral_metrics[i],
                                        scrape)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* An engine has answered, or is given up. */

static void
ngx_http_mixtral_metrics_done(ngx_http_mixtral_exchange_t *x)
{
    ngx_array_t                text;
    ngx_http_request_t        *r;
    ngx_http_mixtral_scrape_t *scrape;

    r = x->request;
    scrape = x->scrape;

    if (--scrape->nwaiting) {
        return;
    }

    if (ngx_array_init(&text, r->pool, 16384, 1) != NGX_OK
        || ngx_http_mixtral_put_all(&text, scrape) != NGX_OK)
    {
        ngx_http_finalize_request(r, NGX_HTTP_INTERNAL_SERVER_ERROR);
        return;
    }

    ngx_http_finalize_request(r,
        ngx_http_mixtral_send(r, NGX_HTTP_OK,
                              "text/plain; version=0.0.4; charset=utf-8",
                              text.elts, text.nelts));
}
