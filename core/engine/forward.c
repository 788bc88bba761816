/*
 * forward.c: the model over one batch of tokens.
 *
 * forward_layer is the algorithm; every thread runs it, and the phases between two barriers share out their work through one
 * atomic counter each. The arena and the threads' workspaces are allocated at open, and a step allocates nothing.
 *
 *     x = embedding[token]
 *     for each layer:
 *         x += attention(norm(x)) . O
 *         x += sum over chosen experts of weight * (silu(norm(x) . gate) * (norm(x) . up)) . down
 *     logits = norm(x) . output
 */
#include "forward_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"

/* ---- Products, a tile of rows at a time ----------------------------------------------------------------------------- */

static void multiply(const mx_forward *f, const mx_worker *worker, const mx_job *job, const mx_weight *w, int begin, int end,
                     float *y, size_t y_stride)
{
    mx_product p = {
        .w = w, .row_begin = begin, .row_end = end, .x = job->x, .column = job->column, .n_columns = job->n_columns,
        .y = y, .y_stride = y_stride, .scratch = worker->scratch,
    };

    (job->decode ? f->kernels->dot : f->kernels->panel)[w->type](&p);
}

/* hidden = silu(gate) * up for rows begin .. end-1, made ready for the down product */
static void run_gate_up(mx_forward *f, mx_worker *worker, const mx_job *job, int begin, int end)
{
    size_t n_ff = (size_t)f->hidden.cols;
    float *gate = f->hidden.x + (size_t)job->first * n_ff + (size_t)begin;

    multiply(f, worker, job, job->w, begin, end, gate, n_ff);
    multiply(f, worker, job, job->up, begin, end, worker->up, UP_ROWS);
    for (int c = 0; c < job->n_columns; c++) {
        f->kernels->silu_multiply(gate + (size_t)c * n_ff, worker->up + (size_t)c * UP_ROWS, end - begin);
        if (f->quantize_ff)
            f->kernels->quantize(&f->hidden, job->first + c, begin / MX_GROUP, end / MX_GROUP);
    }
}

static int min(int a, int b)
{
    return a < b ? a : b;
}

/* Enough tiles for every thread to have several, and few enough that taking one costs nothing. */
static int tile_rows(const mx_job *job, int n_threads)
{
    int rows = job->w->rows / (8 * n_threads) / MX_GROUP * MX_GROUP;

    return rows < MX_GROUP ? MX_GROUP : min(rows, job->up ? UP_ROWS : 256);
}

/* The first thread asks the host, the others look. All threads run a layer to its last barrier, where they see the same. */
bool mx_given_up(mx_forward *f, const mx_worker *worker)
{
    if (worker == f->workers && f->abandoned && !f->stop && f->abandoned(f->abandoned_arg))
        f->stop = true;
    return f->stop;
}

void mx_run_jobs(mx_forward *f, mx_worker *worker, const mx_job *jobs, int n_jobs, atomic_int *counter, int n_threads)
{
    int j = 0, job_begin = 0; /* the first tile of job j */

    for (int tile = atomic_fetch_add(counter, 1); j < n_jobs;) {
        const mx_job *job = &jobs[j];
        int step = tile_rows(job, n_threads), n_tiles = (job->w->rows + step - 1) / step;
        int begin = (tile - job_begin) * step, end;

        if (tile - job_begin >= n_tiles) {
            job_begin += n_tiles;
            j++;
            continue;
        }
        if (!job->decode && mx_given_up(f, worker))
            return;
        end = min(begin + step, job->w->rows);
        if (job->up)
            run_gate_up(f, worker, job, begin, end);
        else
            multiply(f, worker, job, job->w, begin, end, job->y + begin, (size_t)job->w->rows);
        tile = atomic_fetch_add(counter, 1);
    }
}

int mx_token_jobs(const mx_forward *f, const mx_weight *w, const mx_acts *x, float *y, mx_job *jobs)
{
    int n = 0, n_prompt = f->n_tokens - f->n_decode;

    if (f->n_decode > 0)
        jobs[n++] = (mx_job){.w = w, .x = x, .column = f->identity, .n_columns = f->n_decode, .y = y, .decode = true};
    if (n_prompt > 0)
        jobs[n++] = (mx_job){.w = w, .x = x, .column = f->identity + f->n_decode, .n_columns = n_prompt,
                             .y = y + (size_t)f->n_decode * (size_t)w->rows};
    return n;
}

/* ---- One layer -------------------------------------------------------------------------------------------------------- */

static void norm_token(mx_forward *f, const float *weight, int token)
{
    const mx_hparams *h = &f->model->hparams;
    size_t at = (size_t)token * (size_t)h->dim;

    f->kernels->rms_norm(f->x + at, weight, h->dim, h->norm_eps, f->normed.x + at);
    if (f->quantize_dim)
        f->kernels->quantize(&f->normed, token, 0, h->dim / MX_GROUP);
}

/* Tokens are dealt to threads in turn, where each needs the same small work. */
#define FOR_MY_TOKENS(t) for (int t = thread; t < f->n_tokens; t += n_threads)

static void forward_layer(mx_forward *f, int index, int thread, int n_threads)
{
    const mx_hparams *h = &f->model->hparams;
    const mx_layer *layer = &f->model->layers[index];
    mx_worker *worker = &f->workers[thread];
    atomic_int *counter = f->counters + (size_t)index * PHASES;
    mx_job jobs[6];
    int n_jobs;

    FOR_MY_TOKENS(t) {
        if (index == 0)
            mx_rope_prepare(f, t);
        else
            mx_moe_combine(f, t); /* of the layer before */
        norm_token(f, layer->attn_norm, t);
    }
    mx_threads_barrier(f->threads);

    n_jobs = mx_token_jobs(f, &layer->q, &f->normed, f->q, jobs);
    n_jobs += mx_token_jobs(f, &layer->k, &f->normed, f->k, jobs + n_jobs);
    n_jobs += mx_token_jobs(f, &layer->v, &f->normed, f->v, jobs + n_jobs);
    mx_run_jobs(f, worker, jobs, n_jobs, &counter[0], n_threads);
    mx_threads_barrier(f->threads);

    FOR_MY_TOKENS(t)
        mx_rope_store(f, index, t);
    mx_threads_barrier(f->threads);

    mx_attention_run(f, worker, index, &counter[1]);
    mx_threads_barrier(f->threads);

    FOR_MY_TOKENS(t)
        if (f->quantize_heads)
            f->kernels->quantize(&f->attended, t, 0, f->attended.cols / MX_GROUP);
    mx_threads_barrier(f->threads);

    n_jobs = mx_token_jobs(f, &layer->o, &f->attended, f->projected, jobs);
    mx_run_jobs(f, worker, jobs, n_jobs, &counter[2], n_threads);
    mx_threads_barrier(f->threads);

    FOR_MY_TOKENS(t) {
        size_t at = (size_t)t * (size_t)h->dim;

        f->kernels->add_scaled(f->x + at, f->projected + at, 1, h->dim);
        norm_token(f, layer->ffn_norm, t);
        mx_moe_route(f, worker, layer, t);
    }
    mx_threads_barrier(f->threads);

    mx_moe_plan(f, worker, layer);
    mx_run_jobs(f, worker, worker->plan.jobs, worker->plan.n_jobs, &counter[3], n_threads);
    mx_threads_barrier(f->threads);

    mx_moe_down(f, worker, layer);
    mx_run_jobs(f, worker, worker->plan.jobs, worker->plan.n_jobs, &counter[4], n_threads);
    mx_given_up(f, worker);
    mx_threads_barrier(f->threads);
}

/* The output norm of every token that is wanted, then the output matrix: always dot kernels. */
static void forward_output(mx_forward *f, int thread, int n_threads)
{
    const mx_hparams *h = &f->model->hparams;
    mx_job job = {.w = &f->model->output, .x = &f->normed, .column = f->wanted, .n_columns = f->n_wanted,
                  .y = f->logits, .decode = true};

    FOR_MY_TOKENS(t)
        if (f->batch->want[f->order[t]]) {
            mx_moe_combine(f, t);
            norm_token(f, f->model->output_norm, t);
        }
    mx_threads_barrier(f->threads);
    if (thread == 0 && f->hidden_out)
        for (int i = 0, row = 0; i < f->n_tokens; i++)
            if (f->batch->want[i] & MX_WANT_HIDDEN)
                memcpy(f->hidden_out + (size_t)row++ * (size_t)h->dim, f->normed.x + (size_t)f->place[i] * (size_t)h->dim,
                       sizeof(float) * (size_t)h->dim);
    if (f->n_wanted > 0)
        mx_run_jobs(f, &f->workers[thread], &job, 1, &f->counters[(size_t)h->n_layers * PHASES], n_threads);
}

static void run_thread(void *arg, int thread, int n_threads)
{
    mx_forward *f = arg;
    const mx_hparams *h = &f->model->hparams;

    FOR_MY_TOKENS(t) {
        int32_t token = f->batch->token[f->order[t]];

        mx_dequantize(f->model->embedding.type, f->model->embedding.data + (size_t)token * f->model->embedding.row_bytes,
                      f->x + (size_t)t * (size_t)h->dim, (size_t)h->dim);
    }
    for (int layer = 0; layer < h->n_layers && !f->stop; layer++)
        forward_layer(f, layer, thread, n_threads);
    if (!f->stop)
        forward_output(f, thread, n_threads);
}

/* ---- A step ----------------------------------------------------------------------------------------------------------- */

/* Decode class first; within a class the batch's order. */
static void order_tokens(mx_forward *f)
{
    const mx_batch *b = f->batch;
    int n = 0;

    for (int i = 0; i < b->n_tokens; i++)
        if (b->token_class[i] == MX_CLASS_DECODE)
            f->order[n++] = i;
    f->n_decode = n;
    for (int i = 0; i < b->n_tokens; i++)
        if (b->token_class[i] != MX_CLASS_DECODE)
            f->order[n++] = i;
    f->n_tokens = n;
    for (int t = 0; t < n; t++)
        f->place[f->order[t]] = t;
    f->n_wanted = 0;
    for (int i = 0; i < b->n_tokens; i++)
        if (b->want[i] & MX_WANT_LOGITS)
            f->wanted[f->n_wanted++] = f->place[i];
}

mx_status mx_forward_step(mx_forward *f, const mx_batch *batch, float *logits, float *hidden, bool (*abandoned)(void *arg), void *arg)
{
    f->batch = batch;
    f->logits = logits;
    f->hidden_out = hidden;
    f->abandoned = abandoned;
    f->abandoned_arg = arg;
    f->stop = false;
    order_tokens(f);
    mx_attention_runs(f);
    for (int i = 0; i <= f->model->hparams.n_layers * PHASES; i++)
        atomic_init(&f->counters[i], 0);
    mx_threads_run(f->threads, run_thread, f);
    return f->stop ? MX_CANCELLED : MX_OK;
}

/* ---- The arena -------------------------------------------------------------------------------------------------------- */

typedef struct { /* first measures, with memory NULL, then deals out */
    uint8_t *memory;
    size_t used;
} mx_arena;

static void *take(mx_arena *arena, size_t count, size_t size)
{
    void *p = arena->memory ? arena->memory + arena->used : NULL;

    arena->used += (count * size + 127) / 128 * 128;
    return p;
}

static void take_acts(mx_arena *arena, mx_acts *a, size_t n, int cols)
{
    a->cols = cols;
    a->q_stride = (cols + 63) / 64 * 64;
    a->groups = (cols + 255) / 256 * 256 / MX_GROUP;
    a->x = take(arena, n * (size_t)cols, sizeof *a->x);
    a->q = take(arena, n * (size_t)a->q_stride, sizeof *a->q);
    a->scale = take(arena, n * (size_t)a->groups, sizeof *a->scale);
    a->sum = take(arena, n * (size_t)a->groups, sizeof *a->sum);
    a->sum16 = take(arena, 2 * n * (size_t)a->groups, sizeof *a->sum16);
}

static void lay_out(mx_forward *f, mx_arena *arena)
{
    const mx_hparams *h = &f->model->hparams;
    size_t n = (size_t)f->max_tokens, used = (size_t)h->n_experts_used, experts = (size_t)h->n_experts;
    size_t heads = (size_t)(h->n_heads * h->head_dim), kv = (size_t)(h->n_kv_heads * h->head_dim);

    f->order = take(arena, n, sizeof *f->order);
    f->place = take(arena, n, sizeof *f->place);
    f->identity = take(arena, n * used, sizeof *f->identity);
    f->wanted = take(arena, n, sizeof *f->wanted);
    f->runs = take(arena, n, sizeof *f->runs);
    f->counters = take(arena, (size_t)h->n_layers * PHASES + 1, sizeof *f->counters);
    f->frequency = take(arena, (size_t)h->rope_dim / 2, sizeof *f->frequency);
    f->x = take(arena, n * (size_t)h->dim, sizeof *f->x);
    f->q = take(arena, n * heads, sizeof *f->q);
    f->k = take(arena, n * kv, sizeof *f->k);
    f->v = take(arena, n * kv, sizeof *f->v);
    f->cosine = take(arena, n * (size_t)h->rope_dim / 2, sizeof *f->cosine);
    f->sine = take(arena, n * (size_t)h->rope_dim / 2, sizeof *f->sine);
    f->projected = take(arena, n * (size_t)h->dim, sizeof *f->projected);
    f->expert_out = take(arena, n * used * (size_t)h->dim, sizeof *f->expert_out);
    f->expert = take(arena, n * used, sizeof *f->expert);
    f->expert_weight = take(arena, n * used, sizeof *f->expert_weight);
    f->expert_pair = take(arena, n * used, sizeof *f->expert_pair);
    take_acts(arena, &f->normed, n, h->dim);
    take_acts(arena, &f->attended, n, (int)heads);
    take_acts(arena, &f->hidden, n * used, h->n_ff);
    for (int i = 0; i < mx_threads_count(f->threads); i++) {
        mx_worker *w = &f->workers[i];

        w->scratch = take(arena, MX_SCRATCH_BYTES, 1);
        w->up = take(arena, n * UP_ROWS, sizeof *w->up);
        w->router_logits = take(arena, experts, sizeof *w->router_logits);
        w->plan.jobs = take(arena, 2 * experts, sizeof *w->plan.jobs);
        w->plan.pair_token = take(arena, n * used, sizeof *w->plan.pair_token);
        w->plan.begin = take(arena, experts + 1, sizeof *w->plan.begin);
    }
}

static void fill_constants(mx_forward *f)
{
    const mx_hparams *h = &f->model->hparams;

    f->quantize_dim = h->dim % MX_GROUP == 0;
    f->quantize_heads = h->n_heads * h->head_dim % MX_GROUP == 0;
    f->quantize_ff = h->n_ff % MX_GROUP == 0;
    for (int i = 0; i < f->max_tokens * h->n_experts_used; i++)
        f->identity[i] = i;
    for (int i = 0; i < h->rope_dim / 2; i++) {
        f->frequency[i] = pow(h->rope_base, -2.0 * i / h->rope_dim);
        if (f->model->rope_factors)
            f->frequency[i] /= f->model->rope_factors[i];
    }
}

mx_status mx_forward_open(const mx_model *model, const mx_kernels *kernels, mx_threads *threads, mx_kv_pool *pool,
                          int max_tokens, mx_forward **forward, mx_error *error)
{
    mx_forward *f = calloc(1, sizeof *f);
    mx_arena arena = {0};

    *forward = NULL;
    if (!f || !(f->workers = calloc((size_t)mx_threads_count(threads), sizeof *f->workers)))
        goto nomem;
    f->model = model;
    f->kernels = kernels;
    f->threads = threads;
    f->pool = pool;
    f->max_tokens = max_tokens;
    lay_out(f, &arena);
    f->arena = arena.memory = aligned_alloc(128, arena.used);
    if (!f->arena)
        goto nomem;
    memset(f->arena, 0, arena.used); /* the padding of activations is read and must be zero */
    arena.used = 0;
    lay_out(f, &arena);
    fill_constants(f);
    *forward = f;
    return MX_OK;
nomem:
    mx_forward_close(f);
    return mx_fail(error, MX_NOMEM, NULL, "the forward pass needs %zu bytes for steps of %d tokens", arena.used, max_tokens);
}

void mx_forward_close(mx_forward *f)
{
    if (!f)
        return;
    free(f->arena);
    free(f->workers);
    free(f);
}

int mx_forward_max_tokens(const mx_forward *f)
{
    return f->max_tokens;
}
