/*
 * vocabularies.h: tiny vocabularies as GGUF files, for tests of what reads them.
 */
#ifndef MX_TESTS_VOCABULARIES_H
#define MX_TESTS_VOCABULARIES_H

#include <stdbool.h>
#include <sys/mman.h>

#include "gguf_bytes.h"

enum { T_NORMAL = 1, T_UNKNOWN, T_CONTROL, T_USER_DEFINED, T_UNUSED, T_BYTE }; /* tokenizer.ggml.token_type */

typedef struct {
    const char *text;
    size_t bytes;
    uint32_t type;
    float score;
} piece;

typedef struct {
    const char *key;
    uint32_t kind; /* MX_GGUF_BOOL, _UINT32 or _STRING */
    uint32_t number;
    const char *text;
} setting;

typedef struct {
    const char *model; /* llama or gpt2; NULL: no key */
    const char *const *merges; /* gpt2 */
    size_t n_merges;
    piece pieces[512];
    size_t n_pieces;
    size_t n_types, n_scores; /* as many as there are pieces, or another number to see it refused */
    setting settings[16];
    size_t n_settings;
} vocabulary;

static inline int add_piece_bytes(vocabulary *v, const char *text, size_t n, uint32_t type, float score)
{
    v->pieces[v->n_pieces] = (piece){text, n, type, score};
    v->n_types = v->n_scores = v->n_pieces + 1;
    return (int)v->n_pieces++;
}

static inline int add_piece(vocabulary *v, const char *text, uint32_t type, float score)
{
    return add_piece_bytes(v, text, strlen(text), type, score);
}

static inline void set_bool(vocabulary *v, const char *key, bool value)
{
    v->settings[v->n_settings++] = (setting){key, MX_GGUF_BOOL, value, NULL};
}

static inline void set_number(vocabulary *v, const char *key, uint32_t value)
{
    v->settings[v->n_settings++] = (setting){key, MX_GGUF_UINT32, value, NULL};
}

static inline void set_text(vocabulary *v, const char *key, const char *value)
{
    v->settings[v->n_settings++] = (setting){key, MX_GGUF_STRING, 0, value};
}

/* <unk>, <s>, </s> and the 256 byte pieces: ids 0, 1, 2, and 3 + byte. */
static inline void begin_spm(vocabulary *v)
{
    static char spelled[256][8];

    memset(v, 0, sizeof *v);
    v->model = "llama";
    add_piece(v, "<unk>", T_UNKNOWN, 0);
    add_piece(v, "<s>", T_CONTROL, 0);
    add_piece(v, "</s>", T_CONTROL, 0);
    for (int byte = 0; byte < 256; byte++) {
        snprintf(spelled[byte], sizeof spelled[byte], "<0x%02X>", (unsigned)byte);
        add_piece(v, spelled[byte], T_BYTE, 0);
    }
}

/* GPT-2's character for each of the 256 bytes: id = byte. */
static inline void begin_bpe(vocabulary *v, const char *pre)
{
    static char spelled[256][3];

    memset(v, 0, sizeof *v);
    v->model = "gpt2";
    for (unsigned byte = 0, other = 0x100; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        unsigned c = printable ? byte : other++;

        if (c < 0x80)
            snprintf(spelled[byte], 3, "%c", (int)c);
        else
            snprintf(spelled[byte], 3, "%c%c", (int)(0xc0 | c >> 6), (int)(0x80 | (c & 0x3f)));
        add_piece(v, spelled[byte], T_NORMAL, 0);
    }
    if (pre)
        set_text(v, "tokenizer.ggml.pre", pre);
}

static inline void put_settings(bytes *b, const vocabulary *v)
{
    for (size_t i = 0; i < v->n_settings; i++) {
        const setting *s = &v->settings[i];
        uint8_t flag = (uint8_t)s->number;

        put_key(b, s->key, s->kind);
        if (s->kind == MX_GGUF_STRING)
            put_text(b, s->text);
        else if (s->kind == MX_GGUF_BOOL)
            put(b, &flag, 1);
        else
            put_u32(b, s->number);
    }
}

/* Opens the vocabulary as a file of its own. */
static inline mx_status open_vocabulary(const vocabulary *v, mx_gguf **gguf, mx_error *error)
{
    bool spm = v->model && strcmp(v->model, "llama") == 0;
    int fd = memfd_create("vocabulary", MFD_CLOEXEC);
    bytes *b = calloc(1, sizeof *b);
    char path[64];
    mx_status status;

    if (fd < 0 || !b)
        abort();
    put_header(b, 3, 0, v->n_settings + 3 + (v->model != NULL));
    if (v->model)
        put_key_text(b, "tokenizer.ggml.model", v->model);
    put_array(b, "tokenizer.ggml.tokens", MX_GGUF_STRING, v->n_pieces);
    for (size_t i = 0; i < v->n_pieces; i++) {
        put_u64(b, v->pieces[i].bytes);
        put(b, v->pieces[i].text, v->pieces[i].bytes);
    }
    put_array(b, "tokenizer.ggml.token_type", MX_GGUF_INT32, v->n_types);
    for (size_t i = 0; i < v->n_types; i++)
        put_u32(b, v->pieces[i].type);
    put_array(b, spm ? "tokenizer.ggml.scores" : "tokenizer.ggml.merges", spm ? MX_GGUF_FLOAT32 : MX_GGUF_STRING,
              spm ? v->n_scores : v->n_merges);
    for (size_t i = 0; spm && i < v->n_scores; i++)
        put(b, &v->pieces[i].score, 4);
    for (size_t i = 0; !spm && i < v->n_merges; i++)
        put_text(b, v->merges[i]);
    put_settings(b, v);
    if (write(fd, b->data, b->n) != (ssize_t)b->n)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    status = mx_gguf_open(path, gguf, error);
    close(fd);
    free(b);
    return status;
}

#endif
