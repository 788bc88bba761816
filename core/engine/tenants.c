/*
 * tenants.c: the accounts, in a hash table of chains. See tenants.h.
 *
 * A tenant without requests whose bucket is full is forgotten when its chain is walked: there is nothing to remember of it. So the
 * table holds no more than those who have come within about a minute.
 */
#include "tenants.h"

#include <pthread.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "../error.h"

#define CHAINS 1024
#define NS_PER_MINUTE 60e9

struct mx_tenant {
    mx_tenants *tenants;
    mx_tenant *next;  /* in its chain */
    int requests;     /* that run */
    double tokens;    /* in the bucket; below zero: owed */
    int64_t per_minute; /* as its last request said */
    int64_t filled_ns;  /* when the bucket was last looked at */
    char name[];
};

struct mx_tenants {
    pthread_mutex_t lock;
    uint8_t key[crypto_shorthash_KEYBYTES]; /* of the table: a peer cannot choose names for one chain */
    mx_tenant *chains[CHAINS];
};

mx_status mx_tenants_open(mx_tenants **tenants, mx_error *error)
{
    mx_tenants *t = calloc(1, sizeof *t);

    *tenants = NULL;
    if (!t || pthread_mutex_init(&t->lock, NULL) != 0) {
        free(t);
        return mx_fail(error, MX_NOMEM, NULL, "out of memory for the tenants");
    }
    randombytes_buf(t->key, sizeof t->key);
    *tenants = t;
    return MX_OK;
}

void mx_tenants_close(mx_tenants *t)
{
    mx_tenant *tenant;

    if (!t)
        return;
    for (int i = 0; i < CHAINS; i++)
        while ((tenant = t->chains[i])) {
            t->chains[i] = tenant->next;
            free(tenant);
        }
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* ---- Under the lock ---- */

static mx_tenant **chain_of(mx_tenants *t, const char *name)
{
    uint64_t hash;

    crypto_shorthash((uint8_t *)&hash, (const uint8_t *)name, strlen(name), t->key);
    return &t->chains[hash % CHAINS];
}

static void fill(mx_tenant *tenant, int64_t now_ns)
{
    tenant->tokens += (double)(now_ns - tenant->filled_ns) / NS_PER_MINUTE * (double)tenant->per_minute;
    if (tenant->tokens > (double)tenant->per_minute)
        tenant->tokens = (double)tenant->per_minute;
    tenant->filled_ns = now_ns;
}

static bool is_forgettable(mx_tenant *tenant, int64_t now_ns)
{
    fill(tenant, now_ns);
    return tenant->requests == 0 && (tenant->per_minute == 0 || tenant->tokens >= (double)tenant->per_minute);
}

/* The tenant's account, a full one if there was none; NULL: out of memory. */
static mx_tenant *find(mx_tenants *t, const char *name, int64_t per_minute, int64_t now_ns)
{
    mx_tenant **link = chain_of(t, name), *tenant, *found = NULL;

    while ((tenant = *link)) {
        if (strcmp(tenant->name, name) == 0)
            found = tenant;
        if (tenant != found && is_forgettable(tenant, now_ns)) {
            *link = tenant->next;
            free(tenant);
        } else {
            link = &tenant->next;
        }
    }
    if (!found) {
        found = calloc(1, sizeof *found + strlen(name) + 1);
        if (!found)
            return NULL;
        strcpy(found->name, name);
        found->tenants = t;
        found->tokens = (double)per_minute;
        found->filled_ns = now_ns;
        *link = found;
    }
    if (found->per_minute == 0) /* until now nothing was counted */
        found->tokens = (double)per_minute;
    found->per_minute = per_minute;
    fill(found, now_ns);
    return found;
}

static mx_status check(const mx_tenant *tenant, const mx_tenant_limits *limits, mx_error *error)
{
    int64_t wait_ms;

    if (limits->requests > 0 && tenant->requests >= limits->requests)
        return mx_fail(error, MX_BUSY, "tenant_requests", "%d requests of this tenant run already, as many as it may have at a "
                       "time", tenant->requests);
    if (limits->tokens_per_minute == 0 || tenant->tokens > 0)
        return MX_OK;
    wait_ms = 1 + (int64_t)(-tenant->tokens / (double)limits->tokens_per_minute * NS_PER_MINUTE * 1e-6);
    mx_fail(error, MX_BUSY, "tenant_tokens_per_minute", "this tenant has used its %lld tokens a minute; try again in %lld ms",
            (long long)limits->tokens_per_minute, (long long)wait_ms);
    return mx_retry_after(error, wait_ms);
}

/* ---- From any thread ---- */

mx_status mx_tenants_enter(mx_tenants *t, const char *name, const mx_tenant_limits *limits, int64_t now_ns,
                           mx_tenant **tenant, mx_error *error)
{
    mx_tenant *found;
    mx_status status;

    *tenant = NULL;
    if (limits->requests == 0 && limits->tokens_per_minute == 0)
        return MX_OK;
    pthread_mutex_lock(&t->lock);
    found = find(t, name, limits->tokens_per_minute, now_ns);
    status = found ? check(found, limits, error) : mx_fail(error, MX_NOMEM, NULL, "out of memory for a tenant");
    if (status == MX_OK) {
        found->requests++;
        *tenant = found;
    }
    pthread_mutex_unlock(&t->lock);
    return status;
}

void mx_tenant_spend(mx_tenant *tenant, int64_t tokens)
{
    if (!tenant)
        return;
    pthread_mutex_lock(&tenant->tenants->lock);
    if (tenant->per_minute > 0)
        tenant->tokens -= (double)tokens;
    pthread_mutex_unlock(&tenant->tenants->lock);
}

void mx_tenant_leave(mx_tenant *tenant)
{
    mx_tenants *t;

    if (!tenant)
        return;
    t = tenant->tenants; /* unlocked, the tenant may be forgotten */
    pthread_mutex_lock(&t->lock);
    tenant->requests--;
    pthread_mutex_unlock(&t->lock);
}

int mx_tenants_count(mx_tenants *t)
{
    int n = 0;

    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < CHAINS; i++)
        for (const mx_tenant *tenant = t->chains[i]; tenant; tenant = tenant->next)
            n++;
    pthread_mutex_unlock(&t->lock);
    return n;
}
