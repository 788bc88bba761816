/*
 * tenants.h: what each tenant may use of the engine: so many requests at a time, so many tokens a minute.
 *
 * Tokens are a bucket: it holds a minute's worth, fills evenly, and a request may begin while there is anything in it. What the
 * request then reads and makes is taken out as it happens, below zero too, so that its size need not be known before; the tenant's next
 * one waits until the bucket has come back above zero. Any thread; one lock, held for moments. Times are mx_now_ns's.
 */
#ifndef MX_ENGINE_TENANTS_H
#define MX_ENGINE_TENANTS_H

#include "../mx.h"

typedef struct mx_tenants mx_tenants;
typedef struct mx_tenant mx_tenant;

typedef struct {
    int requests;              /* at a time; 0: no limit */
    int64_t tokens_per_minute; /* prompt and completion; 0: no limit */
} mx_tenant_limits;

mx_status mx_tenants_open(mx_tenants **tenants, mx_error *error);
void mx_tenants_close(mx_tenants *tenants); /* no request is left; takes NULL */

/* A request of the tenant `name` begins. *tenant is its account until mx_tenant_leave; NULL where nothing is limited.
 * MX_BUSY, with the time after which to try again where that is known; MX_NOMEM. */
mx_status mx_tenants_enter(mx_tenants *tenants, const char *name, const mx_tenant_limits *limits, int64_t now_ns,
                           mx_tenant **tenant, mx_error *error);

/* Both take NULL. */
void mx_tenant_spend(mx_tenant *tenant, int64_t tokens);
void mx_tenant_leave(mx_tenant *tenant);

/* Tenants that the engine has to remember: with a request, or with a bucket that is not full. For tests. */
int mx_tenants_count(mx_tenants *tenants);

#endif
