/*-------------------------------------------------------------------------
 *
 * encoding.c
 *	  Text between the database's encoding and the engine's, UTF-8.
 *
 * On the way in, what cannot be converted is an error: nothing has been done
 * yet.  On the way out it becomes '?', one for each character: an answer is
 * never lost because a database cannot hold one of its characters.  In a
 * database with SQL_ASCII, bytes pass as they are, and must be UTF-8 on the
 * way in.
 *
 * Results are palloc'd, except that text that needs no conversion may be
 * returned as it came.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/json.h"

/* `text` ends in a NUL that `length` does not count; so does what comes back */
char *
mixtral_to_utf8(const char *text, int length)
{
	return pg_server_to_any(text, length, PG_UTF8);
}

/* Converts as much as can be, '?' for the rest */
static char *
convert_with_holes(Oid proc, const unsigned char *text, int length)
{
	StringInfoData out;
	unsigned char *buffer = palloc(MAX_CONVERSION_GROWTH * (Size) length + 1);

	initStringInfo(&out);
	while (length > 0)
	{
		int			done = pg_do_encoding_conversion_buf(proc, PG_UTF8, GetDatabaseEncoding(),
														 (unsigned char *) text, length,
														 buffer, MAX_CONVERSION_GROWTH * length + 1,
														 true);

		appendStringInfoString(&out, (char *) buffer);
		text += done;
		length -= done;
		if (length > 0)
		{
			int			skipped = Min(pg_utf_mblen(text), length);

			appendStringInfoChar(&out, '?');
			text += skipped;
			length -= skipped;
		}
	}
	pfree(buffer);
	return out.data;
}

char *
mixtral_from_utf8(const char *text, size_t length)
{
	int			encoding = GetDatabaseEncoding();
	Oid			proc;

	if (length >= MaxAllocSize / MAX_CONVERSION_GROWTH)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("an answer of %zu bytes is too long", length)));
	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII || !IsTransactionState())
		return pnstrdup(text, length);
	proc = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(proc))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("there is no conversion from UTF8 to %s", pg_encoding_to_char(encoding))));
	return convert_with_holes(proc, (const unsigned char *) text, (int) length);
}

/* Appends text as a JSON string, in the encoding it has */
void
mixtral_append_json(StringInfo buf, const char *text, int length)
{
	char	   *copy = pnstrdup(text, length);

	escape_json(buf, copy);
	pfree(copy);
}
