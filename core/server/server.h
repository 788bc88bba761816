/*
 * server.h: the engine's end of the sockets: one I/O thread, the connections, and the worker behind it.
 *
 * Closing is two steps, because the requests that still run end in between:
 *
 *     mx_server_stop          joins I/O thread and worker; nothing calls the scheduler from then on
 *     mx_served_close         of each model ends what runs: errors go into the connections' buffers
 *     mx_server_close         sends them, as far as the sockets take them, and closes the connections
 */
#ifndef MX_SERVER_SERVER_H
#define MX_SERVER_SERVER_H

#include <sys/types.h>
#include "served.h"

#define MX_CONNECTIONS_MAX 1024
#define MX_LISTENERS_MAX 4

typedef struct mx_server mx_server;

typedef struct { /* everything is the caller's and outlives the server */
    const mx_served_list *models; /* may grow */
    mx_tenants *tenants;
    mx_tenant_limits tenant_limits; /* of those for whom a request names no others */
    int max_queue;
    int stall_timeout_ms;
    void (*log)(void *arg, mx_log_level level, const char *line); /* NULL: silence */
    void *log_arg;
} mx_server_options;

mx_status mx_server_open(const mx_server_options *options, mx_server **server, mx_error *error);

/* The client's end of a new connection, close-on-exec. MX_BUSY: MX_CONNECTIONS_MAX are open. Any thread. */
mx_status mx_server_connect(mx_server *server, int *fd, mx_error *error);

/* Accepts connections on `fd`, a listening unix socket, taken over also on failure. Peers of our own uid and of `trusted` may name
 * their tenant; any other is the tenant "uid:N". MX_INVALID: no such socket, or more than MX_LISTENERS_MAX. */
mx_status mx_server_listen(mx_server *server, int fd, const uid_t *trusted, size_t n_trusted, mx_error *error);

int mx_server_pending(mx_server *server); /* requests that are not with the scheduler yet; any thread */

/* No more connections, and no more requests on those that are open: MX_UNAVAILABLE. What runs goes on. Any thread. */
void mx_server_drain(mx_server *server);

void mx_server_stop(mx_server *server);
void mx_server_close(mx_server *server); /* stops first where that was not done; takes NULL */

/* In a child of fork: closes the copies of its descriptors and touches nothing else. */
void mx_server_abandon(mx_server *server);

#endif
