/*
 * served.h: a model that is open in the engine, with everything that its requests need, and the list of them.
 *
 * A served model does not change, and lives as long as the engine. The list only grows: who adds to it is serialised by the engine, and
 * any thread reads it without a lock.
 */
#ifndef MX_SERVER_SERVED_H
#define MX_SERVER_SERVED_H

#include <stdatomic.h>
#include "../engine/scheduler.h"
#include "../model/chat_template.h"

#define MX_SERVED_MAX 16

typedef struct {
    char name[128]; /* what requests call it */
    int context;    /* tokens of a request */
    mx_model *model;
    mx_tokenizer *tokenizer;
    mx_chat_template *chat;
    mx_scheduler *scheduler; /* with a KV pool and compute threads of its own */
} mx_served;

typedef struct {
    mx_served *models[MX_SERVED_MAX]; /* [n], the first is what requests get that name none */
    atomic_int n;
} mx_served_list;

/* Opens the file and all that belongs to it; starts no thread. Errors as mx_engine_open's. */
mx_status mx_served_open(const char *path, const mx_engine_options *options, mx_served **served, mx_error *error);
void mx_served_close(mx_served *served); /* its requests end with MX_UNAVAILABLE; takes NULL */

/* The model of that name, the first where the name is NULL; NULL: it is not open. */
const mx_served *mx_served_find(const mx_served_list *list, const char *name);

#endif
