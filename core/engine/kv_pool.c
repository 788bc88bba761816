/*
 * kv_pool.c: the blocks, their free list and their references.
 *
 * One mapping of total * block_bytes is reserved at open and not touched: a page costs memory from
 * its first write on. Its pages stay when a block is freed, for the next user. Blocks that were
 * never used follow each other from `fresh` on; freed ones wait on a stack and are taken first,
 * warm ones before others. references[b] is 0 for a block that is free or cached, and held[b] tells
 * the two apart. Scheduler thread only, but for `used` and `cached`.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "../error.h"
#include "kv_pool.h"

struct mx_kv_pool {
    mx_kv_shape shape;
    size_t half_bytes; /* K, or V, of one layer and head */
    size_t block_bytes;
    int total;
    uint8_t *memory;     /* [total, block_bytes], mapped */
    int32_t *references; /* [total] of sequences */
    bool *held;          /* [total] by the prefix index */
    int32_t *freed;      /* [n_freed of total] */
    int n_freed;
    int fresh; /* blocks from here on were never used */
    atomic_int used, cached;
};

static size_t half_bytes(const mx_kv_shape *shape)
{
    return mx_kv_half_bytes(shape->type, shape->head_dim);
}

size_t mx_kv_block_bytes(const mx_kv_shape *shape)
{
    return 2 * half_bytes(shape) * (size_t)shape->n_layers * (size_t)shape->n_kv_heads;
}

/* Reserves address space; pages come with the first write to them. */
static mx_status reserve(mx_kv_pool *p, mx_error *error)
{
    size_t bytes = (size_t)p->total * p->block_bytes;

    p->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->memory == MAP_FAILED)
        return mx_fail(error, MX_NOMEM, "kv_pool_bytes",
                       "cannot reserve %zu bytes for %d KV blocks: %s", bytes, p->total,
                       strerror(errno));
    if (madvise(p->memory, bytes, MADV_DONTFORK) != 0)
        return mx_fail(error, MX_IO, NULL, "cannot keep the KV pool out of child processes: %s",
                       strerror(errno));
    return MX_OK;
}

mx_status mx_kv_pool_open(const mx_kv_shape *shape, int64_t budget_bytes, mx_kv_pool **pool,
                          mx_error *error)
{
    int64_t block_bytes = (int64_t)mx_kv_block_bytes(shape);
    int64_t blocks = budget_bytes < block_bytes ? 1 : budget_bytes / block_bytes;
    mx_kv_pool *p;
    mx_status status;

    *pool = NULL;
    if (blocks > INT_MAX)
        return mx_fail(error, MX_INVALID, "kv_pool_bytes",
                       "kv_pool_bytes: expected at most %d blocks of %" PRId64
                       " bytes, got %" PRId64 " bytes",
                       INT_MAX, block_bytes, budget_bytes);
    p = calloc(1, sizeof *p);
    if (!p)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a KV pool");
    p->shape = *shape;
    p->half_bytes = half_bytes(shape);
    p->block_bytes = (size_t)block_bytes;
    p->total = (int)blocks;

    status = reserve(p, error);
    if (status != MX_OK)
        goto failed;
    p->references = calloc((size_t)p->total, sizeof *p->references);
    p->held = calloc((size_t)p->total, sizeof *p->held);
    p->freed = malloc((size_t)p->total * sizeof *p->freed);
    if (!p->references || !p->held || !p->freed) {
        status =
            mx_fail(error, MX_NOMEM, "kv_pool_bytes", "out of memory for %d KV blocks", p->total);
        goto failed;
    }
    *pool = p;
    return MX_OK;

failed:
    mx_kv_pool_close(p);
    return status;
}

void mx_kv_pool_close(mx_kv_pool *p)
{
    if (!p)
        return;
    if (p->memory && p->memory != MAP_FAILED)
        munmap(p->memory, (size_t)p->total * p->block_bytes);
    free(p->references);
    free(p->held);
    free(p->freed);
    free(p);
}

static void count(atomic_int *counter, int n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

int32_t mx_kv_pool_alloc(mx_kv_pool *p)
{
    int32_t block;

    if (p->n_freed > 0)
        block = p->freed[--p->n_freed];
    else if (p->fresh < p->total)
        block = p->fresh++;
    else
        return -1;
    assert(p->references[block] == 0 && !p->held[block]);
    p->references[block] = 1;
    count(&p->used, 1);
    return block;
}

void mx_kv_pool_ref(mx_kv_pool *p, int32_t block)
{
    assert(block >= 0 && block < p->total && (p->references[block] > 0 || p->held[block]));
    if (p->references[block]++ > 0)
        return;
    count(&p->used, 1);
    count(&p->cached, -1);
}

void mx_kv_pool_unref(mx_kv_pool *p, int32_t block)
{
    assert(block >= 0 && block < p->total && p->references[block] > 0);
    if (--p->references[block] > 0)
        return;
    count(&p->used, -1);
    if (p->held[block])
        count(&p->cached, 1);
    else
        p->freed[p->n_freed++] = block;
}

void mx_kv_pool_hold(mx_kv_pool *p, int32_t block)
{
    assert(block >= 0 && block < p->total && p->references[block] > 0 && !p->held[block]);
    p->held[block] = true;
}

void mx_kv_pool_drop(mx_kv_pool *p, int32_t block)
{
    assert(block >= 0 && block < p->total && p->held[block]);
    p->held[block] = false;
    if (p->references[block] > 0)
        return;
    count(&p->cached, -1);
    p->freed[p->n_freed++] = block;
}

bool mx_kv_pool_is_held(const mx_kv_pool *p, int32_t block)
{
    return p->held[block];
}

bool mx_kv_pool_is_cached(const mx_kv_pool *p, int32_t block)
{
    return p->held[block] && p->references[block] == 0;
}

bool mx_kv_pool_is_shared(const mx_kv_pool *p, int32_t block)
{
    assert(block >= 0 && block < p->total && p->references[block] > 0);
    return p->references[block] > 1 || p->held[block];
}

void mx_kv_pool_copy(mx_kv_pool *p, int32_t from, int32_t to)
{
    assert(p->references[from] > 0 && p->references[to] == 1 && !p->held[to]);
    memcpy(mx_kv_pool_block(p, to), mx_kv_pool_block(p, from), p->block_bytes);
}

const mx_kv_shape *mx_kv_pool_shape(const mx_kv_pool *p)
{
    return &p->shape;
}

int mx_kv_pool_total(const mx_kv_pool *p)
{
    return p->total;
}

int mx_kv_pool_used(const mx_kv_pool *p)
{
    return atomic_load_explicit(&p->used, memory_order_relaxed);
}

int mx_kv_pool_cached(const mx_kv_pool *p)
{
    return atomic_load_explicit(&p->cached, memory_order_relaxed);
}

uint8_t *mx_kv_pool_block(const mx_kv_pool *p, int32_t block)
{
    assert(block >= 0 && block < p->total);
    return p->memory + (size_t)block * p->block_bytes;
}

uint8_t *mx_kv_pool_k(const mx_kv_pool *p, int32_t block, int layer, int head)
{
    size_t pair = (size_t)layer * (size_t)p->shape.n_kv_heads + (size_t)head;

    return mx_kv_pool_block(p, block) + pair * 2 * p->half_bytes;
}

uint8_t *mx_kv_pool_v(const mx_kv_pool *p, int32_t block, int layer, int head)
{
    return mx_kv_pool_k(p, block, layer, head) + p->half_bytes;
}
