/*-------------------------------------------------------------------------
 *
 * sessions.c
 *	  Conversations kept in files of the server, so that a long document is
 *	  read once in its life.
 *
 *		SELECT mixtral_session_save('/var/lib/x/contract.session', '/etc/x/session.key', 'the long document ...');
 *		SELECT mixtral_session_load('/var/lib/x/contract.session', '/etc/x/session.key');	-- after a restart
 *		SELECT mixtral_chat(...);	-- messages that begin with the document: it is not read again
 *
 * The files are opened here, with the rights of the server's user, by roles
 * that may have COPY read and write files; the engine gets descriptors.
 * Paths are COPY's: what is written has an absolute one, what is read may
 * have one that is relative to the data directory.
 *
 * A session is written beside its path and takes its place when it is whole
 * and on disk.  However the call ends otherwise, cancelled or terminated,
 * the new file is removed.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(mixtral_session_save);
PG_FUNCTION_INFO_V1(mixtral_session_load);

#define SUFFIX_LENGTH	9		/* of ".0123abcd" */

/* The order in which a request has them */
enum
{
	SESSION_FILE, KEY_FILE, N_FILES
};

/* ---- Files ---- */

static void
check_rights(bool writes)
{
	Oid			role = GetUserId();

	if (has_privs_of_role(role, ROLE_PG_READ_SERVER_FILES) &&
		(!writes || has_privs_of_role(role, ROLE_PG_WRITE_SERVER_FILES)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 writes ? errmsg("permission denied to save a session to a file") :
			 errmsg("permission denied to load a session from a file"),
			 writes ? errhint("This is for roles with privileges of pg_write_server_files and pg_read_server_files.") :
			 errhint("This is for roles with privileges of pg_read_server_files.")));
}

/* Takes nothing that might make it wait, such as a named pipe: that is no session and no key */
static int
open_to_read(const char *path)
{
	int			fd = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | PG_BINARY);

	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\" for reading: %m", path)));
	return fd;
}

static void
check_target(const char *path)
{
	struct stat st;

	if (!is_absolute_path(path))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("relative path not allowed for a session to be saved to: \"%s\"", path)));
	if (strlen(path) + SUFFIX_LENGTH >= MAXPGPATH)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("path of a session is too long: at most %d bytes, got %zu",
						MAXPGPATH - SUFFIX_LENGTH - 1, strlen(path))));
	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a regular file", path)));
}

/* A new file beside `path`; *name is its own */
static int
make_file(const char *path, char **name)
{
	uint32		number;
	int			fd;

	if (!pg_strong_random(&number, sizeof(number)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a random number")));
	*name = psprintf("%s.%08x", path, number);
	fd = OpenTransientFile(*name, O_RDWR | O_CREAT | O_EXCL | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create file \"%s\": %m", *name)));
	return fd;
}

static void
remove_file(int code, Datum name)
{
	unlink(DatumGetCString(name));
}

/* ---- Requests ---- */

static Jsonb *
options_argument(FunctionCallInfo fcinfo, int i)
{
	return PG_ARGISNULL(i) ? NULL : PG_GETARG_JSONB_P(i);
}

static Datum
ask(const char *function, char *request, const int *files)
{
	bool		isnull;
	Jsonb	   *result = mixtral_ask_with_files(function, request, files, N_FILES);

	return mixtral_member_datum(result, "tokens", INT8OID, &isnull);
}

/* mixtral_session_save(path, key_path, prompt | messages, options, system, model) */
Datum
mixtral_session_save(PG_FUNCTION_ARGS)
{
	StringInfo	request;
	char	   *json;
	char	   *path;
	char	   *name;
	int			files[N_FILES];
	Datum		tokens;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_NULL();
	check_rights(true);
	request = mixtral_request(MIXTRAL_SESSION_SAVE);
	mixtral_request_input(request, fcinfo, 2);
	mixtral_request_options(request, MIXTRAL_SESSION_SAVE, options_argument(fcinfo, 3), fcinfo, 4, true);
	json = mixtral_request_end(request);

	path = text_to_cstring(PG_GETARG_TEXT_PP(0));
	check_target(path);
	files[KEY_FILE] = open_to_read(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	files[SESSION_FILE] = make_file(path, &name);
	PG_ENSURE_ERROR_CLEANUP(remove_file, CStringGetDatum(name));
	{
		tokens = ask("mixtral_session_save", json, files);
		durable_rename(name, path, ERROR);
	}
	PG_END_ENSURE_ERROR_CLEANUP(remove_file, CStringGetDatum(name));
	CloseTransientFile(files[SESSION_FILE]);
	CloseTransientFile(files[KEY_FILE]);
	PG_RETURN_DATUM(tokens);
}

/* mixtral_session_load(path, key_path, options, model) */
Datum
mixtral_session_load(PG_FUNCTION_ARGS)
{
	StringInfo	request;
	char	   *json;
	int			files[N_FILES];
	Datum		tokens;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	check_rights(false);
	request = mixtral_request(MIXTRAL_SESSION_LOAD);
	mixtral_request_options(request, MIXTRAL_SESSION_LOAD, options_argument(fcinfo, 2), fcinfo, 3, true);
	json = mixtral_request_end(request);

	files[KEY_FILE] = open_to_read(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	files[SESSION_FILE] = open_to_read(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	tokens = ask("mixtral_session_load", json, files);
	CloseTransientFile(files[SESSION_FILE]);
	CloseTransientFile(files[KEY_FILE]);
	PG_RETURN_DATUM(tokens);
}
