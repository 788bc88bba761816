/*
 * session.c: see session.h.
 */
#include "session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "cli.h"

/* ---- Options ---- */

typedef enum { FLAG_THREADS, FLAG_CONTEXT, FLAG_KV_POOL, FLAG_KV_TYPE, FLAG_KERNELS, FLAG_TEXT, FLAG_VALUE, FLAG_OPTION } flag_kind;

static const struct {
    const char *name, *option;
    flag_kind kind;
} flags[] = {
    {"--threads", NULL, FLAG_THREADS},
    {"--context", NULL, FLAG_CONTEXT},
    {"--kv-pool", NULL, FLAG_KV_POOL},
    {"--kv-type", NULL, FLAG_KV_TYPE},
    {"--kernels", NULL, FLAG_KERNELS},
    {"--system", "system", FLAG_TEXT},
    {"--template", "template", FLAG_TEXT},
    {"--max-tokens", "max_tokens", FLAG_VALUE},
    {"--temperature", "temperature", FLAG_VALUE},
    {"--top-k", "top_k", FLAG_VALUE},
    {"--top-p", "top_p", FLAG_VALUE},
    {"--min-p", "min_p", FLAG_VALUE},
    {"--seed", "seed", FLAG_VALUE},
    {"--option", NULL, FLAG_OPTION},
};

/* A request's option: the engine checks it. What is no JSON is a string. */
static int set_option(mx_cli_options *options, const char *name, const char *text, bool is_text)
{
    json_t *value = is_text ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);

    if (!value)
        value = json_string(text);
    if (!value)
        return mx_cli_fail("option %s: expected UTF-8 text", name);
    if (json_object_set_new(options->options, name, value) != 0)
        return mx_cli_fail("option %s: out of memory, or not UTF-8", name);
    return 0;
}

/* NAME=VALUE */
static int set_any_option(mx_cli_options *options, const char *text)
{
    const char *equals = strchr(text, '=');
    char name[64];

    if (!equals || equals == text || (size_t)(equals - text) >= sizeof(name))
        return mx_cli_fail("--option: expected NAME=VALUE, got %s", text);
    memcpy(name, text, (size_t)(equals - text));
    name[equals - text] = '\0';
    return set_option(options, name, equals + 1, false);
}

static int take_flag(mx_cli_options *options, const char *flag, const char *value)
{
    const size_t n_flags = sizeof(flags) / sizeof(flags[0]);
    int64_t number = 0;
    int failed = 0;
    size_t i;

    for (i = 0; i < n_flags && strcmp(flags[i].name, flag) != 0; i++)
        continue;
    if (i == n_flags)
        return mx_cli_fail("there is no option %s; `mixtral help` lists them", flag);
    if (!value)
        return mx_cli_fail("%s: expected a value after it", flag);
    switch (flags[i].kind) {
    case FLAG_THREADS:
        failed = mx_cli_number(flag, value, false, 256, &number);
        options->engine.threads = (int)number;
        break;
    case FLAG_CONTEXT:
        failed = mx_cli_number(flag, value, false, INT32_MAX, &number);
        options->engine.context = (int)number;
        break;
    case FLAG_KV_POOL:
        failed = mx_cli_number(flag, value, true, INT64_MAX, &number);
        options->engine.kv_pool_bytes = number;
        break;
    case FLAG_KV_TYPE:
        options->engine.kv_type = value;
        break;
    case FLAG_KERNELS:
        options->engine.kernels = value;
        break;
    case FLAG_TEXT:
    case FLAG_VALUE:
        return set_option(options, flags[i].option, value, flags[i].kind == FLAG_TEXT);
    case FLAG_OPTION:
        return set_any_option(options, value);
    }
    options->engine_given = true;
    return failed;
}

int mx_cli_parse(int argc, char **argv, int n_args, mx_cli_options *options)
{
    int failed = 0;

    memset(options, 0, sizeof(*options));
    options->options = json_object();
    if (!options->options)
        return mx_cli_fail("out of memory");
    for (int i = 1; i < argc && !failed; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            options->json = true;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            failed = take_flag(options, argv[i], argv[i + 1]); /* argv ends with NULL */
            i++;
        } else if (options->n_args < n_args) {
            options->args[options->n_args++] = argv[i];
        } else {
            failed = mx_cli_fail("%s: did not expect the argument %s", argv[0], argv[i]);
        }
    }
    if (!failed && options->n_args < n_args)
        failed = mx_cli_fail("%s: expected %s; see `mixtral help`", argv[0],
                             options->n_args == 0 ? "a model" : "a text after the model");
    if (failed)
        mx_cli_options_free(options);
    return failed;
}

void mx_cli_options_free(mx_cli_options *options)
{
    json_decref(options->options);
    options->options = NULL;
}

/* ---- Sessions ---- */

int mx_cli_open(const mx_cli_options *options, mx_cli_session *session)
{
    const char *model = options->args[0];
    mx_error error;
    mx_status status;
    int fd;

    *session = (mx_cli_session){.interrupts = -1};
    if (strncmp(model, "unix:", 5) == 0) {
        if (options->engine_given)
            return mx_cli_fail("the options of an engine go to the one that opens it, not to %s", model);
        status = mx_client_connect(model + 5, &session->client, &error);
    } else {
        status = mx_engine_open(model, &options->engine, &session->engine, &error);
        if (status == MX_OK)
            status = mx_engine_connect(session->engine, &fd, &error);
        if (status == MX_OK)
            status = mx_client_open(fd, &session->client, &error);
    }
    if (status == MX_OK)
        return 0;
    mx_cli_close(session);
    return mx_cli_fail("%s", error.text);
}

void mx_cli_close(mx_cli_session *session)
{
    mx_client_close(session->client);
    mx_engine_close(session->engine);
    if (session->interrupts >= 0)
        close(session->interrupts);
}

int mx_cli_catch_interrupts(mx_cli_session *session)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    session->interrupts = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (session->interrupts < 0 || sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return mx_cli_fail("cannot catch Ctrl-C: %s", strerror(errno));
    return 0;
}

/* Waits for the client's socket, and asks for the request's end on Ctrl-C. */
static mx_status wait_for_event(mx_cli_session *session, uint32_t id, mx_error *error)
{
    struct pollfd fds[] = {
        {.fd = mx_client_fd(session->client), .events = mx_client_events(session->client)},
        {.fd = session->interrupts, .events = POLLIN}, /* -1 is passed over */
    };
    struct signalfd_siginfo info;

    if (poll(fds, 2, -1) > 0 && (fds[1].revents & POLLIN) &&
        read(session->interrupts, &info, sizeof(info)) == (ssize_t)sizeof(info))
        return mx_client_cancel(session->client, id, error);
    return MX_OK;
}

mx_status mx_cli_request(mx_cli_session *session, json_t *request, mx_cli_piece *piece, void *arg, json_t **result,
                         mx_error *error)
{
    char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    mx_status status;
    mx_event event;
    uint32_t id;

    *result = NULL;
    json_decref(request);
    if (!text) {
        *error = (mx_error){.status = MX_INVALID, .text = "the request: expected UTF-8 text (or there is no memory for it)"};
        return MX_INVALID;
    }
    status = mx_client_request(session->client, text, &id, error);
    free(text);
    while (status == MX_OK) {
        status = mx_client_next(session->client, &event, error);
        if (status == MX_AGAIN) {
            status = wait_for_event(session, id, error);
        } else if (status == MX_OK && event.type == MX_EVENT_PIECE) {
            if (piece)
                piece(arg, event.choice, event.text, event.text_bytes);
        } else if (status == MX_OK && event.type == MX_EVENT_ERROR) {
            *error = event.error;
            status = event.error.status;
        } else if (status == MX_OK) {
            *result = json_loadb(event.json, event.json_bytes, JSON_ALLOW_NUL, NULL);
            if (*result)
                return MX_OK;
            *error = (mx_error){.status = MX_CORRUPT, .text = "the engine's result is no JSON"};
            status = MX_CORRUPT;
        }
    }
    return status;
}
