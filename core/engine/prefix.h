/*
 * prefix.h: the prefix index: which blocks of the KV pool hold which tokens, so that no prefix is computed twice.
 *
 * A full block has a name: a hash of its tokens, their classes and its predecessor's name, keyed with the tenant's key. The same
 * name means the same keys and values, bit for bit, because a token's results depend on these alone (design: "Same answer").
 * Another tenant's blocks have other names and are never found, so timing tells nothing of what others have asked.
 *
 * The index holds the blocks that it names. One that is in use by nobody stays findable until it is evicted, least recently
 * used first; of a chain the end goes first, since sequences give their blocks up from the end. Scheduler thread only,
 * but for mx_prefix_key and mx_prefix_next.
 */
#ifndef MX_ENGINE_PREFIX_H
#define MX_ENGINE_PREFIX_H

#include "kv_pool.h"

typedef struct mx_prefix mx_prefix;

typedef struct {
    uint8_t bytes[32];
} mx_prefix_name; /* of a block; all zero: what comes before the first one */

typedef struct {
    uint8_t bytes[32];
} mx_prefix_key; /* a tenant's */

/* `pool` outlives the index. The keys' secret is drawn at random. MX_NOMEM. */
mx_status mx_prefix_open(mx_kv_pool *pool, mx_prefix **prefix, mx_error *error);
void mx_prefix_close(mx_prefix *prefix); /* takes NULL; the pool's blocks stay held */

/* Any thread. */
void mx_prefix_tenant_key(const mx_prefix *prefix, const char *tenant, mx_prefix_key *key);
void mx_prefix_next(const mx_prefix_key *key, const mx_prefix_name *before, const int32_t tokens[MX_KV_SPAN],
                    const uint8_t classes[MX_KV_SPAN], mx_prefix_name *name);

/* The block of that name; -1: there is none. mx_prefix_take: with a reference for the caller. */
int32_t mx_prefix_find(const mx_prefix *prefix, const mx_prefix_name *name);
int32_t mx_prefix_take(mx_prefix *prefix, const mx_prefix_name *name);

/*
 * Names a full block of the caller's, who does not write it any more. Gives the block to use from now on: the same, or
 * the one that has the name already; the caller's reference is then to that one.
 */
int32_t mx_prefix_add(mx_prefix *prefix, const mx_prefix_name *name, int32_t block);

/* Its user is done with it, and gives its reference back: of a chain, from the end. */
void mx_prefix_leave(mx_prefix *prefix, int32_t block);

/* A block with one reference, for which a cached one may be evicted. -1: all are in use. */
int32_t mx_prefix_alloc(mx_prefix *prefix);

#endif
