/*
 * kv_rounding.h: what a KV cache makes of numbers, by the definition in core/math/kv_type.h and apart from the kernels.
 */
#ifndef MX_TESTS_KV_ROUNDING_H
#define MX_TESTS_KV_ROUNDING_H

#include <math.h>
#include "../../core/math/blocks.h"
#include "../../core/math/kv_type.h"

/* n numbers of x to out; for q8_0 whole groups of a token. */
static inline void kv_round(mx_kv_type type, const float *x, size_t n, float *out)
{
    for (size_t i = 0; i < n && type == MX_KV_F16; i++)
        out[i] = mx_f16_to_f32(mx_f32_to_f16(x[i]));
    for (size_t i = 0; i < n && type == MX_KV_BF16; i++) { /* 8 bits of significand */
        int exponent;
        double significand = frexp(x[i], &exponent);

        out[i] = (float)ldexp(nearbyint(significand * 256), exponent - 8);
    }
    for (size_t g = 0; g < n && type == MX_KV_Q8_0; g += MX_KV_GROUP) {
        float largest = 0;

        for (size_t i = g; i < g + MX_KV_GROUP; i++)
            largest = fmaxf(largest, fabsf(x[i]));
        for (size_t i = g; i < g + MX_KV_GROUP; i++)
            out[i] = largest > 0 ? nearbyintf(x[i] * (127 / largest)) * mx_f16_to_f32(mx_f32_to_f16(largest / 127)) : 0;
    }
}

#endif
