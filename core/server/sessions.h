/*
 * sessions.h: saving and loading sessions: the thread that moves blocks between the KV pools and files.
 *
 * A save is read as a prompt is; a load gets room in the pool. Either way the scheduler then lends out the request's blocks
 * (mx_session_blocks), and this thread reads or fills them while others' steps go on. It starts with the first call.
 */
#ifndef MX_SERVER_SESSIONS_H
#define MX_SERVER_SESSIONS_H

#include "call.h"

typedef struct mx_sessions mx_sessions;

mx_status mx_sessions_open(mx_sessions **sessions, mx_error *error);

/* Ends the calls that are here with MX_UNAVAILABLE and joins the thread. Blocks that are lent afterwards are given back at once. */
void mx_sessions_stop(mx_sessions *sessions);
void mx_sessions_close(mx_sessions *sessions); /* stopped, and no scheduler knows of a session any more; takes NULL */

/* A call gets its files: {session file, key file}, taken over where it succeeds. */
mx_status mx_session_attach(mx_call *call, const int files[2], mx_error *error);

void mx_session_free(mx_session *session); /* closes them; takes NULL */

/* Saves what the tokens' whole blocks hold, MX_INVALID where there is none. The call ends by itself where this succeeds. */
mx_status mx_sessions_save(mx_sessions *sessions, mx_call *call, const int32_t *tokens, const uint8_t *classes, size_t n_tokens,
                           mx_error *error);

/* Loads from the call's file. Takes the caller's reference over where it succeeds. MX_BUSY. */
mx_status mx_sessions_load(mx_sessions *sessions, mx_call *call, mx_error *error);

int mx_sessions_pending(mx_sessions *sessions); /* calls that wait here or are worked on; any thread */

#endif
