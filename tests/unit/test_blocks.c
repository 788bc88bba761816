/*
 * test_blocks.c: the type table, half precision, and the reference decoder of every type.
 *
 * The expected values come from another implementation: the Python package gguf (gguf.quants.dequantize) on the same random
 * bytes, 4096 weights of each type: four of them to look at, and a hash over the bits of all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "math/blocks.h"
#include "model/synth.h"

#define WEIGHTS 4096

static const struct {
    uint64_t hash;   /* FNV-1a over the words */
    float sample[4]; /* weights 0, 1, 777 and 4095 */
} expected[MX_TYPE_COUNT] = {
    [MX_TYPE_F32] = {0xbe8f57bfabbaf124, {-0x1.a22340p-44f, 0x1.2304b0p-59f, -0x1.c7dfa0p-117f, 0x1.17cb02p-54f}},
    [MX_TYPE_F16] = {0x0213ab5917bb4325, {0x1.680000p-11f, -0x1.744000p-5f, 0x1.52c000p-1f, -0x1.7a0000p-2f}},
    [MX_TYPE_BF16] = {0x677d32142a8d6325, {0x1.400000p-92f, -0x1.a20000p-44f, 0x1.960000p-13f, -0x1.d00000p-20f}},
    [MX_TYPE_Q4_0] = {0x51f747178dc2b325, {-0x1.3b0000p-8f, 0x1.680000p-11f, 0x1.8c0000p-13f, -0x1.158000p-9f}},
    [MX_TYPE_Q4_1] = {0x316b12e2077aa299, {-0x1.474000p-5f, -0x1.690000p-5f, 0x1.aa6000p-6f, -0x1.6b6130p-2f}},
    [MX_TYPE_Q5_0] = {0x5cdac5c98566c925, {0x1.680000p-11f, -0x1.3b0000p-7f, 0x1.c20000p-1f, -0x1.7cd000p-5f}},
    [MX_TYPE_Q5_1] = {0x1f62dec9b34a7719, {-0x1.2b2000p-5f, -0x1.474000p-5f, 0x1.3ed420p+0f, -0x1.5d8416p+0f}},
    [MX_TYPE_Q8_0] = {0x78e353d08c6e0125, {-0x1.086000p-5f, -0x1.e96000p-5f, -0x1.033000p+0f, -0x1.456980p-3f}},
    [MX_TYPE_Q2_K] = {0xee1c706f320ef728, {-0x1.766000p-12f, -0x1.766000p-12f, 0x1.54f000p-3f, -0x1.deb800p-3f}},
    [MX_TYPE_Q3_K] = {0xe0e5f83dfd1b9c25, {-0x1.4c7000p+1f, 0x0.0p+0f, 0x1.82dc00p-9f, -0x1.eb1000p-11f}},
    [MX_TYPE_Q4_K] = {0x802c868a5303d12d, {0x1.212900p+1f, 0x1.09f500p+1f, -0x1.248000p-5f, -0x1.330a44p+1f}},
    [MX_TYPE_Q5_K] = {0x4149e591c2a59ed6, {0x1.2bb500p+1f, 0x1.234500p+1f, 0x1.351b00p-3f, -0x1.7ef810p+4f}},
    [MX_TYPE_Q6_K] = {0x75134ffd0384c0bf, {-0x1.efbe00p+5f, 0x1.075cf0p+5f, -0x1.450500p+1f, 0x1.b0a200p+9f}},
    [MX_TYPE_IQ1_S] = {0x03bf73c771898905, {-0x1.2fc000p-9f, -0x1.2fc000p-9f, 0x1.e39300p-9f, -0x1.20fc00p+3f}},
    [MX_TYPE_IQ1_M] = {0x16de9803b913bd65, {-0x1.e28000p-12f, -0x1.e28000p-12f, 0x1.487400p-8f, 0x1.262a00p-2f}},
    [MX_TYPE_IQ2_XXS] = {0xdfa5302e957f7da9, {-0x1.d4a200p-4f, 0x1.5cc000p-6f, 0x1.ce5800p-1f, 0x1.357e30p+6f}},
    [MX_TYPE_IQ2_XS] = {0xdc31801a2720ccdd, {0x1.d88000p-7f, 0x1.d88000p-7f, 0x1.760000p-5f, 0x1.6e8000p-15f}},
    [MX_TYPE_IQ2_S] = {0xd8c88f96cce81275, {-0x1.3b0000p-8f, 0x1.3b0000p-8f, -0x1.4bb9e0p-5f, 0x1.afdc40p+6f}},
    [MX_TYPE_IQ3_XXS] = {0xae2b322913dcc5bd, {0x1.626000p-5f, -0x1.167000p-4f, 0x1.a4d200p-9f, 0x1.44c600p+1f}},
    [MX_TYPE_IQ3_S] = {0x61d10b9479eed935, {-0x1.6da000p-5f, -0x1.ffe000p-5f, 0x1.01a900p-4f, 0x1.175100p+0f}},
    [MX_TYPE_IQ4_NL] = {0x97def6fefbbb94e5, {-0x1.248000p-4f, 0x1.248000p-7f, 0x1.566000p-9f, -0x1.deb000p-6f}},
    [MX_TYPE_IQ4_XS] = {0xd629cfdebbe30255, {-0x1.842000p-2f, -0x1.680000p-8f, 0x1.aec3e0p+2f, 0x1.09fe60p-4f}},
};

/* Random bytes; the float16 (and float) fields are kept below infinity by clearing an exponent bit, as on the other side. */
static void random_blocks(mx_type type, uint8_t *out)
{
    const mx_type_info *info = mx_type_get(type);
    size_t block = (size_t)info->block_bytes, n = (size_t)(WEIGHTS / info->block_size);
    uint64_t state = 12345;

    for (size_t at = 0; at < n * block; at += 8) {
        uint64_t r = mx_synth_random(&state);

        memcpy(out + at, &r, n * block - at < 8 ? n * block - at : 8);
    }
    for (size_t i = 0; i < n; i++, out += block) {
        size_t d = 0, second = 0; /* offsets of the float16 fields */

        switch (type) {
        case MX_TYPE_F32:
            d = 2;
            break;
        case MX_TYPE_Q2_K:
            d = offsetof(mx_block_q2_k, d);
            second = offsetof(mx_block_q2_k, dmin);
            break;
        case MX_TYPE_Q3_K:
            d = offsetof(mx_block_q3_k, d);
            break;
        case MX_TYPE_Q6_K:
            d = offsetof(mx_block_q6_k, d);
            break;
        case MX_TYPE_IQ1_M: /* its highest nibble is in the last word of scales */
            d = offsetof(mx_block_iq1_m, scales) + 6;
            break;
        case MX_TYPE_Q4_1:
        case MX_TYPE_Q5_1:
        case MX_TYPE_Q4_K:
        case MX_TYPE_Q5_K:
            second = 2;
            break;
        default:
            break;
        }
        out[d + 1] &= 0xbf;
        out[second ? second + 1 : d + 1] &= 0xbf;
    }
}

static void every_type_decodes_as_elsewhere(void **state)
{
    static uint8_t bytes[WEIGHTS * 4 + 1];
    static float out[WEIGHTS];
    (void)state;

    for (int t = 0; t < MX_TYPE_COUNT; t++) {
        static const int places[4] = {0, 1, 777, 4095};
        uint64_t hash = 0xcbf29ce484222325;

        random_blocks((mx_type)t, bytes + 1); /* blocks may lie at odd addresses */
        mx_dequantize((mx_type)t, bytes + 1, out, WEIGHTS);
        for (int i = 0; i < 4; i++)
            if (out[places[i]] != expected[t].sample[i])
                fail_msg("%s: weight %d: expected %a, got %a", mx_type_get((mx_type)t)->name, places[i],
                         (double)expected[t].sample[i], (double)out[places[i]]);
        for (int i = 0; i < WEIGHTS; i++) {
            float f = out[i] + 0.0f; /* -0 and 0 are one value */
            uint32_t bits;

            memcpy(&bits, &f, 4);
            hash = (hash ^ bits) * 0x100000001b3;
        }
        if (hash != expected[t].hash)
            fail_msg("%s: some weight differs", mx_type_get((mx_type)t)->name);
    }
}

static void a_block_by_hand(void **state)
{
    mx_block_q4_1 q4 = {.d = 0x3800, .m = 0xbc00}; /* 0.5, -1 */
    mx_block_q5_0 q5 = {.d = 0x4000};              /* 2 */
    float out[32];
    (void)state;

    q4.q[3] = 0x9e;
    mx_dequantize(MX_TYPE_Q4_1, &q4, out, 32);
    assert_true(out[0] == -1.0f && out[3] == 6.0f && out[19] == 3.5f); /* low nibbles first */
    q5.h[2] = 0x08; /* bit 19 */
    q5.q[3] = 0x70;
    mx_dequantize(MX_TYPE_Q5_0, &q5, out, 32);
    assert_true(out[3] == -32.0f && out[19] == 14.0f);
}

static void the_table_is_the_formats(void **state)
{
    static const struct {
        const char *name;
        uint32_t id;
        int size, bytes;
    } known[] = {{"F32", 0, 1, 4},         {"F16", 1, 1, 2},        {"Q4_0", 2, 32, 18},     {"Q4_1", 3, 32, 20},
                 {"Q5_0", 6, 32, 22},      {"Q5_1", 7, 32, 24},     {"Q8_0", 8, 32, 34},     {"Q2_K", 10, 256, 84},
                 {"Q3_K", 11, 256, 110},   {"Q4_K", 12, 256, 144},  {"Q5_K", 13, 256, 176},  {"Q6_K", 14, 256, 210},
                 {"IQ2_XXS", 16, 256, 66}, {"IQ2_XS", 17, 256, 74}, {"IQ3_XXS", 18, 256, 98}, {"IQ1_S", 19, 256, 50},
                 {"IQ4_NL", 20, 32, 18},   {"IQ3_S", 21, 256, 110}, {"IQ2_S", 22, 256, 82},  {"IQ4_XS", 23, 256, 136},
                 {"IQ1_M", 29, 256, 56},   {"BF16", 30, 1, 2}};
    (void)state;

    assert_int_equal(sizeof known / sizeof known[0], MX_TYPE_COUNT);
    for (size_t i = 0; i < MX_TYPE_COUNT; i++) {
        int type = mx_type_from_gguf(known[i].id);
        const mx_type_info *info;

        assert_in_range(type, 0, MX_TYPE_COUNT - 1);
        info = mx_type_get((mx_type)type);
        assert_string_equal(info->name, known[i].name);
        assert_int_equal(info->block_size, known[i].size);
        assert_int_equal(info->block_bytes, known[i].bytes);
        assert_int_equal(mx_type_from_name(known[i].name), type);
        assert_int_equal(mx_row_bytes((mx_type)type, 14336), 14336 / known[i].size * known[i].bytes);
    }
    assert_int_equal(mx_type_from_name("q4_k"), MX_TYPE_Q4_K);
    assert_int_equal(mx_type_from_name("Q4"), -1);
    assert_int_equal(mx_type_from_gguf(4), -1);
    assert_int_equal(mx_type_from_gguf(39), -1);
    assert_int_equal(mx_type_from_gguf(UINT32_MAX), -1);
    assert_true(mx_row_bytes(MX_TYPE_F32, (int64_t)1 << 40) == (size_t)1 << 42); /* not an int */
}

static void every_half_goes_there_and_back(void **state)
{
    (void)state;

    for (uint32_t h = 0; h < 65536; h++) {
        float f = mx_f16_to_f32((uint16_t)h);

        if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff)) {
            assert_true(f != f);
            assert_int_equal(mx_f32_to_f16(f), h | 0x200); /* quiet */
        } else {
            assert_int_equal(mx_f32_to_f16(f), h);
        }
    }
}

static void halves_are_rounded_to_nearest_even(void **state)
{
    static const struct {
        float f;
        uint16_t h;
    } cases[] = {
        {0x1p-24f, 0x0001},         /* smallest denormal */
        {0x1p-25f, 0x0000},         /* tie with zero */
        {0x1.000002p-25f, 0x0001},  /* just above it */
        {0x1.8p-24f, 0x0002},       /* tie between 1 and 2 */
        {0x1.ff8p-15f, 0x03ff},     /* largest denormal */
        {0x1.ffcp-15f, 0x0400},     /* rounds to the smallest normal */
        {1.0f, 0x3c00},
        {0x1.002p0f, 0x3c00},       /* tie, even below */
        {0x1.006p0f, 0x3c02},       /* tie, even above */
        {-0x1.ffdp0f, 0xbfff},
        {65504.0f, 0x7bff},
        {65519.0f, 0x7bff},
        {65520.0f, 0x7c00},         /* infinity */
        {1e30f, 0x7c00},
        {-1e-30f, 0x8000},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (mx_f32_to_f16(cases[i].f) != cases[i].h)
            fail_msg("%a: expected %04x, got %04x", (double)cases[i].f, cases[i].h, mx_f32_to_f16(cases[i].f));
    assert_true(mx_f16_to_f32(0x03ff) == 0x1.ff8p-15f);
    assert_true(mx_f16_to_f32(0xfc00) < -3e38f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_decodes_as_elsewhere),
        cmocka_unit_test(a_block_by_hand),
        cmocka_unit_test(the_table_is_the_formats),
        cmocka_unit_test(every_half_goes_there_and_back),
        cmocka_unit_test(halves_are_rounded_to_nearest_even),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
