/*
 * blocks.c: the table of tensor types, and the reference decoder of each.
 *
 * The decoders follow the format's definition weight by weight, with the products in its order, and are what the kernels'
 * own decoders (decode.h) are tested against; nothing here is meant to be fast. Reads blocks of any alignment.
 */
#include "blocks.h"

#include <string.h>
#include <strings.h>

#include "iq_tables.h"

static const mx_type_info types[MX_TYPE_COUNT] = {
    [MX_TYPE_F32] = {"F32", 0, 1, 4},
    [MX_TYPE_F16] = {"F16", 1, 1, 2},
    [MX_TYPE_BF16] = {"BF16", 30, 1, 2},
    [MX_TYPE_Q4_0] = {"Q4_0", 2, 32, sizeof(mx_block_q4_0)},
    [MX_TYPE_Q4_1] = {"Q4_1", 3, 32, sizeof(mx_block_q4_1)},
    [MX_TYPE_Q5_0] = {"Q5_0", 6, 32, sizeof(mx_block_q5_0)},
    [MX_TYPE_Q5_1] = {"Q5_1", 7, 32, sizeof(mx_block_q5_1)},
    [MX_TYPE_Q8_0] = {"Q8_0", 8, 32, sizeof(mx_block_q8_0)},
    [MX_TYPE_Q2_K] = {"Q2_K", 10, 256, sizeof(mx_block_q2_k)},
    [MX_TYPE_Q3_K] = {"Q3_K", 11, 256, sizeof(mx_block_q3_k)},
    [MX_TYPE_Q4_K] = {"Q4_K", 12, 256, sizeof(mx_block_q4_k)},
    [MX_TYPE_Q5_K] = {"Q5_K", 13, 256, sizeof(mx_block_q5_k)},
    [MX_TYPE_Q6_K] = {"Q6_K", 14, 256, sizeof(mx_block_q6_k)},
    [MX_TYPE_IQ1_S] = {"IQ1_S", 19, 256, sizeof(mx_block_iq1_s)},
    [MX_TYPE_IQ1_M] = {"IQ1_M", 29, 256, sizeof(mx_block_iq1_m)},
    [MX_TYPE_IQ2_XXS] = {"IQ2_XXS", 16, 256, sizeof(mx_block_iq2_xxs)},
    [MX_TYPE_IQ2_XS] = {"IQ2_XS", 17, 256, sizeof(mx_block_iq2_xs)},
    [MX_TYPE_IQ2_S] = {"IQ2_S", 22, 256, sizeof(mx_block_iq2_s)},
    [MX_TYPE_IQ3_XXS] = {"IQ3_XXS", 18, 256, sizeof(mx_block_iq3_xxs)},
    [MX_TYPE_IQ3_S] = {"IQ3_S", 21, 256, sizeof(mx_block_iq3_s)},
    [MX_TYPE_IQ4_NL] = {"IQ4_NL", 20, 32, sizeof(mx_block_iq4_nl)},
    [MX_TYPE_IQ4_XS] = {"IQ4_XS", 23, 256, sizeof(mx_block_iq4_xs)},
};

const mx_type_info *mx_type_get(mx_type type)
{
    return &types[type];
}

int mx_type_from_gguf(uint32_t gguf_id)
{
    for (int t = 0; t < MX_TYPE_COUNT; t++)
        if (types[t].gguf_id == gguf_id)
            return t;
    return -1;
}

int mx_type_from_name(const char *name)
{
    for (int t = 0; t < MX_TYPE_COUNT; t++)
        if (strcasecmp(types[t].name, name) == 0)
            return t;
    return -1;
}

size_t mx_row_bytes(mx_type type, int64_t cols)
{
    return (size_t)(cols / types[type].block_size) * (size_t)types[type].block_bytes;
}

/* ---- Half precision ------------------------------------------------------------------------------------------------ */

static float float_of_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, 4);
    return f;
}

static uint32_t bits_of_float(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return bits;
}

float mx_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;

    if (exponent == 31) /* infinity; NaN, made quiet as the hardware does */
        return float_of_bits(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    if (exponent == 0) { /* zero; denormal: mantissa times 2^-24, which is exact */
        float f = (float)mantissa * 0x1p-24f;

        return sign ? -f : f;
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t mx_f32_to_f16(float f)
{
    uint32_t bits = bits_of_float(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;

    if (magnitude > 0x7f800000) /* NaN, made quiet */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) /* rounds to 2^16 or more: infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) { /* a denormal or zero: adding 1/2 leaves multiples of 2^-24 in the low bits, rounded */
        uint32_t rounded = bits_of_float(float_of_bits(magnitude) + 0.5f);

        return (uint16_t)(sign | (rounded - 0x3f000000));
    }
    magnitude += 0xfff + (magnitude >> 13 & 1); /* to nearest even; a carry goes into the exponent */
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

/* ---- Floats -------------------------------------------------------------------------------------------------------- */

static void dequantize_f16(const uint8_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h;

        memcpy(&h, in + 2 * i, 2);
        out[i] = mx_f16_to_f32(h);
    }
}

static void dequantize_bf16(const uint8_t *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h;

        memcpy(&h, in + 2 * i, 2);
        out[i] = float_of_bits((uint32_t)h << 16);
    }
}

/* ---- Blocks of 32 -------------------------------------------------------------------------------------------------- */

static void dequantize_q4_0(const void *block, float *out)
{
    const mx_block_q4_0 *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b->q[i] & 15) - 8);
        out[i + 16] = d * (float)((b->q[i] >> 4) - 8);
    }
}

static void dequantize_q4_1(const void *block, float *out)
{
    const mx_block_q4_1 *b = block;
    float d = mx_f16_to_f32(b->d), m = mx_f16_to_f32(b->m);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b->q[i] & 15) + m;
        out[i + 16] = d * (float)(b->q[i] >> 4) + m;
    }
}

static int bit(const uint8_t *bits, int i)
{
    return bits[i / 8] >> (i % 8) & 1;
}

static void dequantize_q5_0(const void *block, float *out)
{
    const mx_block_q5_0 *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(((b->q[i] & 15) | bit(b->h, i) << 4) - 16);
        out[i + 16] = d * (float)((b->q[i] >> 4 | bit(b->h, i + 16) << 4) - 16);
    }
}

static void dequantize_q5_1(const void *block, float *out)
{
    const mx_block_q5_1 *b = block;
    float d = mx_f16_to_f32(b->d), m = mx_f16_to_f32(b->m);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b->q[i] & 15) | bit(b->h, i) << 4) + m;
        out[i + 16] = d * (float)(b->q[i] >> 4 | bit(b->h, i + 16) << 4) + m;
    }
}

static void dequantize_q8_0(const void *block, float *out)
{
    const mx_block_q8_0 *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int i = 0; i < 32; i++)
        out[i] = d * (float)b->q[i];
}

static void dequantize_iq4_nl(const void *block, float *out)
{
    const mx_block_iq4_nl *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)mx_iq4nl_values[b->q[i] & 15];
        out[i + 16] = d * (float)mx_iq4nl_values[b->q[i] >> 4];
    }
}

/* ---- Blocks of 256 ------------------------------------------------------------------------------------------------- */

/* Two bits a weight: 32 bytes hold four runs of 32 weights, the first in the lowest bits. */
static int two_bits(const uint8_t *q, int i)
{
    return q[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

static void dequantize_q2_k(const void *block, float *out)
{
    const mx_block_q2_k *b = block;
    float d = mx_f16_to_f32(b->d), dmin = mx_f16_to_f32(b->dmin);

    for (int i = 0; i < 256; i++) {
        int scales = b->scales[i / 16];

        out[i] = d * (float)(scales & 15) * (float)two_bits(b->q, i) - dmin * (float)(scales >> 4);
    }
}

/* Sixteen scales of six bits: the low four in the nibbles of bytes 0 .. 7, the high two in bytes 8 .. 11. */
static int q3_k_scale(const uint8_t s[12], int i)
{
    int low = s[i % 8] >> (i / 8 * 4) & 15, high = s[8 + i % 4] >> (i / 4 * 2) & 3;

    return (low | high << 4) - 32;
}

static void dequantize_q3_k(const void *block, float *out)
{
    const mx_block_q3_k *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int i = 0; i < 256; i++) {
        int high = b->h[i % 32] >> (i / 32) & 1; /* set: not lowered by 4 */

        out[i] = d * (float)q3_k_scale(b->scales, i / 16) * (float)(two_bits(b->q, i) - (high ? 0 : 4));
    }
}

/* Q4_K, Q5_K: eight scales and eight minima of six bits. Those of groups 4 .. 7 have their low nibbles in bytes 8 .. 11, and
 * their high two bits on top of groups 0 .. 3. */
static void k_scale(const uint8_t s[12], int g, int *scale, int *minimum)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *minimum = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        *minimum = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

/* Four bits a weight: 32 bytes hold two runs of 32 weights. */
static int four_bits(const uint8_t *q, int i)
{
    return q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

static void dequantize_q4_k(const void *block, float *out)
{
    const mx_block_q4_k *b = block;
    float d = mx_f16_to_f32(b->d), dmin = mx_f16_to_f32(b->dmin);
    int scale = 0, minimum = 0;

    for (int i = 0; i < 256; i++) {
        k_scale(b->scales, i / 32, &scale, &minimum);
        out[i] = d * (float)scale * (float)four_bits(b->q, i) - dmin * (float)minimum;
    }
}

static void dequantize_q5_k(const void *block, float *out)
{
    const mx_block_q5_k *b = block;
    float d = mx_f16_to_f32(b->d), dmin = mx_f16_to_f32(b->dmin);
    int scale = 0, minimum = 0;

    for (int i = 0; i < 256; i++) {
        int q = four_bits(b->q, i) | (b->h[i % 32] >> (i / 32) & 1) << 4;

        k_scale(b->scales, i / 32, &scale, &minimum);
        out[i] = d * (float)scale * (float)q - dmin * (float)minimum;
    }
}

static void dequantize_q6_k(const void *block, float *out)
{
    const mx_block_q6_k *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int i = 0; i < 256; i++) { /* 64 low bytes hold two runs of 64 weights */
        int low = b->l[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;

        out[i] = d * (float)b->scales[i / 16] * (float)((low | two_bits(b->h, i) << 4) - 32);
    }
}

static void dequantize_iq4_xs(const void *block, float *out)
{
    const mx_block_iq4_xs *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int g = 0; g < 8; g++) {
        int scale = (b->scales_l[g / 2] >> (g % 2 * 4) & 15) | (b->scales_h >> (2 * g) & 3) << 4;
        float dl = d * (float)(scale - 32);

        for (int i = 0; i < 16; i++) {
            out[32 * g + i] = dl * (float)mx_iq4nl_values[b->q[16 * g + i] & 15];
            out[32 * g + 16 + i] = dl * (float)mx_iq4nl_values[b->q[16 * g + i] >> 4];
        }
    }
}

/* ---- Codebooks ----------------------------------------------------------------------------------------------------- */

/* Eight magnitudes and their signs, one bit each. */
static void signed_run(float scale, const uint8_t magnitudes[8], int signs, float *out)
{
    for (int i = 0; i < 8; i++)
        out[i] = scale * (float)magnitudes[i] * (signs >> i & 1 ? -1.0f : 1.0f);
}

static void signed_run8(float scale, uint64_t grid, int signs, float *out)
{
    uint8_t magnitudes[8];

    memcpy(magnitudes, &grid, 8);
    signed_run(scale, magnitudes, signs, out);
}

static void signed_run4x2(float scale, uint32_t first, uint32_t second, int signs, float *out)
{
    uint8_t magnitudes[8];

    memcpy(magnitudes, &first, 4);
    memcpy(magnitudes + 4, &second, 4);
    signed_run(scale, magnitudes, signs, out);
}

static void dequantize_iq2_xxs(const void *block, float *out)
{
    const mx_block_iq2_xxs *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int g = 0; g < 8; g++) {
        uint32_t words[2]; /* four indices of eight bits; four times seven sign bits, and a scale of four */
        float scale;

        memcpy(words, (const uint8_t *)b->q + 8 * g, 8);
        scale = d * (0.5f + (float)(words[1] >> 28)) * 0.25f;
        for (int r = 0; r < 4; r++)
            signed_run8(scale, mx_iq2xxs_grid[words[0] >> (8 * r) & 255], mx_ksigns[words[1] >> (7 * r) & 127],
                        out + 32 * g + 8 * r);
    }
}

/* IQ2_XS, IQ2_S: a scale of four bits for each 16 weights. */
static float iq2_scale(float d, const uint8_t *scales, int i)
{
    return d * (0.5f + (float)(scales[i / 2] >> (i % 2 * 4) & 15)) * 0.25f;
}

static void dequantize_iq2_xs(const void *block, float *out)
{
    const mx_block_iq2_xs *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int r = 0; r < 32; r++)
        signed_run8(iq2_scale(d, b->scales, r / 2), mx_iq2xs_grid[b->q[r] & 511], mx_ksigns[b->q[r] >> 9], out + 8 * r);
}

static void dequantize_iq2_s(const void *block, float *out)
{
    const mx_block_iq2_s *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int r = 0; r < 32; r++) {
        int index = b->q[r] | (b->h[r / 4] >> (r % 4 * 2) & 3) << 8;

        signed_run8(iq2_scale(d, b->scales, r / 2), mx_iq2s_grid[index], b->signs[r], out + 8 * r);
    }
}

static void dequantize_iq3_xxs(const void *block, float *out)
{
    const mx_block_iq3_xxs *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int g = 0; g < 8; g++) {
        uint32_t signs; /* behind the 64 indices: four times seven sign bits and a scale of four */
        float scale;

        memcpy(&signs, b->q + 64 + 4 * g, 4);
        scale = d * (0.5f + (float)(signs >> 28)) * 0.5f;
        for (int r = 0; r < 4; r++) {
            const uint8_t *q = b->q + 8 * g + 2 * r;

            signed_run4x2(scale, mx_iq3xxs_grid[q[0]], mx_iq3xxs_grid[q[1]], mx_ksigns[signs >> (7 * r) & 127],
                          out + 32 * g + 8 * r);
        }
    }
}

static void dequantize_iq3_s(const void *block, float *out)
{
    const mx_block_iq3_s *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int r = 0; r < 32; r++) {
        int g = r / 4;
        float scale = d * (float)(1 + 2 * (b->scales[g / 2] >> (g % 2 * 4) & 15));
        int first = b->q[2 * r] | bit(b->h, 2 * r) << 8, second = b->q[2 * r + 1] | bit(b->h, 2 * r + 1) << 8;

        signed_run4x2(scale, mx_iq3s_grid[first], mx_iq3s_grid[second], b->signs[r], out + 8 * r);
    }
}

/* Eight of -1, 0, 1, all moved by 1/8 up or down. */
static void moved_run(float scale, int index, int down, float *out)
{
    int8_t grid[8];

    memcpy(grid, &mx_iq1s_grid[index], 8);
    for (int i = 0; i < 8; i++)
        out[i] = scale * ((float)grid[i] + (down ? -0.125f : 0.125f));
}

static void dequantize_iq1_s(const void *block, float *out)
{
    const mx_block_iq1_s *b = block;
    float d = mx_f16_to_f32(b->d);

    for (int r = 0; r < 32; r++) {
        int h = b->h[r / 4]; /* four times three index bits, a scale of three, the direction */
        float scale = d * (float)(2 * (h >> 12 & 7) + 1);

        moved_run(scale, b->q[r] | (h >> (r % 4 * 3) & 7) << 8, h & 0x8000, out + 8 * r);
    }
}

static void dequantize_iq1_m(const void *block, float *out)
{
    const mx_block_iq1_m *b = block;
    uint16_t s[4]; /* four times three bits of scale, and a nibble of the block's own float16 */
    float d;

    memcpy(s, b->scales, 8);
    d = mx_f16_to_f32((uint16_t)(s[0] >> 12 | s[1] >> 12 << 4 | s[2] >> 12 << 8 | s[3] >> 12 << 12));
    for (int r = 0; r < 32; r++) {
        int h = b->h[r / 2] >> (r % 2 * 4) & 15; /* three index bits, the direction */
        float scale = d * (float)(2 * (s[r / 8] >> (r / 2 % 4 * 3) & 7) + 1);

        moved_run(scale, b->q[r] | (h & 7) << 8, h & 8, out + 8 * r);
    }
}

/* ---- Dispatch ------------------------------------------------------------------------------------------------------ */

void mx_dequantize(mx_type type, const void *blocks, float *out, size_t n)
{
    static void (*const decoders[MX_TYPE_COUNT])(const void *block, float *out) = {
        [MX_TYPE_Q4_0] = dequantize_q4_0,       [MX_TYPE_Q4_1] = dequantize_q4_1,
        [MX_TYPE_Q5_0] = dequantize_q5_0,       [MX_TYPE_Q5_1] = dequantize_q5_1,
        [MX_TYPE_Q8_0] = dequantize_q8_0,       [MX_TYPE_Q2_K] = dequantize_q2_k,
        [MX_TYPE_Q3_K] = dequantize_q3_k,       [MX_TYPE_Q4_K] = dequantize_q4_k,
        [MX_TYPE_Q5_K] = dequantize_q5_k,       [MX_TYPE_Q6_K] = dequantize_q6_k,
        [MX_TYPE_IQ1_S] = dequantize_iq1_s,     [MX_TYPE_IQ1_M] = dequantize_iq1_m,
        [MX_TYPE_IQ2_XXS] = dequantize_iq2_xxs, [MX_TYPE_IQ2_XS] = dequantize_iq2_xs,
        [MX_TYPE_IQ2_S] = dequantize_iq2_s,     [MX_TYPE_IQ3_XXS] = dequantize_iq3_xxs,
        [MX_TYPE_IQ3_S] = dequantize_iq3_s,     [MX_TYPE_IQ4_NL] = dequantize_iq4_nl,
        [MX_TYPE_IQ4_XS] = dequantize_iq4_xs,
    };
    const uint8_t *in = blocks;

    if (type == MX_TYPE_F32)
        memcpy(out, in, 4 * n);
    else if (type == MX_TYPE_F16)
        dequantize_f16(in, out, n);
    else if (type == MX_TYPE_BF16)
        dequantize_bf16(in, out, n);
    else
        for (size_t i = 0; i < n; i += (size_t)types[type].block_size, in += types[type].block_bytes)
            decoders[type](in, out + i);
}
