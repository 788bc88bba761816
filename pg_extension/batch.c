/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  mixtral_chat_batch: many prompts, all in the engine at once.
 *
 * One connection carries them, WINDOW at a time, so that a long array does
 * not fill the engine's queue for everybody else.  Where the queue is full
 * all the same, the rest waits here.  What an engine that goes away has not
 * taken goes to its successor, when the answers it still works on are there.
 *
 * A prompt that is too long, or runs into its time limit, is a row with an
 * error; the others have their answers.  Anything else is wrong with all of
 * them and fails the statement.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#define WINDOW		64
#define BUSY_MS		100
#define ATTEMPTS	10			/* engines in a row that take nothing */
#define COLUMNS_MAX	16

PG_FUNCTION_INFO_V1(mixtral_chat_batch);

typedef struct Prompt
{
	enum
	{
		PENDING, RUNNING, DONE
	}			state;
	text	   *text;				/* NULL: a row without an answer */
	uint32		id;				/* while RUNNING */
	Jsonb	   *result;			/* DONE: this, or the error, or neither for NULL */
	text	   *error;
} Prompt;

typedef struct Batch
{
	FunctionCallInfo fcinfo;
	Jsonb	   *options;
	MixtralConnection *connection;
	Prompt	   *items;
	int			n_items;
	int			n_running;
	int			n_done;
	int			first_pending;	/* no item before it is PENDING */
	bool		busy;			/* the queue is full: nothing is sent until something ends */
	int64		busy_ms;		/* ... or so long, if nothing of ours runs */
	bool		going_away;		/* this engine takes no more */
	int			attempts;
} Batch;

/* ---- Sending ---- */

static Prompt *
next_pending(Batch *batch)
{
	while (batch->first_pending < batch->n_items && batch->items[batch->first_pending].state != PENDING)
		batch->first_pending++;
	return batch->first_pending < batch->n_items ? &batch->items[batch->first_pending] : NULL;
}

static void
put_back(Batch *batch, Prompt *item)
{
	item->state = PENDING;
	batch->n_running--;
	batch->first_pending = Min(batch->first_pending, (int) (item - batch->items));
}

static void
finish(Batch *batch, Prompt *item)
{
	if (item->state == RUNNING)
		batch->n_running--;
	item->state = DONE;
	batch->n_done++;
	batch->busy = false;
	batch->attempts = 0;
}

static void
send_item(Batch *batch, Prompt *item)
{
	StringInfo	request = mixtral_request(MIXTRAL_CHAT);
	char	   *json;

	mixtral_request_text(request, "prompt", item->text);
	mixtral_request_options(request, MIXTRAL_CHAT, batch->options, batch->fcinfo, 2, false);
	json = mixtral_request_end(request);
	item->id = mixtral_send(batch->connection, json);
	if (item->id == 0)
	{
		batch->going_away = true;
		return;
	}
	item->state = RUNNING;
	batch->n_running++;
	if (json != request->data)
		pfree(json);
	pfree(request->data);
	pfree(request);
}

static void
fill_window(Batch *batch)
{
	Prompt	   *item;

	while (!batch->busy && !batch->going_away && batch->n_running < WINDOW &&
		   (item = next_pending(batch)) != NULL)
	{
		if (item->text == NULL)
			finish(batch, item);
		else
			send_item(batch, item);
	}
}

/* ---- Receiving ---- */

static void
other_engine(Batch *batch)
{
	for (int i = 0; i < batch->n_items; i++)
		if (batch->items[i].state == RUNNING)
			put_back(batch, &batch->items[i]);
	if (++batch->attempts >= ATTEMPTS)
		ereport(ERROR,
				(errcode(mixtral_sqlstate(MX_UNAVAILABLE)),
				 errmsg("%d engines in a row went away before they took the batch", ATTEMPTS),
				 errhint("The server log says what happened.")));
	mixtral_redial(batch->connection);
	batch->going_away = false;
}

static void
take_error(Batch *batch, Prompt *item, const mx_error *error)
{
	switch (error->status)
	{
		case MX_UNAVAILABLE:
			put_back(batch, item);
			batch->going_away = true;
			break;
		case MX_BUSY:
			put_back(batch, item);
			batch->busy = true;
			batch->busy_ms = Max(error->retry_after_ms, BUSY_MS);
			break;
		case MX_TOO_LARGE:
		case MX_TIMEOUT:
			item->error = cstring_to_text(mixtral_from_utf8(error->text, strlen(error->text)));
			finish(batch, item);
			break;
		default:
			mixtral_raise(error);
	}
}

static void
take_event(Batch *batch, const mx_event *event)
{
	Prompt	   *item = NULL;

	if (event->type == MX_EVENT_PIECE)
		return;
	for (int i = 0; i < batch->n_items && item == NULL; i++)
		if (batch->items[i].state == RUNNING && batch->items[i].id == event->id)
			item = &batch->items[i];
	if (item == NULL)
		return;					/* nothing that is still waited for */
	if (event->type == MX_EVENT_ERROR)
		take_error(batch, item, &event->error);
	else
	{
		char	   *json = mixtral_from_utf8(event->json, event->json_bytes);

		item->result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
		pfree(json);
		finish(batch, item);
	}
}

static void
run(Batch *batch)
{
	mx_event	event;

	while (batch->n_done < batch->n_items)
	{
		fill_window(batch);
		if (batch->n_done == batch->n_items)
			break;
		if (batch->n_running == 0 && batch->busy)
		{
			for (; batch->busy_ms > 0; batch->busy_ms -= BUSY_MS)
				mixtral_pause(BUSY_MS);
			batch->busy = false;
		}
		else if (batch->n_running == 0 && batch->going_away)
			other_engine(batch);
		else if (!mixtral_receive(batch->connection, &event))
			other_engine(batch);
		else
			take_event(batch, &event);
	}
}

/* ---- The function ---- */

static void
take_prompts(Batch *batch, ArrayType *prompts)
{
	Datum	   *values;
	bool	   *nulls;

	deconstruct_array(prompts, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &batch->n_items);
	batch->items = palloc0(Max(1, batch->n_items) * sizeof(Prompt));
	for (int i = 0; i < batch->n_items; i++)
		if (!nulls[i])
			batch->items[i].text = DatumGetTextPP(values[i]);
}

/* Columns: ordinal, error, and members of the result */
static void
put_row(ReturnSetInfo *rsinfo, int ordinal, const Prompt *item)
{
	Datum		values[COLUMNS_MAX];
	bool		nulls[COLUMNS_MAX];

	Assert(rsinfo->setDesc->natts <= COLUMNS_MAX);
	memset(nulls, true, sizeof(nulls));
	if (item->result != NULL)
		mixtral_result_row(item->result, rsinfo->setDesc, 2, values, nulls);
	values[0] = Int32GetDatum(ordinal);
	nulls[0] = false;
	values[1] = PointerGetDatum(item->error);
	nulls[1] = item->error == NULL;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

Datum
mixtral_chat_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Batch		batch = {.fcinfo = fcinfo};

	mixtral_materialize(fcinfo);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	batch.options = PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1);
	take_prompts(&batch, PG_GETARG_ARRAYTYPE_P(0));
	if (batch.n_items == 0)
		return (Datum) 0;
	batch.connection = mixtral_connect("mixtral_chat_batch");
	PG_TRY();
	{
		run(&batch);
	}
	PG_FINALLY();
	{
		mixtral_disconnect(batch.connection);
	}
	PG_END_TRY();
	for (int i = 0; i < batch.n_items; i++)
		put_row(rsinfo, i + 1, &batch.items[i]);
	return (Datum) 0;
}
