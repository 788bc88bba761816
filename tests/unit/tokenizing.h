/*
 * tokenizing.h: a tokenizer under test, opened from a vocabulary that the test has made up.
 *
 * What is expected of a text is written as the pieces themselves, with spaces between them as they are stored (expect), or with
 * bars between what they stand for (expect_words).
 */
#ifndef MX_TESTS_TOKENIZING_H
#define MX_TESTS_TOKENIZING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "model/tokenizer.h"
#include "vocabularies.h"

#define SP "\xe2\x96\x81" /* SentencePiece's space */

static vocabulary v;
static mx_gguf *gguf;
static mx_tokenizer *tokenizer;

static inline void close_tokenizer(void)
{
    mx_tokenizer_close(tokenizer);
    mx_gguf_close(gguf);
    tokenizer = NULL;
    gguf = NULL;
}

/* Opens `v`; the one before it goes. */
static inline void open_tokenizer(void)
{
    mx_error error;

    close_tokenizer();
    if (open_vocabulary(&v, &gguf, &error) != MX_OK || mx_tokenizer_open(gguf, &tokenizer, &error) != MX_OK)
        fail_msg("%s", error.text);
}

static inline void refused(mx_status status, const char *field, const char *text)
{
    mx_tokenizer *none = (mx_tokenizer *)&v;
    mx_gguf *file;
    mx_error error;

    assert_int_equal(open_vocabulary(&v, &file, &error), MX_OK);
    assert_int_equal(mx_tokenizer_open(file, &none, &error), status);
    assert_null(none);
    mx_gguf_close(file);
    if (!strstr(error.text, text) || strcmp(error.field, field) != 0)
        fail_msg("expected [%s] %s\n     got [%s] %s", field, text, error.field, error.text);
}

static inline mx_tokens tokenise(const char *text, size_t n, int flags)
{
    mx_tokens ids = {0};
    mx_error error;

    if (mx_tokenize(tokenizer, text, n, flags, NULL, &ids, &error) != MX_OK)
        fail_msg("%s", error.text);
    return ids;
}

static inline void expect_bytes(const char *text, size_t n, int flags, const char *pieces)
{
    mx_tokens ids = tokenise(text, n, flags);
    char got[2048] = "";

    for (size_t i = 0; i < ids.count; i++) {
        mx_str stored = mx_token_piece(tokenizer, ids.ids[i]);

        strcat(got, i ? " " : "");
        strncat(got, stored.data, stored.bytes);
    }
    mx_tokens_free(&ids);
    assert_string_equal(got, pieces);
}

static inline void expect(const char *text, int flags, const char *pieces)
{
    expect_bytes(text, strlen(text), flags, pieces);
}

static inline void expect_words(const char *text, const char *words)
{
    mx_tokens ids = tokenise(text, strlen(text), 0);
    char got[2048] = "";

    for (size_t i = 0; i < ids.count; i++) {
        size_t at = strlen(strcat(got, i ? "|" : ""));

        got[at + mx_token_text(tokenizer, ids.ids[i], false, got + at, sizeof got - at - 1)] = '\0';
    }
    mx_tokens_free(&ids);
    if (strcmp(got, words) != 0)
        fail_msg("[%s]: expected [%s], got [%s]", text, words, got);
}

/* Tokenised and put together again it is what it was. */
static inline void expect_round_trip(const char *text, size_t n)
{
    mx_tokens ids = tokenise(text, n, 0);
    size_t n_back;
    char *back;

    assert_int_equal(mx_detokenize(tokenizer, ids.ids, ids.count, false, &back, &n_back, NULL), MX_OK);
    assert_int_equal(n_back, n);
    assert_memory_equal(back, text, n);
    assert_int_equal(back[n], '\0');
    free(back);
    mx_tokens_free(&ids);
}

static uint64_t random_state = 88172645463325252u;

static inline unsigned rnd(unsigned below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 33) % below;
}

#endif
