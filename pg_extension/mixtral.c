/*-------------------------------------------------------------------------
 *
 * mixtral.c
 *	  The extension's entry point.
 *
 * Loading the library defines the settings, and in the postmaster, where it
 * is in shared_preload_libraries, registers the worker.  It starts no thread
 * and opens nothing.  What the files are for stands in mixtral.h.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include "utils/builtins.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

PG_FUNCTION_INFO_V1(mixtral_version);

void
_PG_init(void)
{
	mixtral_define_settings();
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
		mixtral_register_worker();
}

Datum
mixtral_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(MX_VERSION));
}
