/*
 * forward_reference.h: the forward pass of one sequence in double, a token at a time: short enough to be seen to be right.
 *
 *     x = embedding[token]
 *     for each layer:
 *         x += O . attention(norm(x))
 *         x += sum over the best experts of weight * down . (silu(gate . norm(x)) * (up . norm(x)))
 *     logits = output . norm(x)
 *
 * Keys and values are rounded to f16, as the engine keeps them.
 */
#ifndef MX_TESTS_FORWARD_REFERENCE_H
#define MX_TESTS_FORWARD_REFERENCE_H

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "model/weights.h"

enum { WIDTH_MAX = 512, EXPERTS_MAX = 16, POSITIONS_MAX = 128, LAYERS_MAX = 4 };

typedef struct { /* [layer][position][kv_heads * head_dim] */
    double k[LAYERS_MAX][POSITIONS_MAX][WIDTH_MAX], v[LAYERS_MAX][POSITIONS_MAX][WIDTH_MAX];
} reference_memory;

/* y = w . x */
static inline void reference_multiply(const mx_weight *w, const double *x, double *y)
{
    float row[WIDTH_MAX];

    for (int r = 0; r < w->rows; r++) {
        mx_dequantize(w->type, w->data + (size_t)r * w->row_bytes, row, (size_t)w->cols);
        y[r] = 0;
        for (int c = 0; c < w->cols; c++)
            y[r] += (double)row[c] * x[c];
    }
}

static inline void reference_norm(const mx_hparams *h, const double *x, const float *weight, double *y)
{
    double square = 0;

    for (int i = 0; i < h->dim; i++)
        square += x[i] * x[i];
    for (int i = 0; i < h->dim; i++)
        y[i] = x[i] / sqrt(square / h->dim + (double)h->norm_eps) * (double)weight[i];
}

/* Pairs (2i, 2i + 1) of each head turn by position / scale * base^(-2i / dim) / factor[i]. */
static inline void reference_rotate(const mx_model *m, double *x, int n_heads, int position)
{
    const mx_hparams *h = &m->hparams;

    for (int head = 0; head < n_heads; head++)
        for (int i = 0; i < h->rope_dim / 2; i++) {
            double factor = m->rope_factors ? (double)m->rope_factors[i] : 1;
            double angle = position / h->rope_scale * pow(h->rope_base, -2.0 * i / h->rope_dim) / factor;
            double *pair = x + head * h->head_dim + 2 * i, a = pair[0], b = pair[1];

            pair[0] = a * cos(angle) - b * sin(angle);
            pair[1] = a * sin(angle) + b * cos(angle);
        }
}

/* out = softmax(q . k / sqrt(head_dim)) . v, for each head over its KV head's keys 0 .. position */
static inline void reference_attend(const mx_hparams *h, const double *q, double k[][WIDTH_MAX], double v[][WIDTH_MAX],
                                    int position, double *out)
{
    for (int head = 0; head < h->n_heads; head++) {
        int kv = head / (h->n_heads / h->n_kv_heads) * h->head_dim, at = head * h->head_dim;
        double score[POSITIONS_MAX], largest = -INFINITY, total = 0;

        for (int p = 0; p <= position; p++) {
            score[p] = 0;
            for (int i = 0; i < h->head_dim; i++)
                score[p] += q[at + i] * k[p][kv + i] / sqrt(h->head_dim);
            largest = fmax(largest, score[p]);
        }
        memset(out + at, 0, sizeof *out * (size_t)h->head_dim);
        for (int p = 0; p <= position; p++)
            total += score[p] = exp(score[p] - largest);
        for (int p = 0; p <= position; p++)
            for (int i = 0; i < h->head_dim; i++)
                out[at + i] += score[p] / total * v[p][kv + i];
    }
}

/* The experts' weights: softmax over the scores of the best `used`, 0 for all others. Ties go to the lower index. */
static inline void reference_route(const mx_hparams *h, const mx_layer *layer, const double *x, double *weight)
{
    double score[EXPERTS_MAX] = {0}, total = 0;

    for (int e = 0; e < h->n_experts && layer->router; e++)
        for (int i = 0; i < h->dim; i++)
            score[e] += (double)layer->router[e * h->dim + i] * x[i];
    for (int e = 0; e < h->n_experts; e++) {
        int better = 0;

        for (int other = 0; other < h->n_experts; other++)
            better += score[other] > score[e] || (score[other] == score[e] && other < e);
        weight[e] = better < h->n_experts_used ? exp(score[e]) : 0;
        total += weight[e];
    }
    for (int e = 0; e < h->n_experts; e++)
        weight[e] /= total;
}

static inline void reference_layer(const mx_model *m, const mx_layer *layer, double k[][WIDTH_MAX], double v[][WIDTH_MAX],
                                   int position, double *x)
{
    const mx_hparams *h = &m->hparams;
    double normed[WIDTH_MAX], q[WIDTH_MAX], out[WIDTH_MAX], gate[WIDTH_MAX], up[WIDTH_MAX], weight[EXPERTS_MAX];

    reference_norm(h, x, layer->attn_norm, normed);
    reference_multiply(&layer->q, normed, q);
    reference_multiply(&layer->k, normed, k[position]);
    reference_multiply(&layer->v, normed, v[position]);
    reference_rotate(m, q, h->n_heads, position);
    reference_rotate(m, k[position], h->n_kv_heads, position);
    for (int i = 0; i < h->n_kv_heads * h->head_dim; i++) {
        k[position][i] = (double)mx_f16_to_f32(mx_f32_to_f16((float)k[position][i]));
        v[position][i] = (double)mx_f16_to_f32(mx_f32_to_f16((float)v[position][i]));
    }
    reference_attend(h, q, k, v, position, out);
    reference_multiply(&layer->o, out, normed);
    for (int i = 0; i < h->dim; i++)
        x[i] += normed[i];

    reference_norm(h, x, layer->ffn_norm, normed);
    reference_route(h, layer, normed, weight);
    for (int e = 0; e < h->n_experts; e++) {
        reference_multiply(&layer->gate[e], normed, gate);
        reference_multiply(&layer->up[e], normed, up);
        for (int i = 0; i < h->n_ff; i++)
            gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        reference_multiply(&layer->down[e], gate, out);
        for (int i = 0; i < h->dim; i++)
            x[i] += weight[e] * out[i];
    }
}

/* logits [n, n_vocab] of a sequence. */
static inline void reference_logits(const mx_model *m, const int32_t *token, int n, double *logits)
{
    const mx_hparams *h = &m->hparams;
    reference_memory *memory = calloc(1, sizeof *memory);
    double x[WIDTH_MAX], normed[WIDTH_MAX];
    float embedding[WIDTH_MAX];

    for (int position = 0; position < n; position++) {
        mx_dequantize(m->embedding.type, m->embedding.data + (size_t)token[position] * m->embedding.row_bytes, embedding,
                      (size_t)h->dim);
        for (int i = 0; i < h->dim; i++)
            x[i] = (double)embedding[i];
        for (int layer = 0; layer < h->n_layers; layer++)
            reference_layer(m, &m->layers[layer], memory->k[layer], memory->v[layer], position, x);
        reference_norm(h, x, m->output_norm, normed);
        reference_multiply(&m->output, normed, logits + (size_t)position * (size_t)h->n_vocab);
    }
    free(memory);
}

#endif
