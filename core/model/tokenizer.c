/*
 * tokenizer.c: a file's tokenizer: its keys, special pieces in a text, and ids back to text.
 *
 * A text is first cut where special pieces stand: user-defined ones always, control and unknown ones only if the
 * caller asks (MX_TOKENIZE_SPECIAL); longer pieces before shorter ones, as llama.cpp does it. What lies between
 * goes to the family's tokenizer, which never yields a control piece: a user cannot forge </s>.
 * Immutable after open; every call keeps its state to itself, so any thread may make one.
 */
#include <stdlib.h>
#include <string.h>
#include "tokenizer_internal.h"

#define MODEL_KEY "tokenizer.ggml.model"
#define TEXT_BYTES_MAX ((size_t)INT32_MAX / 4) /* with every space tripled, symbols still have 32-bit numbers */
#define CHARACTER_BYTES_MAX 4

enum { EOS, EOT, EOM, IM_END, EOT_ID, EOM_ID, ENDOFTEXT, N_ENDS };

struct mx_tokenizer {
    mx_vocabulary vocabulary;
    mx_spm *spm; /* of the two one is NULL */
    mx_bpe *bpe;
    int32_t bos, unknown;
    int32_t ends[N_ENDS]; /* what ends a turn; -1: this vocabulary has none */
    bool add_bos, add_eos, add_prefix;
};

/* ---- Token lists ---- */

void mx_tokens_free(mx_tokens *tokens)
{
    free(tokens->ids);
    *tokens = (mx_tokens){0};
}

mx_status mx_tokens_push(mx_tokens *tokens, int32_t id, mx_error *error)
{
    if (tokens->count == tokens->capacity) {
        size_t capacity = tokens->capacity ? tokens->capacity * 2 : 64;
        int32_t *ids = NULL;

        if (capacity <= SIZE_MAX / sizeof *ids)
            ids = realloc(tokens->ids, capacity * sizeof *ids);
        if (!ids)
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu tokens", capacity);
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->count++] = id;
    return MX_OK;
}

mx_status mx_token_sink_push(mx_token_sink *sink, int32_t id, size_t bytes, mx_error *error)
{
    mx_status status = mx_tokens_push(sink->ids, id, error);

    if (status == MX_OK && sink->lengths)
        status = mx_tokens_push(sink->lengths, (int32_t)(sink->skipped + bytes), error);
    sink->skipped = 0;
    return status;
}

/* ---- Opening ---- */

/* A key that holds a piece's id. That piece is a control piece: text must not yield it (but single bytes it may). */
static mx_status read_id(mx_tokenizer *t, const mx_gguf *gguf, const char *key, int32_t *id, mx_error *error)
{
    mx_vocabulary *v = &t->vocabulary;
    int64_t value = *id < v->count ? *id : -1;
    mx_status status = mx_gguf_get_int(gguf, key, 0, v->count - 1, &value, NULL, error);

    if (status != MX_OK)
        return status;
    *id = (int32_t)value;
    if (*id >= 0 && (v->types[*id] == MX_PIECE_USER_DEFINED ||
                     (v->types[*id] == MX_PIECE_NORMAL && mx_vocabulary_piece(v, *id).bytes > 2)))
        v->types[*id] = MX_PIECE_CONTROL;
    return MX_OK;
}

static mx_status read_ids(mx_tokenizer *t, const mx_gguf *gguf, bool spm, mx_error *error)
{
    const struct {
        const char *key;
        int32_t *id;
        int32_t of_spm; /* where the key is missing; other vocabularies have none then */
    } keys[] = {
        {"tokenizer.ggml.bos_token_id", &t->bos, 1},
        {"tokenizer.ggml.eos_token_id", &t->ends[EOS], 2},
        {"tokenizer.ggml.eot_token_id", &t->ends[EOT], -1},
        {"tokenizer.ggml.eom_token_id", &t->ends[EOM], -1},
        {"tokenizer.ggml.unknown_token_id", &t->unknown, 0},
    };
    mx_status status = MX_OK;

    for (size_t i = 0; i < sizeof keys / sizeof keys[0] && status == MX_OK; i++) {
        *keys[i].id = spm ? keys[i].of_spm : -1;
        status = read_id(t, gguf, keys[i].key, keys[i].id, error);
    }
    return status;
}

/* A key that asks for a token needs one. */
static mx_status read_adds(mx_tokenizer *t, const mx_gguf *gguf, mx_error *error)
{
    const struct {
        const char *key, *id_key;
        bool *adds;
        int32_t id;
    } keys[] = {
        {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", &t->add_bos, t->bos},
        {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", &t->add_eos, t->ends[EOS]},
    };
    mx_status status;

    t->add_bos = t->spm || mx_bpe_adds_bos(t->bpe);
    t->add_prefix = t->spm;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        bool found;

        if ((status = mx_gguf_get_bool(gguf, keys[i].key, keys[i].adds, &found, error)) != MX_OK)
            return status;
        if (*keys[i].adds && keys[i].id < 0 && found)
            return mx_fail(error, MX_CORRUPT, keys[i].id_key, "key %s: expected one, as %s is true, got none",
                           keys[i].id_key, keys[i].key);
        *keys[i].adds = *keys[i].adds && keys[i].id >= 0;
    }
    return mx_gguf_get_bool(gguf, "tokenizer.ggml.add_space_prefix", &t->add_prefix, NULL, error);
}

static mx_status read_family(const mx_gguf *gguf, bool *spm, mx_error *error)
{
    mx_str name = {"", 0};
    bool found;
    mx_status status = mx_gguf_get_string(gguf, MODEL_KEY, &name, &found, error);

    if (status != MX_OK)
        return status;
    *spm = name.bytes == 5 && memcmp(name.data, "llama", 5) == 0;
    if (*spm || (name.bytes == 4 && memcmp(name.data, "gpt2", 4) == 0))
        return MX_OK;
    return mx_fail(error, found ? MX_INVALID : MX_CORRUPT, MODEL_KEY, "key " MODEL_KEY ": expected llama or gpt2, got %.*s",
                   !found ? 7 : name.bytes < 80 ? (int)name.bytes : 80, found ? name.data : "nothing");
}

static mx_status read_tokenizer(mx_tokenizer *t, const mx_gguf *gguf, mx_error *error)
{
    mx_vocabulary *v = &t->vocabulary;
    mx_status status;
    bool spm;

    if ((status = read_family(gguf, &spm, error)) != MX_OK)
        return status;
    if ((status = mx_vocabulary_open(v, gguf, spm, error)) != MX_OK)
        return status;
    if ((status = read_ids(t, gguf, spm, error)) != MX_OK)
        return status;
    if ((status = mx_vocabulary_index(v, error)) != MX_OK)
        return status;
    status = spm ? mx_spm_open(gguf, v, t->unknown, &t->spm, error) : mx_bpe_open(gguf, v, &t->bpe, error);
    if (status != MX_OK)
        return status;
    t->ends[IM_END] = mx_token_find(t, "<|im_end|>");
    t->ends[EOT_ID] = mx_token_find(t, "<|eot_id|>");
    t->ends[EOM_ID] = mx_token_find(t, "<|eom_id|>");
    t->ends[ENDOFTEXT] = mx_token_find(t, "<|endoftext|>");
    return read_adds(t, gguf, error);
}

mx_status mx_tokenizer_open(const mx_gguf *gguf, mx_tokenizer **tokenizer, mx_error *error)
{
    mx_tokenizer *t = calloc(1, sizeof *t);
    mx_status status;

    *tokenizer = NULL;
    if (!t)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the tokenizer");
    status = read_tokenizer(t, gguf, error);
    if (status == MX_OK)
        *tokenizer = t;
    else
        mx_tokenizer_close(t);
    return status;
}

void mx_tokenizer_close(mx_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    mx_spm_close(tokenizer->spm);
    mx_bpe_close(tokenizer->bpe);
    mx_vocabulary_close(&tokenizer->vocabulary);
    free(tokenizer);
}

/* ---- Special pieces in a text ---- */

typedef struct {
    size_t start;
    int32_t id;
} special;

typedef struct { /* in the order of the text, none over another */
    special *items;
    size_t count, capacity;
} specials;

static mx_status specials_push(specials *list, size_t start, int32_t id, mx_error *error)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 16;
        special *items = realloc(list->items, capacity * sizeof *items);

        if (!items)
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu special tokens", capacity);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = (special){start, id};
    return MX_OK;
}

/* Adds every place of piece `id` in the text that no longer piece has taken. */
static mx_status find_piece(const mx_vocabulary *v, const char *text, size_t bytes, int32_t id, specials *list,
                            mx_error *error)
{
    mx_str piece = mx_vocabulary_piece(v, id);
    specials merged = {0};
    mx_status status = MX_OK;
    size_t at = 0;

    if (!memmem(text, bytes, piece.data, piece.bytes))
        return MX_OK;
    for (size_t i = 0; i <= list->count && status == MX_OK; i++) {
        const special *taken = i < list->count ? &list->items[i] : NULL;
        size_t end = taken ? taken->start : bytes;
        const char *found;

        while (status == MX_OK && (found = memmem(text + at, end - at, piece.data, piece.bytes))) {
            status = specials_push(&merged, (size_t)(found - text), id, error);
            at = (size_t)(found - text) + piece.bytes;
        }
        if (taken && status == MX_OK) {
            status = specials_push(&merged, taken->start, taken->id, error);
            at = end + mx_vocabulary_piece(v, taken->id).bytes;
        }
    }
    free(list->items);
    *list = merged;
    return status;
}

static mx_status find_specials(const mx_vocabulary *v, const char *text, size_t bytes, bool control,
                               const atomic_bool *cancelled, specials *list, mx_error *error)
{
    mx_status status = MX_OK;

    for (size_t i = 0; i < v->n_specials && status == MX_OK; i++) {
        if (cancelled && atomic_load_explicit(cancelled, memory_order_relaxed))
            return mx_fail(error, MX_CANCELLED, NULL, "the request was cancelled");
        if (control || v->types[v->specials[i]] == MX_PIECE_USER_DEFINED)
            status = find_piece(v, text, bytes, v->specials[i], list, error);
    }
    return status;
}

/* ---- Text to ids ---- */

/*
 * A space goes before the text and before what follows a special piece. After a control piece only if there is none
 * yet: "</s> [INST]" is how templates are written, and "[INST]" with one space before it is what models were trained on.
 */
static bool wants_prefix(const mx_tokenizer *t, const char *text, int32_t previous, int flags)
{
    if (previous < 0)
        return t->add_prefix && !(flags & MX_TOKENIZE_NO_PREFIX);
    return t->add_prefix && !(mx_token_is_control(t, previous) && *text == ' ');
}

mx_status mx_tokenize_lengths(const mx_tokenizer *t, const char *text, size_t bytes, int flags,
                              const atomic_bool *cancelled, mx_token_sink *sink, mx_error *error)
{
    specials list = {0};
    mx_status status;
    size_t at = 0;
    int32_t previous = -1;

    if (bytes == 0)
        return MX_OK;
    if (bytes > TEXT_BYTES_MAX)
        return mx_fail(error, MX_TOO_LARGE, NULL, "a text of %zu bytes: at most %zu can be tokenised", bytes,
                       TEXT_BYTES_MAX);
    status = find_specials(&t->vocabulary, text, bytes, flags & MX_TOKENIZE_SPECIAL, cancelled, &list, error);
    for (size_t i = 0; i <= list.count && status == MX_OK; i++) {
        const special *next = i < list.count ? &list.items[i] : NULL;
        size_t end = next ? next->start : bytes;

        if (end > at) {
            bool prefix = wants_prefix(t, text + at, previous, flags);

            status = t->spm ? mx_spm_tokenize(t->spm, text + at, end - at, prefix, cancelled, sink, error)
                            : mx_bpe_tokenize(t->bpe, text + at, end - at, prefix, cancelled, sink, error);
        }
        if (next && status == MX_OK) {
            size_t length = mx_vocabulary_piece(&t->vocabulary, next->id).bytes;

            status = mx_token_sink_push(sink, next->id, length, error);
            at = end + length;
            previous = next->id;
        }
    }
    free(list.items);
    return status;
}

mx_status mx_tokenize(const mx_tokenizer *tokenizer, const char *text, size_t bytes, int flags,
                      const atomic_bool *cancelled, mx_tokens *out, mx_error *error)
{
    mx_token_sink sink = {.ids = out};

    return mx_tokenize_lengths(tokenizer, text, bytes, flags, cancelled, &sink, error);
}

/* ---- Ids to text ---- */

size_t mx_token_text(const mx_tokenizer *t, int32_t id, bool wants_special, char *out, size_t size)
{
    mx_str piece = mx_vocabulary_piece(&t->vocabulary, id);
    char byte;

    switch ((mx_piece_type)t->vocabulary.types[id]) {
    case MX_PIECE_NORMAL:
        return t->spm ? mx_spm_decode(piece, out, size) : mx_bpe_decode(piece, out, size);
    case MX_PIECE_BYTE:
        byte = (char)mx_vocabulary_byte(piece);
        piece = (mx_str){&byte, 1};
        break;
    case MX_PIECE_USER_DEFINED:
        break;
    default:
        if (!wants_special)
            return 0;
    }
    if (size > 0)
        memcpy(out, piece.data, piece.bytes < size ? piece.bytes : size);
    return piece.bytes;
}

mx_status mx_detokenize(const mx_tokenizer *t, const int32_t *ids, size_t n, bool wants_special, char **text,
                        size_t *bytes, mx_error *error)
{
    size_t total = 0, at = 0;
    bool begun = false; /* only the first space can be the vocabulary's */
    char *out;

    *text = NULL;
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= t->vocabulary.count)
            return mx_fail(error, MX_INVALID, "tokens", "tokens: expected ids from 0 to %d, got %d",
                           t->vocabulary.count - 1, ids[i]);
        total += mx_token_text(t, ids[i], wants_special, NULL, 0);
    }
    out = malloc(total + 1);
    if (!out)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a text of %zu bytes", total);
    for (size_t i = 0; i < n; i++) {
        size_t length = mx_token_text(t, ids[i], wants_special, out + at, total - at);
        bool first = !begun && length > 0;

        begun |= first;
        if (first && t->add_prefix && out[0] == ' ') {
            memmove(out, out + 1, --length);
            total--;
        }
        at += length;
    }
    out[at] = '\0';
    *text = out;
    *bytes = at;
    return MX_OK;
}

/* ---- What there is to know ---- */

int mx_tokenizer_n_vocab(const mx_tokenizer *tokenizer)
{
    return tokenizer->vocabulary.count;
}

int32_t mx_tokenizer_bos(const mx_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t mx_tokenizer_eos(const mx_tokenizer *tokenizer)
{
    return tokenizer->ends[EOS];
}

bool mx_tokenizer_add_bos(const mx_tokenizer *tokenizer)
{
    return tokenizer->add_bos;
}

bool mx_tokenizer_add_eos(const mx_tokenizer *tokenizer)
{
    return tokenizer->add_eos;
}

bool mx_tokenizer_is_spm(const mx_tokenizer *tokenizer)
{
    return tokenizer->spm != NULL;
}

bool mx_token_ends_turn(const mx_tokenizer *tokenizer, int32_t id)
{
    for (int i = 0; i < N_ENDS; i++)
        if (id >= 0 && tokenizer->ends[i] == id)
            return true;
    return false;
}

bool mx_token_is_control(const mx_tokenizer *tokenizer, int32_t id)
{
    return tokenizer->vocabulary.types[id] == MX_PIECE_CONTROL;
}

int32_t mx_token_find(const mx_tokenizer *tokenizer, const char *piece)
{
    return mx_vocabulary_find(&tokenizer->vocabulary, piece, strlen(piece));
}

mx_str mx_token_piece(const mx_tokenizer *tokenizer, int32_t id)
{
    return mx_vocabulary_piece(&tokenizer->vocabulary, id);
}

size_t mx_tokenizer_longest_piece(const mx_tokenizer *tokenizer)
{
    size_t longest = tokenizer->vocabulary.longest;

    return longest > CHARACTER_BYTES_MAX ? longest : CHARACTER_BYTES_MAX; /* an unknown piece is a character */
}

/* ---- UTF-8 ---- */

size_t mx_utf8_length(const char *s, const char *end)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t n = u[0] < 0x80 ? 1 : u[0] < 0xc2 ? 0 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : u[0] < 0xf5 ? 4 : 0;

    if (n > (size_t)(end - s))
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((u[i] & 0xc0) != 0x80)
            return 0;
    if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xf0 && u[1] < 0x90)) /* longer than need be */
        return 0;
    if ((u[0] == 0xed && u[1] > 0x9f) || (u[0] == 0xf4 && u[1] > 0x8f)) /* surrogates; beyond U+10FFFF */
        return 0;
    return n;
}
