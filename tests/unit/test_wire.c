/*
 * test_wire.c: frames, buffers, JSON bounds, and the client against a server that misbehaves.
 */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/model/synth.h"
#include "../../core/server/wire.h"

/* ---- Frames ---- */

static void frame_round_trip(void **state)
{
    const char *body = "{\"op\":\"stats\"}";
    mx_buffer buffer = {0};
    mx_error error;
    mx_frame frame;
    (void)state;

    assert_int_equal(mx_frame_append(&buffer, MX_FRAME_REQUEST, 0x01020304, body, strlen(body), &error), MX_OK);
    assert_int_equal(mx_frame_append(&buffer, MX_FRAME_CANCEL, 7, NULL, 0, &error), MX_OK);
    assert_int_equal(mx_buffer_bytes(&buffer), 2 * MX_FRAME_HEADER_BYTES + strlen(body));
    assert_memory_equal(buffer.data, "\x0e\0\0\0\x02\0\0\0\x04\x03\x02\x01", 12); /* little-endian everywhere */
    assert_int_equal(mx_frame_peek(&buffer, MX_FROM_CLIENT, &frame, &error), MX_OK);
    assert_int_equal(frame.type, MX_FRAME_REQUEST);
    assert_int_equal(frame.id, 0x01020304);
    assert_int_equal(frame.body_bytes, strlen(body));
    assert_memory_equal(frame.body, body, strlen(body));
    mx_frame_consume(&buffer, &frame);
    assert_int_equal(mx_frame_peek(&buffer, MX_FROM_CLIENT, &frame, &error), MX_OK);
    assert_int_equal(frame.type, MX_FRAME_CANCEL);
    mx_frame_consume(&buffer, &frame);
    assert_int_equal(mx_frame_peek(&buffer, MX_FROM_CLIENT, &frame, &error), MX_AGAIN);
    mx_buffer_free(&buffer);
}

static void frame_in_parts_waits(void **state)
{
    mx_buffer whole = {0}, part = {0};
    mx_error error;
    mx_frame frame;
    (void)state;

    assert_int_equal(mx_frame_append(&whole, MX_FRAME_PIECE, 1, "{\"choice\":0}", 12, &error), MX_OK);
    for (size_t i = 0; i < mx_buffer_bytes(&whole); i++) {
        assert_int_equal(mx_frame_peek(&part, MX_FROM_SERVER, &frame, &error), MX_AGAIN);
        assert_int_equal(mx_buffer_append(&part, whole.data + i, 1, &error), MX_OK);
    }
    assert_int_equal(mx_frame_peek(&part, MX_FROM_SERVER, &frame, &error), MX_OK);
    mx_buffer_free(&whole);
    mx_buffer_free(&part);
}

static void hostile_headers_are_refused_before_their_body(void **state)
{
    static const struct {
        const char header[MX_FRAME_HEADER_BYTES + 1];
        mx_sender from;
        const char *text;
    } cases[] = {
        {"\xff\xff\xff\xff\x02\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a request has 2 to 16777216 bytes, got 4294967295"},
        {"\x01\0\0\x01\x02\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a request has 2 to 16777216 bytes, got 16777217"},
        {"\0\0\0\0\x02\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a request has 2 to 16777216 bytes, got 0"},
        {"\x01\0\0\0\x03\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a cancel has 0 to 0 bytes, got 1"},
        {"\x01\x10\0\0\x01\0\0\0\0\0\0\0", MX_FROM_CLIENT, "frame: a hello has 2 to 4096 bytes, got 4097"},
        {"\x02\0\0\0\0\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: expected a type from 1 to 6, got 0"},
        {"\x02\0\0\0\xff\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: expected a type from 1 to 6, got 255"},
        {"\x02\0\0\0\x04\0\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a piece does not come from the client"},
        {"\x02\0\0\0\x02\0\0\0\x01\0\0\0", MX_FROM_SERVER, "frame: a request does not come from the server"},
        {"\x02\0\0\0\x02\0\x01\0\x01\0\0\0", MX_FROM_CLIENT, "frame: the bytes before the id are not zero"},
        {"\x02\0\0\0\x02\x03\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a request does not come with 3 descriptors"},
        {"\0\0\0\0\x03\x01\0\0\x01\0\0\0", MX_FROM_CLIENT, "frame: a cancel does not come with 1 descriptors"},
        {"\x02\0\0\0\x02\0\0\0\0\0\0\0", MX_FROM_CLIENT, "frame: a request needs a request id, got 0"},
    };
    mx_error error;
    mx_frame frame;
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        mx_buffer buffer = {0};

        assert_int_equal(mx_buffer_append(&buffer, cases[i].header, MX_FRAME_HEADER_BYTES, &error), MX_OK);
        assert_int_equal(mx_frame_peek(&buffer, cases[i].from, &frame, &error), MX_CORRUPT);
        assert_string_equal(error.text, cases[i].text);
        mx_buffer_free(&buffer);
    }
}

static void oversized_body_is_not_appended(void **state)
{
    char *body = calloc(1, MX_FRAME_BODY_MAX + 1);
    mx_buffer buffer = {0};
    mx_error error;
    (void)state;

    assert_non_null(body);
    assert_int_equal(mx_frame_append(&buffer, MX_FRAME_RESULT, 1, body, MX_FRAME_BODY_MAX + 1, &error), MX_TOO_LARGE);
    assert_string_equal(error.text, "the result has 16777217 bytes; at most 16777216 go over the socket");
    assert_int_equal(mx_buffer_bytes(&buffer), 0);
    assert_int_equal(mx_frame_append(&buffer, MX_FRAME_RESULT, 1, body, MX_FRAME_BODY_MAX, &error), MX_OK);
    mx_buffer_free(&buffer);
    free(body);
}

static void buffer_survives_any_pattern(void **state)
{
    mx_buffer buffer = {0};
    size_t written = 0, read_back = 0, n;
    uint32_t random = 1;
    mx_error error;
    uint8_t chunk[5000];
    (void)state;

    while (written < 2000000) {
        random = random * 1664525 + 1013904223;
        n = (random >> 8) % sizeof(chunk);
        if (random & 0x80) {
            for (size_t i = 0; i < n; i++)
                chunk[i] = (uint8_t)((written + i) * 7 >> 3);
            assert_int_equal(mx_buffer_append(&buffer, chunk, n, &error), MX_OK);
            written += n;
        } else {
            if (n > mx_buffer_bytes(&buffer))
                n = mx_buffer_bytes(&buffer);
            for (size_t i = 0; i < n; i++)
                assert_int_equal((uint8_t)buffer.data[buffer.begin + i], (uint8_t)((read_back + i) * 7 >> 3));
            mx_buffer_consume(&buffer, n);
            read_back += n;
        }
        assert_int_equal(mx_buffer_bytes(&buffer), written - read_back);
    }
    mx_buffer_free(&buffer);
}

/* ---- JSON ---- */

static void expect_bad_json(const char *text, size_t bytes, const char *expected)
{
    mx_error error;

    assert_null(mx_json_parse(text, bytes, &error));
    assert_int_equal(error.status, MX_CORRUPT);
    if (!strstr(error.text, expected))
        fail_msg("expected \"%s\" in \"%s\"", expected, error.text);
}

static void json_is_bounded(void **state)
{
    size_t bytes = MX_FRAME_BODY_MAX;
    char *text = malloc(bytes);
    mx_error error;
    json_t *json;
    (void)state;

    assert_non_null(text);
    memset(text, '[', bytes);
    expect_bad_json(text, bytes, "nested deeper than 32");
    for (size_t i = 0; i < bytes; i++)
        text[i] = i % 2 ? '0' : ',';
    text[0] = '[';
    expect_bad_json(text, bytes, "more than 262144 values");
    memset(text, '[', bytes); /* brackets in a string are text */
    memcpy(text, "{\"a\":\"", 6);
    memcpy(text + bytes - 2, "\"}", 2);
    json = mx_json_parse(text, bytes, &error);
    assert_non_null(json);
    json_decref(json);
    free(text);

    expect_bad_json("", 0, "JSON:");
    expect_bad_json("{", 1, "JSON:");
    expect_bad_json("\"", 1, "JSON:");
    expect_bad_json("\"\\", 2, "JSON:");
    expect_bad_json("[]", 2, "expected an object");
    expect_bad_json("7", 1, "expected an object");
    expect_bad_json("{\"a\":1,\"a\":2}", 13, "duplicate");
    expect_bad_json("{\"a\":\"\xff\"}", 9, "byte 0xff is no UTF-8 (at byte 6)");
    expect_bad_json("{\"a\":\"\xed\xa0\x80\"}", 11, "byte 0xed is no UTF-8"); /* a surrogate */
    expect_bad_json("{}{}", 4, "expected the end (at byte 2)");
    expect_bad_json("{\0}", 3, "JSON:");
}

/* What Jansson makes of a text, and what we make of it, is the same, but for its own bounds on numbers. */
static void expect_as_jansson(const char *text, size_t bytes)
{
    json_t *theirs = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    mx_error error = {0};
    json_t *ours = mx_json_parse(text, bytes, &error);

    if (!json_is_object(theirs)) {
        json_decref(theirs);
        theirs = NULL;
    }
    if (!ours != !theirs || (ours && !json_equal(ours, theirs)))
        fail_msg("%.*s: %s (%s)", (int)bytes, text, ours ? "is read, unlike by Jansson" : "is not read", error.text);
    if (!ours)
        assert_int_equal(error.status, MX_CORRUPT);
    json_decref(ours);
    json_decref(theirs);
}

static void json_is_read_as_jansson_reads_it(void **state)
{
    static const char *const texts[] = {
        "{}", " { } ", "{\"a\":[],\"b\":[1,2,{\"c\":null}],\"d\":true,\"e\":false}", "{\"n\":[0,-0,-1,1.5,-2.5e3,1E+2,1e-400,2e400]}",
        "{\"n\":[9223372036854775807,-9223372036854775808,9223372036854775808]}", "{\"s\":\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\"}",
        "{\"s\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "{\"s\":\"\\u0000\"}", "{\"\\u0000\":1}", "{\"s\":\"\\ud83d\"}", "{\"s\":\"\\ude00\"}",
        "{\"s\":\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80\"}", "{\"a\":01}", "{\"a\":1.}", "{\"a\":.5}", "{\"a\":+1}", "{\"a\":1,}", "{,}", "[1]",
        "{\"a\" :\t1 ,\r\n\"b\": \"\"}", "{\"a\":tru}", "{\"a\":\"\x1f\"}", "{\"a\":1}x", "{\"a\":1} ", "{a:1}", "{\"a\":NaN}",
    };
    static const char alphabet[] = "{}[]\":,\\u0123456789abcdefDd8CE+-.tru nl\x80\xc3\xed\xf0\x01";
    uint64_t random = 1;
    char text[128];
    (void)state;

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        expect_as_jansson(texts[i], strlen(texts[i]));
    for (int i = 0; i < 200000; i++) {
        const char *from = texts[mx_synth_random(&random) % (sizeof texts / sizeof texts[0])];
        size_t bytes = strlen(from);

        memcpy(text, from, bytes);
        for (uint64_t n = mx_synth_random(&random) % 4; n > 0; n--) {
            size_t at = mx_synth_random(&random) % bytes;
            char c = alphabet[mx_synth_random(&random) % (sizeof alphabet - 1)];

            if (mx_synth_random(&random) % 3 > 0) { /* another character */
                text[at] = c;
            } else if (bytes < sizeof text) { /* one more */
                memmove(text + at + 1, text + at, bytes++ - at);
                text[at] = c;
            }
        }
        expect_as_jansson(text, bytes);
    }
    memset(text, '1', sizeof text); /* more digits than anybody writes */
    memcpy(text, "{\"a\":0.", 7);
    expect_bad_json(text, sizeof text, "JSON:");
}

static void text_becomes_utf8(void **state)
{
    static const struct {
        const char *in;
        size_t bytes;
        const char *out;
    } cases[] = {
        {"plain", 5, "plain"},
        {"gr\xc3\xbc\xc3\x9f", 6, "gr\xc3\xbc\xc3\x9f"},
        {"\xf0\x9f\x98\x80", 4, "\xf0\x9f\x98\x80"},
        {"a\0b", 3, "ab"},                                                   /* U+0000 goes */
        {"\xf0\x9f\x98", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},         /* cut short */
        {"\xc0\x80", 2, "\xef\xbf\xbd\xef\xbf\xbd"},                         /* overlong */
        {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},         /* surrogate */
        {"\xf4\x90\x80\x80", 4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* past U+10FFFF */
        {"", 0, ""},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *json = mx_json_text(cases[i].in, cases[i].bytes);

        assert_non_null(json);
        assert_string_equal(json_string_value(json), cases[i].out);
        json_decref(json);
    }
}

static void errors_keep_status_field_and_text(void **state)
{
    (void)state;

    for (int status = MX_BUSY; status <= MX_INTERNAL; status++) {
        mx_error before = {.status = (mx_status)status, .field = "top_p", .text = "expected \"a\", got \xff"}, after;
        json_t *json = mx_json_of_error(&before);

        assert_non_null(json);
        mx_json_to_error(json, &after);
        assert_int_equal(after.status, status);
        assert_string_equal(after.field, "top_p");
        assert_string_equal(after.text, "expected \"a\", got \xef\xbf\xbd");
        json_decref(json);
    }
    for (int i = 0; i < 3; i++) { /* a peer cannot make an error of no error */
        static const char *const bodies[] = {"{}", "{\"status\":\"ok\"}", "{\"status\":7,\"text\":[]}"};
        json_t *json = json_loads(bodies[i], 0, NULL);
        mx_error after;

        mx_json_to_error(json, &after);
        assert_int_equal(after.status, MX_INTERNAL);
        json_decref(json);
    }
}

/* ---- The client ---- */

#define HELLO {MX_FRAME_HELLO, 0, "{\"protocol\":1,\"version\":\"0.0.0-test\"}"}

typedef struct {
    mx_frame_type type;
    uint32_t id;
    const char *body;
} sent_frame;

/* A client, and the server's end of its socket. */
static mx_client *open_client(int *server)
{
    mx_client *client;
    mx_error error;
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(mx_client_open(pair[0], &client, &error), MX_OK);
    *server = pair[1];
    return client;
}

static void put(int fd, const void *data, size_t bytes)
{
    assert_int_equal(write(fd, data, bytes), (ssize_t)bytes);
}

static void append(mx_buffer *out, sent_frame frame)
{
    mx_error error;

    assert_int_equal(mx_frame_append(out, frame.type, frame.id, frame.body, strlen(frame.body), &error), MX_OK);
}

static void client_queues_before_the_handshake(void **state)
{
    mx_client *client;
    mx_event event;
    mx_error error;
    mx_frame frame;
    mx_buffer in = {0}, out = {0};
    uint32_t first, second;
    int server;
    (void)state;

    client = open_client(&server);
    assert_int_equal(mx_client_request(client, "{\"op\":\"stats\"}", &first, &error), MX_OK);
    assert_int_equal(mx_client_request(client, "{\"op\":\"models\"}", &second, &error), MX_OK);
    assert_int_not_equal(first, second);
    assert_int_equal(mx_client_next(client, &event, &error), MX_AGAIN);
    assert_int_equal(mx_buffer_receive(&in, server, NULL, &error), MX_OK);
    assert_int_equal(mx_frame_peek(&in, MX_FROM_CLIENT, &frame, &error), MX_OK);
    assert_int_equal(mx_hello_check(&frame, &error), MX_OK);
    mx_frame_consume(&in, &frame);
    assert_int_equal(mx_frame_peek(&in, MX_FROM_CLIENT, &frame, &error), MX_OK);
    assert_int_equal(frame.id, first);
    mx_frame_consume(&in, &frame);
    assert_int_equal(mx_frame_peek(&in, MX_FROM_CLIENT, &frame, &error), MX_OK);
    assert_int_equal(frame.id, second);
    mx_buffer_free(&in);

    /* what comes a byte at a time is given out when it is whole */
    append(&out, (sent_frame)HELLO);
    append(&out, (sent_frame){MX_FRAME_PIECE, second, "{\"choice\":3,\"text\":\"hi!\"}"});
    for (size_t i = 0; i < mx_buffer_bytes(&out); i++) {
        assert_int_equal(mx_client_next(client, &event, &error), MX_AGAIN);
        put(server, out.data + i, 1);
    }
    assert_int_equal(mx_client_next(client, &event, &error), MX_OK);
    assert_int_equal(event.type, MX_EVENT_PIECE);
    assert_int_equal(event.id, second);
    assert_int_equal(event.choice, 3);
    assert_string_equal(event.text, "hi!");
    mx_buffer_free(&out);
    append(&out, (sent_frame){MX_FRAME_RESULT, second, "{\"a\":1}"});
    append(&out, (sent_frame){MX_FRAME_ERROR, first, "{\"status\":\"busy\",\"text\":\"full\"}"});
    put(server, out.data, mx_buffer_bytes(&out));
    mx_buffer_free(&out);
    assert_int_equal(mx_client_next(client, &event, &error), MX_OK);
    assert_int_equal(event.type, MX_EVENT_RESULT);
    assert_string_equal(event.json, "{\"a\":1}");
    assert_int_equal(event.json_bytes, 7);
    assert_int_equal(mx_client_next(client, &event, &error), MX_OK);
    assert_int_equal(event.type, MX_EVENT_ERROR);
    assert_int_equal(event.id, first);
    assert_int_equal(event.error.status, MX_BUSY);
    assert_string_equal(event.error.text, "full");
    assert_int_equal(mx_client_next(client, &event, &error), MX_AGAIN);
    mx_client_close(client);
    assert_int_equal(read(server, &event, 1), 0);
    close(server);
}

static void client_refuses_what_is_no_object(void **state)
{
    static const char *const bad[] = {"", "{", "[]", "\"a\"", "{\"a\":\"\xff\"}", "{\"a\":1,\"a\":1}"};
    mx_client *client;
    mx_error error;
    uint32_t id;
    int server;
    (void)state;

    client = open_client(&server);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(mx_client_request(client, bad[i], &id, &error), MX_INVALID);
        assert_int_equal(id, 0);
    }
    assert_int_equal(mx_client_request(client, "{}", &id, &error), MX_OK);
    mx_client_close(client);
    close(server);
}

static void client_sends_what_is_larger_than_the_socket(void **state)
{
    size_t bytes = (size_t)3 << 20;
    char *json = malloc(bytes + 1);
    mx_buffer in = {0};
    mx_client *client;
    mx_event event;
    mx_error error;
    mx_frame frame;
    uint32_t id;
    int server;
    (void)state;

    assert_non_null(json);
    memset(json, 'x', bytes);
    memcpy(json, "{\"prompt\":\"", 11);
    memcpy(json + bytes - 2, "\"}", 3);
    client = open_client(&server);
    assert_int_equal(mx_client_request(client, json, &id, &error), MX_OK);
    assert_int_not_equal(mx_client_events(client) & POLLOUT, 0);
    while (mx_client_events(client) & POLLOUT) {
        assert_int_equal(mx_buffer_receive(&in, server, NULL, &error), MX_OK);
        assert_int_equal(mx_client_next(client, &event, &error), MX_AGAIN);
    }
    while (mx_buffer_receive(&in, server, NULL, &error) == MX_OK)
        continue;
    assert_int_equal(mx_frame_peek(&in, MX_FROM_CLIENT, &frame, &error), MX_OK);
    mx_frame_consume(&in, &frame);
    assert_int_equal(mx_frame_peek(&in, MX_FROM_CLIENT, &frame, &error), MX_OK);
    assert_int_equal(frame.body_bytes, bytes);
    assert_memory_equal(frame.body, json, bytes);
    mx_buffer_free(&in);
    mx_client_close(client);
    close(server);
    free(json);
}

/* A server that sends bytes and closes, and how the client fails: every time it is asked. */
static void expect_lost_bytes(const char *data, size_t bytes, mx_status status, const char *expected)
{
    mx_client *client;
    mx_event event;
    mx_error error;
    uint32_t id;
    int server;

    client = open_client(&server);
    put(server, data, bytes);
    shutdown(server, SHUT_RDWR);
    close(server);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mx_client_next(client, &event, &error), status);
        if (!strstr(error.text, expected))
            fail_msg("expected \"%s\" in \"%s\"", expected, error.text);
    }
    assert_int_not_equal(mx_client_request(client, "{}", &id, &error), MX_OK);
    assert_int_not_equal(mx_client_cancel(client, 1, &error), MX_OK);
    mx_client_close(client);
}

static void expect_lost(sent_frame first, sent_frame second, mx_status status, const char *expected)
{
    mx_buffer out = {0};

    append(&out, first);
    if (second.body)
        append(&out, second);
    expect_lost_bytes(out.data, mx_buffer_bytes(&out), status, expected);
    mx_buffer_free(&out);
}

static void client_survives_a_bad_server(void **state)
{
    const sent_frame hello = HELLO, none = {0};
    (void)state;

    expect_lost_bytes("", 0, MX_UNAVAILABLE, "closed by the other side");
    expect_lost_bytes("HTTP/1.1 400 Bad Request\r\n", 26, MX_CORRUPT, "frame:");
    expect_lost(hello, none, MX_UNAVAILABLE, "closed by the other side");
    expect_lost((sent_frame){MX_FRAME_HELLO, 0, "{\"protocol\":2,\"version\":\"9.0.0\"}"}, none, MX_CORRUPT,
                "the other side (version 9.0.0) speaks protocol 2, this one (version " MX_VERSION ") speaks 1");
    expect_lost((sent_frame){MX_FRAME_HELLO, 0, "{}"}, none, MX_CORRUPT, "hello:");
    expect_lost((sent_frame){MX_FRAME_RESULT, 1, "{}"}, none, MX_CORRUPT, "expected a hello first, got a result");
    expect_lost(hello, hello, MX_CORRUPT, "a second hello");
    expect_lost(hello, (sent_frame){MX_FRAME_PIECE, 1, "{}"}, MX_CORRUPT, "piece:");
    expect_lost(hello, (sent_frame){MX_FRAME_PIECE, 1, "{\"choice\":-1,\"text\":\"\"}"}, MX_CORRUPT, "piece:");
    expect_lost(hello, (sent_frame){MX_FRAME_PIECE, 1, "{\"choice\":0,\"text\":\"\",\"cached_tokens\":-1}"}, MX_CORRUPT, "piece:");
    expect_lost(hello, (sent_frame){MX_FRAME_RESULT, 1, "[]"}, MX_CORRUPT, "result:");
    expect_lost(hello, (sent_frame){MX_FRAME_ERROR, 0, "{\"status\":\"corrupt\",\"text\":\"your frame\"}"}, MX_CORRUPT,
                "your frame");
    expect_lost(hello, (sent_frame){MX_FRAME_ERROR, 0, "{\"status\":\"denied\",\"text\":\"go away\"}"}, MX_UNAVAILABLE,
                "go away");
}

static void connect_says_where_nobody_answers(void **state)
{
    char path[200];
    mx_client *client;
    mx_error error;
    (void)state;

    assert_int_equal(mx_client_connect("/nonexistent/mixtral.sock", &client, &error), MX_UNAVAILABLE);
    assert_non_null(strstr(error.text, "/nonexistent/mixtral.sock"));
    assert_null(client);
    memset(path, 'a', sizeof(path));
    path[108] = '\0';
    assert_int_equal(mx_client_connect(path, &client, &error), MX_INVALID);
    assert_int_equal(mx_client_connect("", &client, &error), MX_INVALID);
    assert_int_equal(mx_client_open(-1, &client, &error), MX_INVALID);
    mx_client_close(NULL);
    mx_client_abandon(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frame_round_trip),
        cmocka_unit_test(frame_in_parts_waits),
        cmocka_unit_test(hostile_headers_are_refused_before_their_body),
        cmocka_unit_test(oversized_body_is_not_appended),
        cmocka_unit_test(buffer_survives_any_pattern),
        cmocka_unit_test(json_is_bounded),
        cmocka_unit_test(json_is_read_as_jansson_reads_it),
        cmocka_unit_test(text_becomes_utf8),
        cmocka_unit_test(errors_keep_status_field_and_text),
        cmocka_unit_test(client_queues_before_the_handshake),
        cmocka_unit_test(client_refuses_what_is_no_object),
        cmocka_unit_test(client_sends_what_is_larger_than_the_socket),
        cmocka_unit_test(client_survives_a_bad_server),
        cmocka_unit_test(connect_says_where_nobody_answers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
