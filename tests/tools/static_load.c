/*
 * static_load.c: GETs of one path at a constant rate, and how long their answers take.
 *
 *     static_load PORT PATH RATE SECONDS
 *
 * Requests are sent when they are due, each on the next of CONNECTIONS kept-alive connections, and timed from then on: a server that
 * stalls delays all that are due meanwhile, as it would for users. Prints one line: `N answers, p50 X ms, p99 X ms, max X ms`.
 * Exits 1 if an answer was not a 200 of the size that the first one had, or did not come.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 8
#define PENDING_MAX 4096 /* requests of a connection without an answer */
#define ANSWER_MAX 65536
#define LATE_MS 10000

typedef struct {
    int fd;
    int64_t due[PENDING_MAX]; /* ns; a ring: [begin, end) */
    unsigned begin, end;
    char text[ANSWER_MAX]; /* of the answer that is coming */
    size_t size;
} connection;

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int fail(const char *what)
{
    fprintf(stderr, "static_load: %s: %s\n", what, strerror(errno));
    return 1;
}

static int open_connection(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

/* Bytes of the whole answer at the beginning of c->text; 0: it has not come; -1: it is none that we want. */
static ssize_t answer_bytes(connection *c)
{
    char *head_end, *length;

    c->text[c->size] = '\0';
    head_end = strstr(c->text, "\r\n\r\n");
    if (!head_end)
        return 0;
    length = strstr(c->text, "Content-Length: ");
    if (strncmp(c->text, "HTTP/1.1 200 ", 13) != 0 || !length)
        return -1;
    head_end += 4 + strtol(length + 16, NULL, 10);
    return head_end - c->text <= (ssize_t)c->size ? head_end - c->text : 0;
}

/* Takes what has come; the times of whole answers go to `times`. False: the connection is of no use any more. */
static int take(connection *c, double *times, size_t *n)
{
    ssize_t got = recv(c->fd, c->text + c->size, sizeof(c->text) - 1 - c->size, MSG_DONTWAIT), bytes;

    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    c->size += (size_t)got;
    while ((bytes = answer_bytes(c)) > 0) {
        times[(*n)++] = (double)(now_ns() - c->due[c->begin++ % PENDING_MAX]) / 1e6;
        memmove(c->text, c->text + bytes, c->size - (size_t)bytes);
        c->size -= (size_t)bytes;
    }
    return bytes == 0;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Sends and takes until `total` answers are there. */
static int run(connection *all, const char *request, double rate, size_t total, double *times)
{
    const int64_t begin = now_ns(), period = (int64_t)(1e9 / rate);
    struct pollfd fds[CONNECTIONS];
    struct timespec wait = {0};
    size_t sent = 0, n = 0;

    while (n < total) {
        int64_t due = begin + (int64_t)sent * period, left = sent < total ? due - now_ns() : 100000000;

        if (sent < total && left <= 0) {
            connection *c = &all[sent++ % CONNECTIONS];

            c->due[c->end++ % PENDING_MAX] = due;
            if (c->end - c->begin >= PENDING_MAX || send(c->fd, request, strlen(request), MSG_NOSIGNAL) < 0)
                return fail("cannot send");
            continue;
        }
        if (sent == total && now_ns() - due > (int64_t)LATE_MS * 1000000)
            return fail("answers are missing");
        for (int i = 0; i < CONNECTIONS; i++)
            fds[i] = (struct pollfd){.fd = all[i].fd, .events = POLLIN};
        wait.tv_nsec = left;
        if (ppoll(fds, CONNECTIONS, &wait, NULL) > 0)
            for (int i = 0; i < CONNECTIONS; i++)
                if (fds[i].revents && !take(&all[i], times, &n))
                    return fail("not a 200 with a Content-Length");
    }
    return 0;
}

int main(int argc, char **argv)
{
    static connection all[CONNECTIONS];
    char request[512];
    double rate, *times;
    size_t total;

    if (argc != 5 || (rate = atof(argv[3])) < 1 || (total = (size_t)(rate * atof(argv[4]))) < 100) {
        fprintf(stderr, "usage: static_load PORT PATH RATE SECONDS, for at least 100 requests\n");
        return 1;
    }
    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", argv[2]);
    times = calloc(total, sizeof(*times));
    for (int i = 0; i < CONNECTIONS; i++)
        if ((all[i].fd = open_connection(atoi(argv[1]))) < 0)
            return fail("cannot connect");
    if (!times || run(all, request, rate, total, times))
        return 1;
    qsort(times, total, sizeof(*times), compare);
    printf("%zu answers, p50 %.3f ms, p99 %.3f ms, max %.3f ms\n", total, times[total / 2], times[total * 99 / 100], times[total - 1]);
    free(times);
    return 0;
}
