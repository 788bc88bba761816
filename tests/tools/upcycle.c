/*
 * upcycle.c: a mixture out of a dense model, by sparse upcycling: a test model whose answers are known.
 *
 *     upcycle IN.gguf OUT.gguf --experts N --experts-used M [--seed S] [--layout merged|separate]
 *
 * Every expert is the dense feed-forward with its hidden units in another order (rows of gate and up, columns of down), so
 * each computes the same function, and whatever the random router chooses, the mixture says what the dense model says. Where
 * down's type has blocks of 32, units move in runs of 32 and the blocks stay as they are; otherwise down becomes F32.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/synth.h"

typedef struct {
    const mx_model *dense;
    mx_gguf_writer *out;
    int experts, used;
    uint64_t seed;
    bool separate;
} upcycle;

enum { GATE, UP, DOWN };

static const char *const parts[] = {"gate", "up", "down"};

static int complain(const char *what, const char *which)
{
    fprintf(stderr, "upcycle: %s%s\n", what, which);
    return 1;
}

static void *need_memory(size_t bytes)
{
    void *memory = malloc(bytes);

    if (!memory) {
        complain("out of memory", "");
        exit(1);
    }
    return memory;
}

/* ---- Permutations -------------------------------------------------------------------------------------------------- */

/* Hidden units that move together. */
static int run_length(const mx_weight *down)
{
    return mx_type_get(down->type)->block_size == 32 ? 32 : 1;
}

static mx_type down_type(const mx_weight *down)
{
    return run_length(down) == 32 ? down->type : MX_TYPE_F32;
}

/* The order of the runs in one layer's expert (Fisher and Yates). Free with free. */
static int *permutation(const upcycle *u, int layer, int expert, int n)
{
    int *order = need_memory((size_t)n * sizeof *order);
    uint64_t state = u->seed ^ ((uint64_t)layer << 32 | (uint64_t)expert << 1);

    for (int i = 0; i < n; i++)
        order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(mx_synth_random(&state) % (uint64_t)(i + 1)), swap = order[i];

        order[i] = order[j];
        order[j] = swap;
    }
    return order;
}

/* ---- Weights ------------------------------------------------------------------------------------------------------- */

static void write_rows(const upcycle *u, const mx_weight *w, const int *order, int run)
{
    for (int i = 0; i < w->rows; i++)
        mx_gguf_write_data(u->out, w->data + (size_t)(order[i / run] * run + i % run) * w->row_bytes, w->row_bytes);
}

static void write_columns(const upcycle *u, const mx_weight *w, const int *order, int run)
{
    mx_type type = down_type(w);
    size_t unit = mx_row_bytes(type, run); /* bytes of a run of columns */
    float *floats = need_memory((size_t)w->cols * sizeof *floats);
    uint8_t *row = need_memory((size_t)(w->cols / run) * unit);

    for (int i = 0; i < w->rows; i++) {
        const uint8_t *from = w->data + (size_t)i * w->row_bytes;

        if (type != w->type) {
            mx_dequantize(w->type, from, floats, (size_t)w->cols);
            from = (const uint8_t *)floats;
        }
        for (int k = 0; k < w->cols / run; k++)
            memcpy(row + (size_t)k * unit, from + (size_t)order[k] * unit, unit);
        mx_gguf_write_data(u->out, row, (size_t)(w->cols / run) * unit);
    }
    free(row);
    free(floats);
}

static const mx_weight *part_of(const upcycle *u, int layer, int part)
{
    const mx_layer *l = &u->dense->layers[layer];

    return part == GATE ? l->gate : part == UP ? l->up : l->down;
}

static void write_expert(const upcycle *u, int layer, int part, int expert)
{
    const mx_weight *w = part_of(u, layer, part), *down = part_of(u, layer, DOWN);
    int run = run_length(down), *order = permutation(u, layer, expert, down->cols / run);

    if (part == DOWN)
        write_columns(u, w, order, run);
    else
        write_rows(u, w, order, run);
    free(order);
}

static void write_router(const upcycle *u, int layer)
{
    size_t n = (size_t)u->dense->hparams.dim * (size_t)u->experts;
    uint64_t state = u->seed ^ ((uint64_t)layer << 32 | 1);
    uint8_t *weights = need_memory(n * sizeof(float));

    mx_synth_weights(MX_TYPE_F32, &state, 1 / sqrtf((float)u->dense->hparams.dim), weights, n);
    mx_gguf_write_data(u->out, weights, n * sizeof(float));
    free(weights);
}

/* ---- The file ------------------------------------------------------------------------------------------------------ */

static void copy_key(const upcycle *u, size_t i)
{
    const mx_gguf *in = u->dense->gguf;
    mx_gguf_kind kind;
    mx_str string = mx_gguf_key_at(in, i, &kind);
    char *key = need_memory(string.bytes + 1);
    int64_t integer = 0;
    double number = 0;
    bool boolean = false;
    size_t n = 0;

    memcpy(key, string.data, string.bytes);
    key[string.bytes] = '\0';
    if (kind == MX_GGUF_STRING) {
        mx_gguf_get_string(in, key, &string, NULL, NULL);
        mx_gguf_put_string(u->out, key, string);
    } else if (kind == MX_GGUF_BOOL) {
        mx_gguf_get_bool(in, key, &boolean, NULL, NULL);
        mx_gguf_put_bool(u->out, key, boolean);
    } else if (kind == MX_GGUF_FLOAT32 || kind == MX_GGUF_FLOAT64) {
        mx_gguf_get_float(in, key, &number, NULL, NULL);
        mx_gguf_put_float(u->out, key, kind, number);
    } else if (kind != MX_GGUF_ARRAY) {
        mx_gguf_get_int(in, key, INT64_MIN, INT64_MAX, &integer, NULL, NULL);
        mx_gguf_put_int(u->out, key, kind, integer);
    } else if (mx_gguf_array(in, key, &kind, &n) && kind == MX_GGUF_STRING) {
        mx_str *strings = need_memory((n + 1) * sizeof *strings);
        const mx_gguf_list *list = mx_gguf_list_find(in, key, kind);

        for (size_t k = 0; k < n; k++)
            strings[k] = mx_gguf_list_string(list, k);
        mx_gguf_put_strings(u->out, key, strings, n);
        free(strings);
    } else {
        double *numbers = need_memory((n + 1) * sizeof *numbers);
        const mx_gguf_list *list = mx_gguf_list_find(in, key, kind);

        for (size_t k = 0; k < n; k++)
            numbers[k] = mx_gguf_list_number(list, k);
        mx_gguf_put_numbers(u->out, key, kind, numbers, n);
        free(numbers);
    }
    free(key);
}

static void put_experts(const upcycle *u, int layer, bool writing)
{
    const mx_hparams *h = &u->dense->hparams;
    int64_t router[2] = {h->dim, u->experts};
    char name[64];

    snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", layer);
    if (writing)
        write_router(u, layer);
    else
        mx_gguf_put_tensor(u->out, name, MX_TYPE_F32, 2, router);
    for (int p = GATE; p <= DOWN; p++) {
        const mx_weight *w = part_of(u, layer, p);
        int64_t dims[3] = {w->cols, w->rows, u->experts};

        for (int e = 0; e < u->experts; e++) {
            if (u->separate)
                snprintf(name, sizeof name, "blk.%d.ffn_%s.%d.weight", layer, parts[p], e);
            else
                snprintf(name, sizeof name, "blk.%d.ffn_%s_exps.weight", layer, parts[p]);
            if (writing)
                write_expert(u, layer, p, e);
            else if (u->separate || e == 0)
                mx_gguf_put_tensor(u->out, name, p == DOWN ? down_type(w) : w->type, u->separate ? 2 : 3, dims);
        }
    }
}

static bool is_feed_forward(mx_str name)
{
    char text[128];
    int layer, end = -1;

    snprintf(text, sizeof text, "%.*s", (int)name.bytes, name.data);
    for (int p = GATE; p <= DOWN; p++) {
        char format[64];

        snprintf(format, sizeof format, "blk.%%d.ffn_%s.weight%%n", parts[p]);
        if (sscanf(text, format, &layer, &end) == 1 && end > 0)
            return true;
    }
    return false;
}

static void put_tensors(const upcycle *u, bool writing)
{
    for (size_t i = 0; i < mx_gguf_n_tensors(u->dense->gguf); i++) {
        const mx_gguf_tensor *t = mx_gguf_tensor_at(u->dense->gguf, i);
        char name[128];

        if (is_feed_forward(t->name))
            continue;
        snprintf(name, sizeof name, "%.*s", (int)t->name.bytes, t->name.data);
        if (writing)
            mx_gguf_write_data(u->out, t->data, t->bytes);
        else
            mx_gguf_put_tensor(u->out, name, t->type, t->n_dims, t->dims);
    }
    for (int layer = 0; layer < u->dense->hparams.n_layers; layer++)
        put_experts(u, layer, writing);
}

static mx_status write_mixture(const upcycle *u, mx_error *error)
{
    for (size_t i = 0; i < mx_gguf_n_keys(u->dense->gguf); i++)
        copy_key(u, i);
    mx_gguf_put_int(u->out, "llama.expert_count", MX_GGUF_UINT32, u->experts);
    mx_gguf_put_int(u->out, "llama.expert_used_count", MX_GGUF_UINT32, u->used);
    put_tensors(u, false);
    put_tensors(u, true);
    return mx_gguf_writer_commit(u->out, error);
}

/* ---- Arguments ----------------------------------------------------------------------------------------------------- */

static bool set_option(upcycle *u, const char *name, const char *value)
{
    if (strcmp(name, "--experts") == 0)
        u->experts = atoi(value);
    else if (strcmp(name, "--experts-used") == 0)
        u->used = atoi(value);
    else if (strcmp(name, "--seed") == 0)
        u->seed = strtoull(value, NULL, 10);
    else if (strcmp(name, "--layout") == 0 && (strcmp(value, "merged") == 0 || strcmp(value, "separate") == 0))
        u->separate = strcmp(value, "separate") == 0;
    else
        return false;
    return true;
}

int main(int argc, char **argv)
{
    upcycle u = {.seed = 1};
    mx_model *dense = NULL;
    mx_error error;
    int failed = 0;

    if (argc < 3 || argc % 2 == 0)
        return complain("usage: upcycle IN OUT --experts N --experts-used M [--seed S] [--layout merged|separate]", "");
    for (int i = 3; i < argc; i += 2)
        if (!set_option(&u, argv[i], argv[i + 1]))
            return complain("no such option or value: ", argv[i]);
    if (u.used < 1 || u.experts < u.used || u.experts > 1024)
        return complain("expected 1 <= --experts-used <= --experts <= 1024", "");
    if (mx_model_open(argv[1], &dense, &error) != MX_OK)
        return complain(error.text, "");
    u.dense = dense;
    if (dense->expert_layout != MX_EXPERTS_NONE)
        failed = complain(argv[1], ": expected a dense model");
    else if (mx_gguf_writer_open(argv[2], &u.out, &error) != MX_OK || write_mixture(&u, &error) != MX_OK)
        failed = complain(error.text, "");
    mx_gguf_writer_close(u.out);
    mx_model_close(dense);
    return failed;
}
