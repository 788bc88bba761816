
/*
 * Copyright 2026 the mixtral authors.
 * Licensed under the Apache License, Version 2.0.
 *
 * OpenAI's /v1/embeddings, /v1/models and /v1/models/NAME; /tokenize, /detokenize and /health
 * as llama.cpp's server has them.
 */


#include "ngx_http_mixtral.h"


#define NGX_HTTP_MIXTRAL_INPUTS  2048


static ngx_int_t ngx_http_mixtral_embeddings_parse(
    ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_embeddings_answer(
    ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_models_parse(ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_models_answer(ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_model_parse(ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_model_answer(ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_tokenize_parse(
    ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_tokenize_answer(
    ngx_http_mixtral_exchange_t *x);
static ngx_int_t ngx_http_mixtral_detokenize_parse(
    ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_detokenize_answer(
    ngx_http_mixtral_exchange_t *x);
static json_t *ngx_http_mixtral_health_answer(ngx_http_mixtral_exchange_t *x);


const ngx_http_mixtral_api_t  ngx_http_mixtral_embeddings_api = {
    ngx_string("/embeddings"),
    NGX_HTTP_POST,
    ngx_http_mixtral_embeddings_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_embeddings_answer,
    0
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_models_api = {
    ngx_string("/models"),
    NGX_HTTP_GET,
    ngx_http_mixtral_models_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_models_answer,
    0
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_model_api = {
    ngx_string("/models/"),
    NGX_HTTP_GET,
    ngx_http_mixtral_model_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_model_answer,
    0
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_tokenize_api = {
    ngx_string("/tokenize"),
    NGX_HTTP_POST,
    ngx_http_mixtral_tokenize_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_tokenize_answer,
    0
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_detokenize_api = {
    ngx_string("/detokenize"),
    NGX_HTTP_POST,
    ngx_http_mixtral_detokenize_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_detokenize_answer,
    0
};


const ngx_http_mixtral_api_t  ngx_http_mixtral_health_api = {
    ngx_string("/health"),
    NGX_HTTP_GET,
    ngx_http_mixtral_models_parse,
    NULL,
    NULL,
    NULL,
    ngx_http_mixtral_health_answer,
    0
};


/* ---- Embeddings: a call for each input ---- */


static ngx_int_t
ngx_http_mixtral_embeddings_parse(ngx_http_mixtral_exchange_t *x)
{
    size_t       i, n;
    json_t      *input, *format, *text;
    const char  *name;

    format = ngx_http_mixtral_field(x->body, "encoding_format");

    if (format != NULL) {
        name = json_is_string(format) ? json_string_value(format) : "";
        x->base64 = ngx_strcmp(name, "base64") == 0;

        if (!x->base64 && ngx_strcmp(name, "float") != 0) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "encoding_format",
                                           "encoding_format: expected "
                                           "\"float\" or \"base64\"");
        }
    }

    if (ngx_http_mixtral_field(x->body, "dimensions") != NULL) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "dimensions",
                                       "dimensions: this server gives all that "
                                       "the model has");
    }

    input = ngx_http_mixtral_field(x->body, "input");
    n = json_is_array(input) ? json_array_size(input) : 1;

    if (n == 0 || n > NGX_HTTP_MIXTRAL_INPUTS) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "input",
                                       "input: expected 1 to %d strings, "
                                       "got %d", NGX_HTTP_MIXTRAL_INPUTS,
                                       (int) n);
    }

    if (ngx_http_mixtral_calls(x, n) != NGX_OK) {
        return NGX_ERROR;
    }

    for (i = 0; i < n; i++) {
        text = json_is_array(input) ? json_array_get(input, i) : input;

        if (!json_is_string(text)) {
            return ngx_http_mixtral_refuse(x, MX_INVALID, "input",
                                           "input: expected a string or an "
                                           "array of strings, got %s",
                                           ngx_http_mixtral_kind(text));
        }

        if (ngx_http_mixtral_call(x, i, "embed") == NULL
            || json_object_set(x->calls[i].request, "text", text) != 0)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* Of floats of 4 bytes, little-endian */

static json_t *
ngx_http_mixtral_base64(ngx_http_mixtral_exchange_t *x, json_t *embedding)
{
    float        value;
    size_t       i;
    u_char      *p;
    json_t      *number;
    uint32_t     bits;
    ngx_str_t    bytes, text;

    bytes.len = json_array_size(embedding) * sizeof(bits);
    bytes.data = ngx_pnalloc(x->request->pool, bytes.len);
    text.data = ngx_pnalloc(x->request->pool,
                            ngx_base64_encoded_length(bytes.len));
    if (bytes.data == NULL || text.data == NULL) {
        return NULL;
    }

    p = bytes.data;

    json_array_foreach(embedding, i, number) {
        value = (float) json_number_value(number);
        ngx_memcpy(&bits, &value, sizeof(bits));

        *p++ = (u_char) bits;
        *p++ = (u_char) (bits >> 8);
        *p++ = (u_char) (bits >> 16);
        *p++ = (u_char) (bits >> 24);
    }

    ngx_encode_base64(&text, &bytes);

    return json_stringn((char *) text.data, text.len);
}


static json_t *
ngx_http_mixtral_embeddings_answer(ngx_http_mixtral_exchange_t *x)
{
    json_t      *data, *embedding, *model;
    ngx_uint_t   i;

    data = json_array();

    for (i = 0; i < x->ncalls; i++) {
        embedding = json_object_get(x->calls[i].result, "embedding");
        embedding = x->base64 ? ngx_http_mixtral_base64(x, embedding)
                              : json_incref(embedding);

        if (json_array_append_new(data,
                                  json_pack("{s:s, s:i, s:o}", "object",
                                            "embedding", "index", (int) i,
                                            "embedding", embedding))
            != 0)
        {
            json_decref(data);
            return NULL;
        }
    }

    model = ngx_http_mixtral_field(x->body, "model");

    return json_pack("{s:s, s:o, s:s, s:{s:i, s:i}}", "object", "list",
                     "data", data, "model",
                     json_is_string(model) ? json_string_value(model)
                                           : (char *) x->engine->name.data,
                     "usage", "prompt_tokens", (int) x->prompt_tokens,
                     "total_tokens", (int) x->prompt_tokens);
}


/* ---- Models, and with the same question: health ---- */


static ngx_int_t
ngx_http_mixtral_models_parse(ngx_http_mixtral_exchange_t *x)
{
    if (ngx_http_mixtral_calls(x, 1) != NGX_OK
        || ngx_http_mixtral_call(x, 0, "models") == NULL)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static json_t *
ngx_http_mixtral_model_object(ngx_http_mixtral_exchange_t *x, json_t *model)
{
    return json_pack("{s:O, s:s, s:I, s:s, s:{s:O, s:O, s:O}}",
                     "id", json_object_get(model, "name"),
                     "object", "model", "created", (json_int_t) x->created,
                     "owned_by", "mixtral", "meta",
                     "n_vocab", json_object_get(model, "n_vocab"),
                     "n_ctx", json_object_get(model, "context"),
                     "n_embd", json_object_get(model, "dim"));
}


static json_t *
ngx_http_mixtral_models_answer(ngx_http_mixtral_exchange_t *x)
{
    size_t   i;
    json_t  *data, *models, *model;

    data = json_array();
    models = json_object_get(x->calls[0].result, "models");

    json_array_foreach(models, i, model) {
        if (json_array_append_new(data,
                                  ngx_http_mixtral_model_object(x, model))
            != 0)
        {
            json_decref(data);
            return NULL;
        }
    }

    return json_pack("{s:s, s:o}", "object", "list", "data", data);
}


ngx_uint_t
ngx_http_mixtral_model_name(const ngx_str_t *uri, ngx_str_t *name)
{
    u_char  *p, *last;
    size_t   size;

    size = ngx_http_mixtral_model_api.path.len;
    last = uri->data + uri->len;

    for (p = uri->data; p + size < last; p++) {
        if (ngx_strncmp(p, ngx_http_mixtral_model_api.path.data, size) == 0) {
            name->data = p + size;
            name->len = last - name->data;
            return 1;
        }
    }

    return 0;
}


/* The engine itself says that there is no such model. */

static ngx_int_t
ngx_http_mixtral_model_parse(ngx_http_mixtral_exchange_t *x)
{
    json_t     *options, *text;
    ngx_str_t   name;

    if (!ngx_http_mixtral_model_name(&x->request->uri, &name)) {
        return NGX_ERROR;
    }

    text = json_stringn((char *) name.data, name.len);

    if (text == NULL) {
        return ngx_http_mixtral_refuse(x, MX_NOT_FOUND, "model",
                                       "a model's name is UTF-8");
    }

    if (ngx_http_mixtral_calls(x, 1) != NGX_OK
        || (options = ngx_http_mixtral_call(x, 0, "models")) == NULL)
    {
        json_decref(text);
        return NGX_ERROR;
    }

    return json_object_set_new(options, "model", text) == 0 ? NGX_OK
                                                            : NGX_ERROR;
}


static json_t *
ngx_http_mixtral_model_answer(ngx_http_mixtral_exchange_t *x)
{
    json_t  *models;

    models = json_object_get(x->calls[0].result, "models");

    return ngx_http_mixtral_model_object(x, json_array_get(models, 0));
}


static json_t *
ngx_http_mixtral_health_answer(ngx_http_mixtral_exchange_t *x)
{
    return json_pack("{s:s}", "status", "ok");
}


/* ---- Tokens ---- */


static ngx_int_t
ngx_http_mixtral_tokenize_parse(ngx_http_mixtral_exchange_t *x)
{
    json_t      *content;
    ngx_int_t    rc;
    ngx_uint_t   special, pieces;

    special = 0;
    pieces = 0;

    rc = ngx_http_mixtral_flag(x, x->body, "add_special", &special);
    if (rc != NGX_OK) {
        return rc;
    }

    if (special) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "add_special",
                                       "add_special: this server adds none");
    }

    rc = ngx_http_mixtral_flag(x, x->body, "with_pieces", &pieces);
    if (rc != NGX_OK) {
        return rc;
    }

    content = ngx_http_mixtral_field(x->body, "content");

    if (!json_is_string(content)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "content",
                                       "content: expected a string, got %s",
                                       ngx_http_mixtral_kind(content));
    }

    if (ngx_http_mixtral_calls(x, 1) != NGX_OK
        || ngx_http_mixtral_call(x, 0, "tokenize") == NULL
        || json_object_set(x->calls[0].request, "text", content) != 0)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static json_t *
ngx_http_mixtral_tokenize_answer(ngx_http_mixtral_exchange_t *x)
{
    size_t   i;
    json_t  *tokens, *token, *ids;

    tokens = json_object_get(x->calls[0].result, "tokens");

    if (json_is_true(json_object_get(x->body, "with_pieces"))) {
        return json_pack("{s:O}", "tokens", tokens);
    }

    ids = json_array();

    json_array_foreach(tokens, i, token) {
        if (json_array_append(ids, json_object_get(token, "id")) != 0) {
            json_decref(ids);
            return NULL;
        }
    }

    return json_pack("{s:o}", "tokens", ids);
}


static ngx_int_t
ngx_http_mixtral_detokenize_parse(ngx_http_mixtral_exchange_t *x)
{
    json_t  *tokens;

    tokens = ngx_http_mixtral_field(x->body, "tokens");

    if (!json_is_array(tokens)) {
        return ngx_http_mixtral_refuse(x, MX_INVALID, "tokens",
                                       "tokens: expected an array of token "
                                       "ids, got %s",
                                       ngx_http_mixtral_kind(tokens));
    }

    if (ngx_http_mixtral_calls(x, 1) != NGX_OK
        || ngx_http_mixtral_call(x, 0, "detokenize") == NULL
        || json_object_set(x->calls[0].request, "tokens", tokens) != 0)
    {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static json_t *
ngx_http_mixtral_detokenize_answer(ngx_http_mixtral_exchange_t *x)
{
    return json_pack("{s:O}", "content",
                     json_object_get(x->calls[0].result, "text"));
}
