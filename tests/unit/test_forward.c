/*
 * test_forward.c: the forward pass: what it computes, and that nothing but the sequence itself changes a bit of it.
 *
 * What a sequence gives when it runs alone, a token at a time on one thread, is the measure for "Same answer": in chunks, in
 * company, in every column, on more threads and in the other expert layout its logits must be the same bytes. What they should
 * be is worked out by forward_reference.h in double.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "engine/forward.h"
#include "forward_reference.h"
#include "small_models.h"

enum { BUDGET = 64, LENGTH = 96, BLOCKS = LENGTH / MX_KV_SPAN, VOCAB = 70, SEQUENCES_MAX = 64 };

enum { MERGED, SEPARATE, MIXED, FLOATS, N_MODELS };

static const char *const model_names[N_MODELS] = {"Q4_K merged", "Q4_K separate", "mixed types", "F32"};
static mx_model *models[N_MODELS];
static const mx_kernels *sets[4];
static int n_sets;

static uint64_t random_state;

static int rnd(int below)
{
    return (int)(mx_synth_random(&random_state) >> 33) % below;
}

/* ---- Models ---------------------------------------------------------------------------------------------------------- */

static mx_type floats(const char *name)
{
    (void)name;
    return MX_TYPE_F32;
}

static mx_type q4_k(const char *name)
{
    (void)name;
    return MX_TYPE_Q4_K;
}

/* Every tensor, and every expert, has another one of the 22. */
static mx_type mixed(const char *name)
{
    unsigned sum = 0;

    for (const char *c = name; *c; c++)
        sum = sum * 31 + (unsigned char)*c;
    return (mx_type)(sum % MX_TYPE_COUNT);
}

static mx_model *open_model(small_model *m)
{
    char path[] = "/tmp/mixtral-forward-XXXXXX";
    mx_model *model = NULL;
    mx_error error = {0};
    int fd = mkstemp(path);

    if (fd < 0 || close(fd) != 0)
        abort();
    if (write_model(path, m, &error) != MX_OK || mx_model_open(path, &model, &error) != MX_OK)
        print_error("%s\n", error.text);
    unlink(path);
    return model;
}

static int open_models(void **state)
{
    static const mx_expert_layout layouts[] = {MX_EXPERTS_MERGED, MX_EXPERTS_SEPARATE, MX_EXPERTS_SEPARATE, MX_EXPERTS_MERGED};
    static mx_type (*const types[])(const char *) = {q4_k, q4_k, mixed, floats};
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    static small_model m;
    (void)state;

    for (int i = 0; i < N_MODELS; i++) {
        m = (small_model){.layers = 2, .dim = 256, .ff = 256, .heads = 4, .kv_heads = 2, .head_dim = 64, .vocab = VOCAB,
                          .experts = 4, .used = 2, .layout = layouts[i], .type_of = types[i]};
        lay_out_model(&m);
        models[i] = open_model(&m);
        if (!models[i])
            return -1;
    }
    for (int i = 0; i < 3; i++) { /* the last is the one that this machine uses */
#ifdef __x86_64__
        if (i == 2 && mx_kernels_get(names[i]) == &mx_kernels_avx512vnni)
            sets[n_sets++] = &mx_kernels_avx512;
#endif
        if (mx_kernels_get(names[i]))
            sets[n_sets++] = mx_kernels_get(names[i]);
    }
    return 0;
}

static int close_models(void **state)
{
    (void)state;
    for (int i = 0; i < N_MODELS; i++)
        mx_model_close(models[i]);
    return 0;
}

/* ---- Sequences through the engine ------------------------------------------------------------------------------------ */

typedef struct {
    const mx_model *model;
    mx_threads *threads;
    mx_kv_pool *pool;
    mx_forward *forward;
} engine;

typedef struct {
    int n, done; /* tokens; those that have been computed */
    int32_t token[LENGTH], blocks[BLOCKS];
    uint8_t token_class[LENGTH];
    float logits[LENGTH * VOCAB]; /* of those that are done */
} sequence;

static void open_engine(engine *e, const mx_model *model, const mx_kernels *kernels, int threads)
{
    const mx_hparams *h = &model->hparams;
    mx_kv_shape shape = {h->n_layers, h->n_kv_heads, h->head_dim, MX_KV_F16};
    int64_t blocks = (SEQUENCES_MAX + 1) * BLOCKS;

    e->model = model;
    assert_int_equal(mx_threads_open(threads, &e->threads, NULL), MX_OK);
    assert_int_equal(mx_kv_pool_open(&shape, blocks * (int64_t)mx_kv_block_bytes(&shape), &e->pool, NULL), MX_OK);
    assert_int_equal(mx_forward_open(model, kernels, e->threads, e->pool, BUDGET, &e->forward, NULL), MX_OK);
    assert_int_equal(mx_forward_max_tokens(e->forward), BUDGET);
}

static void close_engine(engine *e)
{
    mx_forward_close(e->forward);
    mx_kv_pool_close(e->pool);
    mx_threads_close(e->threads);
}

/* A conversation: classes change in runs. */
static void make_sequence(sequence *s, int n, int n_vocab)
{
    int left = 0;
    uint8_t class = MX_CLASS_DECODE;

    s->n = n;
    for (int i = 0; i < n; i++) {
        if (left-- == 0) {
            class = class == MX_CLASS_PROMPT ? MX_CLASS_DECODE : MX_CLASS_PROMPT;
            left = rnd(25);
        }
        s->token[i] = rnd(n_vocab);
        s->token_class[i] = class;
    }
}

/* With blocks of its own from the engine's pool, and nothing computed. */
static void start_sequence(engine *e, sequence *s)
{
    s->done = 0;
    memset(s->logits, 0xff, sizeof s->logits);
    for (int i = 0; i < BLOCKS; i++)
        assert_true((s->blocks[i] = mx_kv_pool_alloc(e->pool)) >= 0);
}

static void stop_sequence(engine *e, sequence *s)
{
    for (int i = 0; i < BLOCKS; i++)
        mx_kv_pool_unref(e->pool, s->blocks[i]);
}

/* One step: the next take[i] tokens of each sequence. */
static void run_step(engine *e, sequence *const *s, const int *take, int n_sequences)
{
    static float logits[BUDGET * VOCAB];
    int32_t token[BUDGET], position[BUDGET], number[BUDGET];
    uint8_t token_class[BUDGET], want[BUDGET];
    const int32_t *blocks[SEQUENCES_MAX];
    mx_batch batch = {0, token, position, number, token_class, want, blocks};
    const float *row = logits;

    for (int i = 0; i < n_sequences; i++) {
        blocks[i] = s[i]->blocks;
        for (int k = 0; k < take[i]; k++, batch.n_tokens++) {
            token[batch.n_tokens] = s[i]->token[s[i]->done + k];
            token_class[batch.n_tokens] = s[i]->token_class[s[i]->done + k];
            position[batch.n_tokens] = s[i]->done + k;
            number[batch.n_tokens] = i;
            want[batch.n_tokens] = MX_WANT_LOGITS;
        }
    }
    assert_int_equal(mx_forward_step(e->forward, &batch, logits, NULL, NULL, NULL), MX_OK);
    for (int i = 0; i < n_sequences; i++) {
        memcpy(s[i]->logits + s[i]->done * VOCAB, row, sizeof(float) * (size_t)take[i] * VOCAB);
        s[i]->done += take[i];
        row += take[i] * VOCAB;
    }
}

static void run_in_chunks(engine *e, sequence *s, int chunk)
{
    while (s->done < s->n) {
        int take = s->n - s->done < chunk ? s->n - s->done : chunk;

        run_step(e, (sequence *const[]){s}, &take, 1);
    }
}

/* Alone, on one thread, a token at a time. */
static void run_alone(const mx_model *model, const mx_kernels *kernels, sequence *s)
{
    engine e;

    open_engine(&e, model, kernels, 1);
    start_sequence(&e, s);
    run_in_chunks(&e, s, 1);
    close_engine(&e);
}

static void expect_same(const sequence *expected, const sequence *got, const char *format, ...)
{
    char what[128];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    for (int i = 0; i < expected->n; i++)
        if (memcmp(expected->logits + i * VOCAB, got->logits + i * VOCAB, sizeof(float) * VOCAB) != 0)
            fail_msg("%s: the logits of token %d (%s class) are others than alone", what, i,
                     expected->token_class[i] == MX_CLASS_DECODE ? "decode" : "prompt");
}

/* With sanitizers everything is slow: then "same answer" is tested with one kernel set, and not every size. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SLOW 1
#else
#define SLOW 0
#endif

#define FIRST_SET (SLOW ? n_sets - 1 : 0)

/* The size after n, or the column: all of them for the kernels that this machine uses, and fewer where it is slow. */
static int next_size(int n, int set, int model)
{
    if (SLOW || set == 0)
        return n < 3 ? n + 1 : n + 13;
    return n < 9 || (set == n_sets - 1 && model != FLOATS) ? n + 1 : n + 5;
}

/* ---- Same answer ----------------------------------------------------------------------------------------------------- */

static const int measured[] = {MERGED, MIXED, FLOATS}; /* the separate layout is merged's equal: see below */

static void chunks_of_1_to_64(void **state)
{
    static sequence alone, chunked;
    engine e;
    (void)state;

    random_state = 1;
    for (int set = FIRST_SET; set < n_sets; set++)
        for (int i = 0; i < 3; i++) {
            int m = measured[i];

            make_sequence(&alone, 70, VOCAB);
            chunked = alone;
            run_alone(models[m], sets[set], &alone);
            open_engine(&e, models[m], sets[set], 1);
            for (int chunk = 2; chunk <= BUDGET; chunk = next_size(chunk, set, m)) {
                start_sequence(&e, &chunked);
                run_in_chunks(&e, &chunked, chunk);
                expect_same(&alone, &chunked, "%s, %s, chunks of %d", sets[set]->name, model_names[m], chunk);
                stop_sequence(&e, &chunked);
            }
            close_engine(&e);
        }
}

/* The last token of a sequence at one place of a batch of n, the others belong to strangers. */
static void step_in_company(engine *e, sequence *probe, sequence *others, int n, int place)
{
    sequence *s[SEQUENCES_MAX];
    int take[SEQUENCES_MAX];

    for (int i = 0; i < n; i++) {
        s[i] = i == place ? probe : &others[i];
        take[i] = 1;
        if (i != place) { /* what lies in their blocks does not matter */
            others[i].done = rnd(LENGTH);
            others[i].token_class[others[i].done] = (uint8_t)rnd(2);
        }
    }
    probe->done = probe->n - 1;
    run_step(e, s, take, n);
}

static void meet_strangers(int set, int m, uint8_t class, sequence *others)
{
    static sequence alone, probe;
    engine e;

    make_sequence(&alone, 40, VOCAB);
    alone.token_class[39] = class;
    probe = alone;
    run_alone(models[m], sets[set], &alone);
    open_engine(&e, models[m], sets[set], 1);
    for (int i = 0; i < SEQUENCES_MAX; i++)
        start_sequence(&e, &others[i]);
    start_sequence(&e, &probe);
    run_in_chunks(&e, &probe, 39);
    for (int n = 1; n <= SEQUENCES_MAX; n = next_size(n, set, m)) {
        int place = rnd(n);

        step_in_company(&e, &probe, others, n, place);
        expect_same(&alone, &probe, "%s, %s, batch of %d, column %d", sets[set]->name, model_names[m], n, place);
    }
    for (int place = 0; place < SEQUENCES_MAX; place = next_size(place, set, m)) {
        step_in_company(&e, &probe, others, SEQUENCES_MAX, place);
        expect_same(&alone, &probe, "%s, %s, column %d of 64", sets[set]->name, model_names[m], place);
    }
    close_engine(&e);
}

static void batches_of_1_to_64_and_every_column(void **state)
{
    static sequence others[SEQUENCES_MAX];
    (void)state;

    random_state = 2;
    for (int i = 0; i < SEQUENCES_MAX; i++)
        make_sequence(&others[i], LENGTH, VOCAB);
    for (int set = FIRST_SET; set < n_sets; set++)
        for (int i = 0; i < 3; i++)
            for (uint8_t class = 0; class < 2; class++)
                meet_strangers(set, measured[i], class, others);
}

/* Sequences that join, leave and advance by chunks of any size, as the scheduler has them. */
static void run_together(engine *e, sequence *s, int n)
{
    int left = n;

    for (int i = 0; i < n; i++)
        start_sequence(e, &s[i]);
    while (left > 0) {
        sequence *now[SEQUENCES_MAX];
        int take[SEQUENCES_MAX], n_now = 0, room = BUDGET, first = rnd(n);

        for (int k = 0; k < n && room > 0; k++) {
            sequence *q = &s[(first + k) % n];
            int most = q->n - q->done < room ? q->n - q->done : room;

            if (most == 0 || rnd(4) == 0)
                continue;
            now[n_now] = q;
            take[n_now] = 1 + rnd(most);
            room -= take[n_now];
            left -= take[n_now] == q->n - q->done;
            n_now++;
        }
        if (n_now > 0)
            run_step(e, now, take, n_now);
    }
    for (int i = 0; i < n; i++)
        stop_sequence(e, &s[i]);
}

static void company_and_threads(void **state)
{
    static sequence alone[9], together[9];
    engine e;
    (void)state;

    random_state = 3;
    for (int set = FIRST_SET; set < n_sets; set++)
        for (int k = 0; k < 3; k++) {
            int m = measured[k], n = SLOW || set == 0 ? 3 : 9;

            for (int i = 0; i < n; i++) {
                make_sequence(&alone[i], 1 + rnd(n * 10), VOCAB);
                together[i] = alone[i];
                run_alone(models[m], sets[set], &alone[i]);
            }
            for (int threads = 1; threads <= 3; threads++) {
                open_engine(&e, models[m], sets[set], threads);
                for (int round = 0; round < 2; round++) {
                    run_together(&e, together, n);
                    for (int i = 0; i < n; i++)
                        expect_same(&alone[i], &together[i], "%s, %s, %d threads, sequence %d", sets[set]->name, model_names[m],
                                    threads, i);
                }
                close_engine(&e);
            }
        }
}

static void both_layouts_are_one_model(void **state)
{
    static sequence merged, separate;
    (void)state;

    random_state = 4;
    make_sequence(&merged, LENGTH, VOCAB);
    separate = merged;
    for (int set = 0; set < n_sets; set++) {
        run_alone(models[MERGED], sets[set], &merged);
        run_alone(models[SEPARATE], sets[set], &separate);
        expect_same(&merged, &separate, "%s, the layouts", sets[set]->name);
    }
}

/* ---- What is computed ------------------------------------------------------------------------------------------------ */

/* The mean squared difference over the mean square. */
static double error_of(const float *got, const double *exact, size_t n)
{
    double difference = 0, square = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - exact[i];

        difference += d * d;
        square += exact[i] * exact[i];
    }
    return difference / square;
}

enum { EXACT = 60 }; /* tokens that are compared with the reference */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/*
 * The median error of a sequence's tokens, all of one class, is below `most` on every kernel set. (The worst may not be: where
 * two experts score nearly alike another one may be chosen, and where a key lies between two halves the other one.)
 */
static void expect_near_reference(const mx_model *model, const char *name, double most)
{
    static sequence s;
    static double exact[EXACT * VOCAB], errors[EXACT];
    engine e;

    make_sequence(&s, EXACT, VOCAB);
    reference_logits(model, s.token, EXACT, exact);
    for (int set = 0; set < n_sets; set++)
        for (int class = 0; class < 2; class++) {
            memset(s.token_class, class, sizeof s.token_class);
            open_engine(&e, model, sets[set], 1);
            start_sequence(&e, &s);
            run_in_chunks(&e, &s, class == MX_CLASS_DECODE ? 1 : 50);
            close_engine(&e);
            for (int i = 0; i < EXACT; i++) {
                errors[i] = error_of(s.logits + i * VOCAB, exact + i * VOCAB, VOCAB);
                assert_true(isfinite(errors[i]));
            }
            qsort(errors, EXACT, sizeof errors[0], compare_doubles);
            if (errors[EXACT / 2] > most)
                fail_msg("%s, %s, %s class: off by %g", name, sets[set]->name, class ? "decode" : "prompt", errors[EXACT / 2]);
        }
}

/* Quantised weights meet activations of 8 bits: what is left is their rounding. */
static void quantised_models_come_near_the_reference(void **state)
{
    (void)state;

    random_state = 5;
    for (int m = 0; m < FLOATS; m++)
        expect_near_reference(models[m], model_names[m], 2e-3);
}

static const struct {
    const char *name;
    int layers, dim, ff, heads, kv_heads, head_dim, experts, used;
    bool tied, rope_factors, zero_router;
    int rope_dim;
    double rope_base, rope_scale; /* 0: no key */
} shapes[] = {
    {.name = "a mixture", .layers = 2, .dim = 64, .ff = 96, .heads = 4, .kv_heads = 2, .head_dim = 16, .experts = 5, .used = 3},
    {.name = "one expert of many", .layers = 2, .dim = 64, .ff = 32, .heads = 2, .kv_heads = 2, .head_dim = 32, .experts = 8,
     .used = 1},
    {.name = "all experts", .layers = 1, .dim = 32, .ff = 32, .heads = 2, .kv_heads = 1, .head_dim = 16, .experts = 3,
     .used = 3},
    {.name = "experts that tie", .layers = 1, .dim = 32, .ff = 32, .heads = 2, .kv_heads = 1, .head_dim = 16, .experts = 4,
     .used = 2, .zero_router = true},
    {.name = "dense, tied", .layers = 3, .dim = 64, .ff = 160, .heads = 4, .kv_heads = 4, .head_dim = 16, .tied = true},
    {.name = "odd widths", .layers = 2, .dim = 50, .ff = 70, .heads = 5, .kv_heads = 5, .head_dim = 10},
    {.name = "40 heads on one", .layers = 1, .dim = 64, .ff = 32, .heads = 40, .kv_heads = 1, .head_dim = 8},
    {.name = "wide heads", .layers = 1, .dim = 32, .ff = 32, .heads = 1, .kv_heads = 1, .head_dim = 512},
    {.name = "positions", .layers = 2, .dim = 64, .ff = 64, .heads = 2, .kv_heads = 1, .head_dim = 32, .rope_factors = true,
     .rope_dim = 20, .rope_base = 500, .rope_scale = 2.5},
};

static void float_models_are_the_reference(void **state)
{
    static small_model m;
    (void)state;

    random_state = 6;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        mx_model *model;

        m = (small_model){.layers = shapes[i].layers, .dim = shapes[i].dim, .ff = shapes[i].ff, .heads = shapes[i].heads,
                          .kv_heads = shapes[i].kv_heads, .head_dim = shapes[i].head_dim, .vocab = VOCAB,
                          .experts = shapes[i].experts, .used = shapes[i].used, .tied = shapes[i].tied, .type_of = floats,
                          .rope_factors = shapes[i].rope_factors, .zero_router = shapes[i].zero_router,
                          .layout = shapes[i].experts ? MX_EXPERTS_SEPARATE : MX_EXPERTS_NONE};
        lay_out_model(&m);
        if (shapes[i].rope_dim) {
            set_key(&m, "llama.rope.dimension_count", MX_GGUF_UINT32, shapes[i].rope_dim, NULL);
            set_key(&m, "llama.rope.freq_base", MX_GGUF_FLOAT32, shapes[i].rope_base, NULL);
            set_key(&m, "llama.rope.scaling.factor", MX_GGUF_FLOAT32, shapes[i].rope_scale, NULL);
            find_tensor(&m, "rope_freqs.weight")->dims[0] = shapes[i].rope_dim / 2;
        }
        model = open_model(&m);
        assert_non_null(model);
        expect_near_reference(model, shapes[i].name, 1e-8);
        mx_model_close(model);
    }
}

/* ---- What is wanted -------------------------------------------------------------------------------------------------- */

enum { WANTS = 12 };

typedef struct {
    float logits[(WANTS + 1) * VOCAB], hidden[(WANTS + 1) * 256];
} answers;

/* Twelve tokens of one sequence with those wants, from position 0. */
static mx_status step_with_wants(engine *e, const sequence *s, const uint8_t *want, answers *a, bool buffers,
                                 bool (*abandoned)(void *), void *arg)
{
    int32_t position[WANTS], number[WANTS] = {0};
    const int32_t *blocks[] = {s->blocks};
    mx_batch batch = {WANTS, s->token, position, number, s->token_class, want, blocks};

    for (int i = 0; i < WANTS; i++)
        position[i] = i;
    memset(a, 0x77, sizeof *a);
    return mx_forward_step(e->forward, &batch, buffers ? a->logits : NULL, buffers ? a->hidden : NULL, abandoned, arg);
}

static void wants_are_answered_in_order(void **state)
{
    static sequence s;
    static answers all, some, untouched;
    uint8_t want[WANTS];
    engine e;
    (void)state;

    random_state = 7;
    memset(&untouched, 0x77, sizeof untouched);
    make_sequence(&s, WANTS, VOCAB);
    for (int i = 0; i < WANTS; i++)
        s.token_class[i] = i % 3 == 0; /* the step reorders by class */
    for (int threads = 1; threads <= 2; threads++) {
        open_engine(&e, models[MIXED], sets[n_sets - 1], threads);
        start_sequence(&e, &s);
        memset(want, MX_WANT_LOGITS | MX_WANT_HIDDEN, WANTS);
        assert_int_equal(step_with_wants(&e, &s, want, &all, true, NULL, NULL), MX_OK);
        for (int round = 0; round < 30; round++) {
            int n_logits = 0, n_hidden = 0;

            for (int i = 0; i < WANTS; i++)
                want[i] = round == 0 ? 0 : round == 1 ? MX_WANT_LOGITS : round == 2 ? MX_WANT_HIDDEN : (uint8_t)rnd(4);
            assert_int_equal(step_with_wants(&e, &s, want, &some, true, NULL, NULL), MX_OK);
            for (int i = 0; i < WANTS; i++) {
                if (want[i] & MX_WANT_LOGITS)
                    assert_memory_equal(some.logits + VOCAB * n_logits++, all.logits + VOCAB * i, sizeof(float) * VOCAB);
                if (want[i] & MX_WANT_HIDDEN)
                    assert_memory_equal(some.hidden + 256 * n_hidden++, all.hidden + 256 * i, sizeof(float) * 256);
            }
            assert_memory_equal(some.logits + VOCAB * n_logits, untouched.logits,
                                sizeof some.logits - sizeof(float) * (size_t)(VOCAB * n_logits));
            assert_memory_equal(some.hidden + 256 * n_hidden, untouched.hidden,
                                sizeof some.hidden - sizeof(float) * (size_t)(256 * n_hidden));
        }
        memset(want, 0, WANTS);
        assert_int_equal(step_with_wants(&e, &s, want, &some, false, NULL, NULL), MX_OK); /* keys and values alone */
        close_engine(&e);
    }
}

/* The hidden state is what the output matrix is multiplied by. */
static void hidden_states_lead_to_the_logits(void **state)
{
    static sequence s;
    static answers all;
    uint8_t want[WANTS];
    double x[256], y[VOCAB];
    engine e;
    (void)state;

    random_state = 8;
    make_sequence(&s, WANTS, VOCAB);
    open_engine(&e, models[FLOATS], sets[0], 1);
    start_sequence(&e, &s);
    memset(want, MX_WANT_LOGITS | MX_WANT_HIDDEN, WANTS);
    assert_int_equal(step_with_wants(&e, &s, want, &all, true, NULL, NULL), MX_OK);
    for (int i = 0; i < WANTS; i++) {
        for (int k = 0; k < 256; k++)
            x[k] = (double)all.hidden[256 * i + k];
        reference_multiply(&models[FLOATS]->output, x, y);
        assert_true(error_of(all.logits + VOCAB * i, y, VOCAB) < 1e-10);
    }
    close_engine(&e);
}

typedef struct {
    int calls, after; /* says so from call number `after` on */
} patience;

static bool is_over(void *arg)
{
    patience *p = arg;

    return ++p->calls >= p->after;
}

static void steps_are_abandoned_anywhere(void **state)
{
    static sequence s;
    static answers all, some;
    uint8_t want[WANTS];
    engine e;
    (void)state;

    random_state = 9;
    make_sequence(&s, WANTS, VOCAB);
    memset(want, MX_WANT_LOGITS | MX_WANT_HIDDEN, WANTS);
    for (int threads = 1; threads <= 2; threads++) {
        patience p = {.after = 1000};
        int calls;

        open_engine(&e, models[MERGED], sets[n_sets - 1], threads);
        start_sequence(&e, &s);
        assert_int_equal(step_with_wants(&e, &s, want, &all, true, is_over, &p), MX_OK);
        calls = p.calls;
        assert_in_range(calls, 3, 999); /* more than one a layer */
        for (int after = 1; after <= calls; after++) {
            mx_status status;

            p = (patience){.after = after};
            status = step_with_wants(&e, &s, want, &some, true, is_over, &p);
            if (threads == 1 || p.calls == after) { /* two threads share the pieces as it comes */
                assert_int_equal(status, MX_CANCELLED);
                assert_int_equal(p.calls, after); /* not asked again */
            } else {
                assert_int_equal(status, MX_OK);
            }
            assert_int_equal(step_with_wants(&e, &s, want, &some, true, NULL, NULL), MX_OK); /* and no harm is done */
            assert_memory_equal(&some, &all, sizeof all);
        }
        close_engine(&e);
    }
    mx_forward_close(NULL);
}

int main(void)
{
    const struct CMUnitTest cases[] = {
        cmocka_unit_test(chunks_of_1_to_64),
        cmocka_unit_test(batches_of_1_to_64_and_every_column),
        cmocka_unit_test(company_and_threads),
        cmocka_unit_test(both_layouts_are_one_model),
        cmocka_unit_test(quantised_models_come_near_the_reference),
        cmocka_unit_test(float_models_are_the_reference),
        cmocka_unit_test(wants_are_answered_in_order),
        cmocka_unit_test(hidden_states_lead_to_the_logits),
        cmocka_unit_test(steps_are_abandoned_anywhere),
    };

    return cmocka_run_group_tests(cases, open_models, close_models);
}
