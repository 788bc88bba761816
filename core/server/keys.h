/*
 * keys.h: a file of API keys, as `mixtral key` writes it and hosts read it: who may ask, and how much.
 *
 *     mixtral-keys 1 SECRET
 *     ID NAME CREATED REQUESTS TOKENS HASH
 *     ...
 *
 * SECRET, 64 hexadecimal digits, belongs to the file. A key itself stands nowhere: HASH is its BLAKE2b (crypto_generichash, 32 bytes
 * in hexadecimal digits) under SECRET. Keys are 256 random bits, so that neither need be hidden from who may read the file; who may
 * write it lets himself in.
 *
 *     ID        12 hexadecimal digits, which never return: what a key's tenant is named by ("key:ID")
 *     NAME      1 to 32 of A-Z a-z 0-9 . _ - @; its id where it was given none
 *     CREATED   2026-01-31T23:59:59Z
 *     REQUESTS  at a time; "-": as many as the engine lets a tenant have, 0: any number
 *     TOKENS    a minute, read and made; likewise
 *
 * Fields are separated by one space, lines end with a newline, ids and names are unique. There is nothing else in the file: a line of
 * another form is an error, since a key that is skipped without a word is one that was to be revoked, or to let somebody in.
 *
 * Plain functions: no lock, any thread.
 */
#ifndef MX_SERVER_KEYS_H
#define MX_SERVER_KEYS_H

#include <stddef.h>
#include "../mx.h"

#define MX_KEYS_MAX 4096                    /* of a file */
#define MX_KEYS_BYTES_MAX (1024 * 1024)     /* a file that is larger is none of ours */
#define MX_KEY_BYTES 46                     /* "mx-" and 32 bytes in base64url */
#define MX_KEY_TENANT_BYTES 17              /* with the NUL */

typedef struct {
    char id[13];
    char name[33];
    char created[21];
    int requests, tokens_per_minute; /* -1: the engine's own limit */
    unsigned char hash[32];
} mx_key;

typedef struct {
    unsigned char secret[32];
    mx_key *keys; /* [n] */
    size_t n;
} mx_keys;

/* *keys is the caller's to free where it succeeds, and empty where not. Errors: MX_CORRUPT, "line N: expected ..., got ..."; MX_TOO_LARGE;
 * MX_NOMEM. */
mx_status mx_keys_parse(const char *text, size_t bytes, mx_keys *keys, mx_error *error);
void mx_keys_free(mx_keys *keys);

/* The file's text, the caller's to free; NULL: out of memory. */
char *mx_keys_text(const mx_keys *keys, size_t *bytes);

/* A new file's secret. MX_INTERNAL: there is no randomness. */
mx_status mx_keys_new(mx_keys *keys, mx_error *error);

/* Adds a key, which is written into `text` and kept nowhere. `name` "": its id. Errors: MX_INVALID (a name), MX_BUSY (a name that is
 * taken), MX_TOO_LARGE, MX_NOMEM. */
mx_status mx_keys_add(mx_keys *keys, const char *name, int requests, int tokens_per_minute, char text[MX_KEY_BYTES + 1],
                      mx_error *error);

/* By name or id. MX_NOT_FOUND. */
mx_status mx_keys_remove(mx_keys *keys, const char *name, mx_error *error);

/* The key whose text it is, or NULL. Takes as long whichever it is, and whether or not it is one. */
const mx_key *mx_keys_find(const mx_keys *keys, const char *text, size_t bytes);

/* What requests with the key name as their tenant. */
void mx_key_tenant(const mx_key *key, char tenant[MX_KEY_TENANT_BYTES]);

#endif
