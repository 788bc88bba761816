/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The settings: mixtral.*
 *
 * Three kinds.  What the engine runs with is one for the cluster and changes
 * by reload (PGC_SIGHUP): the worker compares, and exchanges the engine.
 * Limits are the superuser's, also per role or database (PGC_SUSET).
 * Defaults of sampling are everybody's (PGC_USERSET).
 *
 * A session that has not loaded the library does not know them, so that
 * ALTER SYSTEM SET mixtral.* there needs LOAD 'mixtral' first in PostgreSQL
 * 15 and 16.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <float.h>
#include <limits.h>

char	   *mixtral_model;
char	   *mixtral_program;
int			mixtral_threads;
int			mixtral_context;
int			mixtral_kv_pool;
int			mixtral_kv_type;
int			mixtral_max_queue;
int			mixtral_max_step;
char	   *mixtral_socket;
char	   *mixtral_listen_at;
int			mixtral_max_tokens_limit;
int			mixtral_timeout;
char	   *mixtral_shared_prefix_tenant;
int			mixtral_tenant_requests;
int			mixtral_tenant_tokens_per_minute;
int			mixtral_default_max_tokens;
double		mixtral_default_temperature;
int			mixtral_default_top_k;
double		mixtral_default_top_p;
double		mixtral_default_min_p;
double		mixtral_default_repeat_penalty;

const struct config_enum_entry mixtral_kv_types[] = {
	{"f16", 0, false},
	{"bf16", 1, false},
	{"q8_0", 2, false},
	{NULL, 0, false}
};

/* A socket's path is bounded by sockaddr_un */
static bool
check_socket(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) <= 107)
		return true;
	GUC_check_errdetail("A socket's path has at most 107 bytes, this one has %zu.",
						strlen(*newval));
	return false;
}

static bool
check_listen(char **newval, void **extra, GucSource source)
{
	MixtralListen listen;
	char		problem[1024];

	if (mixtral_parse_listen(*newval, &listen, problem, sizeof(problem)))
		return true;
	GUC_check_errdetail("%s", problem);
	return false;
}

static void
define_engine_settings(void)
{
	DefineCustomStringVariable("mixtral.model",
							   "The model file that the engine serves (GGUF), or several, separated by commas, as name=file.",
							   "The first answers requests that name none; without a name= it has the file's own. A relative path is relative to the data directory. "
							   "On reload, another file, or the same name with another file behind it, takes over "
							   "without failing running requests.",
							   &mixtral_model, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("mixtral.program",
							   "The engine program.",
							   "Empty: the file mixtral in the folder of the program postgres.",
							   &mixtral_program, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.threads",
							"Compute threads of the engine.",
							"0: physical cores within the CPU affinity mask and cgroup quota.",
							&mixtral_threads, 0, 0, 256, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.context",
							"Tokens that a request may have, prompt and answer together.",
							"0: as many as the model has been trained for.",
							&mixtral_context, 0, 0, INT_MAX, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.kv_pool",
							"Memory for the keys and values of all requests.",
							"0: one full context, or a quarter of the available memory where that is less.",
							&mixtral_kv_pool, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MB,
							NULL, NULL, NULL);
	DefineCustomEnumVariable("mixtral.kv_type",
							 "Number format of keys and values.",
							 "q8_0 takes half the memory.",
							 &mixtral_kv_type, 0, mixtral_kv_types, PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.max_queue",
							"Requests that may wait in the engine; more are refused.",
							NULL,
							&mixtral_max_queue, 256, 1, 1000000, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.max_step",
							"What the reading of others' prompts may delay the next piece of a running answer.",
							NULL,
							&mixtral_max_step, 250, 1, 60000, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomStringVariable("mixtral.socket",
							   "The socket of an engine elsewhere, to be used instead of one of our own.",
							   "Empty: the cluster has its own engine.",
							   &mixtral_socket, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_socket, NULL, NULL);
	DefineCustomStringVariable("mixtral.listen",
							   "A second socket of the engine, for other programs: an absolute path, then mode=, group= and uids=, with blanks between.",
							   "mode is octal (0660); group is a name or number; uids are the user numbers, with commas between, "
							   "of those who may name tenants. Empty: none.",
							   &mixtral_listen_at, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_listen, NULL, NULL);
}

static void
define_limits(void)
{
	DefineCustomIntVariable("mixtral.max_tokens_limit",
							"The most tokens that one answer may have.",
							"0: no limit but the context. A request that asks for more is an error.",
							&mixtral_max_tokens_limit, 0, 0, INT_MAX, PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.timeout",
							"How long a request may take in the engine.",
							"0: no limit. Option timeout_ms of a request can only shorten it.",
							&mixtral_timeout, 0, 0, INT_MAX, PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.tenant_requests",
							"Requests that a role may have in the engine at a time.",
							"0: no limit.",
							&mixtral_tenant_requests, 0, 0, INT_MAX, PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.tenant_tokens_per_minute",
							"Tokens that a role may have read and made in a minute.",
							"0: no limit.",
							&mixtral_tenant_tokens_per_minute, 0, 0, INT_MAX, PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomStringVariable("mixtral.shared_prefix_tenant",
							   "Roles with the same name here share what was computed for common beginnings of prompts.",
							   "Empty: every role is on its own, so that no role can tell from the time an answer takes "
							   "what another has asked.",
							   &mixtral_shared_prefix_tenant, "", PGC_SUSET, 0, NULL, NULL, NULL);
}

static void
define_defaults(void)
{
	DefineCustomIntVariable("mixtral.default_max_tokens",
							"Tokens of an answer, unless the call says otherwise.",
							NULL,
							&mixtral_default_max_tokens, 512, 1, INT_MAX, PGC_USERSET, 0,
							NULL, NULL, NULL);
	DefineCustomRealVariable("mixtral.default_temperature",
							 "Temperature of sampling, unless the call says otherwise.",
							 "0: always the likeliest token; -1: the engine's default.",
							 &mixtral_default_temperature, -1, -1, 100, PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("mixtral.default_top_k",
							"How many of the likeliest tokens are sampled from, unless the call says otherwise.",
							"0: all; -1: the engine's default.",
							&mixtral_default_top_k, -1, -1, INT_MAX, PGC_USERSET, 0,
							NULL, NULL, NULL);
	DefineCustomRealVariable("mixtral.default_top_p",
							 "The probability that the sampled tokens make up, unless the call says otherwise.",
							 "-1: the engine's default.",
							 &mixtral_default_top_p, -1, -1, 1, PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomRealVariable("mixtral.default_min_p",
							 "The least probability, relative to the likeliest token's, unless the call says otherwise.",
							 "-1: the engine's default.",
							 &mixtral_default_min_p, -1, -1, 1, PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomRealVariable("mixtral.default_repeat_penalty",
							 "What the logits of tokens that are there already are divided by, unless the call says otherwise.",
							 "-1: the engine's default.",
							 &mixtral_default_repeat_penalty, -1, -1, 1000, PGC_USERSET, 0,
							 NULL, NULL, NULL);
}

void
mixtral_define_settings(void)
{
	define_engine_settings();
	define_limits();
	define_defaults();
	MarkGUCPrefixReserved("mixtral");
}
