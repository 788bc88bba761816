/*-------------------------------------------------------------------------
 *
 * jansson.c
 *	  A way around a name that PostgreSQL and Jansson share: json_object.
 *
 * The server's own symbols come first when a library is loaded, so that
 * json_object() called in here would be the SQL function of that name.  The
 * engine's sources are compiled with that name replaced by the one below
 * (Makefile); Jansson itself calls its own.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include <jansson.h>

extern json_t *mixtral_json_object(void) __attribute__((visibility("hidden")));

/* An empty object; NULL: out of memory */
json_t *
mixtral_json_object(void)
{
	return json_pack("{}");
}
