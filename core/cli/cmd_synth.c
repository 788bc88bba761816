/*
 * cmd_synth.c: `mixtral synth FILE [OPTIONS]`: a model of random weights, the same for the same seed.
 *
 * The geometry is Mixtral 8x7B's with 4 layers of Q4_K (3.3 GB) where no option says otherwise.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../model/synth.h"
#include "cli.h"

static bool parse_int(const char *text, int *value)
{
    char *end;
    long v;

    errno = 0;
    v = strtol(text, &end, 10);
    if (end == text || *end || errno || v < 1 || v > 1 << 30)
        return false;
    *value = (int)v;
    return true;
}

static int set_int(const char *name, const char *text, int *value)
{
    if (!parse_int(text, value))
        return mx_cli_fail("synth: %s: expected a number from 1 to 2^30, got \"%s\"", name, text);
    return 0;
}

static int set_type(const char *name, const char *text, int *type)
{
    *type = mx_type_from_name(text);
    if (*type < 0)
        return mx_cli_fail("synth: %s: expected a tensor type such as Q4_K or F16, got \"%s\"", name, text);
    return 0;
}

static int set_layout(const char *text, mx_expert_layout *layout)
{
    if (strcmp(text, "merged") == 0)
        *layout = MX_EXPERTS_MERGED;
    else if (strcmp(text, "separate") == 0)
        *layout = MX_EXPERTS_SEPARATE;
    else if (strcmp(text, "dense") == 0)
        *layout = MX_EXPERTS_NONE;
    else
        return mx_cli_fail("synth: --layout: expected merged, separate or dense, got \"%s\"", text);
    return 0;
}

static int set_rope_base(const char *text, double *base)
{
    char *end;

    *base = strtod(text, &end);
    if (end == text || *end)
        return mx_cli_fail("synth: --rope-base: expected a number, got \"%s\"", text);
    return 0;
}

static int set_seed(const char *text, uint64_t *seed)
{
    char *end;

    errno = 0;
    *seed = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno)
        return mx_cli_fail("synth: --seed: expected a number from 0 to 2^64 - 1, got \"%s\"", text);
    return 0;
}

static int set_option(const char *name, const char *text, mx_synth_options *o)
{
    const struct {
        const char *name;
        int *value;
        bool is_type;
    } table[] = {
        {"--layers", &o->layers, false},
        {"--dim", &o->dim, false},
        {"--ff", &o->ff, false},
        {"--heads", &o->heads, false},
        {"--kv-heads", &o->kv_heads, false},
        {"--head-dim", &o->head_dim, false},
        {"--experts", &o->experts, false},
        {"--experts-used", &o->experts_used, false},
        {"--vocab-size", &o->vocab_size, false},
        {"--context", &o->context, false},
        {"--embedding-type", &o->embedding_type, true},
        {"--output-type", &o->output_type, true},
        {"--router-type", &o->router_type, true},
    };
    int type, failed;

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(name, table[i].name) == 0)
            return table[i].is_type ? set_type(name, text, table[i].value) : set_int(name, text, table[i].value);
    if (strcmp(name, "--type") == 0) {
        failed = set_type(name, text, &type);
        o->type = failed ? o->type : (mx_type)type;
        return failed;
    }
    if (strcmp(name, "--layout") == 0)
        return set_layout(text, &o->layout);
    if (strcmp(name, "--rope-base") == 0)
        return set_rope_base(text, &o->rope_base);
    if (strcmp(name, "--seed") == 0)
        return set_seed(text, &o->seed);
    if (strcmp(name, "--vocab") == 0) {
        o->vocab = text;
        return 0;
    }
    return mx_cli_fail("synth: there is no option %s", name);
}

int mx_cmd_synth(int argc, char **argv)
{
    mx_synth_options options = mx_synth_defaults();
    const char *path = NULL;
    mx_error error;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--tied") == 0) {
            options.tied = true;
        } else if (argv[i][0] != '-') {
            if (path)
                return mx_cli_fail("synth: expected one file, got %s and %s", path, argv[i]);
            path = argv[i];
        } else if (i + 1 == argc) {
            return mx_cli_fail("synth: %s: expected a value", argv[i]);
        } else {
            if (set_option(argv[i], argv[i + 1], &options))
                return 1;
            i++;
        }
    }
    if (!path)
        return mx_cli_fail("synth: expected the file to write: mixtral synth FILE [--layers N] [--type Q4_K] ...");
    if (mx_synth_model(path, &options, &error) != MX_OK)
        return mx_cli_fail("synth: %s", error.text);
    return 0;
}
