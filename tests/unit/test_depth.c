/*
 * test_depth.c: a context of 131,072 tokens to its end, against sums in double.
 *
 * The model has one layer, so that a token's key and value need no attention before them: the reference works them out for
 * every position, rounds them as the cache does, and goes through the rest of the model at a few positions only. Queries
 * are scaled up until a few of the many keys take most of the weight: with random weights as they are, attention is the
 * average of all values, and an angle that is wrong would not show. As it is, angles in float32 would miss the tolerance.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/engine/forward.h"
#include "../../core/model/synth.h"
#include "kv_rounding.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONG_PROMPT = 8192 }; /* reading it takes time that grows with its square */
#else
enum { LONG_PROMPT = 131071 };
#endif

enum { CONTEXT = 131072, VOCAB = 512, DIM = 64, FF = 64, HEAD_DIM = 32, EXPERTS = 8, USED = 2, CHUNK = 512 };
enum { NEIGHBOURS = 16, DEPTHS = 4, PROBES = NEIGHBOURS * DEPTHS };

static const int depths[DEPTHS] = {4096, 32768, 65536, CONTEXT - 1}; /* probes are the NEIGHBOURS positions before */
static const float sharpness = 6; /* of queries: the deviation of a score */
static const double tolerance = 1e-7; /* normalised squared error of a position's logits */

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);

    assert_non_null(p);
    return p;
}

/* ---- The model and its reference ------------------------------------------------------------------------------------ */

typedef struct {
    mx_model *model;
    float *sharp_q;                /* instead of the file's */
    int n_heads, n_kv_heads;
    int32_t *ids;                  /* [CONTEXT] */
    double *q, *k, *v;             /* [VOCAB, heads * HEAD_DIM] of every token id, not rotated */
    float *key;                    /* [CONTEXT, kv heads * HEAD_DIM] of every position, rotated */
    float *value;                  /* [VOCAB, kv heads * HEAD_DIM] */
    float *kept_key, *kept_value;  /* as the cache rounds them */
} setup;

static void multiply(const mx_weight *w, const double *x, double *y)
{
    const float *data = (const float *)(const void *)w->data;

    for (int r = 0; r < w->rows; r++) {
        y[r] = 0;
        for (int i = 0; i < w->cols; i++)
            y[r] += (double)data[(size_t)r * (size_t)w->cols + (size_t)i] * x[i];
    }
}

static void normalise(const double *x, const float *weight, float eps, double *y)
{
    double squares = 0;

    for (int i = 0; i < DIM; i++)
        squares += x[i] * x[i];
    for (int i = 0; i < DIM; i++)
        y[i] = x[i] / sqrt(squares / DIM + (double)eps) * (double)weight[i];
}

static void rotate(const double *x, int position, double base, double *y)
{
    for (int i = 0; i < HEAD_DIM / 2; i++) {
        double angle = position * pow(base, -2.0 * i / HEAD_DIM), c = cos(angle), s = sin(angle);

        y[2 * i] = x[2 * i] * c - x[2 * i + 1] * s;
        y[2 * i + 1] = x[2 * i] * s + x[2 * i + 1] * c;
    }
}

static void embed(const setup *s, int id, double *x)
{
    const float *row = (const float *)(const void *)(s->model->embedding.data + (size_t)id * s->model->embedding.row_bytes);

    for (int i = 0; i < DIM; i++)
        x[i] = (double)row[i];
}

static mx_model *open_model(int heads, int kv_heads)
{
    mx_synth_options o = mx_synth_defaults();
    char path[] = "/tmp/mixtral-depth-XXXXXX";
    mx_model *model = NULL;
    mx_error error = {.text = ""};
    int fd = mkstemp(path);

    o.layers = 1;
    o.dim = DIM;
    o.ff = FF;
    o.heads = heads;
    o.kv_heads = kv_heads;
    o.head_dim = HEAD_DIM;
    o.experts = EXPERTS;
    o.experts_used = USED;
    o.vocab_size = VOCAB;
    o.context = CONTEXT;
    o.type = MX_TYPE_F32;
    o.router_type = MX_TYPE_F32;
    assert_true(fd >= 0 && close(fd) == 0);
    if (mx_synth_model(path, &o, &error) != MX_OK || mx_model_open(path, &model, &error) != MX_OK)
        fail_msg("%s", error.text);
    unlink(path);
    return model;
}

static void scale_queries(setup *s)
{
    mx_weight *q = &s->model->layers[0].q;
    size_t n = (size_t)q->rows * (size_t)q->cols;

    s->sharp_q = allocate(n, sizeof(float));
    for (size_t i = 0; i < n; i++)
        s->sharp_q[i] = sharpness * ((const float *)(const void *)q->data)[i];
    q->data = (const uint8_t *)s->sharp_q;
}

static void set_up(int heads, int kv_heads, setup *s)
{
    const mx_layer *layer;
    size_t kv = (size_t)(kv_heads * HEAD_DIM);
    uint64_t state = 42;

    *s = (setup){.model = open_model(heads, kv_heads), .n_heads = heads, .n_kv_heads = kv_heads};
    scale_queries(s);
    s->ids = allocate(CONTEXT, sizeof *s->ids);
    s->q = allocate(VOCAB * (size_t)(heads * HEAD_DIM), sizeof *s->q);
    s->k = allocate(VOCAB * kv, sizeof *s->k);
    s->v = allocate(VOCAB * kv, sizeof *s->v);
    s->key = allocate(CONTEXT * kv, sizeof *s->key);
    s->value = allocate(VOCAB * kv, sizeof *s->value);
    s->kept_key = allocate(CONTEXT * kv, sizeof *s->kept_key);
    s->kept_value = allocate(VOCAB * kv, sizeof *s->kept_value);
    layer = &s->model->layers[0];
    for (int id = 0; id < VOCAB; id++) {
        double x[DIM], normed[DIM];

        embed(s, id, x);
        normalise(x, layer->attn_norm, s->model->hparams.norm_eps, normed);
        multiply(&layer->q, normed, s->q + id * heads * HEAD_DIM);
        multiply(&layer->k, normed, s->k + (size_t)id * kv);
        multiply(&layer->v, normed, s->v + (size_t)id * kv);
    }
    for (size_t i = 0; i < VOCAB * kv; i++)
        s->value[i] = (float)s->v[i];
    for (int p = 0; p < CONTEXT; p++) {
        s->ids[p] = (int32_t)(mx_synth_random(&state) % VOCAB);
        for (int h = 0; h < kv_heads; h++) {
            double turned[HEAD_DIM];

            rotate(s->k + (size_t)s->ids[p] * kv + h * HEAD_DIM, p, s->model->hparams.rope_base, turned);
            for (int d = 0; d < HEAD_DIM; d++)
                s->key[(size_t)p * kv + (size_t)(h * HEAD_DIM + d)] = (float)turned[d];
        }
    }
}

static void tear_down(setup *s)
{
    mx_model_close(s->model);
    free(s->sharp_q);
    free(s->ids);
    free(s->q);
    free(s->k);
    free(s->v);
    free(s->key);
    free(s->value);
    free(s->kept_key);
    free(s->kept_value);
}

static void attend(const setup *s, int head, int position, double *out)
{
    size_t kv = (size_t)(s->n_kv_heads * HEAD_DIM), at = (size_t)(head / (s->n_heads / s->n_kv_heads) * HEAD_DIM);
    double q[HEAD_DIM], largest = -INFINITY, total = 0, *weight = allocate((size_t)position + 1, sizeof *weight);

    rotate(s->q + (s->ids[position] * s->n_heads + head) * HEAD_DIM, position, s->model->hparams.rope_base, q);
    for (int j = 0; j <= position; j++) {
        const float *key = s->kept_key + (size_t)j * kv + at;

        for (int d = 0; d < HEAD_DIM; d++)
            weight[j] += q[d] * (double)key[d];
        weight[j] /= sqrt(HEAD_DIM);
        largest = fmax(largest, weight[j]);
    }
    memset(out, 0, sizeof *out * HEAD_DIM);
    for (int j = 0; j <= position; j++) {
        const float *value = s->kept_value + (size_t)s->ids[j] * kv + at;
        double w = exp(weight[j] - largest);

        total += w;
        for (int d = 0; d < HEAD_DIM; d++)
            out[d] += w * (double)value[d];
    }
    for (int d = 0; d < HEAD_DIM; d++)
        out[d] /= total;
    free(weight);
}

/* x += the USED experts that the router likes best, weighted by its softmax over them */
static void add_experts(const mx_layer *layer, const double *normed, double *x)
{
    mx_weight router = {.rows = EXPERTS, .cols = DIM, .data = (const uint8_t *)layer->router};
    double liking[EXPERTS], most[USED], gate[FF], up[FF], down[DIM], total = 0;
    int taken[USED];

    multiply(&router, normed, liking);
    for (int rank = 0; rank < USED; rank++) {
        int best = 0;

        for (int e = 1; e < EXPERTS; e++)
            best = liking[e] > liking[best] ? e : best;
        taken[rank] = best;
        most[rank] = liking[best];
        liking[best] = -INFINITY;
        total += exp(most[rank] - most[0]);
    }
    for (int rank = 0; rank < USED; rank++) {
        multiply(&layer->gate[taken[rank]], normed, gate);
        multiply(&layer->up[taken[rank]], normed, up);
        for (int i = 0; i < FF; i++)
            up[i] *= gate[i] / (1 + exp(-gate[i]));
        multiply(&layer->down[taken[rank]], up, down);
        for (int i = 0; i < DIM; i++)
            x[i] += exp(most[rank] - most[0]) / total * down[i];
    }
}

static void exact_logits(const setup *s, int position, double *logits)
{
    const mx_layer *layer = &s->model->layers[0];
    float eps = s->model->hparams.norm_eps;
    double x[DIM], normed[DIM], projected[DIM], heads[8 * HEAD_DIM];

    embed(s, s->ids[position], x);
    for (int h = 0; h < s->n_heads; h++)
        attend(s, h, position, heads + h * HEAD_DIM);
    multiply(&layer->o, heads, projected);
    for (int i = 0; i < DIM; i++)
        x[i] += projected[i];
    normalise(x, layer->ffn_norm, eps, normed);
    add_experts(layer, normed, x);
    normalise(x, s->model->output_norm, eps, normed);
    multiply(&s->model->output, normed, logits);
}

/* ---- The engine's side ---------------------------------------------------------------------------------------------- */

typedef struct {
    mx_threads *threads;
    mx_kv_pool *pool;
    mx_forward *forward;
    int32_t blocks[CONTEXT / MX_KV_SPAN];
} engine;

static void open_engine(const setup *s, const mx_kernels *kernels, mx_kv_type type, engine *e)
{
    mx_kv_shape shape = {1, s->n_kv_heads, HEAD_DIM, type};
    int64_t bytes = (int64_t)mx_kv_block_bytes(&shape) * (CONTEXT / MX_KV_SPAN);
    mx_error error;

    assert_int_equal(mx_threads_open(mx_threads_default(), &e->threads, &error), MX_OK);
    assert_int_equal(mx_kv_pool_open(&shape, bytes, &e->pool, &error), MX_OK);
    assert_int_equal(mx_forward_open(s->model, kernels, e->threads, e->pool, CHUNK, &e->forward, &error), MX_OK);
    for (int i = CONTEXT / MX_KV_SPAN - 1; i >= 0; i--)
        e->blocks[i] = mx_kv_pool_alloc(e->pool);
}

static void close_engine(engine *e)
{
    mx_forward_close(e->forward);
    mx_kv_pool_close(e->pool);
    mx_threads_close(e->threads);
}

/* The tokens at n positions; logits [n][VOCAB], or NULL. */
static void read_tokens(const setup *s, engine *e, const int32_t *position, int n, float *logits)
{
    int32_t token[CHUNK], sequence[CHUNK] = {0};
    uint8_t classes[CHUNK], want[CHUNK];
    const int32_t *blocks = e->blocks;
    mx_batch batch = {n, token, position, sequence, classes, want, &blocks};

    for (int i = 0; i < n; i++) {
        token[i] = s->ids[position[i]];
        classes[i] = MX_CLASS_PROMPT;
        want[i] = logits ? MX_WANT_LOGITS : 0;
    }
    assert_int_equal(mx_forward_step(e->forward, &batch, logits, NULL, NULL, NULL), MX_OK);
}

static void check_logits(const setup *s, const char *what, int position, const float *logits)
{
    double exact[VOCAB], error = 0, squares = 0;

    exact_logits(s, position, exact);
    for (int i = 0; i < VOCAB; i++) {
        error += (exact[i] - (double)logits[i]) * (exact[i] - (double)logits[i]);
        squares += exact[i] * exact[i];
    }
    if (!(error < tolerance * squares))
        fail_msg("%s, position %d: expected a normalised squared error below %g, got %g", what, position, tolerance,
                 error / squares);
}

/* A prompt of 131,071 tokens, as a request's is read: in chunks, each attending to all before it. */
static void a_prompt_of_the_whole_context(void **state)
{
    static float logits[CHUNK * VOCAB];
    int32_t position[CHUNK];
    engine e;
    setup s;
    (void)state;

    set_up(1, 1, &s);
    kv_round(MX_KV_F16, s.key, CONTEXT * HEAD_DIM, s.kept_key);
    kv_round(MX_KV_F16, s.value, VOCAB * HEAD_DIM, s.kept_value);
    open_engine(&s, mx_kernels_get(NULL), MX_KV_F16, &e);
    for (int done = 0, n; done < LONG_PROMPT; done += n) {
        bool probed = false;

        n = LONG_PROMPT - done < CHUNK ? LONG_PROMPT - done : CHUNK;
        for (int i = 0; i < n; i++)
            position[i] = done + i;
        for (int i = 0; i < DEPTHS; i++)
            probed = probed || (depths[i] > done && depths[i] <= done + n);
        read_tokens(&s, &e, position, n, probed ? logits : NULL);
        for (int i = n - NEIGHBOURS; i < n && probed; i++)
            check_logits(&s, "the whole prompt", done + i, logits + (size_t)i * VOCAB);
    }
    close_engine(&e);
    tear_down(&s);
}

/* The reference's keys and values in the pool, the engine's own only at the probes. */
static void check_type(setup *s, const mx_kernels *kernels, mx_kv_type type)
{
    static float logits[PROBES * VOCAB];
    size_t kv = (size_t)(s->n_kv_heads * HEAD_DIM);
    int32_t position[PROBES];
    char what[64];
    engine e;

    kv_round(type, s->key, CONTEXT * kv, s->kept_key);
    kv_round(type, s->value, VOCAB * kv, s->kept_value);
    open_engine(s, kernels, type, &e);
    for (int p = 0; p < CONTEXT; p++)
        for (int h = 0; h < s->n_kv_heads; h++)
            kernels->store_kv(type, s->key + (size_t)p * kv + h * HEAD_DIM, s->value + (size_t)s->ids[p] * kv + h * HEAD_DIM,
                              HEAD_DIM, p % MX_KV_SPAN, mx_kv_pool_k(e.pool, e.blocks[p / MX_KV_SPAN], 0, h),
                              mx_kv_pool_v(e.pool, e.blocks[p / MX_KV_SPAN], 0, h));
    for (int i = 0; i < PROBES; i++)
        position[i] = depths[i / NEIGHBOURS] - NEIGHBOURS + i % NEIGHBOURS;
    read_tokens(s, &e, position, PROBES, logits);
    snprintf(what, sizeof what, "%s kernels, %s", kernels->name, mx_kv_type_name(type));
    for (int i = 0; i < PROBES; i++)
        check_logits(s, what, position[i], logits + (size_t)i * VOCAB);
    close_engine(&e);
}

static void every_type_and_kernel_at_depth(void **state)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    setup s;
    (void)state;

    set_up(4, 2, &s);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (int type = 0; type < MX_KV_TYPE_COUNT && mx_kernels_get(names[i]); type++)
            check_type(&s, mx_kernels_get(names[i]), (mx_kv_type)type);
    tear_down(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_and_kernel_at_depth),
        cmocka_unit_test(a_prompt_of_the_whole_context),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
