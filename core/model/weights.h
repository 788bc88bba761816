/*
 * weights.h: a model: its hyperparameters, and its tensors bound to a struct.
 *
 * mx_model_open maps the file, checks every tensor's presence, type and shape and leaves the weights in the mapping, one
 * handle each; the only copies are the norms and the router (float32, a few MB at most). Both expert layouts end in the same
 * handles: merged blk.N.ffn_{gate,up,down}_exps.weight is cut into one handle an expert; per-expert
 * blk.N.ffn_{gate,up,down}.E.weight are taken as they are. A dense model is one expert and no router.
 * Immutable after open: any thread may read.
 */
#ifndef MX_MODEL_WEIGHTS_H
#define MX_MODEL_WEIGHTS_H

#include "../math/kernels.h"
#include "../mx.h"
#include "gguf.h"

typedef struct {
    int n_layers;
    int dim;            /* embedding_length */
    int n_ff;           /* feed_forward_length, of one expert */
    int n_heads, n_kv_heads;
    int head_dim;       /* attention.key_length, or dim / n_heads; value_length must be equal */
    int n_experts;      /* 1: dense */
    int n_experts_used; /* 1: dense */
    int n_vocab;
    int context;        /* context_length: tokens the model was trained for */
    int rope_dim;       /* rope.dimension_count: even, at most head_dim */
    double rope_base;   /* rope.freq_base, 10000 where missing */
    double rope_scale;  /* positions are divided by it: rope.scaling.factor (type linear) or the old rope.scale_linear; 1 */
    float norm_eps;     /* attention.layer_norm_rms_epsilon */
} mx_hparams;

typedef struct {
    const float *attn_norm; /* [dim] */
    mx_weight q;            /* [n_heads * head_dim, dim] */
    mx_weight k, v;         /* [n_kv_heads * head_dim, dim] */
    mx_weight o;            /* [dim, n_heads * head_dim] */
    const float *ffn_norm;  /* [dim] */
    const float *router;    /* [n_experts, dim]; NULL: dense */
    const mx_weight *gate, *up; /* [n_experts] of [n_ff, dim] */
    const mx_weight *down;      /* [n_experts] of [dim, n_ff] */
} mx_layer;

typedef enum { MX_EXPERTS_NONE, MX_EXPERTS_MERGED, MX_EXPERTS_SEPARATE } mx_expert_layout;

typedef struct mx_model {
    mx_hparams hparams;
    mx_weight embedding;       /* token_embd.weight [n_vocab, dim] */
    mx_weight output;          /* output.weight, or the embedding where it is missing */
    const float *output_norm;  /* [dim] */
    const float *rope_factors; /* rope_freqs.weight [rope_dim / 2], divides the frequency; NULL: none */
    mx_layer *layers;          /* [n_layers] */
    mx_expert_layout expert_layout;
    mx_gguf *gguf;             /* owned */
    uint8_t identity[32];
    char name[128];            /* general.name, or the file's base name */
    void *owned;               /* the copies and handles above */
} mx_model;

mx_status mx_model_open(const char *path, mx_model **model, mx_error *error);
void mx_model_close(mx_model *model); /* takes NULL */

size_t mx_model_weight_bytes(const mx_model *model); /* of all tensors in the file */

#endif
