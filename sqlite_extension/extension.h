/*
 * extension.h: what the files of the SQLite extension share. Internal to this folder.
 *
 *     mixtral.c            entry point and registration; start reading there
 *     sqlite_engine.c      the engines of this process, shared by its connections; fork
 *     sqlite_connection.c  the models of a database connection, and which one a request goes to
 *     sqlite_request.c     SQL values in, a request's JSON out
 *     sqlite_call.c        a request and its events, with waits that can be interrupted; errors
 *     sqlite_functions.c   the scalar functions
 *     sqlite_tables.c      mixtral_tokenize and mixtral_chunks as tables; what all tables share
 *     sqlite_stream.c      mixtral_stream
 */
#ifndef MIXTRAL_SQLITE_EXTENSION_H
#define MIXTRAL_SQLITE_EXTENSION_H

#include "../core/mx.h"

#include <jansson.h>
#include <sqlite3ext.h>
#include <stdbool.h>

#ifndef SQLITE_RESULT_SUBTYPE
#define SQLITE_RESULT_SUBTYPE 0x001000000 /* since 3.45; earlier libraries ignore it */
#endif

#define MIXTRAL_SUBTYPE_JSON 74     /* 'J': what SQLite's own JSON functions return */
#define MIXTRAL_SUBTYPE_FLOAT32 223 /* a vector of float32, as sqlite-vec marks it */
#define MIXTRAL_WAIT_MS 20          /* how long a wait may go without looking for an interrupt */

/* ---- sqlite_engine.c: the engines of this process ---- */

typedef struct mixtral_engine mixtral_engine;

/* A connection to an engine, which the child of a fork finds to drop its copy. Zeroed: closed. */
typedef struct mixtral_client {
    mx_client *mx; /* NULL: closed, or lost to a fork */
    bool in_call;  /* its owner's thread is inside a call on `mx` */
    struct mixtral_client *next, **link;
} mixtral_client;

/* From the entry point; does its work once. Returns false when the system is out of memory. */
bool mixtral_process_init(void);

/* Checks the options of mixtral_open. *normal, the caller's, has them in one form (bytes, ..). */
mx_status mixtral_engine_options(const json_t *options, json_t **normal, mx_error *error);

/*
 * The process's engine for the file at `path`, opened if it is not yet. `options` are normal, NULL
 * for any: whatever they name must agree with how the engine is open already. Waits; MX_CANCELLED
 * when `db` is interrupted.
 */
mx_status mixtral_engine_acquire(sqlite3 *db, const char *path, const json_t *options,
                                 mixtral_engine **engine, mx_error *error);

/* The option `name`, or the file's base name without .gguf. The engine's. */
const char *mixtral_engine_name(const mixtral_engine *engine);

/* false: it is being closed, or is the parent process's. */
bool mixtral_engine_is_open(const mixtral_engine *engine);

/* Gives an engine back. With its last user gone, it lives on for its keep_s. Takes NULL. */
void mixtral_engine_release(mixtral_engine *engine);

/* Closes the engine for the file at `path` (resolved), whoever uses it, and waits for the end. */
mx_status mixtral_engine_shut(sqlite3 *db, const char *path, bool *was_open, mx_error *error);

/* Connects a closed client. MX_UNAVAILABLE: the engine is shut, or is the parent process's. */
mx_status mixtral_client_connect(mixtral_client *client, mixtral_engine *engine, mx_error *error);
mx_status mixtral_client_dial(mixtral_client *client, const char *socket_path, mx_error *error);
void mixtral_client_close(mixtral_client *client);

/* Around every use of client->mx. */
void mixtral_client_enter(mixtral_client *client);
void mixtral_client_leave(mixtral_client *client);

/* ---- sqlite_connection.c: the models of one database connection ---- */

typedef struct mixtral_model mixtral_model;

/* What every function and module of a connection holds on to. Under the connection's own mutex. */
typedef struct {
    sqlite3 *db;
    int refs;              /* registrations and virtual tables */
    mixtral_model *models; /* latest opened first: the first is the one that answers */
} mixtral_connection;

mixtral_connection *mixtral_connection_new(sqlite3 *db); /* with one reference; NULL: no memory */
void mixtral_connection_release(void *connection);

/* Opens a model, which answers from now on. *name, the model's, is what option `model` calls it. */
mx_status mixtral_connection_open(mixtral_connection *connection, const char *path,
                                  const json_t *options, const char **name, mx_error *error);
mx_status mixtral_connection_close(mixtral_connection *connection, const char *path_or_name,
                                   bool *was_open, mx_error *error);

/*
 * The model for a request: the one its option `model` names (which is then taken out of `request`),
 * else the latest opened, else the default one, opened now.
 */
mx_status mixtral_connection_model(mixtral_connection *connection, json_t *request,
                                   mixtral_model **model, mx_error *error);
mixtral_model *mixtral_model_next(const mixtral_model *model);
const char *mixtral_model_path(const mixtral_model *model);

/* The model's own client, for one request at a time, connected again if it was lost. */
mx_status mixtral_model_client(mixtral_connection *connection, mixtral_model *model,
                               mixtral_client **client, mx_error *error);
/* Another client, for a stream. */
mx_status mixtral_model_connect(mixtral_connection *connection, mixtral_model *model,
                                mixtral_client *client, mx_error *error);

/* ---- sqlite_request.c: SQL values in, a request's JSON out ---- */

#define MIXTRAL_MAX_TOKENS 512 /* unless asked otherwise: an endless answer would hold up a query */

/* Adds a function's arguments to a request. One left out is past argc, NULL, or SQL's NULL. */
typedef mx_status mixtral_build(json_t *request, int argc, sqlite3_value **argv, mx_error *error);

mixtral_build mixtral_build_chat;     /* prompt | messages [, options] */
mixtral_build mixtral_build_conversation; /* the same, for what makes no text */
mixtral_build mixtral_build_complete; /* prompt [, options] */
mixtral_build mixtral_build_text;     /* text [, options] */
mixtral_build mixtral_build_tokens;   /* ids [, options] */
mixtral_build mixtral_build_chunks;   /* text, size [, overlap [, options]] */
mixtral_build mixtral_build_options;  /* [options] */

/* A whole request, for json_decref; NULL with *error filled. */
json_t *mixtral_request(const char *op, mixtral_build *build, int argc, sqlite3_value **argv,
                        mx_error *error);

/* Reads JSON text that must be an object; *object is the caller's. */
mx_status mixtral_parse_object(sqlite3_value *value, const char *field, json_t **object,
                               mx_error *error);

/* How many bytes of `text` are whole, valid UTF-8. */
size_t mixtral_valid_utf8(const char *text, size_t bytes);

/* argv[i] has a value that is not SQL's NULL. */
bool mixtral_given(int argc, sqlite3_value **argv, int i);

/* ---- sqlite_call.c: one request and its events; errors ---- */

typedef struct {
    sqlite3 *db;
    mixtral_client *client;
    uint32_t id;
    bool running;
} mixtral_call;

/* Files that go with a request; they stay the caller's. */
typedef struct {
    const int *fds;
    int n;
} mixtral_files;

/* Sends `request` over a connected client; files NULL: none. */
mx_status mixtral_call_start(mixtral_call *call, sqlite3 *db, mixtral_client *client,
                             const json_t *request, const mixtral_files *files,
                             mx_error *error);

/*
 * Waits for the next piece or the result, which ends the call; so does any error. The event lives
 * until the next use of the client.
 */
mx_status mixtral_call_next(mixtral_call *call, mx_event *event, mx_error *error);

/* Drops the request if it is still running. */
void mixtral_call_stop(mixtral_call *call);

/* A whole request on the model that it names: *event is the result, for mixtral_result_member. */
mx_status mixtral_ask(mixtral_connection *connection, json_t *request, mx_event *event,
                      mx_error *error);
mx_status mixtral_ask_with_files(mixtral_connection *connection, json_t *request, const int *fds,
                                 int n_fds, mx_event *event, mx_error *error);
mx_status mixtral_ask_model(mixtral_connection *connection, mixtral_model *model,
                            const json_t *request, mx_event *event, mx_error *error);

/*
 * Member `key` of a result, of the type that the engine promises. It lives as long as *result,
 * which is the caller's, also on failure.
 */
mx_status mixtral_result_member(const mx_event *event, const char *key, json_type type,
                                json_t **result, json_t **member, mx_error *error);

/* Has sqlite3_interrupt been called on `db`? Within a running statement only. */
bool mixtral_interrupted(sqlite3 *db);

__attribute__((format(printf, 4, 5))) mx_status
mixtral_fail(mx_error *error, mx_status status, const char *field, const char *format, ...);
mx_status mixtral_fail_nomem(mx_error *error);

int mixtral_result_code(mx_status status);
/* "name: what went wrong", from sqlite3_malloc; always valid UTF-8. */
char *mixtral_error_text(const char *name, const mx_error *error);
void mixtral_result_error(sqlite3_context *context, const char *name, const mx_error *error);

/* ---- sqlite_functions.c ---- */

typedef void mixtral_function(sqlite3_context *context, int argc, sqlite3_value **argv);

mixtral_function mixtral_chat, mixtral_complete, mixtral_generate, mixtral_embed;
mixtral_function mixtral_tokenize, mixtral_detokenize, mixtral_token_count, mixtral_chunks;
mixtral_function mixtral_models, mixtral_stats, mixtral_version, mixtral_open, mixtral_close;

/* ---- sqlite_sessions.c ---- */

mixtral_function mixtral_session_save, mixtral_session_load;

/* ---- sqlite_tables.c, sqlite_stream.c ---- */

extern const sqlite3_module mixtral_stream_module, mixtral_tokenize_module, mixtral_chunks_module;

#define MIXTRAL_TABLE_ARGUMENTS 4

/* What a table function is declared as. Its arguments are its first hidden columns. */
typedef struct {
    const char *name;
    const char *usage; /* for the message when an argument is missing */
    const char *schema;
    int first_argument; /* column */
    int n_arguments;    /* at most MIXTRAL_TABLE_ARGUMENTS */
    int n_required;
} mixtral_table_kind;

typedef struct {
    sqlite3_vtab base;
    mixtral_connection *connection;
    const mixtral_table_kind *kind;
} mixtral_table;

int mixtral_table_connect(sqlite3 *db, mixtral_connection *connection,
                          const mixtral_table_kind *kind, sqlite3_vtab **table, char **message);
int mixtral_table_disconnect(sqlite3_vtab *table);
int mixtral_table_best_index(sqlite3_vtab *table, sqlite3_index_info *info);

/*
 * Spreads xFilter's values over arguments[n_arguments]; those not given are NULL. Returns false
 * when a required one is SQL's NULL, of which no rows come.
 */
bool mixtral_table_arguments(const mixtral_table *table, int given, sqlite3_value **values,
                             sqlite3_value **arguments);

/* Leaves `error` as the table's message and returns its code. */
int mixtral_table_error(mixtral_table *table, const mx_error *error);

#endif
