/*
 * kv_pool.h: one budget of KV memory, cut into blocks of MX_KV_SPAN tokens.
 *
 * A block holds all layers of its tokens: [layer][kv_head] of { K, V }, each a half block of the shape's type (kv_type.h).
 * Memory is reserved at open, touched on use and never inherited by a fork (MADV_DONTFORK). A block is
 *     used      sequences have references to it; the prefix index may hold it besides
 *     cached    held by the index alone: its contents can be found again, until the index drops it
 *     free
 * One that is held or has more than one reference is never written. Scheduler thread only, but for the counters.
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

int32_t mx_kv_pool_alloc(mx_kv_pool *pool);             /* a block with one reference, or -1: none is free */
void mx_kv_pool_ref(mx_kv_pool *pool, int32_t block);   /* of a used or a cached one */
void mx_kv_pool_unref(mx_kv_pool *pool, int32_t block); /* the last one leaves it cached, where it is held, or free */
void mx_kv_pool_hold(mx_kv_pool *pool, int32_t block);  /* by the prefix index; once, of a used one */
void mx_kv_pool_drop(mx_kv_pool *pool, int32_t block);  /* the index gives it up */
bool mx_kv_pool_is_held(const mx_kv_pool *pool, int32_t block);
bool mx_kv_pool_is_cached(const mx_kv_pool *pool, int32_t block);
bool mx_kv_pool_is_shared(const mx_kv_pool *pool, int32_t block);  /* or held: copy before writing */
void mx_kv_pool_copy(mx_kv_pool *pool, int32_t from, int32_t to);      /* `to` has one reference: its only user's */

const mx_kv_shape *mx_kv_pool_shape(const mx_kv_pool *pool);
int mx_kv_pool_total(const mx_kv_pool *pool);
int mx_kv_pool_used(const mx_kv_pool *pool);   /* any thread; the rest is cached or free */
int mx_kv_pool_cached(const mx_kv_pool *pool); /* any thread */

/* Where the K (and V) of a block's layer and head begin. */
uint8_t *mx_kv_pool_k(const mx_kv_pool *pool, int32_t block, int layer, int head);
uint8_t *mx_kv_pool_v(const mx_kv_pool *pool, int32_t block, int layer, int head);

/* All of a block, mx_kv_block_bytes long. */
uint8_t *mx_kv_pool_block(const mx_kv_pool *pool, int32_t block);

#endif
