/*
 * runner.c: see runner.h.
 */
#include "runner.h"

#include <stdlib.h>
#include <string.h>
#include "../error.h"

mx_status mx_runner_open(const char *path, const char *kernels, const char *kv_type, int threads, int n_tokens, mx_runner *r,
                         mx_error *error)
{
    int n_blocks = (n_tokens + MX_KV_SPAN - 1) / MX_KV_SPAN;
    mx_kv_shape shape;
    mx_status status;

    memset(r, 0, sizeof *r);
    r->n_tokens = n_tokens;
    r->kernels = mx_kernels_get(kernels);
    if (!r->kernels)
        return mx_fail(error, MX_INVALID, "kernels", "--kernels %s: this machine runs %s", kernels, mx_kernels_names());
    status = mx_model_open(path, &r->model, error);
    if (status != MX_OK)
        goto failed;
    shape = (mx_kv_shape){r->model->hparams.n_layers, r->model->hparams.n_kv_heads, r->model->hparams.head_dim,
                          MX_KV_F16};
    status = mx_kv_type_choose(kv_type, shape.head_dim, &shape.type, error);
    if (status != MX_OK)
        goto failed;
    status = mx_threads_open(threads > 0 ? threads : mx_threads_default(), &r->threads, error);
    if (status != MX_OK)
        goto failed;
    status = mx_kv_pool_open(&shape, (int64_t)mx_kv_block_bytes(&shape) * n_blocks, &r->pool, error);
    if (status != MX_OK)
        goto failed;
    status = mx_forward_open(r->model, r->kernels, r->threads, r->pool, RUNNER_CHUNK, &r->forward, error);
    if (status != MX_OK)
        goto failed;
    r->blocks = malloc(sizeof *r->blocks * (size_t)n_blocks);
    if (!r->blocks) {
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for %d tokens", n_tokens);
        goto failed;
    }
    for (int i = 0; i < n_blocks; i++)
        r->blocks[i] = mx_kv_pool_alloc(r->pool);
    return MX_OK;
failed:
    mx_runner_close(r);
    return status;
}

void mx_runner_close(mx_runner *r)
{
    free(r->blocks);
    mx_forward_close(r->forward);
    mx_kv_pool_close(r->pool);
    mx_threads_close(r->threads);
    mx_model_close(r->model);
    memset(r, 0, sizeof *r);
}

void mx_runner_read(mx_runner *r, const int32_t *tokens, int n, mx_token_class token_class, float *logits, float *last)
{
    int32_t position[RUNNER_CHUNK], sequence[RUNNER_CHUNK] = {0};
    uint8_t classes[RUNNER_CHUNK], want[RUNNER_CHUNK];
    const int32_t *blocks = r->blocks;
    mx_batch batch = {n, tokens, position, sequence, classes, want, &blocks};

    for (int i = 0; i < n; i++) {
        position[i] = r->length + i;
        classes[i] = (uint8_t)token_class;
        want[i] = logits || (last && i == n - 1) ? MX_WANT_LOGITS : 0;
    }
    mx_forward_step(r->forward, &batch, logits ? logits : last, NULL, NULL, NULL);
    r->length += n;
}
