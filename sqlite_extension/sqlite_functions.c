/*
 * sqlite_functions.c: the scalar functions.
 *
 * Each builds a request, asks the model and turns the result into a value. NULL for the text gives
 * NULL; NULL in place of an argument that may be left out leaves it out. JSON that is returned
 * carries SQLite's subtype for JSON, and a vector that of sqlite-vec.
 *
 * All run under the mutex of their database connection; other connections run at the same time.
 */
#include "extension.h"

#include <stdlib.h>
#include <string.h>

SQLITE_EXTENSION_INIT3

/* ---- A question and its answer ---- */

/* What a function asks, and how the answer becomes a value. */
typedef struct {
    const char *name;
    const char *op;
    mixtral_build *build;
    int n_required;  /* arguments, of which any NULL gives NULL */
    const char *key; /* the member of the result that is the answer; NULL: all of it */
    json_type type;
    void (*give)(sqlite3_context *context, const json_t *answer);
} function_kind;

static void give_json_text(sqlite3_context *context, const char *json, size_t bytes)
{
    sqlite3_result_text64(context, json, bytes, SQLITE_TRANSIENT, SQLITE_UTF8);
    sqlite3_result_subtype(context, MIXTRAL_SUBTYPE_JSON);
}

static void give_json(sqlite3_context *context, const json_t *value)
{
    char *json = json_dumps(value, JSON_COMPACT);

    if (json != NULL)
        give_json_text(context, json, strlen(json));
    else
        sqlite3_result_error_nomem(context);
    free(json);
}

static void give_text(sqlite3_context *context, const json_t *text)
{
    sqlite3_result_text64(context, json_string_value(text), json_string_length(text),
                          SQLITE_TRANSIENT, SQLITE_UTF8);
}

static void give_integer(sqlite3_context *context, const json_t *number)
{
    sqlite3_result_int64(context, json_integer_value(number));
}

static void give_vector(sqlite3_context *context, const json_t *numbers)
{
    size_t dim = json_array_size(numbers);
    float *vector = sqlite3_malloc64((dim + 1) * sizeof *vector);

    if (vector == NULL) {
        sqlite3_result_error_nomem(context);
        return;
    }
    for (size_t i = 0; i < dim; i++)
        vector[i] = (float)json_number_value(json_array_get(numbers, i));
    sqlite3_result_blob64(context, vector, dim * sizeof *vector, sqlite3_free);
    sqlite3_result_subtype(context, MIXTRAL_SUBTYPE_FLOAT32);
}

/* [{"id", "piece"}, ..] -> [id, ..] */
static void give_ids(sqlite3_context *context, const json_t *tokens)
{
    json_t *ids = json_array(), *token;
    size_t i;

    json_array_foreach((json_t *)tokens, i, token)
        json_array_append(ids, json_object_get(token, "id"));
    if (json_array_size(ids) == json_array_size(tokens))
        give_json(context, ids);
    else
        sqlite3_result_error_nomem(context);
    json_decref(ids);
}

static void answer(const function_kind *kind, sqlite3_context *context, int argc,
                   sqlite3_value **argv)
{
    json_t *request, *result = NULL, *member;
    mx_error error = {0};
    mx_event event;
    mx_status status;

    for (int i = 0; i < kind->n_required; i++)
        if (sqlite3_value_type(argv[i]) == SQLITE_NULL)
            return;
    request = mixtral_request(kind->op, kind->build, argc, argv, &error);
    status = request != NULL ? mixtral_ask(sqlite3_user_data(context), request, &event, &error)
                             : error.status;
    if (status == MX_OK && kind->key != NULL)
        status = mixtral_result_member(&event, kind->key, kind->type, &result, &member, &error);
    if (status != MX_OK)
        mixtral_result_error(context, kind->name, &error);
    else if (kind->key != NULL)
        kind->give(context, member);
    else
        give_json_text(context, event.json, event.json_bytes);
    json_decref(result);
    json_decref(request);
}

/* mixtral_chat(prompt | messages [, options]) -> text */
void mixtral_chat(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind chat = {"mixtral_chat", "chat",      mixtral_build_chat, 1,
                                       "text",         JSON_STRING, give_text};

    answer(&chat, context, argc, argv);
}

/* mixtral_complete(prompt [, options]) -> text that goes on from the prompt, without a template */
void mixtral_complete(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind complete = {
        "mixtral_complete", "complete", mixtral_build_complete, 1, "text", JSON_STRING, give_text};

    answer(&complete, context, argc, argv);
}

/* mixtral_generate(prompt | messages [, options]) -> JSON object: the answer, why it ended, what it
 * took */
void mixtral_generate(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind generate = {"mixtral_generate", "chat", mixtral_build_chat, 1, NULL,
                                           JSON_OBJECT,        NULL};

    answer(&generate, context, argc, argv);
}

/* mixtral_embed(text [, options]) -> unit vector of float32, a BLOB as sqlite-vec takes it */
void mixtral_embed(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind embed = {"mixtral_embed", "embed",    mixtral_build_text, 1,
                                        "embedding",     JSON_ARRAY, give_vector};

    answer(&embed, context, argc, argv);
}

/* mixtral_tokenize(text [, options]) -> JSON array of ids */
void mixtral_tokenize(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind tokenize = {
        "mixtral_tokenize", "tokenize", mixtral_build_text, 1, "tokens", JSON_ARRAY, give_ids};

    answer(&tokenize, context, argc, argv);
}

/* mixtral_detokenize(JSON array of ids [, options]) -> text */
void mixtral_detokenize(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind detokenize = {
        "mixtral_detokenize", "detokenize", mixtral_build_tokens, 1, "text",
        JSON_STRING,          give_text};

    answer(&detokenize, context, argc, argv);
}

/* mixtral_token_count(text [, options]) -> integer */
void mixtral_token_count(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind token_count = {
        "mixtral_token_count", "token_count", mixtral_build_text, 1, "count",
        JSON_INTEGER,          give_integer};

    answer(&token_count, context, argc, argv);
}

/* mixtral_chunks(text, size [, overlap [, options]]) -> JSON array of {"text", "start", "end",
 * "tokens"} */
void mixtral_chunks(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind chunks = {
        "mixtral_chunks", "chunks", mixtral_build_chunks, 2, "chunks", JSON_ARRAY, give_json};

    answer(&chunks, context, argc, argv);
}

/* mixtral_stats([options]) -> JSON object of the engine's figures */
void mixtral_stats(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    static const function_kind stats = {"mixtral_stats", "stats", mixtral_build_options, 0, NULL,
                                        JSON_OBJECT,     NULL};

    answer(&stats, context, argc, argv);
}

/* ---- Models ---- */

/* Adds to `models` what the engine of `model` says of itself, and where it was opened. */
static mx_status describe_model(mixtral_connection *connection, mixtral_model *model,
                                const json_t *request, json_t *models, mx_error *error)
{
    const char *path = mixtral_model_path(model);
    bool printable = mixtral_valid_utf8(path, strlen(path)) == strlen(path);
    json_t *result = NULL, *list, *entry;
    mx_event event;
    mx_status status = mixtral_ask_model(connection, model, request, &event, error);
    size_t i;

    if (status == MX_OK)
        status = mixtral_result_member(&event, "models", JSON_ARRAY, &result, &list, error);
    if (status == MX_OK) {
        json_array_foreach(list, i, entry) {
            json_t *where = printable ? json_string(path) : json_null();

            if (json_object_set_new(entry, "path", where) != 0 ||
                json_array_append(models, entry) != 0)
                status = mixtral_fail_nomem(error);
        }
    }
    json_decref(result);
    return status;
}

/* mixtral_models() -> JSON array: the models open on this connection; the first one answers */
void mixtral_models(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    mixtral_connection *connection = sqlite3_user_data(context);
    json_t *models = json_array();
    mixtral_model *model;
    mx_error error = {0};
    json_t *request = mixtral_request("models", mixtral_build_options, argc, argv, &error);
    mx_status status = error.status;

    if (status == MX_OK)
        status = mixtral_connection_model(connection, request, &model, &error);
    for (; status == MX_OK && model != NULL; model = mixtral_model_next(model))
        status = describe_model(connection, model, request, models, &error);
    if (status == MX_OK)
        give_json(context, models);
    else
        mixtral_result_error(context, "mixtral_models", &error);
    json_decref(models);
    json_decref(request);
}

/* mixtral_version() -> text */
void mixtral_version(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    (void)argc;
    (void)argv;
    sqlite3_result_text(context, MX_VERSION, -1, SQLITE_STATIC);
}

/* A path as C has it; NULL with the error set. */
static const char *path_argument(sqlite3_context *context, const char *name, sqlite3_value *value)
{
    const char *path = (const char *)sqlite3_value_text(value);
    mx_error error;

    if (path != NULL && *path != '\0' && strlen(path) == (size_t)sqlite3_value_bytes(value))
        return path;
    if (path == NULL)
        mixtral_fail_nomem(&error);
    else
        mixtral_fail(&error, MX_INVALID, "path",
                     "path: expected the path of a model file, or unix:/path/of/a/socket");
    mixtral_result_error(context, name, &error);
    return NULL;
}

/* mixtral_open(path [, options]) -> the model's name, for option `model` */
void mixtral_open(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    const char *path, *name;
    json_t *options = NULL;
    mx_error error = {0};
    mx_status status = MX_OK;

    if (!mixtral_given(argc, argv, 0))
        return;
    path = path_argument(context, "mixtral_open", argv[0]);
    if (path == NULL)
        return;
    if (mixtral_given(argc, argv, 1))
        status = mixtral_parse_object(argv[1], "options", &options, &error);
    if (status == MX_OK)
        status = mixtral_connection_open(sqlite3_user_data(context), path, options, &name, &error);
    if (status == MX_OK)
        sqlite3_result_text(context, name, -1, SQLITE_TRANSIENT);
    else
        mixtral_result_error(context, "mixtral_open", &error);
    json_decref(options);
}

/* mixtral_close(path | name) -> 1, or 0 when it was not open */
void mixtral_close(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    const char *path;
    mx_error error = {0};
    bool was_open;

    if (!mixtral_given(argc, argv, 0))
        return;
    path = path_argument(context, "mixtral_close", argv[0]);
    if (path == NULL)
        return;
    if (mixtral_connection_close(sqlite3_user_data(context), path, &was_open, &error) == MX_OK)
        sqlite3_result_int(context, was_open);
    else
        mixtral_result_error(context, "mixtral_close", &error);
}
