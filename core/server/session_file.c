/*
 * session_file.c: see session_file.h.
 *
 * Files are read and written at offsets of our own, so that the host's is left alone. A message is as long as its text and
 * ABYTES; all lengths follow from the head, which is authenticated before any of it is believed.
 */
#include "session_file.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../error.h"

#define MAGIC "mxsess1\n"
#define MAGIC_BYTES 8
#define HEADER_BYTES crypto_secretstream_xchacha20poly1305_HEADERBYTES
#define MORE crypto_secretstream_xchacha20poly1305_ABYTES
#define TAG_FINAL crypto_secretstream_xchacha20poly1305_TAG_FINAL
#define TOKEN_BYTES 5 /* id, class */

_Static_assert(MX_SESSION_KEY_BYTES == crypto_secretstream_xchacha20poly1305_KEYBYTES, "a key is one of libsodium's");

typedef struct { /* as it lies in the file: little-endian, without gaps */
    uint8_t identity[32];
    char model[128];
    uint8_t kv_type[8]; /* its name */
    uint8_t n_layers[4], n_kv_heads[4], head_dim[4], n_tokens[4];
} file_head;

struct mx_session_file {
    int fd;
    int64_t at; /* in the file */
    crypto_secretstream_xchacha20poly1305_state stream;
    uint8_t *sealed; /* a block's message */
    size_t block_bytes;
    int n_tokens, n_blocks, next; /* blocks, of which `next` is to come */
    int32_t *tokens;  /* [n_tokens] */
    uint8_t *classes; /* [n_tokens] */
};

static void put_u32(uint8_t *p, int value)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)((uint32_t)value >> (8 * i));
}

static int64_t get_u32(const uint8_t *p)
{
    return (int64_t)p[0] | (int64_t)p[1] << 8 | (int64_t)p[2] << 16 | (int64_t)p[3] << 24;
}

/* ---- Bytes ---- */

static mx_status check_regular(int fd, const char *what, int64_t *bytes, mx_error *error)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return mx_fail(error, MX_IO, what, "%s: %m", what);
    if (!S_ISREG(st.st_mode))
        return mx_fail(error, MX_INVALID, what, "%s: expected a regular file", what);
    *bytes = st.st_size;
    return MX_OK;
}

static mx_status write_all(mx_session_file *f, const void *data, size_t bytes, mx_error *error)
{
    const char *from = data;
    ssize_t n;

    while (bytes > 0) {
        n = pwrite(f->fd, from, bytes, f->at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return mx_fail(error, MX_IO, "session file", "session file: cannot be written: %m");
        from += n;
        bytes -= (size_t)n;
        f->at += n;
    }
    return MX_OK;
}

static mx_status read_all(int fd, int64_t *at, void *data, size_t bytes, const char *what, mx_error *error)
{
    char *to = data;
    ssize_t n;

    while (bytes > 0) {
        n = pread(fd, to, bytes, *at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return mx_fail(error, MX_IO, what, "%s: cannot be read: %m", what);
        if (n == 0)
            return mx_fail(error, MX_CORRUPT, what, "%s: it ends at byte %lld, %zu bytes before its end", what, (long long)*at,
                           bytes);
        to += n;
        bytes -= (size_t)n;
        *at += n;
    }
    return MX_OK;
}

static mx_status read_key(int fd, uint8_t key[MX_SESSION_KEY_BYTES], mx_error *error)
{
    int64_t bytes, at = 0;
    mx_status status = check_regular(fd, "key file", &bytes, error);

    if (status == MX_OK && bytes != MX_SESSION_KEY_BYTES)
        status = mx_fail(error, MX_INVALID, "key file", "key file: expected %d bytes, got %lld", MX_SESSION_KEY_BYTES,
                         (long long)bytes);
    if (status == MX_OK)
        status = read_all(fd, &at, key, MX_SESSION_KEY_BYTES, "key file", error);
    return status;
}

/* ---- Messages ---- */

static mx_status write_message(mx_session_file *f, uint8_t *sealed, const void *text, size_t bytes, bool last, mx_error *error)
{
    crypto_secretstream_xchacha20poly1305_push(&f->stream, sealed, NULL, text, bytes, NULL, 0, last ? TAG_FINAL : 0);
    return write_all(f, sealed, bytes + MORE, error);
}

static mx_status read_message(mx_session_file *f, uint8_t *sealed, void *text, size_t bytes, bool last, const char *what,
                              mx_error *error)
{
    mx_status status = read_all(f->fd, &f->at, sealed, bytes + MORE, "session file", error);
    unsigned char tag;

    if (status != MX_OK)
        return status;
    if (crypto_secretstream_xchacha20poly1305_pull(&f->stream, text, NULL, &tag, sealed, bytes + MORE, NULL, 0) != 0 ||
        (tag == TAG_FINAL) != last)
        return mx_fail(error, MX_CORRUPT, "session file", "session file: %s", what);
    return MX_OK;
}

/* ---- Both ways ---- */

static mx_status new_file(int fd, const mx_served *served, mx_session_file **file, mx_error *error)
{
    mx_session_file *f = calloc(1, sizeof *f);

    *file = f;
    if (!f)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a session file");
    f->fd = fd;
    f->block_bytes = mx_scheduler_block_bytes(served->scheduler);
    f->sealed = malloc(f->block_bytes + MORE);
    if (!f->sealed)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for a block of %zu bytes", f->block_bytes);
    return MX_OK;
}

void mx_session_file_close(mx_session_file *f)
{
    if (!f)
        return;
    sodium_memzero(&f->stream, sizeof f->stream);
    free(f->sealed);
    free(f->tokens);
    free(f->classes);
    free(f);
}

static void fill_head(file_head *head, const mx_served *served, int n_tokens)
{
    const mx_hparams *h = &served->model->hparams;

    memset(head, 0, sizeof *head);
    memcpy(head->identity, served->model->identity, sizeof head->identity);
    snprintf(head->model, sizeof head->model, "%s", served->model->name);
    snprintf((char *)head->kv_type, sizeof head->kv_type, "%s", mx_kv_type_name(mx_scheduler_kv_type(served->scheduler)));
    put_u32(head->n_layers, h->n_layers);
    put_u32(head->n_kv_heads, h->n_kv_heads);
    put_u32(head->head_dim, h->head_dim);
    put_u32(head->n_tokens, n_tokens);
}

/* ---- Writing ---- */

static mx_status write_tokens(mx_session_file *f, const int32_t *tokens, const uint8_t *classes, mx_error *error)
{
    size_t bytes = (size_t)f->n_tokens * TOKEN_BYTES;
    uint8_t *text = malloc(2 * bytes + MORE);
    mx_status status;

    if (!text)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for %d tokens", f->n_tokens);
    for (int i = 0; i < f->n_tokens; i++) {
        put_u32(text + (size_t)i * TOKEN_BYTES, tokens[i]);
        text[(size_t)i * TOKEN_BYTES + 4] = classes[i];
    }
    status = write_message(f, text + bytes, text, bytes, false, error);
    free(text);
    return status;
}

mx_status mx_session_file_create(int fd, int key_fd, const mx_served *served, const int32_t *tokens, const uint8_t *classes,
                                 int n_tokens, mx_session_file **file, mx_error *error)
{
    uint8_t key[MX_SESSION_KEY_BYTES], header[HEADER_BYTES], sealed[sizeof(file_head) + MORE];
    mx_session_file *f = NULL;
    file_head head;
    int64_t bytes;
    mx_status status = read_key(key_fd, key, error);

    if (status == MX_OK)
        status = check_regular(fd, "session file", &bytes, error);
    if (status == MX_OK && ftruncate(fd, 0) < 0)
        status = mx_fail(error, MX_IO, "session file", "session file: cannot be written: %m");
    if (status == MX_OK)
        status = new_file(fd, served, &f, error);
    if (status == MX_OK) {
        f->n_tokens = n_tokens;
        f->n_blocks = n_tokens / MX_KV_SPAN;
        fill_head(&head, served, n_tokens);
        crypto_secretstream_xchacha20poly1305_init_push(&f->stream, header, key);
        status = write_all(f, MAGIC, MAGIC_BYTES, error);
    }
    if (status == MX_OK)
        status = write_all(f, header, sizeof header, error);
    if (status == MX_OK)
        status = write_message(f, sealed, &head, sizeof head, false, error);
    if (status == MX_OK)
        status = write_tokens(f, tokens, classes, error);
    sodium_memzero(key, sizeof key);
    if (status != MX_OK) {
        mx_session_file_close(f);
        f = NULL;
    }
    *file = f;
    return status;
}

mx_status mx_session_file_write(mx_session_file *f, const uint8_t *block, mx_error *error)
{
    f->next++;
    return write_message(f, f->sealed, block, f->block_bytes, f->next == f->n_blocks, error);
}

/* ---- Reading ---- */

static mx_status check_head(file_head *head, const mx_served *served, mx_error *error)
{
    file_head ours;
    char identity[2][17];

    head->model[sizeof head->model - 1] = '\0';
    head->kv_type[sizeof head->kv_type - 1] = '\0';
    fill_head(&ours, served, (int)get_u32(head->n_tokens));
    if (memcmp(head->identity, ours.identity, sizeof ours.identity) != 0) {
        sodium_bin2hex(identity[0], sizeof identity[0], head->identity, 8);
        sodium_bin2hex(identity[1], sizeof identity[1], ours.identity, 8);
        return mx_fail(error, MX_INVALID, "session file",
                       "session file: it is of the model %s (identity %s...), and this one is %s (identity %s...)", head->model,
                       identity[0], ours.model, identity[1]);
    }
    if (memcmp(head->kv_type, ours.kv_type, sizeof ours.kv_type) != 0)
        return mx_fail(error, MX_INVALID, "session file", "session file: it holds keys and values as %s, this engine as %s",
                       (const char *)head->kv_type, (const char *)ours.kv_type);
    if (memcmp(head->n_layers, ours.n_layers, 12) != 0) /* the three that follow each other */
        return mx_fail(error, MX_CORRUPT, "session file", "session file: its shape is not the model's");
    return MX_OK;
}

static mx_status read_tokens(mx_session_file *f, const mx_served *served, mx_error *error)
{
    size_t n = (size_t)f->n_tokens, bytes = n * TOKEN_BYTES;
    uint8_t *sealed = malloc(2 * bytes + MORE), *text = sealed ? sealed + bytes + MORE : NULL;
    mx_status status;

    f->tokens = malloc(n * sizeof *f->tokens);
    f->classes = malloc(n);
    if (!sealed || !f->tokens || !f->classes)
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for %zu tokens", n);
    else
        status = read_message(f, sealed, text, bytes, false, "its tokens were changed", error);
    for (size_t i = 0; i < n && status == MX_OK; i++) {
        int64_t id = get_u32(text + i * TOKEN_BYTES);

        f->tokens[i] = (int32_t)id;
        f->classes[i] = text[i * TOKEN_BYTES + 4];
        if (id >= served->model->hparams.n_vocab || f->classes[i] > MX_CLASS_DECODE)
            status = mx_fail(error, MX_CORRUPT, "session file", "session file: token %zu is none of the model's", i);
    }
    free(sealed);
    return status;
}

static mx_status read_head(mx_session_file *f, const uint8_t key[MX_SESSION_KEY_BYTES], const mx_served *served, mx_error *error)
{
    uint8_t magic[MAGIC_BYTES], header[HEADER_BYTES], sealed[sizeof(file_head) + MORE];
    int64_t n;
    file_head head;
    mx_status status = read_all(f->fd, &f->at, magic, sizeof magic, "session file", error);

    if (status == MX_OK && memcmp(magic, MAGIC, sizeof magic) != 0)
        status = mx_fail(error, MX_CORRUPT, "session file", "session file: it does not begin as one");
    if (status == MX_OK)
        status = read_all(f->fd, &f->at, header, sizeof header, "session file", error);
    if (status == MX_OK && crypto_secretstream_xchacha20poly1305_init_pull(&f->stream, header, key) != 0)
        status = mx_fail(error, MX_CORRUPT, "session file", "session file: its header is none");
    if (status == MX_OK)
        status = read_message(f, sealed, &head, sizeof head, false, "its key is another one, or its bytes were changed", error);
    if (status == MX_OK)
        status = check_head(&head, served, error);
    if (status != MX_OK)
        return status;
    n = get_u32(head.n_tokens);
    if (n == 0 || n % MX_KV_SPAN != 0)
        return mx_fail(error, MX_CORRUPT, "session file", "session file: %lld tokens fill no blocks of %d", (long long)n,
                       MX_KV_SPAN);
    if (n > served->context)
        return mx_fail(error, MX_TOO_LARGE, "session file", "session file: its %lld tokens do not fit in the context of %d",
                       (long long)n, served->context);
    f->n_tokens = (int)n;
    f->n_blocks = f->n_tokens / MX_KV_SPAN;
    return MX_OK;
}

mx_status mx_session_file_open(int fd, int key_fd, const mx_served *served, mx_session_file **file, mx_error *error)
{
    uint8_t key[MX_SESSION_KEY_BYTES];
    mx_session_file *f = NULL;
    int64_t bytes = 0, expected;
    mx_status status = read_key(key_fd, key, error);

    if (status == MX_OK)
        status = check_regular(fd, "session file", &bytes, error);
    if (status == MX_OK)
        status = new_file(fd, served, &f, error);
    if (status == MX_OK)
        status = read_head(f, key, served, error);
    if (status == MX_OK)
        status = read_tokens(f, served, error);
    sodium_memzero(key, sizeof key);
    if (status == MX_OK) {
        expected = f->at + (int64_t)f->n_blocks * (int64_t)(f->block_bytes + MORE);
        if (bytes != expected)
            status = mx_fail(error, MX_CORRUPT, "session file", "session file: expected %lld bytes, got %lld",
                             (long long)expected, (long long)bytes);
    }
    if (status != MX_OK) {
        mx_session_file_close(f);
        f = NULL;
    }
    *file = f;
    return status;
}

mx_status mx_session_file_read(mx_session_file *f, uint8_t *block, mx_error *error)
{
    char what[64];

    f->next++;
    snprintf(what, sizeof what, "block %d of %d was changed", f->next, f->n_blocks);
    return read_message(f, f->sealed, block, f->block_bytes, f->next == f->n_blocks, what, error);
}

const int32_t *mx_session_file_tokens(const mx_session_file *f)
{
    return f->tokens;
}

const uint8_t *mx_session_file_classes(const mx_session_file *f)
{
    return f->classes;
}

int mx_session_file_n_tokens(const mx_session_file *f)
{
    return f->n_tokens;
}

int64_t mx_session_file_bytes(const mx_session_file *f)
{
    return f->at;
}
