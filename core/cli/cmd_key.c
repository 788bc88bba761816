/*
 * cmd_key.c: `mixtral key`: who may use a server: a file of API keys (its format is in core/server/keys.h).
 *
 *     mixtral key new FILE [--name NAME] [--requests N] [--tokens-per-minute N]
 *     mixtral key list FILE
 *     mixtral key revoke FILE NAME-or-ID
 *
 * `new` makes the file, mode 0600, where there is none, and prints the key, which is the only time that anybody sees it. A limit that is
 * not given is what the engine allows each tenant (`mixtral serve --tenant-requests`), 0 is none. Servers read the file when they
 * are reloaded.
 *
 * A file is replaced by a new one with its mode and owner, never written into, so that a reader finds the old or the new one, also after a
 * crash. Two writers exclude each other by a lock on the file that they replace: whoever gets it looks whether it still is
 * the one at the path. A first file is put in place by link(2), which one of two writers can.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../server/keys.h"
#include "cli.h"

#define TRIES 20 /* to be the one who replaces the file */

typedef struct {
    char path[PATH_MAX]; /* no symbolic link where the file exists: a new file takes its place */
    int fd;              /* of the file, locked; -1: there is none yet */
    struct stat st;      /* of it */
    mx_keys keys;
} key_file;

/* ---- Reading ---- */

static int read_keys(const char *path, int fd, const struct stat *st, mx_keys *keys)
{
    size_t size = (size_t)st->st_size, used = 0;
    mx_error error;
    char *text;
    ssize_t n;
    int failed = 0;

    if (st->st_size > MX_KEYS_BYTES_MAX)
        return mx_cli_fail("%s: expected a file of at most %d bytes, got %lld", path, MX_KEYS_BYTES_MAX, (long long)st->st_size);
    text = malloc(size + 1);
    if (!text)
        return mx_cli_fail("%s: out of memory", path);
    while (used < size && (n = pread(fd, text + used, size - used, (off_t)used)) != 0) {
        if (n < 0 && errno != EINTR) {
            failed = mx_cli_fail("%s: %s", path, strerror(errno));
            break;
        }
        used += n > 0 ? (size_t)n : 0;
    }
    if (!failed && mx_keys_parse(text, used, keys, &error) != MX_OK)
        failed = mx_cli_fail("%s: %s", path, error.text);
    free(text);
    return failed;
}

/* O_NONBLOCK: a FIFO is refused, not waited for. */
static int open_file(const char *path, int *fd, struct stat *st)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return errno == ENOENT ? 0 : mx_cli_fail("%s: %s", path, strerror(errno));
    if (fstat(*fd, st) == 0 && S_ISREG(st->st_mode))
        return 0;
    close(*fd);
    *fd = -1;
    return mx_cli_fail("%s: expected a regular file", path);
}

static void close_file(key_file *f)
{
    mx_keys_free(&f->keys);
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

/* Opens, locks and reads the file at `path`; f->fd is -1 where there is none. */
static int lock_file(const char *path, key_file *f)
{
    struct stat now;

    if (strlen(path) >= sizeof(f->path))
        return mx_cli_fail("%s: %s", path, strerror(ENAMETOOLONG));
    for (int i = 0; i < TRIES; i++) {
        if (!realpath(path, f->path))
            snprintf(f->path, sizeof(f->path), "%s", path);
        if (open_file(f->path, &f->fd, &f->st))
            return 1;
        if (f->fd < 0)
            return 0;
        if (flock(f->fd, LOCK_EX) < 0)
            return mx_cli_fail("%s: cannot lock it: %s", path, strerror(errno));
        if (stat(f->path, &now) == 0 && now.st_ino == f->st.st_ino && now.st_dev == f->st.st_dev)
            return read_keys(path, f->fd, &f->st, &f->keys);
        close_file(f);
    }
    return mx_cli_fail("%s: others keep replacing it", path);
}

/* ---- Writing ---- */

static int write_all(int fd, const char *text, size_t bytes)
{
    ssize_t n;

    for (; bytes > 0; text += n, bytes -= (size_t)n) {
        n = write(fd, text, bytes);
        if (n < 0 && errno != EINTR)
            return -1;
        n = n < 0 ? 0 : n;
    }
    return fsync(fd);
}

/* The new file is on the disk under its name once its folder is. */
static int sync_folder(const char *path)
{
    char folder[PATH_MAX], *slash;
    int fd, rc;

    snprintf(folder, sizeof(folder), "%s", path);
    slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = '\0';
    fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rc = fd < 0 ? -1 : fsync(fd);
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Owner first: changing it takes set-user-id bits away. */
static int take_over(int fd, const key_file *f)
{
    struct stat st;

    if (f->fd < 0)
        return fchmod(fd, 0600);
    if (fstat(fd, &st) < 0)
        return -1;
    if ((st.st_uid != f->st.st_uid || st.st_gid != f->st.st_gid) && fchown(fd, f->st.st_uid, f->st.st_gid) < 0)
        return -1;
    return fchmod(fd, f->st.st_mode & 07777);
}

/* 0; 1 after a message; -1: somebody else has made the first file meanwhile. */
static int replace_file(const char *path, const key_file *f)
{
    char name[PATH_MAX + 8], *text;
    size_t bytes;
    int fd, rc = 0;

    text = mx_keys_text(&f->keys, &bytes);
    if (!text)
        return mx_cli_fail("%s: out of memory", path);
    snprintf(name, sizeof(name), "%s.XXXXXX", f->path);
    fd = mkostemp(name, O_CLOEXEC);
    if (fd < 0)
        rc = mx_cli_fail("%s: cannot make a file beside it: %s", path, strerror(errno));
    else if (take_over(fd, f) < 0)
        rc = mx_cli_fail("%s: cannot give a new file its owner and mode: %s", path, strerror(errno));
    else if (write_all(fd, text, bytes) < 0)
        rc = mx_cli_fail("%s: cannot write: %s", path, strerror(errno));
    else if (f->fd >= 0 ? rename(name, f->path) < 0 : link(name, f->path) < 0)
        rc = f->fd < 0 && errno == EEXIST ? -1 : mx_cli_fail("%s: cannot put a new file in its place: %s", path, strerror(errno));
    else if (sync_folder(f->path) < 0)
        rc = mx_cli_fail("%s: cannot sync its folder: %s", path, strerror(errno));
    if (fd >= 0) {
        close(fd);
        unlink(name); /* gone already where it was renamed */
    }
    free(text);
    return rc;
}

/* ---- Commands ---- */

typedef struct {
    const char *path, *name; /* name: "" where none is given */
    int requests, tokens_per_minute;
} key_options;

static int parse_new(int argc, char **argv, key_options *o)
{
    int *limit;

    for (int i = 0; i < argc; i += 2) {
        limit = strcmp(argv[i], "--requests") == 0            ? &o->requests
                : strcmp(argv[i], "--tokens-per-minute") == 0 ? &o->tokens_per_minute
                                                              : NULL;
        if (!limit && strcmp(argv[i], "--name") != 0)
            return mx_cli_fail("key new: there is no option %s; expected --name, --requests or --tokens-per-minute", argv[i]);
        if (i + 1 == argc)
            return mx_cli_fail("%s: expected a value after it", argv[i]);
        if (limit && !mx_cli_int(argv[i + 1], 0, INT_MAX, limit))
            return mx_cli_fail("%s: expected a number from 0 to %d, got %s", argv[i], INT_MAX, argv[i + 1]);
        if (!limit && argv[i + 1][0] == '\0')
            return mx_cli_fail("--name: expected a name, got an empty one");
        if (!limit)
            o->name = argv[i + 1];
    }
    return 0;
}

static int new_key(const key_options *o)
{
    char text[MX_KEY_BYTES + 1];
    mx_error error;
    mx_status status;
    int rc;

    for (int i = 0; i < TRIES; i++) {
        key_file f = {.fd = -1};

        rc = lock_file(o->path, &f);
        if (rc == 0) {
            status = f.fd < 0 ? mx_keys_new(&f.keys, &error) : MX_OK;
            if (status == MX_OK)
                status = mx_keys_add(&f.keys, o->name, o->requests, o->tokens_per_minute, text, &error);
            rc = status == MX_OK ? replace_file(o->path, &f) : mx_cli_fail("%s: %s", o->path, error.text);
        }
        close_file(&f);
        if (rc == 0)
            printf("%s\n", text);
        if (rc >= 0)
            return rc;
    }
    return mx_cli_fail("%s: there is a file, and there is none: is it a link to nothing?", o->path);
}

static int revoke_key(const char *path, const char *name)
{
    key_file f = {.fd = -1};
    mx_error error;
    int rc = lock_file(path, &f);

    if (rc == 0 && f.fd < 0)
        rc = mx_cli_fail("%s: %s", path, strerror(ENOENT));
    if (rc == 0 && mx_keys_remove(&f.keys, name, &error) != MX_OK)
        rc = mx_cli_fail("%s: %s", path, error.text);
    if (rc == 0)
        rc = replace_file(path, &f);
    close_file(&f);
    return rc;
}

static void print_limit(int limit)
{
    if (limit < 0)
        printf("  %12s", "-");
    else
        printf("  %12d", limit);
}

static int list_keys(const char *path)
{
    key_file f = {.fd = -1};
    int rc = open_file(path, &f.fd, &f.st);

    if (rc == 0 && f.fd < 0)
        rc = mx_cli_fail("%s: %s", path, strerror(ENOENT));
    if (rc == 0)
        rc = read_keys(path, f.fd, &f.st, &f.keys);
    if (rc == 0)
        printf("%-32s  %-12s  %-20s  %12s  %12s\n", "name", "id", "created", "requests", "tokens/min");
    for (size_t i = 0; rc == 0 && i < f.keys.n; i++) {
        printf("%-32s  %-12s  %-20s", f.keys.keys[i].name, f.keys.keys[i].id, f.keys.keys[i].created);
        print_limit(f.keys.keys[i].requests);
        print_limit(f.keys.keys[i].tokens_per_minute);
        printf("\n");
    }
    close_file(&f);
    return rc;
}

int mx_cmd_key(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    key_options o = {.path = argc > 2 ? argv[2] : NULL, .name = "", .requests = -1, .tokens_per_minute = -1};

    if (strcmp(verb, "new") == 0 && argc >= 3)
        return parse_new(argc - 3, argv + 3, &o) ? 1 : new_key(&o);
    if (strcmp(verb, "list") == 0 && argc == 3)
        return list_keys(o.path);
    if (strcmp(verb, "revoke") == 0 && argc == 4)
        return revoke_key(o.path, argv[3]);
    return mx_cli_fail("key: expected new FILE [--name NAME] [--requests N] [--tokens-per-minute N], list FILE, or revoke FILE NAME");
}
