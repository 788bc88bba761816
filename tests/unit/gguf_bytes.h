/*
 * gguf_bytes.h: GGUF files put together byte by byte, for tests of files that no writer would write.
 */
#ifndef MX_TESTS_GGUF_BYTES_H
#define MX_TESTS_GGUF_BYTES_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/gguf.h"

typedef struct {
    uint8_t data[1 << 16];
    size_t n;
} bytes;

static inline void put(bytes *b, const void *data, size_t n)
{
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline void put_u32(bytes *b, uint32_t v)
{
    put(b, &v, 4);
}

static inline void put_u64(bytes *b, uint64_t v)
{
    put(b, &v, 8);
}

static inline void put_text(bytes *b, const char *text)
{
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

/* Begins a file. */
static inline void put_header(bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    b->n = 0;
    put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}

static inline void put_key(bytes *b, const char *key, uint32_t kind)
{
    put_text(b, key);
    put_u32(b, kind);
}

static inline void put_key_u32(bytes *b, const char *key, uint32_t value)
{
    put_key(b, key, MX_GGUF_UINT32);
    put_u32(b, value);
}

static inline void put_key_text(bytes *b, const char *key, const char *value)
{
    put_key(b, key, MX_GGUF_STRING);
    put_text(b, value);
}

static inline void put_array(bytes *b, const char *key, uint32_t kind, uint64_t n)
{
    put_key(b, key, MX_GGUF_ARRAY);
    put_u32(b, kind);
    put_u64(b, n);
}

/* A tensor of two dimensions. */
static inline void put_tensor(bytes *b, const char *name, uint64_t cols, uint64_t rows, uint32_t type, uint64_t offset)
{
    put_text(b, name);
    put_u32(b, 2);
    put_u64(b, cols);
    put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

/* Zeros up to a multiple of the alignment, then n bytes of 1, 2, 3, ... */
static inline void put_data(bytes *b, size_t alignment, size_t n)
{
    while (b->n % alignment != 0)
        b->data[b->n++] = 0;
    for (size_t i = 0; i < n; i++)
        b->data[b->n++] = (uint8_t)(i + 1);
}

static inline void write_bytes(const char *path, const void *data, size_t n)
{
    FILE *file = fopen(path, "wb");

    if (!file || fwrite(data, 1, n, file) != n || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

#endif
