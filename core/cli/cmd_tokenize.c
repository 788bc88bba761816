/*
 * cmd_tokenize.c: `mixtral tokenize MODEL TEXT`: a text's tokens, one a line: id, tab, piece as the file has it.
 *
 * `mixtral tokenize MODEL --lines` reads texts from standard input, one a line, in which \n \t \r and \\ stand for
 * what they mean, and prints each one's ids in a line. --bos puts the vocabulary's BOS first; --special takes
 * special pieces in a text (<s>, <|im_end|>) for what they are: else they are text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../model/tokenizer.h"
#include "cli.h"

typedef struct {
    const char *model, *text;
    bool lines, bos;
    int flags; /* MX_TOKENIZE_* */
} arguments;

static const struct {
    char letter, character;
} escapes[] = {{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'\\', '\\'}};

#define N_ESCAPES (sizeof escapes / sizeof escapes[0])

static bool parse(int argc, char **argv, arguments *a)
{
    bool options = true;

    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0)
            options = false;
        else if (options && strcmp(argv[i], "--lines") == 0)
            a->lines = true;
        else if (options && strcmp(argv[i], "--bos") == 0)
            a->bos = true;
        else if (options && strcmp(argv[i], "--special") == 0)
            a->flags |= MX_TOKENIZE_SPECIAL;
        else if (options && strncmp(argv[i], "--", 2) == 0)
            return false;
        else if (!a->model)
            a->model = argv[i];
        else if (!a->text)
            a->text = argv[i];
        else
            return false;
    }
    return a->model && a->lines == !a->text;
}

/* In place. *bytes becomes the length; false if a backslash stands before anything else than the four. */
static bool unescape(char *text, size_t *bytes)
{
    size_t n = 0;

    for (size_t i = 0; i < *bytes; i++) {
        size_t e = 0;

        if (text[i] != '\\') {
            text[n++] = text[i];
            continue;
        }
        if (++i == *bytes)
            return false;
        while (e < N_ESCAPES && escapes[e].letter != text[i])
            e++;
        if (e == N_ESCAPES)
            return false;
        text[n++] = escapes[e].character;
    }
    *bytes = n;
    return true;
}

static void print_escaped(mx_str text)
{
    for (size_t i = 0; i < text.bytes; i++) {
        size_t e = 0;

        while (e < N_ESCAPES && escapes[e].character != text.data[i])
            e++;
        if (e < N_ESCAPES)
            printf("\\%c", escapes[e].letter);
        else
            putchar(text.data[i]);
    }
}

static mx_status tokenize(const mx_tokenizer *tokenizer, const arguments *a, const char *text, size_t bytes,
                          mx_tokens *tokens, mx_error *error)
{
    mx_status status = MX_OK;

    tokens->count = 0;
    if (a->bos && mx_tokenizer_bos(tokenizer) >= 0)
        status = mx_tokens_push(tokens, mx_tokenizer_bos(tokenizer), error);
    if (status == MX_OK)
        status = mx_tokenize(tokenizer, text, bytes, a->flags, NULL, tokens, error);
    return status;
}

static int tokenize_text(const mx_tokenizer *tokenizer, const arguments *a)
{
    mx_tokens tokens = {0};
    mx_error error;
    int failed = 0;

    if (tokenize(tokenizer, a, a->text, strlen(a->text), &tokens, &error) != MX_OK)
        failed = mx_cli_fail("%s", error.text);
    for (size_t i = 0; i < tokens.count && !failed; i++) {
        printf("%d\t", tokens.ids[i]);
        print_escaped(mx_token_piece(tokenizer, tokens.ids[i]));
        putchar('\n');
    }
    mx_tokens_free(&tokens);
    return failed;
}

static int tokenize_lines(const mx_tokenizer *tokenizer, const arguments *a)
{
    mx_tokens tokens = {0};
    mx_error error;
    char *line = NULL;
    size_t size = 0, number = 0;
    ssize_t length;
    int failed = 0;

    while (!failed && (length = getline(&line, &size, stdin)) >= 0) {
        size_t bytes = (size_t)length;

        number++;
        if (bytes > 0 && line[bytes - 1] == '\n')
            bytes--;
        if (!unescape(line, &bytes)) {
            failed = mx_cli_fail("line %zu: expected \\n, \\t, \\r or \\\\ where there is a backslash", number);
        } else if (tokenize(tokenizer, a, line, bytes, &tokens, &error) != MX_OK) {
            failed = mx_cli_fail("line %zu: %s", number, error.text);
        } else {
            for (size_t i = 0; i < tokens.count; i++)
                printf(i > 0 ? " %d" : "%d", tokens.ids[i]);
            putchar('\n');
        }
    }
    if (!failed && ferror(stdin))
        failed = mx_cli_fail("cannot read standard input");
    free(line);
    mx_tokens_free(&tokens);
    return failed;
}

int mx_cmd_tokenize(int argc, char **argv)
{
    arguments a = {0};
    mx_gguf *gguf = NULL;
    mx_tokenizer *tokenizer = NULL;
    mx_error error;
    int failed;

    if (!parse(argc, argv, &a))
        return mx_cli_fail("usage: mixtral tokenize MODEL (TEXT | --lines) [--bos] [--special]");
    if (mx_gguf_open(a.model, &gguf, &error) != MX_OK || mx_tokenizer_open(gguf, &tokenizer, &error) != MX_OK)
        failed = mx_cli_fail("%s", error.text);
    else if (a.lines)
        failed = tokenize_lines(tokenizer, &a);
    else
        failed = tokenize_text(tokenizer, &a);
    if (!failed && fflush(stdout) != 0)
        failed = mx_cli_fail("cannot write to standard output");
    mx_tokenizer_close(tokenizer);
    mx_gguf_close(gguf);
    return failed;
}
