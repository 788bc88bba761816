/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  What the engine is and does: mixtral_models(), mixtral_stats(),
 *	  mixtral_engine().
 *
 * Looking starts nothing: without a serving engine there are no models, and
 * the statistics are NULL.  Everybody may look; the model's file and what
 * went wrong with it are for those who may read all statistics.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <string.h>

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "utils/acl.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(mixtral_models);
PG_FUNCTION_INFO_V1(mixtral_stats);
PG_FUNCTION_INFO_V1(mixtral_engine);

#define COLUMNS_MAX 16

static bool
is_serving(void)
{
	const char *state;

	if (*mixtral_socket != '\0')
		return true;
	state = mixtral_state_text(mixtral_read_state(), "state");
	return state != NULL && strcmp(state, "serving") == 0;
}

Datum
mixtral_stats(PG_FUNCTION_ARGS)
{
	if (!is_serving())
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(mixtral_ask("mixtral_stats", pstrdup("{\"op\":\"stats\"}")));
}

/* A row for each model, with the columns that the engine calls so */
Datum
mixtral_models(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	JsonbValue	models;
	Jsonb	   *result;

	mixtral_materialize(fcinfo);
	if (!is_serving())
		return (Datum) 0;
	result = mixtral_ask("mixtral_models", pstrdup("{\"op\":\"models\"}"));
	if (mixtral_member(result, "models", &models) == NULL || models.type != jbvBinary)
		ereport(ERROR,
				(errcode(mixtral_sqlstate(MX_CORRUPT)),
				 errmsg("the mixtral engine's answer has no models")));
	for (uint32 i = 0; i < JsonContainerSize(models.val.binary.data); i++)
	{
		JsonbValue *model = getIthJsonbValueFromContainer(models.val.binary.data, i);
		Datum		values[COLUMNS_MAX];
		bool		nulls[COLUMNS_MAX];

		Assert(rsinfo->setDesc->natts <= COLUMNS_MAX);
		mixtral_result_row(JsonbValueToJsonb(model), rsinfo->setDesc, 0, values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* What the worker has published, a column for each member; state 'none' without a worker */
Datum
mixtral_engine(PG_FUNCTION_ARGS)
{
	static const char *const restricted[] = {"model", "wanted_model", "last_error"};
	Jsonb	   *state = mixtral_read_state();
	TupleDesc	desc;
	Datum		values[COLUMNS_MAX];
	bool		nulls[COLUMNS_MAX];
	bool		sees_all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	Assert(desc->natts <= COLUMNS_MAX);
	desc = BlessTupleDesc(desc);
	if (state != NULL)
		mixtral_result_row(state, desc, 0, values, nulls);
	else
	{
		memset(nulls, true, sizeof(nulls));
		values[0] = CStringGetTextDatum(*mixtral_socket != '\0' ? "elsewhere" : "none");
		nulls[0] = false;
	}
	for (int i = 0; i < desc->natts && !sees_all; i++)
		for (int j = 0; j < (int) lengthof(restricted); j++)
			if (strcmp(NameStr(TupleDescAttr(desc, i)->attname), restricted[j]) == 0)
				nulls[i] = true;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
