/*
 * gguf_file.h: what the gguf*.c files share: the objects behind gguf.h. Private to them.
 *
 * gguf.c maps the files and finds the parts of a split; gguf_parse.c reads header and tensor table of one of them and checks
 * them; gguf_keys.c reads its key-values and gives them out.
 */
#ifndef MX_MODEL_GGUF_FILE_H
#define MX_MODEL_GGUF_FILE_H

#include "gguf.h"

struct mx_gguf_list {
    mx_gguf_kind kind;     /* of the elements */
    size_t count;
    const uint8_t *data;   /* mapped elements */
    const uint8_t **items; /* strings only: [count], each at its length */
};

typedef struct {
    mx_str name;
    mx_gguf_kind kind;
    const uint8_t *value; /* numbers: mapped, unaligned */
    mx_str string;
    mx_gguf_list list;
} mx_gguf_key;

typedef struct {
    const uint8_t *map;
    size_t bytes;
    uint32_t version;
    mx_gguf_key *keys;           /* in the file's order */
    const mx_gguf_key **by_name; /* [n_keys] sorted */
    size_t n_keys;
    size_t header_bytes;         /* up to the end of the tensor table */
} mx_gguf_file;

struct mx_gguf {
    mx_gguf_file *files; /* the first one's keys are the model's */
    size_t n_files;
    mx_gguf_tensor *tensors; /* of all files, in their order */
    const mx_gguf_tensor **by_name;
    size_t n_tensors;
};

/* Reads one file from its first byte on. Each step either gives what it was asked for or fills the error with `where`. */
typedef struct {
    const mx_gguf_file *file;
    size_t at;       /* next byte */
    char where[176]; /* what is being read: "key llama.block_count" */
    char field[64];  /* its name alone */
    mx_error *error;
} mx_gguf_reader;

mx_status mx_gguf_read_u32(mx_gguf_reader *reader, uint32_t *value);
mx_status mx_gguf_read_u64(mx_gguf_reader *reader, uint64_t *value);
mx_status mx_gguf_read_string(mx_gguf_reader *reader, mx_str *string);
mx_status mx_gguf_read_bytes(mx_gguf_reader *reader, uint64_t n, const uint8_t **bytes);
size_t mx_gguf_bytes_left(const mx_gguf_reader *reader);
void mx_gguf_reading(mx_gguf_reader *reader, const char *what, mx_str name); /* sets where and field */
void mx_gguf_reading_nth(mx_gguf_reader *reader, const char *what, uint64_t n);
mx_status mx_gguf_bad(mx_gguf_reader *reader, const char *format, ...) __attribute__((format(printf, 2, 3))); /* MX_CORRUPT */

/* Parses file->map[bytes] into *file and appends its tensors to *gguf. What was allocated is in them also on failure. */
mx_status mx_gguf_parse(mx_gguf *gguf, mx_gguf_file *file, mx_error *error);

mx_status mx_gguf_read_keys(mx_gguf_reader *reader, mx_gguf_file *file, uint64_t n);
void mx_gguf_free_keys(mx_gguf_file *file);
int mx_str_compare(mx_str a, mx_str b); /* an order; not the alphabet's */

/* mx_gguf_get_int on a part of a split, which has its own split.* and general.alignment */
mx_status mx_gguf_file_int(const mx_gguf_file *file, const char *key, int64_t min, int64_t max, int64_t *value, bool *found,
                           mx_error *error);

#endif
