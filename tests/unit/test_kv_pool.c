/*
 * test_kv_pool.c: allocation, references, copies, the layout of a block, and what a child of fork
 * sees.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/engine/kv_pool.h"

static const mx_kv_shape shape = {.n_layers = 3, .n_kv_heads = 2, .head_dim = 16};

static mx_kv_pool *open_pool(int blocks)
{
    mx_kv_pool *pool;
    mx_error error;
    int64_t bytes = (int64_t)mx_kv_block_bytes(&shape) * blocks;

    assert_int_equal(mx_kv_pool_open(&shape, bytes, &pool, &error), MX_OK);
    assert_int_equal(mx_kv_pool_total(pool), blocks);
    return pool;
}

static void budget_gives_blocks(void **state)
{
    const mx_kv_shape smollm = {.n_layers = 30, .n_kv_heads = 3, .head_dim = 64};
    mx_kv_pool *pool;
    mx_error error;
    (void)state;

    /* 32 tokens x 30 layers x 3 heads x (K and V) x 64 x f16 */
    assert_int_equal(mx_kv_block_bytes(&smollm), 32 * 30 * 3 * 2 * 64 * 2);
    assert_int_equal(mx_kv_pool_open(&smollm, 1, &pool, &error), MX_OK);
    assert_int_equal(mx_kv_pool_total(pool), 1); /* at least one */
    mx_kv_pool_close(pool);
    assert_int_equal(
        mx_kv_pool_open(&smollm, (int64_t)10 * 32 * 30 * 3 * 2 * 64 * 2 + 7, &pool, &error), MX_OK);
    assert_int_equal(mx_kv_pool_total(pool), 10);
    mx_kv_pool_close(pool);
    mx_kv_pool_close(NULL);
}

static void type_gives_size(void **state)
{
    const mx_kv_shape mixtral = {.n_layers = 32, .n_kv_heads = 8, .head_dim = 128};
    mx_kv_shape s = mixtral;
    mx_kv_type type;
    mx_error error;
    (void)state;

    s.type = MX_KV_BF16;
    assert_int_equal(mx_kv_block_bytes(&s), mx_kv_block_bytes(&mixtral));
    s.type = MX_KV_Q8_0; /* a byte each, and a float16 for 32 */
    assert_int_equal(mx_kv_block_bytes(&s), 32 * 32 * 8 * 2 * (128 + 4 * 2));
    assert_int_equal(mx_kv_type_choose(NULL, 36, &type, &error), MX_OK);
    assert_int_equal(type, MX_KV_F16);
    assert_int_equal(mx_kv_type_choose("bf16", 36, &type, &error), MX_OK);
    assert_int_equal(type, MX_KV_BF16);
    assert_int_equal(mx_kv_type_choose("q8_0", 96, &type, &error), MX_OK);
    assert_int_equal(type, MX_KV_Q8_0);
    assert_int_equal(mx_kv_type_choose("q8_0", 36, &type, &error), MX_INVALID);
    assert_string_equal(error.field, "kv_type");
    assert_string_equal(error.text,
                        "option kv_type: q8_0 takes a head size that is a multiple of 32, the model's is 36");
    assert_int_equal(mx_kv_type_choose("f32", 64, &type, &error), MX_INVALID);
    assert_string_equal(error.text, "option kv_type: expected f16, bf16 or q8_0, got f32");
}

static void absurd_budget_is_refused(void **state)
{
    const mx_kv_shape big = {.n_layers = 1000, .n_kv_heads = 1000, .head_dim = 1024};
    mx_kv_pool *pool;
    mx_error error;
    (void)state;

    assert_int_equal(mx_kv_pool_open(&shape, INT64_MAX, &pool, &error), MX_INVALID);
    assert_null(pool);
    assert_string_equal(error.field, "kv_pool_bytes");
    assert_int_equal(mx_kv_pool_open(&big, INT64_MAX / 2, &pool, &error), MX_NOMEM);
    assert_null(pool);
    assert_string_equal(error.field, "kv_pool_bytes");
}

static void blocks_come_and_go(void **state)
{
    mx_kv_pool *pool = open_pool(5);
    int seen[5] = {0};
    int32_t block[5];
    (void)state;

    for (int i = 0; i < 5; i++) {
        block[i] = mx_kv_pool_alloc(pool);
        assert_in_range(block[i], 0, 4);
        assert_int_equal(seen[block[i]]++, 0); /* none twice */
        assert_int_equal(mx_kv_pool_used(pool), i + 1);
    }
    assert_int_equal(mx_kv_pool_alloc(pool), -1);
    mx_kv_pool_unref(pool, block[3]);
    assert_int_equal(mx_kv_pool_used(pool), 4);
    assert_int_equal(mx_kv_pool_alloc(pool), block[3]);
    assert_int_equal(mx_kv_pool_alloc(pool), -1);
    for (int i = 0; i < 5; i++)
        mx_kv_pool_unref(pool, block[i]);
    assert_int_equal(mx_kv_pool_used(pool), 0);
    mx_kv_pool_close(pool);
}

static void last_reference_frees(void **state)
{
    mx_kv_pool *pool = open_pool(2);
    int32_t block = mx_kv_pool_alloc(pool);
    (void)state;

    assert_false(mx_kv_pool_is_shared(pool, block));
    mx_kv_pool_ref(pool, block);
    mx_kv_pool_ref(pool, block);
    assert_true(mx_kv_pool_is_shared(pool, block));
    mx_kv_pool_unref(pool, block);
    mx_kv_pool_unref(pool, block);
    assert_false(mx_kv_pool_is_shared(pool, block));
    assert_int_equal(mx_kv_pool_used(pool), 1);
    mx_kv_pool_unref(pool, block);
    assert_int_equal(mx_kv_pool_used(pool), 0);
    mx_kv_pool_close(pool);
}

/* Every K and V of every block is a region of its own: what is written into one shows in no other.
 */
static void regions_are_disjoint(void **state)
{
    mx_kv_pool *pool = open_pool(2);
    size_t half = (size_t)shape.head_dim * MX_KV_SPAN * 2;
    int32_t a = mx_kv_pool_alloc(pool), b = mx_kv_pool_alloc(pool);
    int32_t block[2] = {a, b};
    uint8_t mark = 0;
    (void)state;

    for (int i = 0; i < 2; i++)
        for (int l = 0; l < shape.n_layers; l++)
            for (int h = 0; h < shape.n_kv_heads; h++) {
                assert_int_equal((uintptr_t)mx_kv_pool_k(pool, block[i], l, h) % 64, 0);
                memset(mx_kv_pool_k(pool, block[i], l, h), ++mark, half);
                memset(mx_kv_pool_v(pool, block[i], l, h), ++mark, half);
            }
    mark = 0;
    for (int i = 0; i < 2; i++)
        for (int l = 0; l < shape.n_layers; l++)
            for (int h = 0; h < shape.n_kv_heads; h++) {
                const uint8_t *k = mx_kv_pool_k(pool, block[i], l, h);
                const uint8_t *v = mx_kv_pool_v(pool, block[i], l, h);
                mark += 2;
                for (size_t j = 0; j < half; j++) {
                    assert_int_equal(k[j], mark - 1);
                    assert_int_equal(v[j], mark);
                }
            }
    mx_kv_pool_close(pool);
}

static void copy_is_whole(void **state)
{
    mx_kv_pool *pool = open_pool(3);
    size_t half = (size_t)shape.head_dim * MX_KV_SPAN * 2;
    int32_t from = mx_kv_pool_alloc(pool), to = mx_kv_pool_alloc(pool);
    (void)state;

    for (int l = 0; l < shape.n_layers; l++)
        for (int h = 0; h < shape.n_kv_heads; h++) {
            memset(mx_kv_pool_k(pool, from, l, h), 1 + l, half);
            memset(mx_kv_pool_v(pool, from, l, h), 100 + h, half);
        }
    mx_kv_pool_copy(pool, from, to);
    memset(mx_kv_pool_k(pool, from, 0, 0), 77, half); /* the copy is its own */
    for (int l = 0; l < shape.n_layers; l++)
        for (int h = 0; h < shape.n_kv_heads; h++) {
            assert_int_equal(mx_kv_pool_k(pool, to, l, h)[half - 1], 1 + l);
            assert_int_equal(mx_kv_pool_v(pool, to, l, h)[0], 100 + h);
        }
    mx_kv_pool_close(pool);
}

/* The pool is not the child's: nothing is mapped there. */
static void fork_does_not_inherit(void **state)
{
    mx_kv_pool *pool = open_pool(1);
    uint8_t *k = mx_kv_pool_k(pool, mx_kv_pool_alloc(pool), 0, 0);
    unsigned char resident;
    int status;
    (void)state;

    *k = 1;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(mincore(k, 1, &resident) == 0 ? 1 : 0); /* ENOMEM: not mapped */
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    mx_kv_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budget_gives_blocks),   cmocka_unit_test(type_gives_size),
        cmocka_unit_test(absurd_budget_is_refused),
        cmocka_unit_test(blocks_come_and_go),    cmocka_unit_test(last_reference_frees),
        cmocka_unit_test(regions_are_disjoint),  cmocka_unit_test(copy_is_whole),
        cmocka_unit_test(fork_does_not_inherit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
