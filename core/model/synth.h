/*
 * synth.h: models of random weights, for measuring and for tests: any geometry, type and layout, from a seed.
 *
 * The weights of a matrix have a deviation of about 1/sqrt(cols), so that activations and logits stay of order one; scales
 * vary by a factor of three. A matrix depends on the seed, its name, its expert's number, its type and shape alone: the merged
 * and the separate layout hold the same weights.
 */
#ifndef MX_MODEL_SYNTH_H
#define MX_MODEL_SYNTH_H

#include "gguf_write.h"
#include "weights.h"

typedef struct {
    int layers, dim, ff, heads, kv_heads;
    int head_dim;   /* 0: dim / heads */
    int experts, experts_used;
    int vocab_size; /* 0: 32000, or as many as `vocab` has */
    int context;
    mx_type type;   /* of every matrix but those below */
    int embedding_type, output_type; /* -1: `type` */
    int router_type; /* -1: F16, as in published files of both layouts */
    mx_expert_layout layout; /* MX_EXPERTS_NONE: dense */
    bool tied;      /* no output.weight */
    double rope_base;
    uint64_t seed;
    const char *vocab; /* a SentencePiece model (protobuf); NULL: bytes and made-up pieces */
} mx_synth_options;

mx_synth_options mx_synth_defaults(void); /* Mixtral 8x7B with 4 layers of Q4_K */

/* Writes the model to `path`. MX_INVALID names the option at fault. */
mx_status mx_synth_model(const char *path, const mx_synth_options *options, mx_error *error);

/* `n` weights (a multiple of the type's block size) of the given deviation, from *state, which goes on. */
void mx_synth_weights(mx_type type, uint64_t *state, float deviation, uint8_t *out, size_t n);
uint64_t mx_synth_random(uint64_t *state); /* splitmix64 (Steele, Lea, Flood 2014) */

/* The vocabulary's keys (tokenizer.ggml.*), from a SentencePiece model or made up; *n_vocab: wanted (0: any) and got. */
mx_status mx_synth_vocab(mx_gguf_writer *writer, const char *path, int *n_vocab, mx_error *error);

#endif
