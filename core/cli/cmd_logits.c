/*
 * cmd_logits.c: `mixtral logits MODEL --tokens FILE [--step] [--kernels NAME] [--kv-type TYPE] [--threads N] --out FILE`
 *
 * Writes float32 [n_tokens][n_vocab] for the ids in FILE: read as one prompt (panel kernels), or with --step one token at a
 * time, as generated tokens are (dot kernels).
 */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "runner.h"

typedef struct {
    const char *model, *tokens, *out, *kernels, *kv_type;
    int threads;
    bool step;
} arguments;

/* Ids with white space between them. NULL: *reason says why. */
static int32_t *read_ids(const char *path, int *n, char reason[160])
{
    FILE *file = fopen(path, "r");
    int32_t *ids = NULL;
    int room = 0, got;
    long long id;

    *n = 0;
    if (!file) {
        snprintf(reason, 160, "cannot read %.100s: %s", path, strerror(errno));
        return NULL;
    }
    while ((got = fscanf(file, "%lld", &id)) == 1) {
        if (*n == room) {
            int32_t *grown = realloc(ids, sizeof *ids * (size_t)(room = room ? 2 * room : 1024));

            if (!grown) {
                snprintf(reason, 160, "out of memory for the ids");
                goto failed;
            }
            ids = grown;
        }
        if (id < 0 || id > INT32_MAX) {
            snprintf(reason, 160, "%.100s: %lld is no token id", path, id);
            goto failed;
        }
        ids[(*n)++] = (int32_t)id;
    }
    if (got != EOF || *n == 0) {
        snprintf(reason, 160, "%.100s: expected token ids with white space between them", path);
        goto failed;
    }
    fclose(file);
    return ids;
failed:
    fclose(file);
    free(ids);
    return NULL;
}

static int write_logits(mx_runner *r, const arguments *a, const int32_t *ids, int n)
{
    size_t n_vocab = (size_t)r->model->hparams.n_vocab;
    int chunk = a->step ? 1 : n < RUNNER_CHUNK ? n : RUNNER_CHUNK;
    float *logits = malloc(sizeof *logits * (size_t)chunk * n_vocab);
    FILE *out = fopen(a->out, "wb");
    bool written = out != NULL && logits != NULL;
    int error = errno;

    for (int done = 0; written && done < n;) {
        int now = n - done < chunk ? n - done : chunk;

        mx_runner_read(r, ids + done, now, a->step ? MX_CLASS_DECODE : MX_CLASS_PROMPT, logits, NULL);
        written = fwrite(logits, sizeof *logits * n_vocab, (size_t)now, out) == (size_t)now;
        error = errno;
        done += now;
    }
    if (out && fclose(out) != 0) {
        error = errno;
        written = false;
    }
    if (!logits)
        error = ENOMEM;
    free(logits);
    return written ? 0 : mx_cli_fail("cannot write %s: %s", a->out, strerror(error));
}

int mx_cmd_logits(int argc, char **argv)
{
    arguments a = {0};
    mx_runner r;
    mx_error error;
    int32_t *ids;
    int n, status;
    char reason[160];

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--step") == 0)
            a.step = true;
        else if (argv[i][0] != '-' && !a.model)
            a.model = argv[i];
        else if (!value)
            return mx_cli_fail("logits: %s: an option without a value, or not known", argv[i]);
        else if (strcmp(argv[i], "--tokens") == 0)
            a.tokens = argv[++i];
        else if (strcmp(argv[i], "--out") == 0)
            a.out = argv[++i];
        else if (strcmp(argv[i], "--kernels") == 0)
            a.kernels = argv[++i];
        else if (strcmp(argv[i], "--kv-type") == 0)
            a.kv_type = argv[++i];
        else if (strcmp(argv[i], "--threads") == 0) {
            if (!mx_cli_int(argv[++i], 1, MX_THREADS_MAX, &a.threads))
                return mx_cli_fail("logits: --threads: expected 1 to %d, got %s", MX_THREADS_MAX, value);
        } else
            return mx_cli_fail("logits: there is no option %s", argv[i]);
    }
    if (!a.model || !a.tokens || !a.out)
        return mx_cli_fail("usage: mixtral logits MODEL --tokens FILE [--step] [--kernels NAME] [--kv-type TYPE] [--threads N] "
                           "--out FILE");
    ids = read_ids(a.tokens, &n, reason);
    if (!ids)
        return mx_cli_fail("logits: %s", reason);
    if (mx_runner_open(a.model, a.kernels, a.kv_type, a.threads, n, &r, &error) != MX_OK) {
        free(ids);
        return mx_cli_fail("%s", error.text);
    }
    status = 0;
    for (int i = 0; i < n && status == 0; i++)
        if (ids[i] >= r.model->hparams.n_vocab)
            status = mx_cli_fail("logits: %s: id %d is not in the vocabulary of %d", a.tokens, ids[i], r.model->hparams.n_vocab);
    if (status == 0)
        status = write_logits(&r, &a, ids, n);
    mx_runner_close(&r);
    free(ids);
    return status;
}
