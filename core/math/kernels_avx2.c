/*
 * kernels_avx2.c: the kernels for AVX2 with FMA and F16C: vectors of 8 floats, or of 32 bytes.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds neighbours into 16 bits, saturating: two products of 7 bits by 7 fit,
 * of 8 bits do not. Types whose q is signed therefore move the sign to the activation (vpsignb). Narrow types add several
 * such pairs in 16 bits before they widen them (pairs_in_16_bits).
 */
#include <immintrin.h>
#include <math.h>
#include "product_types.h"

/* ---- Vectors of floats ---------------------------------------------------------------------------------------------- */

#define VF __m256
#define VF_N 8

ALWAYS_INLINE VF vf_set(float x) { return _mm256_set1_ps(x); }
ALWAYS_INLINE VF vf_load(const float *p) { return _mm256_loadu_ps(p); }
ALWAYS_INLINE void vf_store(float *p, VF x) { _mm256_storeu_ps(p, x); }
ALWAYS_INLINE VF vf_load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
ALWAYS_INLINE VF vf_load_bytes(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
ALWAYS_INLINE void vf_store_half(uint16_t *p, VF x)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
ALWAYS_INLINE VF vf_add(VF a, VF b) { return _mm256_add_ps(a, b); }
ALWAYS_INLINE VF vf_sub(VF a, VF b) { return _mm256_sub_ps(a, b); }
ALWAYS_INLINE VF vf_mul(VF a, VF b) { return _mm256_mul_ps(a, b); }
ALWAYS_INLINE VF vf_div(VF a, VF b) { return _mm256_div_ps(a, b); }
ALWAYS_INLINE VF vf_fma(VF a, VF b, VF c) { return _mm256_fmadd_ps(a, b, c); }
ALWAYS_INLINE VF vf_max(VF a, VF b) { return _mm256_max_ps(a, b); }
ALWAYS_INLINE VF vf_min(VF a, VF b) { return _mm256_min_ps(a, b); }
ALWAYS_INLINE VF vf_round(VF x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

/* x * 2^n, for whole n from -126 to 127 */
ALWAYS_INLINE VF vf_scale(VF x, VF n)
{
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);

    return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}

ALWAYS_INLINE float vf_sum(VF x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* ---- Dot: one row, one column ---------------------------------------------------------------------------------------- */

typedef struct {
    VF even, odd, offsets; /* groups take turns, so that two additions are under way */
} dot_acc;

ALWAYS_INLINE void dot_clear(dot_acc *acc)
{
    acc->even = acc->odd = acc->offsets = _mm256_setzero_ps();
}

ALWAYS_INLINE float dot_total(const dot_acc *acc)
{
    return vf_sum(_mm256_add_ps(_mm256_add_ps(acc->even, acc->odd), acc->offsets));
}

/* 32 products added in fours: [8] int32 */
ALWAYS_INLINE __m256i multiply_bytes(__m256i w, __m256i x, traits t)
{
    __m256i pairs = t.sign ? _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w))
                           : _mm256_maddubs_epi16(w, x);

    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

ALWAYS_INLINE void dot_decoded(dot_acc *acc, const mx_decoded *w, column_view x, int n_groups, traits t)
{
    float scale[16] __attribute__((aligned(32))); /* a group, or two halves of it: weight times activation */
    __m256 sx = _mm256_loadu_ps(x.scale);

    if (t.group == 32) {
        _mm256_store_ps(scale, _mm256_mul_ps(_mm256_load_ps(w->scale), sx));
    } else {
        __m256 low = _mm256_permutevar8x32_ps(sx, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
        __m256 high = _mm256_permutevar8x32_ps(sx, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));

        _mm256_store_ps(scale, _mm256_mul_ps(_mm256_load_ps(w->scale), low));
        _mm256_store_ps(scale + 8, _mm256_mul_ps(_mm256_load_ps(w->scale + 8), high));
    }
    if (t.offset) {
        acc->offsets = vf_fma(vf_load(w->offset), vf_load(x.sum), acc->offsets);
        if (t.group == 16)
            acc->offsets = vf_fma(vf_load(w->offset + 8), vf_load(x.sum + 8), acc->offsets);
    }
    for (int g = 0; g < n_groups; g++) {
        __m256i products = multiply_bytes(_mm256_load_si256((const __m256i *)(w->q + 32 * g)),
                                          _mm256_loadu_si256((const __m256i *)(x.q + 32 * g)), t);
        __m256 s;

        if (t.group == 32) {
            s = _mm256_broadcast_ss(scale + g);
        } else {
            __m256d both = _mm256_broadcast_sd((const double *)(const void *)(scale + 2 * g));

            s = _mm256_permutevar8x32_ps(_mm256_castpd_ps(both), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        }
        if (g % 2 == 0)
            acc->even = vf_fma(_mm256_cvtepi32_ps(products), s, acc->even);
        else
            acc->odd = vf_fma(_mm256_cvtepi32_ps(products), s, acc->odd);
    }
}

/* ---- Panel: ROW_TILE rows, COLUMN_TILE columns ----------------------------------------------------------------------- */

#define COLUMN_TILE 4
#define ROW_VECTORS (ROW_TILE / 8)

/* How many vpmaddubsw results, each of two products of magnitude largest * 127, 16 bits hold. */
ALWAYS_INLINE int pairs_in_16_bits(traits t)
{
    int n = 32767 / (2 * 127 * t.largest);

    return t.sign || n < 2 ? 1 : n < 4 ? 2 : n < 8 ? 4 : 8;
}

/* y[c][row] += the products of one scale's weights: `n` times four of each row */
ALWAYS_INLINE void panel_group(const uint8_t *q, const float *scale, const float *offset, int n, const int32_t *const x[COLUMN_TILE],
                               const float sx[COLUMN_TILE], const float sum[COLUMN_TILE], __m256 (*y)[ROW_VECTORS], traits t)
{
    __m256i total[COLUMN_TILE][ROW_VECTORS];
    int run = pairs_in_16_bits(t) < n ? pairs_in_16_bits(t) : n;

#pragma GCC unroll 8
    for (int i = 0; i < n; i += run) {
        __m256i pairs[COLUMN_TILE][ROW_VECTORS];

#pragma GCC unroll 8
        for (int j = 0; j < run; j++)
#pragma GCC unroll 4
            for (int c = 0; c < COLUMN_TILE; c++) {
                __m256i a = _mm256_set1_epi32(x[c][i + j]);

#pragma GCC unroll 2
                for (int v = 0; v < ROW_VECTORS; v++) {
                    __m256i w = _mm256_load_si256((const __m256i *)(q + (i + j) * 4 * ROW_TILE + 32 * v));
                    __m256i p = t.sign ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w))
                                       : _mm256_maddubs_epi16(w, a);

                    pairs[c][v] = j == 0 ? p : _mm256_add_epi16(pairs[c][v], p);
                }
            }
#pragma GCC unroll 4
        for (int c = 0; c < COLUMN_TILE; c++)
#pragma GCC unroll 2
            for (int v = 0; v < ROW_VECTORS; v++) {
                __m256i wide = _mm256_madd_epi16(pairs[c][v], _mm256_set1_epi16(1));

                total[c][v] = i == 0 ? wide : _mm256_add_epi32(total[c][v], wide);
            }
    }
#pragma GCC unroll 4
    for (int c = 0; c < COLUMN_TILE; c++)
#pragma GCC unroll 2
        for (int v = 0; v < ROW_VECTORS; v++) {
            __m256 s = vf_mul(vf_load(scale + 8 * v), vf_set(sx[c]));

            y[c][v] = vf_fma(_mm256_cvtepi32_ps(total[c][v]), s, y[c][v]);
            if (t.offset)
                y[c][v] = vf_fma(vf_load(offset + 8 * v), vf_set(sum[c]), y[c][v]);
        }
}

ALWAYS_INLINE void panel_decoded(const panel *w, int n_groups, const column_view x[COLUMN_TILE],
                                 float (*y)[ROW_TILE], traits t)
{
    __m256 acc[COLUMN_TILE][ROW_VECTORS];
    int parts = MX_GROUP / t.group;

    for (int c = 0; c < COLUMN_TILE; c++)
        for (int v = 0; v < ROW_VECTORS; v++)
            acc[c][v] = vf_load(&y[c][8 * v]);
    for (int g = 0; g < n_groups; g++)
        for (int h = 0; h < parts; h++) {
            const int32_t *xq[COLUMN_TILE];
            float sx[COLUMN_TILE], sum[COLUMN_TILE];
            int s = (g * parts + h) * ROW_TILE, first = g * MX_GROUP + h * t.group;

            for (int c = 0; c < COLUMN_TILE; c++) {
                xq[c] = (const int32_t *)(const void *)(x[c].q + first);
                sx[c] = x[c].scale[g];
                sum[c] = x[c].sum[g * parts + h];
            }
            panel_group(w->q + first * ROW_TILE, w->scale + s, w->offset + s, t.group / 4, xq, sx, sum, acc, t);
        }
    for (int c = 0; c < COLUMN_TILE; c++)
        for (int v = 0; v < ROW_VECTORS; v++)
            vf_store(&y[c][8 * v], acc[c][v]);
}

#include "interleave_x86.h"
#include "products.h"
#include "elementwise.h"
#include "attention_kernel.h"

const mx_kernels mx_kernels_avx2 = KERNEL_TABLE("avx2");
