/*
 * session_file.h: the file that a session is kept in, written and read block by block.
 *
 *     "mxsess1\n" | libsodium secretstream header | head | tokens | block | block | ...
 *
 * Everything behind the header is messages of libsodium's secretstream (XChaCha20-Poly1305): none can be changed, left out, added or
 * put elsewhere. The head says of which model it is, so that keys and values of one model never come into another's pool. Both files are
 * regular ones, so that nothing here waits for a peer. One thread at a time.
 */
#ifndef MX_SERVER_SESSION_FILE_H
#define MX_SERVER_SESSION_FILE_H

#include "served.h"

#define MX_SESSION_KEY_BYTES 32

typedef struct mx_session_file mx_session_file;

/* Begins a file at the beginning of fd, whose old contents go. The key is read from key_fd. MX_INVALID, MX_IO, MX_NOMEM. */
mx_status mx_session_file_create(int fd, int key_fd, const mx_served *served, const int32_t *tokens, const uint8_t *classes,
                                 int n_tokens, mx_session_file **file, mx_error *error);
mx_status mx_session_file_write(mx_session_file *file, const uint8_t *block, mx_error *error);

/* Reads what comes before the blocks. MX_CORRUPT: another key, or changed bytes; MX_INVALID: another model or KV type. */
mx_status mx_session_file_open(int fd, int key_fd, const mx_served *served, mx_session_file **file, mx_error *error);
mx_status mx_session_file_read(mx_session_file *file, uint8_t *block, mx_error *error);

void mx_session_file_close(mx_session_file *file); /* not the descriptor; takes NULL */

const int32_t *mx_session_file_tokens(const mx_session_file *file);  /* [n_tokens], of mx_session_file_open */
const uint8_t *mx_session_file_classes(const mx_session_file *file); /* [n_tokens] */
int mx_session_file_n_tokens(const mx_session_file *file);
int64_t mx_session_file_bytes(const mx_session_file *file); /* so far */

#endif
