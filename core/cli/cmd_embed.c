/*
 * cmd_embed.c: `mixtral embed MODEL TEXT`: a text's unit vector, as a JSON array on one line.
 */
#include <stdio.h>
#include <stdlib.h>
#include "cli.h"
#include "session.h"

static int embed(mx_cli_session *session, const mx_cli_options *options)
{
    json_t *request =
        json_pack("{s:s, s:s, s:O}", "op", "embed", "text", options->args[1], "options", options->options);
    json_t *result;
    mx_error error;
    char *text;

    if (mx_cli_request(session, request, NULL, NULL, &result, &error) != MX_OK)
        return mx_cli_fail("%s", error.text);
    text = json_dumps(json_object_get(result, "embedding"), JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(result);
    if (!text)
        return mx_cli_fail("the engine's result has no embedding");
    puts(text);
    free(text);
    return 0;
}

int mx_cmd_embed(int argc, char **argv)
{
    mx_cli_options options;
    mx_cli_session session;
    int failed = mx_cli_parse(argc, argv, 2, &options);

    if (failed)
        return failed;
    if (options.json)
        failed = mx_cli_fail("--json: is an option of complete");
    if (!failed)
        failed = mx_cli_open(&options, &session);
    if (!failed) {
        failed = embed(&session, &options);
        mx_cli_close(&session);
    }
    mx_cli_options_free(&options);
    return failed;
}
