/*
 * engine.c: mx_engine_*: the models and the server in front of them, opened and closed in order.
 *
 * The list of models grows under the lock; the rest is immutable after open but for what its parts guard themselves. Whoever
 * closes an engine makes sure that nobody uses it any more; clients may outlive it and see MX_UNAVAILABLE.
 */
#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"
#include "server.h"

#define DEFAULT_MAX_QUEUE 256
#define DEFAULT_STALL_TIMEOUT_MS 60000

struct mx_engine {
    pthread_mutex_t lock; /* of adding a model */
    mx_served_list models;
    mx_tenants *tenants;
    mx_server *server;
};

/* Opens a model and puts it at the end of the list. */
static mx_status add_model(mx_engine *engine, const char *path, const mx_engine_options *options, mx_error *error)
{
    mx_served_list *list = &engine->models;
    int n = atomic_load(&list->n);
    mx_served *served;
    mx_status status;

    if (n == MX_SERVED_MAX)
        return mx_fail(error, MX_BUSY, NULL, "%d models are open, and no more can be", n);
    status = mx_served_open(path, options, &served, error);
    if (status != MX_OK)
        return status;
    if (n > 0 && mx_served_find(list, served->name)) {
        status = mx_fail(error, MX_INVALID, "name", "option name: a model named %s is open already", served->name);
        mx_served_close(served);
        return status;
    }
    list->models[n] = served;
    atomic_store(&list->n, n + 1);
    return MX_OK;
}

static mx_status open_server(mx_engine *engine, const mx_engine_options *options, mx_error *error)
{
    mx_server_options o = {
        .models = &engine->models,
        .tenants = engine->tenants,
        .tenant_limits = {options->tenant_requests, options->tenant_tokens_per_minute},
        .max_queue = options->max_queue ? options->max_queue : DEFAULT_MAX_QUEUE,
        .stall_timeout_ms = options->stall_timeout_ms ? options->stall_timeout_ms : DEFAULT_STALL_TIMEOUT_MS,
        .log = options->log,
        .log_arg = options->log_arg,
    };

    return mx_server_open(&o, &engine->server, error);
}

mx_status mx_engine_open(const char *path, const mx_engine_options *options, mx_engine **engine, mx_error *error)
{
    const mx_engine_options defaults = {0};
    mx_engine *e;
    mx_status status;

    *engine = NULL;
    if (!options)
        options = &defaults;
    if (sodium_init() < 0)
        return mx_fail(error, MX_INTERNAL, NULL, "libsodium cannot be initialised");
    e = calloc(1, sizeof(*e));
    if (!e || pthread_mutex_init(&e->lock, NULL) != 0) {
        free(e);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for an engine");
    }
    status = add_model(e, path, options, error);
    if (status == MX_OK)
        status = mx_tenants_open(&e->tenants, error);
    if (status == MX_OK)
        status = open_server(e, options, error);
    if (status != MX_OK)
        mx_engine_close(e);
    else
        *engine = e;
    return status;
}

mx_status mx_engine_add(mx_engine *engine, const char *path, const mx_engine_options *options, mx_error *error)
{
    const mx_engine_options defaults = {0};
    mx_status status;

    pthread_mutex_lock(&engine->lock);
    status = add_model(engine, path, options ? options : &defaults, error);
    pthread_mutex_unlock(&engine->lock);
    return status;
}

mx_status mx_engine_connect(mx_engine *engine, int *fd, mx_error *error)
{
    return mx_server_connect(engine->server, fd, error);
}

mx_status mx_engine_listen(mx_engine *engine, int fd, const uint32_t *trusted_uids, size_t n_trusted, mx_error *error)
{
    _Static_assert(sizeof(uid_t) == sizeof(uint32_t), "a uid has 32 bits");
    return mx_server_listen(engine->server, fd, trusted_uids, n_trusted, error);
}

int mx_engine_drain(mx_engine *engine)
{
    int left;

    mx_server_drain(engine->server);
    left = mx_server_pending(engine->server); /* in this order: worker, scheduler, connection */
    for (int i = 0; i < atomic_load(&engine->models.n); i++)
        left += mx_scheduler_live(engine->models.models[i]->scheduler);
    return left + mx_server_unsent(engine->server);
}

/* The last frames of what runs need the server's connections and the models' tokenizers: hence the order. */
void mx_engine_close(mx_engine *engine)
{
    if (!engine)
        return;
    if (engine->server)
        mx_server_stop(engine->server);
    for (int i = 0; i < atomic_load(&engine->models.n); i++)
        mx_served_close(engine->models.models[i]);
    mx_server_close(engine->server);
    mx_tenants_close(engine->tenants);
    pthread_mutex_destroy(&engine->lock);
    free(engine);
}

void mx_engine_abandon(mx_engine *engine)
{
    if (engine)
        mx_server_abandon(engine->server);
}
