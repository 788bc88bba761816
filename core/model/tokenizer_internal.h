/*
 * tokenizer_internal.h: what the tokenizer's files share. Private to them (and to chunks.c).
 *
 *     vocabulary.c        the pieces: types, special ones, lookup by text
 *     tokenizer_merge.c   the loop of both families: the best pair of neighbours becomes one symbol
 *     tokenizer_spm.c     `llama`: symbols are characters, the best score wins
 *     tokenizer_bpe.c     `gpt2`: words by regular expressions, symbols are bytes, the lowest rank wins
 *     tokenizer.c         special pieces in a text, the public functions
 */
#ifndef MX_MODEL_TOKENIZER_INTERNAL_H
#define MX_MODEL_TOKENIZER_INTERNAL_H

#include "../error.h"
#include "tokenizer.h"

/* ---- Vocabulary ---- */

typedef enum { /* values of tokenizer.ggml.token_type */
    MX_PIECE_UNDEFINED,
    MX_PIECE_NORMAL,
    MX_PIECE_UNKNOWN,
    MX_PIECE_CONTROL,
    MX_PIECE_USER_DEFINED, /* taken out of every text before all else */
    MX_PIECE_UNUSED,
    MX_PIECE_BYTE, /* <0xNN> */
    MX_PIECE_TYPES
} mx_piece_type;

typedef struct {
    const mx_gguf_list *pieces;
    int32_t count;
    uint8_t *types;    /* [count] mx_piece_type */
    int32_t *slots;    /* [n_slots] ids by piece, open addressing; -1: empty */
    size_t n_slots;    /* a power of two, at least twice the pieces */
    int32_t *specials; /* [n_specials] control, unknown and user-defined pieces, longest first */
    size_t n_specials;
    size_t longest; /* bytes of the longest piece */
} mx_vocabulary;

/* Reads pieces and types. Pieces that are known to mark turns are control pieces whatever the file says: a
 * user's text must not yield them. Call mx_vocabulary_index once the types are settled. */
mx_status mx_vocabulary_open(mx_vocabulary *v, const mx_gguf *gguf, bool spm, mx_error *error);
mx_status mx_vocabulary_index(mx_vocabulary *v, mx_error *error);
void mx_vocabulary_close(mx_vocabulary *v);

mx_str mx_vocabulary_piece(const mx_vocabulary *v, int32_t id);
int32_t mx_vocabulary_find(const mx_vocabulary *v, const char *piece, size_t bytes); /* -1: none */
int32_t mx_vocabulary_find_text(const mx_vocabulary *v, const char *piece, size_t bytes); /* what text may become */
int mx_vocabulary_byte(mx_str piece); /* the byte that `<0xNN>` spells; -1: another piece */

/* ---- Where tokens go ---- */

typedef struct {
    mx_tokens *ids;
    mx_tokens *lengths; /* the bytes of the text behind each token; NULL: nobody asks */
    size_t skipped;     /* bytes that no token stands for; the next one takes them over */
} mx_token_sink;

mx_status mx_token_sink_push(mx_token_sink *sink, int32_t id, size_t bytes, mx_error *error);

/* mx_tokenize that also gives lengths, whose sum is at most `bytes`. The text must be UTF-8 then. */
mx_status mx_tokenize_lengths(const mx_tokenizer *tokenizer, const char *text, size_t bytes, int flags,
                              const atomic_bool *cancelled, mx_token_sink *sink, mx_error *error);

/* The bytes of the UTF-8 character at s, which lies before `end`; 0: it is none. */
size_t mx_utf8_length(const char *s, const char *end);

/* ---- Merging ---- */

typedef struct {
    uint32_t start, bytes; /* in the merger's text; bytes 0: went into its left neighbour */
    int32_t prev, next;    /* -1: none */
    int32_t id;            /* its piece; -1: it is none */
    int32_t pair;          /* the piece it makes with the next symbol; -1: none */
    uint32_t priority;     /* of that pair: the lowest goes first, the leftmost of equals */
} mx_symbol;

typedef struct mx_merger mx_merger;
typedef void mx_merge_pair(const mx_merger *merger, mx_symbol *left, const mx_symbol *right); /* sets left->pair */

struct mx_merger {
    const void *model; /* of `pair` */
    mx_merge_pair *pair;
    const char *text;
    const atomic_bool *cancelled; /* may be NULL */
    mx_symbol *symbols;
    size_t n_symbols, symbol_capacity;
    uint64_t *heap; /* priority << 32 | left symbol */
    size_t heap_count, heap_capacity;
    unsigned work; /* since the last look at `cancelled` */
};

void mx_merger_begin(mx_merger *m, const char *text); /* a new text: no symbols */
mx_status mx_merger_add(mx_merger *m, size_t bytes, int32_t id, mx_error *error); /* the next symbol */
mx_status mx_merger_run(mx_merger *m, mx_error *error); /* symbols 0, next, next, ... are the result */
void mx_merger_free(mx_merger *m);

/* ---- The families ---- */

typedef struct mx_spm mx_spm;
typedef struct mx_bpe mx_bpe;

mx_status mx_spm_open(const mx_gguf *gguf, const mx_vocabulary *v, int32_t unknown, mx_spm **spm, mx_error *error);
void mx_spm_close(mx_spm *spm); /* takes NULL */
mx_status mx_spm_tokenize(const mx_spm *spm, const char *text, size_t bytes, bool prefix,
                          const atomic_bool *cancelled, mx_token_sink *sink, mx_error *error);

mx_status mx_bpe_open(const mx_gguf *gguf, const mx_vocabulary *v, mx_bpe **bpe, mx_error *error);
void mx_bpe_close(mx_bpe *bpe); /* takes NULL */
bool mx_bpe_adds_bos(const mx_bpe *bpe); /* where the file does not say */
mx_status mx_bpe_tokenize(const mx_bpe *bpe, const char *text, size_t bytes, bool prefix,
                          const atomic_bool *cancelled, mx_token_sink *sink, mx_error *error);

/* A piece as text: '_' (U+2581) to space; byte-level characters to bytes. Written up to `size`; the whole length. */
size_t mx_spm_decode(mx_str piece, char *out, size_t size);
size_t mx_bpe_decode(mx_str piece, char *out, size_t size);

#endif
