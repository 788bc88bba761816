/*
 * attention_kernel.h: attention of a few queries over one KV head, over the vector primitives of the including kernels_*.c.
 *
 * Keys are taken in spans of MX_KV_SPAN from position 0 on, with a running maximum and sum for each query (Milakov and
 * Gimelshein 2018, "Online normalizer calculation for softmax"). A span's keys lie transposed, so that scores and values
 * are both sums of outer products and nothing is added across lanes but the span's own sum. Every query's result comes
 * from the same operations in the same order, whatever other queries share the call.
 */
#ifndef MX_MATH_ATTENTION_KERNEL_H
#define MX_MATH_ATTENTION_KERNEL_H

enum {
    SPAN_VECTORS = MX_KV_SPAN / VF_N,
    QUERY_TILE = 2,
    CHUNK = MX_KV_SPAN / VF_N * VF_N, /* dimensions of a value summed at a time */
};

_Static_assert(((2 * MX_KV_SPAN + 2 * (MX_ATTENTION_QUERIES + 1)) * MX_HEAD_DIM_MAX) * sizeof(float) <= MX_SCRATCH_BYTES,
               "the scratch is too small");
_Static_assert(MX_KV_GROUP == MX_GROUP, "q8_0 keys and values are rounded as activations are");

typedef struct {
    float *keys;   /* [head_dim][MX_KV_SPAN] */
    float *values; /* [MX_KV_SPAN][padded]   */
    float *out;    /* [n_queries + 1][padded] sums so far */
    float *query;  /* [n_queries + 1][head_dim] scaled */
    int padded;    /* head_dim rounded up to CHUNK */
    float largest[MX_ATTENTION_QUERIES + 1], total[MX_ATTENTION_QUERIES + 1];
} attention_state;

ALWAYS_INLINE void load_16_bit(const uint8_t *k, const uint8_t *v, int head_dim, float_decoder decode, attention_state *s)
{
    decode(k, head_dim * MX_KV_SPAN, s->keys);
    for (int j = 0; j < MX_KV_SPAN; j++)
        decode(v + (size_t)(j * head_dim) * sizeof(uint16_t), head_dim, s->values + j * s->padded);
}

/* out[i] = q[i] * scale, for a group */
ALWAYS_INLINE void scale_group(const int8_t *q, VF scale, float *out)
{
    for (int i = 0; i < MX_KV_GROUP; i += VF_N)
        vf_store(out + i, vf_mul(vf_load_bytes(q + i), scale));
}

static void load_q8_0(const uint8_t *k, const uint8_t *v, int head_dim, attention_state *s)
{
    const int8_t *keys = (const int8_t *)k, *values = (const int8_t *)v;
    float scales[MX_HEAD_DIM_MAX / MX_KV_GROUP * MX_KV_SPAN];
    int groups = head_dim / MX_KV_GROUP;

    floats_f16(k + head_dim * MX_KV_SPAN, groups * MX_KV_SPAN, scales);
    for (int d = 0; d < head_dim; d++)
        for (int j = 0; j < MX_KV_SPAN; j += VF_N)
            vf_store(s->keys + d * MX_KV_SPAN + j, vf_mul(vf_load_bytes(keys + d * MX_KV_SPAN + j),
                                                          vf_load(scales + d / MX_KV_GROUP * MX_KV_SPAN + j)));
    floats_f16(v + head_dim * MX_KV_SPAN, groups * MX_KV_SPAN, scales);
    for (int j = 0; j < MX_KV_SPAN; j++)
        for (int g = 0; g < groups; g++)
            scale_group(values + j * head_dim + g * MX_KV_GROUP, vf_set(scales[j * groups + g]),
                        s->values + j * s->padded + g * MX_KV_GROUP);
}

static void load_span(const mx_attention *a, int span, attention_state *s)
{
    size_t block = (size_t)a->block[span] * a->block_bytes;

    if (a->type == MX_KV_Q8_0)
        load_q8_0(a->k + block, a->v + block, a->head_dim, s);
    else if (a->type == MX_KV_BF16)
        load_16_bit(a->k + block, a->v + block, a->head_dim, floats_bf16, s);
    else
        load_16_bit(a->k + block, a->v + block, a->head_dim, floats_f16, s);
}

/* scores[i][key] = query i . key, for QUERY_TILE queries from `first` on */
ALWAYS_INLINE void score_span(const attention_state *s, int head_dim, int first, float scores[QUERY_TILE][MX_KV_SPAN])
{
    const float *q[QUERY_TILE];
    VF acc[QUERY_TILE][SPAN_VECTORS];

    for (int i = 0; i < QUERY_TILE; i++) {
        q[i] = s->query + (first + i) * head_dim;
        for (int v = 0; v < SPAN_VECTORS; v++)
            acc[i][v] = vf_set(0);
    }
    for (int d = 0; d < head_dim; d++)
        for (int i = 0; i < QUERY_TILE; i++)
            for (int v = 0; v < SPAN_VECTORS; v++)
                acc[i][v] = vf_fma(vf_set(q[i][d]), vf_load(s->keys + d * MX_KV_SPAN + v * VF_N), acc[i][v]);
    for (int i = 0; i < QUERY_TILE; i++)
        for (int v = 0; v < SPAN_VECTORS; v++)
            vf_store(&scores[i][v * VF_N], acc[i][v]);
}

/* Turns the first `n` scores into weights relative to the largest so far, the rest into 0; the factor for what was summed before. */
static float weigh_span(attention_state *s, int query, int n, float scores[MX_KV_SPAN])
{
    float largest = s->largest[query], total = 0, factor;

    for (int j = 0; j < n; j++)
        largest = scores[j] > largest ? scores[j] : largest;
    for (int j = 0; j < MX_KV_SPAN; j += VF_N)
        vf_store(scores + j, vf_exp(vf_sub(vf_load(scores + j), vf_set(largest))));
    for (int j = n; j < MX_KV_SPAN; j++)
        scores[j] = 0;
    for (int j = 0; j < MX_KV_SPAN; j++)
        total += scores[j];
    factor = expf(s->largest[query] - largest); /* 0 for the first span: -inf */
    s->largest[query] = largest;
    s->total[query] = s->total[query] * factor + total;
    return factor;
}

/* out[query] = out[query] * factor + sum of the first n values, weighted */
ALWAYS_INLINE void add_values(const attention_state *s, int query, int n, const float weights[MX_KV_SPAN], float factor)
{
    for (int d = 0; d < s->padded; d += CHUNK) {
        float *out = s->out + query * s->padded + d;
        VF acc[SPAN_VECTORS];

        for (int v = 0; v < SPAN_VECTORS; v++)
            acc[v] = vf_mul(vf_load(out + v * VF_N), vf_set(factor));
        for (int j = 0; j < n; j++)
            for (int v = 0; v < SPAN_VECTORS; v++)
                acc[v] = vf_fma(vf_set(weights[j]), vf_load(s->values + j * s->padded + d + v * VF_N), acc[v]);
        for (int v = 0; v < SPAN_VECTORS; v++)
            vf_store(out + v * VF_N, acc[v]);
    }
}

static void attention(const mx_attention *a)
{
    attention_state s = {.padded = (a->head_dim + CHUNK - 1) / CHUNK * CHUNK};
    float *memory = a->scratch, scale = 1 / sqrtf((float)a->head_dim);
    int last = 0;

    s.keys = memory;
    s.values = s.keys + a->head_dim * MX_KV_SPAN;
    s.out = s.values + MX_KV_SPAN * s.padded;
    s.query = s.out + (a->n_queries + 1) * s.padded;
    memset(s.values, 0, sizeof(float) * (size_t)((MX_KV_SPAN + a->n_queries + 1) * s.padded));
    memset(s.query + a->n_queries * a->head_dim, 0, sizeof(float) * (size_t)a->head_dim);
    for (int i = 0; i < a->n_queries; i++) {
        for (int d = 0; d < a->head_dim; d++)
            s.query[i * a->head_dim + d] = a->q[i][d] * scale;
        s.largest[i] = -INFINITY;
        s.total[i] = 0;
        last = a->position[i] > last ? a->position[i] : last;
    }
    for (int span = 0; span <= last / MX_KV_SPAN; span++) {
        load_span(a, span, &s);
        for (int first = 0; first < a->n_queries; first += QUERY_TILE) {
            float scores[QUERY_TILE][MX_KV_SPAN];

            score_span(&s, a->head_dim, first, scores);
            for (int i = first; i < first + QUERY_TILE && i < a->n_queries; i++) {
                int n = a->position[i] + 1 - span * MX_KV_SPAN;

                if (n <= 0)
                    continue;
                n = n < MX_KV_SPAN ? n : MX_KV_SPAN;
                add_values(&s, i, n, scores[i - first], weigh_span(&s, i, n, scores[i - first]));
            }
        }
    }
    for (int i = 0; i < a->n_queries; i++)
        for (int d = 0; d < a->head_dim; d++)
            a->out[i][d] = s.out[i * s.padded + d] / s.total[i];
}

/* ---- Storing: the key as a column, the value as a row --------------------------------------------------------------- */

static void halves_f16(const float *x, int n, uint16_t *out)
{
    int i = 0;

    for (; i + VF_N <= n; i += VF_N)
        vf_store_half(out + i, vf_load(x + i));
    for (; i < n; i++)
        out[i] = mx_f32_to_f16(x[i]);
}

/* To nearest even; a NaN stays one. */
static void halves_bf16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i++) {
        uint32_t bits;

        memcpy(&bits, x + i, 4);
        out[i] = (uint16_t)(x[i] == x[i] ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
    }
}

ALWAYS_INLINE void store_16_bit(const float *k, const float *v, int head_dim, int slot, uint8_t *k_half, uint8_t *v_half,
                                void (*encode)(const float *x, int n, uint16_t *out))
{
    uint16_t *keys = (uint16_t *)(void *)k_half, *values = (uint16_t *)(void *)v_half, column[MX_HEAD_DIM_MAX];

    encode(k, head_dim, column);
    for (int d = 0; d < head_dim; d++)
        keys[d * MX_KV_SPAN + slot] = column[d];
    encode(v, head_dim, values + slot * head_dim);
}

static void store_q8_0(const float *k, const float *v, int head_dim, int slot, uint8_t *k_half, uint8_t *v_half)
{
    int8_t *keys = (int8_t *)k_half, *values = (int8_t *)v_half;
    uint16_t *key_scales = (uint16_t *)(void *)(k_half + head_dim * MX_KV_SPAN);
    uint16_t *value_scales = (uint16_t *)(void *)(v_half + head_dim * MX_KV_SPAN);
    int groups = head_dim / MX_KV_GROUP;

    for (int g = 0; g < groups; g++) {
        int8_t column[MX_KV_GROUP];
        float scale, unused_sums[2];

        quantize_group(k + g * MX_KV_GROUP, column, &scale, unused_sums);
        key_scales[g * MX_KV_SPAN + slot] = mx_f32_to_f16(scale);
        for (int d = 0; d < MX_KV_GROUP; d++)
            keys[(g * MX_KV_GROUP + d) * MX_KV_SPAN + slot] = column[d];
        quantize_group(v + g * MX_KV_GROUP, values + slot * head_dim + g * MX_KV_GROUP, &scale, unused_sums);
        value_scales[slot * groups + g] = mx_f32_to_f16(scale);
    }
}

static void store_kv(mx_kv_type type, const float *k, const float *v, int head_dim, int slot, uint8_t *k_half, uint8_t *v_half)
{
    if (type == MX_KV_Q8_0)
        store_q8_0(k, v, head_dim, slot, k_half, v_half);
    else if (type == MX_KV_BF16)
        store_16_bit(k, v, head_dim, slot, k_half, v_half, halves_bf16);
    else
        store_16_bit(k, v, head_dim, slot, k_half, v_half, halves_f16);
}

#endif
