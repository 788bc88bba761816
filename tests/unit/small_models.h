/*
 * small_models.h: model files of random weights for tests: any type for any tensor, and any key or tensor changed.
 *
 * The geometry is laid out as a list of keys and a list of tensors, which a test may change before the file is written. A
 * matrix depends on its place in the model, its expert, its type and its size alone: both layouts hold the same weights.
 */
#ifndef MX_TESTS_SMALL_MODELS_H
#define MX_TESTS_SMALL_MODELS_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/synth.h"

typedef struct {
    const char *key;
    mx_gguf_kind kind; /* MX_GGUF_ARRAY: `number` of UINT32, one a layer */
    double number;
    const char *text; /* MX_GGUF_STRING */
} model_key;

typedef struct {
    char name[64];
    mx_type type;
    int n_dims;
    int64_t dims[3]; /* the contiguous one first */
} model_tensor;

typedef struct {
    int layers, dim, ff, heads, kv_heads, head_dim, vocab;
    int experts, used; /* experts 0: dense */
    mx_expert_layout layout;
    mx_type (*type_of)(const char *name); /* of the matrices; norms are F32 and the router F16 */
    bool tied, rope_factors;
    bool zero_router; /* every expert scores alike */
    const char *poisoned; /* an F32 tensor whose first value is `poison`; NULL: none */
    float poison;
    void (*put_more)(mx_gguf_writer *writer); /* further keys: a vocabulary; NULL: none */
    model_key keys[32];
    size_t n_keys;
    model_tensor tensors[128];
    size_t n_tensors;
} small_model;

static inline model_key *find_key(small_model *m, const char *key)
{
    for (size_t i = 0; i < m->n_keys; i++)
        if (strcmp(m->keys[i].key, key) == 0)
            return &m->keys[i];
    return NULL;
}

static inline void set_key(small_model *m, const char *key, mx_gguf_kind kind, double number, const char *text)
{
    model_key *k = find_key(m, key);

    if (!k)
        k = &m->keys[m->n_keys++];
    *k = (model_key){key, kind, number, text};
}

static inline void drop_key(small_model *m, const char *key)
{
    model_key *k = find_key(m, key);

    *k = m->keys[--m->n_keys];
}

static inline model_tensor *find_tensor(small_model *m, const char *name)
{
    for (size_t i = 0; i < m->n_tensors; i++)
        if (strcmp(m->tensors[i].name, name) == 0)
            return &m->tensors[i];
    return NULL;
}

static inline void drop_tensor(small_model *m, const char *name)
{
    model_tensor *t = find_tensor(m, name);

    *t = m->tensors[--m->n_tensors];
}

static inline void add_tensor(small_model *m, mx_type type, int64_t cols, int64_t rows, int64_t depth, const char *format, ...)
{
    model_tensor *t = &m->tensors[m->n_tensors++];
    va_list args;

    va_start(args, format);
    vsnprintf(t->name, sizeof t->name, format, args);
    va_end(args);
    t->type = type;
    t->n_dims = depth > 0 ? 3 : rows > 0 ? 2 : 1;
    memcpy(t->dims, (int64_t[]){cols, rows > 0 ? rows : 1, depth > 0 ? depth : 1}, sizeof t->dims);
}

static inline void add_matrix(small_model *m, int64_t cols, int64_t rows, int64_t depth, const char *name)
{
    add_tensor(m, m->type_of(name), cols, rows, depth, "%s", name);
}

static inline void add_experts(small_model *m, int layer, const char *part, int cols, int rows)
{
    char name[64];

    if (m->layout == MX_EXPERTS_MERGED) {
        snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight", layer, part);
        add_matrix(m, cols, rows, m->experts, name);
    } else if (m->layout == MX_EXPERTS_NONE) {
        snprintf(name, sizeof name, "blk.%d.ffn_%s.weight", layer, part);
        add_matrix(m, cols, rows, 0, name);
    }
    for (int e = 0; e < m->experts && m->layout == MX_EXPERTS_SEPARATE; e++) {
        snprintf(name, sizeof name, "blk.%d.ffn_%s.%d.weight", layer, part, e);
        add_matrix(m, cols, rows, 0, name);
    }
}

static inline void add_layer(small_model *m, int i)
{
    const struct {
        const char *part;
        int cols, rows;
    } parts[] = {
        {"attn_q", m->dim, m->heads * m->head_dim},     {"attn_k", m->dim, m->kv_heads * m->head_dim},
        {"attn_v", m->dim, m->kv_heads * m->head_dim},  {"attn_output", m->heads * m->head_dim, m->dim},
    };
    char name[64];

    add_tensor(m, MX_TYPE_F32, m->dim, 0, 0, "blk.%d.attn_norm.weight", i);
    add_tensor(m, MX_TYPE_F32, m->dim, 0, 0, "blk.%d.ffn_norm.weight", i);
    for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", i, parts[p].part);
        add_matrix(m, parts[p].cols, parts[p].rows, 0, name);
    }
    if (m->layout != MX_EXPERTS_NONE)
        add_tensor(m, MX_TYPE_F16, m->dim, m->experts, 0, "blk.%d.ffn_gate_inp.weight", i);
    add_experts(m, i, "gate", m->dim, m->ff);
    add_experts(m, i, "up", m->dim, m->ff);
    add_experts(m, i, "down", m->ff, m->dim);
}

/* Fills the lists from the geometry. */
static inline void lay_out_model(small_model *m)
{
    const struct {
        const char *key;
        int value; /* 0: no key */
    } ints[] = {
        {"llama.block_count", m->layers},
        {"llama.context_length", 4096},
        {"llama.embedding_length", m->dim},
        {"llama.feed_forward_length", m->ff},
        {"llama.attention.head_count", m->heads},
        {"llama.attention.head_count_kv", m->kv_heads},
        {"llama.attention.key_length", m->head_dim},
        {"llama.expert_count", m->experts},
        {"llama.expert_used_count", m->used},
    };

    m->n_keys = m->n_tensors = 0;
    set_key(m, "general.architecture", MX_GGUF_STRING, 0, "llama");
    set_key(m, "llama.attention.layer_norm_rms_epsilon", MX_GGUF_FLOAT32, 1e-5, NULL);
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++)
        if (ints[i].value)
            set_key(m, ints[i].key, MX_GGUF_UINT32, ints[i].value, NULL);
    add_matrix(m, m->dim, m->vocab, 0, "token_embd.weight");
    add_tensor(m, MX_TYPE_F32, m->dim, 0, 0, "output_norm.weight");
    if (!m->tied)
        add_matrix(m, m->dim, m->vocab, 0, "output.weight");
    if (m->rope_factors)
        add_tensor(m, MX_TYPE_F32, m->head_dim / 2, 0, 0, "rope_freqs.weight");
    for (int i = 0; i < m->layers; i++)
        add_layer(m, i);
}

/* What a matrix's random numbers are made from: its place in the model without its expert, whose number is given (merged) or
 * read off the name (separate). */
static inline uint64_t matrix_seed(const char *name, int expert)
{
    char stem[64], part[16], *merged;
    uint64_t state = 0x1234;
    int layer;

    snprintf(stem, sizeof stem, "%s", name);
    if (sscanf(name, "blk.%d.ffn_%15[a-z].%d.", &layer, part, &expert) == 3)
        snprintf(stem, sizeof stem, "blk.%d.ffn_%s", layer, part);
    else if ((merged = strstr(stem, "_exps")))
        *merged = '\0';
    for (const char *c = stem; *c; c++)
        state = mx_synth_random(&state) ^ (uint8_t)*c;
    return state ^ (uint64_t)expert << 32;
}

/* The bytes of one matrix of a tensor (of an expert, where it is merged). */
static inline void make_matrix(const small_model *m, const model_tensor *t, int expert, uint8_t *out)
{
    size_t n = (size_t)t->dims[0] * (size_t)t->dims[1];
    uint64_t state = matrix_seed(t->name, expert);

    if (t->type == MX_TYPE_F32 && (strstr(t->name, "norm") || strstr(t->name, "rope"))) {
        for (size_t i = 0; i < n; i++) { /* around 1 */
            float x = 0.75f + (float)(mx_synth_random(&state) >> 40) * 0x1p-25f;

            memcpy(out + 4 * i, &x, 4);
        }
    } else {
        mx_synth_weights(t->type, &state, 1.5f / sqrtf((float)t->dims[0]), out, n);
    }
    if (m->zero_router && strstr(t->name, "ffn_gate_inp"))
        memset(out, 0, mx_row_bytes(t->type, t->dims[0]) * (size_t)t->dims[1]);
    if (m->poisoned && strcmp(m->poisoned, t->name) == 0)
        memcpy(out, &m->poison, 4);
}

static inline void put_key_of(mx_gguf_writer *w, const small_model *m, const model_key *k)
{
    double numbers[64];

    for (int i = 0; i < m->layers && i < 64; i++)
        numbers[i] = k->number;
    if (k->kind == MX_GGUF_STRING)
        mx_gguf_put_text(w, k->key, k->text);
    else if (k->kind == MX_GGUF_ARRAY)
        mx_gguf_put_numbers(w, k->key, MX_GGUF_UINT32, numbers, (size_t)m->layers);
    else if (k->kind == MX_GGUF_FLOAT32 || k->kind == MX_GGUF_FLOAT64)
        mx_gguf_put_float(w, k->key, k->kind, k->number);
    else
        mx_gguf_put_int(w, k->key, k->kind, (int64_t)k->number);
}

/* Writes part `no` of `parts`, which has every parts-th tensor, to `path`. */
static inline mx_status write_part_of_model(const char *path, const small_model *m, int no, int parts, mx_error *error)
{
    uint8_t *data = malloc((size_t)1 << 24);
    mx_gguf_writer *w;
    mx_status status = mx_gguf_writer_open(path, &w, error);

    if (status != MX_OK || !data)
        abort();
    for (size_t i = 0; i < m->n_keys && no == 0; i++)
        put_key_of(w, m, &m->keys[i]);
    if (m->put_more && no == 0)
        m->put_more(w);
    if (parts > 1) {
        mx_gguf_put_int(w, "split.no", MX_GGUF_UINT16, no);
        mx_gguf_put_int(w, "split.count", MX_GGUF_UINT16, parts);
        mx_gguf_put_int(w, "split.tensors.count", MX_GGUF_INT32, (int64_t)m->n_tensors);
    }
    for (size_t i = (size_t)no; i < m->n_tensors; i += (size_t)parts)
        mx_gguf_put_tensor(w, m->tensors[i].name, m->tensors[i].type, m->tensors[i].n_dims, m->tensors[i].dims);
    for (size_t i = (size_t)no; i < m->n_tensors; i += (size_t)parts) {
        const model_tensor *t = &m->tensors[i];

        for (int e = 0; e < t->dims[2]; e++) {
            make_matrix(m, t, e, data);
            mx_gguf_write_data(w, data, mx_row_bytes(t->type, t->dims[0]) * (size_t)t->dims[1]);
        }
    }
    status = mx_gguf_writer_commit(w, error);
    mx_gguf_writer_close(w);
    free(data);
    return status;
}

static inline mx_status write_model(const char *path, const small_model *m, mx_error *error)
{
    return write_part_of_model(path, m, 0, 1, error);
}

#endif
