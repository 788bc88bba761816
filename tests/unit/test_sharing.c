/*
 * test_sharing.c: prefixes that are computed once: across finished requests, by requests that arrive together, within
 * a tenant and never beyond, under eviction and preemption. Whatever was shared, the answer is the one that the
 * request gets alone and cold.
 */
#include "scheduling.h"

#define PROMPT (10 * MX_KV_SPAN + 7)

static request *sharing_request(int n, int max_tokens, unsigned seed)
{
    request *r = new_request(n, max_tokens, seed);

    r->spec.cache = true;
    r->spec.sampling.top_logprobs = 0; /* the listener keeps the ids */
    return r;
}

static listener *ask(mx_scheduler *s, request *r)
{
    listener *l = new_listener();

    submit(s, r, l);
    wait_for(l, 0);
    assert_int_equal(l->error.status, MX_OK);
    return l;
}

/* Asks, compares with the answer of a cold scheduler of its own, and checks how much was cached. */
static void ask_and_compare(mx_scheduler *s, request *r, int cached_tokens)
{
    listener *cold = run_alone(roomy, r), *l = ask(s, r);

    assert_int_equal(cold->cached_tokens, 0);
    assert_int_equal(l->cached_tokens, cached_tokens);
    assert_same_answer(l, cold);
    free_listener(cold);
    free_listener(l);
}

static void finished_requests_leave_their_prefix(void **state)
{
    mx_scheduler *s = open_scheduler(roomy);
    request *r = sharing_request(PROMPT, 40, 1);
    (void)state;

    ask_and_compare(s, r, 0);
    ask_and_compare(s, r, 10 * MX_KV_SPAN);
    r->spec.n_tokens = 8 * MX_KV_SPAN; /* all of it is there: the last token alone is computed */
    ask_and_compare(s, r, 8 * MX_KV_SPAN - 1);
    r->spec.n_tokens = PROMPT;
    r->tokens[5 * MX_KV_SPAN + 3] ^= 1; /* another prompt from the sixth block on */
    ask_and_compare(s, r, 5 * MX_KV_SPAN);
    r->classes[2 * MX_KV_SPAN] ^= 1; /* the same ids, of another class */
    ask_and_compare(s, r, 2 * MX_KV_SPAN);
    assert_at_rest(s);
    assert_true(stats_of(s).kv_blocks_cached >= 10);
    mx_scheduler_close(s);
    free(r);
}

static void the_next_turn_reuses_the_answer(void **state)
{
    mx_scheduler *s = open_scheduler(roomy);
    request *r = sharing_request(PROMPT, 60, 2);
    listener *first = ask(s, r);
    (void)state;

    assert_int_equal(first->n_logprobs, 60);
    for (int i = 0; i < 60; i++) {
        r->tokens[PROMPT + i] = first->ids[i];
        r->classes[PROMPT + i] = MX_CLASS_DECODE;
    }
    for (int i = PROMPT + 60; i < PROMPT + 80; i++)
        r->tokens[i] = 3 + i % 500;
    r->spec.n_tokens = PROMPT + 80;
    ask_and_compare(s, r, (PROMPT + 59) / MX_KV_SPAN * MX_KV_SPAN); /* its last token was never computed */
    mx_scheduler_close(s);
    free_listener(first);
    free(r);
}

static void requests_that_come_together_share(void **state)
{
    mx_scheduler *s = open_scheduler((setup){2, 200, CONTEXT, 256});
    request *r[4];
    listener *l[4], *cold;
    (void)state;

    for (int i = 0; i < 4; i++) {
        r[i] = sharing_request(900, 10, 3);
        r[i]->tokens[890] = 10 + i;
        l[i] = new_listener();
        set_paused(l[i], true); /* until all are there */
        submit(s, r[i], l[i]);
    }
    for (int i = 0; i < 4; i++)
        set_paused(l[i], false);
    mx_scheduler_wake(s);
    for (int i = 0; i < 4; i++) {
        wait_for(l[i], 0);
        cold = run_alone(roomy, r[i]);
        assert_same_answer(l[i], cold);
        assert_int_equal(l[i]->cached_tokens, i == 0 ? 0 : 890 / MX_KV_SPAN * MX_KV_SPAN);
        free_listener(cold);
    }
    assert_at_rest(s);
    mx_scheduler_close(s);
    for (int i = 0; i < 4; i++) {
        free_listener(l[i]);
        free(r[i]);
    }
}

static void a_waiter_goes_on_when_its_elder_leaves(void **state)
{
    mx_scheduler *s = open_scheduler((setup){1, 200, CONTEXT, 256});
    request *r = sharing_request(900, 5, 4);
    listener *elder = new_listener(), *waiter = new_listener(), *cold = run_alone(roomy, r);
    uint64_t handle;
    (void)state;

    set_paused(elder, true);
    set_paused(waiter, true);
    handle = submit(s, r, elder);
    submit(s, r, waiter);
    set_paused(elder, false);
    set_paused(waiter, false);
    mx_scheduler_wake(s);
    while (stats_of(s).steps == 0)
        sched_yield();
    mx_scheduler_cancel(s, handle);
    wait_for(waiter, 0);
    wait_for(elder, 0);
    assert_same_answer(waiter, cold);
    mx_scheduler_close(s);
    free_listener(elder);
    free_listener(waiter);
    free_listener(cold);
    free(r);
}

static void tenants_share_with_themselves_alone(void **state)
{
    mx_scheduler *s = open_scheduler(roomy);
    request *r = sharing_request(PROMPT, 5, 5);
    (void)state;

    r->spec.tenant = "alice";
    ask_and_compare(s, r, 0);
    r->spec.tenant = "bob";
    ask_and_compare(s, r, 0);
    r->spec.tenant = NULL;
    ask_and_compare(s, r, 0);
    r->spec.tenant = "";
    ask_and_compare(s, r, 10 * MX_KV_SPAN);
    r->spec.tenant = "alice";
    ask_and_compare(s, r, 10 * MX_KV_SPAN);
    assert_int_equal(stats_of(s).cached_tokens, 2 * 10 * MX_KV_SPAN);
    mx_scheduler_close(s);
    free(r);
}

static void who_does_not_share_leaves_nothing(void **state)
{
    mx_scheduler *s = open_scheduler(roomy);
    request *r = sharing_request(PROMPT, 5, 6);
    listener *l;
    (void)state;

    r->spec.cache = false;
    free_listener(ask(s, r));
    assert_int_equal(stats_of(s).kv_blocks_cached, 0);
    r->spec.cache = true;
    r->spec.embed = true; /* needs every token's hidden state */
    free_listener(ask(s, r));
    assert_int_equal(stats_of(s).kv_blocks_cached, 0);
    r->spec.embed = false;
    ask_and_compare(s, r, 0);
    r->spec.cache = false;
    l = ask(s, r);
    assert_int_equal(l->cached_tokens, 0);
    free_listener(l);
    mx_scheduler_close(s);
    free(r);
}

/* A pool for one and a half requests, random prompts with common beginnings, many at once: everything is evicted and preempted
 * over and over. */
static void pressure_changes_no_answer(void **state)
{
    enum { N = 24 };
    mx_scheduler *s = open_scheduler((setup){2, 20, CONTEXT, 256});
    request *r[N];
    listener *l[N], *cold;
    (void)state;

    for (int i = 0; i < N; i++) {
        r[i] = sharing_request(200 + 13 * (i % 5), 90 + i, 7 + (unsigned)i % 3);
        r[i]->spec.n = 1 + i % 3 / 2;
        l[i] = new_listener();
        submit(s, r[i], l[i]);
    }
    for (int i = 0; i < N; i++) {
        wait_for(l[i], 0);
        cold = run_alone(roomy, r[i]);
        assert_same_answer(l[i], cold);
        free_listener(cold);
    }
    assert_true(stats_of(s).preemptions > 0);
    assert_true(stats_of(s).cached_tokens > 0);
    assert_at_rest(s);
    mx_scheduler_close(s);
    for (int i = 0; i < N; i++) {
        free_listener(l[i]);
        free(r[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finished_requests_leave_their_prefix),
        cmocka_unit_test(the_next_turn_reuses_the_answer),
        cmocka_unit_test(requests_that_come_together_share),
        cmocka_unit_test(a_waiter_goes_on_when_its_elder_leaves),
        cmocka_unit_test(tenants_share_with_themselves_alone),
        cmocka_unit_test(who_does_not_share_leaves_nothing),
        cmocka_unit_test(pressure_changes_no_answer),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
