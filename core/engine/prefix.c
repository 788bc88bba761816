/*
 * prefix.c: names to blocks (a hash table with open addressing), and the order in which blocks were last used (a list).
 *
 * A named block is in the table and in the list. The list's order matters only for cached blocks, so one that is met in
 * use while looking for a victim moves to the recent end: its users move it there again when they leave. That keeps the search for
 * a victim short without a word from the pool when a block is taken into use.
 */
#include "prefix.h"

#include <assert.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"

_Static_assert(sizeof(mx_prefix_name) == crypto_generichash_BYTES, "a name is one hash");
_Static_assert(sizeof(mx_prefix_key) == crypto_generichash_KEYBYTES, "a key is one key");

struct mx_prefix {
    mx_kv_pool *pool;
    mx_prefix_key secret;
    int n_blocks;
    mx_prefix_name *names; /* [n_blocks] of the blocks that are named */
    int32_t *table;        /* [mask + 1] blocks, -1: empty */
    uint32_t mask;
    int32_t *older, *newer; /* [n_blocks + 1] the list, closed by the entry n_blocks; newer[n_blocks] is the oldest */
};

mx_status mx_prefix_open(mx_kv_pool *pool, mx_prefix **prefix, mx_error *error)
{
    mx_prefix *p = calloc(1, sizeof *p);
    size_t n = (size_t)mx_kv_pool_total(pool), slots = 16;

    *prefix = NULL;
    while (slots < 2 * n)
        slots *= 2;
    if (p) {
        p->pool = pool;
        p->n_blocks = (int)n;
        p->mask = (uint32_t)(slots - 1);
        p->names = malloc(n * sizeof *p->names);
        p->table = malloc(slots * sizeof *p->table);
        p->older = malloc((n + 1) * sizeof *p->older);
        p->newer = malloc((n + 1) * sizeof *p->newer);
    }
    if (!p || !p->names || !p->table || !p->older || !p->newer) {
        mx_prefix_close(p);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for an index of %zu KV blocks", n);
    }
    memset(p->table, 0xff, slots * sizeof *p->table);
    p->older[n] = p->newer[n] = (int32_t)n;
    randombytes_buf(&p->secret, sizeof p->secret);
    *prefix = p;
    return MX_OK;
}

void mx_prefix_close(mx_prefix *p)
{
    if (!p)
        return;
    sodium_memzero(&p->secret, sizeof p->secret);
    free(p->names);
    free(p->table);
    free(p->older);
    free(p->newer);
    free(p);
}

/* ---- Names ---------------------------------------------------------------------------------------------------------- */

void mx_prefix_tenant_key(const mx_prefix *p, const char *tenant, mx_prefix_key *key)
{
    crypto_generichash(key->bytes, sizeof key->bytes, (const uint8_t *)tenant, strlen(tenant), p->secret.bytes,
                       sizeof p->secret.bytes);
}

void mx_prefix_next(const mx_prefix_key *key, const mx_prefix_name *before, const int32_t tokens[MX_KV_SPAN],
                    const uint8_t classes[MX_KV_SPAN], mx_prefix_name *name)
{
    crypto_generichash_state state;

    crypto_generichash_init(&state, key->bytes, sizeof key->bytes, sizeof name->bytes);
    crypto_generichash_update(&state, before->bytes, sizeof before->bytes);
    crypto_generichash_update(&state, (const uint8_t *)tokens, MX_KV_SPAN * sizeof *tokens);
    crypto_generichash_update(&state, classes, MX_KV_SPAN);
    crypto_generichash_final(&state, name->bytes, sizeof name->bytes);
}

/* ---- The table: linear probing ---------------------------------------------------------------------------------------- */

static uint32_t home(const mx_prefix *p, const mx_prefix_name *name)
{
    uint32_t bits;

    memcpy(&bits, name->bytes, sizeof bits);
    return bits & p->mask;
}

/* The slot of that name, or the empty one where it would be. */
static uint32_t slot_of(const mx_prefix *p, const mx_prefix_name *name)
{
    uint32_t slot = home(p, name);

    while (p->table[slot] >= 0 && memcmp(&p->names[p->table[slot]], name, sizeof *name) != 0)
        slot = (slot + 1) & p->mask;
    return slot;
}

/* Empties a slot and moves those up that were displaced past it (Knuth, TAOCP 3, 6.4, algorithm R). */
static void remove_slot(mx_prefix *p, uint32_t hole)
{
    for (uint32_t at = (hole + 1) & p->mask; p->table[at] >= 0; at = (at + 1) & p->mask) {
        uint32_t from = home(p, &p->names[p->table[at]]);

        if (((at - from) & p->mask) >= ((at - hole) & p->mask)) {
            p->table[hole] = p->table[at];
            hole = at;
        }
    }
    p->table[hole] = -1;
}

int32_t mx_prefix_find(const mx_prefix *p, const mx_prefix_name *name)
{
    return p->table[slot_of(p, name)];
}

/* ---- The list --------------------------------------------------------------------------------------------------------- */

static void unlink_block(mx_prefix *p, int32_t block)
{
    p->newer[p->older[block]] = p->newer[block];
    p->older[p->newer[block]] = p->older[block];
}

static void link_newest(mx_prefix *p, int32_t block)
{
    int32_t end = p->n_blocks;

    p->older[block] = p->older[end];
    p->newer[block] = end;
    p->newer[p->older[end]] = block;
    p->older[end] = block;
}

static void touch(mx_prefix *p, int32_t block)
{
    unlink_block(p, block);
    link_newest(p, block);
}

/* ---- Use -------------------------------------------------------------------------------------------------------------- */

int32_t mx_prefix_take(mx_prefix *p, const mx_prefix_name *name)
{
    int32_t block = mx_prefix_find(p, name);

    if (block >= 0)
        mx_kv_pool_ref(p->pool, block);
    return block;
}

int32_t mx_prefix_add(mx_prefix *p, const mx_prefix_name *name, int32_t block)
{
    uint32_t slot = slot_of(p, name);
    int32_t known = p->table[slot];

    if (known == block)
        return block;
    if (known >= 0) {
        mx_kv_pool_ref(p->pool, known);
        mx_kv_pool_unref(p->pool, block);
        return known;
    }
    mx_kv_pool_hold(p->pool, block);
    p->table[slot] = block;
    p->names[block] = *name;
    link_newest(p, block);
    return block;
}

void mx_prefix_leave(mx_prefix *p, int32_t block)
{
    if (mx_kv_pool_is_held(p->pool, block))
        touch(p, block);
    mx_kv_pool_unref(p->pool, block);
}

/* Frees the least recently used block that nobody uses. */
static bool evict(mx_prefix *p)
{
    int32_t end = p->n_blocks, block;

    for (int i = mx_kv_pool_used(p->pool); i >= 0; i--) { /* no more than that can be in use before one that is not */
        block = p->newer[end];
        if (block == end)
            return false;
        if (mx_kv_pool_is_cached(p->pool, block)) {
            unlink_block(p, block);
            remove_slot(p, slot_of(p, &p->names[block]));
            mx_kv_pool_drop(p->pool, block);
            return true;
        }
        touch(p, block);
    }
    return false;
}

int32_t mx_prefix_alloc(mx_prefix *p)
{
    int32_t block = mx_kv_pool_alloc(p->pool);

    if (block < 0 && mx_kv_pool_cached(p->pool) > 0 && evict(p))
        block = mx_kv_pool_alloc(p->pool);
    return block;
}
