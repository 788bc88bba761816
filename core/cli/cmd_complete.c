/*
 * cmd_complete.c: `mixtral complete MODEL PROMPT`: the text that follows a prompt, as it is made.
 *
 * With option n above 1 the texts come when all are done, one after the other; with --json the whole result does.
 */
#include <stdio.h>
#include <stdlib.h>
#include "cli.h"
#include "session.h"

#define DEFAULT_MAX_TOKENS 512

static void print_piece(void *arg, int choice, const char *text, size_t bytes)
{
    (void)arg, (void)choice;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
}

static int print_json(const json_t *result)
{
    char *text = json_dumps(result, JSON_COMPACT | JSON_REAL_PRECISION(9));

    if (!text)
        return mx_cli_fail("out of memory");
    puts(text);
    free(text);
    return 0;
}

static int print_choices(const json_t *result)
{
    const json_t *choices = json_object_get(result, "choices");

    for (size_t i = 0; i < json_array_size(choices); i++)
        puts(json_string_value(json_object_get(json_array_get(choices, i), "text")));
    return 0;
}

static int complete(mx_cli_session *session, const mx_cli_options *options)
{
    bool streams = !options->json && json_integer_value(json_object_get(options->options, "n")) < 2;
    json_t *request = json_pack("{s:s, s:s, s:O}", "op", "complete", "prompt", options->args[1], "options",
                                options->options);
    json_t *result;
    mx_error error;
    int failed = 0;

    if (mx_cli_request(session, request, streams ? print_piece : NULL, NULL, &result, &error) != MX_OK)
        return mx_cli_fail("%s", error.text);
    if (options->json)
        failed = print_json(result);
    else if (streams)
        putchar('\n');
    else
        failed = print_choices(result);
    json_decref(result);
    return failed;
}

int mx_cmd_complete(int argc, char **argv)
{
    mx_cli_options options;
    mx_cli_session session;
    int failed = mx_cli_parse(argc, argv, 2, &options);

    if (failed)
        return failed;
    if (!json_object_get(options.options, "max_tokens") &&
        json_object_set_new(options.options, "max_tokens", json_integer(DEFAULT_MAX_TOKENS)) != 0)
        failed = mx_cli_fail("out of memory");
    if (!failed)
        failed = mx_cli_open(&options, &session);
    if (!failed) {
        failed = complete(&session, &options);
        mx_cli_close(&session);
    }
    mx_cli_options_free(&options);
    return failed;
}
