/*
 * sqlite_tables.c: mixtral_tokenize and mixtral_chunks as tables, and what all table functions
 * share.
 *
 *     SELECT id, piece FROM mixtral_tokenize('Hello world');
 *     SELECT docs.id, c.text FROM docs, mixtral_chunks(docs.body, 256, 32) AS c;
 *
 * They are eponymous virtual tables, whose arguments are hidden columns: f(x, y) is SQLite's way to
 * write WHERE first = x AND second = y. xBestIndex takes these terms and no others; in a join it
 * answers SQLITE_CONSTRAINT until the order of the tables makes the arguments known. idxNum has a
 * bit for each argument that is given.
 *
 * A cursor of this file holds the whole answer, and a row is an element of it; rowid counts from 1.
 */
#include "extension.h"

#include <string.h>

SQLITE_EXTENSION_INIT3

/* ---- What all table functions share ---- */

/* What a query pays for: far more than any scan, so that a table that needs to be read once is not
 * put inside a loop. */
#define COST_OF_A_REQUEST 1e6
#define ROWS_OF_A_REQUEST 100

int mixtral_table_connect(sqlite3 *db, mixtral_connection *connection,
                          const mixtral_table_kind *kind, sqlite3_vtab **result, char **message)
{
    mixtral_table *table;
    int rc = sqlite3_declare_vtab(db, kind->schema);

    if (rc != SQLITE_OK) {
        *message = sqlite3_mprintf("%s: %s", kind->name, sqlite3_errmsg(db));
        return rc;
    }
    table = sqlite3_malloc(sizeof *table);
    if (table == NULL)
        return SQLITE_NOMEM;
    *table = (mixtral_table){.connection = connection, .kind = kind};
    connection->refs++; /* the module may be registered anew while the table is in use */
    *result = &table->base;
    return SQLITE_OK;
}

int mixtral_table_disconnect(sqlite3_vtab *base)
{
    mixtral_table *table = (mixtral_table *)base;

    mixtral_connection_release(table->connection);
    sqlite3_free(table);
    return SQLITE_OK;
}

int mixtral_table_best_index(sqlite3_vtab *base, sqlite3_index_info *info)
{
    mixtral_table *table = (mixtral_table *)base;
    const mixtral_table_kind *kind = table->kind;
    int constraint[MIXTRAL_TABLE_ARGUMENTS];
    unsigned unusable = 0, given = 0;
    int n = 0;

    for (int i = 0; i < info->nConstraint; i++) {
        int argument = info->aConstraint[i].iColumn - kind->first_argument;

        if (argument < 0 || argument >= kind->n_arguments ||
            info->aConstraint[i].op != SQLITE_INDEX_CONSTRAINT_EQ)
            continue;
        if (!info->aConstraint[i].usable) {
            unusable |= 1u << argument;
        } else if (!(given & 1u << argument)) {
            given |= 1u << argument;
            constraint[argument] = i;
        }
    }
    if (unusable & ~given)
        return SQLITE_CONSTRAINT;
    for (int argument = 0; argument < kind->n_arguments; argument++) {
        if (given & 1u << argument) {
            info->aConstraintUsage[constraint[argument]].argvIndex = ++n;
            info->aConstraintUsage[constraint[argument]].omit = 1;
        } else if (argument < kind->n_required) {
            base->zErrMsg = sqlite3_mprintf("%s: expected %s", kind->name, kind->usage);
            return SQLITE_ERROR;
        }
    }
    info->idxNum = (int)given;
    info->estimatedCost = COST_OF_A_REQUEST;
    info->estimatedRows = ROWS_OF_A_REQUEST;
    return SQLITE_OK;
}

bool mixtral_table_arguments(const mixtral_table *table, int given, sqlite3_value **values,
                             sqlite3_value **arguments)
{
    bool complete = true;

    for (int i = 0; i < table->kind->n_arguments; i++) {
        arguments[i] = given & 1 << i ? *values++ : NULL;
        if (i < table->kind->n_required && sqlite3_value_type(arguments[i]) == SQLITE_NULL)
            complete = false;
    }
    return complete;
}

int mixtral_table_error(mixtral_table *table, const mx_error *error)
{
    sqlite3_free(table->base.zErrMsg);
    table->base.zErrMsg = mixtral_error_text(table->kind->name, error);
    return table->base.zErrMsg != NULL ? mixtral_result_code(error->status) : SQLITE_NOMEM;
}

/* ---- Tables of a whole answer ---- */

/* The columns before the arguments have the names of the members of a row. */
typedef struct {
    mixtral_table_kind table;
    const char *op;
    mixtral_build *build;
    const char *key; /* the array of rows in the result */
    const char *columns[4];
} answer_kind;

static const answer_kind tokenize_kind = {
    .table = {.name = "mixtral_tokenize",
              .usage = "mixtral_tokenize(text [, options])",
              .schema = "CREATE TABLE x(id INTEGER, piece TEXT, source HIDDEN, options HIDDEN)",
              .first_argument = 2,
              .n_arguments = 2,
              .n_required = 1},
    .op = "tokenize",
    .build = mixtral_build_text,
    .key = "tokens",
    .columns = {"id", "piece"},
};

static const answer_kind chunks_kind = {
    .table = {.name = "mixtral_chunks",
              .usage = "mixtral_chunks(text, size [, overlap [, options]])",
              .schema = "CREATE TABLE x(text TEXT, start INTEGER, \"end\" INTEGER, tokens INTEGER, "
                        "source HIDDEN, size HIDDEN, overlap HIDDEN, options HIDDEN)",
              .first_argument = 4,
              .n_arguments = 4,
              .n_required = 2},
    .op = "chunks",
    .build = mixtral_build_chunks,
    .key = "chunks",
    .columns = {"text", "start", "end", "tokens"},
};

typedef struct {
    sqlite3_vtab_cursor base;
    json_t *result; /* owns `rows` */
    json_t *rows;
    size_t row;
} answer_cursor;

static int connect_tokenize(sqlite3 *db, void *connection, int argc, const char *const *argv,
                            sqlite3_vtab **table, char **message)
{
    (void)argc;
    (void)argv;
    return mixtral_table_connect(db, connection, &tokenize_kind.table, table, message);
}

static int connect_chunks(sqlite3 *db, void *connection, int argc, const char *const *argv,
                          sqlite3_vtab **table, char **message)
{
    (void)argc;
    (void)argv;
    return mixtral_table_connect(db, connection, &chunks_kind.table, table, message);
}

static int open_cursor(sqlite3_vtab *table, sqlite3_vtab_cursor **result)
{
    answer_cursor *cursor = sqlite3_malloc(sizeof *cursor);

    (void)table;
    if (cursor == NULL)
        return SQLITE_NOMEM;
    memset(cursor, 0, sizeof *cursor);
    *result = &cursor->base;
    return SQLITE_OK;
}

static void clear_cursor(answer_cursor *cursor)
{
    json_decref(cursor->result);
    cursor->result = cursor->rows = NULL;
    cursor->row = 0;
}

static int close_cursor(sqlite3_vtab_cursor *base)
{
    clear_cursor((answer_cursor *)base);
    sqlite3_free(base);
    return SQLITE_OK;
}

static int filter(sqlite3_vtab_cursor *base, int given, const char *unused, int argc,
                  sqlite3_value **argv)
{
    answer_cursor *cursor = (answer_cursor *)base;
    mixtral_table *table = (mixtral_table *)base->pVtab;
    const answer_kind *kind = (const answer_kind *)table->kind;
    sqlite3_value *arguments[MIXTRAL_TABLE_ARGUMENTS];
    mx_error error = {0};
    mx_event event;
    mx_status status;
    json_t *request;

    (void)unused;
    (void)argc;
    clear_cursor(cursor);
    if (!mixtral_table_arguments(table, given, argv, arguments))
        return SQLITE_OK;
    request = mixtral_request(kind->op, kind->build, kind->table.n_arguments, arguments, &error);
    status =
        request != NULL ? mixtral_ask(table->connection, request, &event, &error) : error.status;
    if (status == MX_OK)
        status = mixtral_result_member(&event, kind->key, JSON_ARRAY, &cursor->result,
                                       &cursor->rows, &error);
    json_decref(request);
    return status == MX_OK ? SQLITE_OK : mixtral_table_error(table, &error);
}

static int next(sqlite3_vtab_cursor *base)
{
    ((answer_cursor *)base)->row++;
    return SQLITE_OK;
}

static int eof(sqlite3_vtab_cursor *base)
{
    const answer_cursor *cursor = (const answer_cursor *)base;

    return cursor->row >= json_array_size(cursor->rows);
}

/* The arguments read as NULL: SQLite has them already, and compares nothing with what we have
 * omitted. */
static int column(sqlite3_vtab_cursor *base, sqlite3_context *context, int i)
{
    const answer_cursor *cursor = (const answer_cursor *)base;
    const answer_kind *kind = (const answer_kind *)((mixtral_table *)base->pVtab)->kind;
    const json_t *value;

    if (i >= kind->table.first_argument)
        return SQLITE_OK;
    value = json_object_get(json_array_get(cursor->rows, cursor->row), kind->columns[i]);
    if (json_is_string(value))
        sqlite3_result_text64(context, json_string_value(value), json_string_length(value),
                              SQLITE_TRANSIENT, SQLITE_UTF8);
    else if (json_is_integer(value))
        sqlite3_result_int64(context, json_integer_value(value));
    return SQLITE_OK;
}

static int rowid(sqlite3_vtab_cursor *base, sqlite3_int64 *id)
{
    *id = (sqlite3_int64)((answer_cursor *)base)->row + 1;
    return SQLITE_OK;
}

/* No xCreate: these tables are there without CREATE VIRTUAL TABLE, and only so. */
const sqlite3_module mixtral_tokenize_module = {
    .xConnect = connect_tokenize,
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

const sqlite3_module mixtral_chunks_module = {
    .xConnect = connect_chunks,
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
