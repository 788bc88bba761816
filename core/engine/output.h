/*
 * output.h: from generated ids to pieces of text.
 *
 * A piece is whole UTF-8 characters that no later token can take back. Held back are the bytes of a character that is not whole
 * yet, and the longest end of the text with which a stop string begins. Bytes that are no UTF-8 become U+FFFD, one for each maximal
 * part of a character (Unicode 15, section 3.9); U+0000 is dropped; the text of tokens that end a turn is never there.
 * One choice of one request; one thread at a time.
 */
#ifndef MX_ENGINE_OUTPUT_H
#define MX_ENGINE_OUTPUT_H

#include "../model/tokenizer.h"

typedef struct mx_output mx_output;

typedef struct { /* what may be sent on now: text[bytes], the output's until its next call */
    const char *text;
    size_t bytes; /* 0: nothing yet */
    bool stopped; /* a stop string is complete: no text follows */
} mx_piece;

/*
 * `tokenizer` and `stop` [n_stop] outlive the output. strip_space: where the vocabulary is SentencePiece, a space at the very
 * beginning is the vocabulary's and not the text's. MX_INVALID: a stop string that is empty or no UTF-8.
 */
mx_status mx_output_open(const mx_tokenizer *tokenizer, const char *const *stop, int n_stop, bool strip_space,
                         mx_output **output, mx_error *error);
void mx_output_close(mx_output *output); /* takes NULL */

/* Adds a token's text. MX_NOMEM. Not after one that said `stopped`. */
mx_status mx_output_add(mx_output *output, int32_t token, mx_piece *piece, mx_error *error);

/* The end without a stop string: what was held back. MX_NOMEM. */
mx_status mx_output_finish(mx_output *output, mx_piece *piece, mx_error *error);

/* All text so far, NUL-terminated; the output's. */
const char *mx_output_text(const mx_output *output, size_t *bytes);

/* The stop string that ended the text; NULL: none. Of several that begin at the same place, the first of `stop`. */
const char *mx_output_stopped_by(const mx_output *output);

#endif
