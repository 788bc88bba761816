/*
 * kernels_avx512.c: the kernels for AVX-512 (F, BW, DQ, VL): vectors of 16 floats, or of 64 bytes.
 *
 * Compiled twice: as it is, and with VNNI by kernels_avx512vnni.c. vpdpbusd multiplies unsigned by signed bytes and adds fours
 * into 32 bits without saturation, so types whose q is signed are moved up by 128 and get an offset of -128 scales, through
 * the activation's sums like every other offset. Without VNNI the same sums are made in 16 bits, bytes apart.
 */
#include <immintrin.h>
#include <math.h>
#include "product_types.h"

#ifndef MX_KERNELS_AVX512
#define MX_KERNELS_AVX512 mx_kernels_avx512
#endif

/* ---- Vectors of floats ---------------------------------------------------------------------------------------------- */

#define VF __m512
#define VF_N 16

ALWAYS_INLINE VF vf_set(float x) { return _mm512_set1_ps(x); }
ALWAYS_INLINE VF vf_load(const float *p) { return _mm512_loadu_ps(p); }
ALWAYS_INLINE void vf_store(float *p, VF x) { _mm512_storeu_ps(p, x); }
ALWAYS_INLINE VF vf_load_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
ALWAYS_INLINE VF vf_load_bytes(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
ALWAYS_INLINE void vf_store_half(uint16_t *p, VF x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ALWAYS_INLINE VF vf_add(VF a, VF b) { return _mm512_add_ps(a, b); }
ALWAYS_INLINE VF vf_sub(VF a, VF b) { return _mm512_sub_ps(a, b); }
ALWAYS_INLINE VF vf_mul(VF a, VF b) { return _mm512_mul_ps(a, b); }
ALWAYS_INLINE VF vf_div(VF a, VF b) { return _mm512_div_ps(a, b); }
ALWAYS_INLINE VF vf_fma(VF a, VF b, VF c) { return _mm512_fmadd_ps(a, b, c); }
ALWAYS_INLINE VF vf_max(VF a, VF b) { return _mm512_max_ps(a, b); }
ALWAYS_INLINE VF vf_min(VF a, VF b) { return _mm512_min_ps(a, b); }
ALWAYS_INLINE VF vf_round(VF x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }

/* x * 2^n, for whole n from -126 to 127 */
ALWAYS_INLINE VF vf_scale(VF x, VF n)
{
    __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);

    return _mm512_mul_ps(x, _mm512_castsi512_ps(exponent));
}

ALWAYS_INLINE float vf_sum(VF x)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* ---- Products of bytes ------------------------------------------------------------------------------------------------ */

/* sum + the products of unsigned w and signed x, added in fours: [16] int32 */
ALWAYS_INLINE __m512i multiply_add(__m512i sum, __m512i w, __m512i x)
{
#ifdef MX_VNNI
    return _mm512_dpbusd_epi32(sum, w, x);
#else
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)),
                                     _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(x, 8));

    return _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
#endif
}

/* Signed weights are moved up by 128. */
ALWAYS_INLINE __m512i unsigned_weights(__m512i w, traits t)
{
    return t.sign ? _mm512_xor_si512(w, _mm512_set1_epi8(-128)) : w;
}

/* 64 weights just decoded: in halves, as they were stored */
ALWAYS_INLINE __m512i load_decoded(const uint8_t *q)
{
    __m512i low = _mm512_castsi256_si512(_mm256_load_si256((const __m256i *)(const void *)q));

    return _mm512_inserti64x4(low, _mm256_load_si256((const __m256i *)(const void *)(q + 32)), 1);
}

/* ---- Dot: one row, one column ---------------------------------------------------------------------------------------- */

typedef struct {
    VF products;
    __m256 offsets;
} dot_acc;

ALWAYS_INLINE void dot_clear(dot_acc *acc)
{
    acc->products = _mm512_setzero_ps();
    acc->offsets = _mm256_setzero_ps();
}

ALWAYS_INLINE float dot_total(const dot_acc *acc)
{
    __m256 low = _mm256_add_ps(_mm512_castps512_ps256(acc->products), acc->offsets);

    return vf_sum(_mm512_insertf32x8(acc->products, low, 0));
}

/* Scales of weight times activation, one for each half group: [16] */
ALWAYS_INLINE __m512 scales_of(const mx_decoded *w, column_view x, traits t)
{
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    __m512 sx = _mm512_castps256_ps512(_mm256_loadu_ps(x.scale));

    if (t.group == 16)
        return _mm512_mul_ps(_mm512_load_ps(w->scale), _mm512_permutexvar_ps(twice, sx));
    sx = _mm512_castps256_ps512(_mm256_mul_ps(_mm256_load_ps(w->scale), _mm512_castps512_ps256(sx)));
    return _mm512_permutexvar_ps(twice, sx);
}

ALWAYS_INLINE void dot_decoded(dot_acc *acc, const mx_decoded *w, column_view x, int n_groups, traits t)
{
    const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512 scale = scales_of(w, x, t);

    if (t.sign) {
        __m256 offset = _mm256_mul_ps(_mm256_load_ps(w->scale), _mm256_set1_ps(-128));

        acc->offsets = _mm256_fmadd_ps(offset, _mm256_loadu_ps(x.sum), acc->offsets);
    } else if (t.offset) {
        acc->offsets = _mm256_fmadd_ps(_mm256_load_ps(w->offset), _mm256_loadu_ps(x.sum), acc->offsets);
        if (t.group == 16)
            acc->offsets = _mm256_fmadd_ps(_mm256_load_ps(w->offset + 8), _mm256_loadu_ps(x.sum + 8), acc->offsets);
    }
    for (int g = 0; g < n_groups; g += 2) { /* an odd last group is followed by zeros */
        __m512i products = multiply_add(_mm512_setzero_si512(), unsigned_weights(load_decoded(w->q + 32 * g), t),
                                        _mm512_loadu_si512(x.q + 32 * g));
        __m512 s = _mm512_permutexvar_ps(_mm512_add_epi32(quarters, _mm512_set1_epi32(2 * g)), scale);

        acc->products = vf_fma(_mm512_cvtepi32_ps(products), s, acc->products);
    }
}

/* ---- Panel: ROW_TILE rows are one vector ------------------------------------------------------------------------------- */

#define COLUMN_TILE 8

/* y[c] += the products of one scale's weights: `n` times four of each row */
ALWAYS_INLINE void panel_group(const uint8_t *q, const float *scale, const float *offset, int n,
                               const int32_t *const x[COLUMN_TILE], const float sx[COLUMN_TILE],
                               const float sum[COLUMN_TILE], __m512 y[COLUMN_TILE], traits t)
{
    __m512i total[COLUMN_TILE];

#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        __m512i w = unsigned_weights(_mm512_load_si512(q + i * 4 * ROW_TILE), t);

#pragma GCC unroll 8
        for (int c = 0; c < COLUMN_TILE; c++)
            total[c] = multiply_add(i == 0 ? _mm512_setzero_si512() : total[c], w, _mm512_set1_epi32(x[c][i]));
    }
#pragma GCC unroll 8
    for (int c = 0; c < COLUMN_TILE; c++) {
        __m512 s = _mm512_load_ps(scale);

        y[c] = vf_fma(_mm512_cvtepi32_ps(total[c]), vf_mul(s, vf_set(sx[c])), y[c]);
        if (t.sign)
            y[c] = vf_fma(vf_mul(s, vf_set(-128)), vf_set(sum[c]), y[c]);
        else if (t.offset)
            y[c] = vf_fma(_mm512_load_ps(offset), vf_set(sum[c]), y[c]);
    }
}

ALWAYS_INLINE void panel_decoded(const panel *w, int n_groups, const column_view x[COLUMN_TILE],
                                 float (*y)[ROW_TILE], traits t)
{
    __m512 acc[COLUMN_TILE];
    int parts = MX_GROUP / t.group;

    for (int c = 0; c < COLUMN_TILE; c++)
        acc[c] = vf_load(y[c]);
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
        vf_store(y[c], acc[c]);
}

#include "interleave_x86.h"
#include "products.h"
#include "elementwise.h"
#include "attention_kernel.h"

const mx_kernels MX_KERNELS_AVX512 = KERNEL_TABLE("avx512");
