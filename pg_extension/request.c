/*-------------------------------------------------------------------------
 *
 * request.c
 *	  The JSON of a request, from the arguments of a SQL function.
 *
 *		{"op": "chat", "prompt": "...", "options": {...}}
 *
 * It is put together in the database's encoding and converted at the end.
 * Which options there are, their types and ranges, is the engine's matter,
 * which says what is wrong by name.  Here they are merged:
 *
 *	- a named argument goes before the same option in `options`, and that
 *	  before the defaults in mixtral.default_*;
 *	- limits: mixtral.max_tokens_limit, mixtral.timeout, mixtral.tenant_*;
 *	- the tenant, within which beginnings of prompts are shared: the cluster
 *	  and the role.  A role may divide its tenant by option `tenant`, but not
 *	  name another's.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <limits.h>
#include <math.h>

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/numeric.h"

static const char *const op_names[] = {
	[MIXTRAL_CHAT] = "chat",
	[MIXTRAL_COMPLETE] = "complete",
	[MIXTRAL_EMBED] = "embed",
	[MIXTRAL_TOKENIZE] = "tokenize",
	[MIXTRAL_DETOKENIZE] = "detokenize",
	[MIXTRAL_TOKEN_COUNT] = "token_count",
	[MIXTRAL_CHUNKS] = "chunks",
	[MIXTRAL_SESSION_SAVE] = "session_save",
	[MIXTRAL_SESSION_LOAD] = "session_load",
};

/* The named arguments after `options`, in their order in the SQL functions */
typedef struct NamedArgument
{
	const char *name;
	Oid			type;
} NamedArgument;

static const NamedArgument text_arguments[] = {
	{"system", TEXTOID},		/* not of complete */
	{"max_tokens", INT4OID},
	{"temperature", FLOAT8OID},
	{"top_k", INT4OID},
	{"top_p", FLOAT8OID},
	{"seed", INT8OID},
	{"stop", TEXTARRAYOID},
	{"model", TEXTOID},
	{NULL, InvalidOid}
};
static const NamedArgument session_arguments[] = {
	{"system", TEXTOID},		/* not of session_load */
	{"model", TEXTOID},
	{NULL, InvalidOid}
};
static const NamedArgument no_arguments[] = {{NULL, InvalidOid}};

/* The options of one request in the making */
typedef struct OptionsBuilder
{
	StringInfo	out;
	MixtralOp	op;
	Jsonb	   *options;		/* NULL: none */
	const NamedArgument *named;
	FunctionCallInfo fcinfo;
	int			first;			/* the argument that named[0] is */
} OptionsBuilder;

/* ---- Fields ---- */

StringInfo
mixtral_request(MixtralOp op)
{
	StringInfo	request = makeStringInfo();

	appendStringInfo(request, "{\"op\":\"%s\"", op_names[op]);
	return request;
}

void
mixtral_request_text(StringInfo request, const char *field, text *value)
{
	appendStringInfo(request, ",\"%s\":", field);
	mixtral_append_json(request, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

void
mixtral_request_jsonb(StringInfo request, const char *field, Jsonb *value)
{
	appendStringInfo(request, ",\"%s\":", field);
	JsonbToCString(request, &value->root, VARSIZE(value));
}

/* Argument i: a prompt (text), or messages (jsonb) */
void
mixtral_request_input(StringInfo request, FunctionCallInfo fcinfo, int i)
{
	if (get_fn_expr_argtype(fcinfo->flinfo, i) == JSONBOID)
		mixtral_request_jsonb(request, "messages", PG_GETARG_JSONB_P(i));
	else
		mixtral_request_text(request, "prompt", PG_GETARG_TEXT_PP(i));
}

char *
mixtral_request_end(StringInfo request)
{
	appendStringInfoChar(request, '}');
	return mixtral_to_utf8(request->data, request->len);
}

/* ---- Options ---- */

static void
begin_option(OptionsBuilder *builder, const char *name, int length)
{
	StringInfo	out = builder->out;

	if (out->data[out->len - 1] != '{')
		appendStringInfoChar(out, ',');
	mixtral_append_json(out, name, length);
	appendStringInfoChar(out, ':');
}

static void
append_number(OptionsBuilder *builder, const char *name, double number)
{
	if (!isfinite(number))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option %s: expected a finite number", name)));
	begin_option(builder, name, strlen(name));
	appendStringInfo(builder->out, "%.17g", number);
}

static void
append_texts(OptionsBuilder *builder, const char *name, ArrayType *array)
{
	Datum	   *items;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &items, &nulls, &n);
	begin_option(builder, name, strlen(name));
	appendStringInfoChar(builder->out, '[');
	for (int i = 0; i < n; i++)
	{
		text	   *item;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("option %s: expected strings, got a null", name)));
		item = DatumGetTextPP(items[i]);
		if (i > 0)
			appendStringInfoChar(builder->out, ',');
		mixtral_append_json(builder->out, VARDATA_ANY(item), VARSIZE_ANY_EXHDR(item));
	}
	appendStringInfoChar(builder->out, ']');
}

static void
append_argument(OptionsBuilder *builder, const NamedArgument *argument, Datum value)
{
	text	   *string;

	switch (argument->type)
	{
		case TEXTOID:
			string = DatumGetTextPP(value);
			begin_option(builder, argument->name, strlen(argument->name));
			mixtral_append_json(builder->out, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string));
			break;
		case INT4OID:
			append_number(builder, argument->name, DatumGetInt32(value));
			break;
		case INT8OID:
			begin_option(builder, argument->name, strlen(argument->name));
			appendStringInfo(builder->out, INT64_FORMAT, DatumGetInt64(value));
			break;
		case FLOAT8OID:
			append_number(builder, argument->name, DatumGetFloat8(value));
			break;
		default:
			append_texts(builder, argument->name, DatumGetArrayTypeP(value));
			break;
	}
}

static const NamedArgument *
named_arguments(MixtralOp op)
{
	switch (op)
	{
		case MIXTRAL_CHAT:
			return text_arguments;
		case MIXTRAL_COMPLETE:
			return text_arguments + 1;
		case MIXTRAL_SESSION_SAVE:
			return session_arguments;
		case MIXTRAL_SESSION_LOAD:
			return session_arguments + 1;
		default:
			return no_arguments;
	}
}

static bool
argument_given(const OptionsBuilder *builder, int i)
{
	return builder->first + i < builder->fcinfo->nargs &&
		!builder->fcinfo->args[builder->first + i].isnull;
}

static bool
is_named(const OptionsBuilder *builder, const char *name, size_t length)
{
	for (int i = 0; builder->named[i].name != NULL; i++)
		if (strlen(builder->named[i].name) == length &&
			memcmp(builder->named[i].name, name, length) == 0 && argument_given(builder, i))
			return true;
	return false;
}

/* Those that mixtral_request_options sees to itself */
static bool
is_ours(const OptionsBuilder *builder, const JsonbValue *key)
{
	static const char *const ours[] = {"timeout_ms", "tenant", "tenant_requests",
	"tenant_tokens_per_minute", "max_tokens"};
	bool		generates = builder->op == MIXTRAL_CHAT || builder->op == MIXTRAL_COMPLETE;
	int			n = generates ? lengthof(ours) : lengthof(ours) - 1;

	for (int i = 0; i < n; i++)
		if ((int) strlen(ours[i]) == key->val.string.len &&
			memcmp(ours[i], key->val.string.val, key->val.string.len) == 0)
			return true;
	return false;
}

static void
append_value(StringInfo out, JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			appendStringInfoString(out, "null");
			break;
		case jbvBool:
			appendStringInfoString(out, value->val.boolean ? "true" : "false");
			break;
		case jbvString:
			mixtral_append_json(out, value->val.string.val, value->val.string.len);
			break;
		case jbvNumeric:
			appendStringInfoString(out,
								   DatumGetCString(DirectFunctionCall1(numeric_out,
																	   NumericGetDatum(value->val.numeric))));
			break;
		default:
			JsonbToCString(out, value->val.binary.data, value->val.binary.len);
			break;
	}
}

static void
append_given_options(OptionsBuilder *builder)
{
	JsonbIterator *it;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (builder->options == NULL)
		return;
	it = JsonbIteratorInit(&builder->options->root);
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		JsonbValue	key = value;

		if (token != WJB_KEY)
			continue;
		JsonbIteratorNext(&it, &value, true);
		if (is_ours(builder, &key) || is_named(builder, key.val.string.val, key.val.string.len))
			continue;
		begin_option(builder, key.val.string.val, key.val.string.len);
		append_value(builder->out, &value);
	}
}

/* The option in `options` where it is there and not null */
static JsonbValue *
option(OptionsBuilder *builder, const char *name, JsonbValue *value)
{
	if (builder->options == NULL || mixtral_member(builder->options, name, value) == NULL ||
		value->type == jbvNull)
		return NULL;
	return value;
}

static bool
is_set(OptionsBuilder *builder, const char *name)
{
	JsonbValue	value;

	return is_named(builder, name, strlen(name)) || option(builder, name, &value) != NULL;
}

static void
append_default(OptionsBuilder *builder, const char *name, double value)
{
	if (value >= 0 && !is_set(builder, name))
		append_number(builder, name, value);
}

/* A number as the user gave it, for comparison; false: no number, let the engine say so */
static bool
as_number(const JsonbValue *value, double *number)
{
	if (value->type != jbvNumeric)
		return false;
	*number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												 NumericGetDatum(value->val.numeric)));
	return true;
}

/* ---- Limits and the tenant ---- */

static void
append_max_tokens(OptionsBuilder *builder)
{
	int			limit = mixtral_max_tokens_limit > 0 ? mixtral_max_tokens_limit : INT_MAX;
	JsonbValue	value;
	double		asked = 0;

	if (is_named(builder, "max_tokens", strlen("max_tokens")))
	{
		for (int i = 0; builder->named[i].name != NULL; i++)
			if (strcmp(builder->named[i].name, "max_tokens") == 0)
				asked = DatumGetInt32(builder->fcinfo->args[builder->first + i].value);
	}
	else if (option(builder, "max_tokens", &value) == NULL)
	{
		append_number(builder, "max_tokens", Min(mixtral_default_max_tokens, limit));
		return;
	}
	else
	{
		begin_option(builder, "max_tokens", strlen("max_tokens"));
		append_value(builder->out, &value);
		if (!as_number(&value, &asked))
			return;
	}
	if (asked > limit)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option max_tokens: expected at most %d, got %.0f", limit, asked),
				 errhint("The limit is the setting mixtral.max_tokens_limit.")));
}

static void
append_timeout(OptionsBuilder *builder)
{
	JsonbValue	value;
	double		asked;

	if (option(builder, "timeout_ms", &value) == NULL)
	{
		if (mixtral_timeout > 0)
			append_number(builder, "timeout_ms", mixtral_timeout);
		return;
	}
	if (mixtral_timeout > 0 && as_number(&value, &asked) && (asked == 0 || asked > mixtral_timeout))
	{
		append_number(builder, "timeout_ms", mixtral_timeout);
		return;
	}
	begin_option(builder, "timeout_ms", strlen("timeout_ms"));
	append_value(builder->out, &value);
}

/*
 * Inside a SECURITY DEFINER function two roles count: the one whose rights
 * are used, and the one that has called.
 */
static void
append_tenant(OptionsBuilder *builder)
{
	StringInfoData tenant;
	JsonbValue	value;
	Oid			role = GetUserId();
	Oid			caller = GetOuterUserId();

	initStringInfo(&tenant);
	appendStringInfo(&tenant, "pg:" UINT64_FORMAT ":", GetSystemIdentifier());
	if (*mixtral_shared_prefix_tenant != '\0')
		appendStringInfo(&tenant, "shared:%s", mixtral_shared_prefix_tenant);
	else if (role == caller)
		appendStringInfo(&tenant, "%u", role);
	else
		appendStringInfo(&tenant, "%u/%u", caller, role);
	if (option(builder, "tenant", &value) != NULL)
	{
		if (value.type != jbvString)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option tenant: expected a string")));
		appendStringInfoChar(&tenant, ':');
		appendBinaryStringInfo(&tenant, value.val.string.val, value.val.string.len);
	}
	begin_option(builder, "tenant", strlen("tenant"));
	mixtral_append_json(builder->out, tenant.data, tenant.len);
	pfree(tenant.data);
}

/*
 * Limits are a tenant's, so that who has one cannot have another tenant for
 * the asking.
 */
static void
append_tenant_limits(OptionsBuilder *builder)
{
	bool		limited = mixtral_tenant_requests > 0 || mixtral_tenant_tokens_per_minute > 0;
	JsonbValue	value;

	if (option(builder, "tenant_requests", &value) != NULL ||
		option(builder, "tenant_tokens_per_minute", &value) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("options tenant_requests and tenant_tokens_per_minute: not to be given in a call"),
				 errhint("A superuser sets mixtral.tenant_requests and mixtral.tenant_tokens_per_minute, also for a role.")));
	if (limited && option(builder, "tenant", &value) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("option tenant: not to be given while mixtral.tenant_requests or "
						"mixtral.tenant_tokens_per_minute is set")));
	if (mixtral_tenant_requests > 0)
		append_number(builder, "tenant_requests", mixtral_tenant_requests);
	if (mixtral_tenant_tokens_per_minute > 0)
		append_number(builder, "tenant_tokens_per_minute", mixtral_tenant_tokens_per_minute);
}

/* What a function that returns one text would have to throw away */
static void
refuse_more_than_text(OptionsBuilder *builder)
{
	static const char *const names[] = {"n", "logprobs", "top_logprobs"};
	JsonbValue	value;

	for (int i = 0; i < (int) lengthof(names); i++)
		if (option(builder, names[i], &value) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option %s: this function returns the text of one answer", names[i]),
					 errhint("mixtral_generate has a column for it: choices.")));
}

/*
 * Appends the field `options`.  `first` is the argument that follows
 * `options`, the first of those with names; `one_answer` says that there is
 * nothing but a text in the result.
 */
void
mixtral_request_options(StringInfo request, MixtralOp op, Jsonb *options,
						FunctionCallInfo fcinfo, int first, bool one_answer)
{
	OptionsBuilder builder = {
		.out = request, .op = op, .options = options, .fcinfo = fcinfo, .first = first
	};
	bool		generates = op == MIXTRAL_CHAT || op == MIXTRAL_COMPLETE;

	builder.named = named_arguments(op);
	if (options != NULL && !JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options: expected a JSON object")));
	appendStringInfoString(request, ",\"options\":{");
	for (int i = 0; builder.named[i].name != NULL; i++)
		if (argument_given(&builder, i))
			append_argument(&builder, &builder.named[i], fcinfo->args[first + i].value);
	append_given_options(&builder);
	if (generates)
	{
		if (one_answer)
			refuse_more_than_text(&builder);
		append_max_tokens(&builder);
		append_default(&builder, "temperature", mixtral_default_temperature);
		append_default(&builder, "top_k", mixtral_default_top_k);
		append_default(&builder, "top_p", mixtral_default_top_p);
		append_default(&builder, "min_p", mixtral_default_min_p);
		append_default(&builder, "repeat_penalty", mixtral_default_repeat_penalty);
	}
	append_timeout(&builder);
	append_tenant(&builder);
	append_tenant_limits(&builder);
	appendStringInfoChar(request, '}');
}
