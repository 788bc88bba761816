/*
 * chunks.c: a text cut into overlapping chunks of tokens.
 *
 * The text is tokenised once; ends[i] is where its token i ends. Chunks are cut between tokens, but only where a
 * character ends too: a byte-level token may end within one, and a text must stay a text.
 */
#include "chunks.h"

#include <stdlib.h>
#include "tokenizer_internal.h"

#define CHUNKS_MAX ((size_t)1 << 18)
#define CHUNK_BYTES_MAX ((size_t)64 << 20) /* of all of them */

typedef struct {
    const char *text;
    size_t bytes;
    size_t *ends; /* [count] byte offsets */
    size_t count;
    size_t size, overlap;
} cutter;

static size_t offset(const cutter *c, size_t token) /* where it begins */
{
    return token > 0 ? c->ends[token - 1] : 0;
}

static bool is_border(const cutter *c, size_t token)
{
    size_t at = offset(c, token);

    return at == c->bytes || ((unsigned char)c->text[at] & 0xc0) != 0x80;
}

/* The last border from `wanted` on back to after `first`, or else the first one after `wanted`. */
static size_t border_near(const cutter *c, size_t first, size_t wanted)
{
    size_t token = wanted;

    while (token > first && !(is_border(c, token) && offset(c, token) > offset(c, first)))
        token--;
    if (token > first)
        return token;
    for (token = wanted; token < c->count; token++)
        if (is_border(c, token) && offset(c, token) > offset(c, first))
            break;
    return token;
}

static mx_status push(mx_chunk **chunks, size_t *n, size_t *capacity, mx_chunk chunk, mx_error *error)
{
    if (*n == *capacity) {
        size_t wanted = *capacity ? *capacity * 2 : 16;
        mx_chunk *grown = realloc(*chunks, wanted * sizeof *grown);

        if (!grown)
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu chunks", wanted);
        *chunks = grown;
        *capacity = wanted;
    }
    (*chunks)[(*n)++] = chunk;
    return MX_OK;
}

static mx_status cut(const cutter *c, mx_chunk **chunks, size_t *n, mx_error *error)
{
    size_t capacity = 0, total = 0, first = 0, covered = 0;
    mx_status status = MX_OK;

    while (status == MX_OK && offset(c, first) < c->bytes) {
        bool last = c->count - first <= c->size;
        size_t end = last ? c->count : border_near(c, first, first + c->size);
        mx_chunk chunk = {offset(c, first), end == c->count ? c->bytes : offset(c, end), end - first};

        if (chunk.end <= covered) { /* a long character follows, and all of this is overlap */
            first = border_near(c, first, first + 1);
            continue;
        }
        covered = chunk.end;
        total += chunk.end - chunk.start;
        if (*n == CHUNKS_MAX || total > CHUNK_BYTES_MAX)
            return mx_fail(error, MX_TOO_LARGE, "size",
                           "size: %zu tokens with an overlap of %zu make more than %zu chunks or %zu MiB of %zu bytes",
                           c->size, c->overlap, CHUNKS_MAX, CHUNK_BYTES_MAX >> 20, c->bytes);
        status = push(chunks, n, &capacity, chunk, error);
        if (end == c->count)
            break;
        first = border_near(c, first, end - first > c->overlap ? end - c->overlap : first + 1);
    }
    return status;
}

static mx_status check(const char *text, size_t bytes, int size, int overlap, mx_error *error)
{
    if (size < 1)
        return mx_fail(error, MX_INVALID, "size", "size: expected 1 or more tokens, got %d", size);
    if (overlap < 0 || overlap >= size)
        return mx_fail(error, MX_INVALID, "overlap", "overlap: expected 0 to %d tokens, less than the size, got %d",
                       size - 1, overlap);
    for (size_t at = 0, length; at < bytes; at += length) {
        length = mx_utf8_length(text + at, text + bytes);
        if (length == 0)
            return mx_fail(error, MX_INVALID, "text", "text: expected UTF-8, got byte 0x%02x at %zu",
                           (unsigned)(unsigned char)text[at], at);
    }
    return MX_OK;
}

mx_status mx_chunks(const mx_tokenizer *tokenizer, const char *text, size_t bytes, int size, int overlap,
                    const atomic_bool *cancelled, mx_chunk **chunks, size_t *n, mx_error *error)
{
    mx_tokens ids = {0}, lengths = {0};
    mx_token_sink sink = {.ids = &ids, .lengths = &lengths};
    cutter c = {.text = text, .bytes = bytes};
    mx_status status = check(text, bytes, size, overlap, error);

    *chunks = NULL;
    *n = 0;
    if (status == MX_OK)
        status = mx_tokenize_lengths(tokenizer, text, bytes, 0, cancelled, &sink, error);
    if (status != MX_OK)
        goto done;
    c.count = ids.count;
    c.size = (size_t)size;
    c.overlap = (size_t)overlap;
    c.ends = malloc((c.count + 1) * sizeof *c.ends);
    if (!c.ends) {
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu tokens", c.count);
        goto done;
    }
    for (size_t i = 0; i < c.count; i++)
        c.ends[i] = offset(&c, i) + (size_t)lengths.ids[i];
    status = cut(&c, chunks, n, error);
done:
    if (status != MX_OK) {
        free(*chunks);
        *chunks = NULL;
        *n = 0;
    }
    free(c.ends);
    mx_tokens_free(&ids);
    mx_tokens_free(&lengths);
    return status;
}
