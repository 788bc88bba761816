/*
 * kernels.h: the table of kernels that every instruction set fills, and the handles they work on.
 *
 * Only kernels look inside a weight or an activation; the rest of the core passes handles. Two products serve every type:
 *   dot    for decode-class tokens and for the output matrix: one column or many, each by the same operations
 *   panel  for prompt-class tokens: a tile of rows is decoded once and multiplied by every column
 * A column's result is a function of its row tile and of the column alone, never of how many columns came with it: that is
 * what makes a request's tokens independent of its neighbours (design: "Same answer"). The two products round differently;
 * which one a token takes is its class, fixed by the request.
 *
 * Activations: quantised weights meet int8 in groups of 32 with a float32 scale and the sums that offsets need;
 * float weights meet float32. Both forms are made once, by mx_kernels.quantize, and read by every product.
 */
#ifndef MX_MATH_KERNELS_H
#define MX_MATH_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include "blocks.h"
#include "kv_type.h"

typedef enum { MX_LAYOUT_FILE } mx_layout; /* rows of blocks, as in the file */

typedef struct {
    mx_type type;
    mx_layout layout;
    int rows, cols;      /* cols is a multiple of the type's block_size */
    size_t row_bytes;
    const uint8_t *data; /* [rows, row_bytes] */
} mx_weight;

#define MX_GROUP 32 /* activations a scale */

typedef struct { /* n columns of `cols` activations; memory is the step arena's */
    int cols;
    int q_stride;  /* cols rounded up to 64, so that a column starts on a cache line */
    int groups;    /* of cols rounded up to 256, so that kernels may read eight at once; those past cols are zero */
    float *x;      /* [n, cols]     float32 */
    int8_t *q;     /* [n, q_stride] round(x / scale), -127 .. 127 */
    float *scale;  /* [n, groups]   largest magnitude of the group / 127 */
    float *sum;    /* [n, groups]   scale * sum of the group's q */
    float *sum16;  /* [n, 2 * groups]  the same for each half group of 16 */
} mx_acts;

typedef struct { /* y[c][r - row_begin] = sum over k of w[r][k] x[column(c)][k], for r in [row_begin, row_end) */
    const mx_weight *w;
    int row_begin, row_end;
    const mx_acts *x;
    const int32_t *column; /* [n_columns] columns of x; NULL: 0 .. n_columns-1 */
    int n_columns;
    float *y;              /* [n_columns, y_stride] */
    size_t y_stride;
    void *scratch;         /* MX_SCRATCH_BYTES, 64-byte aligned, this thread's own */
} mx_product;

#define MX_SCRATCH_BYTES (384 * 1024)

#define MX_ATTENTION_QUERIES 32 /* queries a call */
#define MX_HEAD_DIM_MAX 512

typedef struct { /* queries that share one KV head */
    mx_kv_type type;            /* of the keys and values */
    int head_dim;               /* at most MX_HEAD_DIM_MAX */
    int n_queries;              /* at most MX_ATTENTION_QUERIES */
    const float *const *q;      /* [n_queries] of [head_dim], rotated, not yet scaled */
    float *const *out;          /* [n_queries] of [head_dim] */
    const int32_t *position;    /* [n_queries]: query i sees keys 0 .. position[i] */
    const int32_t *block;       /* [n_spans] the KV block of each span */
    const uint8_t *k, *v;       /* block 0's half blocks (kv_type.h) */
    size_t block_bytes;         /* from one block's to the next one's */
    void *scratch;              /* MX_SCRATCH_BYTES, 64-byte aligned */
} mx_attention;

typedef struct mx_kernels {
    const char *name; /* "scalar", "avx2", "avx512" */
    int row_tile;     /* tasks of the products begin at multiples of it */

    /* x[column] -> q, scale, sum, sum16 of that column, for groups that lie within cols */
    void (*quantize)(mx_acts *a, int column, int group_begin, int group_end);

    void (*dot[MX_TYPE_COUNT])(const mx_product *p);
    void (*panel[MX_TYPE_COUNT])(const mx_product *p);

    void (*attention)(const mx_attention *a);
    void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *y);
    void (*silu_multiply)(float *gate, const float *up, int n);                   /* gate = silu(gate) * up */
    void (*add_scaled)(float *y, const float *x, float scale, int n);             /* y += scale * x */
    float (*dot_f32)(const float *a, const float *b, int n);

    /* A token's key and value [head_dim] of one head into its slot of two half blocks (kv_type.h). */
    void (*store_kv)(mx_kv_type type, const float *k, const float *v, int head_dim, int slot, uint8_t *k_half, uint8_t *v_half);
} mx_kernels;

extern const mx_kernels mx_kernels_scalar;
#ifdef __x86_64__
extern const mx_kernels mx_kernels_avx2, mx_kernels_avx512, mx_kernels_avx512vnni; /* the last two are both "avx512" */
#endif

/* The set of that name, or the best this machine runs where name is NULL; NULL if there is none or the machine lacks it. */
const mx_kernels *mx_kernels_get(const char *name);
const char *mx_kernels_names(void); /* those this machine runs, separated by ", ", for messages */

#endif
