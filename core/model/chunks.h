/*
 * chunks.h: a text cut into overlapping chunks of a given number of tokens, for retrieval.
 */
#ifndef MX_MODEL_CHUNKS_H
#define MX_MODEL_CHUNKS_H

#include "tokenizer.h"

typedef struct {
    size_t start, end; /* byte offsets into the text: whole UTF-8 characters */
    size_t tokens;     /* of the whole text's tokens, those in between */
} mx_chunk;

/*
 * Cuts text[bytes], which must be UTF-8, into chunks of at most `size` tokens (1 or more), of which each begins
 * with the last `overlap` (0 .. size-1) of the one before it. A border is where a token and a character end: where
 * a character takes several tokens, a chunk may be that much shorter and an overlap that much longer or shorter, and a
 * chunk of one character may exceed `size`. Together they are the whole text; an empty text has none. *chunks: free with free().
 * Errors: MX_INVALID (size, overlap, text), MX_TOO_LARGE (more than 2^18 chunks, or 64 MiB of them),
 * MX_CANCELLED, MX_NOMEM.
 */
mx_status mx_chunks(const mx_tokenizer *tokenizer, const char *text, size_t bytes, int size, int overlap,
                    const atomic_bool *cancelled, mx_chunk **chunks, size_t *n, mx_error *error);

#endif
