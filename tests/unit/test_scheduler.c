/*
 * test_scheduler.c: requests through the scheduler and the real forward pass, on a tiny mixture of
 * random weights.
 *
 * What a request says when it runs alone, on one thread and with room for everything, is the
 * measure: it must say the same in company, on more threads, from shared prompts, and when it was
 * preempted. What it should say alone is checked against the forward pass called directly.
 */
#include "scheduling.h"

/* ---- One request ------------------------------------------------------------------------------------*/

/* Greedy ids of the forward pass called directly, the prompt in one step and then token by token.
 */
static void greedy_by_hand(const request *r, int32_t *ids, int n)
{
    const mx_hparams *h = &model->hparams;
    mx_kv_shape shape = shape_of_model();
    float *logits = malloc((size_t)h->n_vocab * sizeof *logits);
    int32_t blocks[CONTEXT / MX_KV_SPAN], position[CONTEXT], sequence[CONTEXT] = {0};
    const int32_t *table[1] = {blocks};
    uint8_t want[CONTEXT] = {0}, decode = MX_CLASS_DECODE, logits_wanted = MX_WANT_LOGITS;
    int at = (int)r->spec.n_tokens;
    mx_kv_pool *pool;
    mx_threads *threads;
    mx_forward *forward;
    mx_error error;

    assert_non_null(logits);
    assert_int_equal(
        mx_kv_pool_open(&shape, (int64_t)mx_kv_block_bytes(&shape) * 32, &pool, &error), MX_OK);
    assert_int_equal(mx_threads_open(1, &threads, &error), MX_OK);
    assert_int_equal(
        mx_forward_open(model, mx_kernels_get(NULL), threads, pool, CONTEXT, &forward, &error),
        MX_OK);
    for (int i = 0; i < CONTEXT / MX_KV_SPAN; i++)
        blocks[i] = mx_kv_pool_alloc(pool);
    for (int i = 0; i < CONTEXT; i++)
        position[i] = i;
    want[at - 1] = MX_WANT_LOGITS;
    mx_batch batch = {at, r->tokens, position, sequence, r->classes, want, table};
    for (int i = 0; i < n; i++) {
        assert_int_equal(mx_forward_step(forward, &batch, logits, NULL, NULL, NULL), MX_OK);
        ids[i] = 0;
        for (int id = 1; id < h->n_vocab; id++)
            if (logits[id] > logits[ids[i]])
                ids[i] = id;
        batch = (mx_batch){1, &ids[i], &position[at++], sequence, &decode, &logits_wanted, table};
    }
    mx_forward_close(forward);
    mx_threads_close(threads);
    mx_kv_pool_close(pool);
    free(logits);
}

static void says_what_the_model_says(void **state)
{
    request *r = new_request(77, 60, 1);
    int32_t ids[60];
    (void)state;

    r->spec.sampling.temperature = 0;
    r->spec.sampling.repeat_penalty = 1;
    r->spec.sampling.top_logprobs = 2;
    greedy_by_hand(r, ids, 60);
    listener *l = run_alone(roomy, r);
    assert_int_equal(l->error.status, MX_OK);
    assert_int_equal(l->n_logprobs, 60);
    assert_memory_equal(l->ids, ids, sizeof ids);
    assert_int_equal(l->completion_tokens, 60);
    assert_int_equal(l->prompt_tokens, 77);
    assert_int_equal(l->finish[0], MX_FINISH_LENGTH);
    assert_string_equal(l->streamed[0], l->text[0]);
    assert_true(l->pieces > 10); /* as it is made */
    assert_true(l->first_token_ms > 0 && l->first_token_ms <= l->total_ms);
    assert_int_equal(l->seed, 1);
    assert_true(l->signals_blocked);
    free_listener(l);
    free(r);
}

static void ends_with_turn_stop_string_and_context(void **state)
{
    mx_logit_bias bias[] = {{EOS, 1000}};
    request *r = new_request(50, 40, 2);
    (void)state;

    listener *whole = run_alone(roomy, r);
    assert_true(strlen(whole->text[0]) > 30);
    char stop[9] = "", *strings[] = {"never there", stop}; /* from the middle of what it says */
    memcpy(stop, whole->text[0] + strlen(whole->text[0]) / 2, 2);
    size_t cut = (size_t)(strstr(whole->text[0], stop) - whole->text[0]);
    r->spec.stop = (const char *const *)strings;
    r->spec.n_stop = (stop[0] & 0x80) == 0 && (stop[1] & 0x80) == 0 ? 2 : 1;
    assert_int_equal(r->spec.n_stop, 2);
    listener *l = run_alone(roomy, r);
    assert_int_equal(l->finish[0], MX_FINISH_STOP);
    assert_int_equal(strlen(l->text[0]), cut);
    assert_memory_equal(l->text[0], whole->text[0], cut);
    assert_string_equal(l->streamed[0] ? l->streamed[0] : "", l->text[0]);
    free_listener(l);
    free_listener(whole);
    r->spec.n_stop = 0;

    r->spec.sampling.logit_bias = bias; /* the end of the turn, at once */
    r->spec.sampling.n_logit_bias = 1;
    r->spec.ignore_eos = false;
    l = run_alone(roomy, r);
    assert_int_equal(l->finish[0], MX_FINISH_STOP);
    assert_int_equal(l->completion_tokens, 0);
    assert_string_equal(l->text[0], "");
    free_listener(l);
    r->spec.ignore_eos = true; /* or ignored: but it is no text */
    l = run_alone(roomy, r);
    assert_int_equal(l->finish[0], MX_FINISH_LENGTH);
    assert_int_equal(l->completion_tokens, 40);
    assert_string_equal(l->text[0], "");
    free_listener(l);
    r->spec.sampling.n_logit_bias = 0;

    r->spec.max_tokens = 0; /* as many as the context holds */
    l = run_alone((setup){1, 1000, 128, 256}, r);
    assert_int_equal(l->finish[0], MX_FINISH_LENGTH);
    assert_int_equal(l->prompt_tokens + l->completion_tokens, 128);
    free_listener(l);
    l = run_alone((setup){1, 3, CONTEXT, 256}, r); /* or the pool */
    assert_int_equal(l->finish[0], MX_FINISH_LENGTH);
    assert_int_equal(l->prompt_tokens + l->completion_tokens, 3 * MX_KV_SPAN);
    free_listener(l);
    free(r);
}

static void refuses_at_once(void **state)
{
    mx_scheduler *s = open_scheduler((setup){1, 4, 200, 256});
    request *r = new_request(128, 5, 3);
    mx_logit_bias bias[] = {{600, 1}};
    const char *const empty[] = {""};
    uint64_t handle;
    mx_error error;
    (void)state;

    r->spec.sink = (mx_sink){.piece = on_piece, .end = on_end, .paused = is_paused};
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_TOO_LARGE);
    assert_string_equal(error.text, "prompt: 128 tokens and one to come do not fit in the KV pool "
                                    "of 128 tokens");
    r->spec.n_tokens = 200;
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_TOO_LARGE);
    assert_string_equal(error.text,
                        "prompt: 200 tokens and one to come do not fit in the context of 200");
    r->spec.n_tokens = 0;
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_INVALID);
    r->spec.n_tokens = 10;
    r->spec.stop = empty;
    r->spec.n_stop = 1;
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_INVALID);
    assert_string_equal(error.field, "stop");
    r->spec.n_stop = 0;
    r->spec.sampling.logit_bias = bias;
    r->spec.sampling.n_logit_bias = 1;
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_INVALID);
    assert_string_equal(error.field, "logit_bias");
    r->spec.sampling.n_logit_bias = 0;
    r->spec.n = 17;
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_INVALID);
    r->spec.n = 1;
    r->tokens[4] = 600;
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_INVALID);
    assert_string_equal(error.text, "token 4: expected an id from 0 to 599, got 600");
    assert_at_rest(s);
    mx_scheduler_close(s);
    mx_scheduler_close(NULL);
    free(r);
}

/* ---- Company ----------------------------------------------------------------------------------------*/

#define CROWD 9

static request *crowd_request(int i)
{
    static const int prompts[CROWD] = {3, 150, 33, 32, 31, 64, 95, 17, 600};
    request *r = new_request(prompts[i], 70 - 5 * i, (unsigned)i + 10);

    if (i == 5) { /* three choices from a prompt of whole blocks, three from one that is not */
        r->spec.n = 3;
    } else if (i == 6) {
        r->spec.n = 3;
    } else if (i == 7) {
        r->spec.sampling.temperature = 0;
    }
    return r;
}

/* The crowd at once; what each says must be what it says alone. */
static void crowd_says_the_same(setup u, listener *const alone[CROWD], bool preempts)
{
    mx_scheduler *s = open_scheduler(u);
    listener *together[CROWD];

    for (int i = 0; i < CROWD; i++) {
        request *r = crowd_request(i);
        together[i] = new_listener();
        submit(s, r, together[i]);
        free(r); /* everything was copied */
    }
    for (int i = 0; i < CROWD; i++)
        wait_for(together[i], 0);
    mx_scheduler_stats t = stats_of(s);
    assert_int_equal(t.preemptions > 0, preempts);
    assert_int_equal(t.prompt_tokens, 3 + 150 + 33 + 32 + 31 + 64 + 95 + 17 + 600);
    assert_int_equal(t.requests_done, CROWD);
    assert_at_rest(s);
    for (int i = 0; i < CROWD; i++) {
        assert_same_answer(alone[i], together[i]);
        free_listener(together[i]);
    }
    mx_scheduler_close(s);
}

static void company_changes_nothing(void **state)
{
    listener *alone[CROWD];
    (void)state;

    for (int i = 0; i < CROWD; i++) {
        request *r = crowd_request(i);
        alone[i] = run_alone(roomy, r);
        assert_int_equal(alone[i]->error.status, MX_OK);
        free(r);
    }
    assert_string_not_equal(alone[5]->text[0], alone[5]->text[1]);
    assert_string_not_equal(alone[5]->text[1], alone[5]->text[2]);
    crowd_says_the_same(roomy, alone, false);
    crowd_says_the_same((setup){2, 1000, CONTEXT, 256}, alone, false);
    crowd_says_the_same((setup){1, 24, CONTEXT, 256}, alone, true);
    crowd_says_the_same((setup){3, 21, CONTEXT, 256}, alone, true);
    for (int i = 0; i < CROWD; i++)
        free_listener(alone[i]);
}

/* Choice 0 does not know of the others; prompts share blocks. */
static void choices_share_their_prompt(void **state)
{
    request *r = new_request(16 * MX_KV_SPAN + 5, 12, 4);
    (void)state;

    listener *one = run_alone(roomy, r);
    r->spec.n = 8; /* 17 blocks and one for each other choice; apart they would take 136 */
    mx_scheduler *s = open_scheduler((setup){1, 26, CONTEXT, 256});
    listener *eight = new_listener();
    submit(s, r, eight);
    wait_for(eight, 0);
    assert_int_equal(stats_of(s).preemptions, 0);
    assert_int_equal(stats_of(s).prompt_tokens, 16 * MX_KV_SPAN + 5);
    assert_at_rest(s);
    mx_scheduler_close(s);
    assert_int_equal(eight->n_choices, 8);
    assert_int_equal(eight->completion_tokens, 8 * 12);
    assert_string_equal(eight->text[0], one->text[0]);
    for (int i = 1; i < 8; i++)
        assert_string_not_equal(eight->text[i], eight->text[i - 1]);
    free_listener(eight);

    eight = run_alone((setup){1, 18, CONTEXT, 256}, r); /* not even room for two at a time */
    assert_int_equal(eight->error.status, MX_OK);
    assert_string_equal(eight->text[0], one->text[0]);
    free_listener(eight);
    free_listener(one);
    free(r);
}

/* ---- Leaving early ----------------------------------------------------------------------------------*/

static void cancelled_requests_end(void **state)
{
    mx_scheduler *s = open_scheduler(roomy);
    request *r = new_request(20, 900, 5);
    listener *a = new_listener(), *b = new_listener(), *c = new_listener();
    (void)state;

    uint64_t first = submit(s, r, a);
    r->spec.max_tokens = 30;
    submit(s, r, b);
    set_paused(c, true); /* waits in the queue */
    uint64_t waiting = submit(s, r, c);
    wait_for(a, 3);
    mx_scheduler_cancel(s, first);
    mx_scheduler_cancel(s, first);
    mx_scheduler_cancel(s, 12345678);
    mx_scheduler_cancel(s, waiting);
    wait_for(a, 0);
    wait_for(b, 0);
    wait_for(c, 0);
    assert_int_equal(a->error.status, MX_CANCELLED);
    assert_int_equal(b->error.status, MX_OK);
    assert_int_equal(c->error.status, MX_CANCELLED);
    assert_int_equal(b->completion_tokens, 30);
    assert_int_equal(c->pieces, 0);
    assert_int_equal(stats_of(s).requests_failed, 2);
    assert_at_rest(s);
    mx_scheduler_cancel(s, first); /* long gone */
    mx_scheduler_close(s);
    free_listener(a);
    free_listener(b);
    free_listener(c);
    free(r);
}

static void time_runs_out(void **state)
{
    mx_scheduler *s = open_scheduler(roomy);
    request *r = new_request(20, 5, 6);
    listener *a = new_listener();
    (void)state;

    r->spec.timeout_ms = 60;
    set_paused(a, true); /* nothing else would wake the scheduler */
    submit(s, r, a);
    wait_for(a, 0);
    assert_int_equal(a->error.status, MX_TIMEOUT);
    assert_string_equal(a->error.field, "timeout_ms");
    assert_non_null(strstr(a->error.text, "60 ms"));
    assert_at_rest(s);
    mx_scheduler_close(s);
    free_listener(a);
    free(r);
}

static void close_ends_everything(void **state)
{
    mx_scheduler *s = open_scheduler((setup){2, 40, CONTEXT, 256});
    listener *all[6];
    (void)state;

    for (int i = 0; i < 6; i++) {
        request *r = new_request(200, 800, 7);
        all[i] = new_listener();
        set_paused(all[i], i == 5);
        submit(s, r, all[i]);
        free(r);
    }
    wait_for(all[0], 5);
    mx_scheduler_close(s);
    for (int i = 0; i < 6; i++) {
        assert_true(all[i]->ended);
        assert_int_equal(all[i]->error.status, MX_UNAVAILABLE);
        free_listener(all[i]);
    }
    mx_scheduler_close(open_scheduler(roomy)); /* never used */
}

static void full_queue_is_busy(void **state)
{
    mx_scheduler *s = open_scheduler((setup){1, 100, CONTEXT, 2});
    request *r = new_request(20, 5, 8);
    listener *a = new_listener(), *b = new_listener();
    uint64_t handle;
    mx_error error;
    (void)state;

    set_paused(a, true);
    set_paused(b, true);
    submit(s, r, a);
    submit(s, r, b);
    assert_int_equal(mx_scheduler_submit(s, &r->spec, &handle, &error), MX_BUSY);
    assert_non_null(strstr(error.text, "2 requests"));
    assert_int_equal(stats_of(s).requests_waiting, 2);
    set_paused(a, false);
    set_paused(b, false);
    mx_scheduler_wake(s);
    wait_for(a, 0);
    wait_for(b, 0);
    assert_same_answer(a, b);
    mx_scheduler_close(s);
    free_listener(a);
    free_listener(b);
    free(r);
}

/* ---- Readers that are behind ------------------------------------------------------------------------*/

static int pieces_of(listener *l)
{
    pthread_mutex_lock(&l->lock);
    int n = l->pieces;
    pthread_mutex_unlock(&l->lock);
    return n;
}

static void paused_reader_gets_nothing_more(void **state)
{
    request *r = new_request(40, 300, 9);
    listener *whole = run_alone(roomy, r), *l = new_listener();
    mx_scheduler *s = open_scheduler(roomy);
    (void)state;

    l->pause_at = 3;
    submit(s, r, l);
    wait_for(l, 3);
    usleep(100000);
    int before = pieces_of(l);
    int64_t steps = stats_of(s).steps;
    assert_false(l->ended);
    usleep(100000);
    assert_int_equal(pieces_of(l), before);
    assert_int_equal(stats_of(s).steps, steps);
    set_paused(l, false);
    mx_scheduler_wake(s);
    wait_for(l, 0);
    assert_same_answer(l, whole);
    mx_scheduler_close(s);
    free_listener(l);
    free_listener(whole);
    free(r);
}

static void paused_reader_makes_room(void **state)
{
    request *slow = new_request(100, 150, 10), *quick = new_request(180, 20, 11);
    listener *alone = run_alone(roomy, slow), *a = new_listener(), *b = new_listener();
    mx_scheduler *s = open_scheduler((setup){1, 8, CONTEXT, 256}); /* for one of them */
    (void)state;

    a->pause_at = 2;
    submit(s, slow, a);
    wait_for(a, 2);
    submit(s, quick, b);
    wait_for(b, 0);
    assert_int_equal(b->error.status, MX_OK);
    assert_false(a->ended);
    assert_true(stats_of(s).preemptions > 0);
    set_paused(a, false);
    mx_scheduler_wake(s);
    wait_for(a, 0);
    assert_same_answer(a, alone); /* nothing twice, nothing lost */
    assert_at_rest(s);
    mx_scheduler_close(s);
    free_listener(a);
    free_listener(b);
    free_listener(alone);
    free(slow);
    free(quick);
}

/* ---- Long prompts beside a stream -------------------------------------------------------------*/

/* Steps of more than 128, and of more than 256 tokens, while an answer streams and a prompt of 960 is read. */
static void read_beside_a_stream(int max_step_ms, int64_t *over_128, int64_t *over_256)
{
    request *stream = new_request(20, 900, 15), *long_one = new_request(960, 1, 16);
    listener *a = new_listener(), *b = new_listener(), *alone = run_alone(roomy, stream);
    mx_scheduler *s = open_scheduler_with(roomy, max_step_ms);

    a->pause_at = 50;
    set_paused(b, true);
    submit(s, stream, a);
    wait_for(a, 50);
    submit(s, long_one, b);
    set_paused(b, false);
    set_paused(a, false); /* both are there now */
    mx_scheduler_wake(s);
    wait_for(b, 0);
    wait_for(a, 0);
    *over_128 = stats_of(s).batch[8];
    *over_256 = stats_of(s).batch[9];
    assert_same_answer(a, alone);
    mx_scheduler_close(s);
    free_listener(a);
    free_listener(b);
    free_listener(alone);
    free(stream);
    free(long_one);
}

static void steps_are_as_long_as_allowed(void **state)
{
    int64_t over_128, over_256;
    (void)state;

    read_beside_a_stream(60000, &over_128, &over_256);
    assert_true(over_256 > 0);
    for (int tries = 0; tries < 5; tries++) { /* a busy machine can make the stream's own steps look long */
        read_beside_a_stream(0, &over_128, &over_256);
        if (over_128 + over_256 == 0)
            break;
    }
    assert_int_equal(over_128 + over_256, 0); /* no longer than two steps of the stream alone */
}

/* ---- Embeddings -------------------------------------------------------------------------------------*/

static void embedding_is_a_unit_vector_in_any_company(void **state)
{
    request *r = new_request(700, 0, 12),
            *other = new_request(90, 200, 13); /* 700: several chunks */
    mx_scheduler *s = open_scheduler((setup){2, 24, CONTEXT, 256});
    listener *crowd = new_listener(), *b = new_listener();
    size_t bytes = (size_t)model->hparams.dim * sizeof(float);
    double square = 0;
    (void)state;

    r->spec.embed = true;
    listener *a = run_alone(roomy, r);
    assert_int_equal(a->error.status, MX_OK);
    assert_int_equal(a->prompt_tokens, 700);
    assert_int_equal(a->completion_tokens, 0);
    assert_non_null(a->embedding);
    for (int i = 0; i < model->hparams.dim; i++)
        square += (double)a->embedding[i] * (double)a->embedding[i];
    assert_float_equal(square, 1, 1e-6);
    submit(s, other, crowd);
    submit(s, r, b);
    wait_for(b, 0);
    wait_for(crowd, 0);
    assert_memory_equal(a->embedding, b->embedding, bytes);
    assert_at_rest(s);
    mx_scheduler_close(s);
    free_listener(b);
    r->tokens[350] ^= 1;
    b = run_alone(roomy, r);
    assert_memory_not_equal(a->embedding, b->embedding, bytes);
    free_listener(a);
    free_listener(b);
    free_listener(crowd);
    r->spec.n_tokens = 128;
    a = run_alone((setup){1, 4, CONTEXT, 256}, r); /* the whole pool: no token comes after it */
    assert_int_equal(a->error.status, MX_OK);
    free_listener(a);
    free(r);
    free(other);
}

/* ---- Rest -------------------------------------------------------------------------------------------*/

static double cpu_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void idle_scheduler_uses_no_cpu(void **state)
{
    mx_scheduler *s = open_scheduler((setup){2, 100, CONTEXT, 256});
    request *r = new_request(20, 5, 14);
    listener *a = new_listener(), *b = new_listener();
    (void)state;

    submit(s, r, a);
    wait_for(a, 0);
    set_paused(b, true);
    submit(s, r, b); /* a reader that is behind costs nothing either */
    usleep(50000);
    double before = cpu_seconds();
    usleep(300000);
    assert_true(cpu_seconds() - before < 0.01);
    mx_scheduler_close(s);
    assert_int_equal(b->error.status, MX_UNAVAILABLE);
    free_listener(a);
    free_listener(b);
    free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_the_model_says),
        cmocka_unit_test(ends_with_turn_stop_string_and_context),
        cmocka_unit_test(refuses_at_once),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(choices_share_their_prompt),
        cmocka_unit_test(cancelled_requests_end),
        cmocka_unit_test(time_runs_out),
        cmocka_unit_test(close_ends_everything),
        cmocka_unit_test(full_queue_is_busy),
        cmocka_unit_test(paused_reader_gets_nothing_more),
        cmocka_unit_test(paused_reader_makes_room),
        cmocka_unit_test(steps_are_as_long_as_allowed),
        cmocka_unit_test(embedding_is_a_unit_vector_in_any_company),
        cmocka_unit_test(idle_scheduler_uses_no_cpu),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
