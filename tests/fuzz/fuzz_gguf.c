/*
 * fuzz_gguf.c: hostile model files: the file itself, its weights, tokenizer and template; and a step of what opens.
 *
 * The mutator begins from whole small models that it makes itself (merged, separate and dense; SentencePiece and byte-level;
 * version 2 and 3), some with a key or a tensor changed for another that might be there, so that what is fuzzed is never what
 * the format was once. Bytes are then changed in place: most of a file is counts, and libFuzzer's own changes hit few of them.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../core/engine/forward.h"
#include "../../core/model/chat_template.h"
#include "../unit/small_models.h"

#define INPUT_MAX 32768      /* bytes; the models take 4,000 to 20,000 */
#define ALLOCATION_MAX_MB 64 /* at once: the most that a step's scratch takes is less than one */

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* fuzzing is for findings: an expectation that does not hold is one */
#define expect(holds) ((holds) ? (void)0 : fail(__LINE__, #holds))

static void fail(int line, const char *what)
{
    fprintf(stderr, "line %d: expected %s\n", line, what);
    abort();
}

static void expect_refusal(mx_status status, const mx_error *error)
{
    expect(status == MX_CORRUPT || status == MX_INVALID);
    expect(error->status == status && error->text[0] != '\0' && !strchr(error->text, '\n'));
}

/* ---- Mapped files that end where they end ---------------------------------------------------------------------------- */

static void *copies[8]; /* of mapped files */

/* What maps a file gets a copy in memory of the file's very size: AddressSanitizer then sees a read of the byte behind it,
 * which in a mapping is a zero of its last page. */
void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *copy = NULL;

    if (fd < 0)
        return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    expect(posix_memalign(&copy, 4096, size) == 0 && pread(fd, copy, size, offset) == (ssize_t)size);
    for (size_t i = 0; i < sizeof copies / sizeof copies[0]; i++)
        if (!copies[i])
            return copies[i] = copy;
    abort();
}

int munmap(void *address, size_t size)
{
    for (size_t i = 0; i < sizeof copies / sizeof copies[0]; i++)
        if (copies[i] == address) {
            free(address);
            copies[i] = NULL;
            return 0;
        }
    return (int)syscall(SYS_munmap, address, size);
}

/* ---- Making models --------------------------------------------------------------------------------------------------- */

static uint64_t random_state;

static int rnd(int below)
{
    return (int)(mx_synth_random(&random_state) >> 33) % below;
}

enum { PIECES = 11 }; /* of a vocabulary: the rows of the embedding */

static const char *const spm_pieces[PIECES] = {"<unk>", "<s>", "</s>", "\xe2\x96\x81", "a",   "b",
                                               "ab",    "aab", "<0x41>", "<t>",          "[INST]"};
static const double spm_types[PIECES] = {2, 3, 3, 1, 1, 1, 1, 1, 6, 4, 1};
static const char *const bpe_pieces[PIECES] = {"a", "b",            "ab",         "\xc4\xa0", "\xc4\xa0z", "1",
                                               "'", "<|im_start|>", "<|im_end|>", "abab",     "\xc4\x8a"};
static const double bpe_types[PIECES] = {1, 1, 1, 1, 1, 1, 1, 3, 3, 1, 1};

static bool odd_vocabulary; /* the next one has something that should not be there */

/* Pieces and their types; of an odd vocabulary some are others, and there may be one more or less of each. */
static void put_pieces(mx_gguf_writer *w, const char *const *texts, const double *known_types)
{
    static const char *const odd[] = {"", "<0x0", "<0xZZ>", "<0x7F>", "<s>", "<|eot_id|>", "\xff\xfe", " ", "a b",
                                      "\xe2\x96\x81\xe2\x96\x81", "a piece that is longer than all the others are, by far"};
    mx_str pieces[PIECES];
    double types[PIECES];

    for (int i = 0; i < PIECES; i++) {
        const char *text = odd_vocabulary && rnd(8) == 0 ? odd[rnd(sizeof odd / sizeof odd[0])] : texts[i];

        pieces[i] = (mx_str){text, strlen(text)};
        types[i] = odd_vocabulary && rnd(8) == 0 ? rnd(8) : known_types[i];
    }
    mx_gguf_put_strings(w, "tokenizer.ggml.tokens", pieces, odd_vocabulary && rnd(8) == 0 ? PIECES - 1 : PIECES);
    mx_gguf_put_numbers(w, "tokenizer.ggml.token_type", odd_vocabulary && rnd(8) == 0 ? MX_GGUF_INT64 : MX_GGUF_INT32, types,
                        odd_vocabulary && rnd(8) == 0 ? PIECES - 1 : PIECES);
}

static void put_spm(mx_gguf_writer *w)
{
    double scores[PIECES];

    for (int i = 0; i < PIECES; i++)
        scores[i] = odd_vocabulary && rnd(20) == 0 ? NAN : -i;
    mx_gguf_put_text(w, "tokenizer.ggml.model", "llama");
    put_pieces(w, spm_pieces, spm_types);
    mx_gguf_put_numbers(w, "tokenizer.ggml.scores", MX_GGUF_FLOAT32, scores,
                        odd_vocabulary && rnd(8) == 0 ? PIECES - 1 : PIECES);
}

static void put_bpe(mx_gguf_writer *w)
{
    static const char *const merges[] = {"a b", "ab ab", "\xc4\xa0 z"};
    static const char *const odd[] = {"", " ", "a", "a ", " b", "a b", "b a", "  ", "<|im_ end|>", "\xff \xff",
                                      "a merge-whose-pieces-are-longer-than-all-the-others-are,-by-far,-and-then-some"};
    static const char *const names[] = {"default", "gpt-2", "llama-bpe", "smollm", "qwen2", "other"};
    mx_str list[3];

    for (int i = 0; i < 3; i++) {
        const char *text = odd_vocabulary && rnd(4) == 0 ? odd[rnd(sizeof odd / sizeof odd[0])] : merges[i];

        list[i] = (mx_str){text, strlen(text)};
    }
    mx_gguf_put_text(w, "tokenizer.ggml.model", "gpt2");
    mx_gguf_put_text(w, "tokenizer.ggml.pre", names[rnd(odd_vocabulary ? 6 : 5)]);
    put_pieces(w, bpe_pieces, bpe_types);
    mx_gguf_put_strings(w, "tokenizer.ggml.merges", list, 3);
    mx_gguf_put_int(w, "tokenizer.ggml.eos_token_id", MX_GGUF_UINT32, 8);
}

static unsigned hash(const char *name)
{
    unsigned sum = 0;

    for (const char *c = name; *c; c++)
        sum = sum * 31 + (unsigned char)*c;
    return sum;
}

/* Of one weight a block: such a model can be narrow. */
static mx_type floats(const char *name)
{
    return (mx_type)(hash(name) % 3);
}

/* Of 32 weights a block. */
static mx_type narrow(const char *name)
{
    static const mx_type types[] = {MX_TYPE_Q4_0, MX_TYPE_Q4_1, MX_TYPE_Q5_0, MX_TYPE_Q5_1, MX_TYPE_Q8_0, MX_TYPE_IQ4_NL};

    return types[hash(name) % 6];
}

/* The down product may have blocks of 256: it is 256 wide. */
static mx_type wide(const char *name)
{
    return strstr(name, "ffn_down") ? (mx_type)(MX_TYPE_Q2_K + rnd(MX_TYPE_COUNT - MX_TYPE_Q2_K)) : MX_TYPE_Q4_0;
}

static void begin_model(small_model *m, int which)
{
    *m = (small_model){.layers = 1, .dim = 32, .ff = 32, .heads = 2, .kv_heads = 1, .head_dim = 16, .vocab = PIECES,
                       .type_of = narrow, .put_more = which % 2 ? put_bpe : put_spm, .layout = MX_EXPERTS_NONE};
    if (which < 4) {
        m->layout = which < 2 ? MX_EXPERTS_MERGED : MX_EXPERTS_SEPARATE;
        m->experts = 3;
        m->used = 2;
        m->dim = m->ff = 8;
        m->head_dim = 4;
        m->type_of = floats;
    } else if (which == 4) {
        m->tied = m->rope_factors = true;
    } else {
        m->ff = 256;
        m->type_of = wide;
    }
    lay_out_model(m);
    if (which % 2)
        set_key(m, "tokenizer.chat_template", MX_GGUF_STRING, 0,
                "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nab<|im_end|>\\n' }}{% endif %}");
}

/* A key that means something gets a value that may not. */
static void change_key(small_model *m)
{
    static const struct {
        const char *key;
        mx_gguf_kind kind;
    } keys[] = {
        {"general.alignment", MX_GGUF_UINT32},
        {"general.name", MX_GGUF_STRING},
        {"general.architecture", MX_GGUF_STRING},
        {"split.count", MX_GGUF_UINT16},
        {"split.no", MX_GGUF_UINT16},
        {"llama.block_count", MX_GGUF_UINT32},
        {"llama.context_length", MX_GGUF_UINT32},
        {"llama.embedding_length", MX_GGUF_UINT32},
        {"llama.feed_forward_length", MX_GGUF_ARRAY},
        {"llama.attention.head_count", MX_GGUF_UINT32},
        {"llama.attention.head_count_kv", MX_GGUF_ARRAY},
        {"llama.attention.key_length", MX_GGUF_UINT32},
        {"llama.attention.value_length", MX_GGUF_UINT32},
        {"llama.attention.layer_norm_rms_epsilon", MX_GGUF_FLOAT32},
        {"llama.rope.dimension_count", MX_GGUF_UINT32},
        {"llama.rope.freq_base", MX_GGUF_FLOAT32},
        {"llama.rope.scaling.type", MX_GGUF_STRING},
        {"llama.rope.scaling.factor", MX_GGUF_FLOAT32},
        {"llama.rope.scale_linear", MX_GGUF_FLOAT32},
        {"llama.expert_count", MX_GGUF_UINT32},
        {"llama.expert_used_count", MX_GGUF_UINT32},
        {"llama.logit_scale", MX_GGUF_FLOAT32},
        {"llama.vocab_size", MX_GGUF_UINT32},
        {"tokenizer.chat_template", MX_GGUF_STRING},
        {"tokenizer.chat_template", MX_GGUF_STRING},
        {"tokenizer.ggml.bos_token_id", MX_GGUF_UINT32},
        {"tokenizer.ggml.eot_token_id", MX_GGUF_UINT32},
        {"tokenizer.ggml.unknown_token_id", MX_GGUF_UINT32},
        {"tokenizer.ggml.add_bos_token", MX_GGUF_BOOL},
        {"tokenizer.ggml.add_space_prefix", MX_GGUF_BOOL},
    };
    static const double numbers[] = {0,    1,  2,     3,       4,         8,            15,    16,  31,   32,       33, 64, 256, 511,
                                     1024, -1, 65536, 1 << 24, INT32_MAX, 4294967295.0, 1e-30, 0.5, 1e12, INFINITY, NAN};
    static const char *const texts[] = {"", "llama", "none", "linear", "[INST] {{ x }} [/INST]", "<|start_header_id|>",
                                        "{% else %}<|im_start|>system\n", "{% else %}{{ '<|im_start|>system\\n",
                                        "{{ bos_token }}<|im_start|>", "{%<|im_start|>system\n<|im_end|>"};
    size_t which = (size_t)rnd(sizeof keys / sizeof keys[0]);
    double number = numbers[rnd(sizeof numbers / sizeof numbers[0])];
    mx_gguf_kind kind = rnd(4) ? keys[which].kind : (mx_gguf_kind)rnd(MX_GGUF_FLOAT64 + 1);

    if (!(number >= -1 && number <= 4294967295.0) && kind != MX_GGUF_STRING) /* no integer for the writer to write */
        kind = kind == MX_GGUF_FLOAT64 ? MX_GGUF_FLOAT64 : MX_GGUF_FLOAT32;
    if (kind == MX_GGUF_BOOL)
        number = rnd(2);
    set_key(m, keys[which].key, kind, number, texts[rnd(sizeof texts / sizeof texts[0])]);
}

static void change_tensor(small_model *m)
{
    model_tensor *t = &m->tensors[rnd((int)m->n_tensors)];
    static const float poison[] = {NAN, INFINITY, -INFINITY, 0, 3e38f, -3e38f, 1e-40f};

    switch (rnd(4)) {
    case 0:
        t->dims[t->n_dims > 1] = 1 + rnd(64) * mx_type_get(t->type)->block_size;
        break;
    case 1:
        t->type = (mx_type)(rnd(2) ? MX_TYPE_F32 : rnd(MX_TYPE_BF16 + 1));
        break;
    case 2:
        drop_tensor(m, t->name);
        break;
    default:
        m->poisoned = t->type == MX_TYPE_F32 ? t->name : NULL;
        m->poison = poison[rnd(sizeof poison / sizeof poison[0])];
    }
}

/* A model's file into out; its size, or 0 if it exceeds max_bytes. */
static size_t make_model(uint8_t *out, size_t max_bytes, int which, int n_changes)
{
    static small_model m;
    char path[] = "/tmp/mixtral-fuzz-XXXXXX";
    int fd = mkstemp(path);
    mx_error error;
    ssize_t n;

    expect(fd >= 0);
    close(fd);
    begin_model(&m, which);
    odd_vocabulary = n_changes > 0 && rnd(3) == 0;
    for (int i = 0; i < n_changes; i++) {
        if (rnd(3))
            change_key(&m);
        else
            change_tensor(&m);
    }
    expect(write_model(path, &m, &error) == MX_OK);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    unlink(path);
    expect(fd >= 0);
    n = read(fd, out, max_bytes);
    if (lseek(fd, 0, SEEK_END) > n)
        n = 0;
    close(fd);
    if (n > 0 && rnd(2))
        out[4] = 2; /* the version: to us the two are the same */
    return n < 0 ? 0 : (size_t)n;
}

/* ---- Mutations ------------------------------------------------------------------------------------------------------- */

static void change_a_number(uint8_t *data, size_t size)
{
    static const uint64_t numbers[] = {0, 1, 2, 3, 4, 7, 8, 9, 13, 31, 32, 33, 127, 128, 255, 256, 4096, 65535, 65536,
                                       1 << 20, INT32_MAX, UINT32_MAX, (uint64_t)1 << 32, INT64_MAX, (uint64_t)1 << 63,
                                       UINT64_MAX - 31, UINT64_MAX, 0x7fc00000, 0x7f800000};
    size_t n = rnd(2) ? 8 : 4, at;
    uint64_t value = numbers[rnd(sizeof numbers / sizeof numbers[0])], old = 0;

    if (size < n)
        return;
    at = (size_t)rnd((int)(rnd(2) && size > 512 ? 512 : size - n + 1));
    memcpy(&old, data + at, n);
    if (rnd(3) == 0)
        value = old + (uint64_t)(rnd(5) - 2);
    memcpy(data + at, &value, n);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    random_state = seed;
    if (size < 32 || rnd(16) == 0) {
        size_t made = make_model(data, max_size, rnd(7), rnd(4));

        if (made > 0)
            return made;
    }
    if (rnd(3))
        return LLVMFuzzerMutate(data, size, max_size);
    for (int i = 1 + rnd(3); i > 0; i--)
        change_a_number(data, size);
    return size;
}

/* ---- Reading --------------------------------------------------------------------------------------------------------- */

static unsigned sum_of(const void *data, size_t n)
{
    const uint8_t *bytes = data;
    unsigned sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += bytes[i];
    return sum;
}

/* Touches every byte that the file says it has. */
static unsigned read_all(const mx_gguf *gguf)
{
    unsigned sum = 0;
    uint8_t identity[32];

    for (size_t i = 0; i < mx_gguf_n_keys(gguf); i++) {
        mx_gguf_kind kind, elements;
        mx_str name = mx_gguf_key_at(gguf, i, &kind), text = {"", 0};
        char *key = strndup(name.data, name.bytes);
        int64_t integer;
        size_t count;
        double number;
        bool yes;

        mx_gguf_get_int(gguf, key, INT64_MIN, INT64_MAX, &integer, NULL, NULL);
        mx_gguf_get_float(gguf, key, &number, NULL, NULL);
        mx_gguf_get_bool(gguf, key, &yes, NULL, NULL);
        if (mx_gguf_get_string(gguf, key, &text, NULL, NULL) == MX_OK)
            sum += sum_of(text.data, text.bytes);
        if (mx_gguf_array(gguf, key, &elements, &count))
            for (size_t e = 0; e < count; e++) {
                text = elements == MX_GGUF_STRING ? mx_gguf_array_string(gguf, key, e) : (mx_str){"", 0};
                sum += sum_of(text.data, text.bytes) + (elements != MX_GGUF_STRING && mx_gguf_array_number(gguf, key, e) > 0);
            }
        free(key);
    }
    for (size_t i = 0; i < mx_gguf_n_tensors(gguf); i++) {
        const mx_gguf_tensor *t = mx_gguf_tensor_at(gguf, i);
        char *name = strndup(t->name.data, t->name.bytes);

        expect(strlen(name) < t->name.bytes || mx_gguf_tensor_find(gguf, name) == t);
        sum += sum_of(t->data, t->bytes);
        free(name);
    }
    expect(mx_gguf_identity(gguf, identity, NULL) == MX_OK);
    return sum + identity[0];
}

static void use_template(const mx_gguf *gguf, const mx_tokenizer *tokenizer)
{
    static const mx_message messages[] = {{MX_ROLE_USER, "a</s>b", 6}, {MX_ROLE_ASSISTANT, "ab", 2}, {MX_ROLE_USER, "1", 1}};
    mx_chat_template *chat;
    mx_error error;
    mx_status status = mx_chat_template_open(gguf, tokenizer, &chat, &error);

    if (status != MX_OK) {
        expect_refusal(status, &error);
        return;
    }
    for (int kind = MX_TEMPLATE_NONE; kind <= MX_TEMPLATE_LLAMA3; kind++) {
        mx_tokens ids;
        uint8_t *classes;

        status = mx_chat_render(chat, (mx_template_kind)kind, messages, 3, NULL, &ids, &classes, &error);
        if (status != MX_OK)
            expect_refusal(status, &error);
        for (size_t i = 0; i < ids.count; i++)
            expect(ids.ids[i] >= 0 && ids.ids[i] < mx_tokenizer_n_vocab(tokenizer) && classes[i] <= 1);
        mx_tokens_free(&ids);
        free(classes);
    }
    mx_chat_template_close(chat);
}

static void use_tokenizer(const mx_gguf *gguf)
{
    static const char text[] = " ab'a 11\n\xc3\xa9\xff</s><t><|im_end|>\xe2\x96\x81 a";
    mx_tokenizer *tokenizer;
    mx_error error;
    mx_status status = mx_tokenizer_open(gguf, &tokenizer, &error);

    if (status != MX_OK) {
        expect_refusal(status, &error);
        return;
    }
    for (int flags = 0; flags < 4; flags++) {
        mx_tokens ids = {0};
        size_t n;
        char *back;

        expect(mx_tokenize(tokenizer, text, sizeof text - 1, flags, NULL, &ids, &error) == MX_OK);
        for (size_t i = 0; i < ids.count; i++) {
            expect(ids.ids[i] >= 0 && ids.ids[i] < mx_tokenizer_n_vocab(tokenizer));
            expect(mx_token_text(tokenizer, ids.ids[i], true, NULL, 0) <= mx_tokenizer_longest_piece(tokenizer));
        }
        expect(mx_detokenize(tokenizer, ids.ids, ids.count, true, &back, &n, &error) == MX_OK);
        free(back);
        mx_tokens_free(&ids);
    }
    use_template(gguf, tokenizer);
    mx_tokenizer_close(tokenizer);
}

/* A weight's bytes are those of a tensor, not what lies behind it. */
static void check_weight(const mx_model *model, const mx_weight *w)
{
    for (size_t i = 0; i < mx_gguf_n_tensors(model->gguf); i++) {
        const mx_gguf_tensor *t = mx_gguf_tensor_at(model->gguf, i);

        if (w->data >= t->data && w->data + (size_t)w->rows * w->row_bytes <= t->data + t->bytes)
            return;
    }
    expect(!"a weight within a tensor");
}

static void check_weights(const mx_model *model)
{
    check_weight(model, &model->embedding);
    check_weight(model, &model->output);
    for (int i = 0; i < model->hparams.n_layers; i++) {
        const mx_layer *layer = &model->layers[i];

        check_weight(model, &layer->q);
        check_weight(model, &layer->k);
        check_weight(model, &layer->v);
        check_weight(model, &layer->o);
        for (int e = 0; e < model->hparams.n_experts; e++) {
            check_weight(model, &layer->gate[e]);
            check_weight(model, &layer->up[e]);
            check_weight(model, &layer->down[e]);
        }
    }
}

/* A step of two tokens. Weights may be any numbers, so nothing is expected of the outcome. */
static void use_model(const mx_model *model)
{
    const mx_hparams *h = &model->hparams;
    mx_kv_shape shape = {h->n_layers, h->n_kv_heads, h->head_dim, MX_KV_F16};
    const int32_t token[] = {0, h->n_vocab - 1}, position[] = {0, 1}, sequence[] = {0, 0}, block[] = {0};
    const uint8_t token_class[] = {MX_CLASS_PROMPT, MX_CLASS_DECODE}, want[] = {MX_WANT_HIDDEN, MX_WANT_LOGITS};
    const int32_t *blocks[] = {block};
    mx_batch batch = {2, token, position, sequence, token_class, want, blocks};
    float *logits = malloc(sizeof *logits * (size_t)h->n_vocab), *hidden = malloc(sizeof *hidden * (size_t)h->dim);
    mx_threads *threads;
    mx_forward *forward;
    mx_kv_pool *pool;
    mx_error error;

    expect(mx_threads_open(1, &threads, &error) == MX_OK);
    expect(mx_kv_pool_open(&shape, 1, &pool, &error) == MX_OK);
    expect(mx_forward_open(model, &mx_kernels_scalar, threads, pool, 2, &forward, &error) == MX_OK);
    expect(mx_kv_pool_alloc(pool) == 0);
    expect(mx_forward_step(forward, &batch, logits, hidden, NULL, NULL) == MX_OK);
    mx_forward_close(forward);
    mx_kv_pool_close(pool);
    mx_threads_close(threads);
    free(logits);
    free(hidden);
}

/* MX_OK if the whole of it opened. */
static mx_status open_file(const uint8_t *data, size_t size, mx_error *error)
{
    static int fd = -1;
    char path[64];
    mx_gguf *gguf;
    mx_model *model;
    mx_status status;

    if (fd < 0)
        fd = memfd_create("model", MFD_CLOEXEC);
    expect(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    status = mx_gguf_open(path, &gguf, error);
    if (status == MX_OK) {
        read_all(gguf);
        use_tokenizer(gguf);
        mx_gguf_close(gguf);
        status = mx_model_open(path, &model, error);
    }
    if (status == MX_OK) {
        check_weights(model);
        use_model(model);
        mx_model_close(model);
    } else {
        expect_refusal(status, error);
    }
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mx_error error;

    open_file(data, size, &error);
    return 0;
}

/* What the mutator begins with must open, or the fuzzer would only see the first check. Further options go behind those of
 * the caller. */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static char *options[64], length[32], allocation[32];
    static uint8_t data[INPUT_MAX];
    mx_error error;
    int n = *argc < 60 ? *argc : 60;

    for (int which = 0; which < 7; which++) {
        size_t size = make_model(data, sizeof data, which, 0);

        if (size == 0 || open_file(data, size, &error) != MX_OK) {
            fprintf(stderr, "model %d: %s\n", which, size == 0 ? "too large" : error.text);
            abort();
        }
    }
    memcpy(options, *argv, sizeof *options * (size_t)n);
    snprintf(length, sizeof length, "-max_len=%d", INPUT_MAX);
    snprintf(allocation, sizeof allocation, "-malloc_limit_mb=%d", ALLOCATION_MAX_MB);
    options[n++] = length;
    options[n++] = allocation;
    *argc = n;
    *argv = options;
    return 0;
}
