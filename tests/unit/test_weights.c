/*
 * test_weights.c: hyperparameters and tensors of a model file: every type, every layout, mixes, split files, and the message
 * for each thing that a model may not be.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "model/weights.h"
#include "small_models.h"

static char folder[] = "/tmp/mixtral-weights-XXXXXX";
static char path[256];
static small_model m;
static mx_model *model;
static mx_error error;
static mx_type one_type;

static mx_type always(const char *name)
{
    (void)name;
    return one_type;
}

/* Another type for every tensor, and for every expert of the separate layout. */
static mx_type mixed(const char *name)
{
    unsigned sum = 0;

    for (const char *c = name; *c; c++)
        sum = sum * 31 + (unsigned char)*c;
    return (mx_type)(sum % MX_TYPE_COUNT);
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    char command[64];
    (void)state;

    mx_model_close(model);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void begin(mx_expert_layout layout, mx_type type)
{
    bool mixture = layout != MX_EXPERTS_NONE;

    m = (small_model){.layers = 2, .dim = 256, .ff = 256, .heads = 4, .kv_heads = 2, .head_dim = 64, .vocab = 11,
                      .experts = mixture ? 3 : 0, .used = mixture ? 2 : 0, .layout = layout, .type_of = always};
    one_type = type;
    lay_out_model(&m);
}

static void write_and_open(void)
{
    mx_model_close(model);
    model = NULL;
    if (write_model(path, &m, &error) != MX_OK || mx_model_open(path, &model, &error) != MX_OK)
        fail_msg("%s", error.text);
}

static void refused(mx_status status, const char *field, const char *text)
{
    mx_model *none = (mx_model *)&m;

    assert_int_equal(write_model(path, &m, &error), MX_OK);
    assert_int_equal(mx_model_open(path, &none, &error), status);
    assert_null(none);
    assert_int_equal(error.status, status);
    if (strncmp(error.text, "model.gguf: ", 12) != 0 || !strstr(error.text, text) || strcmp(error.field, field) != 0)
        fail_msg("expected [%s] %s\n     got [%s] %s", field, text, error.field, error.text);
}

/* ---- Tensors where they belong --------------------------------------------------------------------------------------- */

/* A handle leads to the matrix that was written under that name. */
static void expect_weight(const mx_weight *w, const char *name, int expert)
{
    const model_tensor *t = find_tensor(&m, name);
    size_t n_bytes = w->row_bytes * (size_t)w->rows;
    uint8_t *expected = malloc(n_bytes);

    if (!t)
        fail_msg("no tensor %s", name);
    make_matrix(&m, t, expert, expected);
    assert_int_equal(w->type, t->type);
    assert_int_equal(w->layout, MX_LAYOUT_FILE);
    assert_int_equal(w->cols, t->dims[0]);
    assert_int_equal(w->rows, t->dims[1]);
    assert_int_equal(w->row_bytes, mx_row_bytes(t->type, t->dims[0]));
    assert_memory_equal(w->data, expected, n_bytes);
    free(expected);
}

/* A copy has the decoded values of the tensor. */
static void expect_floats(const float *copy, const char *name)
{
    const model_tensor *t = find_tensor(&m, name);
    size_t n = (size_t)(t->dims[0] * t->dims[1]);
    uint8_t *data = malloc(mx_row_bytes(t->type, t->dims[0]) * (size_t)t->dims[1]);
    float *expected = malloc(n * sizeof *expected);

    make_matrix(&m, t, 0, data);
    mx_dequantize(t->type, data, expected, n);
    assert_memory_equal(copy, expected, n * sizeof *expected);
    assert_int_equal((uintptr_t)copy % 64, 0);
    free(expected);
    free(data);
}

static const char *in_layer(int layer, const char *part)
{
    static char name[64];

    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, part);
    return name;
}

static void expect_expert(int layer, const mx_weight *w, const char *part, int expert)
{
    char name[32];

    if (m.layout == MX_EXPERTS_NONE)
        snprintf(name, sizeof name, "ffn_%s", part);
    else if (m.layout == MX_EXPERTS_MERGED)
        snprintf(name, sizeof name, "ffn_%s_exps", part);
    else
        snprintf(name, sizeof name, "ffn_%s.%d", part, expert);
    expect_weight(&w[expert], in_layer(layer, name), m.layout == MX_EXPERTS_MERGED ? expert : 0);
}

static void expect_everything(void)
{
    const mx_hparams *h = &model->hparams;

    assert_int_equal(model->expert_layout, m.layout);
    assert_int_equal(h->n_experts, m.experts ? m.experts : 1);
    assert_int_equal(h->n_experts_used, m.used ? m.used : 1);
    expect_weight(&model->embedding, "token_embd.weight", 0);
    expect_weight(&model->output, m.tied ? "token_embd.weight" : "output.weight", 0);
    expect_floats(model->output_norm, "output_norm.weight");
    for (int i = 0; i < m.layers; i++) {
        const mx_layer *layer = &model->layers[i];

        expect_floats(layer->attn_norm, in_layer(i, "attn_norm"));
        expect_floats(layer->ffn_norm, in_layer(i, "ffn_norm"));
        expect_weight(&layer->q, in_layer(i, "attn_q"), 0);
        expect_weight(&layer->k, in_layer(i, "attn_k"), 0);
        expect_weight(&layer->v, in_layer(i, "attn_v"), 0);
        expect_weight(&layer->o, in_layer(i, "attn_output"), 0);
        if (m.layout == MX_EXPERTS_NONE)
            assert_null(layer->router);
        else
            expect_floats(layer->router, in_layer(i, "ffn_gate_inp"));
        for (int e = 0; e < h->n_experts; e++) {
            expect_expert(i, layer->gate, "gate", e);
            expect_expert(i, layer->up, "up", e);
            expect_expert(i, layer->down, "down", e);
        }
    }
}

static const mx_expert_layout layouts[] = {MX_EXPERTS_NONE, MX_EXPERTS_MERGED, MX_EXPERTS_SEPARATE};

static void every_type_in_every_layout(void **state)
{
    (void)state;

    for (int type = 0; type < MX_TYPE_COUNT; type++)
        for (int i = 0; i < 3; i++) {
            begin(layouts[i], (mx_type)type);
            write_and_open();
            expect_everything();
        }
}

static void types_are_mixed_freely(void **state)
{
    static const mx_type small[] = {MX_TYPE_F16, MX_TYPE_BF16, MX_TYPE_Q8_0, MX_TYPE_Q4_K};
    (void)state;

    for (int i = 0; i < 3; i++) {
        begin(layouts[i], MX_TYPE_F32);
        m.type_of = mixed;
        lay_out_model(&m);
        write_and_open();
        expect_everything();
    }
    for (int i = 0; i < 4; i++) { /* norms and routers too: they are copied to float32 */
        begin(MX_EXPERTS_SEPARATE, MX_TYPE_Q5_1);
        find_tensor(&m, "output_norm.weight")->type = small[i];
        find_tensor(&m, "blk.1.ffn_norm.weight")->type = small[(i + 1) % 4];
        find_tensor(&m, "blk.0.ffn_gate_inp.weight")->type = small[(i + 2) % 4];
        find_tensor(&m, "blk.1.ffn_gate_inp.weight")->type = MX_TYPE_F32;
        write_and_open();
        expect_everything();
    }
}

static void split_files(void **state)
{
    char part[300];
    (void)state;

    for (int i = 0; i < 3; i++) {
        begin(layouts[i], MX_TYPE_Q4_0);
        m.type_of = mixed;
        m.rope_factors = true;
        lay_out_model(&m);
        for (int no = 0; no < 4; no++) {
            snprintf(part, sizeof part, "%s/part-%05d-of-00004.gguf", folder, no + 1);
            assert_int_equal(write_part_of_model(part, &m, no, 4, &error), MX_OK);
        }
        mx_model_close(model);
        snprintf(part, sizeof part, "%s/part-00001-of-00004.gguf", folder);
        assert_int_equal(mx_model_open(part, &model, &error), MX_OK);
        assert_string_equal(model->name, "part-00001-of-00004.gguf");
        expect_everything();
        expect_floats(model->rope_factors, "rope_freqs.weight");
    }
}

static void one_expert_is_a_mixture_too(void **state)
{
    (void)state;

    begin(MX_EXPERTS_SEPARATE, MX_TYPE_Q8_0);
    m.experts = m.used = 1;
    lay_out_model(&m);
    write_and_open();
    expect_everything();
    assert_non_null(model->layers[0].router);
    begin(MX_EXPERTS_NONE, MX_TYPE_Q8_0);
    set_key(&m, "llama.expert_count", MX_GGUF_UINT32, 0, NULL); /* as some dense files say */
    set_key(&m, "llama.expert_used_count", MX_GGUF_UINT32, 0, NULL);
    write_and_open();
    expect_everything();
}

static void tied_embeddings(void **state)
{
    (void)state;

    begin(MX_EXPERTS_MERGED, MX_TYPE_Q6_K);
    m.tied = true;
    lay_out_model(&m);
    write_and_open();
    expect_everything();
    assert_ptr_equal(model->output.data, model->embedding.data);
    assert_null(model->rope_factors);
}

/* ---- Hyperparameters ------------------------------------------------------------------------------------------------- */

static void values(void **state)
{
    const mx_hparams *h;
    (void)state;

    begin(MX_EXPERTS_MERGED, MX_TYPE_F32);
    set_key(&m, "llama.rope.freq_base", MX_GGUF_FLOAT32, 1e6, NULL);
    set_key(&m, "llama.rope.dimension_count", MX_GGUF_UINT32, 32, NULL);
    set_key(&m, "llama.vocab_size", MX_GGUF_UINT32, 11, NULL);
    set_key(&m, "general.name", MX_GGUF_STRING, 0, "A\tmodel");
    write_and_open();
    h = &model->hparams;
    assert_true(h->n_layers == 2 && h->dim == 256 && h->n_ff == 256 && h->n_heads == 4 && h->n_kv_heads == 2);
    assert_true(h->head_dim == 64 && h->n_experts == 3 && h->n_experts_used == 2 && h->n_vocab == 11 && h->context == 4096);
    assert_true(h->rope_dim == 32 && h->rope_base == 1e6 && h->rope_scale == 1 && h->norm_eps == 1e-5f);
    assert_string_equal(model->name, "A?model");
}

static void what_is_missing_has_a_default(void **state)
{
    const mx_hparams *h;
    (void)state;

    begin(MX_EXPERTS_NONE, MX_TYPE_F32);
    m.kv_heads = 4;
    lay_out_model(&m);
    drop_key(&m, "llama.attention.head_count_kv");
    drop_key(&m, "llama.attention.key_length");
    write_and_open();
    h = &model->hparams;
    assert_true(h->n_kv_heads == 4 && h->head_dim == 64 && h->rope_dim == 64 && h->rope_base == 10000 && h->rope_scale == 1);
    assert_string_equal(model->name, "model.gguf");

    begin(MX_EXPERTS_NONE, MX_TYPE_F32); /* heads need not fill the width */
    m.head_dim = 32;
    lay_out_model(&m);
    write_and_open();
    assert_int_equal(model->hparams.head_dim, 32);
    expect_everything();
}

static void a_number_for_each_layer(void **state)
{
    (void)state;

    begin(MX_EXPERTS_MERGED, MX_TYPE_F32);
    set_key(&m, "llama.attention.head_count_kv", MX_GGUF_ARRAY, 2, NULL);
    set_key(&m, "llama.feed_forward_length", MX_GGUF_ARRAY, 256, NULL);
    write_and_open();
    assert_int_equal(model->hparams.n_kv_heads, 2);
    set_key(&m, "llama.feed_forward_length", MX_GGUF_ARRAY, 0, NULL);
    refused(MX_CORRUPT, "llama.feed_forward_length", "key llama.feed_forward_length: expected 1 to 1048576, got 0");
}

static void scaling_of_positions(void **state)
{
    static const struct {
        const char *type;
        double factor, old; /* 0: no key */
        double scale;
    } cases[] = {
        {NULL, 0, 0, 1}, {"none", 4, 0, 1}, {"linear", 4, 0, 4}, {NULL, 4, 0, 4}, {NULL, 0, 2, 2}, {"linear", 0, 2, 2},
        {"linear", 4, 2, 4}, {"none", 0, 2, 1},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(MX_EXPERTS_NONE, MX_TYPE_Q4_0);
        if (cases[i].type)
            set_key(&m, "llama.rope.scaling.type", MX_GGUF_STRING, 0, cases[i].type);
        if (cases[i].factor > 0)
            set_key(&m, "llama.rope.scaling.factor", MX_GGUF_FLOAT32, cases[i].factor, NULL);
        if (cases[i].old > 0)
            set_key(&m, "llama.rope.scale_linear", MX_GGUF_FLOAT32, cases[i].old, NULL);
        write_and_open();
        assert_true(model->hparams.rope_scale == cases[i].scale);
    }
    set_key(&m, "llama.rope.scaling.type", MX_GGUF_STRING, 0, "yarn");
    refused(MX_INVALID, "llama.rope.scaling.type",
            "key llama.rope.scaling.type: expected \"none\" or \"linear\", got \"yarn\"");
}

/* ---- What is refused ------------------------------------------------------------------------------------------------- */

static void keys_that_are_missing(void **state)
{
    static const char *const needed[] = {
        "general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon",
        "llama.expert_used_count",
    };
    char text[96];
    (void)state;

    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
        drop_key(&m, needed[i]);
        snprintf(text, sizeof text, "key %s: is missing", needed[i]);
        refused(MX_CORRUPT, needed[i], text);
    }
}

static void values_that_are_not_built(void **state)
{
    static const struct {
        const char *key;
        mx_gguf_kind kind;
        double number;
        const char *text;
        mx_status status;
        const char *message;
    } cases[] = {
        {"general.architecture", MX_GGUF_STRING, 0, "qwen2moe", MX_INVALID, "expected \"llama\", got \"qwen2moe\""},
        {"llama.block_count", MX_GGUF_UINT32, 0, NULL, MX_CORRUPT, "expected 1 to 1024, got 0"},
        {"llama.block_count", MX_GGUF_UINT32, 4e9, NULL, MX_CORRUPT, "expected 1 to 1024, got 4000000000"},
        {"llama.block_count", MX_GGUF_FLOAT32, 2, NULL, MX_CORRUPT, "expected an integer, got float32"},
        {"llama.embedding_length", MX_GGUF_INT32, -256, NULL, MX_CORRUPT, "expected 1 to 65536, got -256"},
        {"llama.context_length", MX_GGUF_UINT64, 1e15, NULL, MX_CORRUPT, "expected 1 to 16777216, got 1000000000000000"},
        {"llama.attention.head_count", MX_GGUF_UINT32, 5, NULL, MX_CORRUPT, "expected a divisor of 5 heads, got 2"},
        {"llama.attention.head_count_kv", MX_GGUF_UINT32, 8, NULL, MX_CORRUPT, "expected 1 to 4, got 8"},
        {"llama.attention.key_length", MX_GGUF_UINT32, 63, NULL, MX_INVALID,
         "expected an even head size from 2 to 512, got 63"},
        {"llama.attention.key_length", MX_GGUF_UINT32, 1024, NULL, MX_CORRUPT, "expected 2 to 512, got 1024"},
        {"llama.attention.value_length", MX_GGUF_UINT32, 32, NULL, MX_CORRUPT, "expected 64 to 64, got 32"},
        {"llama.rope.dimension_count", MX_GGUF_UINT32, 66, NULL, MX_CORRUPT, "expected 2 to 64, got 66"},
        {"llama.rope.dimension_count", MX_GGUF_UINT32, 31, NULL, MX_CORRUPT, "expected an even number, got 31"},
        {"llama.rope.freq_base", MX_GGUF_FLOAT32, 0, NULL, MX_CORRUPT, "expected a number above 0 and at most 1e+12, got 0"},
        {"llama.rope.freq_base", MX_GGUF_FLOAT32, NAN, NULL, MX_CORRUPT, "expected a finite number, got nan"},
        {"llama.rope.scaling.factor", MX_GGUF_FLOAT32, -1, NULL, MX_CORRUPT,
         "expected a number above 0 and at most 1e+06, got -1"},
        {"llama.attention.layer_norm_rms_epsilon", MX_GGUF_FLOAT32, INFINITY, NULL, MX_CORRUPT,
         "expected a finite number, got inf"},
        {"llama.attention.layer_norm_rms_epsilon", MX_GGUF_FLOAT64, 1e-60, NULL, MX_CORRUPT,
         "expected a number above 0, got 1e-60"},
        {"llama.expert_count", MX_GGUF_UINT32, 1e6, NULL, MX_CORRUPT, "expected 0 to 1024, got 1000000"},
        {"llama.expert_used_count", MX_GGUF_UINT32, 4, NULL, MX_CORRUPT, "expected 1 to 3, got 4"},
        {"llama.expert_feed_forward_length", MX_GGUF_UINT32, 128, NULL, MX_INVALID,
         "expected 256 (llama.feed_forward_length), got 128"},
        {"llama.expert_shared_count", MX_GGUF_UINT32, 1, NULL, MX_CORRUPT, "expected 0 to 0, got 1"},
        {"llama.logit_scale", MX_GGUF_FLOAT32, 0.5, NULL, MX_INVALID, "expected 1 (others are not built), got 0.5"},
        {"llama.attn_logit_softcapping", MX_GGUF_FLOAT32, 50, NULL, MX_INVALID, "expected 0 (others are not built), got 50"},
        {"llama.attention.causal", MX_GGUF_BOOL, 0, NULL, MX_INVALID, "expected true, got false"},
        {"llama.vocab_size", MX_GGUF_UINT32, 12, NULL, MX_CORRUPT, "expected 11 to 11, got 12"},
    };
    char text[160], field[64];
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
        set_key(&m, cases[i].key, cases[i].kind, cases[i].number, cases[i].text);
        snprintf(field, sizeof field, "%s", cases[i].key);
        if (strcmp(cases[i].key, "llama.attention.head_count") == 0) /* the other one is at fault then */
            snprintf(field, sizeof field, "llama.attention.head_count_kv");
        snprintf(text, sizeof text, "key %s: %s", field, cases[i].message);
        refused(cases[i].status, field, text);
    }
}

static void tensors_that_do_not_fit(void **state)
{
    (void)state;

    begin(MX_EXPERTS_SEPARATE, MX_TYPE_Q4_0);
    drop_tensor(&m, "blk.1.ffn_up.2.weight");
    refused(MX_CORRUPT, "blk.1.ffn_up.2.weight", "tensor blk.1.ffn_up.2.weight: is missing");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    drop_tensor(&m, "blk.0.ffn_gate_exps.weight");
    refused(MX_CORRUPT, "blk.0.ffn_gate_exps.weight", "tensor blk.0.ffn_gate_exps.weight: is missing");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    drop_tensor(&m, "token_embd.weight");
    refused(MX_CORRUPT, "token_embd.weight", "tensor token_embd.weight: is missing");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    find_tensor(&m, "blk.0.ffn_down_exps.weight")->dims[2] = 4;
    refused(MX_CORRUPT, "blk.0.ffn_down_exps.weight",
            "tensor blk.0.ffn_down_exps.weight: expected [256,256,3], got [256,256,4]");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    find_tensor(&m, "blk.0.attn_k.weight")->dims[1] = 256;
    refused(MX_CORRUPT, "blk.0.attn_k.weight", "tensor blk.0.attn_k.weight: expected [256,128], got [256,256]");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    find_tensor(&m, "blk.0.attn_norm.weight")->dims[0] = 64;
    refused(MX_CORRUPT, "blk.0.attn_norm.weight", "tensor blk.0.attn_norm.weight: expected [256], got [64]");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    find_tensor(&m, "output.weight")->dims[1] = 12;
    refused(MX_CORRUPT, "output.weight", "tensor output.weight: expected [256,11], got [256,12]");
}

/* What would be left out changes what the model says. */
static void tensors_without_a_place(void **state)
{
    (void)state;

    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    add_tensor(&m, MX_TYPE_F32, 256, 0, 0, "blk.0.attn_q.bias");
    refused(MX_INVALID, "blk.0.attn_q.bias", "tensor blk.0.attn_q.bias: has no place in this model");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0); /* both layouts at once */
    add_tensor(&m, MX_TYPE_Q4_0, 256, 256, 0, "blk.0.ffn_gate.0.weight");
    refused(MX_INVALID, "blk.0.ffn_gate.0.weight", "tensor blk.0.ffn_gate.0.weight: has no place in this model");
    begin(MX_EXPERTS_NONE, MX_TYPE_Q4_0);
    add_tensor(&m, MX_TYPE_F16, 256, 3, 0, "blk.0.ffn_gate_inp.weight");
    refused(MX_INVALID, "blk.0.ffn_gate_inp.weight", "tensor blk.0.ffn_gate_inp.weight: has no place in this model");
    begin(MX_EXPERTS_SEPARATE, MX_TYPE_Q4_0); /* more experts than the key says */
    set_key(&m, "llama.expert_count", MX_GGUF_UINT32, 2, NULL);
    find_tensor(&m, "blk.0.ffn_gate_inp.weight")->dims[1] = 2;
    find_tensor(&m, "blk.1.ffn_gate_inp.weight")->dims[1] = 2;
    refused(MX_INVALID, "blk.0.ffn_gate.2.weight", "tensor blk.0.ffn_gate.2.weight: has no place in this model");
}

static void values_that_are_no_numbers(void **state)
{
    (void)state;

    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    m.poisoned = "blk.1.attn_norm.weight";
    m.poison = NAN;
    refused(MX_CORRUPT, "blk.1.attn_norm.weight", "tensor blk.1.attn_norm.weight: expected finite values, got nan at 0");
    m.poisoned = "output_norm.weight";
    m.poison = INFINITY;
    refused(MX_CORRUPT, "output_norm.weight", "tensor output_norm.weight: expected finite values, got inf at 0");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    find_tensor(&m, "blk.0.ffn_gate_inp.weight")->type = MX_TYPE_F32;
    m.poisoned = "blk.0.ffn_gate_inp.weight";
    m.poison = -INFINITY;
    refused(MX_CORRUPT, "blk.0.ffn_gate_inp.weight", "tensor blk.0.ffn_gate_inp.weight: expected finite values, got -inf at 0");
    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    m.rope_factors = true;
    lay_out_model(&m);
    m.poisoned = "rope_freqs.weight";
    m.poison = 0;
    refused(MX_CORRUPT, "rope_freqs.weight", "tensor rope_freqs.weight: expected values above 0, got 0 at 0");
}

static void identity_is_the_file_s(void **state)
{
    uint8_t first[32];
    (void)state;

    begin(MX_EXPERTS_MERGED, MX_TYPE_Q4_0);
    write_and_open();
    memcpy(first, model->identity, 32);
    write_and_open();
    assert_memory_equal(first, model->identity, 32);
    begin(MX_EXPERTS_SEPARATE, MX_TYPE_Q4_0);
    write_and_open();
    assert_memory_not_equal(first, model->identity, 32);
    mx_model_close(NULL);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(every_type_in_every_layout),
        cmocka_unit_test(types_are_mixed_freely),
        cmocka_unit_test(split_files),
        cmocka_unit_test(one_expert_is_a_mixture_too),
        cmocka_unit_test(tied_embeddings),
        cmocka_unit_test(values),
        cmocka_unit_test(what_is_missing_has_a_default),
        cmocka_unit_test(a_number_for_each_layer),
        cmocka_unit_test(scaling_of_positions),
        cmocka_unit_test(keys_that_are_missing),
        cmocka_unit_test(values_that_are_not_built),
        cmocka_unit_test(tensors_that_do_not_fit),
        cmocka_unit_test(tensors_without_a_place),
        cmocka_unit_test(values_that_are_no_numbers),
        cmocka_unit_test(identity_is_the_file_s),
    };

    return cmocka_run_group_tests(cases, make_folder, remove_folder);
}
