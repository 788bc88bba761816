/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  What differs between PostgreSQL 14 and 18, and nothing else: the other
 *	  files hold no test of PG_VERSION_NUM.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#ifndef MIXTRAL_COMPAT_H
#define MIXTRAL_COMPAT_H

#include "postgres.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#if PG_VERSION_NUM < 170000
#include "storage/backendid.h"
#else
#include "storage/procnumber.h"
#endif
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/tuplestore.h"

#if PG_VERSION_NUM < 140000
#error "mixtral needs PostgreSQL 14 or later"
#endif

/* Names of settings that start with our prefix and do not exist */
#if PG_VERSION_NUM < 150000
#define MarkGUCPrefixReserved(prefix) EmitWarningsOnPlaceholders(prefix)
#endif

#if PG_VERSION_NUM < 180000
#define pg_noreturn pg_attribute_noreturn()
#endif

/* What a waiting session shows in pg_stat_activity.wait_event */
static inline uint32
mixtral_wait_event(void)
{
#if PG_VERSION_NUM >= 170000
	static uint32 event = 0;

	if (event == 0)
		event = WaitEventExtensionNew("MixtralEngine");
	return event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/*
 * libpq/libpq.h has this, and needs GSSAPI's headers, which Debian's
 * postgresql-server-dev does not bring.
 */
extern bool pq_check_connection(void);

/* A number from 0 to MaxBackends - 1 that is this process's alone */
#if PG_VERSION_NUM >= 170000
#define MIXTRAL_BACKEND_NUMBER MyProcNumber
#else
#define MIXTRAL_BACKEND_NUMBER (MyBackendId - 1)
#endif

/* Makes rsinfo->setResult and setDesc of a function that returns all rows at once */
static inline void
mixtral_materialize(FunctionCallInfo fcinfo)
{
#if PG_VERSION_NUM >= 150000
	InitMaterializedSRF(fcinfo, 0);
#else
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		!(rsinfo->allowedModes & SFRM_Materialize))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &rsinfo->setDesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult =
		tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0,
							  false, work_mem);
	MemoryContextSwitchTo(old);
#endif
}

#endif							/* MIXTRAL_COMPAT_H */
