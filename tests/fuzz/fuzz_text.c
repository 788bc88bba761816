/*
 * fuzz_text.c: hostile text through what handles text: tokenizers, chunks, chat templates, and output with stop strings.
 *
 * The first byte chooses the vocabulary, the second how the text is cut: into a stop string, an assistant's answer and the
 * rest. The vocabularies are fixed, so more can be expected than that nothing crashes: no control piece comes from text,
 * what is UTF-8 comes back as it was, an answer is UTF-8 without its stop string, and no message changes how a conversation
 * is built.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../core/engine/output.h"
#include "../../core/model/chat_template.h"
#include "../../core/model/chunks.h"
#include "../../core/model/tokenizer_internal.h"
#include "../unit/vocabularies.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { N_VOCABULARIES = 8 };

static struct {
    bool spm, round_trip; /* what is UTF-8 comes back: there are no pieces that a space follows */
    mx_gguf *gguf;
    mx_tokenizer *tokenizer;
    mx_chat_template *chat;
    size_t markers[4]; /* control pieces of a conversation of each kind, whatever is said in it */
} open_ones[N_VOCABULARIES];

/* fuzzing is for findings: an expectation that does not hold is one */
#define expect(holds) ((holds) ? (void)0 : fail(__LINE__, #holds))

static void fail(int line, const char *what)
{
    fprintf(stderr, "line %d: expected %s\n", line, what);
    abort();
}

static bool is_utf8(const char *text, size_t n)
{
    const char *end = text + n;
    size_t length = 1;

    for (; text < end && length > 0; text += length)
        length = mx_utf8_length(text, end);
    return length > 0;
}

/* ---- Vocabularies ---------------------------------------------------------------------------------------------------- */

static void add_words(vocabulary *v, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        add_piece(v, words[i], T_NORMAL, -1 - (float)i);
}

static void make_vocabulary(vocabulary *v, int which)
{
    static const char *const pre[] = {"default", "gpt-2", "llama-bpe", "smollm", "qwen2"};
    static const char *const words[] = {"\xe2\x96\x81",  "a",  "aa", "aaaa", "in", "[",  "[I", "]",    "ab", "</", "s>",
                                        "\xc3\xa9",      "th", "er", "<|",   "|>", "im", "_"};
    static const char *const merges[] = {"a a", "aa aa", "i n", "< |", "| >", "i m", "t h", "e r", "1 1", "\xc3\x83 \xc2\xa9"};
    static const char *const merged[] = {"aa", "aaaa", "in", "<|", "|>", "im", "th", "er", "11", "\xc3\x83\xc2\xa9"};
    static const char *const markers[] = {"<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
                                          "<|eot_id|>"};

    if (which < 5) {
        begin_bpe(v, pre[which]);
        add_words(v, merged, sizeof merged / sizeof merged[0]);
        v->merges = merges;
        v->n_merges = sizeof merges / sizeof merges[0];
        set_number(v, "tokenizer.ggml.eos_token_id", (uint32_t)v->n_pieces);
        add_piece(v, "</s>", T_CONTROL, 0);
    } else {
        begin_spm(v);
        add_words(v, words, sizeof words / sizeof words[0]);
        set_bool(v, "tokenizer.ggml.add_space_prefix", which != 6);
    }
    for (size_t i = 0; i < sizeof markers / sizeof markers[0]; i++)
        add_piece(v, markers[i], T_CONTROL, 0);
    if (which == 7) {
        add_piece(v, "<t>", T_USER_DEFINED, 0);
        add_piece(v, "\xc2\xa7", T_CONTROL, 0); /* a character that is a control piece */
        add_piece(v, "\xe2\x96\x81\xe2\x96\x81", T_NORMAL, 0);
    }
}

/* ---- Tokens ---------------------------------------------------------------------------------------------------------- */

static void check_tokens(int which, const char *text, size_t n)
{
    const mx_tokenizer *t = open_ones[which].tokenizer;
    mx_tokens ids = {0}, lengths = {0};
    mx_token_sink sink = {.ids = &ids, .lengths = &lengths};
    bool valid = is_utf8(text, n);
    size_t total = 0, n_back;
    mx_error error;
    char *back;

    expect((valid ? mx_tokenize_lengths(t, text, n, 0, NULL, &sink, &error)
                  : mx_tokenize(t, text, n, 0, NULL, &ids, &error)) == MX_OK);
    for (size_t i = 0; i < ids.count; i++)
        expect(ids.ids[i] >= 0 && ids.ids[i] < mx_tokenizer_n_vocab(t) && !mx_token_is_control(t, ids.ids[i]));
    for (size_t i = 0; i < lengths.count; i++)
        total += (size_t)lengths.ids[i];
    expect(total <= n);
    expect(mx_detokenize(t, ids.ids, ids.count, false, &back, &n_back, &error) == MX_OK);
    if (valid && open_ones[which].round_trip && !(open_ones[which].spm && memmem(text, n, "\xe2\x96\x81", 3)))
        expect(n_back == n && memcmp(back, text, n) == 0);
    free(back);
    ids.count = 0;
    expect(mx_tokenize(t, text, n, MX_TOKENIZE_SPECIAL | MX_TOKENIZE_NO_PREFIX, NULL, &ids, &error) == MX_OK);
    for (size_t i = 0; i < ids.count; i++)
        expect(ids.ids[i] >= 0 && ids.ids[i] < mx_tokenizer_n_vocab(t));
    mx_tokens_free(&ids);
    mx_tokens_free(&lengths);
}

static void check_chunks(int which, const char *text, size_t n, int size, int overlap)
{
    mx_chunk *chunks;
    size_t count, end = 0;
    mx_error error;
    mx_status status = mx_chunks(open_ones[which].tokenizer, text, n, size, overlap, NULL, &chunks, &count, &error);

    expect(status == (is_utf8(text, n) ? MX_OK : MX_INVALID));
    if (status != MX_OK)
        return;
    for (size_t i = 0; i < count; i++) { /* whole characters, in order, without a gap */
        expect(chunks[i].start <= end && chunks[i].start < chunks[i].end && chunks[i].end > end);
        expect(i == 0 || chunks[i].start > chunks[i - 1].start);
        expect(is_utf8(text + chunks[i].start, chunks[i].end - chunks[i].start));
        /* more are the vocabulary's space and one token, or one character */
        expect(chunks[i].tokens <= (size_t)size || chunks[i].tokens == 2 ||
               mx_utf8_length(text + chunks[i].start, text + n) == chunks[i].end - chunks[i].start);
        end = chunks[i].end;
    }
    expect(end == n);
    free(chunks);
}

/* ---- Conversations --------------------------------------------------------------------------------------------------- */

/* The control pieces of a conversation in which only `said` varies; what they are between is text. */
static size_t count_markers(int which, mx_template_kind kind, mx_str said, mx_str answer)
{
    const mx_message messages[] = {{MX_ROLE_SYSTEM, said.data, said.bytes},
                                   {MX_ROLE_USER, said.data, said.bytes},
                                   {MX_ROLE_ASSISTANT, answer.data, answer.bytes},
                                   {MX_ROLE_USER, said.data, said.bytes}};
    size_t count = 0;
    uint8_t *classes;
    mx_tokens ids;
    mx_error error;

    expect(mx_chat_render(open_ones[which].chat, kind, messages, 4, NULL, &ids, &classes, &error) == MX_OK);
    for (size_t i = 0; i < ids.count; i++) {
        bool control = mx_token_is_control(open_ones[which].tokenizer, ids.ids[i]);

        expect(classes[i] == 0 || (classes[i] == 1 && !control));
        count += control;
    }
    mx_tokens_free(&ids);
    free(classes);
    return count;
}

static void check_templates(int which, mx_str said, mx_str answer)
{
    for (int kind = MX_TEMPLATE_MIXTRAL; kind <= MX_TEMPLATE_LLAMA3; kind++)
        expect(count_markers(which, (mx_template_kind)kind, said, answer) == open_ones[which].markers[kind]);
}

/* ---- Output ---------------------------------------------------------------------------------------------------------- */

/* The tokens of the text, as if they had been generated. */
static void check_output(int which, const char *text, size_t n, const char *const *stop, int n_stop)
{
    mx_tokens ids = {0};
    mx_piece next = {0};
    mx_output *output;
    mx_error error;
    size_t total, sent = 0;
    const char *all;

    if (mx_output_open(open_ones[which].tokenizer, stop, n_stop, true, &output, &error) != MX_OK) {
        expect(error.status == MX_INVALID);
        return;
    }
    expect(mx_tokenize(open_ones[which].tokenizer, text, n, MX_TOKENIZE_SPECIAL, NULL, &ids, &error) == MX_OK);
    for (size_t i = 0; i < ids.count && !next.stopped; i++) {
        expect(mx_output_add(output, ids.ids[i], &next, &error) == MX_OK);
        all = mx_output_text(output, &total);
        expect(next.bytes == 0 || next.text == all + sent);
        expect(is_utf8(next.text, next.bytes));
        sent += next.bytes;
        expect(sent <= total);
    }
    if (!next.stopped) {
        expect(mx_output_finish(output, &next, &error) == MX_OK);
        sent += next.bytes;
    }
    all = mx_output_text(output, &total);
    expect(sent == total && strlen(all) == total && is_utf8(all, total));
    for (int i = 0; i < n_stop; i++)
        expect(!strstr(all, stop[i]));
    mx_output_close(output);
    mx_tokens_free(&ids);
}

/* ---- The whole ------------------------------------------------------------------------------------------------------- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char stop[32], *text; /* a copy of its own size, so that a read past it is seen */
    size_t n_stop, n_answer;
    int which;

    if (size < 2)
        return 0;
    which = data[0] % N_VOCABULARIES;
    n_stop = data[1] % 16;
    n_answer = data[1] / 16;
    data += 2;
    size -= 2;
    n_stop = n_stop < size ? n_stop : size;
    memcpy(stop, data, n_stop);
    stop[n_stop] = '\0';
    data += n_stop;
    size -= n_stop;
    text = malloc(size ? size : 1);
    expect(text != NULL);
    memcpy(text, data, size);
    n_answer = n_answer < size ? n_answer : size;

    check_tokens(which, text, size);
    check_chunks(which, text, size, 1 + (int)n_answer, (int)(n_stop <= n_answer ? n_stop : 0));
    check_templates(which, (mx_str){text + n_answer, size - n_answer}, (mx_str){text, n_answer});
    check_output(which, text, size, (const char *const[]){stop, "END"}, 2);
    check_output(which, text, size, NULL, 0);
    free(text);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static vocabulary v;
    mx_error error;
    (void)argc;
    (void)argv;

    for (int i = 0; i < N_VOCABULARIES; i++) {
        open_ones[i].spm = i >= 5;
        open_ones[i].round_trip = i != 7;
        make_vocabulary(&v, i);
        expect(open_vocabulary(&v, &open_ones[i].gguf, &error) == MX_OK);
        expect(mx_tokenizer_open(open_ones[i].gguf, &open_ones[i].tokenizer, &error) == MX_OK);
        expect(mx_chat_template_open(open_ones[i].gguf, open_ones[i].tokenizer, &open_ones[i].chat, &error) == MX_OK);
        for (int kind = MX_TEMPLATE_MIXTRAL; kind <= MX_TEMPLATE_LLAMA3; kind++)
            open_ones[i].markers[kind] = count_markers(i, (mx_template_kind)kind, (mx_str){"a", 1}, (mx_str){"a", 1});
    }
    return 0;
}
