/*
 * tokenizer.h: text to ids and back, for the two families of vocabularies in GGUF files.
 *
 * `llama`: SentencePiece BPE with byte fallback (tokenizer_spm.c). `gpt2`: byte-level BPE over a pre-tokenizer's words
 * (tokenizer_bpe.c). Immutable after open; any thread may use one. Pieces point into the GGUF mapping or into the tokenizer.
 */
#ifndef MX_MODEL_TOKENIZER_H
#define MX_MODEL_TOKENIZER_H

#include <stdatomic.h>
#include <stdbool.h>
#include "gguf.h"

typedef struct mx_tokenizer mx_tokenizer;

typedef struct { /* grows; free with mx_tokens_free */
    int32_t *ids;
    size_t count, capacity;
} mx_tokens;

void mx_tokens_free(mx_tokens *tokens);
mx_status mx_tokens_push(mx_tokens *tokens, int32_t id, mx_error *error);

/* Reads tokenizer.* of the file; `gguf` outlives the tokenizer. An unknown tokenizer.ggml.model or .pre is refused by name. */
mx_status mx_tokenizer_open(const mx_gguf *gguf, mx_tokenizer **tokenizer, mx_error *error);
void mx_tokenizer_close(mx_tokenizer *tokenizer); /* takes NULL */

enum {
    MX_TOKENIZE_SPECIAL = 1,   /* control and user-defined pieces in the text become their ids (a user's text never wants this) */
    MX_TOKENIZE_NO_PREFIX = 2, /* no leading space, also where the vocabulary adds one (text that continues a turn) */
};

/* Appends the ids of text[bytes] to *out; no BOS, no EOS. Bytes that are no UTF-8 are taken as they are where the vocabulary can
 * (byte pieces), as U+FFFD otherwise. `cancelled` (may be NULL) is looked at now and then: MX_CANCELLED. Time is O(n log n). */
mx_status mx_tokenize(const mx_tokenizer *tokenizer, const char *text, size_t bytes, int flags, const atomic_bool *cancelled,
                      mx_tokens *out, mx_error *error);

/* The bytes of a token as text: no more than 'size' are written, the full length is returned. Control pieces give 0 bytes unless
 * `special`. A leading space of a text's first SentencePiece token is not stripped here. */
size_t mx_token_text(const mx_tokenizer *tokenizer, int32_t id, bool special, char *out, size_t size);

/* The text of ids, as detokenize gives it: the space that the vocabulary put before the text is taken off. Free with free(). Not
 * necessarily valid UTF-8. Unknown ids are MX_INVALID with the number. */
mx_status mx_detokenize(const mx_tokenizer *tokenizer, const int32_t *ids, size_t n, bool special, char **text, size_t *bytes, mx_error *error);

int mx_tokenizer_n_vocab(const mx_tokenizer *tokenizer);
int32_t mx_tokenizer_bos(const mx_tokenizer *tokenizer); /* -1: none */
int32_t mx_tokenizer_eos(const mx_tokenizer *tokenizer); /* -1: none */
bool mx_tokenizer_add_bos(const mx_tokenizer *tokenizer);
bool mx_tokenizer_add_eos(const mx_tokenizer *tokenizer);
bool mx_tokenizer_is_spm(const mx_tokenizer *tokenizer);
bool mx_token_ends_turn(const mx_tokenizer *tokenizer, int32_t id); /* eos, eot, eom and their like */
bool mx_token_is_control(const mx_tokenizer *tokenizer, int32_t id);
int32_t mx_token_find(const mx_tokenizer *tokenizer, const char *piece); /* exact piece as stored; -1: none */
mx_str mx_token_piece(const mx_tokenizer *tokenizer, int32_t id);        /* as stored in the file, for display */
size_t mx_tokenizer_longest_piece(const mx_tokenizer *tokenizer);        /* bytes */

#endif
