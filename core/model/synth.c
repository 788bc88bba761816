/*
 * synth.c: the keys and tensors of a made-up model, written as they are made: memory does not grow with the model.
 *
 * The list of tensors is walked twice by the same function: once to declare them, once to write them.
 */
#include "synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"

#define PIECE_BYTES ((size_t)1 << 20) /* made and written at a time */

typedef struct {
    const mx_synth_options *options;
    int head_dim, n_vocab;
    mx_gguf_writer *writer;
    bool writing;    /* or declaring */
    uint8_t *piece;  /* [PIECE_BYTES + a row] */
    mx_status status;
    mx_error *error;
} synth;

mx_synth_options mx_synth_defaults(void)
{
    return (mx_synth_options){
        .layers = 4,
        .dim = 4096,
        .ff = 14336,
        .heads = 32,
        .kv_heads = 8,
        .experts = 8,
        .experts_used = 2,
        .context = 32768,
        .type = MX_TYPE_Q4_K,
        .embedding_type = -1,
        .output_type = -1,
        .router_type = -1,
        .layout = MX_EXPERTS_MERGED,
        .rope_base = 1e6,
        .seed = 1,
    };
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------- */

/* The random state with which a matrix begins: of the seed, the stream's name and the expert's number. */
static uint64_t stream(uint64_t seed, const char *name, int expert)
{
    uint64_t state = seed;

    for (; *name; name++)
        state = mx_synth_random(&state) ^ (uint8_t)*name;
    state = mx_synth_random(&state) ^ (uint64_t)expert;
    return mx_synth_random(&state);
}

/* A tensor's dimensions, and what it is made of: `experts` matrices of rows x cols, the first with number `expert`. */
typedef struct {
    mx_type type;
    int cols, rows, experts, expert;
    bool norm; /* around 1 */
} matrix;

static void write_norm(synth *s, uint64_t state, int n)
{
    for (int i = 0; i < n; i++) {
        float x = 0.8f + (float)(mx_synth_random(&state) >> 40) * 0x1p-24f * 0.4f;

        mx_gguf_write_data(s->writer, &x, sizeof x);
    }
}

static void write_matrix(synth *s, const matrix *m, uint64_t state)
{
    size_t row_bytes = mx_row_bytes(m->type, m->cols);
    int step = (int)(PIECE_BYTES / row_bytes) + 1; /* rows at a time */
    float deviation = 1 / sqrtf((float)m->cols);

    for (int row = 0; row < m->rows && !mx_gguf_writer_failed(s->writer); row += step) {
        int n = m->rows - row < step ? m->rows - row : step;

        mx_synth_weights(m->type, &state, deviation, s->piece, (size_t)n * (size_t)m->cols);
        mx_gguf_write_data(s->writer, s->piece, (size_t)n * row_bytes);
    }
}

/* `name` is the file's; `stream_name` says which random numbers. */
static void put(synth *s, const char *name, const char *stream_name, matrix m)
{
    int block = mx_type_get(m.type)->block_size;
    int64_t dims[3] = {m.cols, m.rows, m.experts};

    if (s->status != MX_OK)
        return;
    if (m.cols % block != 0) {
        s->status = mx_fail(s->error, MX_INVALID, "type", "%s: type %s needs rows of a multiple of %d weights, got %d", name,
                            mx_type_get(m.type)->name, block, m.cols);
    } else if (!s->writing) {
        mx_gguf_put_tensor(s->writer, name, m.type, m.norm ? 1 : m.experts > 0 ? 3 : 2, dims);
    } else if (m.norm) {
        write_norm(s, stream(s->options->seed, stream_name, 0), m.cols);
    } else {
        for (int e = 0; e < (m.experts > 0 ? m.experts : 1); e++)
            write_matrix(s, &m, stream(s->options->seed, stream_name, m.expert + e));
    }
}

static void put_norm(synth *s, const char *name)
{
    put(s, name, name, (matrix){.type = MX_TYPE_F32, .cols = s->options->dim, .rows = 1, .norm = true});
}

/* One of gate, up, down of a layer, in the layout that was asked for */
static void put_experts(synth *s, int layer, const char *part, int cols, int rows)
{
    const mx_synth_options *o = s->options;
    matrix m = {.type = o->type, .cols = cols, .rows = rows};
    char name[96], stream_name[64];

    snprintf(stream_name, sizeof stream_name, "blk.%d.ffn_%s", layer, part);
    if (o->layout == MX_EXPERTS_NONE) {
        snprintf(name, sizeof name, "%s.weight", stream_name);
        put(s, name, stream_name, m);
    } else if (o->layout == MX_EXPERTS_MERGED) {
        snprintf(name, sizeof name, "%s_exps.weight", stream_name);
        m.experts = o->experts;
        put(s, name, stream_name, m);
    } else {
        for (m.expert = 0; m.expert < o->experts; m.expert++) {
            snprintf(name, sizeof name, "%s.%d.weight", stream_name, m.expert);
            put(s, name, stream_name, m);
        }
    }
}

static void put_layer(synth *s, int i)
{
    const mx_synth_options *o = s->options;
    int q_dim = o->heads * s->head_dim, kv_dim = o->kv_heads * s->head_dim;
    const struct {
        const char *part;
        mx_type type;
        int cols, rows; /* 0: a norm */
    } parts[] = {
        {"attn_norm", MX_TYPE_F32, o->dim, 0},   {"attn_q", o->type, o->dim, q_dim}, {"attn_k", o->type, o->dim, kv_dim},
        {"attn_v", o->type, o->dim, kv_dim},     {"attn_output", o->type, q_dim, o->dim},
        {"ffn_norm", MX_TYPE_F32, o->dim, 0},
        {"ffn_gate_inp", o->router_type < 0 ? MX_TYPE_F16 : (mx_type)o->router_type, o->dim, o->experts},
    };
    size_t n = sizeof parts / sizeof parts[0] - (o->layout == MX_EXPERTS_NONE); /* the router is last */
    char name[64];

    for (size_t p = 0; p < n; p++) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", i, parts[p].part);
        if (parts[p].rows == 0)
            put_norm(s, name);
        else
            put(s, name, name, (matrix){.type = parts[p].type, .cols = parts[p].cols, .rows = parts[p].rows});
    }
    put_experts(s, i, "gate", o->dim, o->ff);
    put_experts(s, i, "up", o->dim, o->ff);
    put_experts(s, i, "down", o->ff, o->dim);
}

static void put_tensors(synth *s)
{
    const mx_synth_options *o = s->options;
    matrix vocab = {.type = o->type, .cols = o->dim, .rows = s->n_vocab};

    if (o->embedding_type >= 0)
        vocab.type = (mx_type)o->embedding_type;
    put(s, "token_embd.weight", "token_embd", vocab);
    put_norm(s, "output_norm.weight");
    vocab.type = o->output_type < 0 ? o->type : (mx_type)o->output_type;
    if (!o->tied)
        put(s, "output.weight", "output", vocab);
    for (int i = 0; i < o->layers; i++)
        put_layer(s, i);
}

/* ---- Keys ---------------------------------------------------------------------------------------------------------- */

static mx_status check(const mx_synth_options *o, mx_error *error)
{
    const struct {
        const char *name;
        int value, min, max;
    } ranges[] = {
        {"layers", o->layers, 1, 1024},       {"dim", o->dim, 2, 65536},
        {"ff", o->ff, 1, 1 << 20},            {"heads", o->heads, 1, 1024},
        {"kv_heads", o->kv_heads, 1, 1024},   {"head_dim", o->head_dim, 0, MX_HEAD_DIM_MAX},
        {"experts", o->experts, 1, 1024},     {"experts_used", o->experts_used, 1, o->experts},
        {"context", o->context, 1, 1 << 24},
    };

    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return mx_fail(error, MX_INVALID, ranges[i].name, "%s: expected %d to %d, got %d", ranges[i].name, ranges[i].min,
                           ranges[i].max, ranges[i].value);
    if (o->heads % o->kv_heads != 0)
        return mx_fail(error, MX_INVALID, "kv_heads", "kv_heads: expected a divisor of %d heads, got %d", o->heads,
                       o->kv_heads);
    if (o->head_dim == 0 && o->dim % o->heads != 0)
        return mx_fail(error, MX_INVALID, "heads", "heads: expected a divisor of dim %d, got %d", o->dim, o->heads);
    if (!(o->rope_base > 0 && o->rope_base <= 1e12))
        return mx_fail(error, MX_INVALID, "rope_base", "rope_base: expected a number above 0 and at most 1e12, got %g",
                       o->rope_base);
    return MX_OK;
}

static void put_keys(synth *s)
{
    const mx_synth_options *o = s->options;
    mx_gguf_writer *w = s->writer;
    const struct {
        const char *key;
        int value; /* 0: not written */
    } ints[] = {
        {"llama.block_count", o->layers},
        {"llama.context_length", o->context},
        {"llama.embedding_length", o->dim},
        {"llama.feed_forward_length", o->ff},
        {"llama.attention.head_count", o->heads},
        {"llama.attention.head_count_kv", o->kv_heads},
        {"llama.attention.key_length", o->head_dim},
        {"llama.attention.value_length", o->head_dim},
        {"llama.rope.dimension_count", s->head_dim},
        {"llama.vocab_size", s->n_vocab},
        {"llama.expert_count", o->layout == MX_EXPERTS_NONE ? 0 : o->experts},
        {"llama.expert_used_count", o->layout == MX_EXPERTS_NONE ? 0 : o->experts_used},
    };

    mx_gguf_put_text(w, "general.architecture", "llama");
    mx_gguf_put_text(w, "general.name", "synthetic");
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++)
        if (ints[i].value != 0)
            mx_gguf_put_int(w, ints[i].key, MX_GGUF_UINT32, ints[i].value);
    mx_gguf_put_float(w, "llama.rope.freq_base", MX_GGUF_FLOAT32, o->rope_base);
    mx_gguf_put_float(w, "llama.attention.layer_norm_rms_epsilon", MX_GGUF_FLOAT32, 1e-5);
}

/* ---- The whole ----------------------------------------------------------------------------------------------------- */

mx_status mx_synth_model(const char *path, const mx_synth_options *options, mx_error *error)
{
    synth s = {.options = options, .error = error, .n_vocab = options->vocab_size};
    int widest = options->dim > options->ff ? options->dim : options->ff;
    mx_status status;

    if ((status = check(options, error)) != MX_OK)
        return status;
    s.head_dim = options->head_dim > 0 ? options->head_dim : options->dim / options->heads;
    if (s.head_dim < 2 || s.head_dim % 2 != 0 || s.head_dim > MX_HEAD_DIM_MAX || options->heads * s.head_dim > 65536)
        return mx_fail(error, MX_INVALID, "head_dim", "head_dim: expected an even number from 2 to %d, and at most 65536 for "
                       "all heads together, got %d of %d", MX_HEAD_DIM_MAX, options->heads, s.head_dim);
    widest = options->heads * s.head_dim > widest ? options->heads * s.head_dim : widest;
    s.piece = malloc(PIECE_BYTES + (size_t)widest * sizeof(float));
    if (!s.piece)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory");
    if ((status = mx_gguf_writer_open(path, &s.writer, error)) != MX_OK ||
        (status = mx_synth_vocab(s.writer, options->vocab, &s.n_vocab, error)) != MX_OK)
        goto done;
    put_keys(&s);
    put_tensors(&s);
    if ((status = s.status) != MX_OK)
        goto done;
    s.writing = true;
    put_tensors(&s);
    status = mx_gguf_writer_commit(s.writer, error);
done:
    mx_gguf_writer_close(s.writer);
    free(s.piece);
    return status;
}
