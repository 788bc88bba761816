/*
 * gguf.c: opening a GGUF file or a split one, finding tensors, and a model's identity.
 *
 * A split model is the files NAME-00001-of-00003.gguf .. NAME-00003-of-00003.gguf; each has its own header, its number
 * (split.no, from 0) and the count (split.count). The first holds the model's keys, any of them tensors. Only the path of the
 * first is accepted, and the others are looked for beside it.
 */
#include "gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../error.h"
#include "gguf_file.h"

#define PARTS_MAX 65535           /* split.count is 16 bits wide */
#define SUFFIX "-%05d-of-%05d.gguf"
#define SUFFIX_BYTES 20           /* "-00001-of-00003.gguf" */
#define IDENTITY_TENSOR_BYTES 4096

/* ---- Files --------------------------------------------------------------------------------------------------------- */

static mx_status map_file(const char *path, mx_gguf_file *file, mx_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a FIFO must not hang us */
    struct stat st;
    void *map;
    mx_status status = MX_OK;

    if (fd < 0)
        return mx_fail(error, errno == ENOENT || errno == ENOTDIR ? MX_NOT_FOUND : errno == EACCES ? MX_DENIED : MX_IO, NULL,
                       "cannot open: %s", strerror(errno));
    if (fstat(fd, &st) != 0) {
        status = mx_fail(error, MX_IO, NULL, "cannot stat: %s", strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        status = mx_fail(error, MX_INVALID, NULL, "expected a regular file, got %s",
                         S_ISDIR(st.st_mode) ? "a directory" : "something else");
    } else if (st.st_size == 0) {
        status = mx_fail(error, MX_CORRUPT, NULL, "the file is empty");
    } else {
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            status = mx_fail(error, errno == ENOMEM ? MX_NOMEM : MX_IO, NULL, "cannot map: %s", strerror(errno));
        } else {
            file->map = map;
            file->bytes = (size_t)st.st_size;
        }
    }
    close(fd);
    return status;
}

/* Maps and parses the file as gguf's next one; messages begin with its name. */
static mx_status add_file(mx_gguf *gguf, const char *path, mx_error *error)
{
    mx_gguf_file *file = &gguf->files[gguf->n_files];
    mx_error why;
    mx_status status = map_file(path, file, &why);

    if (status == MX_OK) {
        gguf->n_files++; /* closed with the others from now on */
        status = mx_gguf_parse(gguf, file, &why);
    }
    if (status != MX_OK)
        return mx_fail(error, status, why.field, "%s: %s", basename(path), why.text);
    return MX_OK;
}

/* ---- Split files --------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t no, count, n_tensors; /* split.no, split.count (0: not split), split.tensors.count (-1: not given) */
} split_keys;

static mx_status read_split(const mx_gguf_file *file, split_keys *split, mx_error *error)
{
    mx_status status;

    *split = (split_keys){.no = 0, .count = 0, .n_tensors = -1};
    if ((status = mx_gguf_file_int(file, "split.no", 0, PARTS_MAX - 1, &split->no, NULL, error)) != MX_OK ||
        (status = mx_gguf_file_int(file, "split.count", 0, PARTS_MAX, &split->count, NULL, error)) != MX_OK)
        return status;
    return mx_gguf_file_int(file, "split.tensors.count", 0, INT64_MAX, &split->n_tensors, NULL, error);
}

/* The path of part `no` (from 0), given that of part `own`. NULL if that is not named as a part. */
static char *part_path(const char *path, int own, int no, int count)
{
    size_t n = strlen(path);
    char suffix[48], *other;

    snprintf(suffix, sizeof suffix, SUFFIX, own + 1, count);
    if (n < SUFFIX_BYTES || strcmp(path + n - SUFFIX_BYTES, suffix) != 0)
        return NULL;
    other = malloc(n + sizeof suffix);
    if (other)
        snprintf(other, n + sizeof suffix, "%.*s" SUFFIX, (int)(n - SUFFIX_BYTES), path, no + 1, count);
    return other;
}

/* The first file says that it is a part. Whatever is wrong with that is said with the name that was expected. */
static mx_status check_first(const char *path, const split_keys *split, mx_error *error)
{
    char *first = part_path(path, (int)split->no, 0, (int)split->count);
    mx_status status = MX_OK;

    if (split->no != 0)
        status = mx_fail(error, MX_INVALID, "split.no", "%s: is part %" PRId64 " of %" PRId64 " of a split model: open %s",
                         basename(path), split->no + 1, split->count, first ? basename(first) : "the first part");
    else if (!first)
        status = mx_fail(error, MX_INVALID, "split.count", "%s: is the first of %" PRId64 " parts of a split model: expected "
                         "a name that ends in -00001-of-%05" PRId64 ".gguf", basename(path), split->count, split->count);
    free(first);
    return status;
}

static mx_status check_part(const char *path, const split_keys *split, int no, int64_t count, mx_error *error)
{
    if (split->no != no)
        return mx_fail(error, MX_CORRUPT, "split.no", "%s: key split.no: expected %d, got %" PRId64, basename(path), no,
                       split->no);
    if (split->count != count)
        return mx_fail(error, MX_CORRUPT, "split.count", "%s: key split.count: expected %" PRId64 ", got %" PRId64,
                       basename(path), count, split->count);
    return MX_OK;
}

static mx_status add_parts(mx_gguf *gguf, const char *path, mx_error *error)
{
    split_keys first, split;
    mx_gguf_file *grown;
    mx_status status;

    if ((status = read_split(&gguf->files[0], &first, error)) != MX_OK || (first.count <= 1 && first.no == 0))
        return status;
    if ((status = check_first(path, &first, error)) != MX_OK)
        return status;
    for (int no = 1; no < first.count && status == MX_OK; no++) {
        char *part = part_path(path, 0, no, (int)first.count);

        grown = part ? realloc(gguf->files, ((size_t)no + 1) * sizeof *grown) : NULL;
        if (!grown) {
            status = mx_fail(error, MX_NOMEM, NULL, "out of memory for part %d of %" PRId64, no + 1, first.count);
        } else {
            gguf->files = grown;
            memset(&gguf->files[no], 0, sizeof *grown);
            if ((status = add_file(gguf, part, error)) == MX_OK &&
                (status = read_split(&gguf->files[no], &split, error)) == MX_OK)
                status = check_part(part, &split, no, first.count, error);
        }
        free(part);
    }
    if (status == MX_OK && first.n_tensors >= 0 && (size_t)first.n_tensors != gguf->n_tensors)
        return mx_fail(error, MX_CORRUPT, "split.tensors.count", "%s: key split.tensors.count: expected %zu as in its parts, "
                       "got %" PRId64, basename(path), gguf->n_tensors, first.n_tensors);
    return status;
}

/* ---- Tensors ------------------------------------------------------------------------------------------------------- */

static int compare_tensors(const void *a, const void *b)
{
    const mx_gguf_tensor *const *x = a, *const *y = b;

    return mx_str_compare((*x)->name, (*y)->name);
}

static mx_status index_tensors(mx_gguf *gguf, const char *path, mx_error *error)
{
    gguf->by_name = malloc((gguf->n_tensors + 1) * sizeof *gguf->by_name);
    if (!gguf->by_name)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu tensors", gguf->n_tensors);
    for (size_t i = 0; i < gguf->n_tensors; i++)
        gguf->by_name[i] = &gguf->tensors[i];
    qsort(gguf->by_name, gguf->n_tensors, sizeof *gguf->by_name, compare_tensors);
    for (size_t i = 1; i < gguf->n_tensors; i++)
        if (compare_tensors(&gguf->by_name[i - 1], &gguf->by_name[i]) == 0) {
            char name[128];

            snprintf(name, sizeof name, "%.*s", (int)gguf->by_name[i]->name.bytes, gguf->by_name[i]->name.data);
            return mx_fail(error, MX_CORRUPT, name, "%s: tensor %s: is there twice", basename(path), name);
        }
    return MX_OK;
}

const mx_gguf_tensor *mx_gguf_tensor_find(const mx_gguf *gguf, const char *name)
{
    mx_gguf_tensor wanted = {.name = {name, strlen(name)}};
    const mx_gguf_tensor *tensor = &wanted, **found;

    found = bsearch(&tensor, gguf->by_name, gguf->n_tensors, sizeof *gguf->by_name, compare_tensors);
    return found ? *found : NULL;
}

size_t mx_gguf_n_tensors(const mx_gguf *gguf)
{
    return gguf->n_tensors;
}

const mx_gguf_tensor *mx_gguf_tensor_at(const mx_gguf *gguf, size_t i)
{
    return &gguf->tensors[i];
}

/* ---- The whole ----------------------------------------------------------------------------------------------------- */

mx_status mx_gguf_open(const char *path, mx_gguf **out, mx_error *error)
{
    mx_gguf *gguf = calloc(1, sizeof *gguf);
    mx_status status;

    *out = NULL;
    if (gguf)
        gguf->files = calloc(1, sizeof *gguf->files);
    if (!gguf || !gguf->files) {
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory");
        goto failed;
    }
    if ((status = add_file(gguf, path, error)) != MX_OK || (status = add_parts(gguf, path, error)) != MX_OK ||
        (status = index_tensors(gguf, path, error)) != MX_OK)
        goto failed;
    *out = gguf;
    return MX_OK;
failed:
    mx_gguf_close(gguf);
    return status;
}

void mx_gguf_close(mx_gguf *gguf)
{
    if (!gguf)
        return;
    for (size_t i = 0; i < gguf->n_files; i++) {
        mx_gguf_free_keys(&gguf->files[i]);
        munmap((void *)(uintptr_t)gguf->files[i].map, gguf->files[i].bytes);
    }
    free(gguf->files);
    free(gguf->tensors);
    free(gguf->by_name);
    free(gguf);
}

size_t mx_gguf_file_bytes(const mx_gguf *gguf)
{
    size_t bytes = 0;

    for (size_t i = 0; i < gguf->n_files; i++)
        bytes += gguf->files[i].bytes;
    return bytes;
}

uint32_t mx_gguf_version(const mx_gguf *gguf)
{
    return gguf->files[0].version;
}

mx_status mx_gguf_identity(const mx_gguf *gguf, uint8_t identity[32], mx_error *error)
{
    crypto_generichash_state state;

    if (sodium_init() < 0 || crypto_generichash_init(&state, NULL, 0, 32) != 0)
        return mx_fail(error, MX_INTERNAL, NULL, "libsodium cannot be used");
    for (size_t i = 0; i < gguf->n_files; i++) {
        uint64_t sizes[2] = {gguf->files[i].bytes, gguf->files[i].header_bytes};

        crypto_generichash_update(&state, (const unsigned char *)sizes, sizeof sizes);
        crypto_generichash_update(&state, gguf->files[i].map, gguf->files[i].header_bytes);
    }
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const mx_gguf_tensor *t = &gguf->tensors[i];

        crypto_generichash_update(&state, t->data, t->bytes < IDENTITY_TENSOR_BYTES ? t->bytes : IDENTITY_TENSOR_BYTES);
    }
    crypto_generichash_final(&state, identity, 32);
    return MX_OK;
}
