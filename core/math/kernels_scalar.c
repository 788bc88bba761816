/*
 * kernels_scalar.c: the kernels in plain C, the definition that every other set is tested against.
 *
 * A "vector" is one float. The arithmetic is that of the fast sets: int8 activations, exact integer sums a group,
 * float32 scales.
 */
#include <math.h>
#include "product_types.h"

/* ---- Vectors of one float -------------------------------------------------------------------------------------------- */

#define VF float
#define VF_N 1

ALWAYS_INLINE VF vf_set(float x) { return x; }
ALWAYS_INLINE VF vf_load(const float *p) { return *p; }
ALWAYS_INLINE void vf_store(float *p, VF x) { *p = x; }
ALWAYS_INLINE VF vf_load_half(const uint16_t *p) { return mx_f16_to_f32(*p); }
ALWAYS_INLINE VF vf_load_bytes(const int8_t *p) { return *p; }
ALWAYS_INLINE void vf_store_half(uint16_t *p, VF x) { *p = mx_f32_to_f16(x); }
ALWAYS_INLINE VF vf_add(VF a, VF b) { return a + b; }
ALWAYS_INLINE VF vf_sub(VF a, VF b) { return a - b; }
ALWAYS_INLINE VF vf_mul(VF a, VF b) { return a * b; }
ALWAYS_INLINE VF vf_div(VF a, VF b) { return a / b; }
ALWAYS_INLINE VF vf_fma(VF a, VF b, VF c) { return a * b + c; }
ALWAYS_INLINE VF vf_max(VF a, VF b) { return a > b ? a : b; }
ALWAYS_INLINE VF vf_min(VF a, VF b) { return a < b ? a : b; }
ALWAYS_INLINE VF vf_round(VF x) { return nearbyintf(x); }
ALWAYS_INLINE VF vf_scale(VF x, VF n) { return ldexpf(x, (int)n); }
ALWAYS_INLINE float vf_sum(VF x) { return x; }

/* ---- Dot: one row, one column ----------------------------------------------------------------------------------------- */

typedef struct {
    float sum;
} dot_acc;

ALWAYS_INLINE void dot_clear(dot_acc *acc)
{
    acc->sum = 0;
}

ALWAYS_INLINE float dot_total(const dot_acc *acc)
{
    return acc->sum;
}

ALWAYS_INLINE int byte_of(uint8_t q, traits t)
{
    return t.sign ? (int8_t)q : q;
}

ALWAYS_INLINE void dot_decoded(dot_acc *acc, const mx_decoded *w, column_view x, int n_groups, traits t)
{
    for (int s = 0; s < n_groups * MX_GROUP / t.group; s++) {
        int sum = 0;

        for (int i = s * t.group; i < (s + 1) * t.group; i++)
            sum += byte_of(w->q[i], t) * x.q[i];
        acc->sum += (float)sum * (w->scale[s] * x.scale[s * t.group / MX_GROUP]);
        if (t.offset)
            acc->sum += w->offset[s] * x.sum[s];
    }
}

/* ---- Panel: ROW_TILE rows, COLUMN_TILE columns ------------------------------------------------------------------------ */

#define COLUMN_TILE 1

ALWAYS_INLINE void panel_decoded(const panel *w, int n_groups, const column_view x[COLUMN_TILE],
                                 float (*y)[ROW_TILE], traits t)
{
    for (int s = 0; s < n_groups * MX_GROUP / t.group; s++)
        for (int row = 0; row < ROW_TILE; row++) {
            int sum = 0;

            for (int i = s * t.group; i < (s + 1) * t.group; i++)
                sum += byte_of(w->q[(i / 4 * ROW_TILE + row) * 4 + i % 4], t) * x->q[i];
            y[0][row] += (float)sum * (w->scale[s * ROW_TILE + row] * x->scale[s * t.group / MX_GROUP]);
            if (t.offset)
                y[0][row] += w->offset[s * ROW_TILE + row] * x->sum[s];
        }
}

/* Words of ROW_TILE rows, `stride` bytes apart, to [n_words][ROW_TILE]. */
ALWAYS_INLINE void panel_interleave(const uint8_t *rows, size_t stride, int n_words, uint8_t *out)
{
    for (int k = 0; k < n_words; k++)
        for (int row = 0; row < ROW_TILE; row++)
            memcpy(out + 4 * (k * ROW_TILE + row), rows + (size_t)row * stride + 4 * k, 4);
}

#include "products.h"
#include "elementwise.h"
#include "attention_kernel.h"

const mx_kernels mx_kernels_scalar = KERNEL_TABLE("scalar");
