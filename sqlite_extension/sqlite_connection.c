/*
 * sqlite_connection.c: the models of one database connection, and which of them a request goes to.
 *
 * A model is a file, whose engine this process shares (sqlite_engine.c), or a socket behind which
 * an engine lives elsewhere (`unix:/path`). Each has a client for the scalar functions, which run
 * one at a time; a stream has its own. The list has the model that was opened last at its head: it
 * answers unless option `model` names another. While the list is empty, the default model is
 * opened: MIXTRAL_MODEL, or the file that `make model` fetches.
 *
 * A model that lost its engine (closed by another connection, or left behind by a fork) finds it
 * again on its next use.
 *
 * All of it is under the mutex of the database connection, which SQLite holds when it calls us.
 */
#include "extension.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define UNIX "unix:"
#define DEFAULT_FILE "mixtral/SmolLM2-135M-Instruct.Q4_1.gguf"

struct mixtral_model {
    char *path;      /* resolved, or unix:... */
    char *name;      /* what option `model` calls it: the engine's name */
    json_t *options; /* normal; NULL: any */
    mixtral_engine *engine; /* NULL: none yet, or a socket */
    mixtral_client client;
    mixtral_model *next;
};

static bool is_socket(const char *path)
{
    return strncmp(path, UNIX, strlen(UNIX)) == 0;
}

/* ---- A model ---- */

static void free_model(mixtral_model *model)
{
    if (model == NULL)
        return;
    mixtral_client_close(&model->client);
    mixtral_engine_release(model->engine);
    json_decref(model->options);
    free(model->name);
    free(model->path);
    free(model);
}

/* `path` resolved, for free(); a socket's path as it is. */
static mx_status resolve(const char *path, char **resolved, mx_error *error)
{
    *resolved = is_socket(path) ? strdup(path) : realpath(path, NULL);
    if (*resolved != NULL)
        return MX_OK;
    if (errno == ENOMEM)
        return mixtral_fail_nomem(error);
    return mixtral_fail(error, errno == ENOENT || errno == ENOTDIR ? MX_NOT_FOUND : MX_IO, NULL,
                        "cannot open model file '%s': %s", path, strerror(errno));
}

mx_status mixtral_model_connect(mixtral_connection *connection, mixtral_model *model,
                                mixtral_client *client, mx_error *error)
{
    mx_status status;

    if (is_socket(model->path))
        return mixtral_client_dial(client, model->path + strlen(UNIX), error);
    for (int attempt = 0; attempt < 2; attempt++) {
        if (model->engine == NULL) {
            status = mixtral_engine_acquire(connection->db, model->path, model->options,
                                            &model->engine, error);
            if (status != MX_OK)
                return status;
        }
        status = mixtral_client_connect(client, model->engine, error);
        if (status != MX_UNAVAILABLE)
            return status;
        mixtral_engine_release(model->engine);
        model->engine = NULL;
    }
    return status;
}

/* Does anybody listen to the model's client? Skips the events of requests that were dropped. */
static bool client_alive(mixtral_model *model)
{
    mixtral_client *client = &model->client;
    mx_event event;
    mx_error error;
    mx_status status;

    if (client->mx == NULL || (model->engine != NULL && !mixtral_engine_is_open(model->engine)))
        return false;
    mixtral_client_enter(client);
    do
        status = mx_client_next(client->mx, &event, &error);
    while (status == MX_OK);
    mixtral_client_leave(client);
    return status == MX_AGAIN;
}

mx_status mixtral_model_client(mixtral_connection *connection, mixtral_model *model,
                               mixtral_client **client, mx_error *error)
{
    *client = &model->client;
    if (client_alive(model))
        return MX_OK;
    mixtral_client_close(&model->client);
    return mixtral_model_connect(connection, model, &model->client, error);
}

mixtral_model *mixtral_model_next(const mixtral_model *model)
{
    return model->next;
}

const char *mixtral_model_path(const mixtral_model *model)
{
    return model->path;
}

/* ---- The list ---- */

/* The link to the model that has this path (resolved or not), or else this name; or to NULL. */
static mixtral_model **find_model(mixtral_connection *connection, const char *path_or_name)
{
    char *resolved = realpath(path_or_name, NULL);
    mixtral_model **link;

    for (link = &connection->models; *link != NULL; link = &(*link)->next)
        if (strcmp((*link)->path, resolved != NULL ? resolved : path_or_name) == 0)
            break;
    free(resolved);
    if (*link != NULL)
        return link;
    for (link = &connection->models; *link != NULL; link = &(*link)->next)
        if (strcmp((*link)->name, path_or_name) == 0)
            break;
    return link;
}

static mixtral_model *take_out(mixtral_model **link)
{
    mixtral_model *model = *link;

    if (model != NULL)
        *link = model->next;
    return model;
}

/* The name of an engine elsewhere, for free(): asked for, which also says that it answers. */
static mx_status ask_name(mixtral_connection *connection, mixtral_model *model, char **name,
                          mx_error *error)
{
    json_t *request = json_pack("{s:s}", "op", "models"), *result = NULL, *models;
    const char *text;
    mx_event event;
    mx_status status;

    if (request == NULL)
        return mixtral_fail_nomem(error);
    status = mixtral_ask_model(connection, model, request, &event, error);
    json_decref(request);
    if (status == MX_OK)
        status = mixtral_result_member(&event, "models", JSON_ARRAY, &result, &models, error);
    if (status == MX_OK) {
        text = json_string_value(json_object_get(json_array_get(models, 0), "name"));
        *name = strdup(text != NULL ? text : model->path);
        if (*name == NULL)
            status = mixtral_fail_nomem(error);
    }
    json_decref(result);
    return status;
}

/* Opens a model now, so that what is wrong with it is said now; puts it at the head of the list. */
mx_status mixtral_connection_open(mixtral_connection *connection, const char *path,
                                  const json_t *options, const char **name, mx_error *error)
{
    mixtral_model *model = calloc(1, sizeof *model), **same;
    mx_status status;

    if (model == NULL)
        return mixtral_fail_nomem(error);
    if (is_socket(path) && json_object_size(options) > 0)
        status = mixtral_fail(error, MX_INVALID, "options",
                              "options: expected none for an engine elsewhere (%s)", path);
    else
        status = resolve(path, &model->path, error);
    if (status == MX_OK && options != NULL)
        status = mixtral_engine_options(options, &model->options, error);
    if (status != MX_OK)
        goto failed;
    status = mixtral_model_connect(connection, model, &model->client, error);
    if (status != MX_OK)
        goto failed;
    if (model->engine == NULL)
        status = ask_name(connection, model, &model->name, error);
    else if ((model->name = strdup(mixtral_engine_name(model->engine))) == NULL)
        status = mixtral_fail_nomem(error);
    if (status != MX_OK)
        goto failed;
    for (same = &connection->models; *same != NULL && strcmp((*same)->path, model->path) != 0;)
        same = &(*same)->next;
    free_model(take_out(same));
    model->next = connection->models;
    connection->models = model;
    *name = model->name;
    return MX_OK;
failed:
    free_model(model);
    return status;
}

mx_status mixtral_connection_close(mixtral_connection *connection, const char *path_or_name,
                                   bool *was_open, mx_error *error)
{
    mixtral_model *model = take_out(find_model(connection, path_or_name));
    char *path = model != NULL ? strdup(model->path) : realpath(path_or_name, NULL);
    mx_status status = MX_OK;

    *was_open = model != NULL;
    free_model(model);
    if (path != NULL && !is_socket(path)) {
        bool shut;

        status = mixtral_engine_shut(connection->db, path, &shut, error);
        *was_open = *was_open || shut;
    }
    free(path);
    return status;
}

/* ---- Which model ---- */

/* The default model as the environment has it, for free(). */
static char *default_path(bool *from_variable)
{
    const char *model = getenv("MIXTRAL_MODEL");
    const char *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    char *path = NULL;
    int length;

    *from_variable = model != NULL && *model != '\0';
    if (*from_variable)
        return strdup(model);
    if (cache != NULL && *cache != '\0')
        length = asprintf(&path, "%s/%s", cache, DEFAULT_FILE);
    else
        length = asprintf(&path, "%s/.cache/%s", home != NULL ? home : "", DEFAULT_FILE);
    return length >= 0 ? path : NULL;
}

static mx_status open_default(mixtral_connection *connection, mx_error *error)
{
    const char *name;
    bool from_variable;
    char *path = default_path(&from_variable);
    mx_status status;

    if (path == NULL)
        return mixtral_fail_nomem(error);
    if (!from_variable && access(path, F_OK) != 0) {
        status = mixtral_fail(error, MX_NOT_FOUND, NULL,
                              "no model: call mixtral_open('file.gguf'), set MIXTRAL_MODEL, or let "
                              "`make model` fetch the default one (there is no %s)",
                              path);
    } else {
        status = mixtral_connection_open(connection, path, NULL, &name, error);
        if (status != MX_OK && from_variable) {
            mx_error reason = *error;

            mixtral_fail(error, status, reason.field, "MIXTRAL_MODEL: %.480s", reason.text);
        }
    }
    free(path);
    return status;
}

/* A name that no model here has may still be known to the engine elsewhere, if one answers. */
static mx_status named_model(mixtral_connection *connection, json_t *options, const json_t *name,
                             mixtral_model **model, mx_error *error)
{
    char names[256] = "";
    size_t used = 0;

    *model = *find_model(connection, json_string_value(name));
    if (*model != NULL) {
        json_object_del(options, "model");
        return MX_OK;
    }
    *model = connection->models;
    if (is_socket((*model)->path))
        return MX_OK;
    for (const mixtral_model *other = connection->models; other != NULL && used < sizeof names;
         other = other->next)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used > 0 ? ", " : "",
                                 other->name);
    return mixtral_fail(error, MX_NOT_FOUND, "model",
                        "option model: '%.100s' is not open on this connection, which has %s",
                        json_string_value(name), names);
}

mx_status mixtral_connection_model(mixtral_connection *connection, json_t *request,
                                   mixtral_model **model, mx_error *error)
{
    json_t *options = json_object_get(request, "options");
    const json_t *name = json_object_get(options, "model");
    mx_status status;

    if (connection->models == NULL) {
        status = open_default(connection, error);
        if (status != MX_OK)
            return status;
    }
    if (json_is_string(name))
        return named_model(connection, options, name, model, error);
    *model = connection->models;
    return MX_OK;
}

/* ---- Lifetime ---- */

mixtral_connection *mixtral_connection_new(sqlite3 *db)
{
    mixtral_connection *connection = calloc(1, sizeof *connection);

    if (connection != NULL) {
        connection->db = db;
        connection->refs = 1;
    }
    return connection;
}

void mixtral_connection_release(void *object)
{
    mixtral_connection *connection = object;

    if (--connection->refs > 0)
        return;
    while (connection->models != NULL)
        free_model(take_out(&connection->models));
    free(connection);
}
