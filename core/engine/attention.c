/*
 * attention.c: rotary positions, the KV store, and attention over the pool's blocks.
 *
 * A task of attention is a run of a sequence's tokens and one KV head: its queries share every key and value that is
 * loaded. How tokens fall into runs changes nothing in a query's result (see attention_kernel.h).
 */
#include <math.h>
#include "forward_internal.h"

/* Angles in double: at position 131,071 a float32 one is off by 0.004. */
void mx_rope_prepare(mx_forward *f, int token)
{
    const mx_hparams *h = &f->model->hparams;
    int half = h->rope_dim / 2;
    double position = f->batch->position[f->order[token]] / h->rope_scale;

    for (int i = 0; i < half; i++) {
        double angle = position * f->frequency[i];

        f->cosine[(size_t)token * (size_t)half + (size_t)i] = (float)cos(angle);
        f->sine[(size_t)token * (size_t)half + (size_t)i] = (float)sin(angle);
    }
}

/* Turns adjacent pairs (2i, 2i + 1) of each head (Su et al. 2021, section 3.4.2); the file's q and k are permuted for that. */
static void rotate(float *heads, int n_heads, int head_dim, int half, const float *cosine, const float *sine)
{
    for (int h = 0; h < n_heads; h++)
        for (int i = 0; i < half; i++) {
            float *pair = heads + h * head_dim + 2 * i, a = pair[0], b = pair[1];

            pair[0] = a * cosine[i] - b * sine[i];
            pair[1] = a * sine[i] + b * cosine[i];
        }
}

void mx_rope_store(mx_forward *f, int layer, int token)
{
    const mx_hparams *h = &f->model->hparams;
    int half = h->rope_dim / 2, at = f->order[token], position = f->batch->position[at];
    int32_t block = f->batch->blocks[f->batch->sequence[at]][position / MX_KV_SPAN];
    float *q = f->q + (size_t)token * (size_t)(h->n_heads * h->head_dim);
    float *k = f->k + (size_t)token * (size_t)(h->n_kv_heads * h->head_dim);
    float *v = f->v + (size_t)token * (size_t)(h->n_kv_heads * h->head_dim);
    const float *cosine = f->cosine + (size_t)token * (size_t)half, *sine = f->sine + (size_t)token * (size_t)half;

    rotate(q, h->n_heads, h->head_dim, half, cosine, sine);
    rotate(k, h->n_kv_heads, h->head_dim, half, cosine, sine);
    for (int head = 0; head < h->n_kv_heads; head++)
        f->kernels->store_kv(mx_kv_pool_shape(f->pool)->type, k + head * h->head_dim, v + head * h->head_dim, h->head_dim,
                             position % MX_KV_SPAN, mx_kv_pool_k(f->pool, block, layer, head),
                             mx_kv_pool_v(f->pool, block, layer, head));
}

static int heads_per_kv(const mx_hparams *h)
{
    return h->n_heads / h->n_kv_heads;
}

/* With more heads on one KV head than a call takes queries, a token's heads are several tasks. */
static int heads_per_task(const mx_hparams *h)
{
    return heads_per_kv(h) < MX_ATTENTION_QUERIES ? heads_per_kv(h) : MX_ATTENTION_QUERIES;
}

void mx_attention_runs(mx_forward *f)
{
    const mx_hparams *h = &f->model->hparams;
    int most = MX_ATTENTION_QUERIES / heads_per_task(h);

    f->n_runs = 0;
    for (int t = 0; t < f->n_tokens; t++) {
        mx_query_run *run = f->n_runs > 0 ? &f->runs[f->n_runs - 1] : NULL;
        int sequence = f->batch->sequence[f->order[t]];

        if (run && run->n < most && f->batch->sequence[f->order[run->first]] == sequence)
            run->n++;
        else
            f->runs[f->n_runs++] = (mx_query_run){t, 1};
    }
}

static void attend(mx_forward *f, mx_worker *worker, int layer, const mx_query_run *run, int kv_head, int head_begin, int head_end)
{
    const mx_hparams *h = &f->model->hparams;
    size_t width = (size_t)(h->n_heads * h->head_dim);
    const float *q[MX_ATTENTION_QUERIES];
    float *out[MX_ATTENTION_QUERIES];
    int32_t position[MX_ATTENTION_QUERIES];
    int n = 0;
    mx_attention a;

    for (int t = run->first; t < run->first + run->n; t++)
        for (int head = head_begin; head < head_end; head++, n++) {
            q[n] = f->q + (size_t)t * width + (size_t)(head * h->head_dim);
            out[n] = f->attended.x + (size_t)t * width + (size_t)(head * h->head_dim);
            position[n] = f->batch->position[f->order[t]];
        }
    a = (mx_attention){
        .type = mx_kv_pool_shape(f->pool)->type,
        .head_dim = h->head_dim,
        .n_queries = n,
        .q = q,
        .out = out,
        .position = position,
        .block = f->batch->blocks[f->batch->sequence[f->order[run->first]]],
        .k = mx_kv_pool_k(f->pool, 0, layer, kv_head),
        .v = mx_kv_pool_v(f->pool, 0, layer, kv_head),
        .block_bytes = mx_kv_block_bytes(mx_kv_pool_shape(f->pool)),
        .scratch = worker->scratch,
    };
    f->kernels->attention(&a);
}

void mx_attention_run(mx_forward *f, mx_worker *worker, int layer, atomic_int *counter)
{
    const mx_hparams *h = &f->model->hparams;
    int step = heads_per_task(h), parts = (heads_per_kv(h) + step - 1) / step;
    int n_tasks = f->n_runs * h->n_kv_heads * parts;

    for (int task; (task = atomic_fetch_add(counter, 1)) < n_tasks;) {
        /* the last runs see the most keys: longest first */
        const mx_query_run *run = &f->runs[f->n_runs - 1 - task / (h->n_kv_heads * parts)];
        int kv_head = task / parts % h->n_kv_heads;
        int begin = kv_head * heads_per_kv(h) + task % parts * step;
        int end = begin + step < (kv_head + 1) * heads_per_kv(h) ? begin + step : (kv_head + 1) * heads_per_kv(h);

        if (f->n_tokens > f->n_decode && mx_given_up(f, worker))
            return;
        attend(f, worker, layer, run, kv_head, begin, end);
    }
}
