/*
 * kv_type.h: what the keys and values of a KV cache are kept as: names, sizes, and the layout of a half block.
 *
 * A half block holds the keys, or the values, of one layer and KV head for MX_KV_SPAN tokens:
 *   f16, bf16   keys [head_dim][MX_KV_SPAN] (a key is a column), values [MX_KV_SPAN][head_dim]
 *   q8_0        int8 in the same order, then float16 scales, one for MX_KV_GROUP dimensions of a token:
 *               of keys [head_dim / MX_KV_GROUP][MX_KV_SPAN], of values [MX_KV_SPAN][head_dim / MX_KV_GROUP]
 * A scale is the group's largest magnitude / 127; a number is rounded to the nearest (for halves: nearest even).
 */
#ifndef MX_MATH_KV_TYPE_H
#define MX_MATH_KV_TYPE_H

#include "../mx.h"

#define MX_KV_SPAN 32  /* keys a KV block holds, and the fixed span in which attention takes them */
#define MX_KV_GROUP 32 /* dimensions a scale of q8_0 */

typedef enum { MX_KV_F16, MX_KV_BF16, MX_KV_Q8_0, MX_KV_TYPE_COUNT } mx_kv_type;

const char *mx_kv_type_name(mx_kv_type type); /* "f16", as options have it */
int mx_kv_type_fits(mx_kv_type type, int head_dim); /* q8_0: a multiple of MX_KV_GROUP */

/* The type of that name (NULL: f16) for heads of head_dim; MX_INVALID of the option kv_type if there is none or it does not fit. */
mx_status mx_kv_type_choose(const char *name, int head_dim, mx_kv_type *type, mx_error *error);

size_t mx_kv_half_bytes(mx_kv_type type, int head_dim); /* of a half block; a multiple of 64 where head_dim is even */

#endif
