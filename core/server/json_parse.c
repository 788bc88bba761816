/*
 * json_parse.c: JSON text to Jansson's values (RFC 8259). See mx_json_parse in wire.h.
 *
 * Jansson's own parser does not look whether memory for a token was to be had: it drops characters of a string then, or runs past
 * the end of its buffer. This one decodes into one buffer that is had before anything is read, and leaves to
 * Jansson the making of values, which does say so. It bounds depth and number of values as it goes.
 *
 * The buffer is a stack: an object's key lies there while its value is read. No text is longer decoded than it was written, and
 * a key's quotes are its NUL's room.
 */
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "wire.h"

#define NUMBER_BYTES_MAX 127

typedef struct {
    const char *begin, *at, *end;
    char *decoded; /* [end - begin + 1], of which `top` bytes are in use */
    size_t top;
    size_t n_values;
    int depth;
    mx_error *error;
} reader;

static json_t *read_value(reader *r);

/* Both give NULL. */
static json_t *malformed(const reader *r, const char *what)
{
    mx_fail(r->error, MX_CORRUPT, NULL, "JSON: %s (at byte %zu)", what, (size_t)(r->at - r->begin));
    return NULL;
}

static json_t *no_memory(const reader *r)
{
    mx_fail(r->error, MX_NOMEM, NULL, "out of memory for %zu bytes of JSON", (size_t)(r->end - r->begin));
    return NULL;
}

static char next(const reader *r) /* '\0' at the end, as for a NUL, which has no place outside of strings */
{
    return r->at < r->end ? *r->at : '\0';
}

static void skip_space(reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r'))
        r->at++;
}

static bool take(reader *r, char c)
{
    skip_space(r);
    if (r->at == r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

/* ---- Strings ---- */

/* Four hexadecimal digits; -1: there are none. */
static int32_t hex4(reader *r)
{
    int32_t value = 0;

    for (int i = 0; i < 4; i++, r->at++) {
        static const char digits[] = "0123456789abcdefABCDEF";
        const char *digit = next(r) ? strchr(digits, next(r)) : NULL;

        if (!digit)
            return -1;
        value = value * 16 + (int32_t)(digit - digits - (digit - digits > 15 ? 6 : 0));
    }
    return value;
}

/* What follows \u: a character, or the two halves of one. -1: neither. */
static int32_t escaped_character(reader *r)
{
    int32_t first = hex4(r), second;

    if (first < 0xD800 || first > 0xDFFF)
        return first;
    if (first > 0xDBFF || r->end - r->at < 2 || r->at[0] != '\\' || r->at[1] != 'u')
        return -1;
    r->at += 2;
    second = hex4(r);
    if (second < 0xDC00 || second > 0xDFFF)
        return -1;
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
}

static size_t put_utf8(char *out, int32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

/* One escape, from behind its backslash. False: there is no such. */
static bool read_escape(reader *r, char *out, size_t *bytes)
{
    static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
    char c = next(r);
    int32_t character;

    r->at++;
    if (c == 'u') {
        character = escaped_character(r);
        if (character >= 0)
            *bytes += put_utf8(out + *bytes, character);
        return character >= 0;
    }
    for (const char *e = escapes; *e; e += 2) {
        if (*e == c) {
            out[(*bytes)++] = e[1];
            return true;
        }
    }
    return false;
}

/* A string, from its first quote, decoded on top of the stack, where nothing claims its place yet. */
static bool read_string(reader *r, size_t *bytes)
{
    char *out = r->decoded + r->top;
    size_t length;

    *bytes = 0;
    for (r->at++; r->at < r->end && *r->at != '"'; r->at += length) {
        length = 0;
        if ((unsigned char)*r->at < 0x20) {
            malformed(r, "a control character in a string");
            return false;
        }
        if (*r->at == '\\') {
            r->at++;
            if (!read_escape(r, out, bytes)) {
                if (r->at > r->end)
                    r->at = r->end;
                malformed(r, "no such escape");
                return false;
            }
            continue;
        }
        length = mx_utf8_character((const unsigned char *)r->at, (size_t)(r->end - r->at));
        if (length == 0) {
            mx_fail(r->error, MX_CORRUPT, NULL, "JSON: byte 0x%02x is no UTF-8 (at byte %zu)", (unsigned char)*r->at,
                    (size_t)(r->at - r->begin));
            return false;
        }
        memcpy(out + *bytes, r->at, length);
        *bytes += length;
    }
    if (r->at == r->end) {
        malformed(r, "a string without an end");
        return false;
    }
    r->at++;
    return true;
}

/* ---- Numbers and words ---- */

static size_t skip_digits(reader *r)
{
    const char *first = r->at;

    while (next(r) >= '0' && next(r) <= '9')
        r->at++;
    return (size_t)(r->at - first);
}

/* `text` has a point where the process's locale may have something else. */
static json_t *real_of(reader *r, char *text)
{
    char *point = strchr(text, '.');
    double value;

    if (point)
        *point = *localeconv()->decimal_point;
    value = strtod(text, NULL);
    return isfinite(value) ? json_real(value) : malformed(r, "a number that is too large");
}

static json_t *read_number(reader *r)
{
    const char *first = r->at;
    char text[NUMBER_BYTES_MAX + 1];
    bool is_real = false, good;
    json_t *number;
    long long value;

    if (next(r) == '-')
        r->at++;
    good = next(r) == '0' ? (r->at++, true) : skip_digits(r) > 0;
    if (good && next(r) == '.') {
        r->at++;
        is_real = true;
        good = skip_digits(r) > 0;
    }
    if (good && (next(r) == 'e' || next(r) == 'E')) {
        r->at++;
        is_real = true;
        if (next(r) == '+' || next(r) == '-')
            r->at++;
        good = skip_digits(r) > 0;
    }
    if (!good)
        return malformed(r, "expected a value");
    if (r->at - first > NUMBER_BYTES_MAX)
        return malformed(r, "a number of too many digits");
    memcpy(text, first, (size_t)(r->at - first));
    text[r->at - first] = '\0';
    if (is_real) {
        number = real_of(r, text);
        return number || r->error->status == MX_CORRUPT ? number : no_memory(r);
    }
    errno = 0;
    value = strtoll(text, NULL, 10);
    if (errno == ERANGE)
        return malformed(r, "an integer of more than 64 bits");
    number = json_integer(value);
    return number ? number : no_memory(r);
}

static json_t *read_word(reader *r, const char *word, json_t *value)
{
    size_t bytes = strlen(word);

    if ((size_t)(r->end - r->at) < bytes || memcmp(r->at, word, bytes) != 0)
        return malformed(r, "expected a value");
    r->at += bytes;
    return value;
}

/* ---- Arrays and objects ---- */

static json_t *read_array(reader *r)
{
    json_t *array = json_array(), *value;

    if (!array)
        return no_memory(r);
    r->at++;
    if (take(r, ']'))
        return array;
    do {
        value = read_value(r);
        if (!value)
            goto failed;
        if (json_array_append_new(array, value) != 0) {
            no_memory(r);
            goto failed;
        }
    } while (take(r, ','));
    if (take(r, ']'))
        return array;
    malformed(r, "expected , or ]");
failed:
    json_decref(array);
    return NULL;
}

/* `"key": value` into the object. */
static bool read_member(reader *r, json_t *object)
{
    const char *key = r->decoded + r->top;
    json_t *value;
    size_t bytes;

    skip_space(r);
    if (next(r) != '"') {
        malformed(r, "expected a key in quotes");
        return false;
    }
    if (!read_string(r, &bytes))
        return false;
    if (memchr(key, '\0', bytes)) {
        malformed(r, "U+0000 in a key");
        return false;
    }
    r->decoded[r->top + bytes] = '\0';
    if (json_object_get(object, key)) {
        malformed(r, "duplicate object key");
        return false;
    }
    if (!take(r, ':')) {
        malformed(r, "expected :");
        return false;
    }
    r->top += bytes + 1;
    value = read_value(r);
    r->top -= bytes + 1;
    if (!value)
        return false;
    if (json_object_set_new_nocheck(object, key, value) == 0)
        return true;
    no_memory(r);
    return false;
}

static json_t *read_object(reader *r)
{
    json_t *object = json_object();

    if (!object)
        return no_memory(r);
    r->at++;
    if (take(r, '}'))
        return object;
    do {
        if (!read_member(r, object))
            goto failed;
    } while (take(r, ','));
    if (take(r, '}'))
        return object;
    malformed(r, "expected , or }");
failed:
    json_decref(object);
    return NULL;
}

static json_t *read_nested(reader *r, json_t *(*read)(reader *))
{
    json_t *value;

    if (r->depth == MX_JSON_DEPTH_MAX) {
        mx_fail(r->error, MX_CORRUPT, NULL, "JSON: nested deeper than %d", MX_JSON_DEPTH_MAX);
        return NULL;
    }
    r->depth++;
    value = read(r);
    r->depth--;
    return value;
}

static json_t *read_value(reader *r)
{
    json_t *string;
    size_t bytes;

    skip_space(r);
    if (++r->n_values > MX_JSON_VALUES_MAX) {
        mx_fail(r->error, MX_CORRUPT, NULL, "JSON: more than %d values", MX_JSON_VALUES_MAX);
        return NULL;
    }
    switch (next(r)) {
    case '{':
        return read_nested(r, read_object);
    case '[':
        return read_nested(r, read_array);
    case '"':
        if (!read_string(r, &bytes))
            return NULL;
        string = json_stringn_nocheck(r->decoded + r->top, bytes);
        return string ? string : no_memory(r);
    case 't':
        return read_word(r, "true", json_true());
    case 'f':
        return read_word(r, "false", json_false());
    case 'n':
        return read_word(r, "null", json_null());
    default:
        return read_number(r);
    }
}

json_t *mx_json_parse(const char *text, size_t bytes, mx_error *error)
{
    mx_error why = {0};
    reader r = {.begin = text, .at = text, .end = text + bytes, .decoded = malloc(bytes + 1), .error = &why};
    json_t *json = r.decoded ? read_value(&r) : no_memory(&r);

    free(r.decoded);
    skip_space(&r);
    if (json && r.at < r.end)
        malformed(&r, "expected the end");
    else if (json && !json_is_object(json))
        mx_fail(&why, MX_CORRUPT, NULL, "JSON: expected an object");
    if (why.status == MX_OK)
        return json;
    json_decref(json);
    if (error)
        *error = why;
    return NULL;
}
