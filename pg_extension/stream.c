/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  mixtral_stream: a row for each piece of text, as it is made.
 *
 *		SELECT mixtral_stream('...')
 *
 * One value per call, so that in a select list every piece goes on its way
 * to the client (psql: \set FETCH_COUNT 1) before the next is made; and
 * LIMIT, or closing the cursor, ends the generation.  In FROM, PostgreSQL
 * collects all rows of a function before it goes on: nothing streams there.
 *
 * The connection lives in multi_call_memory_ctx, whose end, however it
 * comes about, closes it.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(mixtral_stream);

static MixtralCall *
begin(FunctionCallInfo fcinfo)
{
	StringInfo	request = mixtral_request(MIXTRAL_CHAT);

	mixtral_request_input(request, fcinfo, 0);
	mixtral_request_options(request, MIXTRAL_CHAT, PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1),
							fcinfo, 2, true);
	return mixtral_call_begin("mixtral_stream", mixtral_request_end(request));
}

Datum
mixtral_stream(PG_FUNCTION_ARGS)
{
	FuncCallContext *context;
	MixtralCall *call;
	mx_event	event;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;

		context = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(context->multi_call_memory_ctx);
		context->user_fctx = PG_ARGISNULL(0) ? NULL : begin(fcinfo);
		MemoryContextSwitchTo(old);
	}
	context = SRF_PERCALL_SETUP();
	call = context->user_fctx;
	if (call == NULL || !mixtral_call_next(call, &event))
		SRF_RETURN_DONE(context);
	SRF_RETURN_NEXT(context,
					PointerGetDatum(cstring_to_text(mixtral_from_utf8(event.text, event.text_bytes))));
}
