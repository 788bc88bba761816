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

typedef struct {
    float *keys;   /* [head_dim][MX_KV_SPAN] */
    float *values; /* [MX_KV_SPAN][padded]   */
    float *out;    /* [n_queries + 1][padded] sums so far */
    float *query;  /* [n_queries + 1][head_dim] scaled */
    int padded;    /* head_dim rounded up to CHUNK */
    float largest[MX_ATTENTION_QUERIES + 1], total[MX_ATTENTION_QUERIES + 1];
} attention_state;

static void load_span(const mx_attention *a, int span, attention_state *s)
{
    size_t block = (size_t)a->block[span] * a->block_bytes;
    const uint16_t *k = (const uint16_t *)(const void *)(a->k + block);
    const uint16_t *v = (const uint16_t *)(const void *)(a->v + block);

    for (int i = 0; i < a->head_dim * MX_KV_SPAN; i += VF_N)
        vf_store(s->keys + i, vf_load_half(k + i));
    for (int j = 0; j < MX_KV_SPAN; j++)
        floats_f16(v + j * a->head_dim, a->head_dim, s->values + j * s->padded);
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

/* A token's key and value for one head into its slot: the key as a column, the value as a row. */
static void store_kv(const float *k, const float *v, int head_dim, int slot, uint8_t *k_block, uint8_t *v_block)
{
    uint16_t *keys = (uint16_t *)(void *)k_block, *values = (uint16_t *)(void *)v_block;
    int d = 0;

    for (; d + VF_N <= head_dim; d += VF_N) {
        uint16_t column[VF_N];

        vf_store_half(column, vf_load(k + d));
        for (int i = 0; i < VF_N; i++)
            keys[(d + i) * MX_KV_SPAN + slot] = column[i];
        vf_store_half(values + slot * head_dim + d, vf_load(v + d));
    }
    for (; d < head_dim; d++) {
        keys[d * MX_KV_SPAN + slot] = mx_f32_to_f16(k[d]);
        values[slot * head_dim + d] = mx_f32_to_f16(v[d]);
    }
}

#endif
