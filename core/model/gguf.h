/*
 * gguf.h: a GGUF file (v2, v3; single or split), mapped read-only and checked.
 *
 * Everything in the file is hostile until checked here: after mx_gguf_open every count, offset, string and tensor extent
 * lies within the mapped bytes, and what the accessors return needs no further bounds check. Strings and tensor data point
 * into the mapping and live until mx_gguf_close. Immutable after open: any thread may read.
 * Source: ggml's docs/gguf.md.
 */
#ifndef MX_MODEL_GGUF_H
#define MX_MODEL_GGUF_H

#include <stdbool.h>
#include "../math/blocks.h"
#include "../mx.h"

typedef struct {
    const char *data; /* not NUL-terminated */
    size_t bytes;
} mx_str;

typedef enum { /* values of the format */
    MX_GGUF_UINT8, MX_GGUF_INT8, MX_GGUF_UINT16, MX_GGUF_INT16, MX_GGUF_UINT32, MX_GGUF_INT32, MX_GGUF_FLOAT32,
    MX_GGUF_BOOL, MX_GGUF_STRING, MX_GGUF_ARRAY, MX_GGUF_UINT64, MX_GGUF_INT64, MX_GGUF_FLOAT64
} mx_gguf_kind;

typedef struct {
    mx_str name;
    mx_type type;
    int n_dims;          /* 1 .. 4 */
    int64_t dims[4];     /* dims[0] is the contiguous one ("cols"); unused ones are 1 */
    const uint8_t *data; /* mapped; aligned to the file's general.alignment */
    size_t bytes;
} mx_gguf_tensor;

typedef struct mx_gguf mx_gguf;

mx_status mx_gguf_open(const char *path, mx_gguf **gguf, mx_error *error); /* path: the file, or the first of a split */
void mx_gguf_close(mx_gguf *gguf);                                         /* takes NULL */

/* Key-values. `found` may be NULL; a missing key leaves *value alone and is MX_OK. A key of another kind is MX_CORRUPT with
 * the key's name in the text. Integers of every width are taken where the value fits; floats are checked to be finite. */
mx_status mx_gguf_get_int(const mx_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *value, bool *found, mx_error *error);
mx_status mx_gguf_get_float(const mx_gguf *gguf, const char *key, double *value, bool *found, mx_error *error);
mx_status mx_gguf_get_bool(const mx_gguf *gguf, const char *key, bool *value, bool *found, mx_error *error);
mx_status mx_gguf_get_string(const mx_gguf *gguf, const char *key, mx_str *value, bool *found, mx_error *error);

/* Arrays: the element kind and count of `key`, false if the key is missing or no array. Element access is O(1) for fixed
 * widths; string arrays are indexed once at open. Out of range is the caller's mistake. */
bool mx_gguf_array(const mx_gguf *gguf, const char *key, mx_gguf_kind *kind, size_t *count);
mx_str mx_gguf_array_string(const mx_gguf *gguf, const char *key, size_t i);
double mx_gguf_array_number(const mx_gguf *gguf, const char *key, size_t i); /* integers and floats, as double */

/* The arrays by handle, for loops over a vocabulary: NULL if the key is missing or no array of `kind`. */
typedef struct mx_gguf_list mx_gguf_list;
const mx_gguf_list *mx_gguf_list_find(const mx_gguf *gguf, const char *key, mx_gguf_kind kind);
size_t mx_gguf_list_count(const mx_gguf_list *list);
mx_str mx_gguf_list_string(const mx_gguf_list *list, size_t i); /* MX_GGUF_STRING */
double mx_gguf_list_number(const mx_gguf_list *list, size_t i); /* any numeric kind */

/* Tensors, over all files of a split. */
size_t mx_gguf_n_tensors(const mx_gguf *gguf);
const mx_gguf_tensor *mx_gguf_tensor_at(const mx_gguf *gguf, size_t i);
const mx_gguf_tensor *mx_gguf_tensor_find(const mx_gguf *gguf, const char *name); /* NULL if there is none */

/* For `info`: key-values by index. */
size_t mx_gguf_n_keys(const mx_gguf *gguf);
mx_str mx_gguf_key_at(const mx_gguf *gguf, size_t i, mx_gguf_kind *kind);
size_t mx_gguf_file_bytes(const mx_gguf *gguf); /* of all files of the split */
uint32_t mx_gguf_version(const mx_gguf *gguf);

/* BLAKE2b-256 of headers, tensor tables, file sizes and the first 4 KiB of each tensor. */
mx_status mx_gguf_identity(const mx_gguf *gguf, uint8_t identity[32], mx_error *error);

#endif
