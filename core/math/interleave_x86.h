/*
 * interleave_x86.h: rows of words to a panel, eight by eight, for the x86 kernel sets.
 */
#ifndef MX_MATH_INTERLEAVE_X86_H
#define MX_MATH_INTERLEAVE_X86_H

#include <immintrin.h>
#include "product_types.h"

/* Transposes eight rows of eight words; the words are only moved, never computed with. */
ALWAYS_INLINE void transpose_8x8(const __m256 in[8], __m256 out[8])
{
    __m256 t[8], r[8];

    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        out[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
}

/* Words of ROW_TILE rows, `stride` bytes apart, to [n_words][ROW_TILE]; n_words is a multiple of 8. */
ALWAYS_INLINE void panel_interleave(const uint8_t *rows, size_t stride, int n_words, uint8_t *out)
{
    for (int first = 0; first < ROW_TILE; first += 8)
        for (int k = 0; k < n_words; k += 8) {
            __m256 in[8], words[8];

            for (int i = 0; i < 8; i++)
                in[i] = _mm256_loadu_ps((const float *)(const void *)(rows + (size_t)(first + i) * stride + 4 * k));
            transpose_8x8(in, words);
            for (int i = 0; i < 8; i++)
                _mm256_storeu_ps((float *)(void *)(out + 4 * ((k + i) * ROW_TILE + first)), words[i]);
        }
}

#endif
