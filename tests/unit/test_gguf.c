/*
 * test_gguf.c: what a GGUF file may be, and the message for each thing it may not be.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "error.h"
#include "gguf_bytes.h"
#include "model/gguf.h"

static char folder[] = "/tmp/mixtral-gguf-XXXXXX";
static char path[256];
static bytes b;

static const char *in_folder(const char *name)
{
    static char other[256];

    snprintf(other, sizeof other, "%s/%s", folder, name);
    return other;
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s", in_folder("model.gguf"));
    return 0;
}

static int remove_folder(void **state)
{
    char command[64];
    (void)state;

    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static mx_gguf *open_file(const char *file)
{
    mx_gguf *gguf;
    mx_error error;

    if (mx_gguf_open(file, &gguf, &error) != MX_OK)
        fail_msg("%s", error.text);
    return gguf;
}

static mx_gguf *open_bytes(void)
{
    write_bytes(path, b.data, b.n);
    return open_file(path);
}

static void refused(const char *file, mx_status status, const char *field, const char *text)
{
    mx_gguf *gguf = (mx_gguf *)&b;
    mx_error error;

    assert_int_equal(mx_gguf_open(file, &gguf, &error), status);
    assert_null(gguf);
    assert_int_equal(error.status, status);
    if (!strstr(error.text, text) || strcmp(error.field, field) != 0)
        fail_msg("expected [%s] %s\n     got [%s] %s", field, text, error.field, error.text);
}

static void bytes_refused(const char *field, const char *text)
{
    write_bytes(path, b.data, b.n);
    refused(path, MX_CORRUPT, field, text);
}

/* ---- What is read -------------------------------------------------------------------------------------------------- */

/* Every kind of value and two tensors. */
static void make_file(uint32_t version)
{
    static const uint8_t bools[] = {1, 0};
    double d = 0.1;
    float f = 1.5f;

    put_header(&b, version, 2, 15);
    put_key(&b, "u8", MX_GGUF_UINT8);
    put(&b, "\xff", 1);
    put_key(&b, "i8", MX_GGUF_INT8);
    put(&b, "\xff", 1);
    put_key(&b, "u16", MX_GGUF_UINT16);
    put(&b, "\xfe\xff", 2);
    put_key(&b, "i16", MX_GGUF_INT16);
    put(&b, "\xfe\xff", 2);
    put_key_u32(&b, "u32", UINT32_MAX);
    put_key(&b, "i32", MX_GGUF_INT32);
    put_u32(&b, UINT32_MAX);
    put_key(&b, "f32", MX_GGUF_FLOAT32);
    put(&b, &f, 4);
    put_key(&b, "yes", MX_GGUF_BOOL);
    put(&b, "\1", 1);
    put_key_text(&b, "text", "caf\xc3\xa9");
    put_key(&b, "u64", MX_GGUF_UINT64);
    put_u64(&b, UINT64_MAX);
    put_key(&b, "i64", MX_GGUF_INT64);
    put_u64(&b, (uint64_t)INT64_MIN);
    put_key(&b, "f64", MX_GGUF_FLOAT64);
    put(&b, &d, 8);
    put_array(&b, "words", MX_GGUF_STRING, 3);
    put_text(&b, "a");
    put_text(&b, "");
    put_text(&b, "ccc");
    put_array(&b, "scores", MX_GGUF_FLOAT32, 2);
    put(&b, &f, 4);
    put(&b, &f, 4);
    put_array(&b, "flags", MX_GGUF_BOOL, 2);
    put(&b, bools, 2);
    put_tensor(&b, "first", 32, 3, 2, 0); /* Q4_0, 54 bytes */
    put_tensor(&b, "second", 4, 2, 0, 64); /* F32, 32 bytes */
    put_data(&b, 32, 96);
}

static void values_are_read(void **state)
{
    mx_gguf_kind kind;
    mx_gguf *gguf;
    mx_str text;
    int64_t i = 0;
    double d = 0;
    bool yes = false, found = true;
    size_t n;
    (void)state;

    for (uint32_t version = 2; version <= 3; version++) {
        make_file(version);
        gguf = open_bytes();
        assert_int_equal(mx_gguf_version(gguf), version);
        assert_int_equal(mx_gguf_file_bytes(gguf), b.n);
        assert_int_equal(mx_gguf_n_keys(gguf), 15);
        text = mx_gguf_key_at(gguf, 4, &kind);
        assert_memory_equal(text.data, "u32", text.bytes);
        assert_int_equal(kind, MX_GGUF_UINT32);

        static const struct {
            const char *key;
            int64_t value;
        } ints[] = {{"u8", 255},     {"i8", -1},  {"u16", 65534}, {"i16", -2}, {"u32", UINT32_MAX},
                    {"i32", -1},     {"i64", INT64_MIN}};

        for (size_t k = 0; k < sizeof ints / sizeof ints[0]; k++) {
            assert_int_equal(mx_gguf_get_int(gguf, ints[k].key, INT64_MIN, INT64_MAX, &i, &found, NULL), MX_OK);
            assert_true(found && i == ints[k].value);
        }
        assert_int_equal(mx_gguf_get_float(gguf, "f32", &d, &found, NULL), MX_OK);
        assert_true(found && d == 1.5);
        assert_int_equal(mx_gguf_get_float(gguf, "f64", &d, NULL, NULL), MX_OK);
        assert_true(d == 0.1);
        assert_int_equal(mx_gguf_get_bool(gguf, "yes", &yes, NULL, NULL), MX_OK);
        assert_true(yes);
        assert_int_equal(mx_gguf_get_string(gguf, "text", &text, NULL, NULL), MX_OK);
        assert_int_equal(text.bytes, 5);
        assert_memory_equal(text.data, "caf\xc3\xa9", 5);

        assert_true(mx_gguf_array(gguf, "words", &kind, &n));
        assert_true(kind == MX_GGUF_STRING && n == 3);
        assert_int_equal(mx_gguf_array_string(gguf, "words", 1).bytes, 0);
        text = mx_gguf_array_string(gguf, "words", 2);
        assert_memory_equal(text.data, "ccc", text.bytes);
        assert_true(mx_gguf_array_number(gguf, "scores", 1) == 1.5);
        assert_true(mx_gguf_array_number(gguf, "flags", 0) == 1 && mx_gguf_array_number(gguf, "flags", 1) == 0);
        assert_false(mx_gguf_array(gguf, "u32", &kind, &n));
        assert_null(mx_gguf_list_find(gguf, "words", MX_GGUF_INT32));
        assert_int_equal(mx_gguf_list_count(mx_gguf_list_find(gguf, "words", MX_GGUF_STRING)), 3);
        mx_gguf_close(gguf);
    }
}

static void missing_keys_leave_the_value(void **state)
{
    int64_t i = 7;
    double d = 7;
    bool found = true, yes = true;
    mx_str text = {"seven", 5};
    mx_gguf *gguf;
    (void)state;

    make_file(3);
    gguf = open_bytes();
    assert_int_equal(mx_gguf_get_int(gguf, "nothing", 0, 1, &i, &found, NULL), MX_OK);
    assert_false(found);
    assert_int_equal(mx_gguf_get_float(gguf, "nothing", &d, NULL, NULL), MX_OK);
    assert_int_equal(mx_gguf_get_bool(gguf, "nothing", &yes, NULL, NULL), MX_OK);
    assert_int_equal(mx_gguf_get_string(gguf, "nothing", &text, NULL, NULL), MX_OK);
    assert_true(i == 7 && d == 7 && yes && text.bytes == 5);
    mx_gguf_close(gguf);
}

static void wrong_kinds_are_named(void **state)
{
    float nan = __builtin_nanf("");
    mx_error error;
    mx_gguf *gguf;
    mx_str text;
    int64_t i;
    double d;
    bool yes;
    (void)state;

    make_file(3);
    gguf = open_bytes();
    assert_int_equal(mx_gguf_get_int(gguf, "f32", 0, 1, &i, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key f32: expected an integer, got float32");
    assert_string_equal(error.field, "f32");
    assert_int_equal(mx_gguf_get_int(gguf, "yes", 0, 1, &i, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key yes: expected an integer, got bool");
    assert_int_equal(mx_gguf_get_int(gguf, "words", 0, 1, &i, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key words: expected an integer, got array");
    assert_int_equal(mx_gguf_get_float(gguf, "u32", &d, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key u32: expected a float, got uint32");
    assert_int_equal(mx_gguf_get_bool(gguf, "u8", &yes, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key u8: expected a bool, got uint8");
    assert_int_equal(mx_gguf_get_string(gguf, "u8", &text, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key u8: expected a string, got uint8");
    assert_int_equal(mx_gguf_get_int(gguf, "u8", 1, 254, &i, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key u8: expected 1 to 254, got 255");
    assert_int_equal(mx_gguf_get_int(gguf, "u64", 0, INT64_MAX, &i, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key u64: expected 0 to 9223372036854775807, got 18446744073709551615");
    mx_gguf_close(gguf);

    put_header(&b, 3, 0, 1);
    put_key(&b, "f", MX_GGUF_FLOAT32);
    put(&b, &nan, 4);
    gguf = open_bytes();
    assert_int_equal(mx_gguf_get_float(gguf, "f", &d, NULL, &error), MX_CORRUPT);
    assert_string_equal(error.text, "key f: expected a finite number, got nan");
    mx_gguf_close(gguf);
}

static void tensors_are_found(void **state)
{
    const mx_gguf_tensor *t;
    mx_gguf *gguf;
    (void)state;

    make_file(3);
    gguf = open_bytes();
    assert_int_equal(mx_gguf_n_tensors(gguf), 2);
    t = mx_gguf_tensor_find(gguf, "second");
    assert_ptr_equal(t, mx_gguf_tensor_at(gguf, 1));
    assert_int_equal(t->type, MX_TYPE_F32);
    assert_int_equal(t->n_dims, 2);
    assert_true(t->dims[0] == 4 && t->dims[1] == 2 && t->dims[2] == 1 && t->dims[3] == 1);
    assert_int_equal(t->bytes, 32);
    assert_int_equal(t->data[0], 65); /* of 1, 2, 3, ... */
    assert_int_equal(mx_gguf_tensor_find(gguf, "first")->bytes, 54);
    assert_null(mx_gguf_tensor_find(gguf, "third"));
    assert_null(mx_gguf_tensor_find(gguf, ""));
    mx_gguf_close(gguf);
    mx_gguf_close(NULL);
}

static void alignment_is_honoured(void **state)
{
    mx_gguf *gguf;
    (void)state;

    put_header(&b, 3, 1, 1);
    put_key_u32(&b, "general.alignment", 128);
    put_tensor(&b, "t", 4, 1, 0, 128);
    put_data(&b, 128, 144);
    gguf = open_bytes();
    assert_int_equal(mx_gguf_tensor_at(gguf, 0)->data[0], 129);
    assert_int_equal((uintptr_t)mx_gguf_tensor_at(gguf, 0)->data % 128, 0);
    mx_gguf_close(gguf);
}

static void identity_follows_the_content(void **state)
{
    uint8_t first[32], same[32], other[32];
    mx_gguf *gguf;
    (void)state;

    make_file(3);
    gguf = open_bytes();
    assert_int_equal(mx_gguf_identity(gguf, first, NULL), MX_OK);
    mx_gguf_close(gguf);
    write_bytes(in_folder("copy.gguf"), b.data, b.n);
    gguf = open_file(in_folder("copy.gguf"));
    assert_int_equal(mx_gguf_identity(gguf, same, NULL), MX_OK);
    mx_gguf_close(gguf);
    assert_memory_equal(first, same, 32);

    b.data[b.n - 1] ^= 1; /* a weight */
    gguf = open_bytes();
    assert_int_equal(mx_gguf_identity(gguf, other, NULL), MX_OK);
    mx_gguf_close(gguf);
    assert_memory_not_equal(first, other, 32);

    make_file(3);
    put(&b, "", 1); /* the size */
    gguf = open_bytes();
    assert_int_equal(mx_gguf_identity(gguf, other, NULL), MX_OK);
    mx_gguf_close(gguf);
    assert_memory_not_equal(first, other, 32);
}

/* ---- What is refused ----------------------------------------------------------------------------------------------- */

static void paths(void **state)
{
    (void)state;

    refused(in_folder("none.gguf"), MX_NOT_FOUND, "", "none.gguf: cannot open: No such file or directory");
    refused(folder, MX_INVALID, "", "expected a regular file, got a directory");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    refused(in_folder("fifo"), MX_INVALID, "", "fifo: expected a regular file, got something else"); /* and no waiting */
    write_bytes(in_folder("empty"), "", 0);
    refused(in_folder("empty"), MX_CORRUPT, "", "empty: the file is empty");
}

static void headers(void **state)
{
    (void)state;

    put_header(&b, 3, 0, 0);
    memcpy(b.data, "GGML", 4);
    bytes_refused("", "model.gguf: header: expected the bytes 47 47 55 46 (\"GGUF\"), got 47 47 4d 4c");
    put_header(&b, 1, 0, 0);
    bytes_refused("", "header: expected version 2 or 3, got 1");
    put_header(&b, 4, 0, 0);
    bytes_refused("", "header: expected version 2 or 3, got 4");
    put_header(&b, 0x03000000, 0, 0);
    bytes_refused("", "header: expected a little-endian file, got a big-endian one");
    put_header(&b, 3, 1, 0);
    bytes_refused("", "header: 1 tensors do not fit into a file of 24 bytes");
    put_header(&b, 3, UINT64_MAX, 0);
    bytes_refused("", "header: 18446744073709551615 tensors do not fit into a file of 24 bytes");
    put_header(&b, 3, 0, (uint64_t)1 << 40);
    bytes_refused("", "header: 1099511627776 key-values do not fit into a file of 24 bytes");
}

static void keys(void **state)
{
    (void)state;

    put_header(&b, 3, 0, 1);
    put_key(&b, "k", 13);
    put_u64(&b, 0);
    bytes_refused("k", "key k: expected a value type from 0 to 12, got 13");

    put_header(&b, 3, 0, 1);
    put_key(&b, "k", MX_GGUF_STRING);
    put_u64(&b, 1000);
    bytes_refused("k", "key k: expected 1000 bytes at offset 45, got 0 to the end of the file");

    put_header(&b, 3, 0, 1);
    put_u64(&b, UINT64_MAX);
    put_u64(&b, 0);
    bytes_refused("", "key-value 0: expected 18446744073709551615 bytes at offset 32, got 8 to the end of the file");

    put_header(&b, 3, 0, 1);
    put_key_u32(&b, "", 1);
    bytes_refused("", "key-value 0: expected a name of 1 to 65535 bytes, got 0");

    put_header(&b, 3, 0, 2);
    put_key_u32(&b, "k", 1);
    put_key_u32(&b, "k", 1);
    bytes_refused("k", "key k: is there twice");

    put_header(&b, 3, 0, 1);
    put_key(&b, "k", MX_GGUF_BOOL);
    put(&b, "\2", 1);
    bytes_refused("k", "key k: expected a bool to be 0 or 1, got 2");

    put_header(&b, 3, 0, 1);
    put_array(&b, "k", MX_GGUF_ARRAY, 1);
    put_u64(&b, 0);
    bytes_refused("k", "key k: arrays of arrays cannot be read");

    put_header(&b, 3, 0, 1);
    put_array(&b, "k", MX_GGUF_UINT32, 3);
    put_u64(&b, 0);
    bytes_refused("k", "key k: an array of 3 elements (uint32) is longer than the 8 bytes that are left");

    put_header(&b, 3, 0, 1);
    put_array(&b, "k", MX_GGUF_FLOAT64, UINT64_MAX / 8 + 1); /* its size is 2^64 */
    bytes_refused("k", "key k: an array of 2305843009213693952 elements (float64) is longer than the 0 bytes");

    put_header(&b, 3, 0, 1);
    put_array(&b, "k", MX_GGUF_STRING, 2);
    put_text(&b, "eight ch");
    bytes_refused("k", "key k: expected 8 bytes at offset 65, got 0 to the end of the file");
}

/* One tensor of these dimensions, 64 bytes of data */
static void make_tensor(uint32_t n_dims, uint64_t cols, uint64_t rows, uint32_t type, uint64_t offset)
{
    put_header(&b, 3, 1, 0);
    put_text(&b, "t");
    put_u32(&b, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 5; i++)
        put_u64(&b, i == 0 ? cols : i == 1 ? rows : 1);
    put_u32(&b, type);
    put_u64(&b, offset);
    put_data(&b, 32, 64);
}

static void tensors(void **state)
{
    (void)state;

    make_tensor(0, 1, 1, 0, 0);
    bytes_refused("t", "tensor t: expected 1 to 4 dimensions, got 0");
    make_tensor(5, 1, 1, 0, 0);
    bytes_refused("t", "tensor t: expected 1 to 4 dimensions, got 5");
    make_tensor(2, 4, 0, 0, 0);
    bytes_refused("t", "tensor t: dimension 1: expected 1 to 2^63 - 1, got 0");
    make_tensor(2, UINT64_MAX, 1, 0, 0);
    bytes_refused("t", "tensor t: dimension 0: expected 1 to 2^63 - 1, got 18446744073709551615");
    make_tensor(2, (uint64_t)1 << 40, (uint64_t)1 << 40, 0, 0);
    bytes_refused("t", "tensor t: the product of its dimensions exceeds 2^63 - 1");
    make_tensor(2, (uint64_t)1 << 62, 1, 0, 0);
    bytes_refused("t", "tensor t: its size exceeds 2^64 bytes");
    make_tensor(2, (uint64_t)1 << 31, (uint64_t)1 << 31, 0, 0);
    bytes_refused("t", "tensor t: its size exceeds 2^64 bytes");
    make_tensor(2, 48, 1, 2, 0);
    bytes_refused("t", "tensor t: expected rows of a multiple of 32 weights (Q4_0), got 48");
    make_tensor(2, 4, 1, 0, 16);
    bytes_refused("t", "tensor t: expected an offset that is a multiple of 32, got 16");
    make_tensor(2, 4, 4, 0, 32);
    bytes_refused("t", "tensor t: expected 64 bytes at offset 32 of the data, which ends at 64");
    make_tensor(2, 4, 1, 0, UINT64_MAX - 31);
    bytes_refused("t", "tensor t: expected 16 bytes at offset 18446744073709551584 of the data, which ends at 64");
    make_tensor(2, 4, 4, 0, 0);
    b.n--;
    bytes_refused("t", "tensor t: expected 64 bytes at offset 0 of the data, which ends at 63");
}

static void types(void **state)
{
    static const struct {
        uint32_t id;
        const char *name;
    } unbuilt[] = {{4, "Q4_2"}, {9, "Q8_1"}, {15, "Q8_K"}, {24, "I8"}, {34, "TQ1_0"}, {39, "MXFP4"}, {99, "unknown"}};
    char text[128];
    (void)state;

    for (size_t i = 0; i < sizeof unbuilt / sizeof unbuilt[0]; i++) {
        make_tensor(2, 4, 1, unbuilt[i].id, 0);
        write_bytes(path, b.data, b.n);
        snprintf(text, sizeof text, "tensor t: expected one of the 22 types that are built, got type %u (%s)", unbuilt[i].id,
                 unbuilt[i].name);
        refused(path, MX_INVALID, "t", text);
    }
}

static void tensor_tables(void **state)
{
    char name[200];
    (void)state;

    put_header(&b, 3, 2, 0);
    put_tensor(&b, "same", 4, 1, 0, 0);
    put_tensor(&b, "same", 4, 1, 0, 32);
    put_data(&b, 32, 64);
    bytes_refused("same", "model.gguf: tensor same: is there twice");

    put_header(&b, 3, 2, 0);
    put_tensor(&b, "late", 4, 1, 0, 32);
    put_tensor(&b, "early", 4, 3, 0, 0); /* 48 bytes */
    put_data(&b, 32, 64);
    bytes_refused("late", "tensor late: its bytes overlap those of tensor early");

    memset(name, 'n', 128);
    name[128] = '\0';
    put_header(&b, 3, 1, 0);
    put_tensor(&b, name, 4, 1, 0, 0);
    put_data(&b, 32, 64);
    bytes_refused("", "tensor 0: expected a name of 1 to 127 bytes, got 128");
}

static void alignments(void **state)
{
    (void)state;

    put_header(&b, 3, 0, 1);
    put_key_u32(&b, "general.alignment", 24);
    bytes_refused("general.alignment", "key general.alignment: expected a power of two, got 24");
    put_header(&b, 3, 0, 1);
    put_key_u32(&b, "general.alignment", 0);
    bytes_refused("general.alignment", "key general.alignment: expected 1 to 1048576, got 0");
    put_header(&b, 3, 0, 1);
    put_key_text(&b, "general.alignment", "32");
    bytes_refused("general.alignment", "key general.alignment: expected an integer, got string");

    put_header(&b, 3, 2, 1); /* floats that do not lie where floats must */
    put_key_u32(&b, "general.alignment", 1);
    put_tensor(&b, "q", 32, 1, 2, 0);
    put_tensor(&b, "f", 4, 1, 0, b.n % 2 ? 18 : 19);
    put_data(&b, 1, 64);
    write_bytes(path, b.data, b.n);
    refused(path, MX_CORRUPT, "f", "tensor f: expected F32 data at a multiple of 4 bytes, got offset");
}

static void control_characters_are_not_passed_on(void **state)
{
    (void)state;

    put_header(&b, 3, 0, 1);
    put_key(&b, "a\nb\x1b[31m\xff", 13);
    put_u64(&b, 0);
    bytes_refused("a?b?[31m?", "key a?b?[31m?: expected a value type");
}

/* Every prefix of a valid file is refused, and no single wrong byte does harm. */
static void damaged_files(void **state)
{
    mx_gguf *gguf;
    mx_error error;
    size_t n;
    (void)state;

    make_file(3);
    n = b.n;
    for (size_t cut = 0; cut < n; cut++) {
        write_bytes(path, b.data, cut);
        assert_int_equal(mx_gguf_open(path, &gguf, &error), MX_CORRUPT);
    }
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit++) {
            b.data[i] ^= (uint8_t)(1 << bit);
            write_bytes(path, b.data, n);
            if (mx_gguf_open(path, &gguf, &error) == MX_OK)
                mx_gguf_close(gguf);
            b.data[i] ^= (uint8_t)(1 << bit);
        }
}

/* ---- Split files --------------------------------------------------------------------------------------------------- */

static const char *part_name(int no, int count)
{
    static char name[64];

    snprintf(name, sizeof name, "split-%05d-of-%05d.gguf", no, count);
    return name;
}

/* Part `no` (from 1) says it is part says_no of says_count and of `total` tensors; it holds tensor t<no>. */
static void write_part(const char *name, int no, int says_no, int says_count, int total)
{
    char tensor[16];

    put_header(&b, 3, 1, no == 1 ? 4 : 3);
    put_key(&b, "split.no", MX_GGUF_UINT16);
    put(&b, &(uint16_t){(uint16_t)(says_no - 1)}, 2);
    put_key(&b, "split.count", MX_GGUF_UINT16);
    put(&b, &(uint16_t){(uint16_t)says_count}, 2);
    put_key(&b, "split.tensors.count", MX_GGUF_INT32);
    put_u32(&b, (uint32_t)total);
    if (no == 1)
        put_key_text(&b, "general.name", "parts");
    snprintf(tensor, sizeof tensor, "t%d", no);
    put_tensor(&b, tensor, 4, 1, 0, 0);
    put_data(&b, 32, 16);
    write_bytes(in_folder(name), b.data, b.n);
}

static void write_parts(void)
{
    for (int no = 1; no <= 3; no++)
        write_part(part_name(no, 3), no, no, 3, 3);
}

static void parts_are_one_model(void **state)
{
    mx_gguf *gguf;
    mx_str name;
    (void)state;

    write_parts();
    gguf = open_file(in_folder(part_name(1, 3)));
    assert_int_equal(mx_gguf_n_tensors(gguf), 3);
    assert_int_equal(mx_gguf_n_keys(gguf), 4);
    assert_non_null(mx_gguf_tensor_find(gguf, "t1"));
    assert_int_equal(mx_gguf_tensor_find(gguf, "t3")->data[15], 16);
    assert_int_equal(mx_gguf_get_string(gguf, "general.name", &name, NULL, NULL), MX_OK);
    assert_true(mx_gguf_file_bytes(gguf) > 3 * 100);
    mx_gguf_close(gguf);

    write_part("split-00001-of-00001.gguf", 1, 1, 1, 1);
    gguf = open_file(in_folder("split-00001-of-00001.gguf"));
    assert_int_equal(mx_gguf_n_tensors(gguf), 1);
    mx_gguf_close(gguf);
}

static void parts_that_do_not_fit(void **state)
{
    const char *first = strdup(in_folder(part_name(1, 3)));
    (void)state;

    write_parts();
    refused(in_folder(part_name(2, 3)), MX_INVALID, "split.no",
            "split-00002-of-00003.gguf: is part 2 of 3 of a split model: open split-00001-of-00003.gguf");

    unlink(in_folder(part_name(3, 3)));
    refused(first, MX_NOT_FOUND, "", "split-00003-of-00003.gguf: cannot open: No such file or directory");

    write_part(part_name(3, 3), 3, 1, 3, 3); /* a circle: the third says that it is the first */
    refused(first, MX_CORRUPT, "split.no", "split-00003-of-00003.gguf: key split.no: expected 2, got 0");

    write_part(part_name(3, 3), 3, 3, 4, 3);
    refused(first, MX_CORRUPT, "split.count", "split-00003-of-00003.gguf: key split.count: expected 3, got 4");

    write_part(part_name(3, 3), 2, 3, 3, 3);
    refused(first, MX_CORRUPT, "t2", "tensor t2: is there twice");

    write_parts();
    write_part(part_name(1, 3), 1, 1, 3, 4);
    refused(first, MX_CORRUPT, "split.tensors.count",
            "split-00001-of-00003.gguf: key split.tensors.count: expected 3 as in its parts, got 4");

    write_part("alone.gguf", 1, 1, 3, 3);
    refused(in_folder("alone.gguf"), MX_INVALID, "split.count",
            "alone.gguf: is the first of 3 parts of a split model: expected a name that ends in -00001-of-00003.gguf");
    write_part("second.gguf", 2, 2, 3, 3);
    refused(in_folder("second.gguf"), MX_INVALID, "split.no",
            "second.gguf: is part 2 of 3 of a split model: open the first part");

    write_parts();
    put_header(&b, 3, 0, 0); /* a part that is no part */
    write_bytes(in_folder(part_name(2, 3)), b.data, b.n);
    refused(first, MX_CORRUPT, "split.no", "split-00002-of-00003.gguf: key split.no: expected 1, got 0");
    free((void *)(uintptr_t)first);
}

/* ---- mx_fail ------------------------------------------------------------------------------------------------------- */

static void errors_are_cut_between_characters(void **state)
{
    mx_error error;
    char text[1200];
    (void)state;

    for (size_t lead = 0; lead < 4; lead++) { /* four-byte characters meet the end in every way */
        memset(text, 'x', lead);
        for (size_t i = lead; i + 4 < sizeof text; i += 4)
            memcpy(text + i, "\xf0\x9f\x98\x80", 5);
        assert_int_equal(mx_fail(&error, MX_IO, text, "%s", text), MX_IO);
        assert_true(strlen(error.text) > sizeof error.text - 5 && strlen(error.text) % 4 == lead);
        assert_true(strlen(error.field) > sizeof error.field - 5 && strlen(error.field) % 4 == lead);
        assert_null(strchr(error.text, '?'));
    }
    mx_fail(&error, MX_IO, NULL, "%s", "\xc3(\xed\xa0\x80\xc2\x9b""7\x7f");
    assert_string_equal(error.text, "?(?????7?");
    assert_string_equal(error.field, "");
    mx_fail(&error, MX_IO, error.field, "again: %s", error.text);
    assert_string_equal(error.text, "again: ?(?????7?");
    assert_int_equal(mx_fail(NULL, MX_BUSY, NULL, "nobody reads %d", 1), MX_BUSY);
    assert_string_equal(mx_status_name(MX_NOT_FOUND), "not_found");
    assert_string_equal(mx_status_name(MX_INTERNAL), "internal");
    assert_string_equal(mx_status_name((mx_status)99), "internal");
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(values_are_read),
        cmocka_unit_test(missing_keys_leave_the_value),
        cmocka_unit_test(wrong_kinds_are_named),
        cmocka_unit_test(tensors_are_found),
        cmocka_unit_test(alignment_is_honoured),
        cmocka_unit_test(identity_follows_the_content),
        cmocka_unit_test(paths),
        cmocka_unit_test(headers),
        cmocka_unit_test(keys),
        cmocka_unit_test(tensors),
        cmocka_unit_test(types),
        cmocka_unit_test(tensor_tables),
        cmocka_unit_test(alignments),
        cmocka_unit_test(control_characters_are_not_passed_on),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(parts_are_one_model),
        cmocka_unit_test(parts_that_do_not_fit),
        cmocka_unit_test(errors_are_cut_between_characters),
    };

    return cmocka_run_group_tests(cases, make_folder, remove_folder);
}
