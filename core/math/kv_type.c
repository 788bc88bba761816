/*
 * kv_type.c: see kv_type.h.
 */
#include "kv_type.h"

#include <assert.h>
#include <string.h>
#include "../error.h"

static const char *const names[] = {[MX_KV_F16] = "f16", [MX_KV_BF16] = "bf16", [MX_KV_Q8_0] = "q8_0"};

const char *mx_kv_type_name(mx_kv_type type)
{
    return names[type];
}

int mx_kv_type_fits(mx_kv_type type, int head_dim)
{
    return type != MX_KV_Q8_0 || head_dim % MX_KV_GROUP == 0;
}

mx_status mx_kv_type_choose(const char *name, int head_dim, mx_kv_type *type, mx_error *error)
{
    int t = MX_KV_F16;

    while (name && t < MX_KV_TYPE_COUNT && strcmp(name, names[t]) != 0)
        t++;
    if (t == MX_KV_TYPE_COUNT)
        return mx_fail(error, MX_INVALID, "kv_type", "option kv_type: expected f16, bf16 or q8_0, got %s", name);
    if (!mx_kv_type_fits((mx_kv_type)t, head_dim))
        return mx_fail(error, MX_INVALID, "kv_type", "option kv_type: %s takes a head size that is a multiple of %d, the model's is %d",
                       name, MX_KV_GROUP, head_dim);
    *type = (mx_kv_type)t;
    return MX_OK;
}

size_t mx_kv_half_bytes(mx_kv_type type, int head_dim)
{
    size_t numbers = (size_t)head_dim * MX_KV_SPAN;

    assert(mx_kv_type_fits(type, head_dim));
    return type == MX_KV_Q8_0 ? numbers + numbers / MX_KV_GROUP * sizeof(uint16_t) : numbers * sizeof(uint16_t);
}
