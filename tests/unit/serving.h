/*
 * serving.h: an engine with a real, tiny model, and clients that wait for its answers with a deadline. For test programs with cmocka.
 */
#ifndef MX_TESTS_SERVING_H
#define MX_TESTS_SERVING_H

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>
#include "../../core/model/synth.h"
#include "../../core/mx.h"

#define PATIENCE_MS 60000 /* a sanitizer on a busy machine */

#define DIM 32

static char folder[] = "/tmp/mixtral_test.XXXXXX";
static char model_path[64];

static inline int write_model(void **state)
{
    mx_synth_options o = mx_synth_defaults();
    mx_error error;
    (void)state;

    o.layers = 1;
    o.dim = DIM;
    o.ff = 32;
    o.heads = 1;
    o.kv_heads = 1;
    o.experts = 2;
    o.experts_used = 1;
    o.vocab_size = 320;
    o.context = 131072;
    o.type = MX_TYPE_Q8_0;
    if (!mkdtemp(folder))
        return -1;
    snprintf(model_path, sizeof(model_path), "%s/tiny.gguf", folder);
    if (mx_synth_model(model_path, &o, &error) == MX_OK)
        return 0;
    fprintf(stderr, "%s\n", error.text);
    return -1;
}

static inline int remove_model(void **state)
{
    (void)state;
    unlink(model_path);
    return rmdir(folder);
}

static inline double now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static inline void pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

/* ---- Engines and clients ---- */

static inline mx_engine *open_engine_with(const mx_engine_options *options)
{
    mx_engine *engine;
    mx_error error;

    if (mx_engine_open(model_path, options, &engine, &error) != MX_OK)
        fail_msg("%s", error.text);
    return engine;
}

static inline mx_engine *open_engine(void)
{
    const mx_engine_options options = {.threads = 1, .name = "tiny"};

    return open_engine_with(&options);
}

static inline mx_client *open_client(mx_engine *engine)
{
    mx_client *client;
    mx_error error;
    int fd;

    assert_int_equal(mx_engine_connect(engine, &fd, &error), MX_OK);
    assert_int_equal(mx_client_open(fd, &client, &error), MX_OK);
    return client;
}

static inline uint32_t request(mx_client *client, const char *json)
{
    mx_error error;
    uint32_t id;

    if (mx_client_request(client, json, &id, &error) != MX_OK)
        fail_msg("%s: %s", json, error.text);
    return id;
}

/* The next event, waited for. */
static inline mx_status next_event(mx_client *client, mx_event *event, mx_error *error)
{
    double until = now_ms() + PATIENCE_MS;
    mx_status status;

    while ((status = mx_client_next(client, event, error)) == MX_AGAIN) {
        struct pollfd fd = {.fd = mx_client_fd(client), .events = mx_client_events(client)};

        poll(&fd, 1, 100);
        if (now_ms() > until)
            fail_msg("no event within %d ms", PATIENCE_MS);
    }
    return status;
}

/* Reads on to the request's last event, which it gives, with the text of the pieces of choice 0 in *text (for free(); may be
 * NULL). */
static inline mx_event last_event(mx_client *client, uint32_t id, char **text)
{
    char *pieces = calloc(1, 1);
    size_t bytes = 0;
    mx_event event;
    mx_error error;

    do {
        if (next_event(client, &event, &error) != MX_OK)
            fail_msg("%s", error.text);
        if (event.type == MX_EVENT_PIECE && event.id == id && event.choice == 0) {
            assert_int_equal(strlen(event.text), event.text_bytes);
            pieces = realloc(pieces, bytes + event.text_bytes + 1);
            memcpy(pieces + bytes, event.text, event.text_bytes + 1);
            bytes += event.text_bytes;
        }
    } while (event.id != id || event.type == MX_EVENT_PIECE);
    if (text)
        *text = pieces;
    else
        free(pieces);
    return event;
}

/* The result of a request that succeeds, for json_decref. */
static inline json_t *result_of(mx_client *client, const char *text)
{
    mx_event event = last_event(client, request(client, text), NULL);
    json_t *json;

    if (event.type != MX_EVENT_RESULT)
        fail_msg("%s: %s", text, event.error.text);
    json = json_loads(event.json, 0, NULL);
    assert_non_null(json);
    return json;
}

static inline void expect_error(mx_client *client, const char *text, mx_status status, const char *expected)
{
    mx_event event = last_event(client, request(client, text), NULL);

    assert_int_equal(event.type, MX_EVENT_ERROR);
    if (event.error.status != status || !strstr(event.error.text, expected))
        fail_msg("%s: expected \"%s\", got %s \"%s\"", text, expected, mx_status_name(event.error.status),
                 event.error.text);
}

static inline int64_t figure(mx_client *client, const char *name)
{
    json_t *stats = result_of(client, "{\"op\":\"stats\"}");
    int64_t value;

    assert_true(json_is_integer(json_object_get(stats, name)));
    value = json_integer_value(json_object_get(stats, name));
    json_decref(stats);
    return value;
}

/* One look at all figures: between two, a request may go from one to the other. */
static inline bool is_idle(mx_client *client)
{
    json_t *stats = result_of(client, "{\"op\":\"stats\"}");
    json_int_t left = json_integer_value(json_object_get(stats, "requests_running")) +
                      json_integer_value(json_object_get(stats, "requests_waiting")) +
                      json_integer_value(json_object_get(stats, "kv_blocks_used"));

    json_decref(stats);
    return left == 0;
}

static inline void wait_until_idle(mx_client *client)
{
    double until = now_ms() + PATIENCE_MS;

    while (!is_idle(client)) {
        if (now_ms() > until)
            fail_msg("requests still run, or their blocks are in use, after %d ms", PATIENCE_MS);
        pause_ms(5);
    }
}

#endif
