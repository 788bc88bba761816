/*
 * wire.c: frames, their JSON bodies, and the buffers between them and a socket. See wire.h.
 */
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "../error.h"

#define RECEIVE_BYTES ((size_t)64 << 10) /* room offered to one recv */
#define KEEP_BYTES ((size_t)8 << 10)     /* an empty buffer keeps no more than this */
#define HELLO_BODY_MAX 4096
#define ERROR_BODY_MAX 8192

/* ---- Buffers ---- */

size_t mx_buffer_bytes(const mx_buffer *buffer)
{
    return buffer->end - buffer->begin;
}

/* Makes room for `bytes` more after `end`. */
static mx_status reserve(mx_buffer *buffer, size_t bytes, mx_error *error)
{
    size_t held = mx_buffer_bytes(buffer), capacity;
    char *data;

    if (buffer->capacity - buffer->end >= bytes)
        return MX_OK;
    if (buffer->begin > 0 && buffer->capacity - held >= bytes && held <= buffer->begin) {
        memcpy(buffer->data, buffer->data + buffer->begin, held);
    } else {
        if (bytes > SIZE_MAX / 2 - held)
            return mx_fail(error, MX_NOMEM, NULL, "a buffer of %zu bytes cannot grow by %zu", held, bytes);
        capacity = held + bytes;
        if (capacity < 2 * held)
            capacity = 2 * held;
        data = malloc(capacity);
        if (!data)
            return mx_fail(error, MX_NOMEM, NULL, "out of memory for a buffer of %zu bytes", capacity);
        if (held > 0)
            memcpy(data, buffer->data + buffer->begin, held);
        free(buffer->data);
        buffer->data = data;
        buffer->capacity = capacity;
    }
    buffer->begin = 0;
    buffer->end = held;
    return MX_OK;
}

mx_status mx_buffer_append(mx_buffer *buffer, const void *data, size_t bytes, mx_error *error)
{
    mx_status status = reserve(buffer, bytes, error);

    if (status == MX_OK && bytes > 0) {
        memcpy(buffer->data + buffer->end, data, bytes);
        buffer->end += bytes;
    }
    return status;
}

void mx_buffer_consume(mx_buffer *buffer, size_t bytes)
{
    buffer->begin += bytes;
    if (buffer->begin < buffer->end)
        return;
    if (buffer->capacity > KEEP_BYTES)
        mx_buffer_free(buffer);
    buffer->begin = buffer->end = 0;
}

void mx_buffer_free(mx_buffer *buffer)
{
    free(buffer->data);
    memset(buffer, 0, sizeof(*buffer));
}

void mx_descriptors_close(mx_descriptors *descriptors)
{
    for (int i = 0; i < descriptors->n; i++)
        close(descriptors->fd[i]);
    descriptors->n = 0;
}

bool mx_descriptors_take(mx_descriptors *descriptors, int fds[], int n)
{
    if (n > descriptors->n)
        return false;
    memcpy(fds, descriptors->fd, (size_t)n * sizeof(int));
    descriptors->n -= n;
    memmove(descriptors->fd, descriptors->fd + n, (size_t)descriptors->n * sizeof(int));
    return true;
}

/* Room for the descriptors of one message, aligned as its header wants. */
typedef union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * MX_DESCRIPTORS_MAX)];
} ancillary;

/* What the kernel has put into our table is ours from now on, wanted or not. */
static mx_status take_descriptors(struct msghdr *message, mx_descriptors *descriptors, mx_error *error)
{
    mx_status status = MX_OK;
    int fd;

    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(fd) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(fd)) {
            memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
            if (descriptors && descriptors->n < MX_DESCRIPTORS_MAX) {
                descriptors->fd[descriptors->n++] = fd;
            } else {
                close(fd);
                status = MX_CORRUPT;
            }
        }
    }
    if (status != MX_OK || (descriptors && message->msg_flags & MSG_CTRUNC))
        return mx_fail(error, MX_CORRUPT, NULL, "expected at most %d descriptors to wait for their request, got more",
                       descriptors ? MX_DESCRIPTORS_MAX : 0);
    return MX_OK;
}

mx_status mx_buffer_receive(mx_buffer *buffer, int fd, mx_descriptors *descriptors, mx_error *error)
{
    mx_status status = reserve(buffer, RECEIVE_BYTES, error);
    ancillary room;
    struct iovec bytes = {.iov_len = RECEIVE_BYTES};
    struct msghdr message = {
        .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof(room)};
    ssize_t got;

    if (status != MX_OK)
        return status;
    bytes.iov_base = buffer->data + buffer->end;
    do {
        got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got > 0) {
        buffer->end += (size_t)got;
        return take_descriptors(&message, descriptors, error);
    }
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        mx_buffer_consume(buffer, 0); /* an idle connection holds no memory */
        return MX_AGAIN;
    }
    if (got == 0 || errno == ECONNRESET)
        return mx_fail(error, MX_UNAVAILABLE, NULL, "the connection was closed by the other side");
    return mx_fail(error, MX_UNAVAILABLE, NULL, "the connection was lost: recv: %m");
}

/* One sendmsg(2); the descriptors are gone once a byte is. */
static ssize_t send_some(const mx_buffer *buffer, int fd, mx_descriptors *descriptors)
{
    ancillary room = {0};
    struct iovec bytes = {.iov_base = buffer->data + buffer->begin, .iov_len = mx_buffer_bytes(buffer)};
    struct msghdr message = {.msg_iov = &bytes, .msg_iovlen = 1};
    ssize_t sent;

    if (descriptors && descriptors->n > 0) {
        message.msg_control = &room;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)descriptors->n);
        room.header.cmsg_level = SOL_SOCKET;
        room.header.cmsg_type = SCM_RIGHTS;
        room.header.cmsg_len = CMSG_LEN(sizeof(int) * (size_t)descriptors->n);
        memcpy(CMSG_DATA(&room.header), descriptors->fd, sizeof(int) * (size_t)descriptors->n);
    }
    sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0 && descriptors)
        mx_descriptors_close(descriptors);
    return sent;
}

mx_status mx_buffer_send(mx_buffer *buffer, int fd, mx_descriptors *descriptors, mx_error *error)
{
    ssize_t sent;

    while (mx_buffer_bytes(buffer) > 0) {
        sent = send_some(buffer, fd, descriptors);
        if (sent >= 0)
            mx_buffer_consume(buffer, (size_t)sent);
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return MX_AGAIN;
        else if (errno != EINTR)
            return mx_fail(error, MX_UNAVAILABLE, NULL, "the connection was lost: send: %m");
    }
    return MX_OK;
}

/* ---- Frames ---- */

static const struct {
    const char *name;
    int senders;
    bool has_id;
    size_t body_min, body_max;
} frame_rules[] = {
    [MX_FRAME_HELLO] = {"hello", MX_FROM_CLIENT | MX_FROM_SERVER, false, 2, HELLO_BODY_MAX},
    [MX_FRAME_REQUEST] = {"request", MX_FROM_CLIENT, true, 2, MX_FRAME_BODY_MAX},
    [MX_FRAME_CANCEL] = {"cancel", MX_FROM_CLIENT, true, 0, 0},
    [MX_FRAME_PIECE] = {"piece", MX_FROM_SERVER, true, 2, MX_FRAME_BODY_MAX},
    [MX_FRAME_RESULT] = {"result", MX_FROM_SERVER, true, 2, MX_FRAME_BODY_MAX},
    [MX_FRAME_ERROR] = {"error", MX_FROM_SERVER, false, 2, ERROR_BODY_MAX}, /* with or without */
};

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_u32(uint8_t *p, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}

static mx_status append_frame(mx_buffer *out, mx_frame_type type, int n_descriptors, uint32_t id, const char *body,
                              size_t bytes, mx_error *error)
{
    uint8_t header[MX_FRAME_HEADER_BYTES] = {0};
    mx_status status;

    if (bytes > frame_rules[type].body_max)
        return mx_fail(error, MX_TOO_LARGE, NULL, "the %s has %zu bytes; at most %zu go over the socket",
                       frame_rules[type].name, bytes, frame_rules[type].body_max);
    put_u32(header, (uint32_t)bytes);
    header[4] = (uint8_t)type;
    header[5] = (uint8_t)n_descriptors;
    put_u32(header + 8, id);
    status = reserve(out, sizeof(header) + bytes, error);
    if (status == MX_OK)
        status = mx_buffer_append(out, header, sizeof(header), error);
    if (status == MX_OK)
        status = mx_buffer_append(out, body, bytes, error);
    return status;
}

mx_status mx_frame_append(mx_buffer *out, mx_frame_type type, uint32_t id, const char *body, size_t bytes, mx_error *error)
{
    return append_frame(out, type, 0, id, body, bytes, error);
}

mx_status mx_request_append(mx_buffer *out, uint32_t id, const char *body, size_t bytes, int n_descriptors, mx_error *error)
{
    return append_frame(out, MX_FRAME_REQUEST, n_descriptors, id, body, bytes, error);
}

mx_status mx_frame_peek(const mx_buffer *in, mx_sender from, mx_frame *frame, mx_error *error)
{
    const uint8_t *header;
    size_t have = mx_buffer_bytes(in), length;
    int type;

    if (have < MX_FRAME_HEADER_BYTES)
        return MX_AGAIN;
    header = (const uint8_t *)in->data + in->begin;
    length = get_u32(header);
    type = header[4];
    if (type < MX_FRAME_HELLO || type > MX_FRAME_ERROR)
        return mx_fail(error, MX_CORRUPT, NULL, "frame: expected a type from %d to %d, got %d", MX_FRAME_HELLO,
                       MX_FRAME_ERROR, type);
    if (!(frame_rules[type].senders & (int)from))
        return mx_fail(error, MX_CORRUPT, NULL, "frame: a %s does not come from the %s", frame_rules[type].name,
                       from == MX_FROM_CLIENT ? "client" : "server");
    if (header[5] > (type == MX_FRAME_REQUEST ? MX_FRAME_DESCRIPTORS_MAX : 0))
        return mx_fail(error, MX_CORRUPT, NULL, "frame: a %s does not come with %d descriptors", frame_rules[type].name,
                       header[5]);
    if (header[6] || header[7])
        return mx_fail(error, MX_CORRUPT, NULL, "frame: the bytes before the id are not zero");
    if (length < frame_rules[type].body_min || length > frame_rules[type].body_max)
        return mx_fail(error, MX_CORRUPT, NULL, "frame: a %s has %zu to %zu bytes, got %zu", frame_rules[type].name,
                       frame_rules[type].body_min, frame_rules[type].body_max, length);
    frame->id = get_u32(header + 8);
    if (frame_rules[type].has_id && frame->id == 0)
        return mx_fail(error, MX_CORRUPT, NULL, "frame: a %s needs a request id, got 0", frame_rules[type].name);
    if (have - MX_FRAME_HEADER_BYTES < length)
        return MX_AGAIN;
    frame->type = (mx_frame_type)type;
    frame->n_descriptors = header[5];
    frame->body = in->data + in->begin + MX_FRAME_HEADER_BYTES;
    frame->body_bytes = length;
    return MX_OK;
}

void mx_frame_consume(mx_buffer *in, const mx_frame *frame)
{
    mx_buffer_consume(in, MX_FRAME_HEADER_BYTES + frame->body_bytes);
}

mx_status mx_hello_append(mx_buffer *out, mx_error *error)
{
    char body[64];
    int bytes = snprintf(body, sizeof(body), "{\"protocol\":%d,\"version\":\"%s\"}", MX_PROTOCOL, MX_VERSION);

    return mx_frame_append(out, MX_FRAME_HELLO, 0, body, (size_t)bytes, error);
}

mx_status mx_hello_check(const mx_frame *frame, mx_error *error)
{
    json_t *json, *protocol, *version;
    mx_status status = MX_OK;

    if (frame->type != MX_FRAME_HELLO)
        return mx_fail(error, MX_CORRUPT, NULL, "frame: expected a hello first, got a %s", frame_rules[frame->type].name);
    json = mx_json_parse(frame->body, frame->body_bytes, error);
    if (!json)
        return error->status;
    protocol = json_object_get(json, "protocol");
    version = json_object_get(json, "version");
    if (!json_is_integer(protocol) || !json_is_string(version))
        status = mx_fail(error, MX_CORRUPT, NULL, "hello: expected an integer `protocol` and a string `version`");
    else if (json_integer_value(protocol) != MX_PROTOCOL)
        status = mx_fail(error, MX_CORRUPT, NULL,
                         "the other side (version %.32s) speaks protocol %lld, this one (version %s) speaks %d",
                         json_string_value(version), (long long)json_integer_value(protocol), MX_VERSION, MX_PROTOCOL);
    json_decref(json);
    return status;
}

/* ---- JSON ---- */

typedef struct {
    mx_buffer out;
    bool failed; /* Jansson goes on after a key that it could not write */
} dump;

static int dump_more(const char *text, size_t bytes, void *arg)
{
    dump *d = arg;

    d->failed = d->failed || mx_buffer_append(&d->out, text, bytes, NULL) != MX_OK;
    return d->failed ? -1 : 0;
}

char *mx_json_dump(const json_t *json, size_t *bytes)
{
    /* nine digits tell any two float32 apart */
    const size_t flags = JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9);
    dump d = {0};

    *bytes = 0;
    if (json_dump_callback(json, dump_more, &d, flags) != 0 || dump_more("", 1, &d) != 0 || d.failed) {
        mx_buffer_free(&d.out);
        return NULL;
    }
    *bytes = mx_buffer_bytes(&d.out) - 1;
    return d.out.data;
}

/* Source: Unicode 15, table 3-7. */
size_t mx_utf8_character(const unsigned char *text, size_t bytes)
{
    unsigned char first = text[0], low = 0x80, high = 0xBF;
    size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;

    if (length > bytes)
        return 0;
    if (first == 0xE0)
        low = 0xA0;
    else if (first == 0xED)
        high = 0x9F;
    else if (first == 0xF0)
        low = 0x90;
    else if (first == 0xF4)
        high = 0x8F;
    for (size_t i = 1; i < length; i++) {
        if (text[i] < low || text[i] > high)
            return 0;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

json_t *mx_json_text(const char *text, size_t bytes)
{
    char *clean = malloc(3 * bytes + 1); /* U+FFFD has three bytes */
    size_t end = 0, length;
    json_t *json;

    if (!clean)
        return NULL;
    for (size_t i = 0; i < bytes; i += length) {
        length = mx_utf8_character((const unsigned char *)text + i, bytes - i);
        if (length == 0) {
            memcpy(clean + end, "\xEF\xBF\xBD", 3);
            end += 3;
            length = 1;
        } else if (text[i] != '\0') {
            memcpy(clean + end, text + i, length);
            end += length;
        }
    }
    json = json_stringn_nocheck(clean, end);
    free(clean);
    return json;
}

json_t *mx_json_of_error(const mx_error *error)
{
    json_t *retry = error->retry_after_ms > 0 ? json_integer(error->retry_after_ms) : NULL;

    return json_pack("{s:s, s:o, s:o, s:o*}", "status", mx_status_name(error->status), "field",
                     mx_json_text(error->field, strlen(error->field)), "text",
                     mx_json_text(error->text, strlen(error->text)), "retry_after_ms", retry);
}

void mx_json_to_error(const json_t *json, mx_error *error)
{
    const char *name = json_string_value(json_object_get(json, "status"));
    const char *field = json_string_value(json_object_get(json, "field"));
    const char *text = json_string_value(json_object_get(json, "text"));
    json_int_t retry_ms = json_integer_value(json_object_get(json, "retry_after_ms"));
    mx_status status = MX_INTERNAL;

    for (int i = MX_BUSY; name && i <= MX_INTERNAL; i++) {
        if (strcmp(name, mx_status_name((mx_status)i)) == 0)
            status = (mx_status)i;
    }
    mx_fail(error, status, field, "%s", text ? text : "an error without a text");
    error->retry_after_ms = retry_ms > 0 ? retry_ms : 0;
}
