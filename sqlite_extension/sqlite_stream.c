/*
 * sqlite_stream.c: mixtral_stream, a row for each piece of text as it is made.
 *
 *     SELECT piece FROM mixtral_stream('Tell me a story.', '{"max_tokens": 200}');
 *     SELECT piece FROM mixtral_stream('Count to a thousand.') LIMIT 20;
 *     SELECT docs.id, group_concat(piece, '') FROM docs, mixtral_stream(docs.body) GROUP BY
 * docs.id; SELECT choice, piece FROM mixtral_stream('Name a colour.', '{"n": 3}');
 *
 * xFilter sends the request and returns with the first piece; xNext waits for the next one. A
 * cursor that is closed early (LIMIT, a reset, an error elsewhere) closes its connection to the
 * engine, which ends the generation. Each run of a cursor has a connection of its own, so that a
 * stream which nobody reads for a while holds up nobody else.
 *
 * The choices of option `n` come interleaved; the hidden column `choice` (from 0) tells them apart.
 */
#include "extension.h"

#include <string.h>

SQLITE_EXTENSION_INIT3

enum { COLUMN_PIECE, COLUMN_PROMPT, COLUMN_OPTIONS, COLUMN_CHOICE };

static const mixtral_table_kind stream_kind = {
    .name = "mixtral_stream",
    .usage = "mixtral_stream(prompt | messages [, options])",
    .schema = "CREATE TABLE x(piece TEXT, prompt HIDDEN, options HIDDEN, choice INTEGER HIDDEN)",
    .first_argument = COLUMN_PROMPT,
    .n_arguments = 2,
    .n_required = 1,
};

typedef struct {
    sqlite3_vtab_cursor base;
    mixtral_client client;
    mixtral_call call;
    bool at_piece; /* there is a row: */
    char *piece;   /* [piece_bytes], a copy of our own */
    size_t piece_bytes;
    int choice;
    sqlite3_int64 rowid;
} stream_cursor;

static int connect_stream(sqlite3 *db, void *connection, int argc, const char *const *argv,
                          sqlite3_vtab **table, char **message)
{
    (void)argc;
    (void)argv;
    return mixtral_table_connect(db, connection, &stream_kind, table, message);
}

static int open_cursor(sqlite3_vtab *table, sqlite3_vtab_cursor **result)
{
    stream_cursor *cursor = sqlite3_malloc(sizeof *cursor);

    (void)table;
    if (cursor == NULL)
        return SQLITE_NOMEM;
    memset(cursor, 0, sizeof *cursor);
    *result = &cursor->base;
    return SQLITE_OK;
}

/* Ends the generation, wherever it is. */
static void clear_cursor(stream_cursor *cursor)
{
    mixtral_client_close(&cursor->client);
    sqlite3_free(cursor->piece);
    cursor->piece = NULL;
    cursor->at_piece = false;
    cursor->rowid = 0;
}

static int close_cursor(sqlite3_vtab_cursor *base)
{
    clear_cursor((stream_cursor *)base);
    sqlite3_free(base);
    return SQLITE_OK;
}

static mx_status take_piece(stream_cursor *cursor, const mx_event *event, mx_error *error)
{
    char *piece = sqlite3_malloc64(event->text_bytes + 1);

    if (piece == NULL)
        return mixtral_fail_nomem(error);
    memcpy(piece, event->text, event->text_bytes);
    sqlite3_free(cursor->piece);
    cursor->piece = piece;
    cursor->piece_bytes = event->text_bytes;
    cursor->choice = event->choice;
    cursor->at_piece = true;
    cursor->rowid++;
    return MX_OK;
}

/* Goes to the next piece, or to the end. */
static mx_status step(stream_cursor *cursor, mx_error *error)
{
    mx_event event;
    mx_status status;

    cursor->at_piece = false;
    do
        status = mixtral_call_next(&cursor->call, &event, error);
    while (status == MX_OK && event.type == MX_EVENT_PIECE && event.text_bytes == 0);
    if (status == MX_OK && event.type == MX_EVENT_PIECE)
        return take_piece(cursor, &event, error);
    mixtral_client_close(&cursor->client); /* the text is whole, or lost */
    return status;
}

/* A cursor that failed lets go of the engine at once, not when the application gets round to
 * resetting its statement. */
static int finish(stream_cursor *cursor, mx_status status, const mx_error *error)
{
    if (status == MX_OK)
        return SQLITE_OK;
    clear_cursor(cursor);
    return mixtral_table_error((mixtral_table *)cursor->base.pVtab, error);
}

static int filter(sqlite3_vtab_cursor *base, int given, const char *unused, int argc,
                  sqlite3_value **argv)
{
    stream_cursor *cursor = (stream_cursor *)base;
    mixtral_table *table = (mixtral_table *)base->pVtab;
    mixtral_connection *connection = table->connection;
    sqlite3_value *arguments[MIXTRAL_TABLE_ARGUMENTS];
    mixtral_model *model;
    mx_error error = {0};
    mx_status status;
    json_t *request;

    (void)unused;
    (void)argc;
    clear_cursor(cursor);
    if (!mixtral_table_arguments(table, given, argv, arguments))
        return SQLITE_OK;
    request =
        mixtral_request("chat", mixtral_build_chat, stream_kind.n_arguments, arguments, &error);
    status = request != NULL ? mixtral_connection_model(connection, request, &model, &error)
                             : error.status;
    if (status == MX_OK)
        status = mixtral_model_connect(connection, model, &cursor->client, &error);
    if (status == MX_OK)
        status =
            mixtral_call_start(&cursor->call, connection->db, &cursor->client, request, NULL,
                               &error);
    if (status == MX_OK)
        status = step(cursor, &error);
    json_decref(request);
    return finish(cursor, status, &error);
}

static int next(sqlite3_vtab_cursor *base)
{
    stream_cursor *cursor = (stream_cursor *)base;
    mx_error error = {0};
    mx_status status = step(cursor, &error);

    return finish(cursor, status, &error);
}

static int eof(sqlite3_vtab_cursor *base)
{
    return !((stream_cursor *)base)->at_piece;
}

static int column(sqlite3_vtab_cursor *base, sqlite3_context *context, int i)
{
    const stream_cursor *cursor = (const stream_cursor *)base;

    if (i == COLUMN_PIECE)
        sqlite3_result_text64(context, cursor->piece, cursor->piece_bytes, SQLITE_TRANSIENT,
                              SQLITE_UTF8);
    else if (i == COLUMN_CHOICE)
        sqlite3_result_int(context, cursor->choice);
    return SQLITE_OK;
}

static int rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *id)
{
    *id = ((stream_cursor *)base)->rowid;
    return SQLITE_OK;
}

const sqlite3_module mixtral_stream_module = {
    .xConnect = connect_stream,
    .xBestIndex = mixtral_table_best_index,
    .xDisconnect = mixtral_table_disconnect,
    .xOpen = open_cursor,
    .xClose = close_cursor,
    .xFilter = filter,
    .xNext = next,
    .xEof = eof,
    .xColumn = column,
    .xRowid = rowid,
};
