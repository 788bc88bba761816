/*
 * fuzz_keys.c: a hostile file of API keys.
 *
 * The first byte says whether a good first line and a good key go before the rest. What is taken for a file of keys comes back as text
 * that means the same, holds no key twice, and loses one when that is removed; what is not has an error of one line.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../core/server/keys.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SECRET "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define FIRST_LINE "mixtral-keys 1 " SECRET "\n"
#define LINE "0123456789ab alice 2026-01-31T23:59:59Z 2 - " SECRET "\n"

/* fuzzing is for findings: an expectation that does not hold is one */
#define expect(holds) ((holds) ? (void)0 : fail(__LINE__, #holds))

static void fail(int line, const char *what)
{
    fprintf(stderr, "line %d: expected %s\n", line, what);
    abort();
}

static void check_taken(mx_keys *keys)
{
    mx_keys again;
    mx_error error;
    size_t bytes, bytes_again;
    char *text = mx_keys_text(keys, &bytes), *text_again;

    expect(text && keys->n <= MX_KEYS_MAX && bytes <= MX_KEYS_BYTES_MAX);
    expect(mx_keys_parse(text, bytes, &again, &error) == MX_OK && again.n == keys->n);
    text_again = mx_keys_text(&again, &bytes_again);
    expect(text_again && bytes_again == bytes && memcmp(text, text_again, bytes) == 0);
    expect(!mx_keys_find(keys, text, bytes));
    free(text_again);
    mx_keys_free(&again);
    while (keys->n > 0) {
        char name[sizeof(keys->keys[0].name)];
        size_t n = keys->n;

        memcpy(name, keys->keys[n / 2].name, sizeof(name));
        expect(mx_keys_remove(keys, name, &error) == MX_OK && keys->n == n - 1);
        expect(mx_keys_remove(keys, name, &error) == MX_NOT_FOUND);
    }
    free(text);
}

static void check(const char *text, size_t bytes)
{
    mx_keys keys;
    mx_error error;

    if (mx_keys_parse(text, bytes, &keys, &error) == MX_OK)
        check_taken(&keys);
    else
        expect(error.text[0] && !strchr(error.text, '\n') && !keys.keys && keys.n == 0);
    mx_keys_free(&keys);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const starts[] = {"", FIRST_LINE, FIRST_LINE LINE};
    const char *start;
    char *text;

    if (size == 0)
        return 0;
    start = starts[data[0] % 3];
    text = malloc(strlen(start) + size);
    expect(text);
    memcpy(text, start, strlen(start));
    memcpy(text + strlen(start), data + 1, size - 1);
    check(text, strlen(start) + size - 1);
    free(text);
    return 0;
}
