/*
 * cmd_bench.c: `mixtral bench MODEL [--threads N] [--prompt N] [--tokens N] [--kernels NAME] [--kv-type TYPE] [--json]`
 *
 * Reads a prompt of random ids (from a fixed seed), then generates, and prints tokens per second of both; and what share of
 * the memory bandwidth, measured first with as many threads, generation draws: a token needs every weight once, of the
 * experts only the chosen ones.
 */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "runner.h"

enum { BANDWIDTH_BYTES = 256 << 20, BANDWIDTH_ROUNDS = 5, WARM_UP = 64 };

static double now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    const uint64_t *words;
    size_t n;
    _Atomic uint64_t sum; /* so that the reads are needed */
} reading;

static void read_share(void *arg, int thread, int n_threads)
{
    reading *r = arg;
    size_t begin = r->n / (size_t)n_threads * (size_t)thread, end = begin + r->n / (size_t)n_threads;
    uint64_t sum[8] = {0};

    for (size_t i = begin; i + 8 <= end; i += 8)
        for (size_t j = 0; j < 8; j++)
            sum[j] += r->words[i + j];
    r->sum += sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* Bytes a second, the best of some rounds; 0 without the memory for it. */
static double measure_bandwidth(mx_threads *threads)
{
    uint64_t *words = malloc(BANDWIDTH_BYTES);
    reading r = {words, BANDWIDTH_BYTES / sizeof *words, 0};
    double best = 0;

    if (!words)
        return 0;
    memset(words, 1, BANDWIDTH_BYTES);
    for (int i = 0; i < BANDWIDTH_ROUNDS; i++) {
        double begin = now_s(), rate;

        mx_threads_run(threads, read_share, &r);
        rate = BANDWIDTH_BYTES / (now_s() - begin);
        best = rate > best ? rate : best;
    }
    free(words);
    return best;
}

static double weight_bytes(const mx_weight *w)
{
    return (double)w->row_bytes * w->rows;
}

static double bytes_a_token(const mx_model *m)
{
    double bytes = weight_bytes(&m->output);

    for (int i = 0; i < m->hparams.n_layers; i++) {
        const mx_layer *l = &m->layers[i];
        double experts = 0;

        for (int e = 0; e < m->hparams.n_experts; e++)
            experts += weight_bytes(&l->gate[e]) + weight_bytes(&l->up[e]) + weight_bytes(&l->down[e]);
        bytes += weight_bytes(&l->q) + weight_bytes(&l->k) + weight_bytes(&l->v) + weight_bytes(&l->o) +
                 experts * m->hparams.n_experts_used / m->hparams.n_experts;
    }
    return bytes;
}

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u; /* Knuth, MMIX */
    return (uint32_t)(*state >> 33);
}

typedef struct {
    double prefill, decode, bandwidth_share; /* tokens a second, and a fraction */
} figures;

static int measure(mx_runner *r, int n_prompt, int n_decode, figures *f)
{
    int32_t *prompt = malloc(sizeof *prompt * (size_t)n_prompt), token = 0;
    float *logits = malloc(sizeof *logits * (size_t)r->model->hparams.n_vocab);
    uint64_t state = 42;
    double bandwidth = measure_bandwidth(r->threads), begin;

    if (!prompt || !logits || bandwidth == 0) {
        free(prompt);
        free(logits);
        return mx_cli_fail("bench: out of memory");
    }
    for (int i = 0; i < n_prompt; i++)
        prompt[i] = (int32_t)(next_random(&state) % (uint32_t)r->model->hparams.n_vocab);

    /* Once unmeasured: pages are mapped, threads started. */
    mx_runner_read(r, prompt, 1, MX_CLASS_PROMPT, NULL, logits);
    mx_runner_read(r, prompt, 1, MX_CLASS_DECODE, NULL, logits);
    mx_runner_read(r, prompt, n_prompt < WARM_UP ? n_prompt : WARM_UP, MX_CLASS_PROMPT, NULL, logits);
    r->length = 0;

    begin = now_s();
    for (int done = 0; done < n_prompt; done += RUNNER_CHUNK) {
        int n = n_prompt - done < RUNNER_CHUNK ? n_prompt - done : RUNNER_CHUNK;

        mx_runner_read(r, prompt + done, n, MX_CLASS_PROMPT, NULL, done + n == n_prompt ? logits : NULL);
    }
    f->prefill = n_prompt / (now_s() - begin);
    begin = now_s();
    for (int i = 0; i < n_decode; i++) {
        token = (int32_t)(next_random(&state) % (uint32_t)r->model->hparams.n_vocab);
        mx_runner_read(r, &token, 1, MX_CLASS_DECODE, NULL, logits);
    }
    f->decode = n_decode / (now_s() - begin);
    f->bandwidth_share = f->decode * bytes_a_token(r->model) / bandwidth;
    free(prompt);
    free(logits);
    return 0;
}

int mx_cmd_bench(int argc, char **argv)
{
    const char *model = NULL, *kernels = NULL, *kv_type = NULL;
    int threads = 0, n_prompt = 512, n_decode = 64, status;
    bool json = false;
    mx_runner r;
    mx_error error;
    figures f = {0};

    for (int i = 1; i < argc; i++) {
        int *number = strcmp(argv[i], "--threads") == 0  ? &threads
                      : strcmp(argv[i], "--prompt") == 0 ? &n_prompt
                      : strcmp(argv[i], "--tokens") == 0 ? &n_decode
                                                         : NULL;
        int most = number == &threads ? MX_THREADS_MAX : 1 << 20;

        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (argv[i][0] != '-' && !model)
            model = argv[i];
        else if (i + 1 == argc)
            return mx_cli_fail("bench: %s: an option without a value, or not known", argv[i]);
        else if (strcmp(argv[i], "--kernels") == 0)
            kernels = argv[++i];
        else if (strcmp(argv[i], "--kv-type") == 0)
            kv_type = argv[++i];
        else if (!number)
            return mx_cli_fail("bench: there is no option %s", argv[i]);
        else if (!mx_cli_int(argv[++i], 1, most, number))
            return mx_cli_fail("bench: %s: expected 1 to %d, got %s", argv[i - 1], most, argv[i]);
    }
    if (!model)
        return mx_cli_fail("usage: mixtral bench MODEL [--threads N] [--prompt N] [--tokens N] [--kernels NAME] [--kv-type TYPE] "
                           "[--json]");
    if (mx_runner_open(model, kernels, kv_type, threads, n_prompt + n_decode + 2 + WARM_UP, &r, &error) != MX_OK)
        return mx_cli_fail("%s", error.text);
    status = measure(&r, n_prompt, n_decode, &f);
    if (status == 0 && json)
        printf("{\"prefill_tokens_per_s\": %.2f, \"decode_tokens_per_s\": %.2f, \"bandwidth_share\": %.3f}\n", f.prefill, f.decode,
               f.bandwidth_share);
    else if (status == 0)
        printf("%s, %s kernels, %d threads\nprefill  %8.2f tokens/s  (%d tokens)\ndecode   %8.2f tokens/s  (%d tokens, %.0f%% of "
               "the memory bandwidth)\n",
               r.model->name, r.kernels->name, mx_threads_count(r.threads), f.prefill, n_prompt, f.decode, n_decode,
               100 * f.bandwidth_share);
    mx_runner_close(&r);
    return status;
}
