/*
 * moe.c: the mixture of experts.
 *
 * The router scores every expert for a token; the best `used` run, weighted by the softmax of their scores (Jiang et al. 2024,
 * "Mixtral of Experts", section 2.1). The step's (token, expert) pairs are sorted by expert, so that an expert's weights
 * are read once for all its tokens, and within an expert by class, so that each class has its own kernels. A dense model
 * is one expert that every token uses.
 */
#include <math.h>
#include <string.h>
#include "forward_internal.h"

/* Softmax over the chosen scores, which is the softmax over all of them, renormalised. */
static void softmax(float *x, int n)
{
    float largest = x[0], total = 0;

    for (int i = 1; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    for (int i = 0; i < n; i++)
        total += x[i] = expf(x[i] - largest);
    for (int i = 0; i < n; i++)
        x[i] /= total;
}

void mx_moe_route(mx_forward *f, mx_worker *worker, const mx_layer *layer, int token)
{
    const mx_hparams *h = &f->model->hparams;
    const float *x = f->normed.x + (size_t)token * (size_t)h->dim;
    int32_t *expert = f->expert + (size_t)token * (size_t)h->n_experts_used;
    float *weight = f->expert_weight + (size_t)token * (size_t)h->n_experts_used;
    float *scores = worker->router_logits;

    if (!layer->router) {
        expert[0] = 0;
        weight[0] = 1;
        return;
    }
    for (int e = 0; e < h->n_experts; e++) {
        float score = f->kernels->dot_f32(x, layer->router + (size_t)e * (size_t)h->dim, h->dim);

        scores[e] = isnan(score) ? -INFINITY : score;
    }
    for (int rank = 0; rank < h->n_experts_used; rank++) { /* ties go to the lower index */
        int best = -1;

        for (int e = 0; e < h->n_experts; e++) {
            bool taken = false;

            for (int r = 0; r < rank; r++)
                taken |= expert[r] == e;
            if (!taken && (best < 0 || scores[e] > scores[best]))
                best = e;
        }
        expert[rank] = best;
        weight[rank] = scores[best];
    }
    softmax(weight, h->n_experts_used);
}

static void add_job(const mx_forward *f, mx_expert_plan *plan, const mx_layer *layer, int expert, int first, int n, bool decode)
{
    if (n > 0)
        plan->jobs[plan->n_jobs++] = (mx_job){
            .w = &layer->gate[expert], .up = &layer->up[expert], .x = &f->normed,
            .column = plan->pair_token + first, .n_columns = n, .first = first, .decode = decode,
        };
}

void mx_moe_plan(mx_forward *f, mx_worker *worker, const mx_layer *layer)
{
    const mx_hparams *h = &f->model->hparams;
    mx_expert_plan *plan = &worker->plan;
    int used = h->n_experts_used, n_pairs = f->n_tokens * used;
    bool first_worker = worker == f->workers;

    memset(plan->begin, 0, sizeof *plan->begin * (size_t)(h->n_experts + 1));
    for (int i = 0; i < n_pairs; i++)
        plan->begin[f->expert[i] + 1]++;
    for (int e = 0; e < h->n_experts; e++)
        plan->begin[e + 1] += plan->begin[e];

    /* Tokens stand in class order, so a stable sort by expert leaves each expert's pairs in class order too. */
    plan->n_jobs = 0;
    for (int i = 0; i < n_pairs; i++) {
        int pair = plan->begin[f->expert[i]]++;

        plan->pair_token[pair] = i / used;
        if (first_worker)
            f->expert_pair[i] = pair;
    }
    for (int e = 0, first = 0; e < h->n_experts; first = plan->begin[e++]) { /* begin[e] is now e's end */
        int n_decode = 0, n = plan->begin[e] - first;

        while (n_decode < n && plan->pair_token[first + n_decode] < f->n_decode)
            n_decode++;
        add_job(f, plan, layer, e, first, n_decode, true);
        add_job(f, plan, layer, e, first + n_decode, n - n_decode, false);
    }
}

void mx_moe_down(mx_forward *f, mx_worker *worker, const mx_layer *layer)
{
    mx_expert_plan *plan = &worker->plan;

    for (int j = 0; j < plan->n_jobs; j++) {
        mx_job *job = &plan->jobs[j];

        job->w = &layer->down[job->w - layer->gate];
        job->up = NULL;
        job->x = &f->hidden;
        job->column = f->identity + job->first;
        job->y = f->expert_out + (size_t)job->first * (size_t)f->model->hparams.dim;
    }
}

/* In order of rank. */
void mx_moe_combine(mx_forward *f, int token)
{
    size_t dim = (size_t)f->model->hparams.dim, used = (size_t)f->model->hparams.n_experts_used;

    for (size_t i = (size_t)token * used; i < ((size_t)token + 1) * used; i++)
        f->kernels->add_scaled(f->x + (size_t)token * dim, f->expert_out + (size_t)f->expert_pair[i] * dim,
                               f->expert_weight[i], (int)dim);
}
