/*
 * model_of_avx512.h: the AVX-512 instructions as plain C, by SIMDe, for testing those kernels on a machine without them.
 * Included before everything else when the kernels are compiled for test_kernels_avx512.
 */
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#undef _mm512_madd_epi16 /* SIMDe 0.7.4 gives it the arguments of the masked form */
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)

/* Missing in SIMDe 0.7.4: by halves, through memory. */
static inline __m256 model_half(__m512 x, int i)
{
    float floats[16];

    simde_mm512_storeu_ps(floats, x);
    return _mm256_loadu_ps(floats + 8 * i);
}

static inline __m512 model_cvtph_ps(__m256i h)
{
    float floats[16];

    _mm256_storeu_ps(floats, _mm256_cvtph_ps(_mm256_castsi256_si128(h)));
    _mm256_storeu_ps(floats + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)));
    return simde_mm512_loadu_ps(floats);
}

static inline __m256i model_cvtps_ph(__m512 x)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(model_half(x, 0), 0)),
                                   _mm256_cvtps_ph(model_half(x, 1), 0), 1);
}

#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x8_ps
#define _mm512_cvtph_ps(h) model_cvtph_ps(h)
#define _mm512_cvtps_ph(x, rounding) model_cvtps_ph(x) /* the kernels only round to nearest */
#define _mm512_extractf32x8_ps(x, i) model_half(x, i)

static inline __m512i model_cvtps_epi32(__m512 x)
{
    int32_t ints[16];

    _mm256_storeu_si256((__m256i *)(void *)ints, _mm256_cvtps_epi32(model_half(x, 0)));
    _mm256_storeu_si256((__m256i *)(void *)(ints + 8), _mm256_cvtps_epi32(model_half(x, 1)));
    return simde_mm512_loadu_si512(ints);
}

static inline __m512 model_cvtepi32_ps(__m512i x)
{
    int32_t ints[16];
    float floats[16];

    simde_mm512_storeu_si512(ints, x);
    for (int i = 0; i < 16; i++)
        floats[i] = (float)ints[i];
    return simde_mm512_loadu_ps(floats);
}

static inline __m512i model_cvtepi8_epi32(__m128i x)
{
    int32_t ints[16];

    _mm256_storeu_si256((__m256i *)(void *)ints, _mm256_cvtepi8_epi32(x));
    _mm256_storeu_si256((__m256i *)(void *)(ints + 8), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
    return simde_mm512_loadu_si512(ints);
}

#undef _mm512_cvtepi8_epi32
#define _mm512_cvtepi8_epi32(x) model_cvtepi8_epi32(x)
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(x) model_cvtepi32_ps(x)
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) model_cvtps_epi32(x)
