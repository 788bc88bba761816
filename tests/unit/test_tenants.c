/*
 * test_tenants.c: what a tenant may use: the accounts with a clock of our own, and an engine that keeps to them.
 */
#include <sodium.h>
#include "../../core/engine/tenants.h"
#include "serving.h"

#define MS INT64_C(1000000)
#define MINUTE (60000 * MS)

/* ---- Accounts ---- */

static mx_tenants *open_tenants(void)
{
    mx_tenants *tenants;
    mx_error error;

    assert_true(sodium_init() >= 0);
    assert_int_equal(mx_tenants_open(&tenants, &error), MX_OK);
    return tenants;
}

static mx_tenant *enter(mx_tenants *tenants, const char *name, const mx_tenant_limits *limits, int64_t now_ns)
{
    mx_tenant *tenant;
    mx_error error;

    if (mx_tenants_enter(tenants, name, limits, now_ns, &tenant, &error) != MX_OK)
        fail_msg("%s: %s", name, error.text);
    return tenant;
}

static void without_limits_there_is_no_account(void **state)
{
    mx_tenants *tenants = open_tenants();
    const mx_tenant_limits none = {0};
    (void)state;

    assert_null(enter(tenants, "a", &none, 0));
    mx_tenant_spend(NULL, 5);
    mx_tenant_leave(NULL);
    assert_int_equal(mx_tenants_count(tenants), 0);
    mx_tenants_close(tenants);
}

static void requests_at_a_time(void **state)
{
    mx_tenants *tenants = open_tenants();
    const mx_tenant_limits two = {.requests = 2};
    mx_tenant *first = enter(tenants, "a", &two, 0), *second = enter(tenants, "a", &two, 0), *third;
    mx_error error;
    (void)state;

    assert_int_equal(mx_tenants_enter(tenants, "a", &two, 0, &third, &error), MX_BUSY);
    assert_null(third);
    assert_string_equal(error.field, "tenant_requests");
    assert_string_equal(error.text, "2 requests of this tenant run already, as many as it may have at a time");
    assert_int_equal(error.retry_after_ms, 0);
    mx_tenant_leave(enter(tenants, "b", &two, 0)); /* another has its own */
    mx_tenant_spend(first, 1000000);               /* tokens do not matter here */
    mx_tenant_leave(first);
    third = enter(tenants, "a", &two, 0);
    mx_tenant_leave(second);
    mx_tenant_leave(third);
    mx_tenants_close(tenants);
}

static void tokens_a_minute(void **state)
{
    mx_tenants *tenants = open_tenants();
    const mx_tenant_limits sixty = {.tokens_per_minute = 60}; /* one a second */
    mx_tenant *tenant = enter(tenants, "a", &sixty, 0), *refused;
    mx_error error;
    (void)state;

    mx_tenant_spend(tenant, 59);
    mx_tenant_leave(enter(tenants, "a", &sixty, 0)); /* one is left */
    mx_tenant_spend(tenant, 11);                     /* ten are owed */
    assert_int_equal(mx_tenants_enter(tenants, "a", &sixty, 0, &refused, &error), MX_BUSY);
    assert_null(refused);
    assert_string_equal(error.field, "tenant_tokens_per_minute");
    assert_string_equal(error.text, "this tenant has used its 60 tokens a minute; try again in 10001 ms");
    assert_int_equal(error.retry_after_ms, 10001);
    mx_tenant_leave(enter(tenants, "b", &sixty, 0));
    assert_int_equal(mx_tenants_enter(tenants, "a", &sixty, 4000 * MS, &refused, &error), MX_BUSY);
    assert_int_equal(error.retry_after_ms, 6001);
    mx_tenant_leave(tenant);
    tenant = enter(tenants, "a", &sixty, 10001 * MS); /* when it was told to */
    mx_tenant_spend(tenant, 1);
    assert_int_equal(mx_tenants_enter(tenants, "a", &sixty, 10001 * MS, &refused, &error), MX_BUSY);
    mx_tenant_leave(tenant);
    tenant = enter(tenants, "a", &sixty, 100 * MINUTE); /* a minute's worth at most comes together */
    mx_tenant_spend(tenant, 60);
    assert_int_equal(mx_tenants_enter(tenants, "a", &sixty, 100 * MINUTE, &refused, &error), MX_BUSY);
    mx_tenant_leave(tenant);
    mx_tenants_close(tenants);
}

/* Whoever has nothing to be remembered for is forgotten: names that a hostile peer makes up do not fill the memory. */
static void tenants_are_forgotten(void **state)
{
    mx_tenants *tenants = open_tenants();
    const mx_tenant_limits limits = {.requests = 3, .tokens_per_minute = 60};
    mx_tenant *held, *again;
    char name[32];
    (void)state;

    held = enter(tenants, "held", &limits, 0);
    for (int round = 0; round < 10; round++)
        for (int i = 0; i < 5000; i++) {
            mx_tenant *tenant;

            snprintf(name, sizeof name, "%d:%d", round, i);
            tenant = enter(tenants, name, &limits, round * 2 * MINUTE);
            mx_tenant_spend(tenant, 10);
            mx_tenant_leave(tenant);
        }
    assert_true(mx_tenants_count(tenants) < 5000 + 5000); /* the last minute's, and what no walk has met */
    again = enter(tenants, "held", &limits, 20 * MINUTE);
    assert_ptr_equal(held, again);
    mx_tenant_leave(held);
    mx_tenant_leave(again);
    mx_tenants_close(tenants);
}

/* ---- The engine ---- */

/* A request of a stream that does not end by itself soon. */
#define ENDLESS(options) "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":100000,\"ignore_eos\":true," options "}}"
#define SHORT(options) "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":2,\"ignore_eos\":true," options "}}"

static void wait_for_requests(mx_client *client, int n)
{
    double until = now_ms() + PATIENCE_MS;

    while (figure(client, "requests_running") != n) {
        assert_true(now_ms() < until);
        pause_ms(2);
    }
}

static void an_engine_bounds_a_tenants_requests(void **state)
{
    const mx_engine_options options = {.threads = 1, .name = "tiny", .tenant_requests = 1};
    mx_engine *engine = open_engine_with(&options);
    mx_client *first = open_client(engine), *second = open_client(engine);
    mx_error error;
    uint32_t id = request(first, ENDLESS("\"tenant\":\"a\""));
    (void)state;

    wait_for_requests(second, 1);
    expect_error(second, SHORT("\"tenant\":\"a\""), MX_BUSY, "1 requests of this tenant run already");
    json_decref(result_of(second, SHORT("\"tenant\":\"b\"")));
    json_decref(result_of(second, SHORT("\"tenant\":\"a\",\"tenant_requests\":2"))); /* the host knows better */
    assert_int_equal(mx_client_cancel(first, id, &error), MX_OK);
    last_event(first, id, NULL);
    for (int i = 0; i < 50; i++) /* its place is free when the client hears of the end */
        json_decref(result_of(i % 2 ? first : second, SHORT("\"tenant\":\"a\"")));
    expect_error(second, "{\"op\":\"chunks\",\"text\":\"a\",\"size\":0,\"options\":{\"tenant\":\"a\"}}", MX_INVALID, "size");
    json_decref(result_of(second, "{\"op\":\"tokenize\",\"text\":\"a\",\"options\":{\"tenant\":\"a\"}}"));
    json_decref(result_of(second, SHORT("\"tenant\":\"a\"")));
    mx_client_close(first);
    mx_client_close(second);
    mx_engine_close(engine);
}

static void an_engine_counts_a_tenants_tokens(void **state)
{
    const mx_engine_options options = {.threads = 1, .name = "tiny", .tenant_tokens_per_minute = 100};
    mx_engine *engine = open_engine_with(&options);
    mx_client *client = open_client(engine);
    mx_event event;
    json_t *result;
    (void)state;

    result = result_of(client, "{\"op\":\"complete\",\"prompt\":\"a\",\"options\":{\"max_tokens\":60,\"ignore_eos\":true,\"n\":3}}");
    assert_int_equal(json_integer_value(json_object_get(result, "completion_tokens")), 180);
    json_decref(result);
    event = last_event(client, request(client, SHORT("\"seed\":1")), NULL);
    assert_int_equal(event.type, MX_EVENT_ERROR);
    assert_int_equal(event.error.status, MX_BUSY);
    assert_string_equal(event.error.field, "tenant_tokens_per_minute");
    assert_in_range(event.error.retry_after_ms, 40000, 55000); /* 80 and the prompt are owed, of 100 a minute */
    expect_error(client, "{\"op\":\"embed\",\"text\":\"a\"}", MX_BUSY, "100 tokens a minute");
    json_decref(result_of(client, "{\"op\":\"stats\"}"));
    json_decref(result_of(client, SHORT("\"tenant\":\"b\"")));
    json_decref(result_of(client, SHORT("\"tenant_tokens_per_minute\":0")));
    mx_client_close(client);
    mx_engine_close(engine);
}

/* A prompt counts as well as what is made, and what a cancelled request has made before. */
static void prompts_and_cancelled_requests_count(void **state)
{
    mx_engine *engine = open_engine();
    mx_client *client = open_client(engine);
    char prompt[2000];
    uint32_t id;
    mx_error error;
    (void)state;

    snprintf(prompt, sizeof prompt, "{\"op\":\"embed\",\"text\":\"%0500d\",\"options\":{\"tenant\":\"p\",\"tenant_tokens_per_minute\":100}}",
             1);
    json_decref(result_of(client, prompt));
    expect_error(client, prompt, MX_BUSY, "100 tokens a minute");
    id = request(client, ENDLESS("\"tenant\":\"c\",\"tenant_tokens_per_minute\":100"));
    for (double until = now_ms() + PATIENCE_MS; figure(client, "completion_tokens") < 200; pause_ms(2))
        assert_true(now_ms() < until);
    assert_int_equal(mx_client_cancel(client, id, &error), MX_OK);
    last_event(client, id, NULL);
    expect_error(client, SHORT("\"tenant\":\"c\",\"tenant_tokens_per_minute\":100"), MX_BUSY, "100 tokens a minute");
    mx_client_close(client);
    mx_engine_close(engine);
}

/* A full queue says when to come back. */
static void a_full_queue_says_when(void **state)
{
    const mx_engine_options options = {.threads = 1, .name = "tiny", .max_queue = 1};
    mx_engine *engine = open_engine_with(&options);
    mx_client *client = open_client(engine), *other = open_client(engine);
    mx_event event;
    (void)state;

    for (int i = 1; i <= 4; i++) { /* as many choices as run at a time */
        request(client, ENDLESS("\"n\":16"));
        wait_for_requests(other, i);
    }
    request(client, SHORT("\"n\":1"));
    while (figure(other, "requests_waiting") == 0)
        pause_ms(2);
    event = last_event(other, request(other, SHORT("\"n\":1")), NULL);
    assert_int_equal(event.type, MX_EVENT_ERROR);
    assert_int_equal(event.error.status, MX_BUSY);
    assert_string_equal(event.error.text, "the queue is full: 1 requests wait already; try again in 1000 ms");
    assert_int_equal(event.error.retry_after_ms, 1000); /* nothing has ended yet that would tell better */
    mx_client_close(client);
    mx_client_close(other);
    mx_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_limits_there_is_no_account),
        cmocka_unit_test(requests_at_a_time),
        cmocka_unit_test(tokens_a_minute),
        cmocka_unit_test(tenants_are_forgotten),
        cmocka_unit_test(an_engine_bounds_a_tenants_requests),
        cmocka_unit_test(an_engine_counts_a_tenants_tokens),
        cmocka_unit_test(prompts_and_cancelled_requests_count),
        cmocka_unit_test(a_full_queue_says_when),
    };

    return cmocka_run_group_tests(tests, write_model, remove_model);
}
