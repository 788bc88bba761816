/*
 * cmd_info.c: `mixtral info MODEL`: what a model file is, and the memory it takes.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../math/kv_type.h"
#include "../model/chat_template.h"
#include "../model/weights.h"
#include "cli.h"

static const char *amount(double bytes, char out[32])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;

    while (bytes >= 1024 && unit < 4) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return out;
}

static void print_geometry(const mx_model *model)
{
    const mx_hparams *h = &model->hparams;

    printf("geometry       %d layers, %d wide, feed-forward %d\n", h->n_layers, h->dim, h->n_ff);
    printf("attention      %d heads of %d, %d key-value heads\n", h->n_heads, h->head_dim, h->n_kv_heads);
    if (model->expert_layout == MX_EXPERTS_NONE)
        printf("experts        none (dense)\n");
    else
        printf("experts        %d, %d used for each token; layout %s\n", h->n_experts, h->n_experts_used,
               model->expert_layout == MX_EXPERTS_MERGED ? "merged (ffn_*_exps)" : "separate (ffn_*.E)");
    printf("rope           base %g, %d of %d dimensions", h->rope_base, h->rope_dim, h->head_dim);
    if (h->rope_scale != 1)
        printf(", positions divided by %g", h->rope_scale);
    printf("%s\n", model->rope_factors ? ", frequencies divided by rope_freqs" : "");
    printf("context        %d tokens\n", h->context);
}

static const char *const template_names[] = {
    [MX_TEMPLATE_NONE] = "not known (set the option template)",
    [MX_TEMPLATE_MIXTRAL] = "mixtral",
    [MX_TEMPLATE_CHATML] = "chatml",
    [MX_TEMPLATE_LLAMA3] = "llama3",
};

/* A file whose vocabulary cannot be read is still described: the reason stands in its place. */
static void print_vocabulary(const mx_model *model)
{
    mx_tokenizer *tokenizer = NULL;
    mx_chat_template *chat = NULL;
    mx_str kind = {"none", 4};
    mx_error error;

    printf("vocabulary     %d tokens", model->hparams.n_vocab);
    if (mx_tokenizer_open(model->gguf, &tokenizer, &error) != MX_OK) {
        printf("; cannot be used: %s\n", error.text);
        return;
    }
    mx_gguf_get_string(model->gguf, "tokenizer.ggml.model", &kind, NULL, &error);
    printf(", %.*s", (int)(kind.bytes < 32 ? kind.bytes : 32), kind.data);
    if (mx_gguf_get_string(model->gguf, "tokenizer.ggml.pre", &kind, NULL, &error) == MX_OK &&
        !mx_tokenizer_is_spm(tokenizer))
        printf(" (%.*s)", (int)(kind.bytes < 32 ? kind.bytes : 32), kind.data);
    printf("%s\n", model->output.data == model->embedding.data ? "; output and embedding are one matrix" : "");
    if (mx_chat_template_open(model->gguf, tokenizer, &chat, &error) == MX_OK)
        printf("template       %s\n", template_names[mx_chat_template_kind(chat)]);
    else
        printf("template       cannot be used: %s\n", error.text);
    mx_chat_template_close(chat);
    mx_tokenizer_close(tokenizer);
}

/* Returns the bytes of all tensors. */
static double print_types(const mx_gguf *gguf)
{
    size_t count[MX_TYPE_COUNT] = {0};
    double bytes[MX_TYPE_COUNT] = {0}, total = 0;
    char text[32];

    for (size_t i = 0; i < mx_gguf_n_tensors(gguf); i++) {
        const mx_gguf_tensor *t = mx_gguf_tensor_at(gguf, i);

        count[t->type]++;
        bytes[t->type] += (double)t->bytes;
        total += (double)t->bytes;
    }
    printf("tensors        %zu\n", mx_gguf_n_tensors(gguf));
    for (int t = 0; t < MX_TYPE_COUNT; t++)
        if (count[t] > 0)
            printf("  %-12s %6zu  %12s\n", mx_type_get((mx_type)t)->name, count[t], amount(bytes[t], text));
    return total;
}

/* A line for each type of KV cache that the model's heads fit. */
static void print_kv(const mx_hparams *h)
{
    char token[32], context[32];

    for (int type = 0; type < MX_KV_TYPE_COUNT; type++) {
        double bytes;

        if (!mx_kv_type_fits((mx_kv_type)type, h->head_dim))
            continue;
        bytes = 2.0 * (double)mx_kv_half_bytes((mx_kv_type)type, h->head_dim) / MX_KV_SPAN * h->n_layers * h->n_kv_heads;
        printf("kv %-4s        %s a token, %s a context\n", mx_kv_type_name((mx_kv_type)type), amount(bytes, token),
               amount(bytes * h->context, context));
    }
}

int mx_cmd_info(int argc, char **argv)
{
    mx_model *model;
    mx_error error;
    double weights;
    char text[32];

    if (argc != 2)
        return mx_cli_fail("info: expected one model file: mixtral info MODEL");
    if (mx_model_open(argv[1], &model, &error) != MX_OK)
        return mx_cli_fail("info: %s", error.text);
    printf("name           %s\n", model->name);
    printf("file           GGUF v%" PRIu32 ", %s\n", mx_gguf_version(model->gguf),
           amount((double)mx_gguf_file_bytes(model->gguf), text));
    printf("architecture   llama\n");
    print_geometry(model);
    print_vocabulary(model);
    weights = print_types(model->gguf);
    printf("weights        %s\n", amount(weights, text));
    print_kv(&model->hparams);
    mx_model_close(model);
    return 0;
}
