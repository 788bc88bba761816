/*
 * sqlite_sessions.c: conversations kept in files, so that a long document is read once in its life.
 *
 *     SELECT mixtral_session_save('contract.session', 'session.key', 'the long document ...');
 *     SELECT mixtral_session_load('contract.session', 'session.key');     -- later, in another process
 *     SELECT mixtral_chat(...);      -- messages that begin with the document: it is not read again
 *
 * The files are opened here, with the rights and the working directory of this process; the engine
 * gets their descriptors. A session is written beside its path and takes its place when it is whole
 * and on disk. Both functions are DIRECTONLY: no schema can have them touch files.
 */
#include "extension.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

typedef enum { SAVE, LOAD } direction;

/* An argument as a path; NULL with the error set. */
static const char *path_of(sqlite3_value *value, const char *what, mx_error *error)
{
    const char *path = (const char *)sqlite3_value_text(value);

    if (path == NULL)
        mixtral_fail_nomem(error);
    else if (*path == '\0' || strlen(path) != (size_t)sqlite3_value_bytes(value))
        mixtral_fail(error, MX_INVALID, what, "%s: expected the path of a file", what);
    else
        return path;
    return NULL;
}

static mx_status open_file(const char *path, const char *what, int *fd, mx_error *error)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (*fd >= 0)
        return MX_OK;
    return mixtral_fail(error, errno == ENOENT ? MX_NOT_FOUND : MX_IO, what, "%s: %s: %s", what,
                        path, strerror(errno));
}

/* A new file beside `path`; *name is its own, for free(). */
static mx_status make_file(const char *path, char **name, int *fd, mx_error *error)
{
    size_t size = strlen(path) + sizeof ".XXXXXX";

    *name = malloc(size);
    if (*name == NULL)
        return mixtral_fail_nomem(error);
    snprintf(*name, size, "%s.XXXXXX", path);
    *fd = mkostemp(*name, O_CLOEXEC);
    if (*fd >= 0)
        return MX_OK;
    mixtral_fail(error, MX_IO, "session file", "session file: %s: %s", path, strerror(errno));
    free(*name);
    *name = NULL;
    return MX_IO;
}

static mx_status put_in_place(int fd, const char *name, const char *path, mx_error *error)
{
    if (fsync(fd) == 0 && rename(name, path) == 0)
        return MX_OK;
    return mixtral_fail(error, MX_IO, "session file", "session file: %s: %s", path,
                        strerror(errno));
}

/* argv: session file, key file, and what the operation takes. */
static mx_status run(mixtral_connection *connection, direction way, int argc, sqlite3_value **argv,
                     int64_t *tokens, mx_error *error)
{
    const char *path = path_of(argv[0], "session file", error);
    const char *key_path = path != NULL ? path_of(argv[1], "key file", error) : NULL;
    char *name = NULL;
    int files[2] = {-1, -1};
    json_t *request = NULL, *result = NULL, *member;
    mx_event event;
    mx_status status = error->status;

    if (key_path == NULL)
        return status;
    request = mixtral_request(way == SAVE ? "session_save" : "session_load",
                              way == SAVE ? mixtral_build_conversation : mixtral_build_options,
                              argc - 2, argv + 2, error);
    status = request != NULL ? open_file(key_path, "key file", &files[1], error) : error->status;
    if (status == MX_OK)
        status = way == SAVE ? make_file(path, &name, &files[0], error)
                             : open_file(path, "session file", &files[0], error);
    if (status == MX_OK)
        status = mixtral_ask_with_files(connection, request, files, 2, &event, error);
    if (status == MX_OK)
        status = mixtral_result_member(&event, "tokens", JSON_INTEGER, &result, &member, error);
    if (status == MX_OK)
        *tokens = json_integer_value(member);
    if (status == MX_OK && way == SAVE)
        status = put_in_place(files[0], name, path, error);
    if (status != MX_OK && name != NULL)
        unlink(name);
    for (int i = 0; i < 2; i++)
        if (files[i] >= 0)
            close(files[i]);
    json_decref(result);
    json_decref(request);
    free(name);
    return status;
}

static void answer(sqlite3_context *context, const char *name, direction way, int n_required,
                   int argc, sqlite3_value **argv)
{
    mx_error error = {0};
    int64_t tokens = 0;

    for (int i = 0; i < n_required; i++)
        if (sqlite3_value_type(argv[i]) == SQLITE_NULL)
            return;
    if (run(sqlite3_user_data(context), way, argc, argv, &tokens, &error) == MX_OK)
        sqlite3_result_int64(context, tokens);
    else
        mixtral_result_error(context, name, &error);
}

/* mixtral_session_save(session file, key file, prompt | messages [, options]) -> tokens saved */
void mixtral_session_save(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    answer(context, "mixtral_session_save", SAVE, 3, argc, argv);
}

/* mixtral_session_load(session file, key file [, options]) -> tokens loaded */
void mixtral_session_load(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    answer(context, "mixtral_session_load", LOAD, 2, argc, argv);
}
