/*
 * product_types.h: what the vector primitives of a kernels_*.c and the products over them (products.h) have in common.
 */
#ifndef MX_MATH_PRODUCT_TYPES_H
#define MX_MATH_PRODUCT_TYPES_H

#include "decode.h"
#include "kernels.h"

#define ROW_TILE 16
#define SLICE 512         /* weights of a row in a panel */
#define DOT_COLUMNS 4     /* columns that share one decoding of a row */
#define PANEL_COLUMNS 512 /* columns that share one decoding of a panel */

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef struct { /* of a quantised type; always a compile-time constant */
    int group;   /* weights a scale: 16 or 32 */
    int sign;    /* q is signed */
    int offset;  /* there are offsets */
    int largest; /* of the magnitude of q */
} traits;

typedef void (*decoder)(const void *blocks, int n_groups, mx_decoded *out);

typedef struct { /* one column, from some group on */
    const int8_t *q;
    const float *scale;
    const float *sum; /* a group of the weight: sums of 32, or of 16 */
} column_view;

typedef struct { /* of a quantised type, for SLICE weights of ROW_TILE rows */
    uint8_t q[SLICE * ROW_TILE];             /* [SLICE / 4][ROW_TILE][4] */
    float scale[SLICE / 16 * ROW_TILE];      /* [groups][ROW_TILE] */
    float offset[SLICE / 16 * ROW_TILE];
} __attribute__((aligned(64))) panel;

#endif
