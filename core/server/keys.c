/*
 * keys.c: the file's text, to and fro; a key found by its hash. See keys.h.
 */
#include "keys.h"

#include <limits.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../error.h"

#define MAGIC "mixtral-keys 1 "
#define HASH_BYTES 32
#define LINE_MAX_BYTES 192 /* more than the longest line that can be right */

_Static_assert(HASH_BYTES == crypto_generichash_BYTES && HASH_BYTES == crypto_generichash_KEYBYTES, "secrets and hashes");

/* ---- Fields ---- */

static bool is_hex(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!(text[i] >= '0' && text[i] <= '9') && !(text[i] >= 'a' && text[i] <= 'f'))
            return false;
    }
    return text[n] == '\0';
}

static bool take_id(const char *text, mx_key *key)
{
    if (strlen(text) != sizeof(key->id) - 1 || !is_hex(text, sizeof(key->id) - 1))
        return false;
    memcpy(key->id, text, sizeof(key->id));
    return true;
}

static bool take_name(const char *text, mx_key *key)
{
    size_t n = strlen(text);

    if (n == 0 || n >= sizeof(key->name) ||
        n != strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-@"))
        return false;
    memcpy(key->name, text, n + 1);
    return true;
}

static bool take_created(const char *text, mx_key *key)
{
    static const char form[] = "dddd-dd-ddTdd:dd:ddZ";

    if (strlen(text) != sizeof(form) - 1)
        return false;
    for (size_t i = 0; form[i]; i++) {
        if (form[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != form[i])
            return false;
    }
    memcpy(key->created, text, sizeof(key->created));
    return true;
}

static bool take_limit(const char *text, int *limit)
{
    long long value = 0;

    *limit = -1;
    if (strcmp(text, "-") == 0)
        return true;
    if (strlen(text) == 0 || strlen(text) > 10 || strspn(text, "0123456789") != strlen(text))
        return false;
    value = atoll(text);
    *limit = (int)value;
    return value <= INT_MAX;
}

static bool take_requests(const char *text, mx_key *key)
{
    return take_limit(text, &key->requests);
}

static bool take_tokens(const char *text, mx_key *key)
{
    return take_limit(text, &key->tokens_per_minute);
}

static bool take_bytes(const char *text, unsigned char bytes[HASH_BYTES])
{
    return strlen(text) == 2 * HASH_BYTES && is_hex(text, 2 * HASH_BYTES) &&
           sodium_hex2bin(bytes, HASH_BYTES, text, 2 * HASH_BYTES, NULL, NULL, NULL) == 0;
}

static bool take_hash(const char *text, mx_key *key)
{
    return take_bytes(text, key->hash);
}

static const struct {
    bool (*take)(const char *text, mx_key *key);
    const char *expected;
} fields[] = {
    {take_id, "an id of 12 hexadecimal digits"},
    {take_name, "a name of 1 to 32 of A-Z a-z 0-9 . _ - @"},
    {take_created, "a time like 2026-01-31T23:59:59Z"},
    {take_requests, "requests at a time, \"-\" or a number"},
    {take_tokens, "tokens a minute, \"-\" or a number"},
    {take_hash, "a hash of 64 hexadecimal digits"},
};

/* ---- The file ---- */

static const mx_key *named(const mx_keys *keys, const char *name)
{
    for (size_t i = 0; i < keys->n; i++) {
        if (strcmp(keys->keys[i].name, name) == 0 || strcmp(keys->keys[i].id, name) == 0)
            return &keys->keys[i];
    }
    return NULL;
}

/* Another's id is no name either: it could not be told which one is meant. */
static mx_status append(mx_keys *keys, const mx_key *key, mx_error *error)
{
    mx_key *more;

    if (named(keys, key->name) || named(keys, key->id))
        return mx_fail(error, MX_BUSY, "name", "there is a key %s already", named(keys, key->name) ? key->name : key->id);
    if (keys->n == MX_KEYS_MAX)
        return mx_fail(error, MX_TOO_LARGE, NULL, "a file has at most %d keys", MX_KEYS_MAX);
    more = realloc(keys->keys, (keys->n + 1) * sizeof(*more));
    if (!more)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a key");
    keys->keys = more;
    keys->keys[keys->n++] = *key;
    return MX_OK;
}

static mx_status take_line(char *line, int number, mx_keys *keys, mx_error *error)
{
    mx_key key = {0};
    char *field = line, *end;
    mx_status status;

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        bool is_last = i + 1 == sizeof(fields) / sizeof(fields[0]);

        end = field + strcspn(field, is_last ? "" : " ");
        if (!is_last && *end)
            *end++ = '\0';
        if (!fields[i].take(field, &key))
            return mx_fail(error, MX_CORRUPT, NULL, "line %d: expected %s, got \"%.40s\"", number, fields[i].expected, field);
        field = end;
    }
    status = append(keys, &key, error);
    if (status == MX_BUSY)
        return mx_fail(error, MX_CORRUPT, NULL, "line %d: %s", number, error->text);
    return status;
}

static mx_status take_first_line(const char *line, mx_keys *keys, mx_error *error)
{
    if (strncmp(line, MAGIC, strlen(MAGIC)) == 0 && take_bytes(line + strlen(MAGIC), keys->secret))
        return MX_OK;
    return mx_fail(error, MX_CORRUPT, NULL, "line 1: expected \"" MAGIC "\" and 64 hexadecimal digits, got \"%.40s\"", line);
}

mx_status mx_keys_parse(const char *text, size_t bytes, mx_keys *keys, mx_error *error)
{
    char line[LINE_MAX_BYTES];
    const char *end;
    mx_status status = MX_OK;
    size_t n;
    int number = 0;

    memset(keys, 0, sizeof(*keys));
    if (bytes > MX_KEYS_BYTES_MAX)
        return mx_fail(error, MX_TOO_LARGE, NULL, "expected a file of at most %d bytes, got %zu", MX_KEYS_BYTES_MAX, bytes);
    if (bytes == 0)
        return take_first_line("", keys, error);
    for (; bytes > 0 && status == MX_OK; text += n, bytes -= n) {
        end = memchr(text, '\n', bytes);
        n = end ? (size_t)(end - text) + 1 : bytes;
        number++;
        if (!end || n > sizeof(line) || memchr(text, '\0', n)) {
            status = mx_fail(error, MX_CORRUPT, NULL, "line %d: expected at most %zu bytes without U+0000 and then a newline, got %zu "
                             "bytes", number, sizeof(line) - 1, n);
            break;
        }
        memcpy(line, text, n - 1);
        line[n - 1] = '\0';
        status = number == 1 ? take_first_line(line, keys, error) : take_line(line, number, keys, error);
    }
    if (status != MX_OK)
        mx_keys_free(keys);
    return status;
}

void mx_keys_free(mx_keys *keys)
{
    free(keys->keys);
    memset(keys, 0, sizeof(*keys));
}

static int print_limit(char *text, size_t size, int limit)
{
    return limit < 0 ? snprintf(text, size, " -") : snprintf(text, size, " %d", limit);
}

char *mx_keys_text(const mx_keys *keys, size_t *bytes)
{
    size_t size = (keys->n + 1) * LINE_MAX_BYTES, used;
    char *text = malloc(size), hex[2 * HASH_BYTES + 1];

    if (!text)
        return NULL;
    sodium_bin2hex(hex, sizeof(hex), keys->secret, sizeof(keys->secret));
    used = (size_t)snprintf(text, size, MAGIC "%s\n", hex);
    for (size_t i = 0; i < keys->n; i++) {
        const mx_key *key = &keys->keys[i];

        used += (size_t)snprintf(text + used, size - used, "%s %s %s", key->id, key->name, key->created);
        used += (size_t)print_limit(text + used, size - used, key->requests);
        used += (size_t)print_limit(text + used, size - used, key->tokens_per_minute);
        sodium_bin2hex(hex, sizeof(hex), key->hash, sizeof(key->hash));
        used += (size_t)snprintf(text + used, size - used, " %s\n", hex);
    }
    *bytes = used;
    return text;
}

/* ---- Keys ---- */

mx_status mx_keys_new(mx_keys *keys, mx_error *error)
{
    memset(keys, 0, sizeof(*keys));
    if (sodium_init() < 0)
        return mx_fail(error, MX_INTERNAL, NULL, "libsodium finds no randomness");
    randombytes_buf(keys->secret, sizeof(keys->secret));
    return MX_OK;
}

static bool hash_of(const mx_keys *keys, const char *text, size_t bytes, unsigned char hash[HASH_BYTES])
{
    return crypto_generichash(hash, HASH_BYTES, (const unsigned char *)text, bytes, keys->secret, sizeof(keys->secret)) == 0;
}

mx_status mx_keys_add(mx_keys *keys, const char *name, int requests, int tokens_per_minute, char text[MX_KEY_BYTES + 1],
                      mx_error *error)
{
    mx_key key = {.requests = requests, .tokens_per_minute = tokens_per_minute};
    unsigned char bytes[32], id[6];
    time_t now = time(NULL);
    mx_status status;
    struct tm utc;

    if (sodium_init() < 0 || !gmtime_r(&now, &utc))
        return mx_fail(error, MX_INTERNAL, NULL, "libsodium finds no randomness, or there is no clock");
    randombytes_buf(id, sizeof(id));
    sodium_bin2hex(key.id, sizeof(key.id), id, sizeof(id));
    if (!take_name(*name ? name : key.id, &key))
        return mx_fail(error, MX_INVALID, "name", "expected a name of 1 to 32 of A-Z a-z 0-9 . _ - @, got \"%.40s\"", name);
    strftime(key.created, sizeof(key.created), "%Y-%m-%dT%H:%M:%SZ", &utc);
    randombytes_buf(bytes, sizeof(bytes));
    memcpy(text, "mx-", 3);
    sodium_bin2base64(text + 3, MX_KEY_BYTES + 1 - 3, bytes, sizeof(bytes), sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    sodium_memzero(bytes, sizeof(bytes));
    if (!hash_of(keys, text, MX_KEY_BYTES, key.hash))
        return mx_fail(error, MX_INTERNAL, NULL, "libsodium makes no hash");
    status = append(keys, &key, error);
    if (status != MX_OK)
        sodium_memzero(text, MX_KEY_BYTES);
    return status;
}

mx_status mx_keys_remove(mx_keys *keys, const char *name, mx_error *error)
{
    const mx_key *key = named(keys, name);
    size_t i;

    if (!key)
        return mx_fail(error, MX_NOT_FOUND, "name", "there is no key %.40s", name);
    i = (size_t)(key - keys->keys);
    memmove(&keys->keys[i], &keys->keys[i + 1], (keys->n - i - 1) * sizeof(keys->keys[0]));
    keys->n--;
    return MX_OK;
}

const mx_key *mx_keys_find(const mx_keys *keys, const char *text, size_t bytes)
{
    unsigned char hash[HASH_BYTES];
    const mx_key *found = NULL;

    if (!hash_of(keys, text, bytes, hash))
        return NULL;
    for (size_t i = 0; i < keys->n; i++) {
        if (sodium_memcmp(keys->keys[i].hash, hash, sizeof(hash)) == 0)
            found = &keys->keys[i];
    }
    return found;
}

void mx_key_tenant(const mx_key *key, char tenant[MX_KEY_TENANT_BYTES])
{
    snprintf(tenant, MX_KEY_TENANT_BYTES, "key:%s", key->id);
}
