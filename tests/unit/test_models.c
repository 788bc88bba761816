/*
 * test_models.c: several models in one engine: opened beside each other, also while requests run, each with its own pool.
 */
#include "../../core/server/served.h"
#include "serving.h"

static void add(mx_engine *engine, const char *name)
{
    const mx_engine_options options = {.threads = 1, .name = name, .context = 4096};
    mx_error error;

    if (mx_engine_add(engine, model_path, &options, &error) != MX_OK)
        fail_msg("%s", error.text);
}

static void models_are_added_while_requests_run(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine), *other = open_client(engine);
    uint32_t id = request(client, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":3000,\"ignore_eos\":true}}");
    const char *on_second = "{\"op\":\"complete\",\"prompt\":\"some words that are longer than a block of thirty-two tokens, so "
                            "that there is a prefix to be found\",\"options\":{\"model\":\"second\",\"max_tokens\":9,\"seed\":1}}";
    json_t *cold, *warm, *stats;
    (void)state;

    expect_error(other, on_second, MX_NOT_FOUND, "\"second\" is not open here; this engine has \"tiny\"");
    add(engine, "second");
    cold = result_of(other, on_second);
    warm = result_of(other, on_second);
    assert_string_equal(json_string_value(json_object_get(cold, "model")), "second");
    assert_string_equal(json_string_value(json_object_get(cold, "text")), json_string_value(json_object_get(warm, "text")));
    assert_int_equal(json_integer_value(json_object_get(cold, "cached_tokens")), 0);
    assert_true(json_integer_value(json_object_get(warm, "cached_tokens")) > 0);
    assert_int_equal(last_event(client, id, NULL).type, MX_EVENT_RESULT);
    stats = result_of(other, "{\"op\":\"stats\",\"options\":{\"model\":\"tiny\"}}"); /* nothing of the second is there */
    assert_int_equal(json_integer_value(json_object_get(stats, "cached_tokens")), 0);
    assert_int_equal(json_integer_value(json_object_get(stats, "requests_done")), 1);
    json_decref(cold);
    json_decref(warm);
    json_decref(stats);
    mx_client_close(client);
    mx_client_close(other);
    mx_engine_close(engine);
}

static void what_cannot_be_added(void **state)
{
    const mx_engine_options same = {.name = "tiny"}, bad = {.name = "bad", .kernels = "abacus"}, full = {.name = "full"};
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    mx_error error;
    char name[16];
    (void)state;

    assert_int_equal(mx_engine_add(engine, model_path, &same, &error), MX_INVALID);
    assert_string_equal(error.text, "option name: a model named tiny is open already");
    assert_int_equal(mx_engine_add(engine, model_path, &bad, &error), MX_INVALID);
    assert_string_equal(error.field, "kernels");
    assert_int_equal(mx_engine_add(engine, "/nowhere.gguf", NULL, &error), MX_NOT_FOUND);
    for (int i = 1; i < MX_SERVED_MAX; i++) {
        snprintf(name, sizeof name, "m%d", i);
        add(engine, name);
    }
    assert_int_equal(mx_engine_add(engine, model_path, &full, &error), MX_BUSY);
    assert_string_equal(error.text, "16 models are open, and no more can be");
    json_decref(result_of(client, "{\"op\":\"tokenize\",\"text\":\"a\",\"options\":{\"model\":\"m15\"}}"));
    expect_error(client, "{\"op\":\"stats\",\"options\":{\"model\":\"full\"}}", MX_NOT_FOUND, "\"m1\"");
    mx_client_close(client);
    mx_engine_close(engine);
}

/* Requests of every model end with an error when the engine is closed. */
static void closing_ends_every_models_requests(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *clients[3];
    static const char *const names[] = {"tiny", "b", "c"};
    char text[256];
    (void)state;

    add(engine, "b");
    add(engine, "c");
    for (int i = 0; i < 3; i++) {
        clients[i] = open_client(engine);
        snprintf(text, sizeof text, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"model\":\"%s\",\"max_tokens\":100000,"
                 "\"ignore_eos\":true,\"n\":4}}", names[i]);
        request(clients[i], text);
    }
    while (figure(clients[0], "requests_running") < 3)
        pause_ms(2);
    mx_engine_close(engine);
    for (int i = 0; i < 3; i++) {
        mx_event event;
        mx_error error;
        mx_status status;

        do
            status = next_event(clients[i], &event, &error);
        while (status == MX_OK && event.type == MX_EVENT_PIECE);
        assert_int_equal(status == MX_OK ? event.error.status : error.status, MX_UNAVAILABLE);
        mx_client_close(clients[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_are_added_while_requests_run),
        cmocka_unit_test(what_cannot_be_added),
        cmocka_unit_test(closing_ends_every_models_requests),
    };

    return cmocka_run_group_tests(tests, write_model, remove_model);
}
