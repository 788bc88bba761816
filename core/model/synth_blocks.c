/*
 * synth_blocks.c: random weights in every type.
 *
 * A block is filled with random bytes, of which any are valid; then its scales are set. Those of groups lie in the upper half of
 * what their bits can hold, and the block's own varies so that both together span a factor of three. What the unit scale
 * gives is measured once for each matrix rather than worked out for each type.
 */
#include "synth.h"

#include <math.h>
#include <string.h>

#define SAMPLE 4096 /* weights that are decoded to measure a type */

uint64_t mx_synth_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* lowest .. highest */
static int between(uint64_t *state, int lowest, int highest)
{
    return lowest + (int)((mx_synth_random(state) >> 32) * (uint64_t)(highest - lowest + 1) >> 32);
}

static int either_sign(uint64_t *state, int lowest, int highest)
{
    int value = between(state, lowest, highest);

    return mx_synth_random(state) >> 63 ? -value : value;
}

static float uniform(uint64_t *state, float lowest, float highest)
{
    return lowest + (float)(mx_synth_random(state) >> 40) * 0x1p-24f * (highest - lowest);
}

/* ---- Scales of groups ---------------------------------------------------------------------------------------------- */

static void set_nibbles(uint64_t *state, uint8_t *scales, int n, int lowest, int highest)
{
    for (int i = 0; i < n; i++)
        scales[i] = (uint8_t)(between(state, lowest, highest) | between(state, lowest, highest) << 4);
}

/* Scales and minima of Q4_K and Q5_K (blocks.c tells where the bits go): the minimum is the scale, so that dmin centres q. */
static void set_k_scales(uint64_t *state, uint8_t s[12])
{
    memset(s, 0, 12);
    for (int g = 0; g < 8; g++) {
        int scale = between(state, 31, 63);

        if (g < 4) {
            s[g] = s[g + 4] = (uint8_t)scale;
        } else {
            s[g + 4] = (uint8_t)((scale & 15) | (scale & 15) << 4);
            s[g - 4] |= (uint8_t)(scale >> 4 << 6);
            s[g] |= (uint8_t)(scale >> 4 << 6);
        }
    }
}

static void set_q3_k_scales(uint64_t *state, uint8_t s[12])
{
    memset(s, 0, 12);
    for (int i = 0; i < 16; i++) {
        int scale = either_sign(state, 15, 31) + 32;

        s[i % 8] |= (uint8_t)((scale & 15) << (i / 8 * 4));
        s[8 + i % 4] |= (uint8_t)(scale >> 4 << (i / 4 * 2));
    }
}

static void set_iq4_xs_scales(uint64_t *state, mx_block_iq4_xs *b)
{
    b->scales_h = 0;
    memset(b->scales_l, 0, sizeof b->scales_l);
    for (int g = 0; g < 8; g++) {
        int scale = either_sign(state, 15, 31) + 32;

        b->scales_l[g / 2] |= (uint8_t)((scale & 15) << (g % 2 * 4));
        b->scales_h |= (uint16_t)(scale >> 4 << (2 * g));
    }
}

/* IQ2_XXS, IQ3_XXS: the highest nibble of each group's last byte; `stride` bytes a group */
static void set_top_nibbles(uint64_t *state, uint8_t *last, int stride)
{
    for (int g = 0; g < 8; g++)
        last[g * stride] = (uint8_t)((last[g * stride] & 15) | between(state, 7, 15) << 4);
}

static void set_iq1_m_scales(uint64_t *state, uint8_t scales[8], uint16_t d)
{
    for (int w = 0; w < 4; w++) {
        uint16_t word = (uint16_t)((d >> (4 * w) & 15) << 12);

        for (int i = 0; i < 4; i++)
            word |= (uint16_t)(between(state, 3, 7) << (3 * i));
        memcpy(scales + 2 * w, &word, 2);
    }
}

/* ---- Blocks -------------------------------------------------------------------------------------------------------- */

/* Types of 32 weights: d, which comes first, varies by a factor of three. q is centred by m or by either sign of d. */
static void set_block_32(mx_type type, uint64_t *state, float unit, uint8_t *block)
{
    uint16_t d = mx_f32_to_f16(unit * uniform(state, 0.5f, 1.5f));

    if (type == MX_TYPE_Q4_1 || type == MX_TYPE_Q5_1) {
        uint16_t m = mx_f32_to_f16(mx_f16_to_f32(d) * (type == MX_TYPE_Q5_1 ? -15.5f : -7.5f));

        memcpy(block + 2, &m, 2);
    } else if (mx_synth_random(state) >> 63) {
        d |= 0x8000;
    }
    memcpy(block, &d, 2);
}

/* Types of 256: d varies by half as much again, the groups' scales by two. */
static void set_block_256(mx_type type, uint64_t *state, float unit, uint8_t *block)
{
    union { /* the block, as what it is */
        uint8_t *bytes;
        mx_block_q2_k *q2;
        mx_block_q3_k *q3;
        mx_block_q4_k *q4;
        mx_block_q5_k *q5;
        mx_block_q6_k *q6;
        mx_block_iq1_s *iq1_s;
        mx_block_iq1_m *iq1_m;
        mx_block_iq2_xs *iq2_xs;
        mx_block_iq2_s *iq2_s;
        mx_block_iq3_s *iq3_s;
        mx_block_iq4_xs *iq4_xs;
    } b = {block};
    uint16_t d = mx_f32_to_f16(unit * uniform(state, 0.8f, 1.2f));

    switch (type) {
    case MX_TYPE_Q2_K:
        for (int i = 0; i < 16; i++) /* scale and minimum alike */
            b.q2->scales[i] = (uint8_t)(between(state, 8, 15) * 17);
        b.q2->d = d;
        b.q2->dmin = mx_f32_to_f16(1.5f * mx_f16_to_f32(d));
        break;
    case MX_TYPE_Q3_K:
        set_q3_k_scales(state, b.q3->scales);
        b.q3->d = d;
        break;
    case MX_TYPE_Q4_K:
        set_k_scales(state, b.q4->scales);
        b.q4->d = d;
        b.q4->dmin = mx_f32_to_f16(7.5f * mx_f16_to_f32(d));
        break;
    case MX_TYPE_Q5_K:
        set_k_scales(state, b.q5->scales);
        b.q5->d = d;
        b.q5->dmin = mx_f32_to_f16(15.5f * mx_f16_to_f32(d));
        break;
    case MX_TYPE_Q6_K:
        for (int i = 0; i < 16; i++)
            b.q6->scales[i] = (int8_t)either_sign(state, 60, 120);
        b.q6->d = d;
        break;
    case MX_TYPE_IQ1_M: /* has no field of its own for d */
        set_iq1_m_scales(state, b.iq1_m->scales, d);
        break;
    case MX_TYPE_IQ4_XS:
        set_iq4_xs_scales(state, b.iq4_xs);
        b.iq4_xs->d = d;
        break;
    default: /* d comes first */
        memcpy(block, &d, 2);
        if (type == MX_TYPE_IQ1_S)
            for (int g = 0; g < 8; g++)
                b.iq1_s->h[g] = (uint16_t)((b.iq1_s->h[g] & 0x8fff) | between(state, 3, 7) << 12);
        else if (type == MX_TYPE_IQ2_XXS)
            set_top_nibbles(state, block + 2 + 7, 8);
        else if (type == MX_TYPE_IQ3_XXS)
            set_top_nibbles(state, block + 2 + 64 + 3, 4);
        else if (type == MX_TYPE_IQ2_XS)
            set_nibbles(state, b.iq2_xs->scales, 8, 7, 15);
        else if (type == MX_TYPE_IQ2_S)
            set_nibbles(state, b.iq2_s->scales, 8, 7, 15);
        else
            set_nibbles(state, b.iq3_s->scales, 4, 5, 10);
    }
}

static void random_blocks(mx_type type, uint64_t *state, float unit, uint8_t *out, size_t n)
{
    const mx_type_info *info = mx_type_get(type);
    size_t bytes = (size_t)info->block_bytes;

    for (size_t i = 0; i < n / (size_t)info->block_size; i++, out += bytes) {
        for (size_t at = 0; at < bytes; at += 8) {
            uint64_t r = mx_synth_random(state);

            memcpy(out + at, &r, bytes - at < 8 ? bytes - at : 8);
        }
        if (info->block_size == 32)
            set_block_32(type, state, unit, out);
        else
            set_block_256(type, state, unit, out);
    }
}

static void random_floats(mx_type type, uint64_t *state, float deviation, uint8_t *out, size_t n)
{
    float limit = deviation * 1.7320508f; /* of a uniform distribution: sqrt(3) deviations */

    for (size_t i = 0; i < n; i++) {
        float x = uniform(state, -limit, limit);
        uint16_t h = mx_f32_to_f16(x);

        if (type == MX_TYPE_F32)
            memcpy(out + 4 * i, &x, 4);
        else if (type == MX_TYPE_F16)
            memcpy(out + 2 * i, &h, 2);
        else
            memcpy(out + 2 * i, (const uint8_t *)&x + 2, 2); /* BF16 is the upper half */
    }
}

/* The deviation that the unit scale gives. */
static float measure(mx_type type)
{
    static const size_t bytes_max = SAMPLE / 32 * sizeof(mx_block_q8_0);
    uint8_t blocks[SAMPLE / 32 * sizeof(mx_block_q8_0)]; /* no type takes more */
    float weights[SAMPLE];
    uint64_t state = 0;
    double sum = 0;

    memset(blocks, 0, bytes_max);
    random_blocks(type, &state, 1, blocks, SAMPLE);
    mx_dequantize(type, blocks, weights, SAMPLE);
    for (int i = 0; i < SAMPLE; i++)
        sum += (double)weights[i] * (double)weights[i];
    return (float)sqrt(sum / SAMPLE);
}

void mx_synth_weights(mx_type type, uint64_t *state, float deviation, uint8_t *out, size_t n)
{
    if (mx_type_get(type)->block_size == 1)
        random_floats(type, state, deviation, out, n);
    else
        random_blocks(type, state, deviation / measure(type), out, n);
}
