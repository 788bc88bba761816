/*-------------------------------------------------------------------------
 *
 * connection.c
 *	  A connection to the engine, and waiting for it.
 *
 * A connection belongs to one call: it is opened, carries its request (a
 * batch: its requests) and is closed, which also cancels what is still
 * running.  It lives in the memory context that is current when it is opened,
 * and a reset callback of that context closes it, so that it is gone after
 * any error, rollback or closed cursor; callers that can, close it earlier.
 * (For a set-returning function that is multi_call_memory_ctx: callbacks of
 * an ExprContext are not called on rollback.)  When a session ends by FATAL,
 * the kernel closes it.
 *
 * Waiting: the latch and the socket, for at most 100 ms at a time, after
 * which the client's own connection is looked at, because nobody else does
 * by default (client_connection_check_interval).
 *
 * When an engine goes away in order (a new model, a reload), what it has not
 * begun goes to its successor: mixtral_receive returns false and the caller
 * sends again.  From outside, a request that was not begun and one that kills
 * engines look the same, so that this is done LOSSES_MAX times at most once
 * an engine had taken the connection; and never when a piece of an answer
 * has come.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/fd.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define LOOK_MS			100		/* between two looks at the client and at the worker's state */
#define ATTEMPTS		10		/* to hand a request to an engine */
#define RETRY_MS		20
#define LOSSES_MAX		2		/* engines that one call may lose without an answer */

struct MixtralConnection
{
	mx_client  *client;			/* NULL: closed */
	const char *function;		/* who calls, for mixtral_stat_activity */
	bool		greeted;		/* the engine has said something */
	bool		has_piece;		/* ... of an answer */
	int			losses;			/* engines that were lost after they had taken the connection */
	bool		told;			/* the notice that we wait has been given */
	int			requests;		/* that are counted in the activity table */
	TimestampTz opened;
	TimestampTz looked;			/* when we last looked at the client's connection */
	MemoryContextCallback at_reset;
};

/* ---- Opening and closing ---- */

void
mixtral_disconnect(MixtralConnection *connection)
{
	if (connection->client == NULL)
		return;
	mx_client_close(connection->client);
	connection->client = NULL;
	ReleaseExternalFD();
	mixtral_activity_requests(-connection->requests);
	connection->requests = 0;
	mixtral_activity_end();
}

static void
disconnect_at_reset(void *arg)
{
	mixtral_disconnect(arg);
}

static void
open_client(MixtralConnection *connection)
{
	mx_error	error;
	mx_status	status;
	int			fd = mixtral_dial();

	if (!AcquireExternalFD())
	{
		int			saved = errno;

		close(fd);
		errno = saved;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not reserve a file descriptor for the mixtral engine: %m")));
	}
	status = mx_client_open(fd, &connection->client, &error);
	if (status != MX_OK)
	{
		ReleaseExternalFD();
		mixtral_raise(&error);
	}
	connection->greeted = connection->has_piece = false;
	connection->opened = connection->looked = GetCurrentTimestamp();
	mixtral_activity_begin(connection->function);
}

MixtralConnection *
mixtral_connect(const char *function)
{
	MixtralConnection *connection = palloc0(sizeof(*connection));

	connection->function = function;
	connection->at_reset.func = disconnect_at_reset;
	connection->at_reset.arg = connection;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &connection->at_reset);
	open_client(connection);
	return connection;
}

/* The same connection, to whatever engine there is now; requests are to be sent again */
void
mixtral_redial(MixtralConnection *connection)
{
	mixtral_disconnect(connection);
	mixtral_pause(RETRY_MS);
	open_client(connection);
}

/* ---- Waiting ---- */

/* Ends the session, at its next check for interrupts, if its client is gone */
static void
look_at_client(void)
{
	/* a parallel worker has no client of its own */
	if (MyProcPort == NULL || whereToSendOutput != DestRemote)
		return;
	if (!pq_check_connection())
	{
		ClientConnectionLost = true;
		InterruptPending = true;
	}
}

/* Waits for events (WL_SOCKET_*) on fd, or with fd = PGINVALID_SOCKET just so long */
static void
wait_once(pgsocket fd, int events, long ms)
{
	int			wakeup = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | events;
	int			happened = WaitLatchOrSocket(MyLatch, wakeup, fd, ms, mixtral_wait_event());

	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

void
mixtral_pause(long ms)
{
	look_at_client();
	wait_once(PGINVALID_SOCKET, 0, ms);
}

static void
wait_for_engine(MixtralConnection *connection)
{
	short		events = mx_client_events(connection->client);
	TimestampTz now = GetCurrentTimestamp();

	if (TimestampDifferenceExceeds(connection->looked, now, LOOK_MS))
	{
		connection->looked = now;
		look_at_client();
		CHECK_FOR_INTERRUPTS();
		if (!connection->greeted)
			mixtral_check_state(&connection->told, connection->opened);
	}
	wait_once(mx_client_fd(connection->client),
			  WL_SOCKET_READABLE | (events & POLLOUT ? WL_SOCKET_WRITEABLE : 0), LOOK_MS);
}

/* ---- Requests and events ---- */

/* Sends a request (JSON, UTF-8), with copies of these descriptors; 0: the engine went away before */
static uint32
send_with_files(MixtralConnection *connection, const char *request, const int *files, int n_files)
{
	mx_error	error;
	uint32_t	id;
	mx_status	status = mx_client_request_with_files(connection->client, request, files, n_files,
													  &id, &error);

	if (status == MX_UNAVAILABLE)
		return 0;				/* mixtral_receive says why, or false */
	if (status != MX_OK)
		mixtral_raise(&error);
	connection->requests++;
	mixtral_activity_requests(1);
	mixtral_activity_state(MIXTRAL_WAITING);
	return id;
}

uint32
mixtral_send(MixtralConnection *connection, const char *request)
{
	return send_with_files(connection, request, NULL, 0);
}

/* Has the engine said anything on this connection? */
static bool
has_spoken(MixtralConnection *connection)
{
	char		byte;

	if (!connection->greeted)
		connection->greeted = recv(mx_client_fd(connection->client), &byte, 1,
								   MSG_PEEK | MSG_DONTWAIT) > 0;
	return connection->greeted;
}

/*
 * Waits for the next event.  False: the engine went away before there was
 * anything of an answer, and everything is to be sent again.
 */
bool
mixtral_receive(MixtralConnection *connection, mx_event *event)
{
	mx_error	error;
	mx_status	status;

	for (;;)
	{
		bool		spoken = has_spoken(connection);

		CHECK_FOR_INTERRUPTS();
		status = mx_client_next(connection->client, event, &error);
		if (status == MX_OK)
			break;
		if (status == MX_UNAVAILABLE && !connection->has_piece &&
			(!spoken || ++connection->losses < LOSSES_MAX))
			return false;
		if (status == MX_UNAVAILABLE)
			ereport(ERROR,
					(errcode(mixtral_sqlstate(status)),
					 errmsg("the mixtral engine was lost while it worked on this request"),
					 errdetail("%s", mixtral_from_utf8(error.text, strlen(error.text))),
					 errhint("It is started again by itself; the server log says what happened.")));
		if (status != MX_AGAIN)
			mixtral_raise(&error);
		wait_for_engine(connection);
	}
	if (event->type == MX_EVENT_PIECE)
	{
		connection->has_piece = true;
		mixtral_activity_state(MIXTRAL_GENERATING);
		mixtral_activity_piece(event->cached_tokens);
	}
	else
	{
		connection->requests--;
		mixtral_activity_requests(-1);
	}
	return true;
}

/* Is this an engine that takes no more requests because another takes over? */
bool
mixtral_going_away(const mx_event *event)
{
	return event->type == MX_EVENT_ERROR && event->error.status == MX_UNAVAILABLE;
}

/* ---- Calls ---- */

static MixtralCall *
call_begin(const char *function, char *request, const int *files, int n_files)
{
	MixtralCall *call = palloc0(sizeof(*call));

	call->request = request;
	call->files = files;
	call->n_files = n_files;
	call->connection = mixtral_connect(function);
	call->id = send_with_files(call->connection, request, files, n_files);
	return call;
}

/* `request` must live as long as the call */
MixtralCall *
mixtral_call_begin(const char *function, char *request)
{
	return call_begin(function, request, NULL, 0);
}

/*
 * The next event: true with a piece, false with the result.  An error is
 * raised.
 */
bool
mixtral_call_next(MixtralCall *call, mx_event *event)
{
	while (!mixtral_receive(call->connection, event) ||
		   (mixtral_going_away(event) && !call->has_piece))
	{
		if (++call->attempts >= ATTEMPTS)
			ereport(ERROR,
					(errcode(mixtral_sqlstate(MX_UNAVAILABLE)),
					 errmsg("%d engines in a row went away before they took the request", ATTEMPTS),
					 errhint("The server log says what happened.")));
		mixtral_redial(call->connection);
		call->id = send_with_files(call->connection, call->request, call->files, call->n_files);
	}
	if (event->type == MX_EVENT_ERROR)
		mixtral_raise(&event->error);
	call->has_piece = event->type == MX_EVENT_PIECE;
	return call->has_piece;
}

void
mixtral_call_end(MixtralCall *call)
{
	mixtral_disconnect(call->connection);
}

/* One request from beginning to end; the result object in the database's encoding */
Jsonb *
mixtral_ask(const char *function, char *request)
{
	return mixtral_ask_with_files(function, request, NULL, 0);
}

/* The same for one that comes with files, which stay the caller's */
Jsonb *
mixtral_ask_with_files(const char *function, char *request, const int *files, int n_files)
{
	MixtralCall *call = call_begin(function, request, files, n_files);
	Jsonb	   *result = NULL;
	mx_event	event;

	PG_TRY();
	{
		while (mixtral_call_next(call, &event))
			continue;
		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(mixtral_from_utf8(event.json,
																					  event.json_bytes))));
	}
	PG_FINALLY();
	{
		mixtral_call_end(call);
	}
	PG_END_TRY();
	return result;
}
