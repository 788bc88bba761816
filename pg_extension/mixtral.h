/*-------------------------------------------------------------------------
 *
 * mixtral.h
 *	  What the files of the extension share.
 *
 * The path of a call, file by file:
 *
 *	functions.c   the arguments of a SQL function (stream.c, batch.c,
 *	              sessions.c: of those that are more than a question)
 *	request.c     ... become the JSON of a request
 *	connection.c  ... which goes to the engine's socket, and its events come
 *	              back, in waits that every interrupt ends
 *	launch.c      where no engine answers, the worker is started
 *	worker.c      the worker: which engine runs, and when the next one starts
 *	engine.c      the engine program as a child process of the worker
 *	listen.c      the sockets at which it listens
 *	encoding.c    text between UTF-8 and the database's encoding
 *
 * No process of PostgreSQL loads a model.  What is linked in here from the
 * engine's sources is the client's half alone: mx_client_*.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIXTRAL_H
#define MIXTRAL_H

#include "compat.h"

#include <sys/stat.h>

#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"

#include "mx.h"

/*
 * The files in the data directory, which is the working directory of every
 * process: relative, so that a long PGDATA does not exceed a socket's path.
 */
#define MIXTRAL_DIR			PG_STAT_TMP_DIR "/"
#define MIXTRAL_SOCKET		MIXTRAL_DIR "mixtral.sock"
#define MIXTRAL_NEW_SOCKET	MIXTRAL_DIR "mixtral.sock.new"	/* of an engine that is to take over */
#define MIXTRAL_LOCK		MIXTRAL_DIR "mixtral.lock"	/* locked by the worker while it lives */
#define MIXTRAL_START_LOCK	MIXTRAL_DIR "mixtral.start" /* locked by a session that starts it */
#define MIXTRAL_STATE		MIXTRAL_DIR "mixtral.state" /* what the worker last wrote, JSON */
#define MIXTRAL_ACTIVITY	MIXTRAL_DIR "mixtral.activity"	/* the handle of the table of requests */

/* ---- settings.c ---- */

extern char *mixtral_model;
extern char *mixtral_program;
extern int	mixtral_threads;
extern int	mixtral_context;
extern int	mixtral_kv_pool;	/* MB */
extern int	mixtral_kv_type;	/* index of mixtral_kv_types */
extern int	mixtral_max_queue;
extern int	mixtral_max_step;	/* ms */
extern char *mixtral_socket;
extern char *mixtral_listen_at;
extern int	mixtral_max_tokens_limit;
extern int	mixtral_timeout;	/* ms */
extern char *mixtral_shared_prefix_tenant;
extern int	mixtral_tenant_requests;
extern int	mixtral_tenant_tokens_per_minute;
extern int	mixtral_default_max_tokens;
extern double mixtral_default_temperature;
extern int	mixtral_default_top_k;
extern double mixtral_default_top_p;
extern double mixtral_default_min_p;
extern double mixtral_default_repeat_penalty;

extern const struct config_enum_entry mixtral_kv_types[];

extern void mixtral_define_settings(void);

/* ---- errors.c ---- */

extern int	mixtral_sqlstate(mx_status status);
pg_noreturn extern void mixtral_raise(const mx_error *error);

/* ---- encoding.c ---- */

extern char *mixtral_to_utf8(const char *text, int length);
extern char *mixtral_from_utf8(const char *text, size_t length);
extern void mixtral_append_json(StringInfo buf, const char *text, int length);

/* ---- launch.c ---- */

extern int	mixtral_dial(void);
extern bool mixtral_lock_file(const char *path, int *fd);
extern pid_t mixtral_lock_holder(const char *path);
extern Jsonb *mixtral_read_state(void);
extern const char *mixtral_state_text(Jsonb *state, const char *key);
extern void mixtral_check_state(bool *told, TimestampTz since);
extern void mixtral_register_worker(void);

/* ---- connection.c ---- */

typedef struct MixtralConnection MixtralConnection;

extern MixtralConnection *mixtral_connect(const char *function);
extern uint32 mixtral_send(MixtralConnection *connection, const char *request);
extern bool mixtral_receive(MixtralConnection *connection, mx_event *event);
extern bool mixtral_going_away(const mx_event *event);
extern void mixtral_redial(MixtralConnection *connection);
extern void mixtral_disconnect(MixtralConnection *connection);
extern void mixtral_pause(long ms);

/* One request, which is sent again while no engine has taken it */
typedef struct MixtralCall
{
	MixtralConnection *connection;
	char	   *request;
	const int  *files;			/* descriptors that go with it */
	int			n_files;
	uint32		id;
	int			attempts;
	bool		has_piece;		/* of an answer, which no other engine can go on with */
} MixtralCall;

extern MixtralCall *mixtral_call_begin(const char *function, char *request);
extern bool mixtral_call_next(MixtralCall *call, mx_event *event);
extern void mixtral_call_end(MixtralCall *call);
extern Jsonb *mixtral_ask(const char *function, char *request);
extern Jsonb *mixtral_ask_with_files(const char *function, char *request,
									 const int *files, int n_files);

/* ---- request.c ---- */

/* What an operation takes */
typedef enum MixtralOp
{
	MIXTRAL_CHAT,
	MIXTRAL_COMPLETE,
	MIXTRAL_EMBED,
	MIXTRAL_TOKENIZE,
	MIXTRAL_DETOKENIZE,
	MIXTRAL_TOKEN_COUNT,
	MIXTRAL_CHUNKS,
	MIXTRAL_SESSION_SAVE,
	MIXTRAL_SESSION_LOAD,
} MixtralOp;

extern StringInfo mixtral_request(MixtralOp op);
extern void mixtral_request_text(StringInfo request, const char *field, text *value);
extern void mixtral_request_jsonb(StringInfo request, const char *field, Jsonb *value);
extern void mixtral_request_input(StringInfo request, FunctionCallInfo fcinfo, int i);
extern void mixtral_request_options(StringInfo request, MixtralOp op, Jsonb *options,
									FunctionCallInfo fcinfo, int first, bool one_answer);
extern char *mixtral_request_end(StringInfo request);

/* ---- results, in functions.c ---- */

extern JsonbValue *mixtral_member(Jsonb *object, const char *key, JsonbValue *value);
extern Datum mixtral_member_datum(Jsonb *object, const char *key, Oid type, bool *isnull);
extern void mixtral_result_row(Jsonb *result, TupleDesc desc, int first, Datum *values, bool *nulls);

/* ---- activity.c ---- */

typedef enum MixtralActivityState
{
	MIXTRAL_CONNECTING,
	MIXTRAL_WAITING,			/* sent; in the queue, or its prompt is being read */
	MIXTRAL_GENERATING,
} MixtralActivityState;

extern void mixtral_activity_begin(const char *function);
extern void mixtral_activity_state(MixtralActivityState state);
extern void mixtral_activity_requests(int change);
extern void mixtral_activity_piece(int cached);
extern void mixtral_activity_end(void);

/* ---- listen.c ---- */

#define MIXTRAL_UIDS_MAX	64	/* as many as an engine takes */

/* The setting mixtral.listen, taken apart */
typedef struct MixtralListen
{
	char		path[108];		/* "": none */
	mode_t		mode;
	char		group[64];		/* "": the server's own */
	uint32		uids[MIXTRAL_UIDS_MAX]; /* who may name tenants */
	int			n_uids;
} MixtralListen;

/* The worker's: the socket that belongs to it */
typedef struct MixtralOutside
{
	MixtralListen listen;
	int			fd;				/* -1: none */
	int			number;			/* of the last one that was made, from 1 on */
	dev_t		dev;			/* of its file, when it was made */
	ino_t		ino;
	TimestampTz retry_at;		/* not tried before */
	char	   *trouble;		/* NULL: none */
	bool		troubled;		/* there is a new one */
} MixtralOutside;

extern bool mixtral_parse_listen(const char *setting, MixtralListen *result, char *problem, size_t size);
extern int	mixtral_listen(const char *path);
extern void mixtral_outside_set(MixtralOutside *outside, const MixtralListen *listen);
extern bool mixtral_outside_look(MixtralOutside *outside);
extern void mixtral_outside_close(MixtralOutside *outside);

/* ---- engine.c: used by the worker only ---- */

typedef struct MixtralCommand
{
	int			argc;
	char	  **argv;
	char	   *model;
	char	   *key;			/* equal keys: the same engine */
} MixtralCommand;

typedef struct MixtralEngine
{
	pid_t		pid;
	MixtralCommand *command;
	int			lifeline;		/* closing it ends the engine at once */
	int			log;			/* what it writes to standard error; -1: at its end */
	char		line[1024];		/* the log's last line, as far as it has come */
	int			line_length;
	char		trouble[1024];	/* the last line that was an error; "": none */
	mx_client  *probe;			/* NULL once it has answered */
	bool		serving;
	bool		unwanted;		/* killed by us: its death is no failure */
	int			outside;		/* number of the socket for others that it has; 0: none */
	TimestampTz started;
	TimestampTz serving_since;
	struct MixtralEngine *next;
} MixtralEngine;

extern MixtralCommand *mixtral_command_build(const MixtralListen *listen);
extern MixtralCommand *mixtral_command_copy(const MixtralCommand *command);
extern void mixtral_command_free(MixtralCommand *command);
extern MixtralEngine *mixtral_engine_start(MixtralCommand *command, int listener, const char *path,
										   const MixtralOutside *outside, int poll_fd);
extern void mixtral_engine_read_log(MixtralEngine *engine);
extern bool mixtral_engine_probe(MixtralEngine *engine);
extern void mixtral_engine_drain(MixtralEngine *engine);
extern void mixtral_engine_kill(MixtralEngine *engine);
extern void mixtral_engine_free(MixtralEngine *engine);
extern char *mixtral_engine_death(const MixtralEngine *engine, int status);

#endif							/* MIXTRAL_H */
