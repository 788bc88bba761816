/*-------------------------------------------------------------------------
 *
 * functions.c
 *	  The SQL functions that ask once and return the answer, and reading the
 *	  engine's result objects.
 *
 * None is STRICT: an argument that is left out is NULL.  A NULL for what the
 * function is about gives NULL.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

PG_FUNCTION_INFO_V1(mixtral_chat);
PG_FUNCTION_INFO_V1(mixtral_complete);
PG_FUNCTION_INFO_V1(mixtral_generate);
PG_FUNCTION_INFO_V1(mixtral_embed);
PG_FUNCTION_INFO_V1(mixtral_tokenize);
PG_FUNCTION_INFO_V1(mixtral_detokenize);
PG_FUNCTION_INFO_V1(mixtral_token_count);
PG_FUNCTION_INFO_V1(mixtral_chunks);

/* ---- Results ---- */

/* A member of an object; NULL: there is none */
JsonbValue *
mixtral_member(Jsonb *object, const char *key, JsonbValue *value)
{
	if (!JB_ROOT_IS_OBJECT(object))
		return NULL;
	return getKeyJsonValueFromContainer(&object->root, key, strlen(key), value);
}

static JsonbValue *
expect_member(Jsonb *object, const char *key, JsonbValue *value, enum jbvType type)
{
	if (mixtral_member(object, key, value) == NULL || value->type != type)
		ereport(ERROR,
				(errcode(mixtral_sqlstate(MX_CORRUPT)),
				 errmsg("the mixtral engine's answer has no proper member \"%s\"", key)));
	return value;
}

/* A member as a value of a SQL type: text, int4, int8, float8 or jsonb */
Datum
mixtral_member_datum(Jsonb *object, const char *key, Oid type, bool *isnull)
{
	JsonbValue	value;
	Datum		numeric;

	*isnull = mixtral_member(object, key, &value) == NULL || value.type == jbvNull;
	if (*isnull)
		return (Datum) 0;
	if (type == JSONBOID)
		return JsonbPGetDatum(JsonbValueToJsonb(&value));
	if (type == TEXTOID)
	{
		expect_member(object, key, &value, jbvString);
		return PointerGetDatum(cstring_to_text_with_len(value.val.string.val, value.val.string.len));
	}
	expect_member(object, key, &value, jbvNumeric);
	numeric = NumericGetDatum(value.val.numeric);
	if (type == INT4OID)
		return DirectFunctionCall1(numeric_int4, numeric);
	if (type == INT8OID)
		return DirectFunctionCall1(numeric_int8, numeric);
	return DirectFunctionCall1(numeric_float8, numeric);
}

/* The columns from `first` on, each the member with its name */
void
mixtral_result_row(Jsonb *result, TupleDesc desc, int first, Datum *values, bool *nulls)
{
	for (int i = first; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		values[i] = mixtral_member_datum(result, NameStr(column->attname), column->atttypid, &nulls[i]);
	}
}

/* ---- Requests ---- */

static Jsonb *
options_argument(FunctionCallInfo fcinfo, int i)
{
	return i < PG_NARGS() && !PG_ARGISNULL(i) ? PG_GETARG_JSONB_P(i) : NULL;
}

/* Chat or complete, with the input in argument 0 and the options behind */
static Jsonb *
generate(FunctionCallInfo fcinfo, const char *function, MixtralOp op, bool one_answer)
{
	StringInfo	request = mixtral_request(op);

	mixtral_request_input(request, fcinfo, 0);
	mixtral_request_options(request, op, options_argument(fcinfo, 1), fcinfo, 2, one_answer);
	return mixtral_ask(function, mixtral_request_end(request));
}

/* An operation on the text in argument 0 */
static Jsonb *
ask_about_text(FunctionCallInfo fcinfo, const char *function, MixtralOp op)
{
	StringInfo	request = mixtral_request(op);

	mixtral_request_text(request, "text", PG_GETARG_TEXT_PP(0));
	mixtral_request_options(request, op, options_argument(fcinfo, 1), fcinfo, 2, true);
	return mixtral_ask(function, mixtral_request_end(request));
}

/* ---- Functions ---- */

Datum
mixtral_chat(PG_FUNCTION_ARGS)
{
	JsonbValue	text;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	expect_member(generate(fcinfo, "mixtral_chat", MIXTRAL_CHAT, true), "text", &text, jbvString);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(text.val.string.val, text.val.string.len));
}

Datum
mixtral_complete(PG_FUNCTION_ARGS)
{
	JsonbValue	text;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	expect_member(generate(fcinfo, "mixtral_complete", MIXTRAL_COMPLETE, true), "text", &text, jbvString);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(text.val.string.val, text.val.string.len));
}

Datum
mixtral_generate(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum	   *values;
	bool	   *nulls;
	Jsonb	   *result;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	result = generate(fcinfo, "mixtral_generate", MIXTRAL_CHAT, false);
	values = palloc0(desc->natts * sizeof(Datum));
	nulls = palloc0(desc->natts * sizeof(bool));
	mixtral_result_row(result, desc, 0, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

Datum
mixtral_embed(PG_FUNCTION_ARGS)
{
	Jsonb	   *result;
	JsonbValue	vector;
	JsonbValue	item;
	JsonbIterator *it;
	Datum	   *values;
	int			n = 0;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	result = ask_about_text(fcinfo, "mixtral_embed", MIXTRAL_EMBED);
	expect_member(result, "embedding", &vector, jbvBinary);
	values = palloc(Max(1, JsonContainerSize(vector.val.binary.data)) * sizeof(Datum));
	it = JsonbIteratorInit(vector.val.binary.data);
	for (;;)
	{
		JsonbIteratorToken token = JsonbIteratorNext(&it, &item, true);

		if (token == WJB_DONE)
			break;
		if (token == WJB_ELEM && item.type == jbvNumeric)
			values[n++] = DirectFunctionCall1(numeric_float4, NumericGetDatum(item.val.numeric));
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(values, n, FLOAT4OID, sizeof(float4), true, TYPALIGN_INT));
}

Datum
mixtral_tokenize(PG_FUNCTION_ARGS)
{
	Jsonb	   *result;
	JsonbValue	tokens;
	JsonbValue	id;
	Datum	   *values;
	uint32		n;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	result = ask_about_text(fcinfo, "mixtral_tokenize", MIXTRAL_TOKENIZE);
	expect_member(result, "tokens", &tokens, jbvBinary);
	n = JsonContainerSize(tokens.val.binary.data);
	values = palloc(Max(1, n) * sizeof(Datum));
	for (uint32 i = 0; i < n; i++)
	{
		JsonbValue *token = getIthJsonbValueFromContainer(tokens.val.binary.data, i);

		if (token == NULL || token->type != jbvBinary ||
			getKeyJsonValueFromContainer(token->val.binary.data, "id", 2, &id) == NULL ||
			id.type != jbvNumeric)
			ereport(ERROR,
					(errcode(mixtral_sqlstate(MX_CORRUPT)),
					 errmsg("the mixtral engine's answer has a token without an id")));
		values[i] = DirectFunctionCall1(numeric_int4, NumericGetDatum(id.val.numeric));
	}
	PG_RETURN_ARRAYTYPE_P(construct_array(values, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}

Datum
mixtral_detokenize(PG_FUNCTION_ARGS)
{
	StringInfo	request;
	ArrayType  *array;
	Datum	   *items;
	bool	   *nulls;
	int			n;
	JsonbValue	text;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	array = PG_GETARG_ARRAYTYPE_P(0);
	deconstruct_array(array, INT4OID, sizeof(int32), true, TYPALIGN_INT, &items, &nulls, &n);
	request = mixtral_request(MIXTRAL_DETOKENIZE);
	appendStringInfoString(request, ",\"tokens\":[");
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("tokens: expected integers, got a null")));
		appendStringInfo(request, "%s%d", i > 0 ? "," : "", DatumGetInt32(items[i]));
	}
	appendStringInfoChar(request, ']');
	mixtral_request_options(request, MIXTRAL_DETOKENIZE, options_argument(fcinfo, 1), fcinfo, 2, true);
	expect_member(mixtral_ask("mixtral_detokenize", mixtral_request_end(request)), "text", &text, jbvString);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(text.val.string.val, text.val.string.len));
}

Datum
mixtral_token_count(PG_FUNCTION_ARGS)
{
	bool		isnull;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_DATUM(mixtral_member_datum(ask_about_text(fcinfo, "mixtral_token_count", MIXTRAL_TOKEN_COUNT),
										 "count", INT4OID, &isnull));
}

/* mixtral_chunks(text, size, overlap, options) */
Datum
mixtral_chunks(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StringInfo	request;
	JsonbValue	chunks;
	uint32		n;

	mixtral_materialize(fcinfo);
	if (PG_ARGISNULL(0))
		return (Datum) 0;
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("size: expected an integer, got a null")));
	request = mixtral_request(MIXTRAL_CHUNKS);
	mixtral_request_text(request, "text", PG_GETARG_TEXT_PP(0));
	appendStringInfo(request, ",\"size\":%d,\"overlap\":%d", PG_GETARG_INT32(1),
					 PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2));
	mixtral_request_options(request, MIXTRAL_CHUNKS, options_argument(fcinfo, 3), fcinfo, 4, true);
	expect_member(mixtral_ask("mixtral_chunks", mixtral_request_end(request)), "chunks", &chunks, jbvBinary);
	n = JsonContainerSize(chunks.val.binary.data);
	for (uint32 i = 0; i < n; i++)
	{
		JsonbValue *chunk = getIthJsonbValueFromContainer(chunks.val.binary.data, i);
		Datum		values[4];
		bool		nulls[4];

		Assert(rsinfo->setDesc->natts == lengthof(values));
		mixtral_result_row(JsonbValueToJsonb(chunk), rsinfo->setDesc, 0, values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
