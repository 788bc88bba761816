/*
 * test_out_of_memory.c: every allocation of an engine, its server and a client fails once.
 *
 * This program brings its own malloc, calloc, realloc, posix_memalign, aligned_alloc, mmap and pthread_create, which the
 * core and the libraries below it (Jansson, PCRE2, libsodium, the C library) call: they count, and refuse
 * the k-th call, or the k-th and all after it until the test has seen a failure. For k = 1, 2, 3, ... until none is refused
 *
 *     an engine is opened: it fails with MX_NOMEM, or it answers as ever
 *     each kind of request is sent to a fresh engine: it gets its answer or MX_NOMEM, or the connection is lost; and then
 *     the engine answers as ever, with no request and no block left over
 *
 * (Failures that last begin at every STRIDE-th call of a request: most of what they meet is the same.) Nothing may take longer
 * than HANG_S. What leaks is AddressSanitizer's to find (make check-asan).
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/server/wire.h"
#include "small_models.h"

#define STRIDE 4
#define CONNECTION_CALLS 40 /* how many there may be without which a connection cannot be kept; there are about 12 */
#define HANG_S 120 /* a sanitizer on a busy machine */

/* ---- Allocations that fail ---- */

static atomic_bool armed;
static atomic_long made, refused; /* calls since it was armed */
static long first_refused, last_refused;

#define OURS __attribute__((visibility("default"), no_sanitize("address", "thread", "undefined")))

static _Thread_local int exempt; /* a sanitizer's runtime, which has no way to fail, is calling */

/* Counts a call; true: it is to fail. */
__attribute__((no_sanitize("address", "thread", "undefined"))) static bool refuse(void)
{
    long n;

    if (exempt || !atomic_load_explicit(&armed, memory_order_relaxed))
        return false;
    n = atomic_fetch_add_explicit(&made, 1, memory_order_relaxed) + 1;
    if (n < first_refused || n > last_refused)
        return false;
    atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
    return true;
}

/* The C library's own under other names, or a sanitizer's. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
__attribute__((weak)) void *__interceptor_malloc(size_t);
__attribute__((weak)) void *__interceptor_calloc(size_t, size_t);
__attribute__((weak)) void *__interceptor_realloc(void *, size_t);
__attribute__((weak)) void *__interceptor_aligned_alloc(size_t, size_t);

OURS void *malloc(size_t bytes)
{
    if (refuse()) {
        errno = ENOMEM;
        return NULL;
    }
    return __interceptor_malloc ? __interceptor_malloc(bytes) : __libc_malloc(bytes);
}

OURS void *calloc(size_t n, size_t bytes)
{
    if (refuse()) {
        errno = ENOMEM;
        return NULL;
    }
    return __interceptor_calloc ? __interceptor_calloc(n, bytes) : __libc_calloc(n, bytes);
}

OURS void *realloc(void *old, size_t bytes)
{
    if (refuse()) {
        errno = ENOMEM;
        return NULL;
    }
    return __interceptor_realloc ? __interceptor_realloc(old, bytes) : __libc_realloc(old, bytes);
}

OURS void *aligned_alloc(size_t alignment, size_t bytes)
{
    if (refuse()) {
        errno = ENOMEM;
        return NULL;
    }
    return __interceptor_aligned_alloc ? __interceptor_aligned_alloc(alignment, bytes) : __libc_memalign(alignment, bytes);
}

OURS int posix_memalign(void **memory, size_t alignment, size_t bytes)
{
    void *got = aligned_alloc(alignment, bytes);

    if (!got)
        return ENOMEM;
    *memory = got;
    return 0;
}

OURS void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (refuse()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}

/* The functions behind ours of the same names; looked up before anything is armed. */
static int (*next_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static int (*next_getattr)(pthread_t, pthread_attr_t *);

static void find_next(void)
{
    *(void **)&next_create = dlsym(RTLD_NEXT, "pthread_create");
    *(void **)&next_getattr = dlsym(RTLD_NEXT, "pthread_getattr_np");
}

OURS int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg)
{
    if (refuse())
        return EAGAIN;
    if (!next_create)
        find_next();
    return next_create(thread, attributes, run, arg);
}

/* With this every thread of a sanitizer's begins. */
OURS int pthread_getattr_np(pthread_t thread, pthread_attr_t *attributes)
{
    int rc;

    exempt++;
    if (!next_getattr)
        find_next();
    rc = next_getattr(thread, attributes);
    exempt--;
    return rc;
}

/* From now on the k-th call fails, and, if it lasts, all after it. */
static void arm(long k, bool lasts)
{
    atomic_store(&made, 0);
    atomic_store(&refused, 0);
    first_refused = k;
    last_refused = lasts ? INT64_MAX : k;
    atomic_store(&armed, true);
}

static void disarm(void)
{
    atomic_store(&armed, false);
}

/* ---- What is being tried ---- */

static char trying[160]; /* for whoever reads of a failure */

static void hung(int signal)
{
    static const char words[] = "hangs: ";
    (void)signal;

    if (write(2, words, sizeof words - 1) < 0 || write(2, trying, strlen(trying)) < 0 || write(2, "\n", 1) < 0)
        _exit(3);
    abort();
}

static void begin_try(const char *what, long k, bool lasts)
{
    snprintf(trying, sizeof trying, "%s: allocation %ld%s fails", what, k, lasts ? " and all after it" : "");
    alarm(HANG_S);
}

#define check(holds, ...) \
    do { \
        if (!(holds)) { \
            disarm(); \
            fprintf(stderr, "%s: ", trying); \
            fail_msg(__VA_ARGS__); \
        } \
    } while (0)

/* ---- Models: one of each kind of vocabulary ---- */

static char folder[] = "/tmp/test_out_of_memory.XXXXXX";
static char spm_path[64], bpe_path[64], socket_path[64];

static void put_bpe(mx_gguf_writer *w)
{
    static char spelled[256][4];
    mx_str pieces[260], merges[2] = {{"a b", 3}, {"ab c", 4}};
    double types[260];
    size_t n = 0;

    for (unsigned byte = 0, other = 0x100; byte < 256; byte++, n++) {
        bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        unsigned c = printable ? byte : other++;

        pieces[n] = (mx_str){spelled[byte], (size_t)(c < 0x80 ? snprintf(spelled[byte], 4, "%c", (int)c)
                                                              : snprintf(spelled[byte], 4, "%c%c", (int)(0xc0 | c >> 6),
                                                                         (int)(0x80 | (c & 0x3f))))};
    }
    pieces[n++] = (mx_str){"ab", 2};
    pieces[n++] = (mx_str){"abc", 3};
    pieces[n++] = (mx_str){"<|im_start|>", 12};
    pieces[n++] = (mx_str){"<|im_end|>", 10};
    for (size_t i = 0; i < n; i++)
        types[i] = i < 258 ? 1 : 3; /* normal, control */
    mx_gguf_put_text(w, "tokenizer.ggml.model", "gpt2");
    mx_gguf_put_text(w, "tokenizer.ggml.pre", "smollm");
    mx_gguf_put_strings(w, "tokenizer.ggml.tokens", pieces, n);
    mx_gguf_put_numbers(w, "tokenizer.ggml.token_type", MX_GGUF_INT32, types, n);
    mx_gguf_put_strings(w, "tokenizer.ggml.merges", merges, 2);
    mx_gguf_put_int(w, "tokenizer.ggml.eos_token_id", MX_GGUF_UINT32, 259);
    mx_gguf_put_text(w, "tokenizer.chat_template",
                     "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nabc<|im_end|>\\n' }}{% endif %}"
                     "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{% endfor %}");
}

static mx_type all_q8_0(const char *name)
{
    (void)name;
    return MX_TYPE_Q8_0;
}

static int session_files[2]; /* the session, its key; without names */

static bool make_session_files(void)
{
    char path[96];

    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/file", folder);
        session_files[i] = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        unlink(path);
    }
    return write(session_files[1], "0123456789abcdef0123456789ABCDEF", 32) == 32;
}

static int write_models(void **state)
{
    small_model bpe = {.layers = 2, .dim = 64, .ff = 32, .heads = 2, .kv_heads = 1, .head_dim = 32, .vocab = 260,
                       .experts = 2, .used = 1, .layout = MX_EXPERTS_SEPARATE, .type_of = all_q8_0, .put_more = put_bpe};
    mx_synth_options spm = mx_synth_defaults();
    mx_error error = {0};
    (void)state;

    if (!mkdtemp(folder))
        return -1;
    snprintf(spm_path, sizeof spm_path, "%s/spm.gguf", folder);
    snprintf(bpe_path, sizeof bpe_path, "%s/bpe.gguf", folder);
    snprintf(socket_path, sizeof socket_path, "%s/socket", folder);
    spm.layers = 1;
    spm.dim = spm.ff = 32;
    spm.heads = 2;
    spm.kv_heads = 1;
    spm.experts = 2;
    spm.experts_used = 1;
    spm.vocab_size = 320;
    spm.context = 1024;
    spm.type = MX_TYPE_Q8_0;
    lay_out_model(&bpe);
    if (!make_session_files())
        return -1;
    find_next();
    signal(SIGALRM, hung);
    if (mx_synth_model(spm_path, &spm, &error) == MX_OK && write_model(bpe_path, &bpe, &error) == MX_OK)
        return 0;
    fprintf(stderr, "%s\n", error.text);
    return -1;
}

static int remove_models(void **state)
{
    (void)state;
    alarm(0);
    unlink(spm_path);
    unlink(bpe_path);
    unlink(socket_path);
    return rmdir(folder);
}

static int n_threads = 1;

static mx_status open_engine(const char *path, mx_engine **engine, mx_error *error)
{
    const mx_engine_options options = {.threads = n_threads, .name = "tiny", .kv_pool_bytes = 1 << 18};

    return mx_engine_open(path, &options, engine, error);
}

/* ---- Requests ---- */

typedef struct {
    const char *name;
    const char *json;
    bool over_socket; /* the engine listens, the client connects */
    bool cancelled;   /* by the client, once there is a piece */
    bool closed;      /* the engine is, once there is a piece: only that may run out of memory */
    bool files;       /* comes with a session file and its key */
    bool reads;       /* a text: the kind of vocabulary matters */
    int threads;      /* 0: 1 */
} request;

#define GREEDY "\"temperature\":0,\"ignore_eos\":true,\"seed\":1"
/* Long enough to be paused, as nobody reads it. */
#define ENDLESS "{\"op\":\"complete\",\"prompt\":\"abc\",\"options\":{\"max_tokens\":900,\"n\":8," GREEDY "}}"

static const request chat = {.name = "chat", .json = "{\"op\":\"chat\",\"prompt\":\"abc de\",\"options\":{\"max_tokens\":3,"
                                                     GREEDY "}}"};

static const request requests[] = {
    {.name = "stats", .json = "{\"op\":\"stats\"}"},
    {.name = "models", .json = "{\"op\":\"models\"}"},
    {.name = "tokenize", .reads = true, .json = "{\"op\":\"tokenize\",\"text\":\"abc d\xc3\xa9 12\"}"},
    {.name = "token_count", .reads = true, .json = "{\"op\":\"token_count\",\"text\":\"abc abc\"}"},
    {.name = "detokenize", .json = "{\"op\":\"detokenize\",\"tokens\":[65,66,67]}"},
    {.name = "chunks", .reads = true, .json = "{\"op\":\"chunks\",\"text\":\"abc abc abc abc. abc abc\",\"size\":8,\"overlap\":2}"},
    {.name = "embed", .reads = true, .json = "{\"op\":\"embed\",\"text\":\"abc\"}"},
    {.name = "chat over a socket", .over_socket = true, .reads = true, .threads = 3,
     .json = "{\"op\":\"chat\",\"messages\":[{\"role\":\"user\",\"content\":\"abc\"},{\"role\":\"assistant\",\"content\":\"d\"},"
             "{\"role\":\"user\",\"content\":\"e\"}],\"options\":{\"max_tokens\":3," GREEDY "}}"},
    {.name = "complete", .reads = true,
     .json = "{\"op\":\"complete\",\"prompt\":\"abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc\","
             "\"options\":{\"max_tokens\":5,\"stop\":[\"zzzz\",\"qq\"],\"logit_bias\":{\"70\":-1},\"tenant\":\"t\"," GREEDY "}}"},
    {.name = "choices",
     .json = "{\"op\":\"complete\",\"prompt\":\"abc\",\"options\":{\"max_tokens\":2,\"n\":2,\"logprobs\":true,"
             "\"top_logprobs\":2,\"temperature\":1,\"ignore_eos\":true,\"seed\":7}}"},
    {.name = "session_save", .files = true, .reads = true,
     .json = "{\"op\":\"session_save\",\"prompt\":\"abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc abc\"}"},
    {.name = "session_load", .files = true, .reads = true, .json = "{\"op\":\"session_load\"}"}, /* what was just saved */
    {.name = "wrong option", .json = "{\"op\":\"chat\",\"prompt\":\"a\",\"options\":{\"top_p\":7}}"},
    {.name = "cancel", .json = ENDLESS, .cancelled = true},
    {.name = "close", .json = ENDLESS, .closed = true},
};

#define N_REQUESTS (sizeof requests / sizeof requests[0])

/* How a request ended. Kept in one place, so that looking at it allocates nothing. */
static struct {
    mx_status status; /* MX_OK: with the result */
    bool lost;        /* of the connection; otherwise of the request, or of a call of the client */
    mx_error error;
    char json[1 << 16];
    char streamed[1 << 14]; /* of choice 0 */
} ending;

static void end_with(mx_status status, bool lost)
{
    ending.status = status;
    ending.lost = lost;
}

/* The next event, waited for. No memory (nothing is lost by that) ends the time of failures. */
static mx_status wait_for_event(mx_client *client, mx_event *event)
{
    mx_status status;

    while (true) {
        status = mx_client_next(client, event, &ending.error);
        if (status == MX_NOMEM)
            check(atomic_exchange(&armed, false), "MX_NOMEM again, though there is memory: %s", ending.error.text);
        else if (status != MX_AGAIN)
            return status;
        else
            poll(&(struct pollfd){.fd = mx_client_fd(client), .events = mx_client_events(client)}, 1, 100);
    }
}

/* Reads on to the request's end; up to its first piece only, where that is asked for. */
static void read_on(mx_client *client, uint32_t id, bool to_first_piece)
{
    mx_event event;
    mx_status status;
    size_t n = strlen(ending.streamed);

    do {
        status = wait_for_event(client, &event);
        if (status != MX_OK) {
            end_with(status, true);
            return;
        }
        check(event.id == id, "an event of request %u, which is none", event.id);
        if (event.type == MX_EVENT_PIECE && event.choice == 0) {
            check(n + event.text_bytes < sizeof ending.streamed, "a longer stream than was asked for");
            memcpy(ending.streamed + n, event.text, event.text_bytes + 1);
            n += event.text_bytes;
        }
        if (event.type == MX_EVENT_PIECE && to_first_piece) {
            end_with(MX_AGAIN, false);
            return;
        }
    } while (event.type == MX_EVENT_PIECE);
    if (event.type == MX_EVENT_ERROR) {
        ending.error = event.error;
        end_with(event.error.status, false);
    } else {
        check(event.json_bytes < sizeof ending.json, "a longer result than was asked for");
        memcpy(ending.json, event.json, event.json_bytes + 1);
        end_with(MX_OK, false);
    }
}

static void forget_ending(void)
{
    memset(&ending.error, 0, sizeof ending.error);
    ending.json[0] = ending.streamed[0] = '\0';
    end_with(MX_OK, false);
}

static mx_status listen_there(mx_engine *engine, mx_error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const uint32_t trusted[] = {4711};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    unlink(socket_path);
    memcpy(address.sun_path, socket_path, strlen(socket_path));
    check(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 8) == 0, "no socket: %m");
    return mx_engine_listen(engine, fd, trusted, 1, error);
}

/* A client of the engine, or NULL, with the reason in `ending`. */
static mx_client *connect_client(mx_engine *engine, bool over_socket)
{
    mx_client *client = NULL;
    mx_status status;
    int fd = -1;

    if (over_socket) {
        status = listen_there(engine, &ending.error);
        if (status == MX_OK)
            status = mx_client_connect(socket_path, &client, &ending.error);
    } else {
        status = mx_engine_connect(engine, &fd, &ending.error);
        check(status == MX_OK || fd == -1, "a descriptor in spite of an error");
        if (status == MX_OK)
            status = mx_client_open(fd, &client, &ending.error);
    }
    check(status == MX_OK || !client, "a client in spite of an error");
    end_with(status, false);
    return client;
}

/* One request from its connection to its end. The client is the caller's, NULL where there is none. */
static mx_client *ask(mx_engine *engine, const request *r)
{
    mx_client *client;
    mx_status status;
    uint32_t id;

    forget_ending();
    client = connect_client(engine, r->over_socket);
    if (!client)
        return NULL;
    status = mx_client_request_with_files(client, r->json, session_files, r->files ? 2 : 0, &id, &ending.error);
    if (status != MX_OK) {
        end_with(status, status == MX_UNAVAILABLE);
        return client;
    }
    read_on(client, id, r->cancelled);
    if (r->cancelled && ending.status == MX_AGAIN) {
        while ((status = mx_client_cancel(client, id, &ending.error)) == MX_NOMEM)
            check(atomic_exchange(&armed, false), "MX_NOMEM again, though there is memory: %s", ending.error.text);
        if (status == MX_OK)
            read_on(client, id, false);
        else
            end_with(status, true);
    }
    return client;
}

/* ---- What must come of them ---- */

/* A result without what differs from one time to another; of stats, which figures there are. For free(). */
static char *comparable(const char *text)
{
    json_t *json = json_loads(text, 0, NULL), *value;
    bool is_stats = json_object_get(json, "requests_done") != NULL;
    const char *name;
    void *next;
    char *out;

    check(json, "a result that is no JSON: %s", text);
    json_object_foreach_safe(json, next, name, value) {
        if (strstr(name, "_ms") || strcmp(name, "cached_tokens") == 0 || (is_stats && json_is_integer(value)))
            json_object_set_new(json, name, json_null());
        else if (is_stats && strcmp(name, "batch") == 0)
            json_object_set_new(json, name, json_integer((json_int_t)json_array_size(value)));
    }
    out = json_dumps(json, JSON_SORT_KEYS);
    json_decref(json);
    return out;
}

typedef struct { /* how a request ends when there is memory */
    mx_status status;
    char *json, *streamed;
} answer;

static answer answer_of(const char *path, const request *r)
{
    mx_engine *engine;
    answer a = {0};

    snprintf(trying, sizeof trying, "%s, with all memory", r->name);
    assert_int_equal(open_engine(path, &engine, &ending.error), MX_OK);
    mx_client_close(ask(engine, r));
    mx_engine_close(engine);
    a.status = ending.status;
    a.json = ending.status == MX_OK ? comparable(ending.json) : NULL;
    a.streamed = strdup(ending.streamed);
    return a;
}

static void free_answer(answer *a)
{
    free(a->json);
    free(a->streamed);
}

/* The ending is the answer. */
static void check_answer(const answer *a)
{
    char *json;

    check(ending.status == a->status, "expected %s, got %s: %s", mx_status_name(a->status), mx_status_name(ending.status),
          ending.error.text);
    if (a->status != MX_OK)
        return;
    json = comparable(ending.json);
    check(strcmp(json, a->json) == 0, "expected %s, got %s", a->json, json);
    check(strcmp(ending.streamed, a->streamed) == 0, "expected the stream %s, got %s", a->streamed, ending.streamed);
    free(json);
}

/* One more request on a connection, to its end. */
static void ask_again(mx_client *client, const char *json)
{
    uint32_t id;
    mx_status status;

    forget_ending();
    status = mx_client_request(client, json, &id, &ending.error);
    if (status == MX_OK)
        read_on(client, id, false);
    else
        end_with(status, status == MX_UNAVAILABLE);
}

/* The engine is as if nothing had happened. */
static void check_engine(mx_engine *engine, const answer *chats)
{
    mx_client *client = ask(engine, &chat);
    json_t *json;
    bool rests;

    check_answer(chats);
    while (true) { /* until it hangs */
        ask_again(client, "{\"op\":\"stats\"}");
        check(ending.status == MX_OK, "no stats: %s", ending.error.text);
        json = json_loads(ending.json, 0, NULL);
        rests = json_integer_value(json_object_get(json, "requests_running")) == 0 &&
                json_integer_value(json_object_get(json, "requests_waiting")) == 0 &&
                json_integer_value(json_object_get(json, "kv_blocks_used")) == 0;
        json_decref(json);
        if (rests)
            break;
        poll(NULL, 0, 1);
    }
    mx_client_close(client);
}

typedef struct {
    long tries, answered, nomem, lost;
} tally;

static void print_tally(const char *model, const char *what, bool lasts, const tally *t)
{
    printf("%s, %-20s %-10s %5ld allocations: %5ld errors, %4ld lost connections, %4ld not needed\n", model, what,
           lasts ? "lasting" : "one", t->tries, t->nomem, t->lost, t->answered);
    fflush(stdout);
}

/* One request of an engine, with the k-th allocation failing. False: there are not so many. */
static bool try_request(const char *path, const request *r, const answer *expected, const answer *chats, long k, bool lasts,
                        tally *t)
{
    mx_engine *engine;
    mx_client *client;
    bool any;

    begin_try(r->name, k, lasts);
    check(open_engine(path, &engine, &ending.error) == MX_OK, "%s", ending.error.text);
    arm(k, lasts);
    client = ask(engine, r);
    disarm();
    any = atomic_load(&refused) > 0;
    t->tries += any;
    if (ending.status == expected->status && !ending.lost) {
        check_answer(expected);
        t->answered += any;
    } else if (ending.status == MX_NOMEM && !ending.lost) {
        check(any, "MX_NOMEM, though there was memory: %s", ending.error.text);
        check(strlen(ending.error.text) > 0, "an error without words");
        t->nomem++;
    } else {
        check(any && ending.lost && ending.status == MX_UNAVAILABLE, "ended as %s: %s", mx_status_name(ending.status),
              ending.error.text);
        t->lost++;
    }
    if (client && !ending.lost) { /* the connection is none the worse, or is lost now */
        ask_again(client, "{\"op\":\"token_count\",\"text\":\"abc\"}");
        check(ending.status == MX_OK || (any && ending.lost && ending.status == MX_UNAVAILABLE), "the connection is %s: %s",
              mx_status_name(ending.status), ending.error.text);
        t->lost += ending.lost;
    }
    mx_client_close(client);
    check_engine(engine, chats);
    mx_engine_close(engine);
    return any;
}

/* An engine is closed with a stream running, with the k-th allocation failing. False: there are not so many. */
static bool try_close(const char *path, const request *r, long k, bool lasts, tally *t)
{
    mx_engine *engine;
    mx_client *client;
    uint32_t id;
    bool any;

    begin_try(r->name, k, lasts);
    check(open_engine(path, &engine, &ending.error) == MX_OK, "%s", ending.error.text);
    forget_ending();
    client = connect_client(engine, false);
    check(client && mx_client_request(client, r->json, &id, &ending.error) == MX_OK, "%s", ending.error.text);
    read_on(client, id, true);
    check(ending.status == MX_AGAIN, "no piece: %s", ending.error.text);
    arm(k, lasts);
    mx_engine_close(engine);
    disarm();
    any = atomic_load(&refused) > 0;
    read_on(client, id, false); /* `id`'s error, or the end of the connection; both name the same reason */
    check(ending.status == MX_UNAVAILABLE || ending.status == MX_NOMEM, "ended as %s: %s", mx_status_name(ending.status),
          ending.error.text);
    mx_client_close(client);
    t->tries += any;
    t->lost += any && ending.lost;
    t->nomem += any && !ending.lost;
    return any;
}

static void every_allocation_of_requests(const char *path, const char *model, bool all)
{
    answer chats = answer_of(path, &chat);

    assert_int_equal(chats.status, MX_OK);
    for (size_t i = 0; i < N_REQUESTS; i++) {
        const request *r = &requests[i];
        answer expected;

        if (!all && !r->reads)
            continue;
        expected = r->closed ? (answer){0} : answer_of(path, r);

        n_threads = r->threads ? r->threads : 1;
        assert_int_equal(expected.status, r->cancelled ? MX_CANCELLED : strstr(r->name, "wrong") ? MX_INVALID : MX_OK);
        for (int lasts = 0; lasts < 2; lasts++) {
            tally t = {0};

            for (long k = 1; r->closed ? try_close(path, r, k, lasts, &t)
                                       : try_request(path, r, &expected, &chats, k, lasts, &t); k += lasts ? STRIDE : 1)
                continue;
            print_tally(model, r->name, lasts, &t);
            if (!r->closed) {
                assert_true(t.tries > 10 && t.nomem > 0);
                assert_true(lasts || t.lost <= CONNECTION_CALLS);
            }
        }
        free_answer(&expected);
    }
    n_threads = 1;
    free_answer(&chats);
}

static void every_allocation_of_opening(const char *path, const char *model)
{
    answer chats = answer_of(path, &chat);

    for (int lasts = 0; lasts < 2; lasts++) {
        tally t = {0};
        bool any = true;

        for (long k = 1; any; k++) {
            mx_engine *engine;
            mx_error error = {0};
            mx_status status;

            begin_try("open", k, lasts);
            arm(k, lasts);
            status = open_engine(path, &engine, &error);
            disarm();
            any = atomic_load(&refused) > 0;
            t.tries += any;
            if (status == MX_OK) {
                t.answered += any;
                check_engine(engine, &chats);
                mx_engine_close(engine);
            } else {
                check(status == MX_NOMEM && !engine && error.text[0], "opening gave %s: %s", mx_status_name(status), error.text);
                t.nomem++;
            }
        }
        print_tally(model, "open", lasts, &t);
        assert_true(t.nomem > 20);
    }
    free_answer(&chats);
}

static void opening_with_a_sentencepiece_vocabulary(void **state)
{
    (void)state;
    every_allocation_of_opening(spm_path, "spm");
}

static void opening_with_a_bpe_vocabulary(void **state)
{
    (void)state;
    every_allocation_of_opening(bpe_path, "bpe");
}

static void requests_with_a_sentencepiece_vocabulary(void **state)
{
    (void)state;
    every_allocation_of_requests(spm_path, "spm", true);
}

static void requests_with_a_bpe_vocabulary(void **state)
{
    (void)state;
    every_allocation_of_requests(bpe_path, "bpe", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opening_with_a_sentencepiece_vocabulary),
        cmocka_unit_test(opening_with_a_bpe_vocabulary),
        cmocka_unit_test(requests_with_a_sentencepiece_vocabulary),
        cmocka_unit_test(requests_with_a_bpe_vocabulary),
    };

    return cmocka_run_group_tests(tests, write_models, remove_models);
}
