/*
 * weights.c: hyperparameters, and every tensor of the file bound to its place in mx_model.
 *
 * What the file holds and this code would leave out (a bias, a shared expert, another scaling) changes what the model says:
 * such a key or tensor is refused by name, and so is every tensor that no place asked for.
 */
#include "weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"

#define LAYERS_MAX 1024
#define DIM_MAX 65536
#define FF_MAX (1 << 20)
#define HEADS_MAX 1024
#define EXPERTS_MAX 1024
#define VOCAB_MAX (1 << 22)
#define CONTEXT_MAX (1 << 24)

/* ---- Memory -------------------------------------------------------------------------------------------------------- */

typedef struct chunk { /* of model->owned */
    struct chunk *next;
    _Alignas(64) uint8_t bytes[];
} chunk;

static void *own(mx_model *model, size_t bytes, mx_error *error)
{
    chunk *c = aligned_alloc(64, (sizeof *c + bytes + 63) / 64 * 64);

    if (!c) {
        mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu bytes", bytes);
        return NULL;
    }
    memset(c->bytes, 0, bytes);
    c->next = model->owned;
    model->owned = c;
    return c->bytes;
}

/* ---- Hyperparameters ----------------------------------------------------------------------------------------------- */

/* An integer, or (in some files) one for each layer, which must all be equal. A missing key leaves *value alone. */
static mx_status read_int(const mx_gguf *gguf, const char *key, int64_t min, int64_t max, int *value, bool *found,
                          mx_error *error)
{
    mx_gguf_kind kind;
    size_t count;
    int64_t v = *value;
    mx_status status;

    if (mx_gguf_array(gguf, key, &kind, &count)) {
        double first;

        if (kind == MX_GGUF_STRING || count == 0)
            return mx_fail(error, MX_CORRUPT, key, "key %s: expected an integer, got an array", key);
        first = mx_gguf_array_number(gguf, key, 0);
        for (size_t i = 1; i < count; i++)
            if (mx_gguf_array_number(gguf, key, i) != first)
                return mx_fail(error, MX_INVALID, key, "key %s: expected the same for all layers, got %g and %g", key, first,
                               mx_gguf_array_number(gguf, key, i));
        if (!(first >= (double)min && first <= (double)max) || first != floor(first))
            return mx_fail(error, MX_CORRUPT, key, "key %s: expected %" PRId64 " to %" PRId64 ", got %g", key, min, max, first);
        v = (int64_t)first;
        if (found)
            *found = true;
    } else if ((status = mx_gguf_get_int(gguf, key, min, max, &v, found, error)) != MX_OK) {
        return status;
    }
    *value = (int)v;
    return MX_OK;
}

static mx_status need_int(const mx_gguf *gguf, const char *key, int64_t max, int *value, mx_error *error)
{
    bool found;
    mx_status status = read_int(gguf, key, 1, max, value, &found, error);

    if (status == MX_OK && !found)
        return mx_fail(error, MX_CORRUPT, key, "key %s: is missing", key);
    return status;
}

static mx_status read_positive(const mx_gguf *gguf, const char *key, double max, double *value, bool *found, mx_error *error)
{
    double v = *value;
    mx_status status = mx_gguf_get_float(gguf, key, &v, found, error);

    if (status != MX_OK)
        return status;
    if (!(v > 0 && v <= max))
        return mx_fail(error, MX_CORRUPT, key, "key %s: expected a number above 0 and at most %g, got %g", key, max, v);
    *value = v;
    return MX_OK;
}

static mx_status check_architecture(const mx_gguf *gguf, mx_error *error)
{
    const char *key = "general.architecture";
    mx_str name = {"", 0};
    bool found;
    mx_status status = mx_gguf_get_string(gguf, key, &name, &found, error);

    if (status != MX_OK)
        return status;
    if (!found)
        return mx_fail(error, MX_CORRUPT, key, "key %s: is missing", key);
    if (name.bytes != 5 || memcmp(name.data, "llama", 5) != 0)
        return mx_fail(error, MX_INVALID, key, "key %s: expected \"llama\", got \"%.*s\"", key,
                       (int)(name.bytes < 64 ? name.bytes : 64), name.data);
    return MX_OK;
}

/* Keys of other members of the family: with another value than these the forward pass would be a different one. */
static mx_status check_neutral(const mx_gguf *gguf, mx_error *error)
{
    static const struct {
        const char *key;
        double neutral; /* 0 is "not used" for all of them */
    } floats[] = {
        {"llama.attention.clamp_kqv", 0},     {"llama.attention.scale", 0},           {"llama.attn_logit_softcapping", 0},
        {"llama.embedding_scale", 1},         {"llama.expert_weights_scale", 1},      {"llama.final_logit_softcapping", 0},
        {"llama.logit_scale", 1},             {"llama.residual_scale", 1},            {"llama.rope.scaling.attn_factor", 1},
    };
    int64_t shared = 0, gating = 0;
    bool causal = true;
    mx_status status;

    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++) {
        double value = 0;

        if ((status = mx_gguf_get_float(gguf, floats[i].key, &value, NULL, error)) != MX_OK)
            return status;
        if (value != 0 && value != floats[i].neutral)
            return mx_fail(error, MX_INVALID, floats[i].key, "key %s: expected %g (others are not built), got %g",
                           floats[i].key, floats[i].neutral, value);
    }
    if ((status = mx_gguf_get_int(gguf, "llama.expert_shared_count", 0, 0, &shared, NULL, error)) != MX_OK ||
        (status = mx_gguf_get_int(gguf, "llama.expert_gating_func", 0, 1, &gating, NULL, error)) != MX_OK ||
        (status = mx_gguf_get_bool(gguf, "llama.attention.causal", &causal, NULL, error)) != MX_OK)
        return status;
    if (!causal)
        return mx_fail(error, MX_INVALID, "llama.attention.causal", "key llama.attention.causal: expected true, got false");
    return MX_OK;
}

static mx_status read_heads(const mx_gguf *gguf, mx_hparams *h, mx_error *error)
{
    int value_dim;
    bool found;
    mx_status status;

    if ((status = need_int(gguf, "llama.attention.head_count", HEADS_MAX, &h->n_heads, error)) != MX_OK)
        return status;
    h->n_kv_heads = h->n_heads;
    status = read_int(gguf, "llama.attention.head_count_kv", 1, h->n_heads, &h->n_kv_heads, NULL, error);
    if (status != MX_OK)
        return status;
    if (h->n_heads % h->n_kv_heads != 0)
        return mx_fail(error, MX_CORRUPT, "llama.attention.head_count_kv", "key llama.attention.head_count_kv: expected a "
                       "divisor of %d heads, got %d", h->n_heads, h->n_kv_heads);

    h->head_dim = h->dim / h->n_heads;
    status = read_int(gguf, "llama.attention.key_length", 2, MX_HEAD_DIM_MAX, &h->head_dim, &found, error);
    if (status != MX_OK)
        return status;
    if (!found && h->dim % h->n_heads != 0)
        return mx_fail(error, MX_CORRUPT, "llama.attention.head_count", "key llama.attention.head_count: expected a divisor of "
                       "%d (llama.embedding_length), got %d", h->dim, h->n_heads);
    if (h->head_dim < 2 || h->head_dim > MX_HEAD_DIM_MAX || h->head_dim % 2 != 0)
        return mx_fail(error, MX_INVALID, "llama.attention.key_length", "key llama.attention.key_length: expected an even head "
                       "size from 2 to %d, got %d", MX_HEAD_DIM_MAX, h->head_dim);
    if (h->n_heads * h->head_dim > DIM_MAX)
        return mx_fail(error, MX_CORRUPT, "llama.attention.head_count", "key llama.attention.head_count: expected at most %d "
                       "for all heads together, got %d of %d", DIM_MAX, h->n_heads, h->head_dim);
    value_dim = h->head_dim;
    return read_int(gguf, "llama.attention.value_length", h->head_dim, h->head_dim, &value_dim, NULL, error);
}

static mx_status read_rope(const mx_gguf *gguf, mx_hparams *h, mx_error *error)
{
    mx_str type = {"linear", 6}; /* a factor without a type is linear */
    double factor = 1;
    bool found;
    mx_status status;

    h->rope_dim = h->head_dim;
    h->rope_base = 10000;
    h->rope_scale = 1;
    if ((status = read_int(gguf, "llama.rope.dimension_count", 2, h->head_dim, &h->rope_dim, NULL, error)) != MX_OK ||
        (status = read_positive(gguf, "llama.rope.freq_base", 1e12, &h->rope_base, NULL, error)) != MX_OK ||
        (status = mx_gguf_get_string(gguf, "llama.rope.scaling.type", &type, NULL, error)) != MX_OK ||
        (status = read_positive(gguf, "llama.rope.scaling.factor", 1e6, &factor, &found, error)) != MX_OK)
        return status;
    if (h->rope_dim % 2 != 0)
        return mx_fail(error, MX_CORRUPT, "llama.rope.dimension_count",
                       "key llama.rope.dimension_count: expected an even number, got %d", h->rope_dim);
    if (!found && (status = read_positive(gguf, "llama.rope.scale_linear", 1e6, &factor, NULL, error)) != MX_OK)
        return status;
    if (type.bytes == 4 && memcmp(type.data, "none", 4) == 0)
        return MX_OK;
    if (type.bytes != 6 || memcmp(type.data, "linear", 6) != 0)
        return mx_fail(error, MX_INVALID, "llama.rope.scaling.type",
                       "key llama.rope.scaling.type: expected \"none\" or \"linear\", got \"%.*s\"",
                       (int)(type.bytes < 64 ? type.bytes : 64), type.data);
    h->rope_scale = factor;
    return MX_OK;
}

/* *mixture: the file has experts and a router, be it for one expert */
static mx_status read_experts(const mx_gguf *gguf, mx_hparams *h, bool *mixture, mx_error *error)
{
    int expert_ff = 0;
    mx_status status;

    h->n_experts = 0;
    h->n_experts_used = 1;
    if ((status = read_int(gguf, "llama.expert_count", 0, EXPERTS_MAX, &h->n_experts, NULL, error)) != MX_OK)
        return status;
    *mixture = h->n_experts > 0;
    if (!*mixture) {
        h->n_experts = 1;
        return MX_OK;
    }
    if ((status = need_int(gguf, "llama.expert_used_count", h->n_experts, &h->n_experts_used, error)) != MX_OK ||
        (status = read_int(gguf, "llama.expert_feed_forward_length", 0, FF_MAX, &expert_ff, NULL, error)) != MX_OK)
        return status;
    if (expert_ff != 0 && expert_ff != h->n_ff)
        return mx_fail(error, MX_INVALID, "llama.expert_feed_forward_length", "key llama.expert_feed_forward_length: expected "
                       "%d (llama.feed_forward_length), got %d", h->n_ff, expert_ff);
    return MX_OK;
}

/* The embedding's rows; the keys and the token list must agree with them. */
static mx_status read_vocab(const mx_gguf *gguf, mx_hparams *h, mx_error *error)
{
    const mx_gguf_tensor *embedding = mx_gguf_tensor_find(gguf, "token_embd.weight");
    const mx_gguf_list *tokens = mx_gguf_list_find(gguf, "tokenizer.ggml.tokens", MX_GGUF_STRING);
    int from_key;

    if (!embedding)
        return mx_fail(error, MX_CORRUPT, "token_embd.weight", "tensor token_embd.weight: is missing");
    if (embedding->dims[1] > VOCAB_MAX)
        return mx_fail(error, MX_CORRUPT, "token_embd.weight", "tensor token_embd.weight: expected at most %d rows, got %"
                       PRId64, VOCAB_MAX, embedding->dims[1]);
    h->n_vocab = from_key = (int)embedding->dims[1];
    if (tokens && mx_gguf_list_count(tokens) != (size_t)h->n_vocab)
        return mx_fail(error, MX_CORRUPT, "tokenizer.ggml.tokens", "key tokenizer.ggml.tokens: expected %d tokens (the rows of "
                       "token_embd.weight), got %zu", h->n_vocab, mx_gguf_list_count(tokens));
    return read_int(gguf, "llama.vocab_size", h->n_vocab, h->n_vocab, &from_key, NULL, error);
}

static mx_status read_hparams(const mx_gguf *gguf, mx_hparams *h, bool *mixture, mx_error *error)
{
    const char *eps_key = "llama.attention.layer_norm_rms_epsilon";
    double eps = 1;
    bool found;
    mx_status status;

    if ((status = check_architecture(gguf, error)) != MX_OK ||
        (status = check_neutral(gguf, error)) != MX_OK ||
        (status = need_int(gguf, "llama.block_count", LAYERS_MAX, &h->n_layers, error)) != MX_OK ||
        (status = need_int(gguf, "llama.context_length", CONTEXT_MAX, &h->context, error)) != MX_OK ||
        (status = need_int(gguf, "llama.embedding_length", DIM_MAX, &h->dim, error)) != MX_OK ||
        (status = need_int(gguf, "llama.feed_forward_length", FF_MAX, &h->n_ff, error)) != MX_OK ||
        (status = read_positive(gguf, eps_key, 1, &eps, &found, error)) != MX_OK)
        return status;
    if (!found)
        return mx_fail(error, MX_CORRUPT, eps_key, "key %s: is missing", eps_key);
    h->norm_eps = (float)eps;
    if (h->norm_eps <= 0)
        return mx_fail(error, MX_CORRUPT, eps_key, "key %s: expected a number above 0, got %g", eps_key, eps);
    if ((status = read_heads(gguf, h, error)) != MX_OK || (status = read_rope(gguf, h, error)) != MX_OK ||
        (status = read_experts(gguf, h, mixture, error)) != MX_OK)
        return status;
    return read_vocab(gguf, h, error);
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------- */

typedef struct {
    mx_model *model;
    bool *used; /* [n_tensors] */
    mx_error *error;
} binder;

static void dims_text(const int64_t *dims, int n, char *out, size_t size)
{
    size_t at = 0;

    for (int i = 0; i < n && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%" PRId64, i == 0 ? "[" : ",", dims[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
}

/* The tensor, marked as used; its dimensions in the file's order, the contiguous one first. NULL and an error if it is
 * missing or of another shape. */
static const mx_gguf_tensor *take(binder *b, const char *name, int64_t cols, int64_t rows, int64_t depth)
{
    const mx_gguf_tensor *t = mx_gguf_tensor_find(b->model->gguf, name);
    int64_t expected[3] = {cols, rows, depth};
    char want[80], got[100];

    if (!t) {
        mx_fail(b->error, MX_CORRUPT, name, "tensor %s: is missing", name);
        return NULL;
    }
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != depth || t->dims[3] != 1) {
        dims_text(expected, depth > 1 ? 3 : rows > 1 ? 2 : 1, want, sizeof want);
        dims_text(t->dims, t->n_dims, got, sizeof got);
        mx_fail(b->error, MX_CORRUPT, name, "tensor %s: expected %s, got %s", name, want, got);
        return NULL;
    }
    b->used[t - mx_gguf_tensor_at(b->model->gguf, 0)] = true;
    return t;
}

static mx_status bind_matrix(binder *b, const char *name, int cols, int rows, mx_weight *w)
{
    const mx_gguf_tensor *t = take(b, name, cols, rows, 1);

    if (!t)
        return MX_CORRUPT;
    *w = (mx_weight){t->type, MX_LAYOUT_FILE, rows, cols, mx_row_bytes(t->type, cols), t->data};
    return MX_OK;
}

/* A small tensor, copied to float32. */
static mx_status copy_floats(binder *b, const char *name, int cols, int rows, const float **out)
{
    const mx_gguf_tensor *t = take(b, name, cols, rows, 1);
    size_t n = (size_t)cols * (size_t)rows;
    float *copy;

    if (!t)
        return MX_CORRUPT;
    copy = own(b->model, n * sizeof *copy, b->error);
    if (!copy)
        return MX_NOMEM;
    mx_dequantize(t->type, t->data, copy, n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(copy[i]))
            return mx_fail(b->error, MX_CORRUPT, name, "tensor %s: expected finite values, got %f at %zu", name,
                           (double)copy[i], i);
    *out = copy;
    return MX_OK;
}

static const char *layer_name(char out[64], int layer, const char *part)
{
    snprintf(out, 64, "blk.%d.%s.weight", layer, part);
    return out;
}

/* One of gate, up, down for all experts of a layer. */
static mx_status bind_experts(binder *b, int layer, const char *part, int cols, int rows, const mx_weight **out)
{
    mx_model *model = b->model;
    int n = model->hparams.n_experts;
    const mx_gguf_tensor *t;
    mx_weight *w;
    char name[64];
    mx_status status = MX_OK;

    w = own(model, (size_t)n * sizeof *w, b->error);
    if (!w)
        return MX_NOMEM;
    *out = w;
    if (model->expert_layout == MX_EXPERTS_NONE) {
        snprintf(name, sizeof name, "blk.%d.ffn_%s.weight", layer, part);
        return bind_matrix(b, name, cols, rows, w);
    }
    if (model->expert_layout == MX_EXPERTS_SEPARATE) {
        for (int e = 0; e < n && status == MX_OK; e++) {
            snprintf(name, sizeof name, "blk.%d.ffn_%s.%d.weight", layer, part, e);
            status = bind_matrix(b, name, cols, rows, &w[e]);
        }
        return status;
    }
    snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight", layer, part);
    t = take(b, name, cols, rows, n);
    if (!t)
        return MX_CORRUPT;
    for (int e = 0; e < n; e++) {
        size_t row_bytes = mx_row_bytes(t->type, cols);

        w[e] = (mx_weight){t->type, MX_LAYOUT_FILE, rows, cols, row_bytes, t->data + (size_t)e * (size_t)rows * row_bytes};
    }
    return MX_OK;
}

static mx_status bind_layer(binder *b, int i, mx_layer *layer)
{
    const mx_hparams *h = &b->model->hparams;
    int q_dim = h->n_heads * h->head_dim, kv_dim = h->n_kv_heads * h->head_dim;
    char name[64];
    mx_status status;

    if ((status = copy_floats(b, layer_name(name, i, "attn_norm"), h->dim, 1, &layer->attn_norm)) != MX_OK ||
        (status = bind_matrix(b, layer_name(name, i, "attn_q"), h->dim, q_dim, &layer->q)) != MX_OK ||
        (status = bind_matrix(b, layer_name(name, i, "attn_k"), h->dim, kv_dim, &layer->k)) != MX_OK ||
        (status = bind_matrix(b, layer_name(name, i, "attn_v"), h->dim, kv_dim, &layer->v)) != MX_OK ||
        (status = bind_matrix(b, layer_name(name, i, "attn_output"), q_dim, h->dim, &layer->o)) != MX_OK ||
        (status = copy_floats(b, layer_name(name, i, "ffn_norm"), h->dim, 1, &layer->ffn_norm)) != MX_OK)
        return status;
    if (b->model->expert_layout != MX_EXPERTS_NONE) {
        status = copy_floats(b, layer_name(name, i, "ffn_gate_inp"), h->dim, h->n_experts, &layer->router);
        if (status != MX_OK)
            return status;
    }
    if ((status = bind_experts(b, i, "gate", h->dim, h->n_ff, &layer->gate)) != MX_OK ||
        (status = bind_experts(b, i, "up", h->dim, h->n_ff, &layer->up)) != MX_OK)
        return status;
    return bind_experts(b, i, "down", h->n_ff, h->dim, &layer->down);
}

static mx_status bind_rope_factors(binder *b)
{
    const char *name = "rope_freqs.weight";
    int n = b->model->hparams.rope_dim / 2;
    mx_status status;

    if (!mx_gguf_tensor_find(b->model->gguf, name))
        return MX_OK;
    if ((status = copy_floats(b, name, n, 1, &b->model->rope_factors)) != MX_OK)
        return status;
    for (int i = 0; i < n; i++)
        if (!(b->model->rope_factors[i] > 0))
            return mx_fail(b->error, MX_CORRUPT, name, "tensor %s: expected values above 0, got %g at %d", name,
                           (double)b->model->rope_factors[i], i);
    return MX_OK;
}

static mx_status bind_tensors(binder *b, bool mixture)
{
    mx_model *model = b->model;
    const mx_hparams *h = &model->hparams;
    mx_status status;

    if (mixture)
        model->expert_layout = mx_gguf_tensor_find(model->gguf, "blk.0.ffn_gate_exps.weight") ||
                                       !mx_gguf_tensor_find(model->gguf, "blk.0.ffn_gate.0.weight")
                                   ? MX_EXPERTS_MERGED
                                   : MX_EXPERTS_SEPARATE;
    if ((status = bind_matrix(b, "token_embd.weight", h->dim, h->n_vocab, &model->embedding)) != MX_OK ||
        (status = copy_floats(b, "output_norm.weight", h->dim, 1, &model->output_norm)) != MX_OK ||
        (status = bind_rope_factors(b)) != MX_OK)
        return status;
    model->output = model->embedding;
    if (mx_gguf_tensor_find(model->gguf, "output.weight") &&
        (status = bind_matrix(b, "output.weight", h->dim, h->n_vocab, &model->output)) != MX_OK)
        return status;
    model->layers = own(model, (size_t)h->n_layers * sizeof *model->layers, b->error);
    if (!model->layers)
        return MX_NOMEM;
    for (int i = 0; i < h->n_layers; i++)
        if ((status = bind_layer(b, i, &model->layers[i])) != MX_OK)
            return status;
    return MX_OK;
}

static mx_status check_all_used(const binder *b)
{
    for (size_t i = 0; i < mx_gguf_n_tensors(b->model->gguf); i++)
        if (!b->used[i]) {
            mx_str name = mx_gguf_tensor_at(b->model->gguf, i)->name;
            char text[128];

            snprintf(text, sizeof text, "%.*s", (int)name.bytes, name.data);
            return mx_fail(b->error, MX_INVALID, text, "tensor %s: has no place in this model, and leaving it out would change "
                           "what the model says", text);
        }
    return MX_OK;
}

/* ---- The whole ----------------------------------------------------------------------------------------------------- */

static mx_status set_name(mx_model *model, const char *path, mx_error *error)
{
    mx_str name = {"", 0};
    mx_status status = mx_gguf_get_string(model->gguf, "general.name", &name, NULL, error);
    int n;

    if (status != MX_OK)
        return status;
    if (name.bytes == 0 || name.data[0] == '\0')
        name = (mx_str){basename(path), strlen(basename(path))};
    n = snprintf(model->name, sizeof model->name, "%.*s", (int)(name.bytes < 1024 ? name.bytes : 1024), name.data);
    mx_line_clean(model->name, n >= (int)sizeof model->name);
    return MX_OK;
}

static mx_status load(mx_model *model, const char *path, mx_error *error)
{
    binder b = {.model = model, .error = error};
    bool mixture = false;
    mx_status status;

    if ((status = set_name(model, path, error)) != MX_OK ||
        (status = read_hparams(model->gguf, &model->hparams, &mixture, error)) != MX_OK)
        return status;
    b.used = calloc(mx_gguf_n_tensors(model->gguf), sizeof *b.used);
    if (!b.used)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu tensors", mx_gguf_n_tensors(model->gguf));
    if ((status = bind_tensors(&b, mixture)) == MX_OK && (status = check_all_used(&b)) == MX_OK)
        status = mx_gguf_identity(model->gguf, model->identity, error);
    free(b.used);
    return status;
}

mx_status mx_model_open(const char *path, mx_model **out, mx_error *error)
{
    mx_model *model = calloc(1, sizeof *model);
    mx_error why;
    mx_status status;

    *out = NULL;
    if (!model)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory");
    if ((status = mx_gguf_open(path, &model->gguf, error)) != MX_OK)
        goto failed;
    if ((status = load(model, path, &why)) != MX_OK) {
        mx_fail(error, status, why.field, "%s: %s", basename(path), why.text);
        goto failed;
    }
    *out = model;
    return MX_OK;
failed:
    mx_model_close(model);
    return status;
}

void mx_model_close(mx_model *model)
{
    if (!model)
        return;
    for (chunk *c = model->owned; c;) {
        chunk *next = c->next;

        free(c);
        c = next;
    }
    mx_gguf_close(model->gguf);
    free(model);
}

size_t mx_model_weight_bytes(const mx_model *model)
{
    size_t bytes = 0;

    for (size_t i = 0; i < mx_gguf_n_tensors(model->gguf); i++)
        bytes += mx_gguf_tensor_at(model->gguf, i)->bytes;
    return bytes;
}
