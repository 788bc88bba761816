/*
 * gguf_parse.c: the header and tensor table of one GGUF file, read and checked.
 *
 * Counts are compared with what the file's bytes could hold before anything is allocated; sizes are computed with checks for
 * overflow; every tensor's bytes lie within the data section and belong to no other tensor.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "gguf_file.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are read from the mapping as they are");

#define TENSORS_MAX (1 << 20)
#define TENSOR_NAME_MAX 127
#define TENSOR_BYTES_MIN 33 /* of a table entry: a name of one byte and one dimension */
#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MAX (1 << 20)

/* ---- The reader ---------------------------------------------------------------------------------------------------- */

mx_status mx_gguf_bad(mx_gguf_reader *r, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return mx_fail(r->error, MX_CORRUPT, r->field, "%s: %s", r->where, text);
}

void mx_gguf_reading(mx_gguf_reader *r, const char *what, mx_str name)
{
    snprintf(r->field, sizeof r->field, "%.*s", (int)(name.bytes < 64 ? name.bytes : 64), name.data);
    snprintf(r->where, sizeof r->where, "%s %.*s", what, (int)(name.bytes < 128 ? name.bytes : 128), name.data);
}

void mx_gguf_reading_nth(mx_gguf_reader *r, const char *what, uint64_t n)
{
    r->field[0] = '\0';
    snprintf(r->where, sizeof r->where, "%s %" PRIu64, what, n);
}

size_t mx_gguf_bytes_left(const mx_gguf_reader *r)
{
    return r->file->bytes - r->at;
}

mx_status mx_gguf_read_bytes(mx_gguf_reader *r, uint64_t n, const uint8_t **bytes)
{
    if (n > mx_gguf_bytes_left(r))
        return mx_gguf_bad(r, "expected %" PRIu64 " bytes at offset %zu, got %zu to the end of the file", n, r->at,
                           mx_gguf_bytes_left(r));
    *bytes = r->file->map + r->at;
    r->at += (size_t)n;
    return MX_OK;
}

mx_status mx_gguf_read_u32(mx_gguf_reader *r, uint32_t *value)
{
    const uint8_t *p = NULL;
    mx_status status = mx_gguf_read_bytes(r, 4, &p);

    if (status == MX_OK)
        memcpy(value, p, 4);
    return status;
}

mx_status mx_gguf_read_u64(mx_gguf_reader *r, uint64_t *value)
{
    const uint8_t *p = NULL;
    mx_status status = mx_gguf_read_bytes(r, 8, &p);

    if (status == MX_OK)
        memcpy(value, p, 8);
    return status;
}

mx_status mx_gguf_read_string(mx_gguf_reader *r, mx_str *string)
{
    const uint8_t *p = NULL;
    uint64_t n = 0;
    mx_status status;

    if ((status = mx_gguf_read_u64(r, &n)) != MX_OK || (status = mx_gguf_read_bytes(r, n, &p)) != MX_OK)
        return status;
    *string = (mx_str){(const char *)p, (size_t)n};
    return MX_OK;
}

/* ---- Header -------------------------------------------------------------------------------------------------------- */

static mx_status read_header(mx_gguf_reader *r, mx_gguf_file *file, uint64_t *n_tensors, uint64_t *n_keys)
{
    const uint8_t *magic = NULL;
    mx_status status;

    snprintf(r->where, sizeof r->where, "header");
    if ((status = mx_gguf_read_bytes(r, 4, &magic)) != MX_OK)
        return status;
    if (memcmp(magic, "GGUF", 4) != 0)
        return mx_gguf_bad(r, "expected the bytes 47 47 55 46 (\"GGUF\"), got %02x %02x %02x %02x", magic[0], magic[1],
                           magic[2], magic[3]);
    if ((status = mx_gguf_read_u32(r, &file->version)) != MX_OK)
        return status;
    if ((file->version & 0xffff) == 0 && file->version != 0)
        return mx_gguf_bad(r, "expected a little-endian file, got a big-endian one");
    if (file->version != 2 && file->version != 3)
        return mx_gguf_bad(r, "expected version 2 or 3, got %" PRIu32, file->version);
    if ((status = mx_gguf_read_u64(r, n_tensors)) != MX_OK)
        return status;
    return mx_gguf_read_u64(r, n_keys);
}

static mx_status read_alignment(const mx_gguf_file *file, size_t *alignment, mx_error *error)
{
    int64_t value = ALIGNMENT_DEFAULT;
    mx_status status = mx_gguf_file_int(file, "general.alignment", 1, ALIGNMENT_MAX, &value, NULL, error);

    if (status == MX_OK && (value & (value - 1)) != 0)
        return mx_fail(error, MX_CORRUPT, "general.alignment",
                       "key general.alignment: expected a power of two, got %" PRId64, value);
    *alignment = (size_t)value;
    return status;
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------- */

/* The names of types that exist and are not built, for messages. */
static const char *unbuilt_type_name(uint32_t id)
{
    static const char *const names[] = {
        [4] = "Q4_2",   [5] = "Q4_3",   [9] = "Q8_1",      [15] = "Q8_K",     [24] = "I8",       [25] = "I16",
        [26] = "I32",   [27] = "I64",   [28] = "F64",      [31] = "Q4_0_4_4", [32] = "Q4_0_4_8", [33] = "Q4_0_8_8",
        [34] = "TQ1_0", [35] = "TQ2_0", [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8",
        [39] = "MXFP4", [40] = "NVFP4",
    };

    return id < sizeof names / sizeof names[0] && names[id] ? names[id] : "unknown";
}

static mx_status read_dims(mx_gguf_reader *r, mx_gguf_tensor *t)
{
    uint32_t n_dims;
    uint64_t dim;
    int64_t n = 1;
    mx_status status;

    if ((status = mx_gguf_read_u32(r, &n_dims)) != MX_OK)
        return status;
    if (n_dims < 1 || n_dims > 4)
        return mx_gguf_bad(r, "expected 1 to 4 dimensions, got %" PRIu32, n_dims);
    t->n_dims = (int)n_dims;
    for (int i = 0; i < 4; i++) {
        dim = 1;
        if (i < t->n_dims && (status = mx_gguf_read_u64(r, &dim)) != MX_OK)
            return status;
        if (dim < 1 || dim > INT64_MAX)
            return mx_gguf_bad(r, "dimension %d: expected 1 to 2^63 - 1, got %" PRIu64, i, dim);
        t->dims[i] = (int64_t)dim;
        if (__builtin_mul_overflow(n, t->dims[i], &n))
            return mx_gguf_bad(r, "the product of its dimensions exceeds 2^63 - 1");
    }
    return MX_OK;
}

static mx_status read_type(mx_gguf_reader *r, mx_gguf_tensor *t)
{
    const mx_type_info *type;
    uint32_t id;
    uint64_t bytes;
    mx_status status;

    if ((status = mx_gguf_read_u32(r, &id)) != MX_OK)
        return status;
    if (mx_type_from_gguf(id) < 0)
        return mx_fail(r->error, MX_INVALID, r->field, "%s: expected one of the %d types that are built, got type %" PRIu32
                       " (%s)", r->where, MX_TYPE_COUNT, id, unbuilt_type_name(id));
    t->type = (mx_type)mx_type_from_gguf(id);
    type = mx_type_get(t->type);
    if (t->dims[0] % type->block_size != 0)
        return mx_gguf_bad(r, "expected rows of a multiple of %d weights (%s), got %" PRId64, type->block_size, type->name,
                           t->dims[0]);
    bytes = (uint64_t)(t->dims[0] / type->block_size);
    if (__builtin_mul_overflow(bytes, (uint64_t)type->block_bytes, &bytes))
        return mx_gguf_bad(r, "its size exceeds 2^64 bytes");
    for (int i = 1; i < 4; i++)
        if (__builtin_mul_overflow(bytes, (uint64_t)t->dims[i], &bytes))
            return mx_gguf_bad(r, "its size exceeds 2^64 bytes");
    t->bytes = (size_t)bytes;
    return MX_OK;
}

/* A table entry. Where the data begins is known at the table's end: see place_tensor. */
static mx_status read_tensor(mx_gguf_reader *r, mx_gguf_tensor *t, uint64_t *offset)
{
    mx_status status;

    if ((status = mx_gguf_read_string(r, &t->name)) != MX_OK)
        return status;
    if (t->name.bytes == 0 || t->name.bytes > TENSOR_NAME_MAX)
        return mx_gguf_bad(r, "expected a name of 1 to %d bytes, got %zu", TENSOR_NAME_MAX, t->name.bytes);
    mx_gguf_reading(r, "tensor", t->name);
    if ((status = read_dims(r, t)) != MX_OK || (status = read_type(r, t)) != MX_OK)
        return status;
    return mx_gguf_read_u64(r, offset);
}

/* Floats are read where they lie; the blocks of quantised types may lie anywhere. */
static size_t needed_alignment(mx_type type)
{
    return type == MX_TYPE_F32 ? 4 : type == MX_TYPE_F16 || type == MX_TYPE_BF16 ? 2 : 1;
}

static mx_status place_tensor(mx_gguf_reader *r, mx_gguf_tensor *t, uint64_t offset, size_t data_begin, size_t alignment)
{
    size_t size = r->file->bytes > data_begin ? r->file->bytes - data_begin : 0; /* of the data section */

    mx_gguf_reading(r, "tensor", t->name);
    if (offset % alignment != 0)
        return mx_gguf_bad(r, "expected an offset that is a multiple of %zu, got %" PRIu64, alignment, offset);
    if (offset > size || t->bytes > size - offset)
        return mx_gguf_bad(r, "expected %zu bytes at offset %" PRIu64 " of the data, which ends at %zu", t->bytes, offset,
                           size);
    t->data = r->file->map + data_begin + offset;
    if ((data_begin + offset) % needed_alignment(t->type) != 0)
        return mx_gguf_bad(r, "expected %s data at a multiple of %zu bytes, got offset %" PRIu64 " (general.alignment is %zu)",
                           mx_type_get(t->type)->name, needed_alignment(t->type), data_begin + offset, alignment);
    return MX_OK;
}

static int compare_places(const void *a, const void *b)
{
    const mx_gguf_tensor *const *x = a, *const *y = b;

    return (*x)->data < (*y)->data ? -1 : (*x)->data > (*y)->data;
}

static mx_status check_overlaps(mx_gguf_reader *r, const mx_gguf_tensor *tensors, size_t n)
{
    const mx_gguf_tensor **sorted = malloc((n ? n : 1) * sizeof *sorted);
    mx_status status = MX_OK;

    if (!sorted)
        return mx_fail(r->error, MX_NOMEM, NULL, "out of memory for %zu tensors", n);
    for (size_t i = 0; i < n; i++)
        sorted[i] = &tensors[i];
    qsort(sorted, n, sizeof *sorted, compare_places);
    for (size_t i = 1; i < n && status == MX_OK; i++)
        if (sorted[i - 1]->data + sorted[i - 1]->bytes > sorted[i]->data) {
            mx_gguf_reading(r, "tensor", sorted[i]->name);
            status = mx_gguf_bad(r, "its bytes overlap those of tensor %.*s", (int)sorted[i - 1]->name.bytes,
                                 sorted[i - 1]->name.data);
        }
    free(sorted);
    return status;
}

static mx_status read_tensors(mx_gguf_reader *r, mx_gguf *gguf, mx_gguf_file *file, uint64_t n, size_t alignment)
{
    mx_gguf_tensor *grown, *tensors;
    uint64_t *offsets = NULL;
    size_t data_begin;
    mx_status status = MX_OK;

    if (n > TENSORS_MAX - gguf->n_tensors || n > mx_gguf_bytes_left(r) / TENSOR_BYTES_MIN)
        return mx_gguf_bad(r, "%" PRIu64 " tensors do not fit into a file of %zu bytes", n, file->bytes);
    grown = realloc(gguf->tensors, (gguf->n_tensors + (size_t)n + 1) * sizeof *grown);
    if (grown)
        gguf->tensors = grown;
    offsets = malloc(((size_t)n + 1) * sizeof *offsets);
    if (!grown || !offsets) {
        status = mx_fail(r->error, MX_NOMEM, NULL, "out of memory for %" PRIu64 " tensors", n);
        goto done;
    }
    tensors = gguf->tensors + gguf->n_tensors;
    for (size_t i = 0; i < n; i++) {
        mx_gguf_reading_nth(r, "tensor", i);
        if ((status = read_tensor(r, &tensors[i], &offsets[i])) != MX_OK)
            goto done;
    }
    file->header_bytes = r->at;
    data_begin = (r->at + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < n; i++)
        if ((status = place_tensor(r, &tensors[i], offsets[i], data_begin, alignment)) != MX_OK)
            goto done;
    if ((status = check_overlaps(r, tensors, (size_t)n)) == MX_OK)
        gguf->n_tensors += (size_t)n;
done:
    free(offsets);
    return status;
}

mx_status mx_gguf_parse(mx_gguf *gguf, mx_gguf_file *file, mx_error *error)
{
    mx_gguf_reader reader = {.file = file, .error = error};
    uint64_t n_tensors = 0, n_keys = 0;
    size_t alignment = 0;
    mx_status status;

    if ((status = read_header(&reader, file, &n_tensors, &n_keys)) != MX_OK ||
        (status = mx_gguf_read_keys(&reader, file, n_keys)) != MX_OK ||
        (status = read_alignment(file, &alignment, error)) != MX_OK)
        return status;
    mx_gguf_reading_nth(&reader, "tensor", 0);
    snprintf(reader.where, sizeof reader.where, "header");
    return read_tensors(&reader, gguf, file, n_tensors, alignment);
}
