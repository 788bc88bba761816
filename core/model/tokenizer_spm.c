/*
 * tokenizer_spm.c: SentencePiece BPE with byte fallback (`llama` vocabularies: Mixtral's).
 *
 * Spaces become U+2581 and one is put before the text. Symbols are characters; the pair that makes the piece of
 * the best score is merged first. A character that is no piece becomes one byte piece for each of its bytes, so
 * that nothing is lost. Bytes that are no UTF-8 go the same way. Control, unknown, unused and byte pieces are
 * never made from text. Immutable after open.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer_internal.h"

#define SCORES_KEY "tokenizer.ggml.scores"
#define SPACE "\xe2\x96\x81" /* U+2581 */
#define SPACE_BYTES 3

struct mx_spm {
    const mx_vocabulary *vocabulary;
    uint32_t *priorities; /* [count] of pieces, from their scores: the best is the lowest */
    int32_t bytes[256];   /* the pieces <0xNN>; -1: none */
    int32_t unknown;      /* where there is no byte piece; -1: none either */
};

/* Floats in descending order as unsigned integers in ascending order. */
static uint32_t priority_of(float score)
{
    uint32_t bits;

    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

mx_status mx_spm_open(const mx_gguf *gguf, const mx_vocabulary *v, int32_t unknown, mx_spm **spm, mx_error *error)
{
    const mx_gguf_list *scores = mx_gguf_list_find(gguf, SCORES_KEY, MX_GGUF_FLOAT32);
    mx_spm *s;

    if (!scores)
        return mx_fail(error, MX_CORRUPT, SCORES_KEY, "key " SCORES_KEY ": expected an array of floats, got none");
    if (mx_gguf_list_count(scores) != (size_t)v->count)
        return mx_fail(error, MX_CORRUPT, SCORES_KEY, "key " SCORES_KEY ": expected %d scores, one a piece, got %zu",
                       v->count, mx_gguf_list_count(scores));
    s = calloc(1, sizeof *s);
    if (s)
        s->priorities = malloc((size_t)v->count * sizeof *s->priorities);
    *spm = s;
    if (!s || !s->priorities)
        return mx_fail(error, MX_NOMEM, SCORES_KEY, "out of memory for %d scores", v->count);
    s->vocabulary = v;
    s->unknown = unknown;
    memset(s->bytes, 0xff, sizeof s->bytes); /* -1 */
    for (int32_t id = 0; id < v->count; id++) {
        double score = mx_gguf_list_number(scores, (size_t)id);

        if (!isfinite(score))
            return mx_fail(error, MX_CORRUPT, SCORES_KEY, "key " SCORES_KEY ": expected a finite score, got %f for piece %d",
                           score, id);
        s->priorities[id] = priority_of((float)score);
        if (v->types[id] == MX_PIECE_BYTE)
            s->bytes[mx_vocabulary_byte(mx_vocabulary_piece(v, id))] = id;
    }
    return MX_OK;
}

void mx_spm_close(mx_spm *spm)
{
    if (!spm)
        return;
    free(spm->priorities);
    free(spm);
}

static void pair(const mx_merger *m, mx_symbol *left, const mx_symbol *right)
{
    const mx_spm *spm = m->model;

    left->pair = mx_vocabulary_find_text(spm->vocabulary, m->text + left->start, left->bytes + right->bytes);
    if (left->pair >= 0)
        left->priority = spm->priorities[left->pair];
}

/* The text with its spaces replaced, NUL-terminated; NULL: out of memory. */
static char *escape(const char *text, size_t bytes, bool prefix, size_t *escaped_bytes)
{
    size_t spaces = prefix;
    char *escaped, *out;

    for (size_t i = 0; i < bytes; i++)
        spaces += text[i] == ' ';
    *escaped_bytes = bytes - (spaces - prefix) + spaces * SPACE_BYTES;
    escaped = out = malloc(*escaped_bytes + 1);
    if (!escaped)
        return NULL;
    if (prefix)
        out = mempcpy(out, SPACE, SPACE_BYTES);
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == ' ')
            out = mempcpy(out, SPACE, SPACE_BYTES);
        else
            *out++ = text[i];
    }
    *out = '\0';
    return escaped;
}

/* How many bytes of the text, from `text` on, became so many escaped ones. */
static size_t unescaped_bytes(const char *text, size_t escaped_bytes)
{
    size_t n = 0;

    for (size_t i = 0; i < escaped_bytes; i += text[n++] == ' ' ? SPACE_BYTES : 1)
        continue;
    return n;
}

/* A symbol that is no piece: a byte piece for each byte, or else one unknown piece. `length`: what it is in the text. */
static mx_status push_bytes(const mx_spm *spm, const char *bytes, size_t n, size_t length, mx_token_sink *sink,
                            mx_error *error)
{
    mx_status status = MX_OK;

    for (size_t i = 0; i < n; i++) {
        if (spm->bytes[(uint8_t)bytes[i]] >= 0)
            continue;
        if (spm->unknown >= 0)
            return mx_token_sink_push(sink, spm->unknown, length, error);
        sink->skipped += length;
        return MX_OK;
    }
    for (size_t i = 0; i < n && status == MX_OK; i++)
        status = mx_token_sink_push(sink, spm->bytes[(uint8_t)bytes[i]], i < length, error);
    return status;
}

static mx_status push_symbols(const mx_spm *spm, const mx_merger *m, const char *text, bool prefix,
                              mx_token_sink *sink, mx_error *error)
{
    const char *at = text; /* where the symbol begins in the text */
    mx_status status = MX_OK;

    for (int32_t i = m->n_symbols > 0 ? 0 : -1; i >= 0 && status == MX_OK; i = m->symbols[i].next) {
        const mx_symbol *symbol = &m->symbols[i];
        size_t phantom = prefix && i == 0 ? SPACE_BYTES : 0; /* not the text's */
        size_t bytes = unescaped_bytes(at, symbol->bytes - phantom);

        if (symbol->id >= 0)
            status = mx_token_sink_push(sink, symbol->id, bytes, error);
        else
            status = push_bytes(spm, m->text + symbol->start, symbol->bytes, bytes, sink, error);
        at += bytes;
    }
    return status;
}

mx_status mx_spm_tokenize(const mx_spm *spm, const char *text, size_t bytes, bool prefix,
                          const atomic_bool *cancelled, mx_token_sink *sink, mx_error *error)
{
    mx_merger merger = {.model = spm, .pair = pair, .cancelled = cancelled};
    mx_status status = MX_OK;
    size_t escaped_bytes;
    char *escaped = escape(text, bytes, prefix, &escaped_bytes);

    if (!escaped)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a text of %zu bytes", bytes);
    mx_merger_begin(&merger, escaped);
    for (size_t at = 0, n; at < escaped_bytes && status == MX_OK; at += n) {
        n = mx_utf8_length(escaped + at, escaped + escaped_bytes);
        n += n == 0; /* a stray byte stands for itself */
        status = mx_merger_add(&merger, n, mx_vocabulary_find_text(spm->vocabulary, escaped + at, n), error);
    }
    if (status == MX_OK)
        status = mx_merger_run(&merger, error);
    if (status == MX_OK)
        status = push_symbols(spm, &merger, text, prefix, sink, error);
    mx_merger_free(&merger);
    free(escaped);
    return status;
}

size_t mx_spm_decode(mx_str piece, char *out, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < piece.bytes; n++) {
        bool space = piece.bytes - i >= SPACE_BYTES && memcmp(piece.data + i, SPACE, SPACE_BYTES) == 0;

        if (n < size)
            out[n] = space ? ' ' : piece.data[i];
        i += space ? SPACE_BYTES : 1;
    }
    return n;
}
