/*
 * chat_template.h: messages to tokens, the way the model was trained to see them.
 *
 * Three families, chosen from tokenizer.chat_template or by name: Mixtral-Instruct, ChatML, Llama-3. Role markers become special
 * tokens; the messages' own text never does: a user cannot forge </s>. Each token gets its class: the text of assistant turns is
 * decode class, all else prompt class.
 */
#ifndef MX_MODEL_CHAT_TEMPLATE_H
#define MX_MODEL_CHAT_TEMPLATE_H

#include "tokenizer.h"

typedef enum { MX_ROLE_SYSTEM, MX_ROLE_USER, MX_ROLE_ASSISTANT } mx_role;

typedef struct {
    mx_role role;
    const char *content;
    size_t bytes;
} mx_message;

typedef enum { MX_TEMPLATE_NONE, MX_TEMPLATE_MIXTRAL, MX_TEMPLATE_CHATML, MX_TEMPLATE_LLAMA3 } mx_template_kind;

typedef struct mx_chat_template mx_chat_template;

/* Reads tokenizer.chat_template; a file without one and with a `llama` vocabulary is Mixtral-Instruct. A template that is not known is
 * no error here (completion still works) but at rendering, which then names the option `template`. `gguf` and `tokenizer` outlive it. */
mx_status mx_chat_template_open(const mx_gguf *gguf, const mx_tokenizer *tokenizer, mx_chat_template **chat, mx_error *error);
void mx_chat_template_close(mx_chat_template *chat); /* takes NULL */

int mx_template_from_name(const char *name); /* "mixtral", "chatml", "llama3" (mx_template_kind); -1 */
mx_template_kind mx_chat_template_kind(const mx_chat_template *chat);

/* Renders a conversation that ends with a user message (the answer follows) to ids, BOS included, and their classes (mx_token_class:
 * 0 prompt, 1 decode), n of each in *tokens and *classes (free with mx_tokens_free and free). `kind` MX_TEMPLATE_NONE: the file's
 * own. Roles out of order: MX_INVALID that says which message and what was expected. */
mx_status mx_chat_render(const mx_chat_template *chat, mx_template_kind kind, const mx_message *messages, size_t n_messages,
                         const atomic_bool *cancelled, mx_tokens *tokens, uint8_t **classes, mx_error *error);

#endif
