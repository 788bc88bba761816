/*
 * wire.h: what goes over the socket between a client and an engine, and the buffers it goes through.
 *
 * A frame is a header of 12 bytes and a body of JSON:
 *
 *     u32 body length | u8 type | u8 descriptors | 2 zero bytes | u32 request id        little-endian
 *
 * Each side's first frame is a HELLO, {"protocol": 1, "version": "0.1.0"}, with id 0. Then the client sends REQUESTs under ids of
 * its choice (not 0, none twice at a time) and CANCELs, where a REQUEST may come with files: their descriptors are passed
 * (SCM_RIGHTS) with its first byte or before, and belong to the requests in order. The server answers a request with any number of
 * PIECEs and then one RESULT or ERROR. An ERROR with id 0 is about the connection, which ends with it: MX_BUSY where there are too
 * many.
 *
 * A client that shuts down its sending side has left, as one that is gone: what it asked for is cancelled, and an ERROR with id 0
 * says so. (It could not cancel any more, and nobody would know whether it still reads.) What was sent to it before comes first.
 *
 * Everything received is hostile: a header is checked before its body is waited for, and a body's JSON is bounded in depth
 * and in the number of its values (a byte of JSON can cost 70 of memory). No state but the buffers, which are
 * one thread's at a time.
 */
#ifndef MX_SERVER_WIRE_H
#define MX_SERVER_WIRE_H

#include <jansson.h>
#include <stdbool.h>
#include "../mx.h"

#define MX_FRAME_HEADER_BYTES 12
#define MX_FRAME_BODY_MAX ((size_t)16 << 20)
#define MX_FRAME_DESCRIPTORS_MAX 2 /* of a request */
#define MX_DESCRIPTORS_MAX 32      /* of a connection, that wait for their request */
#define MX_JSON_DEPTH_MAX 32
#define MX_JSON_VALUES_MAX (1 << 18)

typedef enum {
    MX_FRAME_HELLO = 1, /* both     {"protocol", "version"} */
    MX_FRAME_REQUEST,   /* client   see mx_client_request */
    MX_FRAME_CANCEL,    /* client   no body */
    MX_FRAME_PIECE,     /* server   {"choice", "text"}; a request's first one with "cached_tokens" besides */
    MX_FRAME_RESULT,    /* server   see mx_client_request */
    MX_FRAME_ERROR      /* server   {"status", "field", "text", "retry_after_ms"?} */
} mx_frame_type;

typedef enum { MX_FROM_CLIENT = 1, MX_FROM_SERVER = 2 } mx_sender;

typedef struct {
    mx_frame_type type;
    uint32_t id;
    const char *body; /* [body_bytes], within the buffer */
    size_t body_bytes;
    int n_descriptors; /* that have come with it */
} mx_frame;

typedef struct { /* bytes begin .. end of data wait; zeroed: empty; free with mx_buffer_free */
    char *data;
    size_t begin, end, capacity;
} mx_buffer;

typedef struct { /* [n], oldest first; owned */
    int fd[MX_DESCRIPTORS_MAX];
    int n;
} mx_descriptors;

void mx_descriptors_close(mx_descriptors *descriptors);
/* The first `n` go into fds; false if there are fewer, and nothing is taken. */
bool mx_descriptors_take(mx_descriptors *descriptors, int fds[], int n);

size_t mx_buffer_bytes(const mx_buffer *buffer);
mx_status mx_buffer_append(mx_buffer *buffer, const void *data, size_t bytes, mx_error *error);
void mx_buffer_consume(mx_buffer *buffer, size_t bytes); /* memory beyond a small rest goes back when it is empty */
void mx_buffer_free(mx_buffer *buffer);

/* One recvmsg(2) into the buffer, and descriptors that come with it behind the others (NULL: they are refused, as too many are, with
 * MX_CORRUPT). MX_AGAIN when nothing is there, MX_UNAVAILABLE when the peer is gone, MX_NOMEM. */
mx_status mx_buffer_receive(mx_buffer *buffer, int fd, mx_descriptors *descriptors, mx_error *error);

/* The descriptors (NULL: none) go with the first byte, and are closed then. Sends until all is sent (MX_OK) or the socket is full (MX_AGAIN). MX_UNAVAILABLE when the peer is gone. */
mx_status mx_buffer_send(mx_buffer *buffer, int fd, mx_descriptors *descriptors, mx_error *error);

/* Appends a frame; nothing is appended on failure. MX_TOO_LARGE with the numbers when the body exceeds MX_FRAME_BODY_MAX. */
mx_status mx_frame_append(mx_buffer *out, mx_frame_type type, uint32_t id, const char *body, size_t bytes, mx_error *error);

mx_status mx_request_append(mx_buffer *out, uint32_t id, const char *body, size_t bytes, int n_descriptors, mx_error *error);

/* The frame at the buffer's beginning, which stays there until mx_frame_consume. MX_AGAIN: not whole yet. MX_CORRUPT: `from`
 * may not send that. */
mx_status mx_frame_peek(const mx_buffer *in, mx_sender from, mx_frame *frame, mx_error *error);
void mx_frame_consume(mx_buffer *in, const mx_frame *frame);

mx_status mx_hello_append(mx_buffer *out, mx_error *error);
/* MX_CORRUPT: no HELLO, or of another protocol. MX_NOMEM. `error` is not NULL. */
mx_status mx_hello_check(const mx_frame *frame, mx_error *error);

/* A JSON object, for json_decref; NULL (MX_CORRUPT, or MX_NOMEM) where the text is none or exceeds the bounds above. U+0000 is
 * allowed in strings, so their length counts. */
json_t *mx_json_parse(const char *text, size_t bytes, mx_error *error);

/* JSON text of a value on one line, floats exact; for free(). NULL: out of memory. */
char *mx_json_dump(const json_t *json, size_t *bytes);

/* A JSON string of any bytes: what is no UTF-8 becomes U+FFFD, and U+0000 is dropped. NULL: out of memory. */
json_t *mx_json_text(const char *text, size_t bytes);

/* Bytes of the UTF-8 character at text, 0 if there is none. */
size_t mx_utf8_character(const unsigned char *text, size_t bytes);

json_t *mx_json_of_error(const mx_error *error);           /* the body of an ERROR; NULL: out of memory */
void mx_json_to_error(const json_t *json, mx_error *error); /* and back; never leaves MX_OK or MX_AGAIN */

#endif
