/*
 * tokenizer_bpe.c: byte-level BPE (`gpt2` vocabularies: SmolLM2's, Llama 3's, Qwen2's).
 *
 * A text is cut into words by the regular expressions of the file's pre-tokenizer: each one cuts what the one
 * before it left, matches and the gaps between them alike. A word's symbols are its bytes; the pair of the lowest
 * rank is merged first. Pieces are spelled with one printable character a byte (GPT-2's table). Bytes without a
 * piece and merges without one are left out, as they can't come up. Immutable after open.
 *
 * Sources: GPT-2's encoder.py; the expressions are those that llama.cpp uses for these names, with \s spelled out
 * as Unicode's White_Space (PCRE2's has U+180E too).
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include "tokenizer_internal.h"

#define PRE_KEY "tokenizer.ggml.pre"
#define MERGES_KEY "tokenizer.ggml.merges"
#define SPLITS_MAX 4

typedef struct {
    int32_t left, right, merged;
} merge;

struct mx_bpe {
    const mx_vocabulary *vocabulary;
    const struct pre_tokenizer *pre;
    pcre2_code *splits[SPLITS_MAX];
    int n_splits;
    merge *merges; /* [n_merges] by rank */
    size_t n_merges;
    int32_t *slots; /* [n_slots] ranks by (left, right), open addressing; -1: empty */
    size_t n_slots; /* a power of two */
    int32_t bytes[256]; /* the piece of each byte; -1: none */
};

/* ---- Pre-tokenizers ---- */

#define S "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACES "[" S "]+(?![^" S "])|[" S "]+" /* \s+(?!\S)|\s+ */
#define GPT2_WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" S "\\p{L}\\p{N}]+|" SPACES
#define LLAMA_WORDS(digits)                                                                                        \
    "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                  \
    "| ?[^" S "\\p{L}\\p{N}]+[\\r\\n]*|[" S "]*[\\r\\n]+|" SPACES

static const struct pre_tokenizer {
    const char *name;
    const char *splits[SPLITS_MAX];
    bool whole_words; /* a word that is a piece is not merged from its bytes */
    bool add_bos;
} pre_tokenizers[] = {
    {"default", {"[\\p{P}$+<=>^~|]+", GPT2_WORDS, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false},
    {"gpt-2", {GPT2_WORDS}, false, false},
    {"llama-bpe", {LLAMA_WORDS("\\p{N}{1,3}")}, true, true},
    {"smollm", {"\\p{N}", GPT2_WORDS}, false, false},
    {"qwen2", {LLAMA_WORDS("\\p{N}")}, false, false},
};

static mx_status find_pre_tokenizer(mx_bpe *bpe, const mx_gguf *gguf, mx_error *error)
{
    mx_str name = {"", 0};
    mx_status status = mx_gguf_get_string(gguf, PRE_KEY, &name, NULL, error);

    if (status != MX_OK)
        return status;
    if (name.bytes == 0)
        name = (mx_str){"default", strlen("default")};
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof pre_tokenizers[0]; i++) {
        bpe->pre = &pre_tokenizers[i];
        if (strlen(bpe->pre->name) == name.bytes && memcmp(bpe->pre->name, name.data, name.bytes) == 0)
            return MX_OK;
    }
    return mx_fail(error, MX_INVALID, PRE_KEY,
                   "key " PRE_KEY ": expected default, gpt-2, llama-bpe, smollm or qwen2, got %.*s",
                   name.bytes < 80 ? (int)name.bytes : 80, name.data);
}

static mx_status compile_splits(mx_bpe *bpe, mx_error *error)
{
    for (int i = 0; i < SPLITS_MAX && bpe->pre->splits[i]; i++) {
        int code;
        size_t at;
        pcre2_code *split = pcre2_compile((PCRE2_SPTR)bpe->pre->splits[i], PCRE2_ZERO_TERMINATED,
                                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);

        if (!split && code == PCRE2_ERROR_HEAP_FAILED)
            return mx_fail(error, MX_NOMEM, PRE_KEY, "out of memory for the pre-tokenizer %s", bpe->pre->name);
        if (!split)
            return mx_fail(error, MX_INTERNAL, PRE_KEY, "expression %d of pre-tokenizer %s: PCRE2 error %d at %zu", i,
                           bpe->pre->name, code, at);
        bpe->splits[bpe->n_splits++] = split;
        pcre2_jit_compile(split, PCRE2_JIT_COMPLETE); /* where it may not, the interpreter serves */
    }
    return MX_OK;
}

/* ---- Bytes and their characters ---- */

/* GPT-2's character for a byte: itself where that is printable; the others count up from U+0100. */
static unsigned character_of(unsigned byte)
{
    if (byte < 0x21)
        return 0x100 + byte;
    if (byte < 0x7f)
        return byte;
    if (byte < 0xa1)
        return 0x121 + byte - 0x7f;
    return byte == 0xad ? 0x143 : byte;
}

/* The other way round; -1: no byte's character. */
static int byte_of(unsigned character)
{
    if (character >= 0x100 && character <= 0x120)
        return (int)character - 0x100;
    if (character > 0x120 && character < 0x143)
        return (int)character - 0x121 + 0x7f;
    if (character == 0x143)
        return 0xad;
    return character < 0x100 && character_of(character) == character ? (int)character : -1;
}

/* Writes the character's one or two bytes. */
static size_t encode_byte(unsigned byte, char *out)
{
    unsigned c = character_of(byte);

    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
}

size_t mx_bpe_decode(mx_str piece, char *out, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < piece.bytes; n++) {
        unsigned char lead = (unsigned char)piece.data[i];
        size_t bytes = mx_utf8_length(piece.data + i, piece.data + piece.bytes);
        int byte = -1;

        if (bytes == 1)
            byte = byte_of(lead);
        else if (bytes == 2)
            byte = byte_of((lead & 0x1fu) << 6 | (piece.data[i + 1] & 0x3fu));
        if (n < size)
            out[n] = byte >= 0 ? (char)byte : (char)lead;
        i += byte >= 0 ? bytes : 1; /* what is no byte's character stays as it is */
    }
    return n;
}

/* ---- Merges ---- */

static size_t pair_slot(const mx_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    size_t slot = (h ^ h >> 32) & (bpe->n_slots - 1);

    for (; bpe->slots[slot] >= 0; slot = (slot + 1) & (bpe->n_slots - 1)) {
        const merge *m = &bpe->merges[bpe->slots[slot]];

        if (m->left == left && m->right == right)
            break;
    }
    return slot;
}

/* `left right` as pieces. A pair that is there twice has its first rank. */
static mx_status read_merge(mx_bpe *bpe, mx_str text, int32_t rank, char *joined, mx_error *error)
{
    const mx_vocabulary *v = bpe->vocabulary;
    const char *space = text.bytes > 1 ? memchr(text.data + 1, ' ', text.bytes - 1) : NULL;
    size_t left_bytes, right_bytes, slot;
    merge *m = &bpe->merges[rank];

    if (!space || space + 1 == text.data + text.bytes)
        return mx_fail(error, MX_CORRUPT, MERGES_KEY, "key " MERGES_KEY ": expected two pieces and a space, got %.*s as %d",
                       text.bytes < 80 ? (int)text.bytes : 80, text.data, rank);
    left_bytes = (size_t)(space - text.data);
    right_bytes = text.bytes - left_bytes - 1;
    if (text.bytes - 1 > v->longest)
        return MX_OK;
    m->left = mx_vocabulary_find_text(v, text.data, left_bytes);
    m->right = mx_vocabulary_find_text(v, space + 1, right_bytes);
    memcpy(mempcpy(joined, text.data, left_bytes), space + 1, right_bytes);
    m->merged = mx_vocabulary_find_text(v, joined, left_bytes + right_bytes);
    if (m->left < 0 || m->right < 0 || m->merged < 0)
        return MX_OK;
    slot = pair_slot(bpe, m->left, m->right);
    if (bpe->slots[slot] < 0)
        bpe->slots[slot] = rank;
    return MX_OK;
}

static mx_status read_merges(mx_bpe *bpe, const mx_gguf *gguf, mx_error *error)
{
    const mx_gguf_list *list = mx_gguf_list_find(gguf, MERGES_KEY, MX_GGUF_STRING);
    size_t count = list ? mx_gguf_list_count(list) : 0;
    mx_status status = MX_OK;
    char *joined;

    if (!list)
        return mx_fail(error, MX_CORRUPT, MERGES_KEY, "key " MERGES_KEY ": expected an array of strings, got none");
    if (count > INT32_MAX / 4)
        return mx_fail(error, MX_CORRUPT, MERGES_KEY, "key " MERGES_KEY ": expected at most %d merges, got %zu",
                       INT32_MAX / 4, count);
    for (bpe->n_slots = 2; bpe->n_slots < 2 * count; bpe->n_slots *= 2)
        continue;
    joined = malloc(bpe->vocabulary->longest + 1);
    bpe->merges = calloc(count + 1, sizeof *bpe->merges);
    bpe->slots = malloc(bpe->n_slots * sizeof *bpe->slots);
    if (joined && bpe->merges && bpe->slots) {
        memset(bpe->slots, 0xff, bpe->n_slots * sizeof *bpe->slots); /* -1 */
        for (size_t i = 0; i < count && status == MX_OK; i++)
            status = read_merge(bpe, mx_gguf_list_string(list, i), (int32_t)i, joined, error);
    } else {
        status = mx_fail(error, MX_NOMEM, MERGES_KEY, "out of memory for %zu merges", count);
    }
    free(joined);
    return status;
}

static void pair(const mx_merger *m, mx_symbol *left, const mx_symbol *right)
{
    const mx_bpe *bpe = m->model;
    int32_t rank;

    if (left->id < 0 || right->id < 0)
        return;
    rank = bpe->slots[pair_slot(bpe, left->id, right->id)];
    if (rank < 0)
        return;
    left->pair = bpe->merges[rank].merged;
    left->priority = (uint32_t)rank;
}

/* ---- Open and close ---- */

mx_status mx_bpe_open(const mx_gguf *gguf, const mx_vocabulary *v, mx_bpe **bpe, mx_error *error)
{
    mx_bpe *b = calloc(1, sizeof *b);
    mx_status status;

    *bpe = b;
    if (!b)
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the tokenizer");
    b->vocabulary = v;
    for (unsigned byte = 0; byte < 256; byte++) {
        char character[2];

        b->bytes[byte] = mx_vocabulary_find_text(v, character, encode_byte(byte, character));
    }
    if ((status = find_pre_tokenizer(b, gguf, error)) != MX_OK)
        return status;
    if ((status = compile_splits(b, error)) != MX_OK)
        return status;
    return read_merges(b, gguf, error);
}

void mx_bpe_close(mx_bpe *bpe)
{
    if (!bpe)
        return;
    for (int i = 0; i < bpe->n_splits; i++)
        pcre2_code_free(bpe->splits[i]);
    free(bpe->merges);
    free(bpe->slots);
    free(bpe);
}

bool mx_bpe_adds_bos(const mx_bpe *bpe)
{
    return bpe->pre->add_bos;
}

/* ---- Tokenising ---- */

typedef struct {
    const mx_bpe *bpe;
    mx_token_sink *sink;
    mx_error *error;
    const char *phantom; /* the space that was put before the text; NULL: none */
    char *spelled;       /* [longest piece + 2] a word in the pieces' characters */
    pcre2_match_data *match;
    pcre2_match_context *limits;
    mx_merger merger;
} bpe_run;

/* A word that is a piece; -1: it is none. */
static int32_t find_word(bpe_run *run, const char *word, size_t bytes)
{
    const mx_vocabulary *v = run->bpe->vocabulary;
    size_t n = 0;

    for (size_t i = 0; i < bytes; i++) {
        if (n >= v->longest)
            return -1;
        n += encode_byte((unsigned char)word[i], run->spelled + n);
    }
    return mx_vocabulary_find_text(v, run->spelled, n);
}

static mx_status push_word(bpe_run *run, const char *word, size_t bytes)
{
    const mx_bpe *bpe = run->bpe;
    int32_t whole = bpe->pre->whole_words ? find_word(run, word, bytes) : -1;
    mx_merger *m = &run->merger;
    mx_status status = MX_OK;

    mx_merger_begin(m, word);
    if (whole >= 0)
        status = mx_merger_add(m, bytes, whole, run->error);
    for (size_t i = 0; i < bytes && whole < 0 && status == MX_OK; i++)
        status = mx_merger_add(m, 1, bpe->bytes[(unsigned char)word[i]], run->error);
    if (status == MX_OK)
        status = mx_merger_run(m, run->error);
    for (int32_t i = 0; i >= 0 && status == MX_OK; i = m->symbols[i].next) {
        const mx_symbol *symbol = &m->symbols[i];
        size_t length = symbol->bytes - (word + symbol->start == run->phantom);

        if (symbol->id >= 0)
            status = mx_token_sink_push(run->sink, symbol->id, length, run->error);
        else
            run->sink->skipped += length;
    }
    return status;
}

/* The next match from *from on: *from to *to; both are `bytes` if there is none. */
static mx_status find_match(bpe_run *run, int stage, const char *text, size_t bytes, size_t *from, size_t *to)
{
    const pcre2_code *split = run->bpe->splits[stage];
    const size_t *bounds = pcre2_get_ovector_pointer(run->match);
    size_t start = *from;
    int code;

    *from = *to = bytes;
    code = pcre2_match(split, (PCRE2_SPTR)text, bytes, start, PCRE2_NO_UTF_CHECK, run->match, run->limits);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT)
        code = pcre2_match(split, (PCRE2_SPTR)text, bytes, start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, run->match,
                           run->limits);
    if (code == PCRE2_ERROR_NOMATCH)
        return MX_OK;
    if (code == PCRE2_ERROR_NOMEMORY)
        return mx_fail(run->error, MX_NOMEM, NULL, "out of memory for the tokenizer");
    if (code < 0)
        return mx_fail(run->error, MX_INTERNAL, NULL, "expression %d of pre-tokenizer %s: PCRE2 error %d", stage,
                       run->bpe->pre->name, code);
    *from = bounds[0];
    *to = bounds[1];
    return MX_OK;
}

/* Cuts a text by the expressions from `stage` on: at most SPLITS_MAX calls deep. */
static mx_status push_split(bpe_run *run, int stage, const char *text, size_t bytes)
{
    mx_status status = MX_OK;

    if (stage == run->bpe->n_splits)
        return push_word(run, text, bytes);
    for (size_t at = 0, to; at < bytes && status == MX_OK; at = to) {
        size_t from = at;

        status = find_match(run, stage, text, bytes, &from, &to);
        if (status == MX_OK && from > at)
            status = push_split(run, stage + 1, text + at, from - at);
        if (status == MX_OK && to > from)
            status = push_split(run, stage + 1, text + from, to - from);
    }
    return status;
}

/* A copy with a space before it and U+FFFD for each byte that is no UTF-8; NULL: out of memory. */
static char *repair(const char *text, size_t bytes, bool prefix, size_t *repaired_bytes)
{
    const char *end = text + bytes;
    char *copy, *out;

    copy = out = malloc(3 * bytes + 2);
    if (!copy)
        return NULL;
    if (prefix)
        *out++ = ' ';
    while (text < end) {
        size_t n = mx_utf8_length(text, end);

        out = n > 0 ? mempcpy(out, text, n) : mempcpy(out, "\xef\xbf\xbd", 3);
        text += n + (n == 0);
    }
    *repaired_bytes = (size_t)(out - copy);
    return copy;
}

static bool is_utf8(const char *text, size_t bytes)
{
    const char *end = text + bytes;
    size_t n = 1;

    for (; text < end && n > 0; text += n)
        n = mx_utf8_length(text, end);
    return n > 0;
}

mx_status mx_bpe_tokenize(const mx_bpe *bpe, const char *text, size_t bytes, bool prefix,
                          const atomic_bool *cancelled, mx_token_sink *sink, mx_error *error)
{
    bpe_run run = {.bpe = bpe, .sink = sink, .error = error};
    char *repaired = NULL;
    mx_status status = MX_OK;

    if (prefix || !is_utf8(text, bytes)) {
        text = repaired = repair(text, bytes, prefix, &bytes);
        if (prefix)
            run.phantom = repaired;
        if (!repaired)
            status = mx_fail(error, MX_NOMEM, NULL, "out of memory for the text");
    }
    run.spelled = malloc(bpe->vocabulary->longest + 2);
    run.match = pcre2_match_data_create(1, NULL);
    run.limits = pcre2_match_context_create(NULL);
    run.merger = (mx_merger){.model = bpe, .pair = pair, .cancelled = cancelled};
    if (status == MX_OK && (!run.spelled || !run.match || !run.limits))
        status = mx_fail(error, MX_NOMEM, NULL, "out of memory for the tokenizer");
    if (status == MX_OK) {
        /* the expressions take a few steps a byte: the limit only turns a mistake in one into an error */
        pcre2_set_match_limit(run.limits, (uint32_t)(bytes < 1 << 24 ? 100000 + 64 * bytes : 1 << 30));
        status = push_split(&run, 0, text, bytes);
    }
    mx_merger_free(&run.merger);
    pcre2_match_context_free(run.limits);
    pcre2_match_data_free(run.match);
    free(run.spelled);
    free(repaired);
    return status;
}
