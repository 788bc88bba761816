/*
 * vocabulary.c: the pieces of a GGUF file: their types, the special ones, and lookup by text.
 *
 * Pieces stay in the mapping; beside them are a type for each, a hash table of ids and a list of the special
 * ones. Of pieces that are spelled alike the last one counts, but one that text may become before all others.
 * Immutable once indexed.
 */
#include <stdlib.h>
#include <string.h>
#include "tokenizer_internal.h"

#define TOKENS_KEY "tokenizer.ggml.tokens"
#define TYPES_KEY "tokenizer.ggml.token_type"

/* What marks turns in the templates, or ends them. Converted files give some of them other types. */
static const char *const markers[] = {
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",   "<|eom_id|>", "<|endoftext|>",
};

mx_str mx_vocabulary_piece(const mx_vocabulary *v, int32_t id)
{
    return mx_gguf_list_string(v->pieces, (size_t)id);
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int mx_vocabulary_byte(mx_str piece)
{
    const char *s = piece.data;

    if (piece.bytes != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>')
        return -1;
    if (hex_digit(s[3]) < 0 || hex_digit(s[4]) < 0)
        return -1;
    return hex_digit(s[3]) * 16 + hex_digit(s[4]);
}

static bool is_marker(mx_str piece)
{
    for (size_t i = 0; i < sizeof markers / sizeof markers[0]; i++)
        if (piece.bytes == strlen(markers[i]) && memcmp(piece.data, markers[i], piece.bytes) == 0)
            return true;
    return false;
}

/* The type that the file gives to a piece, corrected by how it is spelled. */
static mx_status settle_type(mx_vocabulary *v, int32_t id, double type, bool spm, mx_error *error)
{
    mx_str piece = mx_vocabulary_piece(v, id);
    bool byte = mx_vocabulary_byte(piece) >= 0;

    if (!(type >= 0 && type < MX_PIECE_TYPES))
        return mx_fail(error, MX_CORRUPT, TYPES_KEY, "key " TYPES_KEY ": expected 0 to %d, got %.0f for piece %d",
                       MX_PIECE_TYPES - 1, type, id);
    v->types[id] = (uint8_t)type;
    if (v->types[id] == MX_PIECE_BYTE && !byte)
        return mx_fail(error, MX_CORRUPT, TOKENS_KEY,
                       "key " TOKENS_KEY ": expected <0xNN> for piece %d, whose type is byte, got %.*s", id,
                       piece.bytes < 40 ? (int)piece.bytes : 40, piece.data);
    if (v->types[id] == MX_PIECE_NORMAL && byte && spm)
        v->types[id] = MX_PIECE_BYTE; /* a file without types */
    if (is_marker(piece))
        v->types[id] = MX_PIECE_CONTROL;
    return MX_OK;
}

mx_status mx_vocabulary_open(mx_vocabulary *v, const mx_gguf *gguf, bool spm, mx_error *error)
{
    const mx_gguf_list *types = NULL;
    mx_gguf_kind kind;
    size_t count, n_types;
    mx_status status = MX_OK;

    v->pieces = mx_gguf_list_find(gguf, TOKENS_KEY, MX_GGUF_STRING);
    if (!v->pieces)
        return mx_fail(error, MX_CORRUPT, TOKENS_KEY, "key " TOKENS_KEY ": expected an array of strings, got none");
    count = mx_gguf_list_count(v->pieces);
    if (count < 1 || count > INT32_MAX / 4)
        return mx_fail(error, MX_CORRUPT, TOKENS_KEY, "key " TOKENS_KEY ": expected 1 to %d pieces, got %zu",
                       INT32_MAX / 4, count);
    if (mx_gguf_array(gguf, TYPES_KEY, &kind, &n_types)) {
        if (kind != MX_GGUF_INT32 && kind != MX_GGUF_UINT32)
            return mx_fail(error, MX_CORRUPT, TYPES_KEY, "key " TYPES_KEY ": expected an array of 32-bit integers");
        if (n_types != count)
            return mx_fail(error, MX_CORRUPT, TYPES_KEY, "key " TYPES_KEY ": expected %zu types, one a piece, got %zu",
                           count, n_types);
        types = mx_gguf_list_find(gguf, TYPES_KEY, kind);
    }
    v->count = (int32_t)count;
    v->types = malloc(count);
    if (!v->types)
        return mx_fail(error, MX_NOMEM, TOKENS_KEY, "out of memory for %zu pieces", count);
    for (int32_t id = 0; id < v->count && status == MX_OK; id++)
        status = settle_type(v, id, types ? mx_gguf_list_number(types, (size_t)id) : MX_PIECE_NORMAL, spm, error);
    return status;
}

/* ---- Lookup ---- */

static bool is_text(const mx_vocabulary *v, int32_t id)
{
    return v->types[id] == MX_PIECE_NORMAL || v->types[id] == MX_PIECE_USER_DEFINED;
}

static uint64_t hash(const char *s, size_t bytes) /* FNV-1a, its high bits folded in */
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < bytes; i++)
        h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return h ^ (h >> 32);
}

/* The slot of that piece, or the empty one where it would be. */
static size_t find_slot(const mx_vocabulary *v, const char *piece, size_t bytes)
{
    size_t slot = hash(piece, bytes) & (v->n_slots - 1);

    while (v->slots[slot] >= 0) {
        mx_str other = mx_vocabulary_piece(v, v->slots[slot]);

        if (other.bytes == bytes && memcmp(other.data, piece, bytes) == 0)
            break;
        slot = (slot + 1) & (v->n_slots - 1);
    }
    return slot;
}

int32_t mx_vocabulary_find(const mx_vocabulary *v, const char *piece, size_t bytes)
{
    return bytes > v->longest ? -1 : v->slots[find_slot(v, piece, bytes)];
}

int32_t mx_vocabulary_find_text(const mx_vocabulary *v, const char *piece, size_t bytes)
{
    int32_t id = mx_vocabulary_find(v, piece, bytes);

    return id >= 0 && is_text(v, id) ? id : -1;
}

static int by_length(const void *a, const void *b, void *arg)
{
    const mx_vocabulary *v = arg;
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    size_t m = mx_vocabulary_piece(v, x).bytes, n = mx_vocabulary_piece(v, y).bytes;

    return m != n ? (m > n ? -1 : 1) : (x > y) - (x < y);
}

static bool is_special(const mx_vocabulary *v, int32_t id)
{
    int type = v->types[id];

    return type == MX_PIECE_CONTROL || type == MX_PIECE_UNKNOWN || type == MX_PIECE_USER_DEFINED;
}

mx_status mx_vocabulary_index(mx_vocabulary *v, mx_error *error)
{
    size_t n_specials = 0;

    for (v->n_slots = 2; v->n_slots < 2 * (size_t)v->count; v->n_slots *= 2)
        continue;
    for (int32_t id = 0; id < v->count; id++)
        n_specials += is_special(v, id);
    v->slots = malloc(v->n_slots * sizeof *v->slots);
    v->specials = malloc((n_specials + 1) * sizeof *v->specials);
    if (!v->slots || !v->specials)
        return mx_fail(error, MX_NOMEM, TOKENS_KEY, "out of memory for %d pieces", v->count);
    memset(v->slots, 0xff, v->n_slots * sizeof *v->slots); /* -1 */
    for (int32_t id = 0; id < v->count; id++) {
        mx_str piece = mx_vocabulary_piece(v, id);
        size_t slot;

        if (piece.bytes == 0)
            continue;
        slot = find_slot(v, piece.data, piece.bytes);
        if (v->slots[slot] < 0 || is_text(v, id) || !is_text(v, v->slots[slot]))
            v->slots[slot] = id;
        if (is_special(v, id))
            v->specials[v->n_specials++] = id;
        if (piece.bytes > v->longest)
            v->longest = piece.bytes;
    }
    qsort_r(v->specials, v->n_specials, sizeof *v->specials, by_length, v);
    return MX_OK;
}

void mx_vocabulary_close(mx_vocabulary *v)
{
    free(v->types);
    free(v->slots);
    free(v->specials);
}
