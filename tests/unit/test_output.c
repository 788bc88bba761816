/*
 * test_output.c: pieces of text from ids: whole characters, replacement of bad bytes, stop strings,
 * and a leading space.
 *
 * The vocabulary is <unk> <s> </s>, the 256 byte pieces (id 3 + byte), and the words below.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/engine/output.h"
#include "../../core/model/gguf_write.h"

#define BYTES 3
#define WORDS (BYTES + 256)
#define EOS 2

static const char *const words[] = {
    "\xe2\x96\x81Hello", "\xe2\x96\x81world", "!",    "END",
    "\xc3\xa9\xc3\xa8",  "<|im_end|>",        "\n\n", "User:",
    "\xe2\x96\x81",
};
enum { HELLO = WORDS, WORLD, BANG, END, ACCENTS, IM_END, NEWLINES, USER, SPACE };
#define N_VOCAB (WORDS + (int)(sizeof words / sizeof *words))

static mx_gguf *gguf;
static mx_tokenizer *tokenizer;

static int open_vocabulary(void **state)
{
    static char byte_names[256][8];
    mx_str pieces[N_VOCAB] = {{"<unk>", 5}, {"<s>", 3}, {"</s>", 4}};
    double types[N_VOCAB] = {2, 3, 3}, scores[N_VOCAB] = {0};
    char path[] = "/tmp/mixtral-output-XXXXXX";
    mx_gguf_writer *writer;
    mx_error error = {0};
    (void)state;

    for (int i = 0; i < 256; i++) {
        snprintf(byte_names[i], sizeof byte_names[i], "<0x%02X>", i);
        pieces[BYTES + i] = (mx_str){byte_names[i], 6};
        types[BYTES + i] = 6;
    }
    for (int i = WORDS; i < N_VOCAB; i++) {
        pieces[i] = (mx_str){words[i - WORDS], strlen(words[i - WORDS])};
        types[i] = 1;
        scores[i] = -i;
    }
    int fd = mkstemp(path);
    if (fd < 0 || close(fd) != 0 || mx_gguf_writer_open(path, &writer, &error) != MX_OK)
        return -1;
    mx_gguf_put_text(writer, "general.architecture", "llama");
    mx_gguf_put_text(writer, "tokenizer.ggml.model", "llama");
    mx_gguf_put_strings(writer, "tokenizer.ggml.tokens", pieces, N_VOCAB);
    mx_gguf_put_numbers(writer, "tokenizer.ggml.scores", MX_GGUF_FLOAT32, scores, N_VOCAB);
    mx_gguf_put_numbers(writer, "tokenizer.ggml.token_type", MX_GGUF_INT32, types, N_VOCAB);
    mx_gguf_put_int(writer, "tokenizer.ggml.bos_token_id", MX_GGUF_UINT32, 1);
    mx_gguf_put_int(writer, "tokenizer.ggml.eos_token_id", MX_GGUF_UINT32, EOS);
    mx_status status = mx_gguf_writer_commit(writer, &error);
    mx_gguf_writer_close(writer);
    if (status == MX_OK)
        status = mx_gguf_open(path, &gguf, &error);
    if (status == MX_OK)
        status = mx_tokenizer_open(gguf, &tokenizer, &error);
    unlink(path);
    if (status != MX_OK)
        print_error("%s\n", error.text);
    return status == MX_OK ? 0 : -1;
}

static int close_vocabulary(void **state)
{
    (void)state;
    mx_tokenizer_close(tokenizer);
    mx_gguf_close(gguf);
    return 0;
}

/* An output under test, and its pieces with '|' after each that is not empty. */
typedef struct {
    mx_output *output;
    char pieces[512];
    bool stopped;
} run;

static void begin_with(run *r, const char *const *stop, int n_stop, bool strip_space)
{
    mx_error error;

    *r = (run){0};
    assert_int_equal(mx_output_open(tokenizer, stop, n_stop, strip_space, &r->output, &error),
                     MX_OK);
}

static void begin(run *r)
{
    begin_with(r, NULL, 0, false);
}

static void note(run *r, const mx_piece *piece)
{
    if (piece->bytes > 0) {
        strncat(r->pieces, piece->text, piece->bytes);
        strcat(r->pieces, "|");
    }
    r->stopped = piece->stopped;
}

static void add(run *r, int32_t token)
{
    mx_piece piece;
    mx_error error;

    assert_false(r->stopped);
    assert_int_equal(mx_output_add(r->output, token, &piece, &error), MX_OK);
    note(r, &piece);
}

static void add_bytes(run *r, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n && !r->stopped; i++)
        add(r, BYTES + (uint8_t)bytes[i]);
}

/* Ends it, and checks its pieces and that they are its text. */
static void expect(run *r, const char *pieces)
{
    char text[512] = "";
    mx_piece piece;
    mx_error error;
    size_t bytes;

    if (!r->stopped) {
        assert_int_equal(mx_output_finish(r->output, &piece, &error), MX_OK);
        note(r, &piece);
    }
    assert_string_equal(r->pieces, pieces);
    for (const char *p = pieces; *p; p++)
        if (*p != '|')
            strncat(text, p, 1);
    assert_string_equal(mx_output_text(r->output, &bytes), text);
    assert_int_equal(bytes, strlen(text));
    mx_output_close(r->output);
}

/* ---- Characters -------------------------------------------------------------------------------*/

static void tokens_become_pieces(void **state)
{
    run r;
    (void)state;

    begin(&r);
    add(&r, HELLO);
    add(&r, WORLD);
    add(&r, BANG);
    expect(&r, " Hello| world|!|");
    begin(&r);
    expect(&r, "");
    mx_output_close(NULL);
}

static void characters_are_held_until_whole(void **state)
{
    run r;
    (void)state;

    begin(&r);
    add_bytes(&r, "\xf0\x9f\x98", 3);
    assert_string_equal(r.pieces, "");
    add_bytes(&r, "\x80", 1);
    assert_string_equal(r.pieces, "\xf0\x9f\x98\x80|");
    add_bytes(&r, "\xc3", 1);
    add_bytes(&r, "\xa9", 1);
    add(&r, ACCENTS);
    expect(&r, "\xf0\x9f\x98\x80|\xc3\xa9|\xc3\xa9\xc3\xa8|");
}

#define FFFD "\xef\xbf\xbd"

static void bad_bytes_are_replaced(void **state)
{
    static const struct {
        const char *bytes, *pieces;
    } cases[] = {
        {"a\x80z", "a|" FFFD "|z|"},
        {"\xc0\xaf", FFFD "|" FFFD "|"},          /* overlong */
        {"\xe0\x80\xaf", FFFD FFFD "|" FFFD "|"}, /* overlong: the second byte is none */
        {"\xed\xa0\x80", FFFD FFFD "|" FFFD "|"}, /* a surrogate */
        {"\xf4\x90\x80\x80", FFFD FFFD "|" FFFD "|" FFFD "|"}, /* past U+10FFFF */
        {"\xf5", FFFD "|"},
        {"\xe2\x82q", FFFD "q|"}, /* one for the maximal part */
        {"\xf0\x9f\xc3\xa9", FFFD "|\xc3\xa9|"},
        {"\xe2\x82", FFFD "|"}, /* the end */
        {"\xe2\xff", FFFD FFFD "|"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run r;
        begin(&r);
        add_bytes(&r, cases[i].bytes, strlen(cases[i].bytes));
        expect(&r, cases[i].pieces);
    }
}

static void nul_is_dropped(void **state)
{
    run r;
    (void)state;

    begin(&r);
    add_bytes(&r, "a\0b\xe2\0c", 6);
    expect(&r, "a|b|" FFFD "|c|");
}

static void end_of_turn_is_no_text(void **state)
{
    run r;
    (void)state;

    begin(&r);
    add(&r, HELLO);
    add(&r, EOS);
    add(&r, IM_END);
    add(&r, BANG);
    expect(&r, " Hello|!|");
}

static void leading_space(void **state)
{
    run r;
    (void)state;

    begin_with(&r, NULL, 0, true);
    add(&r, HELLO);
    add(&r, HELLO);
    expect(&r, "Hello| Hello|");
    begin_with(&r, NULL, 0, true); /* one space alone is taken off */
    add(&r, SPACE);
    add(&r, HELLO);
    expect(&r, " Hello|");
    begin_with(&r, NULL, 0, true);
    add(&r, EOS);
    add(&r, BANG);
    add(&r, HELLO);
    expect(&r, "!| Hello|");
}

/* ---- Stop strings -----------------------------------------------------------------------------*/

static void stop_spans_tokens_and_never_leaks(void **state)
{
    static const char *const stop[] = {"\n\nUser:"};
    run r;
    (void)state;

    begin_with(&r, stop, 1, false);
    add(&r, HELLO);
    add(&r, NEWLINES);
    assert_string_equal(r.pieces, " Hello|");
    add_bytes(&r, "Us", 2);
    assert_string_equal(r.pieces, " Hello|");
    add_bytes(&r, "er", 2);
    add_bytes(&r, ":", 1);
    assert_true(r.stopped);
    expect(&r, " Hello|");

    begin_with(&r, stop, 1, false); /* a beginning that comes to nothing */
    add(&r, NEWLINES);
    add_bytes(&r, "Use", 3);
    assert_string_equal(r.pieces, "");
    add(&r, BANG);
    expect(&r, "\n\nUse!|");

    begin_with(&r, stop, 1, false); /* or is left at the end */
    add(&r, BANG);
    add(&r, NEWLINES);
    expect(&r, "!|\n\n|");
}

static void stop_inside_a_token(void **state)
{
    static const char *const stop[] = {"l", "Hel"};
    run r;
    (void)state;

    begin_with(&r, stop, 1, false);
    add(&r, HELLO);
    assert_true(r.stopped);
    assert_ptr_equal(mx_output_stopped_by(r.output), stop[0]);
    expect(&r, " He|");
    begin_with(&r, stop, 2, false); /* the one that begins first */
    add(&r, HELLO);
    assert_ptr_equal(mx_output_stopped_by(r.output), stop[1]);
    expect(&r, " |");
}

static void stop_that_overlaps_itself(void **state)
{
    static const char *const stop[] = {"aab", "abac"};
    run r;
    (void)state;

    begin_with(&r, stop, 1, false);
    add_bytes(&r, "aaaab", 5);
    assert_true(r.stopped);
    expect(&r, "a|a|");
    begin_with(&r, stop, 2, false);
    add_bytes(&r, "ababac", 6);
    assert_true(r.stopped);
    expect(&r, "ab|");
}

static void stop_of_many_bytes(void **state)
{
    static const char *const stop[] = {"\xc3\xa8!", FFFD};
    run r;
    (void)state;

    begin_with(&r, stop, 1, false);
    add(&r, ACCENTS);
    assert_string_equal(r.pieces, "\xc3\xa9|");
    add(&r, BANG);
    assert_true(r.stopped);
    expect(&r, "\xc3\xa9|");
    begin_with(&r, stop, 2, false); /* completed by the end itself */
    add(&r, BANG);
    add_bytes(&r, "\xf0", 1);
    expect(&r, "!|");
}

/* Bytes of `text` that may be given out: all but the longest end that is the beginning of a stop
 * string. */
static size_t safe_bytes(const char *text, const char *const *stop, int n_stop)
{
    size_t n = strlen(text);

    for (size_t at = 0; at < n; at++)
        for (int i = 0; i < n_stop; i++)
            if (strlen(stop[i]) > n - at && memcmp(stop[i], text + at, n - at) == 0)
                return at;
    return n;
}

/* Where the stop string that `text` ends with begins, the first if there are several; NULL if there
 * is none. */
static const char *stop_at_end(const char *text, const char *const *stop, int n_stop)
{
    for (const char *at = text; *at; at++)
        for (int i = 0; i < n_stop; i++)
            if (strcmp(at, stop[i]) == 0)
                return at;
    return NULL;
}

/* Random texts of few letters, letter by letter: what is given out is at every moment just what may
 * be. */
static void holds_back_what_it_must_and_no_more(void **state)
{
    static const char *const stop[] = {"###a", "#\xc3\xa9##", "bb#b", "ab#ab#b"};
    static const char *const letters[] = {"a", "b", "#", "#", "\xc3\xa9"};
    int stops = 0;
    (void)state;

    srand(1);
    for (int round = 0; round < 500; round++) {
        char text[128] = "", given[128] = "";
        mx_output *output;
        mx_piece piece = {0};
        mx_error error;
        size_t bytes;

        assert_int_equal(mx_output_open(tokenizer, stop, 4, false, &output, &error), MX_OK);
        for (int i = 0; i < 50 && !piece.stopped; i++) {
            const char *letter = letters[rand() % 5];
            for (const char *p = letter; *p; p++) {
                assert_int_equal(mx_output_add(output, BYTES + (uint8_t)*p, &piece, &error), MX_OK);
                strncat(given, piece.text, piece.bytes);
            }
            strcat(text, letter);
            const char *end = stop_at_end(text, stop, 4);
            assert_int_equal(piece.stopped, end != NULL);
            if (end) {
                assert_string_equal(mx_output_stopped_by(output), end);
                text[end - text] = '\0';
                stops++;
            } else {
                assert_null(mx_output_stopped_by(output));
                assert_int_equal(strlen(given), safe_bytes(text, stop, 4));
            }
            assert_memory_equal(given, text, strlen(given));
        }
        if (piece.stopped)
            assert_string_equal(given, text);
        assert_string_equal(mx_output_text(output, &bytes), text);
        mx_output_close(output);
    }
    assert_in_range(stops, 50, 499); /* the test meets both ends */
}

static void bad_stops_are_refused(void **state)
{
    static const char *const empty[] = {"x", ""}, *const bytes[] = {"\xc3"},
                             *const over[] = {"\xe0\x80\x80"};
    mx_output *output;
    mx_error error;
    (void)state;

    assert_int_equal(mx_output_open(tokenizer, empty, 2, false, &output, &error), MX_INVALID);
    assert_null(output);
    assert_string_equal(error.field, "stop");
    assert_non_null(strstr(error.text, "number 2"));
    assert_int_equal(mx_output_open(tokenizer, bytes, 1, false, &output, &error), MX_INVALID);
    assert_int_equal(mx_output_open(tokenizer, over, 1, false, &output, &error), MX_INVALID);
}

static void long_texts_grow(void **state)
{
    static const char *const stop[] = {"never"};
    mx_output *output;
    mx_piece piece;
    mx_error error;
    size_t bytes;
    (void)state;

    assert_int_equal(mx_output_open(tokenizer, stop, 1, true, &output, &error), MX_OK);
    for (int i = 0; i < 10000; i++)
        assert_int_equal(mx_output_add(output, HELLO, &piece, &error), MX_OK);
    mx_output_text(output, &bytes);
    assert_int_equal(bytes, 10000 * 6 - 1);
    mx_output_close(output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_become_pieces),
        cmocka_unit_test(characters_are_held_until_whole),
        cmocka_unit_test(bad_bytes_are_replaced),
        cmocka_unit_test(nul_is_dropped),
        cmocka_unit_test(end_of_turn_is_no_text),
        cmocka_unit_test(leading_space),
        cmocka_unit_test(stop_spans_tokens_and_never_leaks),
        cmocka_unit_test(stop_inside_a_token),
        cmocka_unit_test(stop_that_overlaps_itself),
        cmocka_unit_test(stop_of_many_bytes),
        cmocka_unit_test(holds_back_what_it_must_and_no_more),
        cmocka_unit_test(bad_stops_are_refused),
        cmocka_unit_test(long_texts_grow),
    };
    return cmocka_run_group_tests(tests, open_vocabulary, close_vocabulary);
}
