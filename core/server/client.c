/*
 * client.c: mx_client_*: the caller's end of a connection, as a state machine that never waits.
 *
 * One thread at a time. What is to be sent waits in `out`, also before the server's HELLO has come; what has come waits in
 * `in` until mx_client_next gives it out. When sending fails the connection is not lost yet: what the server said before
 * it closed (an error, often) is still to be read.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "../error.h"
#include "wire.h"

#define UNSENT_MAX ((size_t)64 << 20)

struct mx_client {
    int fd;
    uint32_t last_id;
    bool greeted;      /* the server's HELLO has come */
    bool send_failed;  /* nothing more goes out */
    mx_error lost;     /* why the connection is over; status MX_OK: it is not */
    mx_buffer in, out;
    mx_descriptors files; /* of requests in `out` */
    json_t *event;     /* holds the last event's text */
    char *result;      /* holds the last event's JSON */
};

mx_status mx_client_open(int fd, mx_client **client, mx_error *error)
{
    int flags = fcntl(fd, F_GETFL);
    mx_client *c = calloc(1, sizeof(*c));
    mx_status status;

    *client = NULL;
    if (!c)
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for a client");
    else if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        status = mx_fail(error, MX_INVALID, NULL, "descriptor %d: %m", fd);
    else
        status = mx_hello_append(&c->out, error);
    if (status != MX_OK) {
        free(c);
        if (fd >= 0)
            close(fd);
        return status;
    }
    c->fd = fd;
    *client = c;
    return MX_OK;
}

mx_status mx_client_connect(const char *path, mx_client **client, mx_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    mx_status status;
    int fd;

    *client = NULL;
    if (strlen(path) == 0 || strlen(path) >= sizeof(address.sun_path))
        return mx_fail(error, MX_INVALID, NULL, "socket path: expected 1 to %zu bytes, got %zu",
                       sizeof(address.sun_path) - 1, strlen(path));
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return mx_fail(error, MX_IO, NULL, "cannot make a socket: %m");
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        status = mx_fail(error, MX_UNAVAILABLE, NULL, "no engine answers at %s: %m", path);
        close(fd);
        return status;
    }
    return mx_client_open(fd, client, error);
}

/* Sends what the socket takes. */
static void flush_out(mx_client *client)
{
    if (!client->send_failed && mx_buffer_send(&client->out, client->fd, &client->files, NULL) == MX_UNAVAILABLE) {
        client->send_failed = true;
        mx_buffer_free(&client->out);
    }
}

static mx_status check_connected(const mx_client *client, mx_error *error)
{
    if (client->lost.status != MX_OK)
        return mx_fail(error, client->lost.status, client->lost.field, "%s", client->lost.text);
    if (client->send_failed)
        return mx_fail(error, MX_UNAVAILABLE, NULL, "the connection was closed by the other side");
    return MX_OK;
}

mx_status mx_client_request(mx_client *client, const char *json, uint32_t *id, mx_error *error)
{
    return mx_client_request_with_files(client, json, NULL, 0, id, error);
}

/* Copies of the files' descriptors, to be passed; they are the caller's own again. */
static mx_status copy_files(mx_client *client, const int fds[], int n, mx_error *error)
{
    mx_descriptors *files = &client->files;

    if (n < 0 || n > MX_FRAME_DESCRIPTORS_MAX)
        return mx_fail(error, MX_INVALID, NULL, "expected at most %d files with a request, got %d", MX_FRAME_DESCRIPTORS_MAX, n);
    if (files->n + n > MX_DESCRIPTORS_MAX / 2)
        return mx_fail(error, MX_BUSY, NULL, "%d files of earlier requests are still to be sent", files->n);
    for (int i = 0; i < n; i++) {
        int copy = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);

        if (copy < 0) {
            mx_fail(error, errno == EBADF ? MX_INVALID : MX_IO, NULL, "descriptor %d: %m", fds[i]);
            while (i-- > 0)
                close(files->fd[--files->n]);
            return errno == EBADF ? MX_INVALID : MX_IO;
        }
        files->fd[files->n++] = copy;
    }
    return MX_OK;
}

mx_status mx_client_request_with_files(mx_client *client, const char *json, const int *fds, int n_fds, uint32_t *id, mx_error *error)
{
    mx_status status = check_connected(client, error);
    size_t bytes = strlen(json);
    mx_error why;
    json_t *parsed;

    *id = 0;
    if (status != MX_OK)
        return status;
    /* the server ends a connection on which no JSON comes: better to see it here */
    parsed = mx_json_parse(json, bytes, &why);
    if (!parsed)
        return mx_fail(error, why.status == MX_NOMEM ? MX_NOMEM : MX_INVALID, NULL, "request: %s", why.text);
    json_decref(parsed);
    if (mx_buffer_bytes(&client->out) > UNSENT_MAX)
        return mx_fail(error, MX_BUSY, NULL, "%zu bytes of earlier requests are still to be sent",
                       mx_buffer_bytes(&client->out));
    status = copy_files(client, fds, n_fds, error);
    if (status != MX_OK)
        return status;
    if (++client->last_id == 0)
        client->last_id = 1;
    status = mx_request_append(&client->out, client->last_id, json, bytes, n_fds, error);
    if (status != MX_OK) {
        while (n_fds-- > 0)
            close(client->files.fd[--client->files.n]);
        return status;
    }
    *id = client->last_id;
    flush_out(client);
    return MX_OK;
}

mx_status mx_client_cancel(mx_client *client, uint32_t id, mx_error *error)
{
    mx_status status = check_connected(client, error);

    if (status == MX_OK && id == 0)
        status = mx_fail(error, MX_INVALID, NULL, "there is no request 0");
    if (status == MX_OK)
        status = mx_frame_append(&client->out, MX_FRAME_CANCEL, id, NULL, 0, error);
    if (status == MX_OK)
        flush_out(client);
    return status;
}

/* ---- Events ---- */

static bool is_count(const json_t *json)
{
    return json_is_integer(json) && json_integer_value(json) >= 0 && json_integer_value(json) <= INT32_MAX;
}

static mx_status take_piece(mx_client *client, const mx_frame *frame, mx_event *event, mx_error *error)
{
    json_t *json = mx_json_parse(frame->body, frame->body_bytes, error), *choice, *text, *cached;

    if (!json)
        return error->status;
    client->event = json;
    choice = json_object_get(json, "choice");
    text = json_object_get(json, "text");
    cached = json_object_get(json, "cached_tokens");
    if (!is_count(choice) || !json_is_string(text) || (cached && !is_count(cached)))
        return mx_fail(error, MX_CORRUPT, NULL, "piece: expected an integer `choice`, a string `text` and no other `cached_tokens`"
                                                " than an integer");
    event->type = MX_EVENT_PIECE;
    event->choice = (int)json_integer_value(choice);
    event->text = json_string_value(text);
    event->text_bytes = json_string_length(text);
    event->cached_tokens = cached ? (int)json_integer_value(cached) : -1;
    return MX_OK;
}

/* The object is passed on as it is, but for U+0000, which would end the string early. */
static mx_status take_result(mx_client *client, const mx_frame *frame, mx_event *event, mx_error *error)
{
    if (frame->body[0] != '{' || memchr(frame->body, '\0', frame->body_bytes))
        return mx_fail(error, MX_CORRUPT, NULL, "result: expected a JSON object");
    client->result = malloc(frame->body_bytes + 1);
    if (!client->result)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a result of %zu bytes", frame->body_bytes);
    memcpy(client->result, frame->body, frame->body_bytes);
    client->result[frame->body_bytes] = '\0';
    event->type = MX_EVENT_RESULT;
    event->json = client->result;
    event->json_bytes = frame->body_bytes;
    return MX_OK;
}

/* An error of a request is an event; one of the connection (id 0) is its end. */
static mx_status take_error(const mx_frame *frame, mx_event *event, mx_error *error)
{
    json_t *json = mx_json_parse(frame->body, frame->body_bytes, error);

    if (!json)
        return error->status;
    event->type = MX_EVENT_ERROR;
    mx_json_to_error(json, &event->error);
    json_decref(json);
    if (frame->id != 0)
        return MX_OK;
    if (event->error.status != MX_CORRUPT && event->error.status != MX_BUSY)
        event->error.status = MX_UNAVAILABLE;
    return mx_fail(error, event->error.status, NULL, "%s", event->error.text);
}

/* The next frame as an event. MX_AGAIN: none is whole, or it was the HELLO. */
static mx_status take_frame(mx_client *client, mx_event *event, mx_error *error)
{
    mx_frame frame;
    mx_status status = mx_frame_peek(&client->in, MX_FROM_SERVER, &frame, error);

    if (status != MX_OK)
        return status;
    event->id = frame.id;
    if (frame.type == MX_FRAME_ERROR) {
        status = take_error(&frame, event, error);
    } else if (!client->greeted) {
        status = mx_hello_check(&frame, error);
        client->greeted = status == MX_OK;
        if (status == MX_OK) {
            mx_frame_consume(&client->in, &frame);
            return take_frame(client, event, error);
        }
    } else if (frame.type == MX_FRAME_PIECE) {
        status = take_piece(client, &frame, event, error);
    } else if (frame.type == MX_FRAME_RESULT) {
        status = take_result(client, &frame, event, error);
    } else {
        status = mx_fail(error, MX_CORRUPT, NULL, "frame: a second hello");
    }
    if (status == MX_OK)
        mx_frame_consume(&client->in, &frame);
    return status;
}

mx_status mx_client_next(mx_client *client, mx_event *event, mx_error *error)
{
    mx_error why;
    mx_status status;

    memset(event, 0, sizeof(*event));
    json_decref(client->event);
    free(client->result);
    client->event = NULL;
    client->result = NULL;
    if (client->lost.status != MX_OK)
        return check_connected(client, error);
    flush_out(client);
    while (true) {
        status = take_frame(client, event, &why);
        if (status == MX_AGAIN)
            status = mx_buffer_receive(&client->in, client->fd, NULL, &why);
        else
            break;
        if (status != MX_OK)
            break;
    }
    if (status == MX_OK || status == MX_AGAIN)
        return status;
    if (status == MX_NOMEM) /* nothing is lost: the caller may try again */
        return mx_fail(error, status, NULL, "%s", why.text);
    client->lost = why;
    return check_connected(client, error);
}

int mx_client_fd(const mx_client *client)
{
    return client->fd;
}

short mx_client_events(const mx_client *client)
{
    return mx_buffer_bytes(&client->out) > 0 ? POLLIN | POLLOUT : POLLIN;
}

void mx_client_close(mx_client *client)
{
    if (!client)
        return;
    shutdown(client->fd, SHUT_RDWR);
    mx_client_abandon(client);
}

void mx_client_abandon(mx_client *client)
{
    if (!client)
        return;
    close(client->fd);
    mx_buffer_free(&client->in);
    mx_buffer_free(&client->out);
    mx_descriptors_close(&client->files);
    json_decref(client->event);
    free(client->result);
    free(client);
}
