/*
 * test_options.c: requests: what is taken, with which defaults, and what each mistake is answered with.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "../../core/server/options.h"

static mx_model model = {.hparams.n_vocab = 1000}, small_model = {.hparams.n_vocab = 10};
static mx_served tiny = {.name = "tiny", .model = &model}, small = {.name = "small", .model = &small_model};
static mx_served_list models = {.models = {&tiny}, .n = 1}, two_models = {.models = {&tiny, &small}, .n = 2};

static mx_status parse_for(const mx_served_list *list, const char *text, mx_query *query, mx_error *error)
{
    json_t *json = json_loads(text, JSON_ALLOW_NUL, NULL);

    assert_non_null(json);
    return mx_query_parse(json, list, query, error);
}

static mx_status parse(const char *text, mx_query *query, mx_error *error)
{
    return parse_for(&models, text, query, error);
}

static void take(const char *text, mx_query *query)
{
    mx_error error = {0};

    if (parse(text, query, &error) != MX_OK)
        fail_msg("%s: %s", text, error.text);
}

static void refuse(const char *text, mx_status status, const char *field, const char *expected)
{
    mx_query query;
    mx_error error = {0};

    if (parse(text, &query, &error) != status)
        fail_msg("%s: expected %s, got \"%s\"", text, mx_status_name(status), error.text);
    assert_string_equal(error.text, expected);
    assert_string_equal(error.field, field);
    assert_null(query.json);
    mx_query_free(&query);
}

/* A chat with one option, as JSON. */
static void refuse_option(const char *option, const char *field, const char *expected)
{
    char text[2048];

    assert_true(snprintf(text, sizeof(text), "{\"op\":\"chat\",\"prompt\":\"x\",\"options\":{%s}}", option) < (int)sizeof(text));
    refuse(text, MX_INVALID, field, expected);
}

static void take_option(const char *option, mx_query *query)
{
    char text[512];

    assert_true(snprintf(text, sizeof(text), "{\"op\":\"chat\",\"prompt\":\"x\",\"options\":{%s}}", option) < (int)sizeof(text));
    take(text, query);
}

static void defaults(void **state)
{
    mx_sampling sampling;
    mx_query query;
    (void)state;

    mx_sampling_default(&sampling);
    take("{\"op\":\"chat\",\"prompt\":\"Hello\"}", &query);
    assert_int_equal(query.op, MX_OP_CHAT);
    assert_int_equal(query.n_messages, 1);
    assert_int_equal(query.messages[0].role, MX_ROLE_USER);
    assert_string_equal(query.messages[0].content, "Hello");
    assert_int_equal(query.messages[0].bytes, 5);
    assert_true(query.sampling.temperature == sampling.temperature && query.sampling.top_k == sampling.top_k &&
                query.sampling.top_p == sampling.top_p && query.sampling.repeat_penalty == sampling.repeat_penalty);
    assert_int_equal(query.sampling.top_logprobs, -1);
    assert_int_equal(query.max_tokens, 0); /* the rest of the context */
    assert_int_equal(query.n, 1);
    assert_int_equal(query.n_stop, 0);
    assert_int_equal(query.template_kind, MX_TEMPLATE_NONE);
    assert_false(query.has_seed);
    assert_false(query.ignore_eos);
    assert_true(query.cache);
    mx_query_free(&query);
}

static void every_option(void **state)
{
    mx_query query;
    (void)state;

    take_option("\"model\":\"tiny\",\"template\":\"chatml\",\"system\":\"Be brief.\",\"max_tokens\":7,\"temperature\":0.5,"
                "\"top_k\":3,\"top_p\":0.25,\"min_p\":0.125,\"repeat_penalty\":1.5,\"repeat_last_n\":-1,"
                "\"presence_penalty\":-2,\"frequency_penalty\":2,\"seed\":9007199254740991,\"stop\":[\"a\",\"bc\"],"
                "\"ignore_eos\":true,\"logit_bias\":{\"5\":-100,\"999\":0.5},\"logprobs\":true,\"top_logprobs\":20,\"n\":16,"
                "\"tenant\":\"t\",\"timeout_ms\":1000,\"cache\":false", &query);
    assert_int_equal(query.template_kind, MX_TEMPLATE_CHATML);
    assert_int_equal(query.n_messages, 2);
    assert_int_equal(query.messages[0].role, MX_ROLE_SYSTEM);
    assert_string_equal(query.messages[0].content, "Be brief.");
    assert_int_equal(query.max_tokens, 7);
    assert_true(query.sampling.temperature == 0.5f);
    assert_int_equal(query.sampling.top_k, 3);
    assert_true(query.sampling.top_p == 0.25f && query.sampling.min_p == 0.125f);
    assert_true(query.sampling.repeat_penalty == 1.5f);
    assert_int_equal(query.sampling.repeat_last_n, -1);
    assert_true(query.sampling.presence_penalty == -2 && query.sampling.frequency_penalty == 2);
    assert_true(query.has_seed && query.sampling.seed == UINT64_C(9007199254740991));
    assert_int_equal(query.n_stop, 2);
    assert_string_equal(query.stop[1], "bc");
    assert_true(query.ignore_eos);
    assert_int_equal(query.sampling.n_logit_bias, 2);
    assert_int_equal(query.sampling.logit_bias[0].id + query.sampling.logit_bias[1].id, 1004);
    assert_int_equal(query.sampling.top_logprobs, 20);
    assert_int_equal(query.n, 16);
    assert_string_equal(query.tenant, "t");
    assert_int_equal(query.timeout_ms, 1000);
    assert_false(query.cache);
    mx_query_free(&query);

    take_option("\"stop\":\"one\",\"top_k\":40.0,\"temperature\":0,\"logprobs\":true", &query);
    assert_int_equal(query.n_stop, 1);
    assert_int_equal(query.sampling.top_k, 40);
    assert_int_equal(query.sampling.top_logprobs, 0);
    mx_query_free(&query);

    take_option("\"max_tokens\":null,\"seed\":null,\"stop\":null,\"template\":null", &query); /* null: not given */
    assert_int_equal(query.max_tokens, 0);
    assert_false(query.has_seed);
    mx_query_free(&query);

    take("{\"op\":\"chat\",\"prompt\":\"x\",\"messages\":null,\"options\":null}", &query);
    mx_query_free(&query);
}

static void options_that_are_refused(void **state)
{
    (void)state;

    refuse_option("\"top_p\":1.5", "top_p", "option top_p: expected a number from 0 to 1, got 1.5");
    refuse_option("\"top_p\":-0.1", "top_p", "option top_p: expected a number from 0 to 1, got -0.1");
    refuse_option("\"top_p\":\"1\"", "top_p", "option top_p: expected a number from 0 to 1, got \"1\"");
    refuse_option("\"top_p\":true", "top_p", "option top_p: expected a number from 0 to 1, got true");
    refuse_option("\"min_p\":[]", "min_p", "option min_p: expected a number from 0 to 1, got an array");
    refuse_option("\"temperature\":101", "temperature", "option temperature: expected a number from 0 to 100, got 101");
    refuse_option("\"top_k\":-1", "top_k", "option top_k: expected an integer from 0 to 2147483647, got -1");
    refuse_option("\"top_k\":1.5", "top_k", "option top_k: expected an integer from 0 to 2147483647, got 1.5");
    refuse_option("\"top_k\":9223372036854775807", "top_k",
                  "option top_k: expected an integer from 0 to 2147483647, got 9223372036854775807");
    refuse_option("\"max_tokens\":0", "max_tokens", "option max_tokens: expected an integer from 1 to 2147483647, got 0");
    refuse_option("\"repeat_penalty\":0", "repeat_penalty",
                  "option repeat_penalty: expected a number from 0.001 to 1000, got 0");
    refuse_option("\"repeat_last_n\":-2", "repeat_last_n",
                  "option repeat_last_n: expected an integer from -1 to 2147483647, got -2");
    refuse_option("\"presence_penalty\":3", "presence_penalty",
                  "option presence_penalty: expected a number from -2 to 2, got 3");
    refuse_option("\"frequency_penalty\":-2.5", "frequency_penalty",
                  "option frequency_penalty: expected a number from -2 to 2, got -2.5");
    refuse_option("\"seed\":-1", "seed", "option seed: expected an integer from 0 to 9007199254740991, got -1");
    refuse_option("\"seed\":9007199254740992", "seed",
                  "option seed: expected an integer from 0 to 9007199254740991, got 9007199254740992");
    refuse_option("\"n\":17", "n", "option n: expected an integer from 1 to 16, got 17");
    refuse_option("\"timeout_ms\":-5", "timeout_ms",
                  "option timeout_ms: expected an integer from 0 to 2147483647, got -5");
    refuse_option("\"ignore_eos\":1", "ignore_eos", "option ignore_eos: expected true or false, got 1");
    refuse_option("\"cache\":\"yes\"", "cache", "option cache: expected true or false, got \"yes\"");
    refuse_option("\"top_logprobs\":21,\"logprobs\":true", "top_logprobs",
                  "option top_logprobs: expected an integer from 0 to 20, got 21");
    refuse_option("\"top_logprobs\":1", "top_logprobs", "option top_logprobs: needs logprobs to be true");
    refuse_option("\"stop\":\"\"", "stop",
                  "option stop: expected a string or an array of strings, none empty or with U+0000, got \"\"");
    refuse_option("\"stop\":[\"a\",7]", "stop",
                  "option stop: expected a string or an array of strings, none empty or with U+0000, got 7");
    refuse_option("\"stop\":[\"a\\u0000b\"]", "stop",
                  "option stop: expected a string or an array of strings, none empty or with U+0000, got \"a\"");
    refuse_option("\"stop\":[\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\",\"1\","
                  "\"1\"]", "stop", "option stop: expected at most 16 strings, got 17");
    refuse_option("\"logit_bias\":[]", "logit_bias", "option logit_bias: expected an object of token id to bias, got an array");
    refuse_option("\"logit_bias\":{\"1000\":1}", "logit_bias",
                  "option logit_bias: expected token ids from 0 to 999 as names, got \"1000\"");
    refuse_option("\"logit_bias\":{\"-1\":1}", "logit_bias",
                  "option logit_bias: expected token ids from 0 to 999 as names, got \"-1\"");
    refuse_option("\"logit_bias\":{\"1x\":1}", "logit_bias",
                  "option logit_bias: expected token ids from 0 to 999 as names, got \"1x\"");
    refuse_option("\"logit_bias\":{\"1\":101}", "logit_bias",
                  "option logit_bias: expected a number from -100 to 100, got 101");
    refuse_option("\"template\":\"alpaca\"", "template",
                  "option template: expected \"mixtral\", \"chatml\" or \"llama3\", got \"alpaca\"");
    refuse_option("\"system\":5", "system", "option system: expected a string, got 5");
    refuse_option("\"tenant\":\"\"", "tenant",
                  "option tenant: expected a string that is not empty, without U+0000, got \"\"");
    refuse_option("\"tenant_requests\":-1", "tenant_requests",
                  "option tenant_requests: expected an integer from 0 to 2147483647, got -1");
    refuse_option("\"tenant_tokens_per_minute\":\"1\"", "tenant_tokens_per_minute",
                  "option tenant_tokens_per_minute: expected an integer from 0 to 2147483647, got \"1\"");
    refuse_option("\"json_schema\":{}", "json_schema", "option json_schema: not built yet");
    refuse_option("\"Temperature\":1", "Temperature", "option Temperature: there is no such option");
    refuse_option("\"nonsense\":null", "nonsense", "option nonsense: there is no such option");
    refuse("{\"op\":\"chat\",\"prompt\":\"x\",\"options\":{\"model\":\"gpt\"}}", MX_NOT_FOUND, "model",
           "option model: \"gpt\" is not open here; this engine has \"tiny\"");
    refuse("{\"op\":\"chat\",\"prompt\":\"x\",\"options\":[]}", MX_INVALID, "options",
           "options: expected an object, got an array");
    refuse("{\"op\":\"embed\",\"text\":\"x\",\"options\":{\"temperature\":1}}", MX_INVALID, "temperature",
           "option temperature: embed has no use for it");
    refuse("{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"system\":\"s\"}}", MX_INVALID, "system",
           "option system: complete has no use for it");
}

static void conversations(void **state)
{
    mx_query query;
    (void)state;

    take("{\"op\":\"chat\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"},"
         "{\"content\":\"b\\u0000c\",\"role\":\"user\"}]}", &query);
    assert_int_equal(query.n_messages, 3);
    assert_int_equal(query.messages[1].role, MX_ROLE_ASSISTANT);
    assert_int_equal(query.messages[2].bytes, 3);
    mx_query_free(&query);
    take_option("\"system\":\"\"", &query); /* a system message that is empty */
    assert_int_equal(query.n_messages, 2);
    assert_int_equal(query.messages[0].bytes, 0);
    mx_query_free(&query);

    refuse("{\"op\":\"chat\"}", MX_INVALID, "prompt", "chat: expected either prompt or messages, got neither");
    refuse("{\"op\":\"chat\",\"prompt\":\"x\",\"messages\":[]}", MX_INVALID, "prompt",
           "chat: expected either prompt or messages, got both");
    refuse("{\"op\":\"chat\",\"prompt\":7}", MX_INVALID, "prompt", "prompt: expected a string, got 7");
    refuse("{\"op\":\"chat\",\"messages\":[]}", MX_INVALID, "messages",
           "messages: expected an array of at least one message, got an empty one");
    refuse("{\"op\":\"chat\",\"messages\":\"hi\"}", MX_INVALID, "messages",
           "messages: expected an array of at least one message, got \"hi\"");
    refuse("{\"op\":\"chat\",\"messages\":[{\"role\":\"user\",\"content\":\"a\"},\"b\"]}", MX_INVALID, "messages",
           "messages[1]: expected an object with role and content, got \"b\"");
    refuse("{\"op\":\"chat\",\"messages\":[{\"role\":\"tool\",\"content\":\"a\"}]}", MX_INVALID, "messages",
           "messages[0].role: expected \"system\", \"user\" or \"assistant\", got \"tool\"");
    refuse("{\"op\":\"chat\",\"messages\":[{\"content\":\"a\"}]}", MX_INVALID, "messages",
           "messages[0].role: expected \"system\", \"user\" or \"assistant\", got nothing");
    refuse("{\"op\":\"chat\",\"messages\":[{\"role\":\"user\",\"content\":[\"a\"]}]}", MX_INVALID, "messages",
           "messages[0].content: expected a string, got an array");
    refuse("{\"op\":\"chat\",\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"name\":\"b\"}]}", MX_INVALID, "messages",
           "messages[0]: unknown field name");
    refuse("{\"op\":\"chat\",\"messages\":[{\"role\":\"system\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"b\"}],"
           "\"options\":{\"system\":\"c\"}}", MX_INVALID, "system",
           "option system: messages[0] is a system message already; give one of the two");
}

static void other_operations(void **state)
{
    mx_query query;
    (void)state;

    take("{\"op\":\"complete\",\"prompt\":\"Once\"}", &query);
    assert_int_equal(query.text.bytes, 4);
    mx_query_free(&query);
    take("{\"op\":\"chunks\",\"text\":\"abc\",\"size\":100,\"overlap\":99}", &query);
    assert_int_equal(query.size, 100);
    assert_int_equal(query.overlap, 99);
    mx_query_free(&query);
    take("{\"op\":\"detokenize\",\"tokens\":[0,999]}", &query);
    assert_int_equal(query.n_tokens, 2);
    assert_int_equal(query.tokens[1], 999);
    mx_query_free(&query);
    take("{\"op\":\"detokenize\",\"tokens\":[]}", &query);
    mx_query_free(&query);
    take("{\"op\":\"stats\",\"options\":{\"model\":\"tiny\"}}", &query);
    mx_query_free(&query);
    take("{\"op\":\"token_count\",\"text\":\"abc\",\"messages\":null}", &query);
    assert_int_equal(query.n_messages, 0);
    assert_int_equal(query.text.bytes, 3);
    mx_query_free(&query);
    take("{\"op\":\"token_count\",\"messages\":[{\"role\":\"user\",\"content\":\"abc\"}]}", &query);
    assert_int_equal(query.n_messages, 1);
    mx_query_free(&query);

    refuse("{\"op\":\"token_count\",\"text\":\"\",\"prompt\":\"\"}", MX_INVALID, "text",
           "token_count: expected either text or a conversation, got both");
    refuse("{\"op\":\"token_count\"}", MX_INVALID, "text", "text: expected a string, got nothing");
    refuse("{}", MX_INVALID, "op", "op: expected chat, complete, embed, tokenize, detokenize, token_count, chunks, models, "
           "stats, session_save or session_load, got nothing");
    refuse("{\"op\":\"dance\"}", MX_INVALID, "op", "op: expected chat, complete, embed, tokenize, detokenize, token_count, "
           "chunks, models, stats, session_save or session_load, got \"dance\"");
    refuse("{\"op\":\"embed\"}", MX_INVALID, "text", "text: expected a string, got nothing");
    refuse("{\"op\":\"embed\",\"prompt\":\"x\"}", MX_INVALID, "prompt", "prompt: embed has no such field");
    refuse("{\"op\":\"stats\",\"colour\":1}", MX_INVALID, "colour", "colour: stats has no such field");
    refuse("{\"op\":\"complete\",\"messages\":[]}", MX_INVALID, "messages", "messages: complete has no such field");
    refuse("{\"op\":\"chunks\",\"text\":\"a\"}", MX_INVALID, "size", "size: expected an integer from 1 to 2147483647, got nothing");
    refuse("{\"op\":\"chunks\",\"text\":\"a\",\"size\":4,\"overlap\":4}", MX_INVALID, "overlap",
           "overlap: expected an integer from 0 to 3, got 4");
    refuse("{\"op\":\"detokenize\",\"tokens\":[1000]}", MX_INVALID, "tokens",
           "tokens[0]: expected an integer from 0 to 999, got 1000");
    refuse("{\"op\":\"detokenize\",\"tokens\":[1,\"2\"]}", MX_INVALID, "tokens",
           "tokens[1]: expected an integer from 0 to 999, got \"2\"");
    refuse("{\"op\":\"detokenize\",\"tokens\":7}", MX_INVALID, "tokens", "tokens: expected an array of token ids, got 7");
}

/* A range that is a model's own is that of the model which the request names, wherever in the object it does. */
static void a_request_names_its_model(void **state)
{
    mx_query query;
    mx_error error;
    (void)state;

    assert_int_equal(parse_for(&two_models, "{\"op\":\"detokenize\",\"tokens\":[500]}", &query, &error), MX_OK);
    assert_ptr_equal(query.served, &tiny);
    assert_false(query.names_model);
    mx_query_free(&query);
    assert_int_equal(parse_for(&two_models, "{\"op\":\"detokenize\",\"tokens\":[9],\"options\":{\"model\":\"small\"}}", &query,
                               &error), MX_OK);
    assert_ptr_equal(query.served, &small);
    assert_true(query.names_model);
    mx_query_free(&query);
    assert_int_equal(parse_for(&two_models, "{\"op\":\"detokenize\",\"tokens\":[500],\"options\":{\"model\":\"small\"}}", &query,
                               &error), MX_INVALID);
    assert_string_equal(error.text, "tokens[0]: expected an integer from 0 to 9, got 500");
    assert_int_equal(parse_for(&two_models, "{\"op\":\"complete\",\"prompt\":\"x\",\"options\":{\"logit_bias\":{\"10\":1},"
                               "\"model\":\"small\"}}", &query, &error), MX_INVALID);
    assert_string_equal(error.text, "option logit_bias: expected token ids from 0 to 9 as names, got \"10\"");
    assert_int_equal(parse_for(&two_models, "{\"op\":\"stats\",\"options\":{\"model\":\"big\"}}", &query, &error), MX_NOT_FOUND);
    assert_string_equal(error.text, "option model: \"big\" is not open here; this engine has \"tiny\", \"small\"");
    refuse("{\"op\":\"stats\",\"options\":{\"model\":5}}", MX_INVALID, "model", "option model: expected a string, got 5");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(every_option),
        cmocka_unit_test(options_that_are_refused),
        cmocka_unit_test(conversations),
        cmocka_unit_test(other_operations),
        cmocka_unit_test(a_request_names_its_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
