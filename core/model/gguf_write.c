/*
 * gguf_write.c: key-values and tensor table are gathered in memory and written with the first byte of data.
 */
#include "gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../error.h"

#define VERSION 3
#define ALIGNMENT 32

typedef struct {
    uint8_t *data;
    size_t bytes, capacity;
} buffer;

struct mx_gguf_writer {
    char *path, *temporary;
    FILE *file;
    buffer keys, table;
    uint64_t n_keys, n_tensors;
    size_t *sizes;      /* [n_tensors] bytes */
    size_t next_offset; /* of the next tensor to be declared */
    bool header_written;
    size_t current;     /* tensor that is being written */
    size_t written;     /* of its bytes */
    mx_error error;     /* the first one; MX_OK: none */
};

/* ---- Bytes --------------------------------------------------------------------------------------------------------- */

static void fail(mx_gguf_writer *w, mx_status status, const char *what)
{
    int number = errno;

    if (w->error.status != MX_OK)
        return;
    if (status == MX_IO)
        mx_fail(&w->error, status, NULL, "%s: cannot %s: %s", w->path, what, strerror(number));
    else
        mx_fail(&w->error, status, NULL, "%s: %s", w->path, what);
}

static void append(mx_gguf_writer *w, buffer *b, const void *data, size_t bytes)
{
    if (w->error.status != MX_OK)
        return;
    if (bytes > b->capacity - b->bytes) {
        size_t capacity = 2 * (b->bytes + bytes) + 1024;
        uint8_t *grown = realloc(b->data, capacity);

        if (!grown) {
            fail(w, MX_NOMEM, "out of memory");
            return;
        }
        b->data = grown;
        b->capacity = capacity;
    }
    memcpy(b->data + b->bytes, data, bytes);
    b->bytes += bytes;
}

static void append_u32(mx_gguf_writer *w, buffer *b, uint32_t value)
{
    append(w, b, &value, sizeof value);
}

static void append_u64(mx_gguf_writer *w, buffer *b, uint64_t value)
{
    append(w, b, &value, sizeof value);
}

static void append_string(mx_gguf_writer *w, buffer *b, mx_str string)
{
    append_u64(w, b, string.bytes);
    append(w, b, string.data, string.bytes);
}

/* A number of any kind; doubles hold every integer that is written in an array (token types, ids). */
static void append_float(mx_gguf_writer *w, mx_gguf_kind kind, double value)
{
    float f = (float)value;

    if (kind == MX_GGUF_FLOAT32)
        append(w, &w->keys, &f, sizeof f);
    else
        append(w, &w->keys, &value, sizeof value);
}

static void append_integer(mx_gguf_writer *w, mx_gguf_kind kind, int64_t value)
{
    size_t bytes = kind == MX_GGUF_UINT8 || kind == MX_GGUF_INT8 || kind == MX_GGUF_BOOL ? 1
                   : kind == MX_GGUF_UINT16 || kind == MX_GGUF_INT16                     ? 2
                   : kind == MX_GGUF_UINT32 || kind == MX_GGUF_INT32                     ? 4
                                                                                          : 8;

    append(w, &w->keys, &value, bytes); /* little-endian: the low bytes come first */
}

/* ---- Keys ---------------------------------------------------------------------------------------------------------- */

static void put_key(mx_gguf_writer *w, const char *key, mx_gguf_kind kind)
{
    append_string(w, &w->keys, (mx_str){key, strlen(key)});
    append_u32(w, &w->keys, kind);
    w->n_keys++;
}

static void put_array(mx_gguf_writer *w, const char *key, mx_gguf_kind kind, size_t n)
{
    put_key(w, key, MX_GGUF_ARRAY);
    append_u32(w, &w->keys, kind);
    append_u64(w, &w->keys, n);
}

void mx_gguf_put_int(mx_gguf_writer *w, const char *key, mx_gguf_kind kind, int64_t value)
{
    put_key(w, key, kind);
    append_integer(w, kind, value);
}

void mx_gguf_put_float(mx_gguf_writer *w, const char *key, mx_gguf_kind kind, double value)
{
    put_key(w, key, kind);
    append_float(w, kind, value);
}

void mx_gguf_put_bool(mx_gguf_writer *w, const char *key, bool value)
{
    mx_gguf_put_int(w, key, MX_GGUF_BOOL, value);
}

void mx_gguf_put_string(mx_gguf_writer *w, const char *key, mx_str value)
{
    put_key(w, key, MX_GGUF_STRING);
    append_string(w, &w->keys, value);
}

void mx_gguf_put_text(mx_gguf_writer *w, const char *key, const char *value)
{
    mx_gguf_put_string(w, key, (mx_str){value, strlen(value)});
}

void mx_gguf_put_strings(mx_gguf_writer *w, const char *key, const mx_str *values, size_t n)
{
    put_array(w, key, MX_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        append_string(w, &w->keys, values[i]);
}

void mx_gguf_put_numbers(mx_gguf_writer *w, const char *key, mx_gguf_kind kind, const double *values, size_t n)
{
    put_array(w, key, kind, n);
    for (size_t i = 0; i < n; i++) {
        if (kind == MX_GGUF_FLOAT32 || kind == MX_GGUF_FLOAT64)
            append_float(w, kind, values[i]);
        else
            append_integer(w, kind, (int64_t)values[i]);
    }
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------- */

void mx_gguf_put_tensor(mx_gguf_writer *w, const char *name, mx_type type, int n_dims, const int64_t *dims)
{
    size_t bytes = mx_row_bytes(type, dims[0]), *sizes;

    if (w->error.status != MX_OK)
        return;
    sizes = realloc(w->sizes, (w->n_tensors + 1) * sizeof *sizes);
    if (!sizes) {
        fail(w, MX_NOMEM, "out of memory");
        return;
    }
    w->sizes = sizes;
    append_string(w, &w->table, (mx_str){name, strlen(name)});
    append_u32(w, &w->table, (uint32_t)n_dims);
    for (int i = 0; i < n_dims; i++) {
        append_u64(w, &w->table, (uint64_t)dims[i]);
        bytes *= i > 0 ? (size_t)dims[i] : 1;
    }
    append_u32(w, &w->table, mx_type_get(type)->gguf_id);
    append_u64(w, &w->table, w->next_offset);
    w->sizes[w->n_tensors++] = bytes;
    w->next_offset += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void write_bytes(mx_gguf_writer *w, const void *data, size_t bytes)
{
    if (w->error.status == MX_OK && bytes > 0 && fwrite(data, 1, bytes, w->file) != bytes)
        fail(w, MX_IO, "write");
}

static void pad(mx_gguf_writer *w, size_t position)
{
    static const uint8_t zeros[ALIGNMENT];

    write_bytes(w, zeros, (ALIGNMENT - position % ALIGNMENT) % ALIGNMENT);
}

static void write_header(mx_gguf_writer *w)
{
    buffer head = {NULL, 0, 0};

    if (w->header_written)
        return;
    w->header_written = true;
    append(w, &head, "GGUF", 4);
    append_u32(w, &head, VERSION);
    append_u64(w, &head, w->n_tensors);
    append_u64(w, &head, w->n_keys);
    write_bytes(w, head.data, head.bytes);
    write_bytes(w, w->keys.data, w->keys.bytes);
    write_bytes(w, w->table.data, w->table.bytes);
    pad(w, head.bytes + w->keys.bytes + w->table.bytes);
    free(head.data);
}

void mx_gguf_write_data(mx_gguf_writer *w, const void *data, size_t bytes)
{
    write_header(w);
    if (w->current >= w->n_tensors || bytes > w->sizes[w->current] - w->written) {
        fail(w, MX_INTERNAL, "more data than was declared");
        return;
    }
    write_bytes(w, data, bytes);
    w->written += bytes;
    if (w->written == w->sizes[w->current]) {
        pad(w, w->written);
        w->current++;
        w->written = 0;
    }
}

/* ---- The whole ----------------------------------------------------------------------------------------------------- */

mx_status mx_gguf_writer_open(const char *path, mx_gguf_writer **out, mx_error *error)
{
    mx_gguf_writer *w = calloc(1, sizeof *w);
    mx_status status;
    int fd;

    *out = NULL;
    if (!w || !(w->path = strdup(path)) || asprintf(&w->temporary, "%s.%d.tmp", path, (int)getpid()) < 0) {
        if (w)
            w->temporary = NULL;
        status = mx_fail(error, MX_NOMEM, NULL, "%s: out of memory", path);
        goto failed;
    }
    fd = open(w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    w->file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!w->file) {
        status = mx_fail(error, MX_IO, NULL, "%s: cannot create: %s", w->temporary, strerror(errno));
        if (fd >= 0) {
            close(fd);
            unlink(w->temporary);
        }
        goto failed;
    }
    *out = w;
    return MX_OK;
failed:
    mx_gguf_writer_close(w);
    return status;
}

bool mx_gguf_writer_failed(const mx_gguf_writer *w)
{
    return w->error.status != MX_OK;
}

mx_status mx_gguf_writer_commit(mx_gguf_writer *w, mx_error *error)
{
    write_header(w);
    if (w->current != w->n_tensors)
        fail(w, MX_INTERNAL, "less data than was declared");
    if (w->error.status == MX_OK && fflush(w->file) != 0)
        fail(w, MX_IO, "write");
    if (w->error.status == MX_OK && rename(w->temporary, w->path) != 0)
        fail(w, MX_IO, "rename");
    if (w->error.status != MX_OK)
        return mx_fail(error, w->error.status, w->error.field, "%s", w->error.text);
    free(w->temporary); /* nothing is left to remove */
    w->temporary = NULL;
    return MX_OK;
}

void mx_gguf_writer_close(mx_gguf_writer *w)
{
    if (!w)
        return;
    if (w->file) {
        fclose(w->file);
        if (w->temporary)
            unlink(w->temporary);
    }
    free(w->temporary);
    free(w->path);
    free(w->keys.data);
    free(w->table.data);
    free(w->sizes);
    free(w);
}
