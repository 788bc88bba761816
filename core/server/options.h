/*
 * options.h: a request's JSON, checked field by field and turned into a struct.
 *
 * Everything that can be known without tokenising is checked here, on the I/O thread; an error names the field or option.
 * JSON null means "not given". A parsed query owns its JSON, and its strings point into it.
 */
#ifndef MX_SERVER_OPTIONS_H
#define MX_SERVER_OPTIONS_H

#include <jansson.h>
#include <stdbool.h>
#include "served.h"

#define MX_STOP_MAX 16

typedef enum {
    MX_OP_CHAT, MX_OP_COMPLETE, MX_OP_EMBED, MX_OP_TOKENIZE, MX_OP_DETOKENIZE, MX_OP_TOKEN_COUNT, MX_OP_CHUNKS,
    MX_OP_MODELS, MX_OP_STATS, MX_OP_SESSION_SAVE, MX_OP_SESSION_LOAD, MX_OP_COUNT
} mx_op;


typedef struct {
    json_t *json; /* the request; everything below points into it */
    mx_op op;
    const mx_served *served; /* the model that it names, or the first one */
    bool names_model;

    mx_str text;          /* prompt of complete; text of embed, tokenize, token_count, chunks */
    mx_message *messages; /* [n_messages] of chat, session_save and token_count: the option `system` first, a prompt as one user message */
    size_t n_messages;
    int32_t *tokens;      /* [n_tokens] of detokenize */
    size_t n_tokens;
    int size, overlap;    /* of chunks, in tokens */

    mx_template_kind template_kind; /* MX_TEMPLATE_NONE: the file's own */
    mx_str system;        /* data NULL: none */
    mx_sampling sampling;
    bool has_seed;        /* false: sampling.seed is still to be drawn */
    int max_tokens;       /* 0: the rest of the context */
    int n;
    int timeout_ms;       /* 0: none */
    bool ignore_eos;
    const char *stop[MX_STOP_MAX]; /* [n_stop] */
    int n_stop;
    bool logprobs;        /* with top_logprobs: becomes sampling.top_logprobs */
    int top_logprobs;
    const char *tenant;   /* NULL: the connection's */
    int tenant_requests;  /* this tenant's limits, instead of the engine's; -1: not given */
    int tenant_tokens_per_minute;
    bool cache;           /* false: neither look up shared blocks nor leave any */
} mx_query;

/* Takes `json` over, also on failure; *query then holds nothing. MX_INVALID, MX_NOT_FOUND (a model that is not open), MX_NOMEM. */
mx_status mx_query_parse(json_t *json, const mx_served_list *models, mx_query *query, mx_error *error);
void mx_query_free(mx_query *query);

const char *mx_op_name(mx_op op);
int mx_op_files(mx_op op); /* that a request comes with */

#endif
