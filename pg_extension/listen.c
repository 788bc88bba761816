/*-------------------------------------------------------------------------
 *
 * listen.c
 *	  The sockets that the worker makes: the one of the sessions, and with
 *	  mixtral.listen another one for other programs.
 *
 *		mixtral.listen = '/run/postgresql/mixtral.sock mode=0660 group=www-data uids=33'
 *
 * The setting is a path and then options, with blanks between; so there is no
 * blank in a path.  The path is absolute: others cannot enter the data
 * directory.  It is checked where it is set; whether the group exists and the
 * path can be had is found out by the worker, which reports what is wrong and
 * goes on without.
 *
 * The worker keeps the listening socket while engines come and go.  What was at
 * the path before is replaced if it is a socket at which nobody listens, and
 * left alone if it is anything else.  A socket whose file somebody has
 * removed is made again.  Each one that is made has a number of its own,
 * by which the worker sees whether an engine has it.
 *
 * Copyright 2026 the mixtral authors.  Licensed under the Apache License,
 * Version 2.0.
 *
 *-------------------------------------------------------------------------
 */
#include "mixtral.h"

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "utils/timestamp.h"

#define BACKLOG		1024
#define BLANKS		" \t"
#define MODE_DEFAULT 0660
#define PAUSE_MS	3000		/* between two attempts: it may be another process's that is asked */

/* ---- The setting ---- */

static bool
parse_mode(const char *text, mode_t *mode)
{
	size_t		length = strspn(text, "01234567");

	*mode = (mode_t) strtoul(text, NULL, 8);
	return length > 0 && length <= 4 && text[length] == '\0' && *mode <= 0777;
}

static bool
parse_uids(const char *text, MixtralListen *result)
{
	for (;; text++)
	{
		char	   *end;
		unsigned long uid = strtoul(text, &end, 10);

		if (*text < '0' || *text > '9' || uid > INT_MAX || result->n_uids == MIXTRAL_UIDS_MAX)
			return false;
		result->uids[result->n_uids++] = (uint32) uid;
		text = end;
		if (*text == '\0')
			return true;
		if (*text != ',')
			return false;
	}
}

/* key=value; false: `problem` says why not */
static bool
parse_option(const char *word, MixtralListen *result, char *problem, size_t size)
{
	if (strncmp(word, "mode=", 5) == 0 && result->mode == (mode_t) -1)
	{
		if (parse_mode(word + 5, &result->mode))
			return true;
		snprintf(problem, size, "mode: expected an octal number such as 0660, got \"%s\".", word + 5);
	}
	else if (strncmp(word, "group=", 6) == 0 && result->group[0] == '\0')
	{
		if (word[6] != '\0' && strlen(word + 6) < sizeof(result->group))
		{
			strlcpy(result->group, word + 6, sizeof(result->group));
			return true;
		}
		snprintf(problem, size, "group: expected a name of 1 to %zu bytes, got \"%s\".",
				 sizeof(result->group) - 1, word + 6);
	}
	else if (strncmp(word, "uids=", 5) == 0 && result->n_uids == 0)
	{
		if (parse_uids(word + 5, result))
			return true;
		snprintf(problem, size, "uids: expected at most %d user numbers with commas between, got \"%s\".",
				 MIXTRAL_UIDS_MAX, word + 5);
	}
	else
		snprintf(problem, size, "Expected mode=, group= and uids= after the path, each at most once, got \"%s\".", word);
	return false;
}

/*
 * The setting, taken apart; an empty path if there is nothing in it.  False:
 * `problem` says what is wrong.  Allocates nothing that stays.
 */
bool
mixtral_parse_listen(const char *setting, MixtralListen *result, char *problem, size_t size)
{
	const char *at = setting + strspn(setting, BLANKS);
	size_t		length = strcspn(at, BLANKS);

	memset(result, 0, sizeof(*result));
	result->mode = (mode_t) -1;
	if (length > 0 && at[0] != '/')
	{
		snprintf(problem, size, "Expected an absolute path, got \"%.*s\".", (int) length, at);
		return false;
	}
	if (length >= sizeof(result->path))
	{
		snprintf(problem, size, "A socket's path has at most %zu bytes, this one has %zu.",
				 sizeof(result->path) - 1, length);
		return false;
	}
	memcpy(result->path, at, length);
	for (at += length; *(at += strspn(at, BLANKS)) != '\0'; at += length)
	{
		char		word[MIXTRAL_UIDS_MAX * 12];

		length = strcspn(at, BLANKS);
		strlcpy(word, at, Min(length + 1, sizeof(word)));
		if (length >= sizeof(word) || !parse_option(word, result, problem, size))
		{
			if (length >= sizeof(word))
				snprintf(problem, size, "An option has at most %zu bytes, this one has %zu.",
						 sizeof(word) - 1, length);
			return false;
		}
	}
	if (result->mode == (mode_t) -1)
		result->mode = MODE_DEFAULT;
	return true;
}

/* ---- Making a socket ---- */

/* A listening socket, 0600, at a path where nothing is; -1: see errno */
static int
listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	mode_t		old;
	int			fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int			rc;
	int			saved;

	if (fd < 0)
		return -1;
	strlcpy(address.sun_path, path, sizeof(address.sun_path));
	old = umask(0177);
	rc = bind(fd, (struct sockaddr *) &address, sizeof(address));
	umask(old);
	if (rc == 0 && listen(fd, BACKLOG) == 0)
		return fd;
	saved = errno;
	close(fd);
	errno = saved;
	return -1;
}

/* The same in place of whatever was at the path, which is ours; -1: it has been logged why not */
int
mixtral_listen(const char *path)
{
	int			fd;

	unlink(path);
	fd = listen_at(path);
	if (fd < 0)
		ereport(LOG,
				(errcode_for_socket_access(),
				 errmsg("could not listen at \"%s\": %m", path)));
	return fd;
}

/* ---- The socket for others ---- */

static bool
is_ours(const MixtralOutside *outside)
{
	struct stat st;

	return lstat(outside->listen.path, &st) == 0 && st.st_dev == outside->dev && st.st_ino == outside->ino;
}

/* What was wrong is no more, or is to be told again */
static void
forget_trouble(MixtralOutside *outside)
{
	if (outside->trouble != NULL)
		pfree(outside->trouble);
	outside->trouble = NULL;
	outside->troubled = false;
}

/* Logs what is wrong, once as long as it stays the same */
static void
complain(MixtralOutside *outside, const char *text)
{
	if (outside->trouble != NULL && strcmp(outside->trouble, text) == 0)
		return;
	forget_trouble(outside);
	outside->trouble = MemoryContextStrdup(TopMemoryContext, text);
	outside->troubled = true;
	ereport(LOG, (errmsg("mixtral.listen: %s", text)));
}

/* A name, or a number; false: there is no such group */
static bool
find_group(const char *name, gid_t *gid)
{
	char	   *end;
	unsigned long number = strtoul(name, &end, 10);
	struct group *entry;

	*gid = (gid_t) number;
	if (*end == '\0')
		return true;
	entry = getgrnam(name);
	if (entry != NULL)
		*gid = entry->gr_gid;
	return entry != NULL;
}

/* Group before mode, so that the old group never has what the new one is given */
static void
set_access(MixtralOutside *outside)
{
	const MixtralListen *l = &outside->listen;
	gid_t		gid = getegid();

	if (l->group[0] != '\0' && !find_group(l->group, &gid))
		complain(outside, psprintf("group \"%s\" does not exist", l->group));
	else if (lchown(l->path, -1, gid) < 0)
		complain(outside, psprintf("could not set the group of \"%s\": %m", l->path));
	if (chmod(l->path, l->mode) < 0)
		complain(outside, psprintf("could not set the mode of \"%s\": %m", l->path));
}

/* Removes a socket at which nobody listens any more; false: there is something else, see `complain` */
static bool
make_room(MixtralOutside *outside)
{
	const char *path = outside->listen.path;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct stat st;
	int			fd;
	bool		stale;

	if (lstat(path, &st) < 0)
		return true;			/* bind says what is wrong, if anything */
	if (!S_ISSOCK(st.st_mode))
	{
		complain(outside, psprintf("\"%s\" is there, and is not a socket", path));
		return false;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	strlcpy(address.sun_path, path, sizeof(address.sun_path));
	stale = fd >= 0 && connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0 && errno == ECONNREFUSED;
	if (fd >= 0)
		close(fd);
	if (!stale)
		complain(outside, psprintf("another process listens at \"%s\"", path));
	else if (unlink(path) < 0)
		complain(outside, psprintf("could not remove the old socket \"%s\": %m", path));
	else
		return true;
	return false;
}

static void
open_outside(MixtralOutside *outside)
{
	const char *path = outside->listen.path;
	struct stat st;

	if (!make_room(outside))
		return;
	outside->fd = listen_at(path);
	if (outside->fd < 0 || lstat(path, &st) < 0)
	{
		complain(outside, psprintf("could not listen at \"%s\": %m", path));
		mixtral_outside_close(outside);
		return;
	}
	outside->dev = st.st_dev;
	outside->ino = st.st_ino;
	outside->number++;
	forget_trouble(outside);
	set_access(outside);
	ereport(LOG, (errmsg("the mixtral engine listens at \"%s\", too", path)));
}

/* Also of one that is not open.  A file that somebody else has put at the path stays. */
void
mixtral_outside_close(MixtralOutside *outside)
{
	if (outside->fd < 0)
		return;
	close(outside->fd);
	outside->fd = -1;
	if (is_ours(outside) && unlink(outside->listen.path) < 0)
		complain(outside, psprintf("could not remove \"%s\": %m", outside->listen.path));
}

/* What is asked for from now on; an empty path: no socket.  mixtral_outside_look makes it. */
void
mixtral_outside_set(MixtralOutside *outside, const MixtralListen *listen)
{
	if (strcmp(outside->listen.path, listen->path) != 0)
		mixtral_outside_close(outside);
	outside->listen = *listen;
	outside->retry_at = 0;
	forget_trouble(outside);	/* it is told again after each reload */
	if (outside->fd >= 0 && is_ours(outside))
		set_access(outside);
}

/* Makes the socket where there is none, or its file has gone.  True: outside->trouble is new. */
bool
mixtral_outside_look(MixtralOutside *outside)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		troubled;

	if (outside->fd >= 0 && !is_ours(outside))
	{
		ereport(LOG,
				(errmsg("the socket \"%s\" has been removed; making another", outside->listen.path)));
		mixtral_outside_close(outside);
	}
	if (outside->fd < 0 && outside->listen.path[0] != '\0' && now >= outside->retry_at)
	{
		open_outside(outside);
		outside->retry_at = TimestampTzPlusMilliseconds(now, PAUSE_MS);
	}
	troubled = outside->troubled;
	outside->troubled = false;
	return troubled;
}
