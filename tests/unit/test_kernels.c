/*
 * test_kernels.c: every kernel set that this machine runs, against sums in double over the reference decoders.
 *
 * The reference takes the activations as the kernels see them (int8 times scale), so what is left to differ is the
 * rounding of float32 sums: a wrong bit of a weight would stand out by orders of magnitude.
 */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kv_rounding.h"
#include "math/kernels.h"

#ifdef MX_TEST_MODEL_OF_AVX512 /* the AVX-512 sets on a machine without it: see the Makefile */
static const mx_kernels *const sets[] = {&mx_kernels_avx512, &mx_kernels_avx512vnni};
#else
static const char *const set_names[] = {"scalar", "avx2", "avx512"};
#endif

static uint64_t state = 88172645463325252u;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static float uniform(void)
{
    return (float)(rnd() >> 40) / (1 << 23) - 1;
}

/* Where the f16 scales of a block lie: random bits there would be NaN or infinite. */
static void fill_block(mx_type type, uint8_t *block, int bytes)
{
    uint16_t scale = mx_f32_to_f16(0.01f + 0.02f * fabsf(uniform()));
    uint16_t small = mx_f32_to_f16(0.01f * uniform());

    for (int i = 0; i < bytes; i++)
        block[i] = (uint8_t)rnd();
    switch (type) {
    case MX_TYPE_F32: {
        float f = uniform();
        memcpy(block, &f, 4);
        break;
    }
    case MX_TYPE_F16:
    case MX_TYPE_BF16: {
        float f = uniform();
        uint32_t bits;
        memcpy(&bits, &f, 4);
        uint16_t h = type == MX_TYPE_F16 ? mx_f32_to_f16(f) : (uint16_t)(bits >> 16);
        memcpy(block, &h, 2);
        break;
    }
    case MX_TYPE_Q2_K:
        memcpy(block + offsetof(mx_block_q2_k, d), &scale, 2);
        memcpy(block + offsetof(mx_block_q2_k, dmin), &small, 2);
        break;
    case MX_TYPE_Q3_K:
        memcpy(block + offsetof(mx_block_q3_k, d), &scale, 2);
        break;
    case MX_TYPE_Q6_K:
        memcpy(block + offsetof(mx_block_q6_k, d), &scale, 2);
        break;
    case MX_TYPE_IQ1_M: /* its scale's bits are the high nibbles of scales[1], [3], [5], [7] */
        for (int i = 0; i < 4; i++) {
            uint8_t *byte = block + offsetof(mx_block_iq1_m, scales) + 2 * i + 1;
            *byte = (uint8_t)((*byte & 15) | ((scale >> (4 * i)) & 15) << 4);
        }
        break;
    case MX_TYPE_Q4_1:
    case MX_TYPE_Q5_1:
    case MX_TYPE_Q4_K:
    case MX_TYPE_Q5_K:
        memcpy(block + 2, &small, 2);
        memcpy(block, &scale, 2);
        break;
    default:
        memcpy(block, &scale, 2);
    }
}

typedef struct {
    mx_weight w;
    mx_acts x;
    float *decoded; /* [rows, cols] */
    int n;
} problem;

static void *zeroed(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);

    assert_non_null(p);
    memset(p, 0, (bytes + 127) / 64 * 64);
    return p;
}

static void make_problem(const mx_kernels *k, mx_type type, int rows, int cols, int n, problem *p)
{
    const mx_type_info *info = mx_type_get(type);
    size_t row_bytes = mx_row_bytes(type, cols);
    uint8_t *data = zeroed(row_bytes * (size_t)rows);

    for (size_t i = 0; i < row_bytes * (size_t)rows; i += (size_t)info->block_bytes)
        fill_block(type, data + i, info->block_bytes);
    p->w = (mx_weight){type, MX_LAYOUT_FILE, rows, cols, row_bytes, data};
    p->decoded = zeroed(sizeof(float) * (size_t)rows * (size_t)cols);
    for (int r = 0; r < rows; r++)
        mx_dequantize(type, data + (size_t)r * row_bytes, p->decoded + (size_t)r * (size_t)cols, (size_t)cols);
    p->n = n;
    p->x.cols = cols;
    p->x.q_stride = (cols + 63) / 64 * 64;
    p->x.groups = (cols + 255) / 256 * 8;
    p->x.x = zeroed(sizeof(float) * (size_t)n * (size_t)cols);
    p->x.q = zeroed((size_t)n * (size_t)p->x.q_stride);
    p->x.scale = zeroed(sizeof(float) * (size_t)n * (size_t)p->x.groups);
    p->x.sum = zeroed(sizeof(float) * (size_t)n * (size_t)p->x.groups);
    p->x.sum16 = zeroed(sizeof(float) * 2 * (size_t)n * (size_t)p->x.groups);
    for (int i = 0; i < n * cols; i++)
        p->x.x[i] = uniform() * (float)(1 + i % 7);
    if (cols % MX_GROUP == 0)
        for (int c = 0; c < n; c++)
            k->quantize(&p->x, c, 0, cols / MX_GROUP);
}

static void free_problem(problem *p)
{
    free((void *)p->w.data);
    free(p->decoded);
    free(p->x.x);
    free(p->x.q);
    free(p->x.scale);
    free(p->x.sum);
    free(p->x.sum16);
}

static void multiply(const mx_kernels *k, const problem *p, int panel, int begin, int end, const int32_t *column, int n, float *y,
                     int stride, void *scratch)
{
    mx_product product = {&p->w, begin, end, &p->x, column, n, y, (size_t)stride, scratch};

    (panel ? k->panel : k->dot)[p->w.type](&product);
}

static void check_against_reference(const mx_kernels *k, const problem *p, int panel, const float *y)
{
    int exact_input = p->w.type <= MX_TYPE_BF16;

    for (int c = 0; c < p->n; c++)
        for (int r = 0; r < p->w.rows; r++) {
            double sum = 0, magnitude = 0;

            for (int i = 0; i < p->w.cols; i++) {
                double x = exact_input ? p->x.x[c * p->w.cols + i]
                                       : (double)p->x.scale[c * p->x.groups + i / 32] * p->x.q[c * p->x.q_stride + i];
                double term = x * p->decoded[(size_t)r * (size_t)p->w.cols + (size_t)i];

                sum += term;
                magnitude += fabs(term);
            }
            if (!(fabs(sum - y[c * p->w.rows + r]) <= 4e-6 * magnitude + 1e-12))
                fail_msg("%s %s of %s, %d columns wide, column %d row %d: expected %g, got %g", k->name,
                         panel ? "panel" : "dot", mx_type_get(p->w.type)->name, p->w.cols, c, r, sum,
                         (double)y[c * p->w.rows + r]);
        }
}

/* Alone, in a permuted list of columns, and from a tile in the middle: the same bits. */
static void check_company(const mx_kernels *k, const problem *p, int panel, const float *y, void *scratch)
{
    int rows = p->w.rows, begin = rows > k->row_tile ? k->row_tile : 0;
    float *again = zeroed(sizeof(float) * (size_t)(p->n + 1) * (size_t)rows);
    int32_t *reversed = zeroed(sizeof(int32_t) * (size_t)(p->n + 1));

    for (int c = 0; c < p->n; c++) {
        int32_t one = c;

        reversed[c] = p->n - 1 - c;
        multiply(k, p, panel, begin, rows, &one, 1, again, rows, scratch);
        assert_memory_equal(again, y + c * rows + begin, sizeof(float) * (size_t)(rows - begin));
    }
    multiply(k, p, panel, 0, rows, reversed, p->n, again, rows, scratch);
    for (int c = 0; c < p->n; c++)
        assert_memory_equal(again + c * rows, y + (p->n - 1 - c) * rows, sizeof(float) * (size_t)rows);
    free(again);
    free(reversed);
}

static void check_products(const mx_kernels *k)
{
    static const int widths[] = {256, 288, 32, 64, 576, 768, 1536}, counts[] = {1, 2, 3, 5, 8, 9, 17, 64};
    void *scratch = zeroed(MX_SCRATCH_BYTES);

    for (int type = 0; type < MX_TYPE_COUNT; type++)
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
            int block = mx_type_get((mx_type)type)->block_size, n = counts[(i + (size_t)type) % 8], rows = 16 + 3 * (int)i;
            problem p;
            float *y = zeroed(sizeof(float) * (size_t)n * (size_t)rows);

            if (widths[i] % block) {
                free(y);
                continue;
            }
            make_problem(k, (mx_type)type, rows, widths[i], n, &p);
            for (int panel = 0; panel < 2; panel++) {
                multiply(k, &p, panel, 0, rows, NULL, n, y, rows, scratch);
                check_against_reference(k, &p, panel, y);
                check_company(k, &p, panel, y, scratch);
            }
            free_problem(&p);
            free(y);
        }
    free(scratch);
}

/* ---- Attention ------------------------------------------------------------------------------------------------------ */

enum { KEYS = 75, QUERIES = 5 };

static const int32_t kv_blocks[] = {2, 0, 3}, query_position[QUERIES] = {0, 31, 32, 74, 74};

typedef struct {
    mx_kv_type type;
    int head_dim;
    size_t half_bytes, block_bytes;
    uint8_t *memory;            /* 4 blocks of { keys, values } */
    float *key, *value;         /* [KEYS, head_dim] */
    float *kept_key, *kept_value; /* what a cache of the type makes of them */
    float *query;               /* [QUERIES, head_dim] */
    void *scratch;
} attention_problem;

static void make_attention(mx_kv_type type, int head_dim, attention_problem *p)
{
    size_t n = (size_t)(KEYS * head_dim);

    p->type = type;
    p->head_dim = head_dim;
    p->half_bytes = mx_kv_half_bytes(type, head_dim);
    p->block_bytes = 2 * p->half_bytes;
    p->memory = zeroed(4 * p->block_bytes);
    p->key = zeroed(sizeof(float) * n);
    p->value = zeroed(sizeof(float) * n);
    p->kept_key = zeroed(sizeof(float) * n);
    p->kept_value = zeroed(sizeof(float) * n);
    p->query = zeroed(sizeof(float) * (size_t)(QUERIES * head_dim));
    p->scratch = zeroed(MX_SCRATCH_BYTES);
    for (size_t i = 0; i < n; i++) {
        p->key[i] = uniform() * 2;
        p->value[i] = uniform();
    }
    for (int d = 0; d < head_dim; d++) /* a value of zeros, which has no scale */
        p->value[3 * head_dim + d] = 0;
    for (int i = 0; i < QUERIES * head_dim; i++)
        p->query[i] = uniform() * 3;
    kv_round(type, p->key, n, p->kept_key);
    kv_round(type, p->value, n, p->kept_value);
}

static void free_attention(attention_problem *p)
{
    free(p->memory);
    free(p->key);
    free(p->value);
    free(p->kept_key);
    free(p->kept_value);
    free(p->query);
    free(p->scratch);
}

static void store_keys(const mx_kernels *k, attention_problem *p)
{
    memset(p->memory, 0xff, 4 * p->block_bytes); /* NaN where nothing was stored: it must not be read */
    for (int i = 0; i < KEYS; i++) {
        uint8_t *at = p->memory + (size_t)kv_blocks[i / MX_KV_SPAN] * p->block_bytes;

        k->store_kv(p->type, p->key + i * p->head_dim, p->value + i * p->head_dim, p->head_dim, i % MX_KV_SPAN, at,
                    at + p->half_bytes);
    }
}

/* The scalar set's bytes are every set's. */
static void check_stored(const mx_kernels *k, attention_problem *p)
{
    uint8_t *bytes = zeroed(4 * p->block_bytes);

    store_keys(&mx_kernels_scalar, p);
    memcpy(bytes, p->memory, 4 * p->block_bytes);
    store_keys(k, p);
    assert_memory_equal(bytes, p->memory, 4 * p->block_bytes);
    free(bytes);
}

/* `n` queries from `first` on to out [n, head_dim] */
static void attend(const mx_kernels *k, const attention_problem *p, int first, int n, float *out)
{
    const float *q[QUERIES];
    float *o[QUERIES];
    mx_attention a = {
        .type = p->type, .head_dim = p->head_dim, .n_queries = n, .q = q, .out = o, .position = query_position + first,
        .block = kv_blocks, .k = p->memory, .v = p->memory + p->half_bytes, .block_bytes = p->block_bytes,
        .scratch = p->scratch,
    };

    for (int i = 0; i < n; i++) {
        q[i] = p->query + (first + i) * p->head_dim;
        o[i] = out + i * p->head_dim;
    }
    k->attention(&a);
}

/* Attention in double, of one query to out [head_dim]. */
static void exact_attention(const attention_problem *p, const float *key, const float *value, int query, double *out)
{
    double weight[KEYS], total = 0, largest = -1e30;
    int d = p->head_dim, n = query_position[query] + 1;

    for (int j = 0; j < n; j++) {
        weight[j] = 0;
        for (int x = 0; x < d; x++)
            weight[j] += (double)p->query[query * d + x] * key[j * d + x] / sqrt(d);
        largest = weight[j] > largest ? weight[j] : largest;
    }
    for (int j = 0; j < n; j++)
        total += weight[j] = exp(weight[j] - largest);
    for (int x = 0; x < d; x++) {
        out[x] = 0;
        for (int j = 0; j < n; j++)
            out[x] += weight[j] / total * value[j * d + x];
    }
}

/* Against keys and values as they were kept only float32 rounding is left; against those that came, the type's own. */
static void check_against_exact(const mx_kernels *k, const attention_problem *p, const float *out)
{
    static const double type_error[] = {[MX_KV_F16] = 2e-3, [MX_KV_BF16] = 2e-2, [MX_KV_Q8_0] = 2e-2};

    for (int i = 0; i < QUERIES; i++) {
        double kept[MX_HEAD_DIM_MAX], came[MX_HEAD_DIM_MAX];

        exact_attention(p, p->kept_key, p->kept_value, i, kept);
        exact_attention(p, p->key, p->value, i, came);
        for (int x = 0; x < p->head_dim; x++) {
            double got = out[i * p->head_dim + x];

            if (!(fabs(kept[x] - got) < 2e-5) || !(fabs(came[x] - got) < type_error[p->type]))
                fail_msg("%s attention, %s, head of %d, query %d, dimension %d: expected %g (%g before rounding), got %g", k->name,
                         mx_kv_type_name(p->type), p->head_dim, i, x, kept[x], came[x], got);
        }
    }
}

/* A head of 80 dimensions is no multiple of any set's vector but the scalar one's. */
static void check_attention(const mx_kernels *k)
{
    static const int heads[] = {64, 80, 128, 2, 36, 32, 96, MX_HEAD_DIM_MAX};
    float *out = zeroed(sizeof(float) * QUERIES * MX_HEAD_DIM_MAX), *alone = zeroed(sizeof(float) * MX_HEAD_DIM_MAX);

    for (int type = 0; type < MX_KV_TYPE_COUNT; type++)
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++) {
            attention_problem p;

            if (!mx_kv_type_fits((mx_kv_type)type, heads[h]))
                continue;
            make_attention((mx_kv_type)type, heads[h], &p);
            check_stored(k, &p);
            attend(k, &p, 0, QUERIES, out);
            check_against_exact(k, &p, out);
            for (int i = 0; i < QUERIES; i++) { /* alone: the same bits */
                attend(k, &p, i, 1, alone);
                assert_memory_equal(alone, out + i * p.head_dim, sizeof(float) * (size_t)p.head_dim);
            }
            free_attention(&p);
        }
    free(out);
    free(alone);
}

/* Rounding would carry a NaN of all ones into the sign, and the largest float over to infinity. */
static void check_bf16_edges(const mx_kernels *k)
{
    enum { N = 4 };
    static const uint32_t bits[N] = {0x7fffffff, 0x7f7fffff, 0x80000000, 0x3f808000};
    static const uint16_t expected[N] = {0x7fff, 0x7f80, 0x8000, 0x3f80};
    uint16_t keys[N * MX_KV_SPAN], values[N * MX_KV_SPAN];
    float x[N];

    memcpy(x, bits, sizeof x);
    k->store_kv(MX_KV_BF16, x, x, N, 1, (uint8_t *)keys, (uint8_t *)values);
    for (int i = 0; i < N; i++) {
        assert_int_equal(keys[i * MX_KV_SPAN + 1], expected[i]);
        assert_int_equal(values[N + i], expected[i]);
    }
}

static void check_elementwise(const mx_kernels *k)
{
    enum { N = 83 };
    float x[N], w[N], y[N], gate[N];
    double squares = 0, dot = 0;

    for (int i = 0; i < N; i++) {
        x[i] = uniform() * 20;
        w[i] = uniform();
        squares += (double)x[i] * x[i];
        dot += (double)x[i] * w[i];
    }
    k->rms_norm(x, w, N, 1e-5f, y);
    for (int i = 0; i < N; i++)
        assert_true(fabs(x[i] / sqrt(squares / N + 1e-5) * w[i] - y[i]) < 1e-5);
    memcpy(gate, x, sizeof gate);
    gate[3] = -200;
    gate[4] = 200;
    memcpy(x, gate, sizeof x);
    k->silu_multiply(gate, w, N);
    for (int i = 0; i < N; i++)
        assert_true(fabs(x[i] / (1 + exp(-(double)x[i])) * w[i] - gate[i]) < 2e-5);
    memcpy(y, w, sizeof y);
    k->add_scaled(y, x, 0.25f, N);
    for (int i = 0; i < N; i++)
        assert_true(fabs(w[i] + 0.25 * x[i] - y[i]) < 1e-5);
    x[3] = x[4] = 0;
    dot = 0;
    for (int i = 0; i < N; i++)
        dot += (double)x[i] * w[i];
    assert_true(fabs(dot - k->dot_f32(x, w, N)) < 1e-4);
}

static void for_each_set(void (*check)(const mx_kernels *k))
{
#ifdef MX_TEST_MODEL_OF_AVX512
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        check(sets[i]);
#else
    int n = 0;

    for (size_t i = 0; i < sizeof set_names / sizeof *set_names; i++) {
        const mx_kernels *k = mx_kernels_get(set_names[i]);

        if (k) {
            print_message("%s\n", k->name);
            check(k);
            n++;
        }
    }
    assert_true(n > 0);
#endif
}

static void test_products(void **unused)
{
    (void)unused;
    for_each_set(check_products);
}

static void test_attention(void **unused)
{
    (void)unused;
    for_each_set(check_attention);
    for_each_set(check_bf16_edges);
}

static void test_elementwise(void **unused)
{
    (void)unused;
    for_each_set(check_elementwise);
}

static void test_names(void **unused)
{
    (void)unused;
    assert_non_null(mx_kernels_get(NULL));
    assert_non_null(mx_kernels_get("scalar"));
    assert_null(mx_kernels_get("sse9"));
    assert_non_null(strstr(mx_kernels_names(), mx_kernels_get(NULL)->name));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_elementwise),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
