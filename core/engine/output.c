/*
 * output.c: decoding, holding back and stopping.
 *
 * Bytes of a token go one by one through a UTF-8 decoder, which appends whole characters to `text`.
 * text[0 .. sent) has been given out, text[sent .. n_text) is held back because a stop string may
 * begin in it; no stop string begins before `sent`, so that the search never looks back.
 */
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "output.h"

struct mx_output {
    const mx_tokenizer *tokenizer;
    const char *const *stop; /* [n_stop] */
    int n_stop;
    size_t longest_stop;
    const char *stopped_by; /* one of stop; NULL: none is complete */
    bool strip_space; /* until the first byte has come */

    char *text; /* [capacity], NUL-terminated */
    size_t n_text, capacity, sent;
    uint8_t part[4]; /* bytes of a character that is not whole */
    int n_part, part_length;
    char *bytes; /* [n_bytes] of the token at hand */
    size_t n_bytes;
};

/* ---- UTF-8 ------------------------------------------------------------------------------------*/

/* Length of the character that begins with this byte; 0 if none does. */
static int length_of(uint8_t first)
{
    return first < 0x80   ? 1
           : first < 0xc2 ? 0
           : first < 0xe0 ? 2
           : first < 0xf0 ? 3
           : first < 0xf5 ? 4
                          : 0;
}

/* True if `byte` may follow `first` as its second: no overlong forms, no surrogates, nothing past
 * U+10FFFF. */
static bool may_be_second(uint8_t first, uint8_t byte)
{
    uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;

    return byte >= low && byte <= high;
}

static bool may_follow(const uint8_t *part, int n_part, uint8_t byte)
{
    return n_part == 1 ? may_be_second(part[0], byte) : byte >= 0x80 && byte <= 0xbf;
}

static bool is_utf8(const char *s)
{
    const uint8_t *p = (const uint8_t *)s;

    while (*p) {
        int n = length_of(*p);
        if (n == 0)
            return false;
        for (int i = 1; i < n; i++)
            if (!may_follow(p, i, p[i])) /* the closing NUL never may */
                return false;
        p += n;
    }
    return true;
}

static mx_status append(mx_output *o, const void *bytes, size_t n, mx_error *error)
{
    if (o->capacity - o->n_text <= n) { /* one more for the NUL */
        char *text = realloc(o->text, 2 * o->capacity);
        if (!text)
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for an answer of %zu bytes",
                           o->n_text);
        o->text = text;
        o->capacity *= 2;
    }
    memcpy(o->text + o->n_text, bytes, n);
    o->n_text += n;
    o->text[o->n_text] = '\0';
    return MX_OK;
}

static mx_status append_replacement(mx_output *o, mx_error *error)
{
    o->n_part = 0;
    return append(o, "\xef\xbf\xbd", 3, error);
}

static mx_status decode_byte(mx_output *o, uint8_t byte, mx_error *error)
{
    mx_status status = MX_OK;

    if (o->n_part > 0 && !may_follow(o->part, o->n_part, byte))
        status = append_replacement(o, error); /* and the byte begins anew */
    if (status != MX_OK)
        return status;
    if (o->n_part == 0) {
        o->part_length = length_of(byte);
        if (o->part_length == 0)
            return append_replacement(o, error);
        if (byte == 0)
            return MX_OK;
    }
    o->part[o->n_part++] = byte;
    if (o->n_part < o->part_length)
        return MX_OK;
    o->n_part = 0;
    return append(o, o->part, (size_t)o->part_length, error);
}

/* ---- Stop strings -----------------------------------------------------------------------------*/

/* Where the first stop string in text[sent .. n_text) begins, which is noted; n_text if there is none. */
static size_t find_stop(mx_output *o)
{
    size_t first = o->n_text;

    for (int i = 0; i < o->n_stop; i++) {
        const char *at = strstr(o->text + o->sent, o->stop[i]); /* the text has no NUL inside */
        if (at && (size_t)(at - o->text) < first) {
            first = (size_t)(at - o->text);
            o->stopped_by = o->stop[i];
        }
    }
    return first;
}

/* Where the longest end of the text begins that is the beginning of a stop string; n_text if there
 * is none. */
static size_t find_held(const mx_output *o)
{
    size_t at = o->sent;

    if (o->longest_stop == 0)
        return o->n_text;
    if (o->n_text - at >= o->longest_stop)
        at = o->n_text - o->longest_stop + 1;
    for (; at < o->n_text; at++)
        for (int i = 0; i < o->n_stop; i++)
            if (strncmp(o->stop[i], o->text + at, o->n_text - at) == 0)
                return at;
    return at;
}

/* Gives out text[sent .. end). */
static void give(mx_output *o, size_t end, mx_piece *piece)
{
    piece->text = o->text + o->sent;
    piece->bytes = end - o->sent;
    o->sent = end;
}

static void search(mx_output *o, mx_piece *piece)
{
    size_t stop = find_stop(o);

    if (stop < o->n_text) {
        piece->stopped = true;
        o->n_text = stop;
        o->text[stop] = '\0';
        o->n_part = 0;
        give(o, stop, piece);
    } else {
        give(o, find_held(o), piece);
    }
}

/* ---- The output
 * --------------------------------------------------------------------------------*/

mx_status mx_output_open(const mx_tokenizer *tokenizer, const char *const *stop, int n_stop,
                         bool strip_space, mx_output **output, mx_error *error)
{
    mx_output *o;

    *output = NULL;
    for (int i = 0; i < n_stop; i++)
        if (!stop[i][0] || !is_utf8(stop[i]))
            return mx_fail(
                error, MX_INVALID, "stop",
                "option stop: expected UTF-8 strings that are not empty, got %s as number %d",
                stop[i][0] ? "other bytes" : "an empty one", i + 1);
    o = calloc(1, sizeof *o);
    if (o) {
        o->n_bytes = mx_tokenizer_longest_piece(tokenizer) + 1;
        o->bytes = malloc(o->n_bytes);
        o->capacity = 256;
        o->text = calloc(1, o->capacity);
    }
    if (!o || !o->bytes || !o->text) {
        mx_output_close(o);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for an answer");
    }
    o->tokenizer = tokenizer;
    o->stop = stop;
    o->n_stop = n_stop;
    for (int i = 0; i < n_stop; i++)
        if (strlen(stop[i]) > o->longest_stop)
            o->longest_stop = strlen(stop[i]);
    o->strip_space = strip_space && mx_tokenizer_is_spm(tokenizer);
    *output = o;
    return MX_OK;
}

void mx_output_close(mx_output *o)
{
    if (!o)
        return;
    free(o->text);
    free(o->bytes);
    free(o);
}

const char *mx_output_text(const mx_output *o, size_t *bytes)
{
    *bytes = o->n_text;
    return o->text;
}

const char *mx_output_stopped_by(const mx_output *o)
{
    return o->stopped_by;
}

mx_status mx_output_add(mx_output *o, int32_t token, mx_piece *piece, mx_error *error)
{
    size_t n, i = 0;
    mx_status status = MX_OK;

    *piece = (mx_piece){.text = ""};
    if (mx_token_ends_turn(o->tokenizer, token))
        return MX_OK;
    n = mx_token_text(o->tokenizer, token, false, o->bytes, o->n_bytes);
    if (n > o->n_bytes)
        return mx_fail(error, MX_INTERNAL, NULL, "token %d: expected at most %zu bytes, got %zu",
                       token, o->n_bytes, n);
    if (n > 0 && o->strip_space) {
        o->strip_space = false;
        i = o->bytes[0] == ' ';
    }
    for (; i < n && status == MX_OK; i++)
        status = decode_byte(o, (uint8_t)o->bytes[i], error);
    if (status == MX_OK)
        search(o, piece);
    return status;
}

mx_status mx_output_finish(mx_output *o, mx_piece *piece, mx_error *error)
{
    *piece = (mx_piece){.text = ""};
    if (o->n_part > 0) {
        mx_status status = append_replacement(o, error);
        if (status != MX_OK)
            return status;
        search(o, piece); /* U+FFFD may end a stop string */
        if (piece->stopped)
            return MX_OK;
        o->sent -= piece->bytes;
    }
    give(o, o->n_text, piece);
    return MX_OK;
}
