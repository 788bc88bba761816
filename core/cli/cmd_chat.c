/*
 * cmd_chat.c: `mixtral chat MODEL`: a conversation in the terminal, or one message a line from a pipe.
 *
 * Answers stream. Ctrl-C stops an answer (what was said of it stays in the conversation) and clears a line; Ctrl-D ends. From
 * a terminal an error leaves the conversation as it was before the message; from a pipe it is the end.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "cli.h"
#include "session.h"

#define DEFAULT_MAX_TOKENS 512

typedef struct { /* grows */
    char *data;
    size_t bytes, capacity;
} text_buffer;

typedef struct {
    mx_cli_session session;
    const json_t *options;
    json_t *messages;
    text_buffer input;  /* read, not yet taken */
    text_buffer answer; /* the one being made */
    bool terminal;      /* standard input is one */
} conversation;

static bool append(text_buffer *buffer, const char *text, size_t bytes)
{
    size_t capacity = buffer->capacity ? buffer->capacity : 256;
    char *data;

    while (capacity - buffer->bytes < bytes)
        capacity *= 2;
    if (capacity > buffer->capacity) {
        data = realloc(buffer->data, capacity);
        if (!data)
            return false;
        buffer->data = data;
        buffer->capacity = capacity;
    }
    memcpy(buffer->data + buffer->bytes, text, bytes);
    buffer->bytes += bytes;
    return true;
}

/* ---- Input ---- */

/* Waits for standard input or Ctrl-C; true: it was Ctrl-C. */
static bool wait_for_input(const conversation *c)
{
    struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = c->session.interrupts, .events = POLLIN}};
    struct signalfd_siginfo info;

    return poll(fds, 2, -1) > 0 && (fds[1].revents & POLLIN) &&
           read(c->session.interrupts, &info, sizeof(info)) == (ssize_t)sizeof(info);
}

static void print_prompt(const conversation *c)
{
    if (c->terminal) {
        fputs("> ", stdout);
        fflush(stdout);
    }
}

/* The next line without its newline, for free(); NULL at the end of input. */
static char *read_line(conversation *c)
{
    char chunk[4096], *line, *newline;
    size_t length;
    ssize_t got;

    print_prompt(c);
    while (!(newline = c->input.bytes ? memchr(c->input.data, '\n', c->input.bytes) : NULL)) {
        if (wait_for_input(c)) {
            c->input.bytes = 0;
            putchar('\n');
            print_prompt(c);
            continue;
        }
        got = read(STDIN_FILENO, chunk, sizeof(chunk));
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0 || !append(&c->input, chunk, (size_t)got))
            break;
    }
    if (!newline && c->input.bytes == 0)
        return NULL;
    length = newline ? (size_t)(newline - c->input.data) : c->input.bytes;
    line = strndup(c->input.data, length);
    length += newline != NULL;
    memmove(c->input.data, c->input.data + length, c->input.bytes - length);
    c->input.bytes -= length;
    return line;
}

/* ---- Answers ---- */

static void take_piece(void *arg, int choice, const char *text, size_t bytes)
{
    conversation *c = arg;

    (void)choice; /* there is one: option n is refused below */
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
    if (!append(&c->answer, text, bytes))
        mx_cli_fail("out of memory: the conversation will not remember all of this answer");
}

/* One message and its answer. 0, or 1 after a line on standard error. */
static int say(conversation *c, const char *line)
{
    json_t *result = NULL, *message = json_pack("{s:s, s:s}", "role", "user", "content", line);
    mx_status status;
    mx_error error;

    if (!message)
        return mx_cli_fail("the message is not UTF-8");
    if (json_array_append_new(c->messages, message) != 0)
        return mx_cli_fail("out of memory");
    c->answer.bytes = 0;
    status = mx_cli_request(&c->session, json_pack("{s:s, s:O, s:O}", "op", "chat", "messages", c->messages, "options",
                                                   c->options),
                            take_piece, c, &result, &error);
    json_decref(result);
    if (status == MX_CANCELLED || c->answer.bytes > 0)
        putchar('\n');
    fflush(stdout);
    if (status != MX_OK && (status != MX_CANCELLED || c->answer.bytes == 0)) {
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
        return status == MX_CANCELLED ? 0 : mx_cli_fail("%s", error.text);
    }
    message = json_pack("{s:s, s:s%}", "role", "assistant", "content", c->answer.bytes ? c->answer.data : "",
                        c->answer.bytes);
    if (json_array_append_new(c->messages, message) != 0)
        return mx_cli_fail("out of memory");
    return 0;
}

static int converse(conversation *c)
{
    char *line;
    int failed = 0;

    while ((!failed || c->terminal) && (line = read_line(c))) {
        if (line[0] != '\0')
            failed = say(c, line);
        free(line);
    }
    if (c->terminal)
        putchar('\n');
    return c->terminal ? 0 : failed;
}

int mx_cmd_chat(int argc, char **argv)
{
    conversation c = {.terminal = isatty(STDIN_FILENO)};
    mx_cli_options options;
    int failed = mx_cli_parse(argc, argv, 1, &options);

    if (failed)
        return failed;
    if (options.json || json_object_get(options.options, "n"))
        failed = mx_cli_fail("%s has no place in a conversation", options.json ? "--json" : "option n");
    else if (!json_object_get(options.options, "max_tokens") &&
             json_object_set_new(options.options, "max_tokens", json_integer(DEFAULT_MAX_TOKENS)) != 0)
        failed = mx_cli_fail("out of memory");
    else if (!(c.messages = json_array()))
        failed = mx_cli_fail("out of memory");
    if (!failed)
        failed = mx_cli_open(&options, &c.session);
    if (!failed) {
        c.options = options.options;
        failed = mx_cli_catch_interrupts(&c.session);
        if (!failed)
            failed = converse(&c);
        mx_cli_close(&c.session);
    }
    json_decref(c.messages);
    free(c.input.data);
    free(c.answer.data);
    mx_cli_options_free(&options);
    return failed;
}
