/*
 * blocks.h: the tensor types of GGUF: block layouts, sizes, names, and their reference decoders.
 *
 * A row of a tensor is a sequence of blocks of `block_size` weights in `block_bytes` bytes. The structs are the bytes
 * of the file (little-endian, unaligned: packed). The reference decoder defines what a type means; every kernel is tested
 * against it. Source: ggml's ggml-common.h (layouts, codebooks) and ggml-quants.c (meaning).
 */
#ifndef MX_MATH_BLOCKS_H
#define MX_MATH_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

typedef enum { /* our own dense numbering, in the order of design.md; the file's is mx_type_info.gguf_id */
    MX_TYPE_F32, MX_TYPE_F16, MX_TYPE_BF16,
    MX_TYPE_Q4_0, MX_TYPE_Q4_1, MX_TYPE_Q5_0, MX_TYPE_Q5_1, MX_TYPE_Q8_0,
    MX_TYPE_Q2_K, MX_TYPE_Q3_K, MX_TYPE_Q4_K, MX_TYPE_Q5_K, MX_TYPE_Q6_K,
    MX_TYPE_IQ1_S, MX_TYPE_IQ1_M, MX_TYPE_IQ2_XXS, MX_TYPE_IQ2_XS, MX_TYPE_IQ2_S, MX_TYPE_IQ3_XXS, MX_TYPE_IQ3_S,
    MX_TYPE_IQ4_NL, MX_TYPE_IQ4_XS,
    MX_TYPE_COUNT
} mx_type;

typedef struct {
    const char *name; /* "Q4_K" */
    uint32_t gguf_id; /* the number in a file's tensor table (ggml_type) */
    int block_size;   /* weights a block */
    int block_bytes;
} mx_type_info;

const mx_type_info *mx_type_get(mx_type type);       /* static; never NULL for a valid type */
int mx_type_from_gguf(uint32_t gguf_id);             /* an mx_type, or -1 for a type that is not built */
int mx_type_from_name(const char *name);             /* "q4_k", "Q4_K"; or -1 */
size_t mx_row_bytes(mx_type type, int64_t cols);     /* cols: a multiple of block_size */

/* Decodes `n` weights (a multiple of block_size) from `blocks` to out[n]. */
void mx_dequantize(mx_type type, const void *blocks, float *out, size_t n);

float mx_f16_to_f32(uint16_t h);
uint16_t mx_f32_to_f16(float f); /* round to nearest even */

#define MX_PACKED __attribute__((packed))
typedef struct MX_PACKED { uint16_t d; uint8_t q[16]; } mx_block_q4_0;               /* w = d (q - 8); low nibbles first */
typedef struct MX_PACKED { uint16_t d, m; uint8_t q[16]; } mx_block_q4_1;            /* w = d q + m */
typedef struct MX_PACKED { uint16_t d; uint8_t h[4], q[16]; } mx_block_q5_0;         /* w = d (q - 16) */
typedef struct MX_PACKED { uint16_t d, m; uint8_t h[4], q[16]; } mx_block_q5_1;      /* w = d q + m */
typedef struct MX_PACKED { uint16_t d; int8_t q[32]; } mx_block_q8_0;                /* w = d q */
typedef struct MX_PACKED { uint8_t scales[16], q[64]; uint16_t d, dmin; } mx_block_q2_k;
typedef struct MX_PACKED { uint8_t h[32], q[64], scales[12]; uint16_t d; } mx_block_q3_k;
typedef struct MX_PACKED { uint16_t d, dmin; uint8_t scales[12], q[128]; } mx_block_q4_k;
typedef struct MX_PACKED { uint16_t d, dmin; uint8_t scales[12], h[32], q[128]; } mx_block_q5_k;
typedef struct MX_PACKED { uint8_t l[128], h[64]; int8_t scales[16]; uint16_t d; } mx_block_q6_k;
typedef struct MX_PACKED { uint16_t d; uint8_t q[32]; uint16_t h[8]; } mx_block_iq1_s;
typedef struct MX_PACKED { uint8_t q[32], h[16], scales[8]; } mx_block_iq1_m;
typedef struct MX_PACKED { uint16_t d; uint16_t q[32]; } mx_block_iq2_xxs;
typedef struct MX_PACKED { uint16_t d; uint16_t q[32]; uint8_t scales[8]; } mx_block_iq2_xs;
typedef struct MX_PACKED { uint16_t d; uint8_t q[32], signs[32], h[8], scales[8]; } mx_block_iq2_s;
typedef struct MX_PACKED { uint16_t d; uint8_t q[96]; } mx_block_iq3_xxs;
typedef struct MX_PACKED { uint16_t d; uint8_t q[64], h[8], signs[32], scales[4]; } mx_block_iq3_s;
typedef struct MX_PACKED { uint16_t d; uint8_t q[16]; } mx_block_iq4_nl;
typedef struct MX_PACKED { uint16_t d, scales_h; uint8_t scales_l[4], q[128]; } mx_block_iq4_xs;

#endif
