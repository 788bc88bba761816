/*
 * test_server.c: the whole way from a client through the socket to a real, tiny model and back: results, errors, hostile frames,
 * cancellation, slow and dying readers, limits, closing, and fork.
 */
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include "../../core/server/server.h"
#include "../../core/server/wire.h"
#include "serving.h"

/* A request of so many bytes, NUL included: `head`, letters, and the end of string and object. */
static void fill_text(char *text, size_t bytes, const char *head)
{
    for (size_t i = 0; i < bytes; i++)
        text[i] = (char)('a' + i % 23);
    memcpy(text, head, strlen(head));
    memcpy(text + bytes - 3, "\"}", 3);
}

/* A stream that does not end by itself soon. */
#define ENDLESS "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":100000,\"ignore_eos\":true,\"n\":8}}"

/* ---- Results ---- */

static void chat_streams_and_ends_with_a_result(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    mx_event event;
    json_t *json, *choice;
    char *pieces;
    (void)state;

    event = last_event(client, request(client, "{\"op\":\"chat\",\"prompt\":\"abc\",\"options\":"
                                               "{\"max_tokens\":12,\"ignore_eos\":true,\"seed\":5,\"template\":\"mixtral\"}}"),
                       &pieces);
    assert_int_equal(event.type, MX_EVENT_RESULT);
    json = json_loads(event.json, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "text")), pieces);
    assert_string_equal(json_string_value(json_object_get(json, "finish_reason")), "length");
    assert_int_equal(json_integer_value(json_object_get(json, "completion_tokens")), 12);
    assert_true(json_integer_value(json_object_get(json, "prompt_tokens")) > 3);
    assert_int_equal(json_integer_value(json_object_get(json, "cached_tokens")), 0);
    assert_int_equal(json_integer_value(json_object_get(json, "seed")), 5);
    assert_string_equal(json_string_value(json_object_get(json, "model")), "tiny");
    assert_true(json_is_number(json_object_get(json, "first_token_ms")));
    assert_true(json_number_value(json_object_get(json, "total_ms")) >=
                json_number_value(json_object_get(json, "first_token_ms")));
    choice = json_array_get(json_object_get(json, "choices"), 0);
    assert_string_equal(json_string_value(json_object_get(choice, "text")), pieces);
    assert_null(json_object_get(choice, "logprobs"));
    json_decref(json);
    free(pieces);
    mx_client_close(client);
    mx_engine_close(engine);
}

/* Said with the first piece, before the result can say it, and not again. */
static void the_first_piece_says_what_was_cached(void **state)
{
    static const char text[] = "{\"op\":\"complete\",\"prompt\":\"0123456789012345678901234567890123456789 and so on and on\","
                               "\"options\":{\"max_tokens\":6,\"ignore_eos\":true,\"n\":2}}";
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    mx_event event;
    mx_error error;
    json_t *json;
    (void)state;

    for (int round = 0; round < 2; round++) {
        int told = -1, n_pieces = 0;

        request(client, text);
        while (next_event(client, &event, &error) == MX_OK && event.type == MX_EVENT_PIECE) {
            assert_true(n_pieces == 0 ? event.cached_tokens >= 0 : event.cached_tokens == -1);
            told = n_pieces++ == 0 ? event.cached_tokens : told;
        }
        assert_int_equal(event.type, MX_EVENT_RESULT);
        json = json_loads(event.json, 0, NULL);
        assert_int_equal(told, json_integer_value(json_object_get(json, "cached_tokens")));
        assert_true(round == 0 ? told == 0 : told >= 32);
        json_decref(json);
    }
    mx_client_close(client);
    mx_engine_close(engine);
}

static void seeds_and_choices_and_logprobs(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    json_t *first, *again, *choices, *logprobs, *entry;
    char text[256];
    (void)state;

    first = result_of(client, "{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"max_tokens\":8,\"ignore_eos\":true,"
                              "\"temperature\":1,\"n\":3,\"logprobs\":true,\"top_logprobs\":2}}");
    choices = json_object_get(first, "choices");
    assert_int_equal(json_array_size(choices), 3);
    for (size_t i = 0; i < 3; i++) {
        logprobs = json_object_get(json_object_get(json_array_get(choices, i), "logprobs"), "content");
        assert_int_equal(json_array_size(logprobs), 8);
        entry = json_array_get(logprobs, 0);
        assert_true(json_is_string(json_object_get(entry, "token")));
        assert_true(json_number_value(json_object_get(entry, "logprob")) <= 0);
        assert_true(json_is_array(json_object_get(entry, "bytes")));
        assert_int_equal(json_array_size(json_object_get(entry, "top_logprobs")), 2);
    }
    /* the seed that was drawn gives the same text again */
    snprintf(text, sizeof(text), "{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"max_tokens\":8,\"ignore_eos\":true,"
             "\"temperature\":1,\"n\":3,\"seed\":%lld}}", (long long)json_integer_value(json_object_get(first, "seed")));
    again = result_of(client, text);
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(choices, i), "text")),
                            json_string_value(json_object_get(json_array_get(json_object_get(again, "choices"), i), "text")));
    json_decref(first);
    json_decref(again);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void the_result_names_the_stop_string(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    json_t *json, *choice;
    (void)state;

    json = result_of(client, "{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"max_tokens\":8,\"ignore_eos\":true,"
                             "\"temperature\":0}}");
    choice = json_array_get(json_object_get(json, "choices"), 0);
    assert_null(json_object_get(choice, "stop"));
    json_decref(json);
    /* of every letter the first that comes ends it */
    json = result_of(client, "{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"max_tokens\":400,\"ignore_eos\":true,"
                             "\"temperature\":1,\"seed\":1,\"stop\":[\"a\",\"e\",\"i\",\"o\"]}}");
    choice = json_array_get(json_object_get(json, "choices"), 0);
    assert_string_equal(json_string_value(json_object_get(choice, "finish_reason")), "stop");
    assert_non_null(strchr("aeio", json_string_value(json_object_get(choice, "stop"))[0]));
    json_decref(json);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void other_operations(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    json_t *json, *item;
    double norm = 0, value;
    char *tokens, text[512];
    size_t i;
    (void)state;

    json = result_of(client, "{\"op\":\"embed\",\"text\":\"hello\"}");
    assert_int_equal(json_array_size(json_object_get(json, "embedding")), DIM);
    json_array_foreach(json_object_get(json, "embedding"), i, item) {
        value = json_number_value(item);
        norm += value * value;
    }
    assert_true(norm > 0.999 && norm < 1.001);
    assert_true(json_integer_value(json_object_get(json, "tokens")) > 0);
    json_decref(json);

    json = result_of(client, "{\"op\":\"tokenize\",\"text\":\"h\xc3\xa9llo\"}");
    i = json_array_size(json_object_get(json, "tokens"));
    assert_true(i > 0);
    item = json_array();
    for (size_t j = 0; j < i; j++) {
        json_t *token = json_array_get(json_object_get(json, "tokens"), j);

        assert_true(json_is_string(json_object_get(token, "piece")));
        json_array_append(item, json_object_get(token, "id"));
    }
    tokens = json_dumps(item, 0);
    snprintf(text, sizeof(text), "{\"op\":\"detokenize\",\"tokens\":%s}", tokens);
    free(tokens);
    json_decref(item);
    json_decref(json);
    json = result_of(client, text);
    assert_string_equal(json_string_value(json_object_get(json, "text")), "h\xc3\xa9llo");
    json_decref(json);
    json = result_of(client, "{\"op\":\"token_count\",\"text\":\"h\xc3\xa9llo\"}");
    assert_int_equal(json_integer_value(json_object_get(json, "count")), i);
    json_decref(json);

    json = result_of(client, "{\"op\":\"chunks\",\"text\":\"one two three four five six\",\"size\":8,\"overlap\":2}");
    assert_true(json_array_size(json_object_get(json, "chunks")) > 1);
    item = json_array_get(json_object_get(json, "chunks"), 0);
    assert_int_equal(json_integer_value(json_object_get(item, "start")), 0);
    assert_int_equal(strlen(json_string_value(json_object_get(item, "text"))),
                     json_integer_value(json_object_get(item, "end")));
    assert_true(json_integer_value(json_object_get(item, "tokens")) <= 8);
    json_decref(json);

    json = result_of(client, "{\"op\":\"models\"}");
    item = json_array_get(json_object_get(json, "models"), 0);
    assert_string_equal(json_string_value(json_object_get(item, "name")), "tiny");
    assert_string_equal(json_string_value(json_object_get(item, "architecture")), "llama");
    assert_int_equal(json_integer_value(json_object_get(item, "dim")), DIM);
    assert_int_equal(strlen(json_string_value(json_object_get(item, "identity"))), 64);
    assert_null(json_object_get(item, "path"));
    json_decref(json);
    assert_true(figure(client, "kv_blocks_total") > 0);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void bad_requests_leave_the_connection_alive(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    size_t bytes = (size_t)1 << 22;
    char *text = malloc(bytes);
    mx_event event;
    (void)state;

    expect_error(client, "{\"op\":\"dance\"}", MX_INVALID, "op: expected chat");
    expect_error(client, "{\"op\":\"chat\",\"prompt\":\"a\",\"options\":{\"top_p\":1.5}}", MX_INVALID,
                 "option top_p: expected a number from 0 to 1, got 1.5");
    expect_error(client, "{\"op\":\"chat\",\"prompt\":\"a\",\"options\":{\"model\":\"other\"}}", MX_NOT_FOUND, "\"tiny\"");
    expect_error(client, "{\"op\":\"chat\",\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}", MX_INVALID, "");
    fill_text(text, bytes, "{\"op\":\"complete\",\"prompt\":\"");
    event = last_event(client, request(client, text), NULL);
    assert_int_equal(event.type, MX_EVENT_ERROR);
    assert_int_equal(event.error.status, MX_TOO_LARGE);
    assert_non_null(strstr(event.error.text, "do not fit a context of"));
    json_decref(result_of(client, "{\"op\":\"stats\"}"));
    free(text);
    mx_client_close(client);
    mx_engine_close(engine);
}

/* ---- Hostile frames ---- */

typedef struct {
    mx_frame_type type;
    uint32_t id;
    const char *body;
} sent_frame;

static const sent_frame greeting = {MX_FRAME_HELLO, 0, "{\"protocol\":1,\"version\":\"0.0.test\"}"};

static mx_status read_frame(int fd, mx_buffer *in, mx_frame *frame)
{
    mx_error error;
    mx_status status;

    while ((status = mx_frame_peek(in, MX_FROM_SERVER, frame, &error)) == MX_AGAIN) {
        struct pollfd p = {.fd = fd, .events = POLLIN};

        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
        status = mx_buffer_receive(in, fd, NULL, &error);
        if (status != MX_OK)
            return status;
    }
    return status;
}

/* Sends bytes; the answer is a HELLO, perhaps, an ERROR about the connection with `expected` in its text, and the end. */
static void expect_bytes_closed(mx_engine *engine, const char *data, size_t bytes, const char *expected)
{
    mx_buffer in = {0};
    mx_frame frame;
    mx_error error;
    json_t *json;
    int fd;

    assert_int_equal(mx_engine_connect(engine, &fd, &error), MX_OK);
    assert_int_equal(send(fd, data, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
    assert_int_equal(read_frame(fd, &in, &frame), MX_OK);
    assert_int_equal(frame.type, MX_FRAME_HELLO);
    mx_frame_consume(&in, &frame);
    do {
        assert_int_equal(read_frame(fd, &in, &frame), MX_OK);
        if (frame.id != 0)
            mx_frame_consume(&in, &frame);
    } while (frame.id != 0);
    assert_int_equal(frame.type, MX_FRAME_ERROR);
    json = json_loadb(frame.body, frame.body_bytes, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "status")), "corrupt");
    if (!strstr(json_string_value(json_object_get(json, "text")), expected))
        fail_msg("expected \"%s\" in \"%s\"", expected, json_string_value(json_object_get(json, "text")));
    json_decref(json);
    mx_frame_consume(&in, &frame);
    assert_int_equal(read_frame(fd, &in, &frame), MX_UNAVAILABLE);
    mx_buffer_free(&in);
    close(fd);
}

/* The same for up to two frames and what follows them. */
static void expect_closed(mx_engine *engine, sent_frame first, sent_frame second, const char *expected)
{
    mx_buffer out = {0};
    mx_error error;

    assert_int_equal(mx_frame_append(&out, first.type, first.id, first.body, strlen(first.body), &error), MX_OK);
    if (second.body)
        assert_int_equal(mx_frame_append(&out, second.type, second.id, second.body, strlen(second.body), &error), MX_OK);
    expect_bytes_closed(engine, out.data, mx_buffer_bytes(&out), expected);
    mx_buffer_free(&out);
}

/* The same for a request after the greeting. */
static void expect_request_closed(mx_engine *engine, const char *body, const char *expected)
{
    expect_closed(engine, greeting, (sent_frame){MX_FRAME_REQUEST, 1, body}, expected);
}

static void hostile_frames_close_the_connection(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    const sent_frame none = {0};
    mx_buffer out = {0};
    mx_error error;
    char deep[200];
    (void)state;

    expect_bytes_closed(engine, "GET / HTTP/1.1\r\n\r\n", 18, "frame:");
    expect_closed(engine, (sent_frame){MX_FRAME_REQUEST, 1, "{}"}, none, "expected a hello first, got a request");
    expect_closed(engine, (sent_frame){MX_FRAME_HELLO, 0, "{\"protocol\":7,\"version\":\"7.7\"}"}, none,
                  "(version 7.7) speaks protocol 7, this one (version " MX_VERSION ") speaks 1");
    expect_closed(engine, (sent_frame){MX_FRAME_HELLO, 0, "{}"}, none, "hello:");
    expect_closed(engine, greeting, greeting, "a second hello");
    expect_closed(engine, greeting, (sent_frame){MX_FRAME_RESULT, 1, "{}"}, "does not come from the client");
    expect_closed(engine, greeting, (sent_frame){MX_FRAME_REQUEST, 0, "{}"}, "needs a request id");
    expect_request_closed(engine, "[]", "JSON: expected an object");
    expect_request_closed(engine, "{{", "JSON:");
    expect_request_closed(engine, "{\"op\":\"stats\",\"op\":\"stats\"}", "JSON: duplicate");
    expect_request_closed(engine, "{\"op\":\"\xff\"}", "JSON:");
    memset(deep, '[', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = '\0';
    expect_request_closed(engine, deep, "nested deeper than 32");

    /* a header is enough */
    assert_int_equal(mx_hello_append(&out, &error), MX_OK);
    assert_int_equal(mx_buffer_append(&out, "\xff\xff\xff\x7f\x02\0\0\0\x01\0\0\0", 12, &error), MX_OK);
    expect_bytes_closed(engine, out.data, mx_buffer_bytes(&out), "got 2147483647");
    mx_buffer_free(&out);

    /* an id that is in use */
    assert_int_equal(mx_hello_append(&out, &error), MX_OK);
    assert_int_equal(mx_frame_append(&out, MX_FRAME_REQUEST, 9, ENDLESS, strlen(ENDLESS), &error), MX_OK);
    assert_int_equal(mx_frame_append(&out, MX_FRAME_REQUEST, 9, ENDLESS, strlen(ENDLESS), &error), MX_OK);
    expect_bytes_closed(engine, out.data, mx_buffer_bytes(&out), "request id 9 is in use");
    mx_buffer_free(&out);

    wait_until_idle(client); /* and others do not notice */
    mx_client_close(client);
    mx_engine_close(engine);
}

/* ---- Cancelling and leaving ---- */

static void cancel_ends_a_request(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine), *other = open_client(engine);
    uint32_t id, second;
    mx_event event;
    mx_error error;
    (void)state;

    id = request(client, ENDLESS);
    second = request(client, ENDLESS);
    assert_int_equal(next_event(client, &event, &error), MX_OK);
    assert_int_equal(event.type, MX_EVENT_PIECE);
    assert_true(figure(other, "requests_running") + figure(other, "requests_waiting") >= 1); /* answered while it computes */
    assert_int_equal(mx_client_cancel(client, 4711, &error), MX_OK); /* nobody's */
    assert_int_equal(mx_client_cancel(client, id, &error), MX_OK);
    event = last_event(client, id, NULL);
    assert_int_equal(event.type, MX_EVENT_ERROR);
    assert_int_equal(event.error.status, MX_CANCELLED);
    assert_int_equal(mx_client_cancel(client, second, &error), MX_OK);
    event = last_event(client, second, NULL);
    assert_int_equal(event.error.status, MX_CANCELLED);
    wait_until_idle(other);
    json_decref(result_of(client, "{\"op\":\"stats\"}"));
    mx_client_close(client);
    mx_client_close(other);
    mx_engine_close(engine);
}

static void a_client_that_leaves_is_cancelled(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client, *other = open_client(engine);
    mx_event event;
    mx_error error;
    (void)state;

    for (int i = 0; i < 3; i++) {
        client = open_client(engine);
        request(client, ENDLESS);
        request(client, ENDLESS);
        if (i > 0)
            assert_int_equal(next_event(client, &event, &error), MX_OK);
        mx_client_close(client);
    }
    wait_until_idle(other);
    mx_client_close(other);
    mx_engine_close(engine);
}

static void time_limits_end_requests(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    (void)state;

    expect_error(client, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":100000,\"ignore_eos\":true,"
                         "\"timeout_ms\":50}}", MX_TIMEOUT, "50");
    wait_until_idle(client);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void a_busy_worker_is_no_reason_to_wait(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine), *other = open_client(engine);
    size_t bytes = (size_t)12 << 20;
    char *text = malloc(bytes);
    uint32_t long_one, limited, cancelled;
    mx_event event;
    mx_error error;
    double before;
    (void)state;

    fill_text(text, bytes, "{\"op\":\"token_count\",\"text\":\"");
    long_one = request(client, text);
    limited = request(client, "{\"op\":\"token_count\",\"text\":\"a\",\"options\":{\"timeout_ms\":1}}");
    cancelled = request(client, "{\"op\":\"token_count\",\"text\":\"a\"}");
    assert_int_equal(mx_client_cancel(client, cancelled, &error), MX_OK);
    assert_int_equal(mx_client_cancel(client, long_one, &error), MX_OK);
    before = now_ms();
    json_decref(result_of(other, "{\"op\":\"stats\"}"));
    assert_true(now_ms() - before < 2000);
    for (int i = 0; i < 3; i++) { /* in any order */
        assert_int_equal(next_event(client, &event, &error), MX_OK);
        if (event.type == MX_EVENT_RESULT) /* the worker was faster than we are */
            continue;
        assert_int_equal(event.error.status, event.id == limited ? MX_TIMEOUT : MX_CANCELLED);
    }
    json_decref(result_of(client, "{\"op\":\"token_count\",\"text\":\"a\"}"));
    free(text);
    mx_client_close(client);
    mx_client_close(other);
    mx_engine_close(engine);
}

/* ---- Slow readers ---- */

/* The number of tokens made so far, once it has stopped growing. */
static int64_t settled(mx_client *client)
{
    double until = now_ms() + PATIENCE_MS;
    int64_t before, after = figure(client, "completion_tokens");

    do {
        before = after;
        pause_ms(300);
        after = figure(client, "completion_tokens");
        if (now_ms() > until)
            fail_msg("a stream that nobody reads goes on: %lld tokens", (long long)after);
    } while (after != before || after == 0);
    return after;
}

/* Token budget of one choice that overflows socket buffer and stream buffer many times. */
#define LONG_STREAM "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":2500,\"ignore_eos\":true,\"n\":8}}"

static void slow_readers_wait_alone(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *slow = open_client(engine), *other = open_client(engine);
    uint32_t id = request(slow, LONG_STREAM);
    mx_event event;
    json_t *json;
    char *pieces;
    (void)state;

    assert_true(settled(other) < 8 * 2500);
    assert_int_equal(figure(other, "requests_running"), 1);
    json_decref(result_of(other, "{\"op\":\"complete\",\"prompt\":\"b\",\"options\":{\"max_tokens\":5}}")); /* not held up */
    event = last_event(slow, id, &pieces);
    assert_int_equal(event.type, MX_EVENT_RESULT);
    json = json_loads(event.json, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "text")), pieces);
    assert_int_equal(json_integer_value(json_object_get(json, "completion_tokens")), 8 * 2500);
    json_decref(json);
    free(pieces);
    mx_client_close(slow);
    mx_client_close(other);
    mx_engine_close(engine);
}

static void stalled_readers_lose_their_request(void **state)
{
    const mx_engine_options options = {.threads = 1, .name = "tiny", .stall_timeout_ms = 300};
    mx_engine *engine = open_engine_with(&options);
    mx_client *slow = open_client(engine), *other = open_client(engine);
    uint32_t id = request(slow, LONG_STREAM);
    mx_event event;
    (void)state;

    settled(other);
    wait_until_idle(other);
    event = last_event(slow, id, NULL);
    assert_int_equal(event.type, MX_EVENT_ERROR);
    assert_int_equal(event.error.status, MX_TIMEOUT);
    assert_non_null(strstr(event.error.text, "300 ms"));
    json_decref(result_of(slow, "{\"op\":\"stats\"}")); /* the connection itself lives on */
    mx_client_close(slow);
    mx_client_close(other);
    mx_engine_close(engine);
}

/* ---- Limits ---- */

static void connections_are_bounded(void **state)
{
    struct rlimit limit;
    mx_engine *engine = open_engine();
    static int fds[MX_CONNECTIONS_MAX];
    mx_client *client;
    mx_error error;
    int fd, n = 0;
    (void)state;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur < 2 * MX_CONNECTIONS_MAX + 100)
        skip();
    client = open_client(engine);
    for (n = 0; n < MX_CONNECTIONS_MAX - 1; n++)
        assert_int_equal(mx_engine_connect(engine, &fds[n], &error), MX_OK);
    assert_int_equal(mx_engine_connect(engine, &fd, &error), MX_BUSY);
    assert_non_null(strstr(error.text, "1024 connections are open"));
    assert_int_equal(fd, -1);
    json_decref(result_of(client, "{\"op\":\"stats\"}"));
    while (n > 0)
        close(fds[--n]);
    for (double until = now_ms() + PATIENCE_MS; mx_engine_connect(engine, &fd, &error) != MX_OK; pause_ms(1))
        assert_true(now_ms() < until);
    close(fd);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void requests_of_a_connection_are_bounded(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    int busy = 0, cancelled = 0;
    mx_event event;
    mx_error error;
    (void)state;

    for (int i = 0; i < 300; i++)
        request(client, ENDLESS);
    for (uint32_t id = 1; id <= 300; id++)
        assert_int_equal(mx_client_cancel(client, id, &error), MX_OK);
    while (busy + cancelled < 300) {
        assert_int_equal(next_event(client, &event, &error), MX_OK);
        if (event.type == MX_EVENT_PIECE)
            continue;
        assert_int_equal(event.type, MX_EVENT_ERROR);
        assert_true(event.error.status == MX_BUSY || event.error.status == MX_CANCELLED);
        busy += event.error.status == MX_BUSY;
        cancelled += event.error.status == MX_CANCELLED;
    }
    assert_true(busy >= 300 - 256);
    wait_until_idle(client);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void engine_options_are_checked(void **state)
{
    static const struct {
        mx_engine_options options;
        const char *field;
    } cases[] = {
        {{.threads = -1}, "threads"},          {{.threads = 257}, "threads"},
        {{.context = -1}, "context"},          {{.context = 1 << 30}, "context"},
        {{.kv_pool_bytes = -1}, "kv_pool_bytes"}, {{.max_queue = -1}, "max_queue"},
        {{.stall_timeout_ms = -1}, "stall_timeout_ms"}, {{.kernels = "abacus"}, "kernels"},
        {{.kv_type = "q4_0"}, "kv_type"},
    };
    mx_engine *engine;
    mx_error error;
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(mx_engine_open(model_path, &cases[i].options, &engine, &error), MX_INVALID);
        assert_string_equal(error.field, cases[i].field);
        assert_null(engine);
    }
    assert_int_equal(mx_engine_open("/nonexistent/model.gguf", NULL, &engine, &error), MX_NOT_FOUND);
    assert_non_null(strstr(error.text, "model.gguf: cannot open: No such file or directory"));
    mx_engine_close(NULL);
    mx_engine_abandon(NULL);
}

/* ---- Closing, forking, many at once ---- */

static void closing_the_engine_tells_its_clients(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *running = open_client(engine), *idle = open_client(engine), *silent = open_client(engine);
    uint32_t id = request(running, ENDLESS);
    mx_event event;
    mx_error error;
    mx_status status;
    bool told = false;
    (void)state;

    assert_int_equal(next_event(running, &event, &error), MX_OK);
    request(silent, ENDLESS);
    mx_engine_close(engine);
    while ((status = next_event(running, &event, &error)) == MX_OK) {
        if (event.type == MX_EVENT_PIECE)
            continue;
        assert_int_equal(event.id, id);
        assert_int_equal(event.type, MX_EVENT_ERROR);
        assert_int_equal(event.error.status, MX_UNAVAILABLE);
        told = true;
    }
    assert_true(told);
    assert_int_equal(status, MX_UNAVAILABLE);
    assert_int_equal(next_event(idle, &event, &error), MX_UNAVAILABLE);
    assert_int_equal(mx_client_request(idle, "{}", &id, &error), MX_UNAVAILABLE);
    mx_client_close(running);
    mx_client_close(idle);
    mx_client_close(silent);
}

/* A host that waits for drain's 0 before it closes loses nothing of what its clients have still to read. */
static void draining_waits_for_readers(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    size_t bytes = (size_t)100 << 10;
    char *text = malloc(bytes);
    int waiting = 0;
    mx_event event;
    mx_error error;
    uint32_t id;
    (void)state;

    fill_text(text, bytes, "{\"op\":\"tokenize\",\"text\":\"");
    id = request(client, text); /* whose result is more than a socket holds */
    while (mx_client_events(client) & POLLOUT) { /* until it is sent */
        assert_int_equal(mx_client_next(client, &event, &error), MX_AGAIN);
        pause_ms(1);
    }
    for (double until = now_ms() + PATIENCE_MS; waiting < 10000; pause_ms(1)) { /* the answer has begun to come */
        assert_int_equal(ioctl(mx_client_fd(client), FIONREAD, &waiting), 0);
        assert_true(now_ms() < until);
    }
    pause_ms(300);
    assert_true(mx_engine_drain(engine) > 0);
    event = last_event(client, id, NULL);
    assert_int_equal(event.type, MX_EVENT_RESULT);
    for (double until = now_ms() + PATIENCE_MS; mx_engine_drain(engine) > 0; pause_ms(1))
        assert_true(now_ms() < until);
    free(text);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void a_forked_child_gives_up_its_copy(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    int status;
    pid_t child;
    (void)state;

    json_decref(result_of(client, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":5}}"));
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int fd = mx_client_fd(client);

        mx_client_abandon(client);
        mx_engine_abandon(engine);
        _exit(recv(fd, &status, 1, MSG_DONTWAIT) < 0 ? 0 : 1); /* the descriptor is closed */
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    json_decref(result_of(client, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":5}}"));
    mx_client_close(client);
    mx_engine_close(engine);
}

static void *use_engine(void *arg)
{
    mx_engine *engine = arg;
    mx_client *client;
    mx_event event;
    mx_error error;

    for (int i = 0; i < 8; i++) {
        client = open_client(engine);
        json_decref(result_of(client, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":9}}"));
        json_decref(result_of(client, "{\"op\":\"token_count\",\"text\":\"abc\"}"));
        request(client, ENDLESS);
        if (i % 2)
            next_event(client, &event, &error);
        mx_client_close(client);
    }
    return NULL;
}

static void many_threads_share_an_engine(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client;
    pthread_t threads[4];
    (void)state;

    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_engine, engine), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    client = open_client(engine);
    wait_until_idle(client);
    mx_client_close(client);
    mx_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chat_streams_and_ends_with_a_result),
        cmocka_unit_test(the_first_piece_says_what_was_cached),
        cmocka_unit_test(seeds_and_choices_and_logprobs),
        cmocka_unit_test(the_result_names_the_stop_string),
cmocka_unit_test(other_operations),
        cmocka_unit_test(bad_requests_leave_the_connection_alive),
        cmocka_unit_test(hostile_frames_close_the_connection),
        cmocka_unit_test(cancel_ends_a_request),
        cmocka_unit_test(a_client_that_leaves_is_cancelled),
        cmocka_unit_test(time_limits_end_requests),
        cmocka_unit_test(a_busy_worker_is_no_reason_to_wait),
        cmocka_unit_test(slow_readers_wait_alone),
        cmocka_unit_test(stalled_readers_lose_their_request),
        cmocka_unit_test(connections_are_bounded),
        cmocka_unit_test(requests_of_a_connection_are_bounded),
        cmocka_unit_test(engine_options_are_checked),
        cmocka_unit_test(closing_the_engine_tells_its_clients),
        cmocka_unit_test(draining_waits_for_readers),
        cmocka_unit_test(a_forked_child_gives_up_its_copy),
        cmocka_unit_test(many_threads_share_an_engine),
    };

    return cmocka_run_group_tests(tests, write_model, remove_model);
}
