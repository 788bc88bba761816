/*-------------------------------------------------------------------------
 *
 * errors.c
 *	  The engine's errors as PostgreSQL has them: the one table.
 *
 * Nothing here says that data is corrupted: ERRCODE_DATA_CORRUPTED would
 * tell monitoring that the database is damaged.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

static const struct
{
	int			sqlstate;
	const char *hint;			/* NULL: the text says it all */
}			errors[] = {
	[MX_OK] = {ERRCODE_INTERNAL_ERROR, NULL},
	[MX_AGAIN] = {ERRCODE_INTERNAL_ERROR, NULL},
	[MX_BUSY] = {ERRCODE_INSUFFICIENT_RESOURCES, "Try again later. The limits are the settings mixtral.max_queue and mixtral.tenant_*."},
	[MX_NOMEM] = {ERRCODE_OUT_OF_MEMORY, NULL},
	[MX_INVALID] = {ERRCODE_INVALID_PARAMETER_VALUE, NULL},
	[MX_NOT_FOUND] = {ERRCODE_UNDEFINED_OBJECT, "SELECT * FROM mixtral_models shows what there is."},
	[MX_DENIED] = {ERRCODE_INSUFFICIENT_PRIVILEGE,
	"An engine elsewhere has to trust this server's user: mixtral serve --allow-uid."},
	[MX_TOO_LARGE] = {ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL},
	[MX_UNAVAILABLE] = {ERRCODE_CANNOT_CONNECT_NOW,
	"The server log says why; SELECT * FROM mixtral_stat_engine shows the engine's state. "
	"An engine that was lost is started again."},
	[MX_CORRUPT] = {ERRCODE_EXTERNAL_ROUTINE_EXCEPTION, NULL},
	[MX_CANCELLED] = {ERRCODE_QUERY_CANCELED, NULL},
	[MX_TIMEOUT] = {ERRCODE_QUERY_CANCELED, "The limits are option timeout_ms and the setting mixtral.timeout."},
	[MX_IO] = {ERRCODE_IO_ERROR, NULL},
	[MX_INTERNAL] = {ERRCODE_INTERNAL_ERROR, NULL},
};

int
mixtral_sqlstate(mx_status status)
{
	return (size_t) status < lengthof(errors) ? errors[status].sqlstate : ERRCODE_INTERNAL_ERROR;
}

void
mixtral_raise(const mx_error *error)
{
	const char *hint = (size_t) error->status < lengthof(errors) ? errors[error->status].hint : NULL;
	char	   *text = mixtral_from_utf8(error->text, strlen(error->text));

	if (error->retry_after_ms > 0)
		hint = psprintf("Try again in %lld ms. The limits are the settings mixtral.max_queue and mixtral.tenant_*.",
						(long long) error->retry_after_ms);
	ereport(ERROR,
			(errcode(mixtral_sqlstate(error->status)),
			 errmsg("%s", text),
			 hint != NULL ? errhint("%s", hint) : 0));
	pg_unreachable();
}
