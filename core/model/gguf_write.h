/*
 * gguf_write.h: writing a GGUF file (v3).
 *
 * First every key, then every tensor is declared, then the tensors' bytes are written in that order; padding is the writer's.
 * The bytes go to a temporary file beside the wanted one, which takes its name at commit: a reader sees the old file or the
 * whole new one. The first failure is kept and given by commit; the calls before it need no check. One thread.
 */
#ifndef MX_MODEL_GGUF_WRITE_H
#define MX_MODEL_GGUF_WRITE_H

#include "gguf.h"

typedef struct mx_gguf_writer mx_gguf_writer;

mx_status mx_gguf_writer_open(const char *path, mx_gguf_writer **writer, mx_error *error);

void mx_gguf_put_int(mx_gguf_writer *writer, const char *key, mx_gguf_kind kind, int64_t value); /* an integer kind */
void mx_gguf_put_float(mx_gguf_writer *writer, const char *key, mx_gguf_kind kind, double value); /* FLOAT32, FLOAT64 */
void mx_gguf_put_bool(mx_gguf_writer *writer, const char *key, bool value);
void mx_gguf_put_string(mx_gguf_writer *writer, const char *key, mx_str value);
void mx_gguf_put_text(mx_gguf_writer *writer, const char *key, const char *value); /* NUL-terminated */
void mx_gguf_put_strings(mx_gguf_writer *writer, const char *key, const mx_str *values, size_t n);
void mx_gguf_put_numbers(mx_gguf_writer *writer, const char *key, mx_gguf_kind kind, const double *values, size_t n);

/* dims[0] is the contiguous one, a multiple of the type's block size */
void mx_gguf_put_tensor(mx_gguf_writer *writer, const char *name, mx_type type, int n_dims, const int64_t *dims);

/* The next bytes of the tensors' data; no call goes past the end of a tensor. */
void mx_gguf_write_data(mx_gguf_writer *writer, const void *data, size_t bytes);

bool mx_gguf_writer_failed(const mx_gguf_writer *writer); /* commit will fail: no need to go on */

/* The file takes its name. Fails (MX_IO, MX_NOMEM, MX_INTERNAL) if anything did before, or if data is missing. */
mx_status mx_gguf_writer_commit(mx_gguf_writer *writer, mx_error *error);
void mx_gguf_writer_close(mx_gguf_writer *writer); /* without a commit nothing remains; takes NULL */

#endif
