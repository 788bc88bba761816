/*
 * error.c: status names, and the one place where an mx_error is filled.
 */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *mx_status_name(mx_status status)
{
    static const char *const names[] = {
        [MX_OK] = "ok",
        [MX_AGAIN] = "again",
        [MX_BUSY] = "busy",
        [MX_NOMEM] = "nomem",
        [MX_INVALID] = "invalid",
        [MX_NOT_FOUND] = "not_found",
        [MX_DENIED] = "denied",
        [MX_TOO_LARGE] = "too_large",
        [MX_UNAVAILABLE] = "unavailable",
        [MX_CORRUPT] = "corrupt",
        [MX_CANCELLED] = "cancelled",
        [MX_TIMEOUT] = "timeout",
        [MX_IO] = "io",
        [MX_INTERNAL] = "internal",
    };

    if ((unsigned)status >= sizeof names / sizeof names[0])
        return names[MX_INTERNAL];
    return names[status];
}

/* Bytes of the UTF-8 character at s; 0 if it is none, or one of the control characters U+0080 to U+009F. */
static size_t utf8_length(const unsigned char *s, const unsigned char *end)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;

    if (n == 0 || n > (size_t)(end - s))
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xc2 && s[1] < 0xa0) ||                                  /* control */
        (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || /* overlong; surrogate */
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))   /* overlong; above U+10FFFF */
        return 0;
    return n;
}

void mx_line_clean(char *text, int was_cut)
{
    unsigned char *s = (unsigned char *)text, *end = s + strlen(text);

    while (s < end) {
        size_t n = utf8_length(s, end);

        if (n == 0 && was_cut && end - s < 4 && *s >= 0xc2) { /* the beginning of a character that was cut */
            *s = '\0';
            return;
        }
        if (n == 0 || *s < 0x20 || *s == 0x7f) {
            *s = '?';
            n = 1;
        }
        s += n;
    }
}

mx_status mx_fail(mx_error *error, mx_status status, const char *field, const char *format, ...)
{
    mx_error e = {.status = status}; /* the arguments may lie in *error */
    va_list args;
    int n;

    if (!error)
        return status;

    n = snprintf(e.field, sizeof e.field, "%s", field ? field : "");
    mx_line_clean(e.field, n >= (int)sizeof e.field);

    va_start(args, format);
    n = vsnprintf(e.text, sizeof e.text, format, args);
    va_end(args);
    if (n < 0)
        snprintf(e.text, sizeof e.text, "%s", mx_status_name(status));
    mx_line_clean(e.text, n >= (int)sizeof e.text);

    *error = e;
    return status;
}

mx_status mx_retry_after(mx_error *error, int64_t ms)
{
    if (error)
        error->retry_after_ms = ms;
    return MX_BUSY;
}
