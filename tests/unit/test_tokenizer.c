/*
 * test_tokenizer.c: text to ids and back, in both families of vocabularies. (What only the byte-level one has is in
 * test_tokenizer_bpe.c.)
 *
 * Most vocabularies are made up for a test; the real ones of Mixtral and SmolLM2 are measured against tests/golden/tokenizer.
 */
#include "tokenizing.h"

#include <time.h>

#define SECONDS_MAX 20 /* for a megabyte: one would do, but not with sanitizers on a machine that is busy */
#ifdef __SANITIZE_THREAD__ /* its memmem marks all of the text as read, at every call */
#define MEGABYTE ((size_t)1 << 17)
#else
#define MEGABYTE ((size_t)1 << 20)
#endif

/* ---- SentencePiece -------------------------------------------------------------------------------------------------- */

/* Letters, a space, and the pieces that are given, of descending scores. */
static void begin_words(const char *const *pieces, size_t n)
{
    begin_spm(&v);
    for (size_t i = 0; i < n; i++)
        add_piece(&v, pieces[i], T_NORMAL, -1 - (float)i);
    add_piece(&v, SP, T_NORMAL, -100);
    add_piece(&v, "a", T_NORMAL, -100);
    add_piece(&v, "b", T_NORMAL, -100);
    add_piece(&v, "c", T_NORMAL, -100);
}

static void the_best_score_goes_first(void **state)
{
    const char *const first[] = {"bc", "ab"}, *const second[] = {"ab", "bc", "abc", SP "abc", "cc"};
    (void)state;

    begin_words(first, 2);
    open_tokenizer();
    expect("abc", 0, SP " a bc");
    expect("ab", 0, SP " ab");
    begin_words(second, 5);
    open_tokenizer();
    expect("abc", 0, SP "abc");
    expect("bc", 0, SP " bc");
    expect("ccc", 0, SP " cc c"); /* the leftmost of equals */
    expect("ccccc", 0, SP " cc cc c");
    expect("", 0, "");
}

static void what_is_no_piece_becomes_bytes(void **state)
{
    const char *const pieces[] = {"ab"};
    (void)state;

    begin_words(pieces, 1);
    open_tokenizer();
    expect("\xc3\xa9", 0, SP " <0xC3> <0xA9>");
    expect("a\tb\n", 0, SP " a <0x09> b <0x0A>");
    expect("a  b", 0, SP " a " SP " " SP " b");
    expect_bytes("a\0b", 3, 0, SP " a <0x00> b");
    expect("a\xff" "b", 0, SP " a <0xFF> b"); /* nothing merges across it */
    expect("\xe2\x82", 0, SP " <0xE2> <0x82>");
    expect("\xe2\x82" "ab", 0, SP " <0xE2> <0x82> ab");
    expect("\xc0\xaf\xed\xa0\x80", 0, SP " <0xC0> <0xAF> <0xED> <0xA0> <0x80>");
    expect("d", 0, SP " <0x64>");

    memset(&v, 0, sizeof v); /* no byte pieces */
    v.model = "llama";
    add_piece(&v, "<unk>", T_UNKNOWN, 0);
    add_piece(&v, "<s>", T_CONTROL, 0);
    add_piece(&v, "</s>", T_CONTROL, 0);
    add_piece(&v, SP, T_NORMAL, 0);
    add_piece(&v, "a", T_NORMAL, 0);
    open_tokenizer();
    expect("a\xc3\xa9" "a", 0, SP " a <unk> a");
}

/* Control, unused, unknown and byte pieces, though pieces lead to each of them. */
static void some_pieces_no_text_makes(void **state)
{
    static const char *const parts[] = {"<", "/", "s", ">", "0", "x", "4", "1", "u", "n", "k", "q", "z"};
    static const struct {
        const char *text;
        uint32_t type;
    } pieces[] = {{"</", T_NORMAL},  {"s>", T_NORMAL},  {"<0", T_NORMAL},  {"<0x", T_NORMAL}, {"<0x4", T_NORMAL},
                  {"1>", T_NORMAL},  {"<u", T_NORMAL},  {"k>", T_NORMAL},  {"<un", T_NORMAL}, {"qz", T_UNUSED},
                  {"zq", T_NORMAL},  {"qq", T_CONTROL}, {"zz", T_UNKNOWN}};
    (void)state;

    begin_spm(&v);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        add_piece(&v, parts[i], T_NORMAL, -50);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
        add_piece(&v, pieces[i].text, pieces[i].type, -1);
    set_bool(&v, "tokenizer.ggml.add_space_prefix", false);
    open_tokenizer();
    expect("</s>", 0, "</ s>");
    expect("<0x41>", 0, "<0x4 1>");
    expect("<unk>", 0, "<un k>");
    expect("qz", 0, "q z");
    expect("zqz", 0, "zq z");
    expect("qqzz", 0, "q q z z");
    expect("</s><unk>qq", MX_TOKENIZE_SPECIAL, "</s> <unk> qq");
}

static void special_pieces_in_a_text(void **state)
{
    const char *const pieces[] = {"ab"};
    (void)state;

    begin_words(pieces, 1);
    add_piece(&v, "<t>", T_USER_DEFINED, 0);
    add_piece(&v, "<t><t>b", T_USER_DEFINED, 0);
    add_piece(&v, "b<", T_CONTROL, 0);
    set_bool(&v, "tokenizer.ggml.add_space_prefix", false);
    open_tokenizer();
    expect("a</s>ab", 0, "a <0x3C> <0x2F> <0x73> <0x3E> ab");
    expect("a</s>ab", MX_TOKENIZE_SPECIAL, "a </s> ab");
    expect("</s></s><s>", MX_TOKENIZE_SPECIAL, "</s> </s> <s>");
    expect("a<t>b", 0, "a <t> b"); /* user-defined ones always */
    expect("<t><t><t>", 0, "<t> <t> <t>");
    expect("<t><t>b", 0, "<t><t>b"); /* the longest first */
    expect("<t><t><t>b", 0, "<t> <t><t>b");
    expect("ab<t>", 0, "ab <t>");
    expect("ab<t>", MX_TOKENIZE_SPECIAL, "ab <t>"); /* "b<" is shorter */
    expect("a</s", MX_TOKENIZE_SPECIAL, "a <0x3C> <0x2F> <0x73>");
}

static void the_space_before_a_text(void **state)
{
    (void)state;

    begin_words(NULL, 0);
    add_piece(&v, "<t>", T_USER_DEFINED, 0);
    open_tokenizer();
    expect("a", 0, SP " a");
    expect(" a", 0, SP " " SP " a");
    expect("a", MX_TOKENIZE_NO_PREFIX, "a");
    expect("</s>a", MX_TOKENIZE_SPECIAL, "</s> " SP " a");
    expect("</s> a", MX_TOKENIZE_SPECIAL, "</s> " SP " a"); /* as the templates write it */
    expect("</s>  a", MX_TOKENIZE_SPECIAL, "</s> " SP " " SP " a");
    expect("<t> a", 0, "<t> " SP " " SP " a");
    expect("<t>a", MX_TOKENIZE_NO_PREFIX, "<t> " SP " a");

    begin_words(NULL, 0);
    set_bool(&v, "tokenizer.ggml.add_space_prefix", false);
    open_tokenizer();
    expect("a", 0, "a");
    expect("</s>a", MX_TOKENIZE_SPECIAL, "</s> a");
}

/* ---- Merging, measured by doing it the slow way ---------------------------------------------------------------------- */

typedef struct {
    const char *start;
    size_t bytes;
} part;

/* The priority of left and right together, the lower the better; -1: no piece. Pieces lie in v from `first` on, best first. */
static int rank_of(size_t first, part left, part right)
{
    for (size_t i = first; i < v.n_pieces; i++)
        if (v.pieces[i].bytes == left.bytes + right.bytes && memcmp(v.pieces[i].text, left.start, v.pieces[i].bytes) == 0)
            return (int)(i - first);
    return -1;
}

static void merge_slowly(const char *text, size_t first, char *out)
{
    part parts[64];
    int n = 0;

    for (; text[n]; n++)
        parts[n] = (part){text + n, 1};
    for (;;) {
        int best = -1, at = -1;

        for (int i = 0; i + 1 < n; i++) {
            int rank = rank_of(first, parts[i], parts[i + 1]);

            if (rank >= 0 && (at < 0 || rank < best)) {
                best = rank;
                at = i;
            }
        }
        if (at < 0)
            break;
        parts[at].bytes += parts[at + 1].bytes;
        memmove(&parts[at + 1], &parts[at + 2], (size_t)(n - at - 2) * sizeof parts[0]);
        n--;
    }
    *out = '\0';
    for (int i = 0; i < n; i++)
        sprintf(out + strlen(out), "%s%.*s", i ? "|" : "", (int)parts[i].bytes, parts[i].start);
}

static void merging_is_that_of_the_slow_way(void **state)
{
    static char pieces[40][8];
    char text[49], words[128];
    size_t first;
    (void)state;

    for (int round = 0; round < 40; round++) {
        begin_spm(&v);
        set_bool(&v, "tokenizer.ggml.add_space_prefix", false);
        for (int i = 0; i < 3; i++)
            add_piece(&v, i == 0 ? "a" : i == 1 ? "b" : "c", T_NORMAL, -1000);
        first = v.n_pieces;
        for (int i = 0; i < 40; i++) {
            unsigned n = 2 + rnd(4);

            for (unsigned k = 0; k < n; k++)
                pieces[i][k] = (char)('a' + rnd(3));
            pieces[i][n] = '\0';
            if (rank_of(first, (part){pieces[i], n}, (part){"", 0}) < 0)
                add_piece(&v, pieces[i], T_NORMAL, -1 - (float)i);
        }
        open_tokenizer();
        for (int t = 0; t < 50; t++) {
            unsigned n = 1 + rnd(48);

            for (unsigned k = 0; k < n; k++)
                text[k] = (char)('a' + rnd(3));
            text[n] = '\0';
            merge_slowly(text, first, words);
            expect_words(text, words);
        }
    }
}

/* ---- Settings -------------------------------------------------------------------------------------------------------- */

static void what_is_added_to_a_text(void **state)
{
    static const struct {
        const char *pre; /* NULL: SentencePiece */
        bool has_bos;
        int bos_key, eos_key; /* -1: no key */
        bool bos, eos;
    } cases[] = {
        {NULL, false, -1, -1, true, false},       {NULL, false, 0, -1, false, false},   {NULL, false, 1, 1, true, true},
        {NULL, false, -1, 0, true, false},        {"llama-bpe", true, -1, -1, true, false},
        {"llama-bpe", false, -1, -1, false, false}, {"llama-bpe", true, 0, -1, false, false},
        {"gpt-2", true, -1, -1, false, false},    {"gpt-2", true, 1, -1, true, false},  {"gpt-2", true, -1, 1, false, true},
        {"smollm", true, -1, -1, false, false},   {"qwen2", true, -1, -1, false, false}, {"default", true, 1, 1, true, true},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i].pre)
            begin_bpe(&v, cases[i].pre);
        else
            begin_spm(&v);
        if (cases[i].has_bos)
            set_number(&v, "tokenizer.ggml.bos_token_id", 7);
        if (cases[i].pre)
            set_number(&v, "tokenizer.ggml.eos_token_id", 8);
        if (cases[i].bos_key >= 0)
            set_bool(&v, "tokenizer.ggml.add_bos_token", cases[i].bos_key);
        if (cases[i].eos_key >= 0)
            set_bool(&v, "tokenizer.ggml.add_eos_token", cases[i].eos_key);
        open_tokenizer();
        assert_int_equal(mx_tokenizer_add_bos(tokenizer), cases[i].bos);
        assert_int_equal(mx_tokenizer_add_eos(tokenizer), cases[i].eos);
        assert_int_equal(mx_tokenizer_bos(tokenizer), cases[i].has_bos ? 7 : cases[i].pre ? -1 : 1);
        assert_int_equal(mx_tokenizer_eos(tokenizer), cases[i].pre ? 8 : 2);
        assert_int_equal(mx_tokenizer_is_spm(tokenizer), cases[i].pre == NULL);
        assert_int_equal(mx_tokenizer_n_vocab(tokenizer), v.n_pieces);
    }
}

static void what_ends_a_turn(void **state)
{
    static const char *const found[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>"};
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    (void)state;

    for (uint32_t type = T_NORMAL; type <= T_USER_DEFINED; type++) { /* files differ in the type that they give to them */
        begin_bpe(&v, "smollm");
        for (int i = 0; i < 4; i++)
            add_piece(&v, found[i], type, 0);
        add_piece(&v, "<|im_start|>", type, 0);
        for (int i = 0; i < 3; i++)
            set_number(&v, keys[i], (uint32_t)(40 + i));
        open_tokenizer();
        for (int id = 0; id < (int)v.n_pieces; id++)
            assert_int_equal(mx_token_ends_turn(tokenizer, id), (id >= 40 && id <= 42) || (id >= 256 && id < 260));
        for (int i = 0; i < 5; i++)
            assert_true(mx_token_is_control(tokenizer, 256 + i));
        assert_int_equal(mx_token_find(tokenizer, "<|eot_id|>"), 257);
        assert_int_equal(mx_token_find(tokenizer, "<|nothing|>"), -1);
    }
    begin_spm(&v);
    open_tokenizer();
    for (int id = 0; id < (int)v.n_pieces; id++)
        assert_int_equal(mx_token_ends_turn(tokenizer, id), id == 2);
    assert_false(mx_token_ends_turn(tokenizer, -1));
}

/* ---- What is refused ------------------------------------------------------------------------------------------------- */

static void names_that_are_not_known(void **state)
{
    (void)state;

    begin_spm(&v);
    v.model = "bert";
    refused(MX_INVALID, "tokenizer.ggml.model", "key tokenizer.ggml.model: expected llama or gpt2, got bert");
    v.model = NULL;
    refused(MX_CORRUPT, "tokenizer.ggml.model", "expected llama or gpt2, got nothing");
    begin_bpe(&v, "deepseek-llm");
    refused(MX_INVALID, "tokenizer.ggml.pre",
            "key tokenizer.ggml.pre: expected default, gpt-2, llama-bpe, smollm or qwen2, got deepseek-llm");
    begin_bpe(&v, "gpt-22");
    refused(MX_INVALID, "tokenizer.ggml.pre", "got gpt-22");
}

static void vocabularies_that_make_no_sense(void **state)
{
    static const char *const merges[] = {"a", "a ", " a"};
    (void)state;

    begin_spm(&v);
    v.n_types--;
    refused(MX_CORRUPT, "tokenizer.ggml.token_type", "expected 259 types, one a piece, got 258");
    begin_spm(&v);
    v.n_scores--;
    refused(MX_CORRUPT, "tokenizer.ggml.scores", "expected 259 scores, one a piece, got 258");
    begin_spm(&v);
    v.pieces[70].score = __builtin_nanf("");
    refused(MX_CORRUPT, "tokenizer.ggml.scores", "expected a finite score, got nan for piece 70");
    begin_spm(&v);
    v.pieces[70].type = 7;
    refused(MX_CORRUPT, "tokenizer.ggml.token_type", "expected 0 to 6, got 7 for piece 70");
    begin_spm(&v);
    add_piece(&v, "<0xg0>", T_BYTE, 0);
    refused(MX_CORRUPT, "tokenizer.ggml.tokens", "expected <0xNN> for piece 259, whose type is byte, got <0xg0>");
    begin_spm(&v);
    set_number(&v, "tokenizer.ggml.eos_token_id", 259);
    refused(MX_CORRUPT, "tokenizer.ggml.eos_token_id", "expected 0 to 258, got 259");
    memset(&v, 0, sizeof v);
    v.model = "llama";
    refused(MX_CORRUPT, "tokenizer.ggml.tokens", "expected 1 to");
    begin_bpe(&v, "gpt-2");
    set_bool(&v, "tokenizer.ggml.add_bos_token", true);
    refused(MX_CORRUPT, "tokenizer.ggml.bos_token_id", "expected one, as tokenizer.ggml.add_bos_token is true, got none");
    for (int i = 0; i < 3; i++) {
        begin_bpe(&v, "gpt-2");
        v.merges = &merges[i];
        v.n_merges = 1;
        refused(MX_CORRUPT, "tokenizer.ggml.merges", "expected two pieces and a space, got");
    }
}

/* ---- Long texts ------------------------------------------------------------------------------------------------------ */

static const char *const powers[] = {"aa", "aaaa", "aaaaaaaa"};

/* SentencePiece where `pre` is NULL, or byte-level with that pre-tokenizer. */
static void begin_powers(const char *pre)
{
    static const char *const merges[] = {"a a", "aa aa", "aaaa aaaa"};

    if (!pre) {
        begin_words(powers, 3);
    } else {
        begin_bpe(&v, pre);
        for (int i = 0; i < 3; i++)
            add_piece(&v, powers[i], T_NORMAL, 0);
        v.merges = merges;
        v.n_merges = 3;
    }
    open_tokenizer();
}

static void a_megabyte_takes_a_moment(void **state)
{
    static const char *const of[] = {"a", "b", " ", "\n", "1", "!", "'", "\xff", "\xc3\xa9", "</s>", "a "};
    char *text = malloc(MEGABYTE);
    (void)state;

    for (int spm = 0; spm < 2; spm++) {
        begin_powers(spm ? NULL : "llama-bpe");
        for (size_t i = 0; i < sizeof of / sizeof of[0]; i++) {
            size_t n = strlen(of[i]);
            clock_t begin = clock();
            mx_tokens ids;

            for (size_t at = 0; at < MEGABYTE; at++)
                text[at] = of[i][at % n];
            ids = tokenise(text, MEGABYTE, MX_TOKENIZE_SPECIAL);
            assert_true(ids.count > 0);
            if (i == 0)
                assert_int_equal(ids.count, MEGABYTE / 8 + (size_t)spm);
            mx_tokens_free(&ids);
            if ((clock() - begin) / CLOCKS_PER_SEC >= SECONDS_MAX)
                fail_msg("a megabyte of [%s] took %ld s", of[i], (long)((clock() - begin) / CLOCKS_PER_SEC));
        }
    }
    free(text);
}

static void cancelling(void **state)
{
    static const char *const of[] = {"a", "a ", "1", "</s>"}; /* one word, many words, ... */
    atomic_bool cancelled = true;
    char *text = malloc(MEGABYTE);
    mx_tokens ids = {0};
    mx_error error;
    (void)state;

    for (int spm = 0; spm < 2; spm++) {
        begin_powers(spm ? NULL : "llama-bpe");
        for (int i = 0; i < 4; i++) {
            size_t n = strlen(of[i]);

            for (size_t at = 0; at < MEGABYTE; at++)
                text[at] = of[i][at % n];
            assert_int_equal(mx_tokenize(tokenizer, text, MEGABYTE, 0, &cancelled, &ids, &error), MX_CANCELLED);
            assert_int_equal(error.status, MX_CANCELLED);
            assert_true(ids.count < MEGABYTE / 8);
            mx_tokens_free(&ids);
        }
        assert_int_equal(mx_tokenize(tokenizer, text, SIZE_MAX, 0, &cancelled, &ids, &error), MX_TOO_LARGE);
    }
    free(text);
}

/* ---- Back to text ---------------------------------------------------------------------------------------------------- */

static size_t random_character(char *out)
{
    static const unsigned ranges[] = {0x80, 0x80, 0x250, 0x3100, 0x10ffff};
    unsigned c = rnd(ranges[rnd(5)]);

    if (c >= 0xd800 && c < 0xe000)
        c = ' ';
    if (c < 0x80)
        return (size_t)sprintf(out, "%c", (int)c);
    if (c < 0x800)
        return (size_t)sprintf(out, "%c%c", (int)(0xc0 | c >> 6), (int)(0x80 | (c & 63)));
    if (c < 0x10000)
        return (size_t)sprintf(out, "%c%c%c", (int)(0xe0 | c >> 12), (int)(0x80 | (c >> 6 & 63)), (int)(0x80 | (c & 63)));
    return (size_t)sprintf(out, "%c%c%c%c", (int)(0xf0 | c >> 18), (int)(0x80 | (c >> 12 & 63)),
                           (int)(0x80 | (c >> 6 & 63)), (int)(0x80 | (c & 63)));
}

static void texts_come_back(void **state)
{
    static const char *const names[] = {"default", "gpt-2", "llama-bpe", "smollm", "qwen2", NULL};
    static const char mixed[] = "  a  b </s> <0x41>\n";
    char text[256];
    (void)state;

    for (int i = 0; i < 6; i++) {
        begin_powers(names[i]);
        expect_round_trip("", 0);
        expect_round_trip(" ", 1);
        expect_round_trip(mixed, strlen(mixed));
        for (int t = 0; t < 200; t++) {
            size_t n = 0;

            for (unsigned k = rnd(60); k > 0; k--)
                n += random_character(text + n);
            if (names[i] || !memmem(text, n, SP, 3)) /* SentencePiece takes it for a space */
                expect_round_trip(text, n);
        }
    }
}

static void ids_to_text(void **state)
{
    static const int32_t end_a[] = {2, 3 + 'a', 3 + 0xff, 0}, bad[] = {5, 259}, negative[] = {-1};
    char out[4] = "....";
    mx_error error;
    size_t n;
    char *text;
    (void)state;

    begin_spm(&v);
    int hello = add_piece(&v, SP "he" SP "llo", T_NORMAL, 0), unused = add_piece(&v, "gone", T_UNUSED, 0);
    int word = add_piece(&v, "<t>", T_USER_DEFINED, 0), space = add_piece(&v, SP, T_NORMAL, 0);
    open_tokenizer();
    assert_int_equal(mx_token_text(tokenizer, hello, false, NULL, 0), 7);
    assert_int_equal(mx_token_text(tokenizer, hello, false, out, 3), 7);
    assert_memory_equal(out, " he.", 4);
    assert_int_equal(mx_token_text(tokenizer, word, false, out, 4), 3);
    assert_memory_equal(out, "<t>.", 4);
    assert_int_equal(mx_token_text(tokenizer, 2, false, out, 4), 0);
    assert_int_equal(mx_token_text(tokenizer, 2, true, out, 4), 4);
    assert_memory_equal(out, "</s>", 4);
    assert_int_equal(mx_token_text(tokenizer, unused, false, out, 4), 0);
    assert_int_equal(mx_tokenizer_longest_piece(tokenizer), 11);

    assert_int_equal(mx_detokenize(tokenizer, end_a, 4, false, &text, &n, &error), MX_OK);
    assert_int_equal(n, 2);
    assert_string_equal(text, "a\xff");
    free(text);
    assert_int_equal(mx_detokenize(tokenizer, end_a, 4, true, &text, &n, &error), MX_OK);
    assert_string_equal(text, "</s>a\xff<unk>");
    free(text);
    assert_int_equal(mx_detokenize(tokenizer, (int32_t[]){hello, hello}, 2, false, &text, &n, &error), MX_OK);
    assert_string_equal(text, "he llo he llo"); /* the first space is the vocabulary's */
    free(text);
    assert_int_equal(mx_detokenize(tokenizer, (int32_t[]){1, space, space, space, 3 + 'a'}, 5, false, &text, &n, &error),
                     MX_OK);
    assert_string_equal(text, "  a"); /* and no other one */
    free(text);
    begin_spm(&v);
    open_tokenizer();
    assert_int_equal(mx_detokenize(tokenizer, bad, 2, false, &text, &n, &error), MX_INVALID);
    assert_string_equal(error.text, "tokens: expected ids from 0 to 258, got 259");
    assert_null(text);
    assert_int_equal(mx_detokenize(tokenizer, negative, 1, false, &text, &n, &error), MX_INVALID);
    assert_string_equal(error.text, "tokens: expected ids from 0 to 258, got -1");
    mx_tokenizer_close(NULL);
}

/* ---- The real ones --------------------------------------------------------------------------------------------------- */

static size_t unescape(char *line)
{
    size_t n = 0;

    for (char *c = line; *c && *c != '\n'; c++) {
        bool escaped = *c == '\\';

        c += escaped;
        line[n++] = !escaped ? *c : *c == 'n' ? '\n' : *c == 't' ? '\t' : *c == 'r' ? '\r' : '\\';
    }
    line[n] = '\0';
    return n;
}

/* Pairs of lines, a text and its ids: see tests/golden/tokenizer/README.md */
static void expect_golden(const char *model, const char *path)
{
    static char line[1 << 16];
    FILE *file = fopen(path, "r");
    mx_error error;
    int n_lines = 0;

    close_tokenizer();
    if (mx_gguf_open(model, &gguf, &error) != MX_OK || mx_tokenizer_open(gguf, &tokenizer, &error) != MX_OK)
        fail_msg("%s", error.text);
    assert_non_null(file);
    for (; fgets(line, sizeof line, file); n_lines++) {
        size_t n = unescape(line);
        mx_tokens ids = tokenise(line, n, 0);

        expect_round_trip(line, n);
        for (size_t i = 0; i < ids.count; i++) {
            int id = -1;

            assert_int_equal(fscanf(file, "%d", &id), 1);
            if (id != ids.ids[i])
                fail_msg("[%s]: expected %d as number %zu, got %d", line, id, i, ids.ids[i]);
        }
        assert_string_equal(fgets(line, sizeof line, file), "\n");
        mx_tokens_free(&ids);
    }
    fclose(file);
    assert_true(n_lines > 10);
}

static void mixtral(void **state)
{
    const char *model = getenv("MX_TEST_MIXTRAL_VOCAB");
    (void)state;

    if (!model)
        skip();
    expect_golden(model, "tests/golden/tokenizer/mixtral-spm.txt");
}

static void smollm(void **state)
{
    const char *model = getenv("MX_TEST_MODEL");
    (void)state;

    if (!model)
        skip();
    expect_golden(model, "tests/golden/tokenizer/smollm-bpe.txt");
}

static int close_last(void **state)
{
    (void)state;
    close_tokenizer();
    return 0;
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(the_best_score_goes_first),
        cmocka_unit_test(what_is_no_piece_becomes_bytes),
        cmocka_unit_test(some_pieces_no_text_makes),
        cmocka_unit_test(special_pieces_in_a_text),
        cmocka_unit_test(the_space_before_a_text),
        cmocka_unit_test(merging_is_that_of_the_slow_way),
        cmocka_unit_test(what_is_added_to_a_text),
        cmocka_unit_test(what_ends_a_turn),
        cmocka_unit_test(names_that_are_not_known),
        cmocka_unit_test(vocabularies_that_make_no_sense),
        cmocka_unit_test(a_megabyte_takes_a_moment),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(texts_come_back),
        cmocka_unit_test(ids_to_text),
        cmocka_unit_test(mixtral),
        cmocka_unit_test(smollm),
    };

    return cmocka_run_group_tests(cases, NULL, close_last);
}
