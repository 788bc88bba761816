/*
 * test_prefix.c: the KV pool and the prefix index against a model of them: a plain list of who uses and who names what, checked
 * after every one of millions of random operations.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <sodium.h>
#include "../../core/engine/prefix.h"

#define BLOCKS 24
#define NAMES 40   /* more than there are blocks: some are evicted */
#define USERS 60   /* references at a time */
#define OPERATIONS 3000000

static mx_kv_pool *pool;
static mx_prefix *prefix;
static mx_prefix_name names[NAMES];

/* The model. */
static int uses[BLOCKS];      /* references */
static int name_of[BLOCKS];   /* -1: none */
static uint64_t used_at[BLOCKS]; /* when its last user left */
static int32_t user[USERS];   /* blocks, one a reference */
static int n_users;
static uint64_t now;

static void open_all(int blocks)
{
    const mx_kv_shape shape = {1, 1, 32, MX_KV_F16};
    const mx_prefix_name before = {{0}};
    int32_t tokens[MX_KV_SPAN] = {0};
    uint8_t classes[MX_KV_SPAN] = {0};
    mx_prefix_key key;
    mx_error error;

    assert_int_equal(mx_kv_pool_open(&shape, blocks * (int64_t)mx_kv_block_bytes(&shape), &pool, &error), MX_OK);
    assert_int_equal(mx_prefix_open(pool, &prefix, &error), MX_OK);
    mx_prefix_tenant_key(prefix, "tenant", &key);
    for (int i = 0; i < NAMES; i++) {
        tokens[MX_KV_SPAN - 1] = i;
        mx_prefix_next(&key, &before, tokens, classes, &names[i]);
    }
    n_users = 0;
    now = 0;
    for (int b = 0; b < BLOCKS; b++)
        uses[b] = 0, name_of[b] = -1;
}

static void close_all(void)
{
    mx_prefix_close(prefix);
    mx_kv_pool_close(pool);
}

static void check(void)
{
    int used = 0, cached = 0;

    for (int b = 0; b < BLOCKS; b++) {
        used += uses[b] > 0;
        cached += uses[b] == 0 && name_of[b] >= 0;
        assert_int_equal(mx_kv_pool_is_held(pool, b), name_of[b] >= 0);
        if (uses[b] > 0)
            assert_int_equal(mx_kv_pool_is_shared(pool, b), uses[b] > 1 || name_of[b] >= 0);
        if (name_of[b] >= 0)
            assert_int_equal(mx_prefix_find(prefix, &names[name_of[b]]), b);
    }
    assert_int_equal(mx_kv_pool_used(pool), used);
    assert_int_equal(mx_kv_pool_cached(pool), cached);
}

static void add_user(int32_t block)
{
    uses[block]++;
    user[n_users++] = block;
}

/* Free blocks first, then the cached one whose user left first. */
static void allocate(void)
{
    int victim = -1;
    bool free_ones = false;
    int32_t block;

    for (int b = 0; b < BLOCKS; b++) {
        free_ones |= uses[b] == 0 && name_of[b] < 0;
        if (uses[b] == 0 && name_of[b] >= 0 && (victim < 0 || used_at[b] < used_at[victim]))
            victim = b;
    }
    block = mx_prefix_alloc(prefix);
    if (free_ones) {
        assert_true(block >= 0 && uses[block] == 0 && name_of[block] < 0);
    } else {
        assert_int_equal(block, victim);
        if (block < 0)
            return;
        name_of[block] = -1;
    }
    add_user(block);
}

static void take(int name)
{
    int32_t expected = -1, block;

    for (int b = 0; b < BLOCKS; b++)
        if (name_of[b] == name)
            expected = b;
    block = mx_prefix_take(prefix, &names[name]);
    assert_int_equal(block, expected);
    if (block >= 0)
        add_user(block);
}

static void publish(int i, int name)
{
    int32_t block = user[i], known = -1, got;

    if (name_of[block] >= 0) /* a block has one name */
        return;
    for (int b = 0; b < BLOCKS; b++)
        if (name_of[b] == name)
            known = b;
    got = mx_prefix_add(prefix, &names[name], block);
    assert_int_equal(got, known >= 0 ? known : block);
    if (known >= 0) {
        uses[block]--;
        uses[known]++;
        user[i] = known;
    } else {
        name_of[block] = name;
    }
}

static void leave(int i)
{
    int32_t block = user[i];

    mx_prefix_leave(prefix, block);
    user[i] = user[--n_users];
    used_at[block] = ++now;
    uses[block]--;
}

static void random_operations_agree_with_the_model(void **state)
{
    (void)state;
    srand(1);
    open_all(BLOCKS);
    for (int i = 0; i < OPERATIONS; i++) {
        int what = rand() % 8, who = n_users > 0 ? rand() % n_users : 0;

        if (what < 2 && n_users < USERS)
            allocate();
        else if (what < 4 && n_users < USERS)
            take(rand() % NAMES);
        else if (what < 5 && n_users > 0)
            publish(who, rand() % NAMES);
        else if (n_users > (i / 5000 % 3) * 20) /* now few are in use, now most */
            leave(who);
        check();
    }
    while (n_users > 0)
        leave(0);
    check();
    close_all();
}

/* Contents stay while a block is findable, and belong to nobody else. */
static void contents_survive_until_eviction(void **state)
{
    int32_t block;
    (void)state;

    open_all(4);
    for (int i = 0; i < 4; i++) {
        block = mx_prefix_alloc(prefix);
        memset(mx_kv_pool_block(pool, block), 10 + i, 100);
        assert_int_equal(mx_prefix_add(prefix, &names[i], block), block);
        mx_prefix_leave(prefix, block);
    }
    block = mx_prefix_take(prefix, &names[0]); /* the oldest, but now in use */
    assert_int_equal(mx_kv_pool_block(pool, block)[50], 10);
    assert_true(mx_prefix_alloc(prefix) >= 0);
    assert_int_equal(mx_prefix_find(prefix, &names[1]), -1); /* evicted by that */
    assert_int_equal(mx_kv_pool_block(pool, mx_prefix_find(prefix, &names[2]))[50], 12);
    mx_prefix_leave(prefix, block);
    close_all();
}

static void names_depend_on_everything(void **state)
{
    int32_t tokens[MX_KV_SPAN] = {1, 2, 3};
    uint8_t classes[MX_KV_SPAN] = {0};
    const mx_prefix_name zero = {{0}};
    mx_prefix_key alice, bob;
    mx_prefix_name one, other;
    (void)state;

    open_all(1);
    mx_prefix_tenant_key(prefix, "alice", &alice);
    mx_prefix_tenant_key(prefix, "bob", &bob);
    mx_prefix_next(&alice, &zero, tokens, classes, &one);
    mx_prefix_next(&alice, &zero, tokens, classes, &other);
    assert_memory_equal(&one, &other, sizeof one);
    mx_prefix_next(&bob, &zero, tokens, classes, &other);
    assert_memory_not_equal(&one, &other, sizeof one);
    mx_prefix_next(&alice, &one, tokens, classes, &other);
    assert_memory_not_equal(&one, &other, sizeof one);
    classes[31] = 1;
    mx_prefix_next(&alice, &zero, tokens, classes, &other);
    assert_memory_not_equal(&one, &other, sizeof one);
    classes[31] = 0;
    tokens[31] = 1;
    mx_prefix_next(&alice, &zero, tokens, classes, &other);
    assert_memory_not_equal(&one, &other, sizeof one);
    close_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_agree_with_the_model),
        cmocka_unit_test(contents_survive_until_eviction),
        cmocka_unit_test(names_depend_on_everything),
    };

    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
