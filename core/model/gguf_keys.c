/*
 * gguf_keys.c: the key-values of a GGUF file: reading them, and giving them out.
 *
 * A value stays where it is in the mapping; only string arrays get an index, so that any element is found at once. Keys are
 * sorted for lookup, which no choice of names in a hostile file makes slow.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../error.h"
#include "gguf_file.h"

#define KEYS_MAX (1 << 20)
#define STRINGS_MAX (1 << 24) /* of an array */
#define KEY_BYTES_MAX 65535   /* of the format */
#define KEY_BYTES_MIN 13      /* a length, a kind and a value of one byte */

static const struct {
    const char *name;
    size_t bytes; /* 0: varies */
} kinds[] = {
    [MX_GGUF_UINT8] = {"uint8", 1},     [MX_GGUF_INT8] = {"int8", 1},       [MX_GGUF_UINT16] = {"uint16", 2},
    [MX_GGUF_INT16] = {"int16", 2},     [MX_GGUF_UINT32] = {"uint32", 4},   [MX_GGUF_INT32] = {"int32", 4},
    [MX_GGUF_FLOAT32] = {"float32", 4}, [MX_GGUF_BOOL] = {"bool", 1},       [MX_GGUF_STRING] = {"string", 0},
    [MX_GGUF_ARRAY] = {"array", 0},     [MX_GGUF_UINT64] = {"uint64", 8},   [MX_GGUF_INT64] = {"int64", 8},
    [MX_GGUF_FLOAT64] = {"float64", 8},
};

#define N_KINDS (sizeof kinds / sizeof kinds[0])

/* ---- Reading ------------------------------------------------------------------------------------------------------- */

static mx_status read_kind(mx_gguf_reader *r, mx_gguf_kind *kind)
{
    uint32_t k;
    mx_status status = mx_gguf_read_u32(r, &k);

    if (status == MX_OK && k >= N_KINDS)
        return mx_gguf_bad(r, "expected a value type from 0 to %d, got %" PRIu32, (int)N_KINDS - 1, k);
    if (status == MX_OK)
        *kind = (mx_gguf_kind)k;
    return status;
}

static mx_status check_bools(mx_gguf_reader *r, const uint8_t *bools, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (bools[i] > 1)
            return mx_gguf_bad(r, "expected a bool to be 0 or 1, got %d", bools[i]);
    return MX_OK;
}

static mx_status index_strings(mx_gguf_reader *r, mx_gguf_list *list)
{
    mx_status status;

    if (list->count > STRINGS_MAX)
        return mx_gguf_bad(r, "expected at most %d strings, got %zu", STRINGS_MAX, list->count);
    list->items = malloc((list->count ? list->count : 1) * sizeof *list->items);
    if (!list->items)
        return mx_fail(r->error, MX_NOMEM, r->field, "%s: out of memory for %zu strings", r->where, list->count);
    for (size_t i = 0; i < list->count; i++) {
        mx_str string;

        list->items[i] = r->file->map + r->at;
        if ((status = mx_gguf_read_string(r, &string)) != MX_OK)
            return status;
    }
    return MX_OK;
}

static mx_status read_list(mx_gguf_reader *r, mx_gguf_list *list)
{
    uint64_t count;
    size_t bytes;
    mx_status status;

    if ((status = read_kind(r, &list->kind)) != MX_OK || (status = mx_gguf_read_u64(r, &count)) != MX_OK)
        return status;
    if (list->kind == MX_GGUF_ARRAY)
        return mx_gguf_bad(r, "arrays of arrays cannot be read");
    bytes = list->kind == MX_GGUF_STRING ? 8 : kinds[list->kind].bytes; /* a string is at least its length */
    if (count > mx_gguf_bytes_left(r) / bytes)
        return mx_gguf_bad(r, "an array of %" PRIu64 " elements (%s) is longer than the %zu bytes that are left", count,
                           kinds[list->kind].name, mx_gguf_bytes_left(r));
    list->count = (size_t)count;
    if (list->kind == MX_GGUF_STRING)
        return index_strings(r, list);
    if ((status = mx_gguf_read_bytes(r, count * bytes, &list->data)) != MX_OK)
        return status;
    return list->kind == MX_GGUF_BOOL ? check_bools(r, list->data, list->count) : MX_OK;
}

static mx_status read_key(mx_gguf_reader *r, mx_gguf_key *key)
{
    mx_status status;

    if ((status = mx_gguf_read_string(r, &key->name)) != MX_OK)
        return status;
    if (key->name.bytes == 0 || key->name.bytes > KEY_BYTES_MAX)
        return mx_gguf_bad(r, "expected a name of 1 to %d bytes, got %zu", KEY_BYTES_MAX, key->name.bytes);
    mx_gguf_reading(r, "key", key->name);
    if ((status = read_kind(r, &key->kind)) != MX_OK)
        return status;
    if (key->kind == MX_GGUF_ARRAY)
        return read_list(r, &key->list);
    if (key->kind == MX_GGUF_STRING)
        return mx_gguf_read_string(r, &key->string);
    if ((status = mx_gguf_read_bytes(r, kinds[key->kind].bytes, &key->value)) != MX_OK)
        return status;
    return key->kind == MX_GGUF_BOOL ? check_bools(r, key->value, 1) : MX_OK;
}

int mx_str_compare(mx_str a, mx_str b)
{
    if (a.bytes != b.bytes)
        return a.bytes < b.bytes ? -1 : 1;
    return memcmp(a.data, b.data, a.bytes);
}

static int compare_keys(const void *a, const void *b)
{
    const mx_gguf_key *const *x = a, *const *y = b;

    return mx_str_compare((*x)->name, (*y)->name);
}

mx_status mx_gguf_read_keys(mx_gguf_reader *r, mx_gguf_file *file, uint64_t n)
{
    mx_status status;

    if (n > KEYS_MAX || n > mx_gguf_bytes_left(r) / KEY_BYTES_MIN)
        return mx_gguf_bad(r, "%" PRIu64 " key-values do not fit into a file of %zu bytes", n, file->bytes);
    if (n == 0)
        return MX_OK;
    file->keys = calloc((size_t)n, sizeof *file->keys);
    file->by_name = malloc((size_t)n * sizeof *file->by_name);
    if (!file->keys || !file->by_name)
        return mx_fail(r->error, MX_NOMEM, NULL, "out of memory for %" PRIu64 " key-values", n);
    for (size_t i = 0; i < n; i++) {
        mx_gguf_reading_nth(r, "key-value", i);
        file->n_keys = i + 1; /* what read_key allocates is freed also if it fails */
        file->by_name[i] = &file->keys[i];
        if ((status = read_key(r, &file->keys[i])) != MX_OK)
            return status;
    }
    qsort(file->by_name, file->n_keys, sizeof *file->by_name, compare_keys);
    for (size_t i = 1; i < n; i++)
        if (compare_keys(&file->by_name[i - 1], &file->by_name[i]) == 0) {
            mx_gguf_reading(r, "key", file->by_name[i]->name);
            return mx_gguf_bad(r, "is there twice");
        }
    return MX_OK;
}

void mx_gguf_free_keys(mx_gguf_file *file)
{
    for (size_t i = 0; i < file->n_keys; i++)
        free(file->keys[i].list.items);
    free(file->keys);
    free(file->by_name);
}

/* ---- Values -------------------------------------------------------------------------------------------------------- */

static const mx_gguf_key *find_key(const mx_gguf_file *file, const char *name)
{
    mx_gguf_key wanted = {.name = {name, strlen(name)}};
    const mx_gguf_key *key = &wanted, **found = NULL;

    if (file->n_keys > 0)
        found = bsearch(&key, file->by_name, file->n_keys, sizeof *file->by_name, compare_keys);
    return found ? *found : NULL;
}

/* Every integer kind. Those from 2^63 on do not fit: *large. */
static bool integer_at(mx_gguf_kind kind, const uint8_t *p, int64_t *value, bool *large)
{
    union { uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32; uint64_t u64; int64_t i64; } v;

    *large = false;
    if (kind == MX_GGUF_FLOAT32 || kind == MX_GGUF_FLOAT64 || kind == MX_GGUF_BOOL || kinds[kind].bytes == 0)
        return false;
    memcpy(&v, p, kinds[kind].bytes);
    switch (kind) {
    case MX_GGUF_UINT8:
        *value = v.u8;
        break;
    case MX_GGUF_INT8:
        *value = v.i8;
        break;
    case MX_GGUF_UINT16:
        *value = v.u16;
        break;
    case MX_GGUF_INT16:
        *value = v.i16;
        break;
    case MX_GGUF_UINT32:
        *value = v.u32;
        break;
    case MX_GGUF_INT32:
        *value = v.i32;
        break;
    default: /* 64 bits */
        *value = v.i64;
        *large = kind == MX_GGUF_UINT64 && v.i64 < 0;
    }
    return true;
}

static bool float_at(mx_gguf_kind kind, const uint8_t *p, double *value)
{
    float f;

    if (kind == MX_GGUF_FLOAT32) {
        memcpy(&f, p, 4);
        *value = (double)f;
    } else if (kind == MX_GGUF_FLOAT64) {
        memcpy(value, p, 8);
    } else {
        return false;
    }
    return true;
}

static mx_status wrong_kind(const mx_gguf_key *key, const char *name, const char *expected, mx_error *error)
{
    return mx_fail(error, MX_CORRUPT, name, "key %s: expected %s, got %s", name, expected, kinds[key->kind].name);
}

mx_status mx_gguf_file_int(const mx_gguf_file *file, const char *name, int64_t min, int64_t max, int64_t *value,
                           bool *found, mx_error *error)
{
    const mx_gguf_key *key = find_key(file, name);
    int64_t v;
    bool large;

    if (found)
        *found = key != NULL;
    if (!key)
        return MX_OK;
    if (!integer_at(key->kind, key->value, &v, &large))
        return wrong_kind(key, name, "an integer", error);
    if (large || v < min || v > max)
        return mx_fail(error, MX_CORRUPT, name, large ? "key %s: expected %" PRId64 " to %" PRId64 ", got %" PRIu64 :
                       "key %s: expected %" PRId64 " to %" PRId64 ", got %" PRId64, name, min, max, v);
    *value = v;
    return MX_OK;
}

mx_status mx_gguf_get_int(const mx_gguf *gguf, const char *name, int64_t min, int64_t max, int64_t *value, bool *found,
                          mx_error *error)
{
    return mx_gguf_file_int(&gguf->files[0], name, min, max, value, found, error);
}

mx_status mx_gguf_get_float(const mx_gguf *gguf, const char *name, double *value, bool *found, mx_error *error)
{
    const mx_gguf_key *key = find_key(&gguf->files[0], name);
    double v;

    if (found)
        *found = key != NULL;
    if (!key)
        return MX_OK;
    if (!float_at(key->kind, key->value, &v))
        return wrong_kind(key, name, "a float", error);
    if (!isfinite(v))
        return mx_fail(error, MX_CORRUPT, name, "key %s: expected a finite number, got %f", name, v);
    *value = v;
    return MX_OK;
}

mx_status mx_gguf_get_bool(const mx_gguf *gguf, const char *name, bool *value, bool *found, mx_error *error)
{
    const mx_gguf_key *key = find_key(&gguf->files[0], name);

    if (found)
        *found = key != NULL;
    if (!key)
        return MX_OK;
    if (key->kind != MX_GGUF_BOOL)
        return wrong_kind(key, name, "a bool", error);
    *value = key->value[0] != 0;
    return MX_OK;
}

mx_status mx_gguf_get_string(const mx_gguf *gguf, const char *name, mx_str *value, bool *found, mx_error *error)
{
    const mx_gguf_key *key = find_key(&gguf->files[0], name);

    if (found)
        *found = key != NULL;
    if (!key)
        return MX_OK;
    if (key->kind != MX_GGUF_STRING)
        return wrong_kind(key, name, "a string", error);
    *value = key->string;
    return MX_OK;
}

/* ---- Arrays -------------------------------------------------------------------------------------------------------- */

static const mx_gguf_list *find_list(const mx_gguf *gguf, const char *name)
{
    const mx_gguf_key *key = find_key(&gguf->files[0], name);

    return key && key->kind == MX_GGUF_ARRAY ? &key->list : NULL;
}

const mx_gguf_list *mx_gguf_list_find(const mx_gguf *gguf, const char *name, mx_gguf_kind kind)
{
    const mx_gguf_list *list = find_list(gguf, name);

    return list && list->kind == kind ? list : NULL;
}

size_t mx_gguf_list_count(const mx_gguf_list *list)
{
    return list->count;
}

mx_str mx_gguf_list_string(const mx_gguf_list *list, size_t i)
{
    uint64_t bytes;

    memcpy(&bytes, list->items[i], 8);
    return (mx_str){(const char *)list->items[i] + 8, (size_t)bytes};
}

double mx_gguf_list_number(const mx_gguf_list *list, size_t i)
{
    const uint8_t *p = list->data + i * kinds[list->kind].bytes;
    double value = 0;
    int64_t integer;
    bool large;

    if (float_at(list->kind, p, &value))
        return value;
    if (!integer_at(list->kind, p, &integer, &large))
        return p[0]; /* a bool */
    return large ? (double)(uint64_t)integer : (double)integer;
}

bool mx_gguf_array(const mx_gguf *gguf, const char *name, mx_gguf_kind *kind, size_t *count)
{
    const mx_gguf_list *list = find_list(gguf, name);

    if (list) {
        *kind = list->kind;
        *count = list->count;
    }
    return list != NULL;
}

mx_str mx_gguf_array_string(const mx_gguf *gguf, const char *name, size_t i)
{
    return mx_gguf_list_string(find_list(gguf, name), i);
}

double mx_gguf_array_number(const mx_gguf *gguf, const char *name, size_t i)
{
    return mx_gguf_list_number(find_list(gguf, name), i);
}

size_t mx_gguf_n_keys(const mx_gguf *gguf)
{
    return gguf->files[0].n_keys;
}

mx_str mx_gguf_key_at(const mx_gguf *gguf, size_t i, mx_gguf_kind *kind)
{
    const mx_gguf_key *key = &gguf->files[0].keys[i];

    if (kind)
        *kind = key->kind;
    return key->name;
}
