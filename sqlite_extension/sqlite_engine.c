/*
 * sqlite_engine.c: the engines of this process.
 *
 * There is one engine for each model file (device and inode), whoever opens it first, shared by all
 * connections of the process. A thread of its own, the keeper, opens the engine, sleeps while it
 * has users, waits out keep_s after the last of them, and closes it. So neither opening nor closing
 * ever blocks a caller, who only waits for the state to change and can be interrupted; an engine
 * that nobody uses costs no more than a sleeping thread.
 *
 *     OPENING --> OPEN --> CLOSING --> GONE        (FAILED instead of OPEN: `error` says why)
 *
 * Locks: `process.lock` guards everything here but what is marked as immutable or the keeper's. It
 * is never held while an engine is opened or closed, nor while SQLite is called. Taken after the
 * mutex of a database connection. `process.changed` is signalled with every change of state, of
 * users, or of a wish to close.
 *
 * Lifetime: an engine object is freed by the last of its users and its keeper.
 *
 * Fork: threads do not survive it, so the child gives up its copies of all engines and clients (a
 * copied descriptor would keep a connection alive that the parent has closed). Its engines are GONE
 * and its clients closed; the next request opens what it needs again. The lock is held across the
 * fork, so that the child finds all in order.
 *
 * At the end of the process nothing is done: the keepers and engines go with it.
 */
#include "extension.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

SQLITE_EXTENSION_INIT3

#define DEFAULT_KEEP_S 60.0
#define LONGEST_KEEP_S 1e9
#define LONGEST_NAME 127 /* bytes; what an engine takes */

typedef enum { OPENING, OPEN, FAILED, CLOSING, GONE } engine_state;

struct mixtral_engine {
    /* immutable */
    dev_t device;
    ino_t inode;
    uint64_t number; /* counts the engines that were opened */
    char *path;      /* resolved */
    char *name;
    json_t *options; /* normal; what the first user asked for */

    /* under process.lock */
    engine_state state;
    mx_engine *mx;  /* while OPEN; while CLOSING the keeper's */
    mx_error error; /* of FAILED */
    int users;
    bool has_keeper;
    bool shut;                           /* close it now, users or not */
    struct mixtral_engine *next, **link; /* in process.engines; link is NULL once FAILED or GONE */
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* its clock is CLOCK_MONOTONIC */
    mixtral_engine *engines;
    uint64_t n_opened;
    mixtral_client *clients; /* all that are connected */
    bool ready;
} process = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- Options ---- */

typedef enum { INTEGER, SIZE, SECONDS, STRING } option_type;

static const struct {
    const char *name;
    option_type type;
} option_types[] = {
    {"threads", INTEGER},
    {"context", INTEGER},
    {"kv_pool", SIZE},
    {"kv_type", STRING},
    {"max_queue", INTEGER},
    {"max_step_ms", INTEGER},
    {"tenant_requests", INTEGER},
    {"tenant_tokens_per_minute", INTEGER},
    {"stall_timeout_ms", INTEGER},
    {"kernels", STRING},
    {"name", STRING},
    {"keep_s", SECONDS},
};

/* Bytes: an integer, or a string of digits with K, M or G behind them. */
static bool parse_size(const json_t *value, json_int_t *bytes)
{
    const char *text = json_string_value(value);
    char *end;
    int shift = 0;

    if (json_is_integer(value)) {
        *bytes = json_integer_value(value);
        return *bytes >= 0;
    }
    if (text == NULL || *text < '0' || *text > '9')
        return false;
    errno = 0;
    *bytes = strtoll(text, &end, 10);
    if (*end != '\0') {
        const char *unit = strchr("KMG", *end);

        if (unit == NULL || end[1] != '\0')
            return false;
        shift = 10 * (int)(unit - "KMG" + 1);
    }
    if (errno != 0 || *bytes > (INT64_MAX >> shift))
        return false;
    *bytes <<= shift;
    return true;
}

/* An option in its normal form, a new reference; NULL when it is not as *expected then says. */
static json_t *normal_option(option_type type, const json_t *value, const char **expected)
{
    json_int_t number = json_integer_value(value);

    switch (type) {
    case INTEGER:
        *expected = "an integer from 0 to 2147483647";
        if (!json_is_integer(value) || number < 0 || number > INT_MAX)
            return NULL;
        return json_integer(number);
    case SIZE:
        *expected = "bytes, as an integer or as a string such as \"512M\"";
        return parse_size(value, &number) ? json_integer(number) : NULL;
    case SECONDS:
        *expected = "seconds, from 0 to 1000000000";
        if (!json_is_number(value) || json_number_value(value) < 0 ||
            json_number_value(value) > LONGEST_KEEP_S)
            return NULL;
        return json_real(json_number_value(value));
    case STRING:
        *expected = "a string of at least one character";
        return json_string_length(value) > 0 ? json_string(json_string_value(value)) : NULL;
    }
    return NULL;
}

mx_status mixtral_engine_options(const json_t *options, json_t **normal, mx_error *error)
{
    const size_t n_types = sizeof option_types / sizeof *option_types;
    const char *name, *expected = "";
    json_t *result = json_object(), *value;

    json_object_foreach((json_t *)options, name, value) {
        json_t *option;
        size_t i = 0;

        if (json_is_null(value)) /* not given, as in a request */
            continue;
        while (i < n_types && strcmp(option_types[i].name, name) != 0)
            i++;
        if (i == n_types) {
            json_decref(result);
            return mixtral_fail(error, MX_INVALID, name,
                                "option %s: unknown; there are threads, context, kv_pool, "
                                "kv_type, max_queue, max_step_ms, tenant_requests, "
                                "tenant_tokens_per_minute, stall_timeout_ms, kernels, name and "
                                "keep_s",
                                name);
        }
        option = normal_option(option_types[i].type, value, &expected);
        if (option == NULL) {
            char *got = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

            mixtral_fail(error, MX_INVALID, name, "option %s: expected %s, got %s", name, expected,
                         got ? got : "?");
            free(got);
            json_decref(result);
            return MX_INVALID;
        }
        if (json_object_set_new(result, name, option) != 0) {
            json_decref(result);
            return mixtral_fail_nomem(error);
        }
    }
    *normal = result;
    return result != NULL ? MX_OK : mixtral_fail_nomem(error);
}

static double keep_s(const mixtral_engine *engine)
{
    const json_t *option = json_object_get(engine->options, "keep_s");

    return option != NULL ? json_real_value(option) : DEFAULT_KEEP_S;
}

/* Everything that `asked` names must be as the engine has it. */
static mx_status check_options(const mixtral_engine *engine, const json_t *asked, mx_error *error)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)asked, name, value) {
        if (!json_equal(value, json_object_get(engine->options, name))) {
            char *theirs = json_dumps(engine->options, JSON_COMPACT | JSON_SORT_KEYS);
            char *ours = json_dumps(asked, JSON_COMPACT | JSON_SORT_KEYS);

            mixtral_fail(error, MX_INVALID, name,
                         "%s is already open with options %s, which differ from %s in %s; "
                         "mixtral_close it first",
                         engine->path, theirs ? theirs : "?", ours ? ours : "?", name);
            free(theirs);
            free(ours);
            return MX_INVALID;
        }
    }
    return MX_OK;
}

/* ---- The keeper ---- */

/* The engine's log goes where SQLite's own does. Any thread. */
static void log_line(void *arg, mx_log_level level, const char *line)
{
    (void)arg;
    sqlite3_log(level == MX_LOG_INFO ? SQLITE_NOTICE : SQLITE_WARNING, "mixtral: %s", line);
}

static mx_status open_engine(const mixtral_engine *engine, mx_engine **mx, mx_error *error)
{
    const json_t *given = engine->options;
    mx_engine_options options = {
        .threads = (int)json_integer_value(json_object_get(given, "threads")),
        .context = (int)json_integer_value(json_object_get(given, "context")),
        .kv_pool_bytes = json_integer_value(json_object_get(given, "kv_pool")),
        .kv_type = json_string_value(json_object_get(given, "kv_type")),
        .max_queue = (int)json_integer_value(json_object_get(given, "max_queue")),
        .max_step_ms = (int)json_integer_value(json_object_get(given, "max_step_ms")),
        .tenant_requests = (int)json_integer_value(json_object_get(given, "tenant_requests")),
        .tenant_tokens_per_minute = json_integer_value(json_object_get(given, "tenant_tokens_per_minute")),
        .stall_timeout_ms = (int)json_integer_value(json_object_get(given, "stall_timeout_ms")),
        .kernels = json_string_value(json_object_get(given, "kernels")),
        .name = engine->name,
        .log = log_line,
    };

    return mx_engine_open(engine->path, &options, mx, error);
}

static struct timespec deadline_in(double seconds)
{
    struct timespec time;
    int64_t ns;

    clock_gettime(CLOCK_MONOTONIC, &time);
    ns = time.tv_nsec + (int64_t)((seconds - (double)(int64_t)seconds) * 1e9);
    time.tv_sec += (time_t)seconds + ns / 1000000000;
    time.tv_nsec = ns % 1000000000;
    return time;
}

static void unlink_engine(mixtral_engine *engine)
{
    if (engine->link == NULL)
        return;
    *engine->link = engine->next;
    if (engine->next != NULL)
        engine->next->link = engine->link;
    engine->link = NULL;
}

static void free_engine(mixtral_engine *engine)
{
    json_decref(engine->options);
    free(engine->name);
    free(engine->path);
    free(engine);
}

/* With the lock held, after a user or the keeper has left. */
static void free_if_last(mixtral_engine *engine)
{
    if (engine->users == 0 && !engine->has_keeper)
        free_engine(engine);
}

static void set_state(mixtral_engine *engine, engine_state state)
{
    engine->state = state;
    if (state == FAILED || state == GONE)
        unlink_engine(engine);
    pthread_cond_broadcast(&process.changed);
}

/* With the lock held: returns once the engine is to be closed. */
static void wait_for_end(mixtral_engine *engine)
{
    while (!engine->shut) {
        struct timespec deadline;
        int rc = 0;

        while (engine->users > 0 && !engine->shut)
            pthread_cond_wait(&process.changed, &process.lock);
        deadline = deadline_in(keep_s(engine));
        while (engine->users == 0 && !engine->shut && rc == 0)
            rc = pthread_cond_timedwait(&process.changed, &process.lock, &deadline);
        if (engine->users == 0)
            return;
    }
}

static void *keep(void *arg)
{
    mixtral_engine *engine = arg;
    mx_engine *mx = NULL;
    mx_error error = {0};
    mx_status status = open_engine(engine, &mx, &error);

    pthread_mutex_lock(&process.lock);
    engine->mx = mx;
    engine->error = error;
    set_state(engine, status == MX_OK ? OPEN : FAILED);
    if (status == MX_OK) {
        wait_for_end(engine);
        engine->mx = NULL;
        set_state(engine, CLOSING);
        pthread_mutex_unlock(&process.lock);
        mx_engine_close(mx);
        pthread_mutex_lock(&process.lock);
        set_state(engine, GONE);
    }
    engine->has_keeper = false;
    free_if_last(engine);
    pthread_mutex_unlock(&process.lock);
    return NULL;
}

/* Signals are for the host's threads. */
static bool start_keeper(mixtral_engine *engine)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    int rc;

    if (pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, &attributes, keep, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return rc == 0;
}

/* ---- Users ---- */

/* With the lock held: waits a little for a change. Returns false when `db` has been interrupted. */
static bool wait_a_little(sqlite3 *db)
{
    struct timespec deadline = deadline_in(MIXTRAL_WAIT_MS / 1000.0);
    bool interrupted;

    pthread_cond_timedwait(&process.changed, &process.lock, &deadline);
    pthread_mutex_unlock(&process.lock);
    interrupted = mixtral_interrupted(db);
    pthread_mutex_lock(&process.lock);
    return !interrupted;
}

/* With the lock held. */
static void leave(mixtral_engine *engine)
{
    engine->users--;
    pthread_cond_broadcast(&process.changed);
    free_if_last(engine);
}

static mixtral_engine *find_engine(const struct stat *file)
{
    mixtral_engine *engine = process.engines;

    while (engine != NULL && (engine->inode != file->st_ino || engine->device != file->st_dev))
        engine = engine->next;
    return engine;
}

/* The option `name`, or the file's base name without .gguf; for free(). */
static char *name_engine(const char *path, const json_t *options)
{
    const json_t *given = json_object_get(options, "name");
    const char *base = strrchr(path, '/');
    size_t length;

    if (given != NULL)
        return strdup(json_string_value(given));
    base = base != NULL ? base + 1 : path;
    length = strlen(base);
    if (length > 5 && strcmp(base + length - 5, ".gguf") == 0)
        length -= 5;
    if (length > LONGEST_NAME) { /* whole characters */
        length = LONGEST_NAME;
        while ((base[length] & 0xC0) == 0x80)
            length--;
    }
    return strndup(base, length);
}

/* With the lock held: a new engine, OPENING, used by the caller. NULL: no memory, or no thread. */
static mixtral_engine *new_engine(const char *path, const struct stat *file, const json_t *options)
{
    mixtral_engine *engine = calloc(1, sizeof *engine);

    if (engine == NULL)
        return NULL;
    engine->device = file->st_dev;
    engine->inode = file->st_ino;
    engine->path = strdup(path);
    engine->name = name_engine(path, options);
    engine->options = options != NULL ? json_deep_copy(options) : json_object();
    engine->users = 1;
    engine->has_keeper = true;
    if (engine->path == NULL || engine->name == NULL || engine->options == NULL ||
        !start_keeper(engine)) {
        free_engine(engine);
        return NULL;
    }
    engine->number = ++process.n_opened;
    engine->next = process.engines;
    engine->link = &process.engines;
    if (engine->next != NULL)
        engine->next->link = &engine->next;
    process.engines = engine;
    return engine;
}

/* With the lock held, as a user of `engine`: waits while it opens. */
static mx_status await_open(sqlite3 *db, mixtral_engine *engine, mx_error *error)
{
    while (engine->state == OPENING)
        if (!wait_a_little(db))
            return mixtral_fail(error, MX_CANCELLED, NULL, "interrupted");
    if (engine->state == FAILED) {
        *error = engine->error;
        return error->status;
    }
    if (engine->state != OPEN)
        return mixtral_fail(error, MX_UNAVAILABLE, NULL, "%s has been closed", engine->path);
    return MX_OK;
}

mx_status mixtral_engine_acquire(sqlite3 *db, const char *path, const json_t *options,
                                 mixtral_engine **result, mx_error *error)
{
    mixtral_engine *engine;
    mx_status status = MX_OK;
    struct stat file;

    if (stat(path, &file) != 0)
        return mixtral_fail(error, errno == ENOENT || errno == ENOTDIR ? MX_NOT_FOUND : MX_IO, NULL,
                            "cannot open model file '%s': %s", path, strerror(errno));
    pthread_mutex_lock(&process.lock);
    while ((engine = find_engine(&file)) != NULL && (engine->state == CLOSING || engine->shut))
        if (!wait_a_little(db)) {
            status = mixtral_fail(error, MX_CANCELLED, NULL, "interrupted");
            goto done;
        }
    if (engine == NULL) {
        engine = new_engine(path, &file, options);
        if (engine == NULL) {
            status = mixtral_fail_nomem(error);
            goto done;
        }
    } else {
        status = check_options(engine, options, error);
        if (status != MX_OK)
            goto done;
        engine->users++;
        pthread_cond_broadcast(&process.changed);
    }
    status = await_open(db, engine, error);
    if (status == MX_OK)
        *result = engine;
    else
        leave(engine);
done:
    pthread_mutex_unlock(&process.lock);
    return status;
}

const char *mixtral_engine_name(const mixtral_engine *engine)
{
    return engine->name;
}

/* With the lock held. */
static bool is_open(const mixtral_engine *engine)
{
    return engine->state == OPEN && !engine->shut;
}

bool mixtral_engine_is_open(const mixtral_engine *engine)
{
    bool open;

    pthread_mutex_lock(&process.lock);
    open = is_open(engine);
    pthread_mutex_unlock(&process.lock);
    return open;
}

void mixtral_engine_release(mixtral_engine *engine)
{
    if (engine == NULL)
        return;
    pthread_mutex_lock(&process.lock);
    leave(engine);
    pthread_mutex_unlock(&process.lock);
}

/* An engine up to `newest` for a file, or for a path whose file was replaced by another since. */
static mixtral_engine *find_to_shut(const char *path, const struct stat *file, uint64_t newest)
{
    mixtral_engine *engine;

    for (engine = process.engines; engine != NULL; engine = engine->next) {
        bool same_file =
            file != NULL && engine->inode == file->st_ino && engine->device == file->st_dev;

        if (engine->number <= newest && (same_file || strcmp(engine->path, path) == 0))
            break;
    }
    return engine;
}

mx_status mixtral_engine_shut(sqlite3 *db, const char *path, bool *was_open, mx_error *error)
{
    mixtral_engine *engine;
    mx_status status = MX_OK;
    struct stat file;
    bool exists = stat(path, &file) == 0;
    uint64_t newest;

    *was_open = false;
    pthread_mutex_lock(&process.lock);
    newest = process.n_opened; /* what others open while we wait is not our business */
    while (status == MX_OK &&
           (engine = find_to_shut(path, exists ? &file : NULL, newest)) != NULL) {
        *was_open = true;
        engine->shut = true;
        engine->users++;
        pthread_cond_broadcast(&process.changed);
        while (engine->state != FAILED && engine->state != GONE && status == MX_OK)
            if (!wait_a_little(db))
                status = mixtral_fail(error, MX_CANCELLED, NULL, "interrupted");
        leave(engine);
    }
    pthread_mutex_unlock(&process.lock);
    return status;
}

/* ---- Clients ---- */

static void link_client(mixtral_client *client)
{
    client->next = process.clients;
    client->link = &process.clients;
    if (client->next != NULL)
        client->next->link = &client->next;
    process.clients = client;
}

static void unlink_client(mixtral_client *client)
{
    *client->link = client->next;
    if (client->next != NULL)
        client->next->link = client->link;
    client->link = NULL;
}

mx_status mixtral_client_connect(mixtral_client *client, mixtral_engine *engine, mx_error *error)
{
    mx_status status;
    int fd;

    pthread_mutex_lock(&process.lock);
    if (!is_open(engine))
        status = mixtral_fail(error, MX_UNAVAILABLE, NULL, "%s has been closed", engine->path);
    else
        status = mx_engine_connect(engine->mx, &fd, error);
    if (status == MX_OK)
        status = mx_client_open(fd, &client->mx, error);
    if (status == MX_OK)
        link_client(client);
    else
        client->mx = NULL;
    pthread_mutex_unlock(&process.lock);
    return status;
}

mx_status mixtral_client_dial(mixtral_client *client, const char *socket_path, mx_error *error)
{
    mx_status status;

    pthread_mutex_lock(&process.lock);
    status = mx_client_connect(socket_path, &client->mx, error);
    if (status == MX_OK)
        link_client(client);
    else
        client->mx = NULL;
    pthread_mutex_unlock(&process.lock);
    return status;
}

void mixtral_client_close(mixtral_client *client)
{
    if (client->mx == NULL)
        return;
    pthread_mutex_lock(&process.lock);
    unlink_client(client);
    mx_client_close(client->mx);
    client->mx = NULL;
    pthread_mutex_unlock(&process.lock);
}

static void set_in_call(mixtral_client *client, bool in_call)
{
    pthread_mutex_lock(&process.lock);
    client->in_call = in_call;
    pthread_mutex_unlock(&process.lock);
}

void mixtral_client_enter(mixtral_client *client)
{
    set_in_call(client, true);
}

void mixtral_client_leave(mixtral_client *client)
{
    set_in_call(client, false);
}

/* ---- Fork ---- */

static void before_fork(void)
{
    pthread_mutex_lock(&process.lock);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&process.lock);
}

static bool init_condition(void)
{
    pthread_condattr_t attributes;
    bool ok = false;

    if (pthread_condattr_init(&attributes) == 0) {
        ok = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
             pthread_cond_init(&process.changed, &attributes) == 0;
        pthread_condattr_destroy(&attributes);
    }
    return ok;
}

static void after_fork_in_child(void)
{
    init_condition(); /* the old one remembers waiters who are not here */
    while (process.clients != NULL) {
        mixtral_client *client = process.clients;

        /* A thread that was inside the client was perhaps changing it: leave its memory alone. */
        unlink_client(client);
        if (client->in_call)
            close(mx_client_fd(client->mx));
        else
            mx_client_abandon(client->mx);
        client->mx = NULL;
    }
    while (process.engines != NULL) {
        mixtral_engine *engine = process.engines;

        if (engine->state == OPEN)
            mx_engine_abandon(engine->mx);
        engine->mx = NULL;
        engine->has_keeper = false;
        engine->state = GONE;
        unlink_engine(engine);
        free_if_last(engine);
    }
    pthread_mutex_unlock(&process.lock);
}

bool mixtral_process_init(void)
{
    bool ready;

    pthread_mutex_lock(&process.lock);
    if (!process.ready && init_condition())
        process.ready = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
    ready = process.ready;
    pthread_mutex_unlock(&process.lock);
    return ready;
}
