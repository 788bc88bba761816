/*
 * kernels.c: which kernel sets this machine runs, best first.
 */
#include "kernels.h"

#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

static int always(void)
{
    return 1;
}

#ifdef __x86_64__
/* clang 14's __builtin_cpu_supports does not know this one. */
static int has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* __builtin_cpu_supports also asks whether the system saves the wide registers. */
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_avx512_vnni(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
#endif

static const struct {
    const mx_kernels *kernels;
    int (*runs)(void);
} sets[] = {
#ifdef __x86_64__
    {&mx_kernels_avx512vnni, has_avx512_vnni},
    {&mx_kernels_avx512, has_avx512},
    {&mx_kernels_avx2, has_avx2},
#endif
    {&mx_kernels_scalar, always},
};

enum { N_SETS = sizeof sets / sizeof *sets };

const mx_kernels *mx_kernels_get(const char *name)
{
    for (int i = 0; i < N_SETS; i++)
        if (sets[i].runs() && (!name || !strcmp(name, sets[i].kernels->name)))
            return sets[i].kernels;
    return NULL;
}

const char *mx_kernels_names(void)
{
#ifdef __x86_64__
    if (has_avx512())
        return "avx512, avx2, scalar";
    if (has_avx2())
        return "avx2, scalar";
#endif
    return "scalar";
}
