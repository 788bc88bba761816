/*
 * synth_vocab.c: a vocabulary for a made-up model: a SentencePiece model's, or one of bytes and made-up pieces.
 *
 * Of the protobuf (sentencepiece_model.proto) only the pieces are read: field 1 of the model, repeated, a message of 1: text,
 * 2: score (float), 3: type (an enum with the values of tokenizer.ggml.token_type). The file is a stranger's.
 */
#include "synth.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"

#define FILE_BYTES_MAX ((size_t)64 << 20)
#define VOCAB_MAX (1 << 22)
#define PIECES_FIRST 259 /* <unk> <s> </s>, and a piece for each byte */
#define SPACE "\xe2\x96\x81" /* U+2581 */

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6 }; /* token types of both formats */

typedef struct {
    mx_str *texts;
    double *scores, *types;
    size_t n, capacity;
    char *memory; /* of the texts */
} vocabulary;

static bool add_piece(vocabulary *v, mx_str text, double score, double type)
{
    if (v->n == v->capacity) {
        size_t capacity = 2 * v->capacity + 512;
        void *texts = realloc(v->texts, capacity * sizeof *v->texts);
        void *scores = realloc(v->scores, capacity * sizeof *v->scores);
        void *types = realloc(v->types, capacity * sizeof *v->types);

        v->texts = texts ? texts : v->texts;
        v->scores = scores ? scores : v->scores;
        v->types = types ? types : v->types;
        if (!texts || !scores || !types)
            return false;
        v->capacity = capacity;
    }
    v->texts[v->n] = text;
    v->scores[v->n] = score;
    v->types[v->n++] = type;
    return true;
}

/* ---- SentencePiece ------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at, *end;
} wire;

static bool read_varint(wire *w, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t byte = *w->at++;

        *value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return true;
    }
    return false;
}

typedef struct {
    uint64_t number;
    int kind;   /* 0: varint, 1: 8 bytes, 2: bytes, 5: 4 bytes */
    uint64_t value;
    wire bytes; /* kinds 1, 2, 5 */
} field;

static bool read_field(wire *w, field *f)
{
    uint64_t tag, n;

    if (!read_varint(w, &tag))
        return false;
    f->number = tag >> 3;
    f->kind = (int)(tag & 7);
    if (f->kind == 0)
        return read_varint(w, &f->value);
    n = f->kind == 1 ? 8 : 4;
    if ((f->kind != 1 && f->kind != 2 && f->kind != 5) || (f->kind == 2 && !read_varint(w, &n)) ||
        n > (uint64_t)(w->end - w->at))
        return false;
    f->bytes = (wire){w->at, w->at + n};
    w->at += n;
    return true;
}

static bool read_piece(wire w, mx_str *text, double *score, double *type)
{
    field f;

    *text = (mx_str){"", 0};
    *score = 0;
    *type = NORMAL;
    while (w.at < w.end) {
        if (!read_field(&w, &f))
            return false;
        if (f.number == 1 && f.kind == 2) {
            *text = (mx_str){(const char *)f.bytes.at, (size_t)(f.bytes.end - f.bytes.at)};
        } else if (f.number == 2 && f.kind == 5) {
            float s;

            memcpy(&s, f.bytes.at, 4);
            *score = (double)s;
        } else if (f.number == 3 && f.kind == 0) {
            *type = (double)f.value;
        }
    }
    return *type >= NORMAL && *type <= BYTE;
}

static mx_status read_whole(const char *path, char **data, size_t *bytes, mx_error *error)
{
    FILE *file = fopen(path, "rbe");
    char *memory = NULL;
    size_t n = 0, capacity = 0;
    mx_status status = MX_OK;

    if (!file)
        return mx_fail(error, errno == ENOENT ? MX_NOT_FOUND : MX_IO, "vocab", "%s: cannot open: %s", path, strerror(errno));
    while (status == MX_OK && !feof(file)) {
        if (n == capacity) {
            char *grown;

            capacity = 2 * capacity + 65536;
            grown = realloc(memory, capacity);
            if (!grown) {
                status = mx_fail(error, MX_NOMEM, NULL, "%s: out of memory", path);
                break;
            }
            memory = grown;
        }
        n += fread(memory + n, 1, capacity - n, file);
        if (ferror(file))
            status = mx_fail(error, MX_IO, "vocab", "%s: cannot read: %s", path, strerror(errno));
        else if (n > FILE_BYTES_MAX)
            status = mx_fail(error, MX_TOO_LARGE, "vocab", "%s: expected at most %zu bytes", path, FILE_BYTES_MAX);
    }
    fclose(file);
    if (status != MX_OK) {
        free(memory);
        return status;
    }
    *data = memory;
    *bytes = n;
    return MX_OK;
}

static mx_status read_sentencepiece(vocabulary *v, const char *path, mx_error *error)
{
    size_t bytes = 0;
    field f;
    wire w;
    mx_status status = read_whole(path, &v->memory, &bytes, error);

    if (status != MX_OK)
        return status;
    w = (wire){(const uint8_t *)v->memory, (const uint8_t *)v->memory + bytes};
    while (w.at < w.end) {
        mx_str text;
        double score, type;

        if (!read_field(&w, &f) || (f.number == 1 && f.kind == 2 && !read_piece(f.bytes, &text, &score, &type)))
            return mx_fail(error, MX_CORRUPT, "vocab", "%s: expected a SentencePiece model, got other bytes at offset %td", path,
                           (const char *)w.at - v->memory);
        if (f.number != 1 || f.kind != 2)
            continue;
        if (v->n == VOCAB_MAX)
            return mx_fail(error, MX_TOO_LARGE, "vocab", "%s: expected at most %d pieces", path, VOCAB_MAX);
        if (!add_piece(v, text, score, type))
            return mx_fail(error, MX_NOMEM, NULL, "%s: out of memory", path);
    }
    if (v->n < 3)
        return mx_fail(error, MX_CORRUPT, "vocab", "%s: expected a SentencePiece model of at least 3 pieces, got %zu", path,
                       v->n);
    return MX_OK;
}

/* ---- Made up ------------------------------------------------------------------------------------------------------- */

/* Piece i of the made-up ones: a space, then all words of one letter, of two, ..., each without and with a space before it.
 * A merge of two pieces that gives a longer one exists for all of them. */
static int make_piece(size_t i, char out[32])
{
    size_t words = 26;
    int letters = 1, n = 0;

    if (i == 0)
        return snprintf(out, 32, SPACE);
    for (i--; i >= 2 * words; words *= 26, letters++)
        i -= 2 * words;
    if (i >= words) {
        n = snprintf(out, 32, SPACE);
        i -= words;
    }
    for (int k = letters - 1; k >= 0; k--, i /= 26)
        out[n + k] = (char)('a' + i % 26);
    return n + letters;
}

static mx_status make_up(vocabulary *v, size_t n, mx_error *error)
{
    static const char *const first[] = {"<unk>", "<s>", "</s>"};

    if (n < PIECES_FIRST || n > VOCAB_MAX)
        return mx_fail(error, MX_INVALID, "vocab_size", "vocab_size: expected %d to %d, got %zu", PIECES_FIRST, VOCAB_MAX, n);
    v->memory = malloc(32 * n);
    if (!v->memory)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu pieces", n);
    for (size_t i = 0; i < n; i++) {
        char *text = v->memory + 32 * i;
        int bytes = i < 3              ? snprintf(text, 32, "%s", first[i])
                    : i < PIECES_FIRST ? snprintf(text, 32, "<0x%02X>", (int)i - 3)
                                       : make_piece(i - PIECES_FIRST, text);

        if (!add_piece(v, (mx_str){text, (size_t)bytes}, i < PIECES_FIRST ? 0 : (double)PIECES_FIRST - (double)i,
                       i == 0             ? UNKNOWN
                       : i < 3            ? CONTROL
                       : i < PIECES_FIRST ? BYTE
                                          : NORMAL))
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu pieces", n);
    }
    return MX_OK;
}

/* ---- The keys ------------------------------------------------------------------------------------------------------ */

mx_status mx_synth_vocab(mx_gguf_writer *w, const char *path, int *n_vocab, mx_error *error)
{
    vocabulary v = {0};
    mx_status status;

    status = path ? read_sentencepiece(&v, path, error) : make_up(&v, *n_vocab > 0 ? (size_t)*n_vocab : 32000, error);
    if (status == MX_OK && *n_vocab > 0 && (size_t)*n_vocab != v.n)
        status = mx_fail(error, MX_INVALID, "vocab_size", "vocab_size: expected %zu as in %s, got %d", v.n, path, *n_vocab);
    if (status == MX_OK) {
        *n_vocab = (int)v.n;
        mx_gguf_put_text(w, "tokenizer.ggml.model", "llama");
        mx_gguf_put_strings(w, "tokenizer.ggml.tokens", v.texts, v.n);
        mx_gguf_put_numbers(w, "tokenizer.ggml.scores", MX_GGUF_FLOAT32, v.scores, v.n);
        mx_gguf_put_numbers(w, "tokenizer.ggml.token_type", MX_GGUF_INT32, v.types, v.n);
        mx_gguf_put_int(w, "tokenizer.ggml.bos_token_id", MX_GGUF_UINT32, 1);
        mx_gguf_put_int(w, "tokenizer.ggml.eos_token_id", MX_GGUF_UINT32, 2);
        mx_gguf_put_int(w, "tokenizer.ggml.unknown_token_id", MX_GGUF_UINT32, 0);
        mx_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
    }
    free(v.texts);
    free(v.scores);
    free(v.types);
    free(v.memory);
    return status;
}
