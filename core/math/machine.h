/*
 * machine.h: what the machine and the process's cgroup leave to this process.
 *
 * `root` stands before /proc and /sys: "" but in tests. Any thread; every call reads the files anew. What cannot be read limits
 * nothing. (mx_threads_default, in thread_pool.h, is mx_machine_cores("").)
 */
#ifndef MX_MATH_MACHINE_H
#define MX_MATH_MACHINE_H

#include <stdint.h>

/* Physical cores within the affinity mask and the cgroup's CPU quota: 1 .. MX_THREADS_MAX. */
int mx_machine_cores(const char *root);

/* Bytes that can be taken without swapping, within the cgroup's memory limit; INT64_MAX where nothing says. */
int64_t mx_machine_available_bytes(const char *root);

#endif
