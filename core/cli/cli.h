/*
 * cli.h: the subcommands of `mixtral`, one file each (cmd_NAME.c), and how they fail.
 *
 * argv[0] is the subcommand's name, its arguments follow. A command returns the exit status: 0, or 1 after one line on
 * standard error.
 */
#ifndef MX_CLI_H
#define MX_CLI_H

#include <stdbool.h>
#include "../mx.h"

int mx_cmd_info(int argc, char **argv);
int mx_cmd_chat(int argc, char **argv);
int mx_cmd_complete(int argc, char **argv);
int mx_cmd_tokenize(int argc, char **argv);
int mx_cmd_embed(int argc, char **argv);
int mx_cmd_logits(int argc, char **argv);
int mx_cmd_bench(int argc, char **argv);
int mx_cmd_synth(int argc, char **argv);
int mx_cmd_serve(int argc, char **argv);
int mx_cmd_key(int argc, char **argv);

/* Prints "mixtral: ..." and a newline to standard error; returns 1. */
int mx_cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A whole number from min to max, and nothing after it. */
bool mx_cli_int(const char *text, int min, int max, int *value);

/* A number from 1 to max, with K, M or G behind it where `units` is set. 0, or 1 after a line on standard error about `flag`. */
int mx_cli_number(const char *flag, const char *text, bool units, int64_t max, int64_t *number);

#endif
