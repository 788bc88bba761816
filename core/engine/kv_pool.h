/*
 * kv_pool.h: one budget of KV memory, cut into blocks of MX_KV_SPAN tokens.
 *
 * A block holds all layers of its tokens: [layer][kv_head] of { K, V }, each a half block of the shape's type (kv_type.h).
 * Memory is reserved at open, touched on use and never inherited by a fork (MADV_DONTFORK). Blocks are reference-counted;
 * one that has more than one reference is never written. Scheduler thread only, but for the counters.
 */
#ifndef MX_ENGINE_KV_POOL_H
#define MX_ENGINE_KV_POOL_H

#include <stdbool.h>
#include "../math/kernels.h"
#include "../mx.h"

typedef struct mx_kv_pool mx_kv_pool;

typedef struct {
    int n_layers, n_kv_heads, head_dim;
    mx_kv_type type;
} mx_kv_shape;

size_t mx_kv_block_bytes(const mx_kv_shape *shape);

/* budget_bytes / mx_kv_block_bytes blocks, at least one. */
mx_status mx_kv_pool_open(const mx_kv_shape *shape, int64_t budget_bytes, mx_kv_pool **pool, mx_error *error);
void mx_kv_pool_close(mx_kv_pool *pool); /* takes NULL */

int32_t mx_kv_pool_alloc(mx_kv_pool *pool);             /* a block with one reference, or -1: the pool is full */
void mx_kv_pool_ref(mx_kv_pool *pool, int32_t block);
void mx_kv_pool_unref(mx_kv_pool *pool, int32_t block); /* the last one frees */
bool mx_kv_pool_shared(const mx_kv_pool *pool, int32_t block);         /* more than one reference: copy before writing */
void mx_kv_pool_copy(mx_kv_pool *pool, int32_t from, int32_t to);      /* `to` has one reference: its only user's */

const mx_kv_shape *mx_kv_pool_shape(const mx_kv_pool *pool);
int mx_kv_pool_total(const mx_kv_pool *pool);
int mx_kv_pool_used(const mx_kv_pool *pool); /* any thread */

/* Where the K (and V) of a block's layer and head begin. */
uint8_t *mx_kv_pool_k(const mx_kv_pool *pool, int32_t block, int layer, int head);
uint8_t *mx_kv_pool_v(const mx_kv_pool *pool, int32_t block, int layer, int head);

#endif
