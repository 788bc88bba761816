/*
 * mixtral.c: a language model inside SQLite, as a loadable extension.
 *
 *     .load build/mixtral
 *     SELECT mixtral_open('model.gguf');         -- or set MIXTRAL_MODEL, or run `make model`
 *
 *     SELECT mixtral_chat('Why is the sky blue?');
 *     SELECT mixtral_chat('Name a colour.', '{"max_tokens": 8, "seed": 1}');
 *     SELECT mixtral_chat(json('[{"role": "system", "content": "Answer in French."},
 *                                {"role": "user", "content": "Good morning!"}]'));
 *     SELECT piece FROM mixtral_stream('Tell me a story.');  -- a row as soon as there is one
 *     SELECT mixtral_generate('Hi')->>'completion_tokens';
 *
 *     SELECT title, mixtral_chat('Summarise: ' || body) FROM docs;
 *     SELECT c.text FROM docs, mixtral_chunks(docs.body, 256, 32) AS c;
 *     INSERT INTO vec_docs(rowid, embedding) SELECT id, mixtral_embed(body) FROM docs;
 *
 * How it works. The engine (weights, memory, threads) lives in this process: one for each model
 * file, shared by every connection that uses the file (sqlite_engine.c). A function turns its
 * arguments into a JSON request (sqlite_request.c), picks a model (sqlite_connection.c), sends the
 * request down a socket pair and polls for the events that come back, looking every 20 ms whether
 * sqlite3_interrupt was called (sqlite_call.c). No SQL is ever executed, so that the caller's
 * transaction is the caller's.
 *
 * JSON is told from text by SQLite's subtype, which a value keeps only on its way from one function
 * into another: a column, a CTE or a subquery loses it. Write json(column) where a column holds
 * messages; without it they are a prompt like any other text.
 *
 * The results depend on which model is open, so no function is deterministic in SQLite's sense.
 * mixtral_open, mixtral_close and the sessions' functions are DIRECTONLY: the schema of a database that somebody sent you
 * cannot call them.
 *
 * The library stays in memory once it is loaded (it is linked with -z nodelete), because the
 * engine's threads run its code.
 *
 * Copyright 2026 the mixtral authors. Licensed under the Apache License, Version 2.0.
 */
#include "extension.h"

#include <pthread.h>

SQLITE_EXTENSION_INIT1

/* The oldest library that keeps SQLITE_DIRECTONLY functions out of schemas. */
#define OLDEST_SQLITE 3031000

static const struct {
    const char *name;
    int min_arguments, max_arguments;
    int flags;
    mixtral_function *function;
} functions[] = {
    {"mixtral_chat",        1, 2, SQLITE_SUBTYPE,                         mixtral_chat},
    {"mixtral_complete",    1, 2, 0,                                      mixtral_complete},
    {"mixtral_generate",    1, 2, SQLITE_SUBTYPE | SQLITE_RESULT_SUBTYPE, mixtral_generate},
    {"mixtral_embed",       1, 2, SQLITE_RESULT_SUBTYPE,                  mixtral_embed},
    {"mixtral_tokenize",    1, 2, SQLITE_RESULT_SUBTYPE,                  mixtral_tokenize},
    {"mixtral_detokenize",  1, 2, 0,                                      mixtral_detokenize},
    {"mixtral_token_count", 1, 2, 0,                                      mixtral_token_count},
    {"mixtral_chunks",      2, 4, SQLITE_RESULT_SUBTYPE,                  mixtral_chunks},
    {"mixtral_models",      0, 0, SQLITE_RESULT_SUBTYPE,                  mixtral_models},
    {"mixtral_stats",       0, 1, SQLITE_RESULT_SUBTYPE,                  mixtral_stats},
    {"mixtral_version",     0, 0, SQLITE_DETERMINISTIC,                   mixtral_version},
    {"mixtral_session_save", 3, 4, SQLITE_DIRECTONLY | SQLITE_SUBTYPE,    mixtral_session_save},
    {"mixtral_session_load", 2, 3, SQLITE_DIRECTONLY,                     mixtral_session_load},
    {"mixtral_open",        1, 2, SQLITE_DIRECTONLY,                      mixtral_open},
    {"mixtral_close",       1, 1, SQLITE_DIRECTONLY,                      mixtral_close},
};

static const struct {
    const char *name;
    const sqlite3_module *module;
} modules[] = {
    {"mixtral_stream",   &mixtral_stream_module},
    {"mixtral_tokenize", &mixtral_tokenize_module},
    {"mixtral_chunks",   &mixtral_chunks_module},
};

/*
 * Every registration holds a reference to the connection; SQLite gives it back when the database is
 * closed, when another registration takes the name, and when registering fails.
 */
static int register_all(mixtral_connection *connection)
{
    sqlite3 *db = connection->db;
    int rc = SQLITE_OK;

    for (size_t i = 0; i < sizeof functions / sizeof *functions && rc == SQLITE_OK; i++) {
        int n = functions[i].min_arguments;

        for (; n <= functions[i].max_arguments && rc == SQLITE_OK; n++) {
            connection->refs++;
            rc = sqlite3_create_function_v2(db, functions[i].name, n,
                                            SQLITE_UTF8 | functions[i].flags, connection,
                                            functions[i].function, NULL, NULL,
                                            mixtral_connection_release);
        }
    }
    for (size_t i = 0; i < sizeof modules / sizeof *modules && rc == SQLITE_OK; i++) {
        connection->refs++;
        rc = sqlite3_create_module_v2(db, modules[i].name, modules[i].module, connection,
                                      mixtral_connection_release);
    }
    return rc;
}

/*
 * Takes the routines of the SQLite library that loads us. There is one set of them in a process:
 * objects of two SQLite libraries (Python's own and a wheel's, say) cannot be told apart
 * afterwards, so the second library is turned away.
 */
static bool take_api(const sqlite3_api_routines *api)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    bool taken;

    pthread_mutex_lock(&lock);
    if (sqlite3_api == NULL)
        sqlite3_api = api;
    taken = sqlite3_api == api;
    pthread_mutex_unlock(&lock);
    return taken;
}

__attribute__((visibility("default"))) int sqlite3_mixtral_init(sqlite3 *db, char **message,
                                                                const sqlite3_api_routines *api);

int sqlite3_mixtral_init(sqlite3 *db, char **message, const sqlite3_api_routines *api)
{
    mixtral_connection *connection;
    int rc;

    if (!take_api(api)) {
        *message = api->mprintf("mixtral is in use by another SQLite library of this process");
        return SQLITE_ERROR;
    }
    if (sqlite3_libversion_number() < OLDEST_SQLITE) {
        *message = sqlite3_mprintf("mixtral needs SQLite 3.31 or later, this is %s",
                                   sqlite3_libversion());
        return SQLITE_ERROR;
    }
    if (!mixtral_process_init())
        return SQLITE_NOMEM;
    connection = mixtral_connection_new(db);
    if (connection == NULL)
        return SQLITE_NOMEM;
    rc = register_all(connection);
    mixtral_connection_release(connection);
    return rc;
}
