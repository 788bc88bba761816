/*
 * elementwise.h: the kernels that work on one token's floats, over the vector primitives of the including kernels_*.c.
 */
#ifndef MX_MATH_ELEMENTWISE_H
#define MX_MATH_ELEMENTWISE_H

/*
 * exp(x) to about 1e-7 relative, 0 where x is under -87: 2^n times a polynomial in r, |r| <= ln(2) / 2.
 * Coefficients: Taylor's, which on so short an interval is as good as a minimax fit of one degree less.
 */
ALWAYS_INLINE VF vf_exp(VF x)
{
    VF clamped = vf_min(vf_max(x, vf_set(-87)), vf_set(88));
    VF n = vf_round(vf_mul(clamped, vf_set(1.44269504f)));
    VF r = vf_fma(n, vf_set(-0.693145752f), clamped); /* ln 2 in two parts */
    VF p;

    r = vf_fma(n, vf_set(-1.42860677e-6f), r);
    p = vf_fma(r, vf_set(1.0f / 5040), vf_set(1.0f / 720));
    p = vf_fma(p, r, vf_set(1.0f / 120));
    p = vf_fma(p, r, vf_set(1.0f / 24));
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, r, vf_set(1));
    p = vf_fma(p, r, vf_set(1));
    return vf_scale(p, n);
}

static float dot_floats(const float *a, const float *b, int n)
{
    VF sum = vf_set(0);
    float tail = 0;
    int i = 0;

    for (; i + VF_N <= n; i += VF_N)
        sum = vf_fma(vf_load(a + i), vf_load(b + i), sum);
    for (; i < n; i++)
        tail += a[i] * b[i];
    return vf_sum(sum) + tail;
}

/* y = x / sqrt(mean(x^2) + eps) * weight   (Zhang and Sennrich 2019, section 4) */
static void rms_norm(const float *x, const float *weight, int n, float eps, float *y)
{
    float scale = 1 / sqrtf(dot_floats(x, x, n) / (float)n + eps);
    int i = 0;

    for (; i + VF_N <= n; i += VF_N)
        vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), vf_set(scale)), vf_load(weight + i)));
    for (; i < n; i++)
        y[i] = x[i] * scale * weight[i];
}

static void silu_multiply(float *gate, const float *up, int n)
{
    int i = 0;

    for (; i + VF_N <= n; i += VF_N) {
        VF x = vf_load(gate + i);
        VF e = vf_exp(vf_sub(vf_set(0), x));

        vf_store(gate + i, vf_mul(vf_div(x, vf_add(vf_set(1), e)), vf_load(up + i)));
    }
    for (; i < n; i++)
        gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void add_scaled(float *y, const float *x, float scale, int n)
{
    int i = 0;

    for (; i + VF_N <= n; i += VF_N)
        vf_store(y + i, vf_fma(vf_load(x + i), vf_set(scale), vf_load(y + i)));
    for (; i < n; i++)
        y[i] += scale * x[i];
}

/* Rounds to nearest even by adding 1.5 * 2^23, whose last bit is worth 1: the sum's low bits are the integer. */
static void quantize_group(const float *x, int8_t *q, float *scale, float sum16[2])
{
    const float magic = 12582912;
    float largest = 0, inverse;

    for (int i = 0; i < MX_GROUP; i++) {
        float magnitude = fabsf(x[i]);

        largest = magnitude > largest ? magnitude : largest;
    }
    *scale = largest / 127;
    inverse = largest > 0 ? 127 / largest : 0;
    for (int half_group = 0; half_group < 2; half_group++) {
        int32_t total = 0;

        for (int i = 16 * half_group; i < 16 * half_group + 16; i++) {
            float shifted = x[i] * inverse + magic;
            int32_t bits;

            memcpy(&bits, &shifted, 4);
            q[i] = (int8_t)(bits - 0x4b400000);
            total += q[i];
        }
        sum16[half_group] = *scale * (float)total;
    }
}

static void quantize(mx_acts *a, int column, int group_begin, int group_end)
{
    size_t c = (size_t)column, groups = (size_t)a->groups;

    for (int g = group_begin; g < group_end; g++) {
        float *sum16 = a->sum16 + 2 * (c * groups + (size_t)g);

        quantize_group(a->x + c * (size_t)a->cols + (size_t)g * MX_GROUP,
                       a->q + c * (size_t)a->q_stride + (size_t)g * MX_GROUP, a->scale + c * groups + (size_t)g, sum16);
        a->sum[c * groups + (size_t)g] = sum16[0] + sum16[1];
    }
}

#define KERNEL_TABLE(set_name)                                                                            \
    {                                                                                                     \
        .name = set_name, .row_tile = ROW_TILE, .quantize = quantize, .dot = DOT_TABLE, .panel = PANEL_TABLE, \
        .attention = attention, .rms_norm = rms_norm, .silu_multiply = silu_multiply,                      \
        .add_scaled = add_scaled, .dot_f32 = dot_floats, .store_kv = store_kv                              \
    }

#endif
