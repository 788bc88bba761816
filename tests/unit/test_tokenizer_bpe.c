/*
 * test_tokenizer_bpe.c: byte-level BPE: where the pre-tokenizers cut, ranks, whole words, bytes.
 */
#include "tokenizing.h"

/*
 * Every text of up to three of the six characters below is a piece that merges lead to: then a word of a pre-tokenizer is a
 * token, and what is expected of it can be read. (And "'S" and "'Ss".)
 */
static void begin_cuts(const char *pre)
{
    static const char *const parts[] = {"s", "1", "'", "!", "\xc4\xa0", "\xc4\x8a"}; /* the last are space and newline */
    static char two[36][8], three[216][8], merges[36 + 2 * 216 + 2][16];
    static const char *list[36 + 2 * 216 + 2];
    size_t n = 0;

    begin_bpe(&v, pre);
    for (int i = 0; i < 36; i++) {
        snprintf(two[i], 8, "%s%s", parts[i / 6], parts[i % 6]);
        add_piece(&v, two[i], T_NORMAL, 0);
        snprintf(merges[n++], 16, "%s %s", parts[i / 6], parts[i % 6]);
    }
    for (int i = 0; i < 216; i++) {
        snprintf(three[i], 8, "%s%s", two[i / 6], parts[i % 6]);
        add_piece(&v, three[i], T_NORMAL, 0);
        snprintf(merges[n++], 16, "%s %s", two[i / 6], parts[i % 6]);
        snprintf(merges[n++], 16, "%s %s", parts[i / 36], two[i % 36]);
    }
    add_piece(&v, "'S", T_NORMAL, 0);
    add_piece(&v, "'Ss", T_NORMAL, 0);
    strcpy(merges[n++], "' S");
    strcpy(merges[n++], "'S s");
    for (size_t i = 0; i < n; i++)
        list[i] = merges[i];
    v.merges = list;
    v.n_merges = n;
}

static void pre_tokenizers(void **state)
{
    static const char *const names[] = {"default", "gpt-2", "llama-bpe", "smollm", "qwen2", NULL, ""};
    static const struct {
        const char *text, *words[5]; /* by default, gpt-2, llama-bpe, smollm, qwen2 */
    } cases[] = {
        {"s", {"s", "s", "s", "s", "s"}},
        {" s s", {" s| s", " s| s", " s| s", " s| s", " s| s"}},
        {"s1", {"s|1", "s|1", "s|1", "s|1", "s|1"}},
        {"s's", {"s|'|s", "s|'s", "s|'s", "s|'s", "s|'s"}},
        {"s'S", {"s|'|S", "s|'|S", "s|'S", "s|'|S", "s|'S"}},
        {"'Ss", {"'|S|s", "'|S|s", "'S|s", "'|S|s", "'S|s"}},
        {"'ss", {"'|ss", "'s|s", "'s|s", "'s|s", "'s|s"}},
        {"!s", {"!|s", "!|s", "!s", "!|s", "!s"}},
        {"s!s", {"s|!|s", "s|!|s", "s|!s", "s|!|s", "s|!s"}},
        {" !", {" |!", " !", " !", " !", " !"}},
        {" 1", {" |1", " 1", " |1", " |1", " |1"}},
        {"  1", {" | |1", " | 1", " | |1", "  |1", " | |1"}},
        {"  s", {" | s", " | s", " | s", " | s", " | s"}},
        {"s  ", {"s|  ", "s|  ", "s|  ", "s|  ", "s|  "}},
        {"11", {"11", "11", "11", "1|1", "1|1"}},
        {"11111", {"111|11", NULL, "111|11", "1|1|1|1|1", "1|1|1|1|1"}},
        {"s\n\ns", {"s|\n|\n|s", "s|\n|\n|s", "s|\n\n|s", "s|\n|\n|s", "s|\n\n|s"}},
        {" \ns", {" |\n|s", " |\n|s", " \n|s", " |\n|s", " \n|s"}},
        {"!\n", {"!|\n", "!|\n", "!\n", "!|\n", "!\n"}},
        {"s \n s", {"s| \n| s", "s| \n| s", "s| \n| s", "s| \n| s", "s| \n| s"}},
    };
    (void)state;

    for (int i = 0; i < 7; i++) {
        begin_cuts(names[i]);
        open_tokenizer();
        for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
            const char *words = cases[c].words[i < 5 ? i : 0]; /* without a name: default */

            if (words)
                expect_words(cases[c].text, words);
        }
    }
}

/* What the expressions take for white space is not joined to a sign before it. */
static void white_space(void **state)
{
    static const struct {
        const char *character, *spelled[3]; /* its bytes' characters */
        bool white;
    } cases[] = {
        {"\xc2\xa0", {"\xc3\x82", "\xc5\x82"}, true},                 /* U+00A0 */
        {"\xc2\xa1", {"\xc3\x82", "\xc2\xa1"}, false},                /* U+00A1 */
        {"\xe3\x80\x80", {"\xc3\xa3", "\xc4\xa2", "\xc4\xa2"}, true},  /* U+3000 */
        {"\xe2\x80\x8b", {"\xc3\xa2", "\xc4\xa2", "\xc4\xad"}, false}, /* U+200B */
        {"\xe1\xa0\x8e", {"\xc3\xa1", "\xc5\x82", "\xc4\xb0"}, false}, /* U+180E: no more since Unicode 6.3 */
    };
    char pieces[4][16], merges[3][32], text[8], words[8];
    const char *list[3] = {merges[0], merges[1], merges[2]};
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t n = 0;

        begin_bpe(&v, "gpt-2");
        strcpy(pieces[0], cases[i].spelled[0]);
        for (; n < 2 && cases[i].spelled[n + 1]; n++) {
            sprintf(merges[n], "%s %s", pieces[n], cases[i].spelled[n + 1]);
            sprintf(pieces[n + 1], "%s%s", pieces[n], cases[i].spelled[n + 1]);
            add_piece(&v, pieces[n + 1], T_NORMAL, 0);
        }
        sprintf(merges[n], "! %s", pieces[n]);
        sprintf(pieces[3], "!%s", pieces[n]);
        add_piece(&v, pieces[3], T_NORMAL, 0);
        v.merges = list;
        v.n_merges = n + 1;
        open_tokenizer();
        sprintf(text, "!%s", cases[i].character);
        sprintf(words, "!%s%s", cases[i].white ? "|" : "", cases[i].character);
        expect_words(text, words);
    }
}

static void the_lowest_rank_goes_first(void **state)
{
    static const char *const merges[] = {"b c", "a b", "a bc", "c c"}, *const twice[] = {"a b", "b c", "a b"};
    (void)state;

    begin_bpe(&v, "gpt-2");
    add_piece(&v, "ab", T_NORMAL, 0);
    add_piece(&v, "bc", T_NORMAL, 0);
    add_piece(&v, "cc", T_NORMAL, 0);
    v.merges = merges;
    v.n_merges = 2;
    open_tokenizer();
    expect("abc", 0, "a bc");
    expect("aab", 0, "a ab");
    v.merges = twice; /* the first rank counts */
    v.n_merges = 3;
    open_tokenizer();
    expect("abc", 0, "ab c");
    add_piece(&v, "abc", T_NORMAL, 0);
    v.merges = merges;
    v.n_merges = 4;
    open_tokenizer();
    expect("abc", 0, "abc");
    expect("ccc", 0, "cc c");
    expect("", 0, "");
}

static void whole_words_of_llama(void **state)
{
    static const struct {
        const char *pre, *pieces;
    } cases[] = {{"llama-bpe", "xyz \xc4\xa0xyz x y z q"}, {"gpt-2", "x y z \xc4\xa0 x y z x y z q"}};
    (void)state;

    for (int i = 0; i < 2; i++) {
        begin_bpe(&v, cases[i].pre);
        add_piece(&v, "xyz", T_NORMAL, 0); /* no merges lead there */
        add_piece(&v, "\xc4\xa0xyz", T_NORMAL, 0);
        add_piece(&v, "xyzq", T_CONTROL, 0);
        open_tokenizer();
        expect("xyz", 0, i == 0 ? "xyz" : "x y z");
        expect("xyz xyz", 0, i == 0 ? "xyz \xc4\xa0xyz" : "x y z \xc4\xa0 x y z");
        expect("xyzq", 0, "x y z q");
    }
}

/* Neither by merging nor as a whole word, whatever type the file gives to a piece that marks turns or ends texts. */
static void merges_make_no_control_piece(void **state)
{
    static const char *const merges[] = {"e n", "en d", "< |", "| >", "<| im_end", "i m", "im _", "im_ end", "<|im_end |>",
                                         "end end"};
    static const char *const pieces[] = {"en", "end", "<|", "|>", "im", "im_", "im_end", "<|im_end"};
    static const char *const pre[] = {"gpt-2", "llama-bpe"};
    (void)state;

    for (int i = 0; i < 2; i++) {
        begin_bpe(&v, pre[i]);
        for (size_t p = 0; p < sizeof pieces / sizeof pieces[0]; p++)
            add_piece(&v, pieces[p], T_NORMAL, 0);
        int im_end = add_piece(&v, "<|im_end|>", T_NORMAL, 0);
        int eos = add_piece(&v, "endend", T_NORMAL, 0);
        set_number(&v, "tokenizer.ggml.eos_token_id", (uint32_t)eos);
        v.merges = merges;
        v.n_merges = sizeof merges / sizeof merges[0];
        open_tokenizer();
        assert_true(mx_token_is_control(tokenizer, im_end) && mx_token_is_control(tokenizer, eos));
        expect("<|im_end|>", 0, "<| im _ end |>");
        expect("<|im_end|>", MX_TOKENIZE_SPECIAL, "<|im_end|>");
        expect("endend", 0, "end end");
    }
}

static void bpe_bytes(void **state)
{
    (void)state;

    begin_bpe(&v, "gpt-2");
    open_tokenizer();
    expect_words("\xc3\xa9", "\xc3|\xa9");
    expect_words("a\xff" "b", "a|\xef|\xbf|\xbd|b"); /* U+FFFD: the expressions need UTF-8 */
    expect_words("\xe2\x82", "\xef|\xbf|\xbd|\xef|\xbf|\xbd");
    expect_words("\xed\xa0\x80", "\xef|\xbf|\xbd|\xef|\xbf|\xbd|\xef|\xbf|\xbd");
    expect_bytes("a\0b", 3, 0, "a \xc4\x80 b");
    expect(" a", 0, "\xc4\xa0 a");

    set_bool(&v, "tokenizer.ggml.add_space_prefix", true);
    open_tokenizer();
    expect("a", 0, "\xc4\xa0 a");
    expect("a", MX_TOKENIZE_NO_PREFIX, "a");
    expect_round_trip("a", 1);

    begin_bpe(&v, NULL);
    v.pieces['b'].type = T_UNUSED; /* a byte without a piece is left out */
    open_tokenizer();
    expect("abc", 0, "a c");
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
        cmocka_unit_test(pre_tokenizers),
        cmocka_unit_test(white_space),
        cmocka_unit_test(the_lowest_rank_goes_first),
        cmocka_unit_test(whole_words_of_llama),
        cmocka_unit_test(merges_make_no_control_piece),
        cmocka_unit_test(bpe_bytes),
    };

    return cmocka_run_group_tests(cases, NULL, close_last);
}
