/*
 * test_sessions.c: conversations saved to files and loaded from them: what comes back, and everything that is refused.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include "serving.h"

#define KEY "0123456789abcdef0123456789ABCDEF"
#define CONVERSATION "\"prompt\":\"A document that is long enough for several blocks of the pool: it goes on and on, line after line, " \
                     "and says little, so that nobody would want to read it twice.\""
#define SAVE "{\"op\":\"session_save\"," CONVERSATION "}"
#define LOAD "{\"op\":\"session_load\"}"
#define CHAT "{\"op\":\"chat\"," CONVERSATION ",\"options\":{\"max_tokens\":20,\"temperature\":0,\"ignore_eos\":true}}"

typedef struct {
    int session, key;
} files;

/* A file without a name. */
static int new_file(const char *contents, size_t bytes)
{
    char path[] = "/tmp/mixtral_session.XXXXXX";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(write(fd, contents, bytes), bytes);
    return fd;
}

static files new_files(void)
{
    return (files){new_file("", 0), new_file(KEY, 32)};
}

static void close_files(files f)
{
    close(f.session);
    close(f.key);
}

static int64_t size_of(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return st.st_size;
}

static uint32_t request_with(mx_client *client, const char *json, files f)
{
    const int fds[] = {f.session, f.key};
    mx_error error;
    uint32_t id;

    if (mx_client_request_with_files(client, json, fds, 2, &id, &error) != MX_OK)
        fail_msg("%s: %s", json, error.text);
    return id;
}

static json_t *result_with(mx_client *client, const char *json, files f)
{
    mx_event event = last_event(client, request_with(client, json, f), NULL);

    if (event.type != MX_EVENT_RESULT)
        fail_msg("%s: %s", json, event.error.text);
    return json_loads(event.json, 0, NULL);
}

static void refused_with(mx_client *client, const char *json, files f, mx_status status, const char *expected)
{
    mx_event event = last_event(client, request_with(client, json, f), NULL);

    assert_int_equal(event.type, MX_EVENT_ERROR);
    if (event.error.status != status || !strstr(event.error.text, expected))
        fail_msg("%s: expected \"%s\", got %s \"%s\"", json, expected, mx_status_name(event.error.status), event.error.text);
}

static int64_t number(const json_t *json, const char *name)
{
    assert_true(json_is_integer(json_object_get(json, name)));
    return json_integer_value(json_object_get(json, name));
}

static mx_engine *open_engine_of(const char *kv_type, int64_t pool)
{
    const mx_engine_options options = {.threads = 1, .name = "tiny", .kv_type = kv_type, .context = 4096, .kv_pool_bytes = pool};

    return open_engine_with(&options);
}

static int descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* ---- There and back ---- */

static void a_conversation_comes_back(void **state)
{
    static const char *const types[] = {"f16", "bf16", "q8_0"};
    (void)state;

    for (size_t t = 0; t < 3; t++) {
        mx_engine *first = open_engine_of(types[t], 0), *second = open_engine_of(types[t], 0);
        mx_client *a = open_client(first), *b = open_client(second);
        files f = new_files();
        json_t *saved, *loaded, *cold, *warm;
        int64_t tokens;

        cold = result_of(a, CHAT);
        saved = result_with(a, SAVE, f);
        tokens = number(saved, "tokens");
        assert_true(tokens >= 96 && tokens % 32 == 0);
        assert_true(number(saved, "cached_tokens") >= tokens - 1); /* the chat had computed it */
        assert_int_equal(number(saved, "bytes"), size_of(f.session));
        assert_int_equal(lseek(f.session, 0, SEEK_CUR), 0); /* the host's offset is its own */
        loaded = result_with(b, LOAD, f);
        assert_int_equal(number(loaded, "tokens"), tokens);
        assert_int_equal(number(loaded, "cached_tokens"), 0);
        assert_int_equal(number(loaded, "bytes"), size_of(f.session));
        assert_int_equal(figure(b, "prompt_tokens"), 0); /* nothing was computed */
        assert_int_equal(figure(b, "steps"), 0);
        assert_int_equal(figure(b, "kv_blocks_cached"), tokens / 32);
        assert_int_equal(figure(b, "kv_blocks_used"), 0);
        warm = result_of(b, CHAT);
        assert_int_equal(number(warm, "cached_tokens"), tokens == number(warm, "prompt_tokens") ? tokens - 1 : tokens);
        assert_string_equal(json_string_value(json_object_get(warm, "text")), json_string_value(json_object_get(cold, "text")));
        json_decref(loaded);
        loaded = result_with(b, LOAD, f); /* again: all is known */
        assert_true(number(loaded, "cached_tokens") >= tokens - 1);
        wait_until_idle(a);
        wait_until_idle(b);
        json_decref(saved);
        json_decref(loaded);
        json_decref(cold);
        json_decref(warm);
        close_files(f);
        mx_client_close(a);
        mx_client_close(b);
        mx_engine_close(first);
        mx_engine_close(second);
    }
}

/* A save computes what is not there yet; a load belongs to the tenant that it names. */
static void saves_compute_and_loads_have_a_tenant(void **state)
{
    mx_engine *engine = open_engine_of(NULL, 0);
    mx_client *client = open_client(engine);
    files f = new_files();
    json_t *saved = result_with(client, SAVE, f), *json;
    (void)state;

    assert_int_equal(number(saved, "cached_tokens"), 0);
    json = result_of(client, "{\"op\":\"chat\"," CONVERSATION ",\"options\":{\"max_tokens\":1,\"tenant\":\"b\"}}");
    assert_int_equal(number(json, "cached_tokens"), 0);
    json_decref(json);
    json_decref(result_with(client, "{\"op\":\"session_load\",\"options\":{\"tenant\":\"c\"}}", f));
    json = result_of(client, "{\"op\":\"chat\"," CONVERSATION ",\"options\":{\"max_tokens\":1,\"tenant\":\"c\"}}");
    assert_true(number(json, "cached_tokens") >= number(saved, "tokens") - 1);
    json_decref(json);
    json_decref(saved);
    close_files(f);
    mx_client_close(client);
    mx_engine_close(engine);
}

/* ---- What is refused ---- */

static void every_changed_byte_is_refused(void **state)
{
    mx_engine *engine = open_engine_of(NULL, 0), *other = open_engine_of(NULL, 0);
    mx_client *client = open_client(engine), *reader = open_client(other);
    files f = new_files();
    json_t *saved = result_with(client, SAVE, f);
    int64_t bytes = number(saved, "bytes");
    char byte, changed;
    (void)state;

    json_decref(saved);
    for (int64_t at = 0; at < bytes; at += at < 400 ? 7 : bytes / 60) {
        assert_int_equal(pread(f.session, &byte, 1, at), 1);
        changed = (char)(byte ^ (1 << at % 8));
        assert_int_equal(pwrite(f.session, &changed, 1, at), 1);
        refused_with(reader, LOAD, f, MX_CORRUPT, "session file: ");
        assert_int_equal(pwrite(f.session, &byte, 1, at), 1);
    }
    assert_int_equal(ftruncate(f.session, bytes - 1), 0);
    refused_with(reader, LOAD, f, MX_CORRUPT, "got ");
    assert_int_equal(ftruncate(f.session, 20), 0);
    refused_with(reader, LOAD, f, MX_CORRUPT, "it ends at byte 20");
    assert_int_equal(ftruncate(f.session, 0), 0);
    refused_with(reader, LOAD, f, MX_CORRUPT, "it ends at byte 0");
    wait_until_idle(reader);
    assert_int_equal(figure(reader, "kv_blocks_cached"), 0); /* nothing of what was refused is to be found */
    json_decref(result_with(client, SAVE, f));
    assert_int_equal(pwrite(f.session, "x", 1, size_of(f.session)), 1);
    refused_with(reader, LOAD, f, MX_CORRUPT, "session file: expected");
    close_files(f);
    mx_client_close(client);
    mx_client_close(reader);
    mx_engine_close(engine);
    mx_engine_close(other);
}

static void keys_and_models_must_fit(void **state)
{
    mx_engine *engine = open_engine_of(NULL, 0), *coarse = open_engine_of("q8_0", 0), *small = open_engine_of(NULL, 1);
    mx_client *client = open_client(engine), *of_coarse = open_client(coarse), *of_small = open_client(small);
    files f = new_files(), wrong = {f.session, new_file("0123456789abcdef0123456789ABCDEG", 32)};
    files shorter = {f.session, new_file(KEY, 31)}, no_key = {f.session, f.session}, pipes;
    int ends[2];
    (void)state;

    json_decref(result_with(client, SAVE, f));
    refused_with(client, LOAD, wrong, MX_CORRUPT, "its key is another one, or its bytes were changed");
    refused_with(client, LOAD, shorter, MX_INVALID, "key file: expected 32 bytes, got 31");
    refused_with(client, LOAD, no_key, MX_INVALID, "key file: expected 32 bytes, got ");
    refused_with(of_coarse, LOAD, f, MX_INVALID, "it holds keys and values as f16, this engine as q8_0");
    refused_with(of_small, LOAD, f, MX_TOO_LARGE, "do not fit in the KV pool of 32 tokens");
    assert_int_equal(pipe(ends), 0);
    pipes = (files){ends[0], f.key};
    refused_with(client, LOAD, pipes, MX_INVALID, "session file: expected a regular file");
    pipes = (files){ends[1], f.key};
    refused_with(client, SAVE, pipes, MX_INVALID, "session file: expected a regular file");
    wait_until_idle(client);
    close(ends[0]);
    close(ends[1]);
    close(wrong.key);
    close(shorter.key);
    close_files(f);
    mx_client_close(client);
    mx_client_close(of_coarse);
    mx_client_close(of_small);
    mx_engine_close(engine);
    mx_engine_close(coarse);
    mx_engine_close(small);
}

static void another_model_is_refused_by_name(void **state)
{
    mx_synth_options o = mx_synth_defaults();
    mx_engine_options options = {.threads = 1, .name = "other", .context = 512};
    char path[96];
    mx_engine *engine = open_engine_of(NULL, 0);
    mx_client *client = open_client(engine);
    files f = new_files();
    mx_error error;
    (void)state;

    o.layers = 1;
    o.dim = DIM;
    o.ff = 32;
    o.heads = 1;
    o.kv_heads = 1;
    o.experts = 2;
    o.experts_used = 1;
    o.vocab_size = 320;
    o.context = 512;
    o.seed = 99;
    o.type = MX_TYPE_Q8_0;
    snprintf(path, sizeof path, "%s/other.gguf", folder);
    assert_int_equal(mx_synth_model(path, &o, &error), MX_OK);
    assert_int_equal(mx_engine_add(engine, path, &options, &error), MX_OK);
    json_decref(result_with(client, SAVE, f));
    refused_with(client, "{\"op\":\"session_load\",\"options\":{\"model\":\"other\"}}", f, MX_INVALID,
                 "session file: it is of the model synthetic (identity ");
    json_decref(result_with(client, "{\"op\":\"session_save\"," CONVERSATION ",\"options\":{\"model\":\"other\"}}", f));
    refused_with(client, LOAD, f, MX_INVALID, "session file: it is of the model synthetic (identity ");
    json_decref(result_with(client, "{\"op\":\"session_load\",\"options\":{\"model\":\"other\"}}", f));
    unlink(path);
    close_files(f);
    mx_client_close(client);
    mx_engine_close(engine);
}

static void requests_that_are_wrong(void **state)
{
    mx_engine *engine = open_engine_of(NULL, 0);
    mx_client *client = open_client(engine);
    files f = new_files(), read_only;
    char path[64];
    mx_error error;
    uint32_t id;
    const int bad[] = {-1, -1}, three[] = {0, 1, 2};
    int before;
    (void)state;

    snprintf(path, sizeof path, "/proc/self/fd/%d", f.session);
    read_only = (files){open(path, O_RDONLY), f.key};
    json_decref(result_of(client, "{\"op\":\"tokenize\",\"text\":\"a\"}"));
    before = descriptors();
    expect_error(client, SAVE, MX_INVALID, "session_save: expected 2 files to come with it, got 0");
    expect_error(client, LOAD, MX_INVALID, "session_load: expected 2 files to come with it, got 0");
    refused_with(client, "{\"op\":\"stats\"}", f, MX_INVALID, "stats: expected 0 files to come with it, got 2");
    refused_with(client, "{\"op\":\"session_load\",\"prompt\":\"x\"}", f, MX_INVALID, "prompt: session_load has no such field");
    refused_with(client, "{\"op\":\"session_save\"}", f, MX_INVALID, "session_save: expected either prompt or messages");
    refused_with(client, "{\"op\":\"session_save\",\"prompt\":\"x\",\"options\":{\"max_tokens\":1}}", f, MX_INVALID,
                 "option max_tokens: session_save has no use for it");
    refused_with(client, "{\"op\":\"session_save\",\"prompt\":\"\"}", f, MX_INVALID, "expected a conversation of at least 32 tokens");
    refused_with(client, SAVE, read_only, MX_IO, "session file: cannot be written");
    assert_int_equal(mx_client_request_with_files(client, SAVE, bad, 2, &id, &error), MX_INVALID);
    assert_int_equal(mx_client_request_with_files(client, SAVE, three, 3, &id, &error), MX_INVALID);
    json_decref(result_with(client, SAVE, f));
    wait_until_idle(client);
    for (double until = now_ms() + PATIENCE_MS; descriptors() != before; pause_ms(2)) /* the engine closes its copies */
        assert_true(now_ms() < until);
    close(read_only.session);
    close_files(f);
    mx_client_close(client);
    mx_engine_close(engine);
}

/* ---- Beside others, and to the end ---- */

/* Saves and loads while streams fill a small pool: everything ends, with the same texts. */
static void sessions_share_a_small_pool(void **state)
{
    mx_engine *engine = open_engine_of(NULL, 0), *crowded;
    mx_client *client = open_client(engine), *clients[8];
    uint32_t ids[8];
    files f = new_files(), g = new_files();
    json_t *alone = result_of(client, CHAT), *facts = result_of(client, "{\"op\":\"stats\"}");
    int64_t block = number(facts, "kv_bytes") / number(facts, "kv_blocks_total");
    (void)state;

    json_decref(result_with(client, SAVE, f));
    crowded = open_engine_of(NULL, 14 * block);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 8; i++) {
            clients[i] = open_client(crowded);
            ids[i] = i % 4 == 1 ? request_with(clients[i], LOAD, f) : i % 4 == 3 ? request_with(clients[i], SAVE, g) :
                                                                                     request(clients[i], CHAT);
            if (i % 4 == 3)
                pause_ms(3);
        }
        for (int i = 0; i < 8; i++) {
            mx_event event = last_event(clients[i], ids[i], NULL);

            if (event.type != MX_EVENT_RESULT)
                fail_msg("%d: %s", i, event.error.text);
            if (i % 2 == 0) {
                json_t *json = json_loads(event.json, 0, NULL);

                assert_string_equal(json_string_value(json_object_get(json, "text")),
                                    json_string_value(json_object_get(alone, "text")));
                json_decref(json);
            }
            mx_client_close(clients[i]);
        }
    }
    json_decref(alone);
    json_decref(facts);
    mx_client_close(client);
    client = open_client(crowded);
    wait_until_idle(client);
    mx_client_close(client);
    close_files(f);
    close_files(g);
    mx_engine_close(engine);
    mx_engine_close(crowded);
}

/* Clients that leave, cancel or run out of time; and the engine itself, at any moment. */
static void sessions_end_in_the_middle(void **state)
{
    (void)state;

    for (int i = 0; i < 40; i++) {
        mx_engine *engine = open_engine_of(NULL, 0);
        mx_client *client = open_client(engine), *other = open_client(engine), *third = open_client(engine);
        files f = new_files(), g = new_files(), h = new_files();
        mx_error error;
        uint32_t id = request_with(client, SAVE, f), limited;

        limited = request_with(third, "{\"op\":\"session_save\"," CONVERSATION ",\"options\":{\"timeout_ms\":1}}", h);
        if (i % 4 == 0)
            mx_client_cancel(client, id, &error);
        if (i % 4 == 1) {
            mx_client_close(client);
            client = NULL;
        }
        request_with(other, SAVE, g);
        if (i % 2 == 0)
            usleep((useconds_t)(i * 150));
        if (i % 4 == 2) {
            last_event(client, id, NULL);
            request_with(client, LOAD, f);
        }
        if (i % 3 == 0) {
            mx_client_close(other);
            other = NULL;
            last_event(third, limited, NULL);
            if (client && i % 4 != 2)
                last_event(client, id, NULL);
            for (double until = now_ms() + PATIENCE_MS; figure(third, "kv_blocks_used") > 0; pause_ms(1))
                assert_true(now_ms() < until);
        }
        mx_engine_close(engine);
        mx_client_close(client);
        mx_client_close(other);
        mx_client_close(third);
        close_files(f);
        close_files(g);
        close_files(h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_conversation_comes_back),
        cmocka_unit_test(saves_compute_and_loads_have_a_tenant),
        cmocka_unit_test(every_changed_byte_is_refused),
        cmocka_unit_test(keys_and_models_must_fit),
        cmocka_unit_test(another_model_is_refused_by_name),
        cmocka_unit_test(requests_that_are_wrong),
        cmocka_unit_test(sessions_share_a_small_pool),
        cmocka_unit_test(sessions_end_in_the_middle),
    };

    return cmocka_run_group_tests(tests, write_model, remove_model);
}
