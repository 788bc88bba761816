/*
 * sqlite_call.c: one request and its events, with waits that sqlite3_interrupt ends; and errors as
 * SQLite has them.
 *
 * SQLite cannot wake a function that waits: sqlite3_interrupt sets a flag, which libraries before
 * 3.41 do not even let an extension read. But preparing a text with no statement in it
 * executes nothing, costs a tenth of a microsecond, and fails with SQLITE_INTERRUPT exactly when
 * the flag is set and a statement is running (as ours is). So a wait is a poll of at most 20 ms,
 * and then that question.
 *
 * An interrupted caller gets its error at once; the engine drops the request at the end of its
 * step, and what it still sends is skipped by the client's next user, being about another id.
 */
#include "extension.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SQLITE_EXTENSION_INIT3

bool mixtral_interrupted(sqlite3 *db)
{
    sqlite3_stmt *nothing = NULL;

    return sqlite3_prepare_v2(db, " ", -1, &nothing, NULL) == SQLITE_INTERRUPT;
}

/* ---- Requests ---- */

mx_status mixtral_call_start(mixtral_call *call, sqlite3 *db, mixtral_client *client,
                             const json_t *request, const mixtral_files *files, mx_error *error)
{
    char *json = json_dumps(request, JSON_COMPACT);
    mx_status status;

    *call = (mixtral_call){.db = db, .client = client};
    if (json == NULL)
        return mixtral_fail_nomem(error);
    mixtral_client_enter(client);
    status = mx_client_request_with_files(client->mx, json, files != NULL ? files->fds : NULL,
                                          files != NULL ? files->n : 0, &call->id, error);
    mixtral_client_leave(client);
    free(json);
    call->running = status == MX_OK;
    return status;
}

static mx_status next_event(mixtral_call *call, mx_event *event, mx_error *error)
{
    mixtral_client *client = call->client;
    struct pollfd wait;

    for (;;) {
        mx_status status = mx_client_next(client->mx, event, error);

        if (status == MX_OK && event->id == call->id)
            return MX_OK;
        if (status != MX_OK && status != MX_AGAIN)
            return status;
        if (mixtral_interrupted(call->db))
            return mixtral_fail(error, MX_CANCELLED, NULL, "interrupted");
        if (status == MX_OK) /* of a request that was dropped earlier */
            continue;
        wait.fd = mx_client_fd(client->mx);
        wait.events = mx_client_events(client->mx);
        if (poll(&wait, 1, MIXTRAL_WAIT_MS) < 0 && errno != EINTR)
            return mixtral_fail(error, MX_IO, NULL, "poll: %s", strerror(errno));
    }
}

mx_status mixtral_call_next(mixtral_call *call, mx_event *event, mx_error *error)
{
    mx_status status;

    if (call->client->mx == NULL) {
        call->running = false;
        return mixtral_fail(error, MX_UNAVAILABLE, NULL,
                            "the request belongs to the process that forked this one");
    }
    mixtral_client_enter(call->client);
    status = next_event(call, event, error);
    mixtral_client_leave(call->client);
    if (status == MX_CANCELLED || status == MX_NOMEM) { /* nobody waits for it any more */
        mixtral_call_stop(call);
        return status;
    }
    if (status == MX_OK && event->type == MX_EVENT_PIECE)
        return status;
    call->running = false;
    if (status == MX_OK && event->type == MX_EVENT_ERROR) {
        *error = event->error;
        status = event->error.status;
    }
    return status;
}

void mixtral_call_stop(mixtral_call *call)
{
    if (call->running && call->client->mx != NULL) {
        mixtral_client_enter(call->client);
        /* A connection that cannot take this is lost, which stops the request as well. */
        mx_client_cancel(call->client->mx, call->id, NULL);
        mixtral_client_leave(call->client);
    }
    call->running = false;
}

static mx_status ask(mixtral_connection *connection, mixtral_model *model, const json_t *request,
                     const mixtral_files *files, mx_event *event, mx_error *error)
{
    mixtral_client *client;
    mixtral_call call;
    mx_status status = mixtral_model_client(connection, model, &client, error);

    if (status == MX_OK)
        status = mixtral_call_start(&call, connection->db, client, request, files, error);
    if (status != MX_OK)
        return status;
    do
        status = mixtral_call_next(&call, event, error);
    while (status == MX_OK && event->type == MX_EVENT_PIECE);
    return status;
}

mx_status mixtral_ask_model(mixtral_connection *connection, mixtral_model *model,
                            const json_t *request, mx_event *event, mx_error *error)
{
    return ask(connection, model, request, NULL, event, error);
}

mx_status mixtral_ask_with_files(mixtral_connection *connection, json_t *request, const int *fds,
                                 int n_fds, mx_event *event, mx_error *error)
{
    const mixtral_files files = {fds, n_fds};
    mixtral_model *model;
    mx_status status = mixtral_connection_model(connection, request, &model, error);

    if (status == MX_OK)
        status = ask(connection, model, request, &files, event, error);
    return status;
}

mx_status mixtral_ask(mixtral_connection *connection, json_t *request, mx_event *event,
                      mx_error *error)
{
    return mixtral_ask_with_files(connection, request, NULL, 0, event, error);
}

mx_status mixtral_result_member(const mx_event *event, const char *key, json_type type,
                                json_t **result, json_t **member, mx_error *error)
{
    *result = json_loadb(event->json, event->json_bytes, JSON_ALLOW_NUL, NULL);
    *member = json_object_get(*result, key);
    if (*member != NULL && json_typeof(*member) == type)
        return MX_OK;
    return mixtral_fail(error, MX_CORRUPT, key, "expected '%s' in the engine's answer, got %.200s",
                        key, event->json);
}

/* ---- Errors ---- */

mx_status
mixtral_fail(mx_error *error, mx_status status, const char *field, const char *format, ...)
{
    va_list arguments;

    error->status = status;
    error->retry_after_ms = 0;
    snprintf(error->field, sizeof error->field, "%s", field != NULL ? field : "");
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return status;
}

mx_status mixtral_fail_nomem(mx_error *error)
{
    return mixtral_fail(error, MX_NOMEM, NULL, "out of memory");
}

/*
 * Codes that mean the same in SQLite. The rest is SQLITE_ERROR on purpose: SQLITE_CORRUPT and
 * SQLITE_NOTADB would tell the application that its database is damaged, SQLITE_IOERR and
 * SQLITE_FULL would roll its transaction back.
 */
int mixtral_result_code(mx_status status)
{
    static const int codes[] = {
        [MX_OK] = SQLITE_OK,
        [MX_AGAIN] = SQLITE_ERROR,
        [MX_BUSY] = SQLITE_BUSY,
        [MX_NOMEM] = SQLITE_NOMEM,
        [MX_INVALID] = SQLITE_ERROR,
        [MX_NOT_FOUND] = SQLITE_CANTOPEN,
        [MX_DENIED] = SQLITE_PERM,
        [MX_TOO_LARGE] = SQLITE_TOOBIG,
        [MX_UNAVAILABLE] = SQLITE_ERROR,
        [MX_CORRUPT] = SQLITE_ERROR,
        [MX_CANCELLED] = SQLITE_INTERRUPT,
        [MX_TIMEOUT] = SQLITE_ERROR,
        [MX_IO] = SQLITE_ERROR,
        [MX_INTERNAL] = SQLITE_INTERNAL,
    };

    return (size_t)status < sizeof codes / sizeof *codes ? codes[status] : SQLITE_ERROR;
}

char *mixtral_error_text(const char *name, const mx_error *error)
{
    char *text;
    size_t bytes, valid;

    if (error->status == MX_CANCELLED)
        return sqlite3_mprintf("interrupted");
    text = sqlite3_mprintf("%s: %s", name, error->text);
    if (text == NULL)
        return NULL;
    /* A path may be of any bytes, and what is too long was cut anywhere; some hosts insist. */
    bytes = strlen(text);
    while ((valid = mixtral_valid_utf8(text, bytes)) < bytes)
        text[valid] = '?';
    return text;
}

void mixtral_result_error(sqlite3_context *context, const char *name, const mx_error *error)
{
    char *text = mixtral_error_text(name, error);

    if (text == NULL) {
        sqlite3_result_error_nomem(context);
        return;
    }
    sqlite3_result_error(context, text, -1);
    sqlite3_result_error_code(context, mixtral_result_code(error->status)); /* keeps the text */
    sqlite3_free(text);
}
