/*
 * mx.h: the public interface of mixtral's core, and the only header a host includes.
 *
 * An engine holds one or more models, each with weights, KV pool, scheduler and threads. There is one way to talk to it: a stream
 * socket. A host opens a client on a socket's descriptor, sends a request and reads events; it waits on the
 * descriptor in its own idiom (poll, WaitLatchOrSocket, an event loop), so that every wait can be cancelled.
 *
 *     mx_engine *engine;  mx_client *client;  mx_event event;  mx_error error;  uint32_t id;  int fd;
 *
 *     mx_engine_open("model.gguf", NULL, &engine, &error);
 *     mx_engine_connect(engine, &fd, &error);
 *     mx_client_open(fd, &client, &error);
 *     mx_client_request(client, "{\"op\":\"chat\",\"prompt\":\"Hello\"}", &id, &error);
 *     while (mx_client_next(client, &event, &error) ...)      MX_AGAIN: poll mx_client_fd for mx_client_events
 *     mx_client_close(client);
 *     mx_engine_close(engine);
 *
 * The core never exits, aborts, prints, reads the environment or touches signal handlers. Every function that can
 * fail returns an mx_status and, where `error` is not NULL, fills it with a text that says what was expected and what
 * came. Strings are UTF-8. Strings given to the core are copied; strings received belong to the object they came from
 * and live until the next call on it.
 *
 * Same answer: a request's tokens depend on the request, its seed and the model file alone: not on what else is in the
 * batch, nor on the number of threads, nor on whether its prefix came from the cache or it was put back and computed again. (On
 * one machine and KV type: another instruction set rounds differently.)
 *
 * Copyright 2026 the mixtral authors. Licensed under the Apache License, Version 2.0.
 */
#ifndef MX_H
#define MX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MX_VERSION "0.1.0"
#define MX_PROTOCOL 1 /* of the socket; client and server must agree */

/* What became of a call. A closed set: each host maps it to its own codes in one table. */
typedef enum {
    MX_OK = 0,
    MX_AGAIN,       /* nothing yet: wait for the descriptor */
    MX_BUSY,        /* the queue is full, or a limit is reached: try again later */
    MX_NOMEM,       /* out of memory */
    MX_INVALID,     /* a request, option or argument is wrong */
    MX_NOT_FOUND,   /* no such file, model, key or tensor */
    MX_DENIED,      /* not allowed */
    MX_TOO_LARGE,   /* exceeds the context, the pool or a limit */
    MX_UNAVAILABLE, /* the engine is closed, gone or not reachable */
    MX_CORRUPT,     /* a file's or a peer's bytes are not what the format allows */
    MX_CANCELLED,   /* by the caller */
    MX_TIMEOUT,     /* the request's own time limit, or a reader that stalled */
    MX_IO,          /* the system refused to read, write or map */
    MX_INTERNAL     /* our mistake */
} mx_status;

/* The status's name as it goes over the wire: "ok", "again", "busy", ...; never NULL. */
const char *mx_status_name(mx_status status);

typedef struct {
    mx_status status;
    char field[64]; /* the option, key or tensor at fault; "" if none */
    char text[512]; /* one line: what was expected, what came, where */
    int64_t retry_after_ms; /* MX_BUSY: when it may be worth another try; 0: not known */
} mx_error;

/* ---- Engine: models, their threads and their memory -------------------------------------------------------------- */

typedef struct mx_engine mx_engine;

typedef enum { MX_LOG_ERROR, MX_LOG_WARNING, MX_LOG_INFO } mx_log_level;

typedef struct {
    int threads;              /* compute threads, 1 to 256; 0: physical cores within affinity mask and cgroup quota */
    int context;              /* tokens per request; 0: the model's own */
    int64_t kv_pool_bytes;    /* 0: one full context, or a quarter of the available memory where that is less */
    const char *kv_type;      /* "f16", "bf16", "q8_0" (heads of a multiple of 32; half the memory); NULL: "f16" */
    int max_queue;            /* requests waiting before MX_BUSY; 0: 256 */
    int max_step_ms;          /* between two pieces of an answer while others' prompts are read (or two passes over the weights,
                                 where that is longer); 0: 250 */
    int tenant_requests;      /* of a tenant at a time, before MX_BUSY; 0: no limit */
    int64_t tenant_tokens_per_minute; /* that a tenant may have read and made, before MX_BUSY; 0: no limit */
    int stall_timeout_ms;     /* a reader that takes nothing for so long loses its request; 0: 60,000 */
    const char *kernels;      /* "scalar", "avx2", "avx512"; NULL: the best this machine runs */
    const char *name;         /* what requests call the model; NULL: general.name, or the file's base name */
    void (*log)(void *arg, mx_log_level level, const char *line); /* any thread; NULL: silence */
    void *log_arg;
} mx_engine_options;

/*
 * Maps and checks the model file (or the first of a split) and starts the engine's I/O thread; compute threads start
 * with the first request. `options` NULL or zeroed: defaults. On success *engine is the caller's to close.
 * Errors: MX_NOT_FOUND, MX_CORRUPT, MX_INVALID (an option, or a model that is not built), MX_NOMEM, MX_IO.
 */
mx_status mx_engine_open(const char *path, const mx_engine_options *options, mx_engine **engine, mx_error *error);

/*
 * Another model in the same engine, with its own KV pool and compute threads; requests name it (option `model`; without it they
 * get the first one). Limits of tenants, stall_timeout_ms and log are the engine's, and not looked at here. Any thread, also while
 * requests run. Errors as mx_engine_open's; MX_INVALID too when the name is taken, MX_BUSY when 16 models are open.
 */
mx_status mx_engine_add(mx_engine *engine, const char *path, const mx_engine_options *options, mx_error *error);

/* A new connection: *fd is the client's end of a socket pair, for mx_client_open. Any thread. */
mx_status mx_engine_connect(mx_engine *engine, int *fd, mx_error *error);

/*
 * Serves on `fd`, a listening unix socket, which the engine takes over, also on failure. Peers of the engine's own uid and of
 * trusted_uids may name their tenant (option `tenant`); any other peer is the tenant "uid:N". Up to four sockets. Errors: MX_INVALID,
 * MX_NOMEM.
 */
mx_status mx_engine_listen(mx_engine *engine, int fd, const uint32_t *trusted_uids, size_t n_trusted, mx_error *error);

/* From the first call on, takes no more connections nor requests (MX_UNAVAILABLE), while what runs goes on. Gives the number of
 * requests that are still to end and of connections that have not taken all of their output; 0: closing loses nothing. */
int mx_engine_drain(mx_engine *engine);

/* Cancels every request, joins the threads, unmaps. Takes NULL. Clients see MX_UNAVAILABLE. */
void mx_engine_close(mx_engine *engine);

/*
 * In a child of fork: gives up the copy of an engine that belongs to the parent (closes the copied descriptors, frees
 * nothing that a lost thread may hold). The parent's engine is not affected.
 */
void mx_engine_abandon(mx_engine *engine);

/* ---- Client: a non-blocking state machine over one socket --------------------------------------------------------- */

typedef struct mx_client mx_client;

typedef enum {
    MX_EVENT_PIECE,  /* a piece of generated text: whole UTF-8 characters */
    MX_EVENT_RESULT, /* the request is done: `json` is its result object */
    MX_EVENT_ERROR   /* the request failed: `error`; the connection lives on */
} mx_event_type;

typedef struct {
    mx_event_type type;
    uint32_t id;      /* the request's, from mx_client_request */
    int choice;       /* PIECE: 0 .. n-1, of the request's option `n` */
    const char *text; /* PIECE: NUL-terminated, text_bytes long; the client's, until its next call */
    size_t text_bytes;
    int cached_tokens; /* PIECE: of the request's prompt, with its first piece; -1: it has been said */
    const char *json; /* RESULT: NUL-terminated JSON object; the client's, until its next call */
    size_t json_bytes;
    mx_error error;   /* ERROR */
} mx_event;

/* Takes over `fd` (also on failure) and makes it non-blocking. Does not wait. */
mx_status mx_client_open(int fd, mx_client **client, mx_error *error);

/* Connects to the unix socket at `path` (at most 107 bytes). Errors: MX_UNAVAILABLE, MX_INVALID, MX_NOMEM. */
mx_status mx_client_connect(const char *path, mx_client **client, mx_error *error);

/*
 * Queues a request and sends what the socket takes. `json` is an object:
 *   op        "chat", "complete", "embed", "tokenize", "detokenize", "token_count", "chunks", "models", "stats", "session_save",
 *             "session_load"
 *   prompt    chat, session_save, complete: a string; or
 *   messages  chat, session_save: array of {"role": "system"|"user"|"assistant", "content": string}
 *   text      embed, tokenize, token_count, chunks: a string; token_count also takes `prompt` or `messages` instead, as chat does, and
 *             counts the tokens of the conversation as the model's template writes it
 *   tokens    detokenize: array of ids
 *   size, overlap   chunks: tokens
 *   options   object, see README; unknown names are errors
 * *id names the request in later events. Errors: MX_INVALID (no JSON object), MX_TOO_LARGE, MX_UNAVAILABLE, MX_NOMEM.
 *
 * Results: chat and complete {"text", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens",
 * "first_token_ms", "total_ms", "seed", "model", "choices": [{"text", "finish_reason", "stop"?, "logprobs"?}]} where finish_reason is
 * "stop" or "length", and stop the stop string that ended the text, if one did; embed {"embedding": [float], "tokens": n}; tokenize {"tokens": [{"id", "piece"}]}; detokenize {"text"};
 * session_save and session_load {"tokens", "cached_tokens", "bytes"};
 * token_count {"count"}; chunks {"chunks": [{"text", "start", "end", "tokens"}]} (byte offsets); models {"models": [..]};
 * stats: an object of figures.
 *
 * A session file keeps what the model has computed of a conversation (keys and values, of which a request that begins with the same
 * tokens computes none again), so that a long document is read once in its life. session_save and session_load come with two
 * files (mx_client_request_with_files): the session file, opened for writing or reading, and a file of 32 secret bytes, the key with which
 * it is encrypted and authenticated. A load makes it findable for the request's tenant as if it had been computed here. Only peers
 * that may name a tenant have these. Errors: MX_CORRUPT (other key, changed bytes), MX_INVALID (another model or KV type), MX_IO.
 */
mx_status mx_client_request(mx_client *client, const char *json, uint32_t *id, mx_error *error);

/* The same for a request that comes with files: copies of the descriptors are passed, in order, and these stay the caller's. */
mx_status mx_client_request_with_files(mx_client *client, const char *json, const int *fds, int n_fds, uint32_t *id, mx_error *error);

/* Asks the server to drop a request. Its last event (usually an ERROR with MX_CANCELLED) may still come. */
mx_status mx_client_cancel(mx_client *client, uint32_t id, mx_error *error);

/* The next event; MX_AGAIN when there is none yet; MX_NOMEM: ask again; MX_UNAVAILABLE, MX_CORRUPT, MX_BUSY (the engine has as many
 * connections as it can) when the connection is lost. */
mx_status mx_client_next(mx_client *client, mx_event *event, mx_error *error);

/* The descriptor, and the poll(2) events to wait for on it (POLLIN, with POLLOUT while bytes are unsent). */
int mx_client_fd(const mx_client *client);
short mx_client_events(const mx_client *client);

/* Shuts the socket down and closes it; the server drops this client's requests. Takes NULL. */
void mx_client_close(mx_client *client);

/* In a child of fork: closes the copied descriptor without shutting the parent's connection down. Takes NULL. */
void mx_client_abandon(mx_client *client);

#ifdef __cplusplus
}
#endif
#endif
