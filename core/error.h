/*
 * error.h: filling an mx_error. Internal to the core.
 */
#ifndef MX_CORE_ERROR_H
#define MX_CORE_ERROR_H

#include "mx.h"

/*
 * Fills *error (where it is not NULL) and returns `status`, so that a failing function can end in
 *     return mx_fail(error, MX_CORRUPT, name, "tensor %s: expected %d dimensions, got %d", name, 2, n);
 * `field` names the option, key or tensor at fault, NULL for none. The arguments may point into *error, so that a text can
 * be wrapped. Text that does not fit is cut at a UTF-8 boundary; control characters are replaced by '?', so that a hostile
 * file cannot forge log lines.
 */
mx_status mx_fail(mx_error *error, mx_status status, const char *field, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Adds the time to an MX_BUSY error, which it returns. */
mx_status mx_retry_after(mx_error *error, int64_t ms);

/* Makes `text` one line of valid UTF-8, in place: other bytes and control characters become '?'. `was_cut`: a character
 * that is not whole at the end goes. */
void mx_line_clean(char *text, int was_cut);

#endif
