/*
 * fuzz_wire.c: hostile bytes for both ends of the socket.
 *
 * The first byte chooses. Even: the rest is what a server receives: frames, the HELLO, requests and their options. Odd: it is
 * what a client receives.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "../../core/server/options.h"
#include "../../core/server/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* fuzzing is for findings: an expectation that does not hold is one */
static void expect(int holds)
{
    if (!holds)
        abort();
}

/* A request that is accepted keeps what options.h promises of it. */
static void check_query(const mx_query *query, int n_vocab)
{
    expect(query->op < MX_OP_COUNT && query->n >= 1 && query->n <= MX_CHOICES_MAX);
    expect(query->n_stop >= 0 && query->n_stop <= MX_STOP_MAX);
    for (int i = 0; i < query->n_stop; i++)
        expect(query->stop[i][0] != '\0');
    for (int i = 0; i < query->sampling.n_logit_bias; i++)
        expect(query->sampling.logit_bias[i].id >= 0 && query->sampling.logit_bias[i].id < n_vocab);
    for (size_t i = 0; i < query->n_tokens; i++)
        expect(query->tokens[i] >= 0 && query->tokens[i] < n_vocab);
    expect(query->op != MX_OP_CHAT || query->n_messages > 0);
    expect(query->op != MX_OP_CHUNKS || (query->size > query->overlap && query->overlap >= 0));
}

/* Our reader of JSON and Jansson's agree, but for the bounds that are ours. */
static void check_json(const mx_frame *frame, const json_t *ours, const mx_error *error)
{
    json_t *theirs = json_loadb(frame->body, frame->body_bytes, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, NULL);

    if (ours)
        expect(theirs && json_equal(ours, theirs));
    else
        expect(!json_is_object(theirs) || strstr(error->text, "nested deeper") || strstr(error->text, "more than") ||
               strstr(error->text, "too many digits"));
    json_decref(theirs);
}

static mx_status take_request(const mx_frame *frame)
{
    static mx_model model = {.hparams.n_vocab = 32};
    static mx_served served = {.name = "m", .model = &model};
    static const mx_served_list models = {.models = {&served}, .n = 1};
    mx_error error;
    mx_query query;
    json_t *json = mx_json_parse(frame->body, frame->body_bytes, &error);

    check_json(frame, json, &error);
    if (!json)
        return MX_CORRUPT;
    if (mx_query_parse(json, &models, &query, &error) != MX_OK) {
        expect(error.text[0] != '\0' && error.status != MX_OK && error.status != MX_AGAIN);
        return MX_OK;
    }
    check_query(&query, model.hparams.n_vocab);
    mx_query_free(&query);
    return MX_OK;
}

static void be_server(const uint8_t *data, size_t size)
{
    mx_buffer in = {0};
    mx_status status;
    mx_frame frame;
    mx_error error;
    int greeted = 0;

    expect(mx_buffer_append(&in, data, size, &error) == MX_OK);
    while ((status = mx_frame_peek(&in, MX_FROM_CLIENT, &frame, &error)) == MX_OK) {
        expect(frame.body_bytes <= MX_FRAME_BODY_MAX);
        if (!greeted)
            status = mx_hello_check(&frame, &error);
        else if (frame.type == MX_FRAME_REQUEST)
            status = take_request(&frame);
        greeted = 1;
        if (status != MX_OK)
            break;
        mx_frame_consume(&in, &frame);
    }
    mx_buffer_free(&in);
}

static void be_client(const uint8_t *data, size_t size)
{
    mx_client *client;
    mx_status status;
    mx_event event;
    mx_error error;
    uint32_t id;
    int pair[2];

    if (size > 65536 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return;
    expect(mx_client_open(pair[0], &client, &error) == MX_OK);
    expect(mx_client_request(client, "{\"op\":\"stats\"}", &id, &error) == MX_OK);
    expect(size == 0 || write(pair[1], data, size) == (ssize_t)size);
    close(pair[1]);
    while ((status = mx_client_next(client, &event, &error)) == MX_OK) {
        if (event.type == MX_EVENT_PIECE)
            expect(event.choice >= 0 && event.text[event.text_bytes] == '\0');
        else if (event.type == MX_EVENT_RESULT)
            expect(strlen(event.json) == event.json_bytes);
        else
            expect(event.id != 0 && event.error.status != MX_OK && event.error.status != MX_AGAIN);
    }
    expect(status == MX_UNAVAILABLE || status == MX_CORRUPT);
    mx_client_close(client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 2 == 0)
        be_server(data + 1, size - 1);
    else
        be_client(data + 1, size - 1);
    return 0;
}
