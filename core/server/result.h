/*
 * result.h: results as JSON, in the shapes that mx_client_request documents. NULL: out of memory. Any thread.
 */
#ifndef MX_SERVER_RESULT_H
#define MX_SERVER_RESULT_H

#include <jansson.h>
#include "../engine/scheduler.h"
#include "../model/chat_template.h"
#include "../model/chunks.h"

/* Of chat, complete and embed. */
json_t *mx_result_of_outcome(const mx_outcome *outcome, const mx_tokenizer *tokenizer, const char *model_name);

json_t *mx_result_tokens(const mx_tokenizer *tokenizer, const mx_tokens *tokens);
json_t *mx_result_chunks(const char *text, const mx_chunk *chunks, size_t n);
json_t *mx_result_models(const mx_model *model, const mx_chat_template *chat, const char *model_name, int context);
json_t *mx_result_stats(const mx_scheduler_stats *stats);

#endif
