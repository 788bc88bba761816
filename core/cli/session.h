/*
 * session.h: what chat, complete and embed share: their options, an engine here or elsewhere, and one request at a time.
 */
#ifndef MX_CLI_SESSION_H
#define MX_CLI_SESSION_H

#include <jansson.h>
#include <stdbool.h>
#include "../mx.h"

#define MX_CLI_ARGS_MAX 2

typedef struct {
    const char *args[MX_CLI_ARGS_MAX]; /* [n_args]: MODEL first */
    int n_args;
    bool json;                         /* --json */
    bool engine_given;                 /* an option of the engine was given */
    mx_engine_options engine;
    json_t *options;                   /* of the request */
} mx_cli_options;

/* Takes a command's arguments apart; exactly n_args of them are no options. 0, or 1 after a line on standard error. */
int mx_cli_parse(int argc, char **argv, int n_args, mx_cli_options *options);
void mx_cli_options_free(mx_cli_options *options);

typedef struct {
    mx_engine *engine; /* NULL: it is elsewhere */
    mx_client *client;
    int interrupts;    /* a signalfd for SIGINT, or -1 */
} mx_cli_session;

/* Opens MODEL, or connects to unix:PATH. 0, or 1 after a line on standard error. */
int mx_cli_open(const mx_cli_options *options, mx_cli_session *session);
void mx_cli_close(mx_cli_session *session);

/* From now on Ctrl-C cancels the running request instead of ending the program. */
int mx_cli_catch_interrupts(mx_cli_session *session);

typedef void mx_cli_piece(void *arg, int choice, const char *text, size_t bytes);

/* Sends a request (taken over; NULL is MX_NOMEM) and waits for its end; `piece` (may be NULL) gets the text as it comes. On success
 * *result is the result object, the caller's. MX_CANCELLED after Ctrl-C. */
mx_status mx_cli_request(mx_cli_session *session, json_t *request, mx_cli_piece *piece, void *arg, json_t **result,
                         mx_error *error);

#endif
