/*
 * result.h: results as JSON, in the shapes that mx_client_request documents. NULL: out of memory. Any thread.
 */
#ifndef MX_SERVER_RESULT_H
#define MX_SERVER_RESULT_H

#include <jansson.h>
#include "served.h"
#include "../model/chunks.h"

/* Of chat, complete and embed. */
json_t *mx_result_of_outcome(const mx_outcome *outcome, const mx_tokenizer *tokenizer, const char *model_name);

json_t *mx_result_tokens(const mx_tokenizer *tokenizer, const mx_tokens *tokens);
json_t *mx_result_chunks(const char *text, const mx_chunk *chunks, size_t n);

/* Of one model, or of all where it is NULL: stats then has their sums, and each under "models". */
json_t *mx_result_models(const mx_served_list *models, const mx_served *only);
json_t *mx_result_stats(const mx_served_list *models, const mx_served *only);

#endif
