/*
 * decode.h: each quantised type as a small inline decoder to bytes, scales and offsets.
 *
 * Included by every kernels_*.c, so that one source serves every instruction set: it is written in the compilers' own
 * vectors (GCC's and clang's vector_size), which become whatever that file is compiled for. What is read as one vector is
 * stored as one: a wide load of what narrow stores have just left would wait for them.
 *
 * A decoder unpacks n groups of 32 weights (8, or 1 where a row's end is no multiple of 256) into q, one byte each, with
 *     weight = scale * q + offset
 * where scale and offset are per group of 32 or of 16. q is unsigned, or signed for the types that are tables of signed
 * bytes. How large q can get decides how many products fit into 16 bits before they must be widened.
 *
 *     MX_QUANTISED_TYPES(X)   X(TYPE, type, group, signed, has_offset, largest q)
 *
 * Sources: see blocks.h.
 */
#ifndef MX_MATH_DECODE_H
#define MX_MATH_DECODE_H

#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif
#include "blocks.h"
#include "iq_tables.h"

#define MX_DECODE 256

#define MX_QUANTISED_TYPES(X)             \
    X(Q4_0, q4_0, 32, 0, 1, 15)           \
    X(Q4_1, q4_1, 32, 0, 1, 15)           \
    X(Q5_0, q5_0, 32, 0, 1, 31)           \
    X(Q5_1, q5_1, 32, 0, 1, 31)           \
    X(Q8_0, q8_0, 32, 1, 0, 127)          \
    X(Q2_K, q2_k, 16, 0, 1, 3)            \
    X(Q3_K, q3_k, 16, 0, 1, 7)            \
    X(Q4_K, q4_k, 32, 0, 1, 15)           \
    X(Q5_K, q5_k, 32, 0, 1, 31)           \
    X(Q6_K, q6_k, 16, 0, 1, 63)           \
    X(IQ1_S, iq1_s, 32, 0, 1, 2)          \
    X(IQ1_M, iq1_m, 16, 0, 1, 18)         \
    X(IQ2_XXS, iq2_xxs, 32, 0, 1, 86)     \
    X(IQ2_XS, iq2_xs, 16, 0, 1, 86)       \
    X(IQ2_S, iq2_s, 16, 0, 1, 86)         \
    X(IQ3_XXS, iq3_xxs, 32, 0, 1, 124)    \
    X(IQ3_S, iq3_s, 32, 0, 1, 30)         \
    X(IQ4_NL, iq4_nl, 32, 1, 0, 127)      \
    X(IQ4_XS, iq4_xs, 32, 1, 0, 127)

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are only passed between inlined functions */

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x32 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint64_t u64x4 __attribute__((vector_size(32)));
typedef float f32x8 __attribute__((vector_size(32)));

#define DECODE_INLINE static inline __attribute__((always_inline))

typedef struct {
    uint8_t q[MX_DECODE];
    float scale[MX_DECODE / 16];  /* [8] where the group is 32; those past n are 0 */
    float offset[MX_DECODE / 16]; /* likewise; untouched where has_offset is 0 */
} __attribute__((aligned(64))) mx_decoded;

DECODE_INLINE float half(uint16_t h)
{
#ifdef __F16C__
    return _cvtsh_ss(h);
#else
    return mx_f16_to_f32(h);
#endif
}

DECODE_INLINE u8x16 load16(const uint8_t *p)
{
    u8x16 x;

    memcpy(&x, p, 16);
    return x;
}

DECODE_INLINE u8x32 load32(const uint8_t *p)
{
    u8x32 x;

    memcpy(&x, p, 32);
    return x;
}

DECODE_INLINE void store32(uint8_t *p, u8x32 x)
{
    memcpy(p, &x, 32);
}

DECODE_INLINE void store_floats(float *p, f32x8 x)
{
    memcpy(p, &x, 32);
}

DECODE_INLINE u8x32 join(u8x16 low, u8x16 high)
{
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                   22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

/* The halves at p, p + stride, ...: n of them, then zeros. */
DECODE_INLINE f32x8 half_column(const void *p, size_t stride, int n)
{
    u16x8 h = {0};
    f32x8 x;

#pragma GCC unroll 8
    for (int i = 0; i < n; i++) {
        uint16_t bits;

        memcpy(&bits, (const uint8_t *)p + (size_t)i * stride, 2);
        h[i] = bits;
    }
#ifdef __F16C__
    x = (f32x8)_mm256_cvtph_ps((__m128i)h);
#else
    for (int i = 0; i < 8; i++)
        x[i] = mx_f16_to_f32(h[i]);
#endif
    return x;
}

/* The eight bytes of a word, unsigned or signed, as floats. */
DECODE_INLINE f32x8 byte_floats(uint64_t bytes)
{
#ifdef __AVX2__
    return (f32x8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes)));
#else
    f32x8 x;

    for (int i = 0; i < 8; i++)
        x[i] = (float)((bytes >> (8 * i)) & 255);
    return x;
#endif
}

DECODE_INLINE f32x8 signed_byte_floats(uint64_t bytes)
{
#ifdef __AVX2__
    return (f32x8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((long long)bytes)));
#else
    f32x8 x;

    for (int i = 0; i < 8; i++)
        x[i] = (float)(int8_t)((bytes >> (8 * i)) & 255);
    return x;
#endif
}

DECODE_INLINE uint64_t load_word(const void *p)
{
    uint64_t word;

    memcpy(&word, p, 8);
    return word;
}

/* ---- Blocks of 32: n of them, one group each ---------------------------------------------------------------------- */

DECODE_INLINE u8x32 nibbles(const uint8_t *in)
{
    u8x16 x = load16(in);

    return join(x & 15, x >> 4);
}

/* 16 for each of the 32 bits that is set */
DECODE_INLINE u8x32 fifth_bits(const uint8_t h[4])
{
    const u8x32 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                       1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint32_t word;
    u64x4 words;
    u8x32 bytes;

    memcpy(&word, h, 4);
    words = (u64x4){word, word, word, word}; /* each half of the vector has all four bytes */
    bytes = (u8x32)words;
    bytes = __builtin_shufflevector(bytes, bytes, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 18, 18, 18, 18, 18, 18, 18, 18,
                                    19, 19, 19, 19, 19, 19, 19, 19);
    return (u8x32)((bytes & bit) == bit) & 16;
}

DECODE_INLINE u8x32 table_nibbles(const uint8_t *in)
{
#ifdef __AVX2__
    const __m128i table = _mm_loadu_si128((const __m128i *)mx_iq4nl_values);
    u8x16 x = load16(in);

    return join((u8x16)_mm_shuffle_epi8(table, (__m128i)(x & 15)), (u8x16)_mm_shuffle_epi8(table, (__m128i)(x >> 4)));
#else
    u8x32 q;

    for (int i = 0; i < 16; i++) {
        q[i] = (uint8_t)mx_iq4nl_values[in[i] & 15];
        q[i + 16] = (uint8_t)mx_iq4nl_values[in[i] >> 4];
    }
    return q;
#endif
}

DECODE_INLINE void decode_q4_0(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q4_0 *b = blocks;
    f32x8 d = half_column(&b->d, sizeof *b, n);

    for (int g = 0; g < n; g++)
        store32(out->q + 32 * g, nibbles(b[g].q));
    store_floats(out->scale, d);
    store_floats(out->offset, d * -8);
}

DECODE_INLINE void decode_q4_1(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q4_1 *b = blocks;

    for (int g = 0; g < n; g++)
        store32(out->q + 32 * g, nibbles(b[g].q));
    store_floats(out->scale, half_column(&b->d, sizeof *b, n));
    store_floats(out->offset, half_column(&b->m, sizeof *b, n));
}

DECODE_INLINE void decode_q5_0(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q5_0 *b = blocks;
    f32x8 d = half_column(&b->d, sizeof *b, n);

    for (int g = 0; g < n; g++)
        store32(out->q + 32 * g, nibbles(b[g].q) | fifth_bits(b[g].h));
    store_floats(out->scale, d);
    store_floats(out->offset, d * -16);
}

DECODE_INLINE void decode_q5_1(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q5_1 *b = blocks;

    for (int g = 0; g < n; g++)
        store32(out->q + 32 * g, nibbles(b[g].q) | fifth_bits(b[g].h));
    store_floats(out->scale, half_column(&b->d, sizeof *b, n));
    store_floats(out->offset, half_column(&b->m, sizeof *b, n));
}

DECODE_INLINE void decode_q8_0(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q8_0 *b = blocks;

    for (int g = 0; g < n; g++)
        store32(out->q + 32 * g, load32((const uint8_t *)b[g].q));
    store_floats(out->scale, half_column(&b->d, sizeof *b, n));
}

DECODE_INLINE void decode_iq4_nl(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq4_nl *b = blocks;

    for (int g = 0; g < n; g++)
        store32(out->q + 32 * g, table_nibbles(b[g].q));
    store_floats(out->scale, half_column(&b->d, sizeof *b, n));
}

/* ---- Super-blocks of 256: n is always 8 ----------------------------------------------------------------------------- */

DECODE_INLINE void decode_q2_k(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q2_k *b = blocks;
    float d = half(b->d), dmin = half(b->dmin);

    (void)n;
    for (int h = 0; h < 2; h++) {
        u8x32 q = load32(b->q + 32 * h);

        for (int j = 0; j < 4; j++)
            store32(out->q + 128 * h + 32 * j, (q >> (2 * j)) & 3);
    }
    for (int i = 0; i < 16; i += 8) { /* a scale in the low nibble, a minimum in the high one */
        uint64_t bytes = load_word(b->scales + i);

        store_floats(out->scale + i, d * byte_floats(bytes & 0x0f0f0f0f0f0f0f0f));
        store_floats(out->offset + i, -dmin * byte_floats((bytes >> 4) & 0x0f0f0f0f0f0f0f0f));
    }
}

DECODE_INLINE void decode_q3_k(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q3_k *b = blocks;
    u8x32 high = load32(b->h);
    uint64_t low = load_word(b->scales), two; /* six bits: four in the first eight bytes, two in the last four */
    uint32_t last;
    float d = half(b->d);

    (void)n;
    for (int h = 0; h < 2; h++) {
        u8x32 q = load32(b->q + 32 * h);

        for (int j = 0; j < 4; j++)
            store32(out->q + 128 * h + 32 * j, ((q >> (2 * j)) & 3) | (((high >> (4 * h + j)) & 1) << 2));
    }
    memcpy(&last, b->scales + 8, 4);
    for (int i = 0; i < 2; i++) {
        f32x8 scale;

        two = (uint64_t)(last >> (4 * i) & 0x03030303) | (uint64_t)(last >> (4 * i + 2) & 0x03030303) << 32;
        scale = d * (byte_floats(((low >> (4 * i)) & 0x0f0f0f0f0f0f0f0f) | two << 4) - 32);
        store_floats(out->scale + 8 * i, scale);
        store_floats(out->offset + 8 * i, scale * -4);
    }
}

/* Q4_K and Q5_K: eight six-bit scales and minima in twelve bytes */
DECODE_INLINE void scales_and_minima(const uint8_t *in, float d, float dmin, mx_decoded *out)
{
    uint32_t w[3];
    uint64_t scales, minima;

    memcpy(w, in, 12);
    scales = (w[0] & 0x3f3f3f3f) | (uint64_t)((w[2] & 0x0f0f0f0f) | ((w[0] >> 2) & 0x30303030)) << 32;
    minima = (w[1] & 0x3f3f3f3f) | (uint64_t)(((w[2] >> 4) & 0x0f0f0f0f) | ((w[1] >> 2) & 0x30303030)) << 32;
    store_floats(out->scale, d * byte_floats(scales));
    store_floats(out->offset, -dmin * byte_floats(minima));
}

DECODE_INLINE void decode_q4_k(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q4_k *b = blocks;

    (void)n;
    for (int j = 0; j < 4; j++) {
        u8x32 q = load32(b->q + 32 * j);

        store32(out->q + 64 * j, q & 15);
        store32(out->q + 64 * j + 32, q >> 4);
    }
    scales_and_minima(b->scales, half(b->d), half(b->dmin), out);
}

DECODE_INLINE void decode_q5_k(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q5_k *b = blocks;
    u8x32 high = load32(b->h);

    (void)n;
    for (int j = 0; j < 4; j++) {
        u8x32 q = load32(b->q + 32 * j);

        store32(out->q + 64 * j, (q & 15) | (((high >> (2 * j)) & 1) << 4));
        store32(out->q + 64 * j + 32, (q >> 4) | (((high >> (2 * j + 1)) & 1) << 4));
    }
    scales_and_minima(b->scales, half(b->d), half(b->dmin), out);
}

DECODE_INLINE void decode_q6_k(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_q6_k *b = blocks;
    float d = half(b->d);

    (void)n;
    for (int h = 0; h < 2; h++) {
        u8x32 low = load32(b->l + 64 * h), next = load32(b->l + 64 * h + 32), high = load32(b->h + 32 * h);

        store32(out->q + 128 * h, (low & 15) | ((high & 3) << 4));
        store32(out->q + 128 * h + 32, (next & 15) | (((high >> 2) & 3) << 4));
        store32(out->q + 128 * h + 64, (low >> 4) | (((high >> 4) & 3) << 4));
        store32(out->q + 128 * h + 96, (next >> 4) | (((high >> 6) & 3) << 4));
    }
    for (int i = 0; i < 16; i += 8) {
        f32x8 scale = d * signed_byte_floats(load_word(b->scales + i));

        store_floats(out->scale + i, scale);
        store_floats(out->offset + i, scale * -32);
    }
}

DECODE_INLINE void decode_iq4_xs(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq4_xs *b = blocks;
    float d = half(b->d);
    f32x8 scale;

    (void)n;
    for (int g = 0; g < 8; g++) {
        int low = (b->scales_l[g / 2] >> (4 * (g % 2))) & 15;
        int high = (b->scales_h >> (2 * g)) & 3;

        store32(out->q + 32 * g, table_nibbles(b->q + 16 * g));
        scale[g] = d * (float)((low | high << 4) - 32);
    }
    store_floats(out->scale, scale);
}

/* ---- Codebooks: a grid entry holds 4 or 8 magnitudes, a bit each says which are negative ---------------------------- */

/* byte i of the result is not 0 exactly when bit i of `signs` is set */
DECODE_INLINE uint64_t spread_signs(uint8_t signs)
{
    return (signs * 0x0101010101010101ull) & 0x8040201008040201ull;
}

/* bias +- magnitude */
DECODE_INLINE u8x32 apply_signs(u64x4 magnitudes, u64x4 signs, uint8_t bias)
{
    u8x32 negative = (u8x32)((u8x32)signs != 0);

    return (((u8x32)magnitudes ^ negative) - negative) + bias;
}

/* 16 scales and, -bias times as large, their offsets */
DECODE_INLINE void store_halves(const f32x8 scale[2], float bias, mx_decoded *out)
{
    for (int i = 0; i < 2; i++) {
        store_floats(out->scale + 8 * i, scale[i]);
        store_floats(out->offset + 8 * i, scale[i] * -bias);
    }
}

/* Eight bytes of two four-bit scales each, the low nibble first, to 16 floats. */
DECODE_INLINE void nibble_scales(const uint8_t *in, f32x8 scale[2])
{
    for (int i = 0; i < 2; i++) {
        uint32_t x;
        uint64_t spread;

        memcpy(&x, in + 4 * i, 4);
        spread = x; /* byte k to bytes 2k and 2k + 1 */
        spread = (spread | spread << 16) & 0x0000ffff0000ffff;
        spread = (spread | spread << 8) & 0x00ff00ff00ff00ff;
        scale[i] = byte_floats((spread | spread << 4) & 0x0f0f0f0f0f0f0f0f);
    }
}

DECODE_INLINE void decode_iq2_xxs(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq2_xxs *b = blocks;
    float d = half(b->d) * 0.25f;
    f32x8 scale;

    (void)n;
    for (int g = 0; g < 8; g++) {
        uint64_t word = load_word((const uint8_t *)b->q + 8 * g); /* four indices; four times seven sign bits, scale */
        u64x4 grid, signs;

        for (int l = 0; l < 4; l++) {
            grid[l] = mx_iq2xxs_grid[(word >> (8 * l)) & 255];
            signs[l] = spread_signs(mx_ksigns[(word >> (32 + 7 * l)) & 127]);
        }
        store32(out->q + 32 * g, apply_signs(grid, signs, 43));
        scale[g] = d * (0.5f + (float)(word >> 60));
    }
    store_floats(out->scale, scale);
    store_floats(out->offset, scale * -43);
}

DECODE_INLINE void decode_iq2_xs(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq2_xs *b = blocks;
    float d = half(b->d) * 0.25f;
    f32x8 scale[2];

    (void)n;
    for (int g = 0; g < 8; g++) {
        u64x4 grid, signs;

        for (int l = 0; l < 4; l++) {
            grid[l] = mx_iq2xs_grid[b->q[4 * g + l] & 511];
            signs[l] = spread_signs(mx_ksigns[b->q[4 * g + l] >> 9]);
        }
        store32(out->q + 32 * g, apply_signs(grid, signs, 43));
    }
    nibble_scales(b->scales, scale);
    scale[0] = d * (scale[0] + 0.5f);
    scale[1] = d * (scale[1] + 0.5f);
    store_halves(scale, 43, out);
}

DECODE_INLINE void decode_iq2_s(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq2_s *b = blocks;
    float d = half(b->d) * 0.25f;
    f32x8 scale[2];

    (void)n;
    for (int g = 0; g < 8; g++) {
        u64x4 grid, signs;

        for (int l = 0; l < 4; l++) {
            grid[l] = mx_iq2s_grid[b->q[4 * g + l] | ((b->h[g] << (8 - 2 * l)) & 0x300)];
            signs[l] = spread_signs(b->signs[4 * g + l]);
        }
        store32(out->q + 32 * g, apply_signs(grid, signs, 43));
    }
    nibble_scales(b->scales, scale);
    scale[0] = d * (scale[0] + 0.5f);
    scale[1] = d * (scale[1] + 0.5f);
    store_halves(scale, 43, out);
}

DECODE_INLINE void decode_iq3_xxs(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq3_xxs *b = blocks;
    float d = half(b->d) * 0.5f;
    f32x8 scale;

    (void)n;
    for (int g = 0; g < 8; g++) {
        const uint8_t *q = b->q + 8 * g;
        u64x4 grid, signs;
        uint32_t word; /* four times seven sign bits, scale */

        memcpy(&word, b->q + 64 + 4 * g, 4);
        for (int l = 0; l < 4; l++) {
            grid[l] = mx_iq3xxs_grid[q[2 * l]] | (uint64_t)mx_iq3xxs_grid[q[2 * l + 1]] << 32;
            signs[l] = spread_signs(mx_ksigns[(word >> (7 * l)) & 127]);
        }
        store32(out->q + 32 * g, apply_signs(grid, signs, 62));
        scale[g] = d * (0.5f + (float)(word >> 28));
    }
    store_floats(out->scale, scale);
    store_floats(out->offset, scale * -62);
}

DECODE_INLINE void decode_iq3_s(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq3_s *b = blocks;
    float d = half(b->d);
    f32x8 scale;

    (void)n;
    for (int g = 0; g < 8; g++) {
        const uint8_t *q = b->q + 8 * g;
        u64x4 grid, signs;

        for (int l = 0; l < 4; l++) {
            grid[l] = mx_iq3s_grid[q[2 * l] | ((b->h[g] << (8 - 2 * l)) & 256)] |
                      (uint64_t)mx_iq3s_grid[q[2 * l + 1] | ((b->h[g] << (7 - 2 * l)) & 256)] << 32;
            signs[l] = spread_signs(b->signs[4 * g + l]);
        }
        store32(out->q + 32 * g, apply_signs(grid, signs, 15));
        scale[g] = d * (float)(1 + 2 * ((b->scales[g / 2] >> (4 * (g % 2))) & 15));
    }
    store_floats(out->scale, scale);
    store_floats(out->offset, scale * -15);
}

/* One bit: grid values -1, 0, 1, all moved by +-1/8. */
DECODE_INLINE void decode_iq1_s(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq1_s *b = blocks;
    float d = half(b->d);
    f32x8 scale, offset;

    (void)n;
    for (int g = 0; g < 8; g++) {
        u64x4 grid;

        for (int l = 0; l < 4; l++)
            grid[l] = mx_iq1s_grid[b->q[4 * g + l] | (((b->h[g] >> (3 * l)) & 7) << 8)];
        store32(out->q + 32 * g, (u8x32)grid + 1);
        scale[g] = d * (float)(2 * ((b->h[g] >> 12) & 7) + 1);
        offset[g] = scale[g] * (b->h[g] & 0x8000 ? -1.125f : -0.875f);
    }
    store_floats(out->scale, scale);
    store_floats(out->offset, offset);
}

DECODE_INLINE void decode_iq1_m(const void *blocks, int n, mx_decoded *out)
{
    const mx_block_iq1_m *b = blocks;
    uint16_t words[4]; /* twelve bits of scales each, and a quarter of d */
    f32x8 scale[2];
    float d;

    (void)n;
    memcpy(words, b->scales, 8);
    d = half((uint16_t)((words[0] >> 12) | ((words[1] >> 8) & 0xf0) | ((words[2] >> 4) & 0xf00) |
                        (words[3] & 0xf000)));
    for (int g = 0; g < 8; g++) {
        int scales = words[g / 2] >> (6 * (g % 2));
        u64x4 grid, shift;

        for (int l = 0; l < 4; l++) { /* q = 8 (grid +- 1/8) + 9 */
            int h = b->h[2 * g + l / 2] >> (4 * (l % 2));

            grid[l] = mx_iq1s_grid[b->q[4 * g + l] | (h & 7) << 8];
            shift[l] = (h & 8 ? 8 : 10) * 0x0101010101010101ull;
        }
        store32(out->q + 32 * g, (u8x32)grid * 8 + (u8x32)shift);
        scale[g / 4][2 * (g % 4)] = d * (float)(2 * (scales & 7) + 1) * 0.125f;
        scale[g / 4][2 * (g % 4) + 1] = d * (float)(2 * ((scales >> 3) & 7) + 1) * 0.125f;
    }
    store_halves(scale, 9, out);
}

#endif
