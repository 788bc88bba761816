/*
 * main.c: `mixtral COMMAND ...`: the table of subcommands.
 */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *arguments, *summary;
} commands[] = {
    {"info", mx_cmd_info, "MODEL", "what a model file is, and the memory it takes"},
    {"chat", mx_cmd_chat, "MODEL [OPTIONS]", "a conversation; Ctrl-C stops an answer, Ctrl-D ends"},
    {"complete", mx_cmd_complete, "MODEL PROMPT [OPTIONS]", "the text that follows a prompt"},
    {"embed", mx_cmd_embed, "MODEL TEXT [OPTIONS]", "a text's unit vector, as a JSON array"},
    {"tokenize", mx_cmd_tokenize, "MODEL TEXT | MODEL --lines", "a text's token ids"},
    {"logits", mx_cmd_logits, "MODEL --tokens FILE --out FILE", "the raw output for given ids"},
    {"bench", mx_cmd_bench, "MODEL [--threads N] [--prompt N] [--tokens N] [--json]", "tokens per second"},
    {"serve", mx_cmd_serve, "--model MODEL --socket PATH [OPTIONS]", "an engine for other processes, at a unix socket"},
    {"key", mx_cmd_key, "new FILE | list FILE | revoke FILE NAME", "API keys, for servers that ask for them"},
    {"synth", mx_cmd_synth, "FILE [GEOMETRY]", "a model of random weights, for measuring"},
};

#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* One line, whatever an argument has in it. */
int mx_cli_fail(const char *format, ...)
{
    char line[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    for (char *c = line; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    fflush(stdout);
    fprintf(stderr, "mixtral: %s\n", line);
    return 1;
}

/* A command's exit status, once all that it printed is written. */
static int finish(int failed)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return failed;
    return failed ? failed : mx_cli_fail("standard output: %s", strerror(errno));
}

bool mx_cli_int(const char *text, int min, int max, int *value)
{
    char *end;
    long number;

    errno = 0;
    number = strtol(text, &end, 10);
    if (end == text || *end || errno || number < min || number > max)
        return false;
    *value = (int)number;
    return true;
}

int mx_cli_number(const char *flag, const char *text, bool units, int64_t max, int64_t *number)
{
    char *end;
    long long value;
    int shift = 0;

    errno = 0;
    value = strtoll(text, &end, 10);
    if (units && *end != '\0' && end[1] == '\0') {
        shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
        end += shift > 0;
    }
    if (errno || end == text || *end != '\0' || value < 1 || value > max >> shift)
        return mx_cli_fail("%s: expected a number from 1 to %lld, got %s", flag, (long long)max, text);
    *number = (int64_t)value << shift;
    return 0;
}

static int help(void)
{
    printf("usage: mixtral COMMAND ...\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        printf("  %-9s %-55s %s\n", commands[i].name, commands[i].arguments, commands[i].summary);
    printf("  %-9s %-55s %s\n", "version", "", "this program's version");
    printf("\nMODEL is a GGUF file; chat, complete and embed also take unix:PATH, the socket of an engine elsewhere.\n"
           "Options of chat, complete and embed:\n"
           "  --threads N --context N --kv-pool BYTES --kernels NAME    of an engine opened here\n"
           "  --kv-type f16 | bf16 | q8_0                               what it keeps keys and values as\n"
           "  --system TEXT --template NAME --max-tokens N --temperature X --top-k N --top-p X --seed N\n"
           "  --option NAME=VALUE                                       any option of a request\n"
           "  --json                                                    complete: the whole result\n"
           "Options of serve, beside those of an engine; behind a --model they are that model's, before the first all models':\n"
           "  --model MODEL ...                                         more of them, which requests name\n"
           "  --max-queue N --max-step-ms N --name TEXT                 of a model\n"
           "  --tenant-requests N --tenant-tokens-per-minute N          what each tenant may use\n"
           "  --stall-timeout-ms N                                      for readers that take nothing (60,000)\n"
           "  --socket-mode 0660 --allow-uid N                          who may connect; who may name a tenant besides\n"
           "  --listen-fd N ... --lifeline-fd N                         inherited: sockets that listen; its end is ours\n"
           "  --grace-ms N                                              for what runs, after SIGTERM (10,000)\n"
           "Options of key new:\n"
           "  --name NAME --requests N --tokens-per-minute N            at a time, and read and made; 0: no limit\n");
    return 0;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "help";

    if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0)
        return finish(help());
    if (strcmp(name, "version") == 0 || strcmp(name, "--version") == 0) {
        printf("mixtral %s\n", MX_VERSION);
        return finish(0);
    }
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(name, commands[i].name) == 0)
            return finish(commands[i].run(argc - 1, argv + 1));
    }
    return mx_cli_fail("there is no command %s; `mixtral help` lists them", name);
}
