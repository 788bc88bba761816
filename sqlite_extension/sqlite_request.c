/*
 * sqlite_request.c: SQL values in, a request's JSON out.
 *
 * Text is taken by its length, so U+0000 is a character like any other here. What the engine knows
 * better (names and ranges of options, roles of messages) is left to the engine, whose messages
 * name the option or the message at fault.
 */
#include "extension.h"

#include <string.h>

SQLITE_EXTENSION_INIT3

/* The length of a character, by its first byte; 0 when none begins so (RFC 3629). */
static size_t utf8_length(unsigned char first)
{
    if (first < 0x80)
        return 1;
    if (first < 0xC2) /* a later byte, or an overlong form */
        return 0;
    if (first < 0xE0)
        return 2;
    if (first < 0xF0)
        return 3;
    return first < 0xF5 ? 4 : 0;
}

size_t mixtral_valid_utf8(const char *text, size_t bytes)
{
    size_t at = 0;

    while (at < bytes) {
        const unsigned char *c = (const unsigned char *)text + at;
        size_t n = utf8_length(*c);

        if (n == 0 || n > bytes - at)
            return at;
        for (size_t i = 1; i < n; i++)
            if ((c[i] & 0xC0) != 0x80)
                return at;
        if ((c[0] == 0xE0 && c[1] < 0xA0) || (c[0] == 0xF0 && c[1] < 0x90) || /* overlong */
            (c[0] == 0xED && c[1] > 0x9F) ||                                  /* surrogates */
            (c[0] == 0xF4 && c[1] > 0x8F))                                    /* past U+10FFFF */
            return at;
        at += n;
    }
    return at;
}

static mx_status set(json_t *request, const char *field, json_t *value, mx_error *error)
{
    return json_object_set_new(request, field, value) == 0 ? MX_OK : mixtral_fail_nomem(error);
}

static mx_status set_text(json_t *request, const char *field, sqlite3_value *value, mx_error *error)
{
    const char *text;
    size_t bytes, valid;

    if (sqlite3_value_type(value) == SQLITE_BLOB)
        return mixtral_fail(error, MX_INVALID, field,
                            "%s: expected text, got a BLOB; write CAST(... AS TEXT)", field);
    text = (const char *)sqlite3_value_text(value);
    if (text == NULL)
        return mixtral_fail_nomem(error);
    bytes = (size_t)sqlite3_value_bytes(value);
    valid = mixtral_valid_utf8(text, bytes);
    if (valid < bytes)
        return mixtral_fail(error, MX_INVALID, field, "%s: expected UTF-8, got 0x%02X at byte %zu",
                            field, (unsigned char)text[valid], valid);
    return set(request, field, json_stringn(text, bytes), error);
}

static const char *type_name(const json_t *json)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a number",  [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",        [JSON_NULL] = "null",
    };

    return names[json_typeof(json)];
}

static mx_status parse_json(sqlite3_value *value, const char *field, json_t **json, mx_error *error)
{
    const char *text;
    json_error_t reason;

    if (sqlite3_value_type(value) == SQLITE_BLOB)
        return mixtral_fail(error, MX_INVALID, field, "%s: expected JSON text, got a BLOB", field);
    text = (const char *)sqlite3_value_text(value);
    if (text == NULL)
        return mixtral_fail_nomem(error);
    *json = json_loadb(text, (size_t)sqlite3_value_bytes(value),
                       JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &reason);
    if (*json == NULL)
        return mixtral_fail(error, MX_INVALID, field,
                            "%s: malformed JSON at line %d, column %d: %s", field, reason.line,
                            reason.column, reason.text);
    return MX_OK;
}

mx_status mixtral_parse_object(sqlite3_value *value, const char *field, json_t **object,
                               mx_error *error)
{
    mx_status status = parse_json(value, field, object, error);

    if (status == MX_OK && !json_is_object(*object)) {
        status = mixtral_fail(error, MX_INVALID, field, "%s: expected a JSON object, got %s", field,
                              type_name(*object));
        json_decref(*object);
        *object = NULL;
    }
    return status;
}

static mx_status set_array(json_t *request, const char *field, sqlite3_value *value,
                           const char *hint, mx_error *error)
{
    json_t *array;
    mx_status status = parse_json(value, field, &array, error);

    if (status != MX_OK)
        return status;
    if (json_is_array(array))
        return set(request, field, array, error);
    status = mixtral_fail(error, MX_INVALID, field, "%s: expected a JSON array%s, got %s", field,
                          hint, type_name(array));
    json_decref(array);
    return status;
}

static mx_status set_integer(json_t *request, const char *field, sqlite3_value *value,
                             mx_error *error)
{
    if (sqlite3_value_numeric_type(value) != SQLITE_INTEGER)
        return mixtral_fail(error, MX_INVALID, field, "%s: expected an integer, got '%.40s'", field,
                            (const char *)sqlite3_value_text(value));
    return set(request, field, json_integer(sqlite3_value_int64(value)), error);
}

/* argv[i], where given, as the options; max_tokens > 0: what to ask for when they do not say. */
static mx_status set_options(json_t *request, int argc, sqlite3_value **argv, int i, int max_tokens,
                             mx_error *error)
{
    json_t *options = NULL;
    mx_status status = MX_OK;

    if (mixtral_given(argc, argv, i))
        status = mixtral_parse_object(argv[i], "options", &options, error);
    else
        options = json_object();
    if (status == MX_OK)
        status = set(request, "options", options, error);
    if (status == MX_OK && max_tokens > 0) {
        const json_t *asked = json_object_get(options, "max_tokens");

        if (asked == NULL || json_is_null(asked))
            status = set(options, "max_tokens", json_integer(max_tokens), error);
    }
    return status;
}

/* ---- The arguments of each function ---- */

bool mixtral_given(int argc, sqlite3_value **argv, int i)
{
    return i < argc && argv[i] != NULL && sqlite3_value_type(argv[i]) != SQLITE_NULL;
}

static mx_status build_messages(json_t *request, int argc, sqlite3_value **argv, int max_tokens,
                                mx_error *error)
{
    mx_status status;

    if (sqlite3_value_subtype(argv[0]) == MIXTRAL_SUBTYPE_JSON)
        status = set_array(request, "messages", argv[0],
                           " of {\"role\", \"content\"} (a JSON string's text is got by ->>)",
                           error);
    else
        status = set_text(request, "prompt", argv[0], error);
    if (status == MX_OK)
        status = set_options(request, argc, argv, 1, max_tokens, error);
    return status;
}

mx_status mixtral_build_chat(json_t *request, int argc, sqlite3_value **argv, mx_error *error)
{
    return build_messages(request, argc, argv, MIXTRAL_MAX_TOKENS, error);
}

mx_status mixtral_build_conversation(json_t *request, int argc, sqlite3_value **argv,
                                     mx_error *error)
{
    return build_messages(request, argc, argv, 0, error);
}

mx_status mixtral_build_complete(json_t *request, int argc, sqlite3_value **argv, mx_error *error)
{
    mx_status status = set_text(request, "prompt", argv[0], error);

    if (status == MX_OK)
        status = set_options(request, argc, argv, 1, MIXTRAL_MAX_TOKENS, error);
    return status;
}

mx_status mixtral_build_text(json_t *request, int argc, sqlite3_value **argv, mx_error *error)
{
    mx_status status = set_text(request, "text", argv[0], error);

    if (status == MX_OK)
        status = set_options(request, argc, argv, 1, 0, error);
    return status;
}

mx_status mixtral_build_tokens(json_t *request, int argc, sqlite3_value **argv, mx_error *error)
{
    mx_status status = set_array(request, "tokens", argv[0], " of token ids", error);

    if (status == MX_OK)
        status = set_options(request, argc, argv, 1, 0, error);
    return status;
}

mx_status mixtral_build_chunks(json_t *request, int argc, sqlite3_value **argv, mx_error *error)
{
    mx_status status = set_text(request, "text", argv[0], error);

    if (status == MX_OK)
        status = set_integer(request, "size", argv[1], error);
    if (status == MX_OK && mixtral_given(argc, argv, 2))
        status = set_integer(request, "overlap", argv[2], error);
    else if (status == MX_OK)
        status = set(request, "overlap", json_integer(0), error);
    if (status == MX_OK)
        status = set_options(request, argc, argv, 3, 0, error);
    return status;
}

mx_status mixtral_build_options(json_t *request, int argc, sqlite3_value **argv, mx_error *error)
{
    return set_options(request, argc, argv, 0, 0, error);
}

json_t *mixtral_request(const char *op, mixtral_build *build, int argc, sqlite3_value **argv,
                        mx_error *error)
{
    json_t *request = json_pack("{s:s}", "op", op);

    if (request == NULL) {
        mixtral_fail_nomem(error);
    } else if (build(request, argc, argv, error) != MX_OK) {
        json_decref(request);
        request = NULL;
    }
    return request;
}
