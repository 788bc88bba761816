/*
 * products.h: the dot and the panel product of every type, over the vector primitives of the including file.
 *
 * Included once by each kernels_*.c, after product_types.h and after it has defined
 *     VF, VF_N, vf_*                 a vector of VF_N floats and its arithmetic
 *     dot_acc, dot_clear, dot_decoded, dot_total          one column's running sum, for quantised weights
 *     COLUMN_TILE, panel_decoded, panel_interleave        a tile of rows times COLUMN_TILE columns
 * Everything here is inlined with constant type traits, so that each type's product is compiled for itself.
 *
 * Dot: a row is decoded 256 weights at a time, and each column multiplied by what was decoded.
 * Panel: ROW_TILE rows are decoded a slice at a time into a panel, interleaved so that four weights of each row lie
 * side by side ([k / 4][row][4]); each column then multiplies the whole panel while it is in the first-level cache.
 * In both, a column's sum is made by operations that do not depend on the columns beside it.
 */
#ifndef MX_MATH_PRODUCTS_H
#define MX_MATH_PRODUCTS_H

#include "product_types.h"

ALWAYS_INLINE int column_of(const mx_product *p, int c)
{
    return p->column ? p->column[c] : c;
}

ALWAYS_INLINE column_view view_column(const mx_acts *x, int column, int group, traits t)
{
    size_t c = (size_t)column, groups = (size_t)x->groups, g = (size_t)group;
    column_view view = {
        x->q + c * (size_t)x->q_stride + g * MX_GROUP,
        x->scale + c * groups + g,
        t.group == 16 ? x->sum16 + 2 * (c * groups + g) : x->sum + c * groups + g,
    };

    return view;
}

#define PREFETCH_BYTES 1024 /* how far ahead of the decoder a row's bytes are asked for */

/* Where the blocks of weight k of a row begin. */
ALWAYS_INLINE const uint8_t *blocks_at(const mx_weight *w, int row, int k, int block, int bytes)
{
    return w->data + (size_t)row * w->row_bytes + (size_t)(k / block) * (size_t)bytes;
}

/* ---- Dot, quantised weights ----------------------------------------------------------------------------------------- */

ALWAYS_INLINE void advance(column_view *x, int groups, traits t)
{
    x->q += groups * MX_GROUP;
    x->scale += groups;
    x->sum += groups * (MX_GROUP / t.group);
}

/* n_columns is a constant, and its loops are unrolled, so that the sums stay in registers. */
ALWAYS_INLINE void dot_row(const mx_product *p, int row, int first, int n_columns, decoder decode,
                           int block, int bytes, traits t)
{
    const uint8_t *blocks = blocks_at(p->w, row, 0, block, bytes);
    mx_decoded w = {.q = {0}};
    column_view x[DOT_COLUMNS];
    dot_acc acc[DOT_COLUMNS];
    int left = p->w->cols;

#pragma GCC unroll 4
    for (int c = 0; c < n_columns; c++) {
        x[c] = view_column(p->x, column_of(p, first + c), 0, t);
        dot_clear(&acc[c]);
    }
    for (; left >= MX_DECODE; left -= MX_DECODE, blocks += MX_DECODE / block * bytes) {
        __builtin_prefetch(blocks + PREFETCH_BYTES);
        __builtin_prefetch(blocks + PREFETCH_BYTES + 64);
        decode(blocks, 8, &w);
#pragma GCC unroll 4
        for (int c = 0; c < n_columns; c++) {
            dot_decoded(&acc[c], &w, x[c], 8, t);
            advance(&x[c], 8, t);
        }
    }
    for (; left > 0; left -= MX_GROUP, blocks += bytes) {
        decode(blocks, 1, &w);
#pragma GCC unroll 4
        for (int c = 0; c < n_columns; c++) {
            dot_decoded(&acc[c], &w, x[c], 1, t);
            advance(&x[c], 1, t);
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < n_columns; c++)
        p->y[(size_t)(first + c) * p->y_stride + (size_t)(row - p->row_begin)] = dot_total(&acc[c]);
}

/* A few rows at a time, which stay in the cache while they meet the columns, up to DOT_COLUMNS of them at a time. */
ALWAYS_INLINE void dot_product(const mx_product *p, decoder decode, int block, int bytes, traits t)
{
    for (int begin = p->row_begin, end; begin < p->row_end; begin = end) {
        end = p->row_end - begin < ROW_TILE ? p->row_end : begin + ROW_TILE;
        for (int first = 0, n; first < p->n_columns; first += n) {
            int left = p->n_columns - first;

            n = left >= DOT_COLUMNS ? DOT_COLUMNS : left >= 2 ? 2 : 1;
            for (int row = begin; row < end; row++)
                if (n == DOT_COLUMNS)
                    dot_row(p, row, first, DOT_COLUMNS, decode, block, bytes, t);
                else if (n == 2)
                    dot_row(p, row, first, 2, decode, block, bytes, t);
                else
                    dot_row(p, row, first, 1, decode, block, bytes, t);
        }
    }
}

/* ---- Panel, quantised weights --------------------------------------------------------------------------------------- */

typedef struct {
    panel panel;
    mx_decoded rows[ROW_TILE];
    float y[PANEL_COLUMNS + COLUMN_TILE][ROW_TILE]; /* sums so far */
} panel_scratch;

_Static_assert(sizeof(panel_scratch) <= MX_SCRATCH_BYTES, "the scratch is too small");

/* Decodes n_groups groups from weight k on of up to ROW_TILE rows; rows past the weight's last are zero. */
ALWAYS_INLINE void fill_panel(const mx_product *p, int row, int k, int n_groups, decoder decode,
                              int block, int bytes, traits t, panel_scratch *s)
{
    int n_rows = p->row_end - row < ROW_TILE ? p->row_end - row : ROW_TILE;
    int n_scales = t.group == 16 ? 2 : 1;

    for (int done = 0, n; done < n_groups; done += n) {
        n = n_groups - done >= 8 ? 8 : 1;
        for (int r = 0; r < ROW_TILE; r++) {
            const uint8_t *blocks = blocks_at(p->w, row + r, k + done * MX_GROUP, block, bytes);

            if (r >= n_rows) {
                memset(&s->rows[r], 0, sizeof s->rows[r]);
            } else if (n == 8) {
                for (int i = 0; i < MX_DECODE / block * bytes; i += 64) /* of the row's next slice */
                    __builtin_prefetch(blocks + SLICE / block * bytes + i);
                decode(blocks, 8, &s->rows[r]);
            } else {
                decode(blocks, 1, &s->rows[r]);
            }
        }
        panel_interleave(s->rows[0].q, sizeof s->rows[0], n * MX_GROUP / 4, s->panel.q + done * MX_GROUP * ROW_TILE);
        for (int g = 0; g < n * n_scales; g++)
            for (int r = 0; r < ROW_TILE; r++) {
                s->panel.scale[(done * n_scales + g) * ROW_TILE + r] = s->rows[r].scale[g];
                if (t.offset)
                    s->panel.offset[(done * n_scales + g) * ROW_TILE + r] = s->rows[r].offset[g];
            }
    }
}

static void store_tile(const mx_product *p, int row, int first, int n, const float (*y)[ROW_TILE])
{
    int n_rows = p->row_end - row < ROW_TILE ? p->row_end - row : ROW_TILE;

    for (int c = 0; c < n; c++)
        memcpy(p->y + (size_t)(first + c) * p->y_stride + (size_t)(row - p->row_begin), y[c],
               sizeof(float) * (size_t)n_rows);
}

ALWAYS_INLINE void panel_product(const mx_product *p, decoder decode, int block, int bytes, traits t)
{
    panel_scratch *s = p->scratch;

    for (int row = p->row_begin; row < p->row_end; row += ROW_TILE)
        for (int first = 0; first < p->n_columns; first += PANEL_COLUMNS) {
            int n = p->n_columns - first < PANEL_COLUMNS ? p->n_columns - first : PANEL_COLUMNS;

            memset(s->y, 0, sizeof s->y[0] * (size_t)(n + COLUMN_TILE));
            for (int k = 0; k < p->w->cols; k += SLICE) {
                int groups = (p->w->cols - k < SLICE ? p->w->cols - k : SLICE) / MX_GROUP;

                fill_panel(p, row, k, groups, decode, block, bytes, t, s);
                for (int c = 0; c < n; c += COLUMN_TILE) {
                    column_view x[COLUMN_TILE];

                    for (int i = 0; i < COLUMN_TILE; i++) /* past the last: the last again, into unused sums */
                        x[i] = view_column(p->x, column_of(p, first + (c + i < n ? c + i : n - 1)),
                                           k / MX_GROUP, t);
                    panel_decoded(&s->panel, groups, x, s->y + c, t);
                }
            }
            store_tile(p, row, first, n, s->y);
        }
}

/* ---- Float weights: the same two products on float32 activations ---------------------------------------------------- */

#define FLOAT_SLICE 256
#define FLOAT_COLUMNS 4 /* columns multiplied at a time */

typedef void (*float_decoder)(const void *in, int n, float *out);

ALWAYS_INLINE void floats_f32(const void *in, int n, float *out)
{
    memcpy(out, in, sizeof(float) * (size_t)n);
}

ALWAYS_INLINE void floats_f16(const void *in, int n, float *out)
{
    const uint16_t *h = in;
    int i = 0;

    for (; i + VF_N <= n; i += VF_N)
        vf_store(out + i, vf_load_half(h + i));
    for (; i < n; i++)
        out[i] = half(h[i]);
}

ALWAYS_INLINE void floats_bf16(const void *in, int n, float *out)
{
    const uint16_t *h = in;

    for (int i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)h[i] << 16;

        memcpy(out + i, &bits, 4);
    }
}

ALWAYS_INLINE void float_dot(const mx_product *p, float_decoder decode, int bytes)
{
    int cols = p->w->cols;

    for (int row = p->row_begin; row < p->row_end; row++)
        for (int first = 0; first < p->n_columns; first += DOT_COLUMNS) {
            int n = p->n_columns - first < DOT_COLUMNS ? p->n_columns - first : DOT_COLUMNS;
            float w[FLOAT_SLICE] __attribute__((aligned(64)));
            VF acc[DOT_COLUMNS][2];
            float tail[DOT_COLUMNS] = {0};

            for (int c = 0; c < n; c++)
                acc[c][0] = acc[c][1] = vf_set(0);
            for (int k = 0; k < cols; k += FLOAT_SLICE) {
                int len = cols - k < FLOAT_SLICE ? cols - k : FLOAT_SLICE;

                decode(p->w->data + (size_t)row * p->w->row_bytes + (size_t)k * (size_t)bytes, len, w);
                for (int c = 0; c < n; c++) {
                    const float *x = p->x->x + (size_t)column_of(p, first + c) * (size_t)cols + k;
                    int i = 0;

                    for (; i + 2 * VF_N <= len; i += 2 * VF_N) {
                        acc[c][0] = vf_fma(vf_load(w + i), vf_load(x + i), acc[c][0]);
                        acc[c][1] = vf_fma(vf_load(w + i + VF_N), vf_load(x + i + VF_N), acc[c][1]);
                    }
                    for (; i < len; i++)
                        tail[c] += w[i] * x[i];
                }
            }
            for (int c = 0; c < n; c++)
                p->y[(size_t)(first + c) * p->y_stride + (size_t)(row - p->row_begin)] =
                    vf_sum(vf_add(acc[c][0], acc[c][1])) + tail[c];
        }
}

typedef struct {
    float panel[FLOAT_SLICE * ROW_TILE]; /* [FLOAT_SLICE][ROW_TILE] */
    float rows[ROW_TILE][FLOAT_SLICE];
    float y[PANEL_COLUMNS + FLOAT_COLUMNS][ROW_TILE];
} __attribute__((aligned(64))) float_scratch;

_Static_assert(sizeof(float_scratch) <= MX_SCRATCH_BYTES, "the scratch is too small");

/* y[c][row] += sum over k of panel[k][row] * x[c][k] */
ALWAYS_INLINE void float_tile(const float *w, int n, const float *const x[FLOAT_COLUMNS], float (*y)[ROW_TILE])
{
    enum { V = ROW_TILE / VF_N };
    VF acc[FLOAT_COLUMNS][V];

    for (int c = 0; c < FLOAT_COLUMNS; c++)
        for (int v = 0; v < V; v++)
            acc[c][v] = vf_load(&y[c][v * VF_N]);
    for (int k = 0; k < n; k++)
        for (int c = 0; c < FLOAT_COLUMNS; c++)
            for (int v = 0; v < V; v++)
                acc[c][v] = vf_fma(vf_load(w + k * ROW_TILE + v * VF_N), vf_set(x[c][k]), acc[c][v]);
    for (int c = 0; c < FLOAT_COLUMNS; c++)
        for (int v = 0; v < V; v++)
            vf_store(&y[c][v * VF_N], acc[c][v]);
}

ALWAYS_INLINE void float_panel(const mx_product *p, float_decoder decode, int bytes)
{
    float_scratch *s = p->scratch;
    int cols = p->w->cols;

    for (int row = p->row_begin; row < p->row_end; row += ROW_TILE)
        for (int first = 0; first < p->n_columns; first += PANEL_COLUMNS) {
            int n = p->n_columns - first < PANEL_COLUMNS ? p->n_columns - first : PANEL_COLUMNS;

            memset(s->y, 0, sizeof s->y[0] * (size_t)(n + FLOAT_COLUMNS));
            for (int k = 0; k < cols; k += FLOAT_SLICE) {
                int len = cols - k < FLOAT_SLICE ? cols - k : FLOAT_SLICE;

                memset(s->rows, 0, sizeof s->rows);
                for (int r = 0; r < ROW_TILE && row + r < p->row_end; r++)
                    decode(p->w->data + (size_t)(row + r) * p->w->row_bytes + (size_t)k * (size_t)bytes,
                           len, s->rows[r]);
                panel_interleave((const uint8_t *)s->rows, sizeof s->rows[0], (len + 7) / 8 * 8,
                                 (uint8_t *)s->panel);
                for (int c = 0; c < n; c += FLOAT_COLUMNS) {
                    const float *x[FLOAT_COLUMNS];

                    for (int i = 0; i < FLOAT_COLUMNS; i++)
                        x[i] = p->x->x + (size_t)column_of(p, first + (c + i < n ? c + i : n - 1)) * (size_t)cols + k;
                    float_tile(s->panel, len, x, s->y + c);
                }
            }
            store_tile(p, row, first, n, (const float (*)[ROW_TILE])s->y);
        }
}

/* ---- One function a type and product --------------------------------------------------------------------------------- */

#define DEFINE_PRODUCTS(TYPE, type, GROUP, SIGNED, OFFSET, LARGEST)                                        \
    enum { type##_size = sizeof(mx_block_##type),                                                           \
           type##_block = MX_TYPE_##TYPE >= MX_TYPE_Q2_K && MX_TYPE_##TYPE != MX_TYPE_IQ4_NL ? 256 : 32 };  \
    static void dot_##type(const mx_product *p)                                                             \
    {                                                                                                       \
        dot_product(p, decode_##type, type##_block, type##_size, (traits){GROUP, SIGNED, OFFSET, LARGEST}); \
    }                                                                                                       \
    static void panel_##type(const mx_product *p)                                                           \
    {                                                                                                       \
        panel_product(p, decode_##type, type##_block, type##_size, (traits){GROUP, SIGNED, OFFSET, LARGEST}); \
    }
MX_QUANTISED_TYPES(DEFINE_PRODUCTS)

#define DEFINE_FLOAT_PRODUCTS(type, bytes)        \
    static void dot_##type(const mx_product *p)   \
    {                                             \
        float_dot(p, floats_##type, bytes);       \
    }                                             \
    static void panel_##type(const mx_product *p) \
    {                                             \
        float_panel(p, floats_##type, bytes);     \
    }
DEFINE_FLOAT_PRODUCTS(f32, 4)
DEFINE_FLOAT_PRODUCTS(f16, 2)
DEFINE_FLOAT_PRODUCTS(bf16, 2)

#define DOT_ENTRY(TYPE, type, GROUP, SIGNED, OFFSET, LARGEST) [MX_TYPE_##TYPE] = dot_##type,
#define PANEL_ENTRY(TYPE, type, GROUP, SIGNED, OFFSET, LARGEST) [MX_TYPE_##TYPE] = panel_##type,
#define DOT_TABLE                                                                          \
    {                                                                                      \
        [MX_TYPE_F32] = dot_f32, [MX_TYPE_F16] = dot_f16, [MX_TYPE_BF16] = dot_bf16,       \
        MX_QUANTISED_TYPES(DOT_ENTRY)                                                      \
    }
#define PANEL_TABLE                                                                        \
    {                                                                                      \
        [MX_TYPE_F32] = panel_f32, [MX_TYPE_F16] = panel_f16, [MX_TYPE_BF16] = panel_bf16, \
        MX_QUANTISED_TYPES(PANEL_ENTRY)                                                    \
    }

#endif
