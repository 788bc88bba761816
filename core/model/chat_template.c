/*
 * chat_template.c: conversations to tokens, as three families of models were trained to see them.
 *
 *     mixtral  <s> [INST] system\n\nuser [/INST] assistant</s> [INST] user [/INST]
 *     chatml   <|im_start|>user\n...<|im_end|>\n<|im_start|>assistant\n...<|im_end|>\n
 *     llama3   <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n...<|eot_id|>
 *
 * Markers are put in as ids and only the text between them is tokenised, without special pieces: nothing that a
 * message says can become a marker. (Mixtral's [INST] is plain text; its vocabulary has no such piece.)
 *
 * The text of an assistant's turn is tokenised apart from what leads to it, as it was when the model wrote it: so the
 * ids of a conversation's next request begin with those of the last one and its answer, and their keys and values
 * can be used again. Only that text is decode class: the token that ends the turn was sampled, but never fed.
 *
 * Immutable after open: any thread may render.
 */
#include "chat_template.h"

#include <stdlib.h>
#include <string.h>
#include "../error.h"

#define TEMPLATE_KEY "tokenizer.chat_template"
#define SIGNS_MAX 64 /* that are looked at for a default system message: a file may have millions */

enum { PROMPT_CLASS, DECODE_CLASS }; /* mx_token_class */

struct mx_chat_template {
    const mx_tokenizer *tokenizer;
    mx_template_kind kind;
    bool given;    /* the file has a template */
    bool adds_bos; /* ... and it begins with BOS */
    char *system;  /* the message it puts first if the conversation has no system message; NULL: none */
    size_t system_bytes;
};

static mx_str str(const char *text)
{
    return (mx_str){text, strlen(text)};
}

static const char *find(mx_str text, size_t from, const char *what)
{
    return memmem(text.data + from, text.bytes - from, what, strlen(what));
}

/* ---- The file's template ---- */

static const struct {
    const char *name;
    const char *sign;                       /* what its Jinja source has and no other's does */
    const char *system_begin, *system_end; /* what a system message stands between */
} families[] = {
    [MX_TEMPLATE_MIXTRAL] = {"mixtral", "[INST]", NULL, NULL},
    [MX_TEMPLATE_CHATML] = {"chatml", "<|im_start|>", "<|im_start|>system\n", "<|im_end|>"},
    [MX_TEMPLATE_LLAMA3] = {"llama3", "<|start_header_id|>",
                            "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"},
};

#define N_FAMILIES ((int)(sizeof families / sizeof families[0]))

int mx_template_from_name(const char *name)
{
    for (int kind = MX_TEMPLATE_NONE + 1; kind < N_FAMILIES; kind++)
        if (strcmp(families[kind].name, name) == 0)
            return kind;
    return -1;
}

/* Llama 2's and the later Mistrals' templates have [INST] too, but other spaces or markers about it. */
static bool is_other_inst(const mx_tokenizer *tokenizer, mx_str text)
{
    int32_t marker = mx_token_find(tokenizer, "[INST]");

    return find(text, 0, "<<SYS>>") || (marker >= 0 && mx_token_is_control(tokenizer, marker));
}

static mx_template_kind recognise(const mx_tokenizer *tokenizer, mx_str text)
{
    for (int kind = N_FAMILIES - 1; kind > MX_TEMPLATE_NONE; kind--)
        if (find(text, 0, families[kind].sign))
            return kind == MX_TEMPLATE_MIXTRAL && is_other_inst(tokenizer, text) ? MX_TEMPLATE_NONE : kind;
    return MX_TEMPLATE_NONE;
}

/* Is text[at] only written where a conversation has no system message? The Jinja tag before it says so. */
static bool is_without_system(mx_str text, size_t at)
{
    const char *tag = memrchr(text.data, '%', at), *end;
    mx_str inside;

    while (tag && (tag == text.data || tag[-1] != '{'))
        tag = memrchr(text.data, '%', (size_t)(tag - text.data));
    end = tag ? memmem(tag, at - (size_t)(tag - text.data), "%}", 2) : NULL;
    if (!end)
        return false;
    inside = (mx_str){tag, (size_t)(end - tag)};
    return find(inside, 0, "else") || (find(inside, 0, "system") && (find(inside, 0, "!=") || find(inside, 0, "not ")));
}

/* The next character of the template's output: of a Jinja literal if `quote` is not 0, of its plain text otherwise. -1: it ends here. */
static int next_character(mx_str text, size_t *at, char quote)
{
    static const char escapes[] = "n\nt\tr\r\\\\''\"\"";
    char c = text.data[(*at)++], next = *at < text.bytes ? text.data[*at] : '\0';

    if (quote && c == quote)
        return -1;
    if (!quote && c == '{' && (next == '{' || next == '%'))
        return -1;
    if (!quote || c != '\\')
        return (unsigned char)c;
    for (const char *escape = escapes; *escape; escape += 2) {
        if (*escape == next) {
            (*at)++;
            return escape[1];
        }
    }
    return '\\';
}

/*
 * The default system message, if text[at], where its marker begins, is followed by one that is spelled out, as in
 *     {% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful ...<|im_end|>\n' }}{% endif %}
 * `out` has room for the whole text. Returns its length; 0: there is none here.
 */
static size_t read_default_system(mx_str text, size_t at, const char *begin, const char *end, char *out)
{
    size_t n = 0, begin_bytes = strlen(begin), end_bytes = strlen(end);
    char quote = at > 0 && (text.data[at - 1] == '\'' || text.data[at - 1] == '"') ? text.data[at - 1] : '\0';
    int c;

    if (!is_without_system(text, at))
        return 0;
    while (at < text.bytes && (c = next_character(text, &at, quote)) >= 0) {
        out[n++] = (char)c;
        if (n <= begin_bytes && out[n - 1] != begin[n - 1])
            return 0;
        if (n >= begin_bytes + end_bytes && memcmp(out + n - end_bytes, end, end_bytes) == 0) {
            n -= begin_bytes + end_bytes;
            memmove(out, out + begin_bytes, n);
            return n;
        }
    }
    return 0;
}

static mx_status find_default_system(mx_chat_template *chat, mx_str text, mx_error *error)
{
    const char *begin = families[chat->kind].system_begin, *end = families[chat->kind].system_end;
    const char *sign = families[chat->kind].sign, *found;
    char *out;

    if (!begin)
        return MX_OK;
    out = malloc(text.bytes + 1);
    if (!out)
        return mx_fail(error, MX_NOMEM, TEMPLATE_KEY, "out of memory for %zu bytes of chat template", text.bytes);
    for (size_t i = 0, at = 0; i < SIGNS_MAX && chat->system_bytes == 0 && (found = find(text, at, sign)); i++) {
        at = (size_t)(found - text.data);
        chat->system_bytes = read_default_system(text, at++, begin, end, out);
    }
    if (chat->system_bytes > 0)
        chat->system = out;
    else
        free(out);
    return MX_OK;
}

mx_status mx_chat_template_open(const mx_gguf *gguf, const mx_tokenizer *tokenizer, mx_chat_template **chat,
                                mx_error *error)
{
    mx_chat_template *c = calloc(1, sizeof *c);
    mx_str text = {"", 0};
    mx_status status;

    *chat = NULL;
    if (!c)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the chat template");
    c->tokenizer = tokenizer;
    status = mx_gguf_get_string(gguf, TEMPLATE_KEY, &text, NULL, error);
    c->given = text.bytes > 0;
    if (status == MX_OK && c->given) {
        c->kind = recognise(tokenizer, text);
        c->adds_bos = find(text, 0, "bos_token");
        status = find_default_system(c, text, error);
    } else if (status == MX_OK && mx_tokenizer_is_spm(tokenizer)) {
        c->kind = MX_TEMPLATE_MIXTRAL;
    }
    if (status == MX_OK)
        *chat = c;
    else
        mx_chat_template_close(c);
    return status;
}

void mx_chat_template_close(mx_chat_template *chat)
{
    if (!chat)
        return;
    free(chat->system);
    free(chat);
}

mx_template_kind mx_chat_template_kind(const mx_chat_template *chat)
{
    return chat->kind;
}

/* ---- Rendering ---- */

typedef struct { /* after an error all further output is dropped */
    const mx_chat_template *chat;
    mx_template_kind kind;
    const atomic_bool *cancelled;
    mx_tokens *tokens;
    uint8_t *classes; /* [tokens->capacity] or NULL, filled up to n_classes */
    size_t n_classes, class_capacity;
    char *text; /* [text_capacity] what is being put together */
    size_t text_capacity;
    mx_status status;
    mx_error *error;
} render;

/* Gives the tokens that have none yet their class. */
static void classify(render *r, uint8_t class)
{
    if (r->status == MX_OK && r->class_capacity < r->tokens->capacity) {
        uint8_t *classes = realloc(r->classes, r->tokens->capacity);

        if (classes) {
            r->classes = classes;
            r->class_capacity = r->tokens->capacity;
        } else {
            r->status = mx_fail(r->error, MX_NOMEM, NULL, "out of memory for %zu tokens", r->tokens->capacity);
        }
    }
    for (; r->status == MX_OK && r->n_classes < r->tokens->count; r->n_classes++)
        r->classes[r->n_classes] = class;
}

static void put_id(render *r, int32_t id)
{
    if (r->status == MX_OK)
        r->status = mx_tokens_push(r->tokens, id, r->error);
    classify(r, PROMPT_CLASS);
}

static void put_marker(render *r, const char *piece)
{
    int32_t id = mx_token_find(r->chat->tokenizer, piece);

    if (id < 0 && r->status == MX_OK)
        r->status = mx_fail(r->error, MX_INVALID, "template",
                            "template: %s needs the piece %s, which this model's vocabulary does not have",
                            families[r->kind].name, piece);
    put_id(r, id);
}

/* Tokenises the parts as one text. */
static void put_text(render *r, const mx_str *parts, size_t n, int flags, uint8_t class)
{
    size_t bytes = 0;

    for (size_t i = 0; i < n; i++)
        bytes += parts[i].bytes;
    if (r->status != MX_OK || bytes == 0)
        return;
    if (bytes > r->text_capacity) {
        free(r->text);
        r->text = malloc(bytes);
        r->text_capacity = r->text ? bytes : 0;
    }
    if (r->text) {
        char *out = r->text;

        for (size_t i = 0; i < n; i++)
            if (parts[i].bytes > 0)
                out = mempcpy(out, parts[i].data, parts[i].bytes);
        r->status = mx_tokenize(r->chat->tokenizer, r->text, bytes, flags, r->cancelled, r->tokens, r->error);
    } else {
        r->status = mx_fail(r->error, MX_NOMEM, NULL, "out of memory for a message of %zu bytes", bytes);
    }
    classify(r, class);
}

static const char *role_name(mx_role role)
{
    return role == MX_ROLE_SYSTEM ? "system" : role == MX_ROLE_USER ? "user" : "assistant";
}

static mx_str content(const mx_message *message)
{
    return (mx_str){message->content, message->bytes};
}

static void render_mixtral(render *r, const mx_message *messages, size_t n)
{
    const mx_tokenizer *tokenizer = r->chat->tokenizer;
    mx_str system = {"", 0};

    if (mx_tokenizer_bos(tokenizer) >= 0)
        put_id(r, mx_tokenizer_bos(tokenizer));
    for (size_t i = 0; i < n; i++) {
        mx_str text = content(&messages[i]);

        if (messages[i].role == MX_ROLE_SYSTEM) {
            system = text;
        } else if (messages[i].role == MX_ROLE_USER) {
            const mx_str parts[] = {str("[INST] "), system, str(system.bytes ? "\n\n" : ""), text, str(" [/INST]")};

            put_text(r, parts, 5, 0, PROMPT_CLASS);
            system.bytes = 0;
        } else { /* the vocabulary puts a space before the text, unless it is the one that the model wrote */
            bool spaced = text.bytes > 0 && text.data[0] == ' ';

            put_text(r, &text, 1, spaced ? MX_TOKENIZE_NO_PREFIX : 0, DECODE_CLASS);
            if (mx_tokenizer_eos(tokenizer) < 0 && r->status == MX_OK)
                r->status = mx_fail(r->error, MX_INVALID, "template",
                                    "template: mixtral needs an end-of-sequence token, which this vocabulary does not have");
            put_id(r, mx_tokenizer_eos(tokenizer));
        }
    }
}

static void render_chatml(render *r, const mx_message *messages, size_t n)
{
    const mx_tokenizer *tokenizer = r->chat->tokenizer;
    bool own = r->kind == r->chat->kind;

    if (mx_tokenizer_bos(tokenizer) >= 0 && (mx_tokenizer_add_bos(tokenizer) || (own && r->chat->adds_bos)))
        put_id(r, mx_tokenizer_bos(tokenizer));
    for (size_t i = 0; i < n; i++) {
        const mx_str parts[] = {str(role_name(messages[i].role)), str("\n"), content(&messages[i])};
        bool answer = messages[i].role == MX_ROLE_ASSISTANT;

        put_marker(r, "<|im_start|>");
        put_text(r, parts, answer ? 2 : 3, 0, PROMPT_CLASS);
        if (answer)
            put_text(r, &parts[2], 1, MX_TOKENIZE_NO_PREFIX, DECODE_CLASS);
        put_marker(r, "<|im_end|>");
        put_text(r, &parts[1], 1, 0, PROMPT_CLASS);
    }
    put_marker(r, "<|im_start|>");
    put_text(r, (const mx_str[]){str("assistant\n")}, 1, 0, PROMPT_CLASS);
}

/* Bytes of the white space at s, as Python's str.strip (Jinja's trim) sees it; 0: there is none. */
static size_t space_bytes(const char *s, size_t n)
{
    static const char *const wide[] = {
        "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
        "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80",
    };

    if ((s[0] >= '\t' && s[0] <= '\r') || (s[0] >= 0x1c && s[0] <= ' '))
        return 1;
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        if (n >= strlen(wide[i]) && memcmp(s, wide[i], strlen(wide[i])) == 0)
            return strlen(wide[i]);
    if (n >= 3 && memcmp(s, "\xe2\x80", 2) == 0 && (unsigned char)s[2] >= 0x80 && (unsigned char)s[2] <= 0x8a)
        return 3;
    return 0;
}

static mx_str trim(mx_str text)
{
    size_t n;

    while (text.bytes > 0 && (n = space_bytes(text.data, text.bytes)) > 0) {
        text.data += n;
        text.bytes -= n;
    }
    for (n = 1; n <= 3 && n <= text.bytes; n++) {
        if (space_bytes(text.data + text.bytes - n, n) == n) {
            text.bytes -= n;
            n = 0; /* from the new end */
        }
    }
    return text;
}

static void put_llama3_header(render *r, mx_role role)
{
    put_marker(r, "<|start_header_id|>");
    put_text(r, (const mx_str[]){str(role_name(role))}, 1, 0, PROMPT_CLASS);
    put_marker(r, "<|end_header_id|>");
}

static void render_llama3(render *r, const mx_message *messages, size_t n)
{
    const mx_tokenizer *tokenizer = r->chat->tokenizer;

    if (mx_tokenizer_bos(tokenizer) >= 0)
        put_id(r, mx_tokenizer_bos(tokenizer));
    for (size_t i = 0; i < n; i++) {
        const mx_str parts[] = {str("\n\n"), trim(content(&messages[i]))};
        bool answer = messages[i].role == MX_ROLE_ASSISTANT;

        put_llama3_header(r, messages[i].role);
        put_text(r, parts, answer ? 1 : 2, 0, PROMPT_CLASS);
        if (answer)
            put_text(r, &parts[1], 1, MX_TOKENIZE_NO_PREFIX, DECODE_CLASS);
        put_marker(r, "<|eot_id|>");
    }
    put_llama3_header(r, MX_ROLE_ASSISTANT);
    put_text(r, (const mx_str[]){str("\n\n")}, 1, 0, PROMPT_CLASS);
}

/* A system message may come first; then user and assistant in turns; the user has the last word. */
static mx_status check_roles(const mx_message *messages, size_t n, mx_error *error)
{
    size_t first = n > 0 && messages[0].role == MX_ROLE_SYSTEM;

    for (size_t i = first; i < n; i++) {
        mx_role expected = (i - first) % 2 == 0 ? MX_ROLE_USER : MX_ROLE_ASSISTANT;

        if (messages[i].role != expected)
            return mx_fail(error, MX_INVALID, "messages", "messages[%zu]: expected role %s, got %s", i,
                           role_name(expected), role_name(messages[i].role));
    }
    if (n == first || messages[n - 1].role != MX_ROLE_USER)
        return mx_fail(error, MX_INVALID, "messages", "messages: expected a last message of role user, got %s",
                       n == 0 ? "none" : role_name(messages[n - 1].role));
    return MX_OK;
}

static mx_status check_kind(const mx_chat_template *chat, mx_template_kind kind, mx_error *error)
{
    if (kind != MX_TEMPLATE_NONE)
        return MX_OK;
    return mx_fail(error, MX_INVALID, "template",
                   chat->given ? "template: the model file's own is not known; set it to mixtral, chatml or llama3"
                               : "template: the model file has none; set it to mixtral, chatml or llama3");
}

/* The messages with the file's default system message before them, if there is one and they have none. */
static mx_message *add_system(const render *r, const mx_message *messages, size_t *n, mx_error *error)
{
    size_t extra = r->chat->system && r->kind == r->chat->kind && messages[0].role != MX_ROLE_SYSTEM;
    mx_message *all = malloc((*n + extra) * sizeof *all);

    if (!all) {
        mx_fail(error, MX_NOMEM, "messages", "out of memory for %zu messages", *n);
        return NULL;
    }
    if (extra)
        all[0] = (mx_message){MX_ROLE_SYSTEM, r->chat->system, r->chat->system_bytes};
    memcpy(all + extra, messages, *n * sizeof *all);
    *n += extra;
    return all;
}

mx_status mx_chat_render(const mx_chat_template *chat, mx_template_kind kind, const mx_message *messages,
                         size_t n_messages, const atomic_bool *cancelled, mx_tokens *tokens, uint8_t **classes,
                         mx_error *error)
{
    render r = {.chat = chat, .kind = kind == MX_TEMPLATE_NONE ? chat->kind : kind, .cancelled = cancelled,
                .tokens = tokens, .error = error};
    mx_message *all = NULL;

    *tokens = (mx_tokens){0};
    *classes = NULL;
    r.status = check_kind(chat, r.kind, error);
    if (r.status == MX_OK)
        r.status = check_roles(messages, n_messages, error);
    if (r.status != MX_OK)
        return r.status;
    all = add_system(&r, messages, &n_messages, error);
    if (!all)
        return MX_NOMEM;
    if (r.kind == MX_TEMPLATE_MIXTRAL)
        render_mixtral(&r, all, n_messages);
    else if (r.kind == MX_TEMPLATE_CHATML)
        render_chatml(&r, all, n_messages);
    else
        render_llama3(&r, all, n_messages);
    free(all);
    free(r.text);
    if (r.status == MX_OK) {
        *classes = r.classes;
    } else {
        free(r.classes);
        mx_tokens_free(tokens);
    }
    return r.status;
}
