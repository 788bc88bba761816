/*
 * machine.c: the cores and the memory that are this process's to use.
 *
 * Cores: one for each physical core that the affinity mask allows (two hyper-threads of a core
 * share the units that the kernels keep busy), and no more than the cgroup's CPU quota pays for: a
 * thread that is throttled in the middle of a step holds up all others at the next barrier. Memory:
 * MemAvailable, and what the cgroup's limit leaves. A limit of any group above the process's own
 * counts too. Sources: sysfs-devices-system-cpu, cgroup-v2.rst (cpu.max, memory.max),
 * sched-bwc.rst, cgroup-v1/memory.rst.
 */
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "machine.h"
#include "thread_pool.h"

#define MAX_CPUS (1 << 16)
#define NO_LIMIT INT64_MAX

/* root and path and name, opened for reading; NULL if there is no such file. */
static FILE *open_under(const char *root, const char *path, const char *name)
{
    char full[PATH_MAX];

    if (snprintf(full, sizeof full, "%s%s%s", root, path, name) >= (int)sizeof full)
        return NULL;
    return fopen(full, "re");
}

/* The first line of that file, without its newline; false if there is none. */
static bool read_line(const char *root, const char *path, const char *name, char *line, size_t size)
{
    FILE *file = open_under(root, path, name);
    bool ok;

    if (!file)
        return false;
    ok = fgets(line, (int)size, file) != NULL;
    fclose(file);
    if (ok)
        line[strcspn(line, "\n")] = '\0';
    return ok;
}

/* The file's number; NO_LIMIT if there is none ("max"). */
static int64_t read_number(const char *root, const char *path, const char *name)
{
    char line[64];
    long long n;

    if (!read_line(root, path, name, line, sizeof line) || sscanf(line, "%lld", &n) != 1)
        return NO_LIMIT;
    return n;
}

/* The number after `key` in a file of lines "key number"; `otherwise` if it is not there. */
static int64_t read_keyed(const char *root, const char *path, const char *name, const char *key,
                          int64_t otherwise)
{
    FILE *file = open_under(root, path, name);
    int64_t value = otherwise;
    size_t key_bytes = strlen(key);
    char line[256];
    long long n;

    if (!file)
        return otherwise;
    while (value == otherwise && fgets(line, sizeof line, file))
        if (strncmp(line, key, key_bytes) == 0 && sscanf(line + key_bytes, "%lld", &n) == 1)
            value = n;
    fclose(file);
    return value;
}

/* ---- Cgroups ----------------------------------------------------------------------------------*/

/* What one group's own files leave; `folder` is its folder under /sys. */
typedef int64_t (*group_limit)(const char *root, const char *folder);

static int64_t whole_cpus(int64_t quota, int64_t period)
{
    if (quota <= 0 || period <= 0)
        return NO_LIMIT;
    return quota < period ? 1 : quota / period;
}

static int64_t cpus_v2(const char *root, const char *folder)
{
    char line[128];
    long long quota, period;

    if (!read_line(root, folder, "/cpu.max", line, sizeof line) ||
        sscanf(line, "%lld %lld", &quota, &period) != 2) /* "max 100000": no limit */
        return NO_LIMIT;
    return whole_cpus(quota, period);
}

static int64_t cpus_v1(const char *root, const char *folder)
{
    int64_t quota = read_number(root, folder, "/cpu.cfs_quota_us"); /* -1: no limit */
    int64_t period = read_number(root, folder, "/cpu.cfs_period_us");

    return quota == NO_LIMIT || period == NO_LIMIT ? NO_LIMIT : whole_cpus(quota, period);
}

/* What is left of `limit`: cached pages of files that nobody touched lately are as good as free. */
static int64_t left_of(int64_t limit, int64_t used, int64_t inactive_file)
{
    if (limit == NO_LIMIT || limit < 0 || used == NO_LIMIT || used < 0)
        return NO_LIMIT;
    used = inactive_file > 0 && inactive_file < used ? used - inactive_file : used;
    return used < limit ? limit - used : 0;
}

static int64_t memory_v2(const char *root, const char *folder)
{
    return left_of(read_number(root, folder, "/memory.max"),
                   read_number(root, folder, "/memory.current"),
                   read_keyed(root, folder, "/memory.stat", "inactive_file ", 0));
}

static int64_t memory_v1(const char *root, const char *folder)
{
    return left_of(read_number(root, folder, "/memory.limit_in_bytes"),
                   read_number(root, folder, "/memory.usage_in_bytes"),
                   read_keyed(root, folder, "/memory.stat", "total_inactive_file ", 0));
}

/* The least of a group's limit and those of all groups above it, up to `mount`. A container may see
 * its own group as the mount's root, under a path that exists only outside: folders that are not
 * there limit nothing, and the walk ends at the root. */
static int64_t least_limit(const char *root, const char *mount, const char *group,
                           group_limit limit)
{
    char folder[PATH_MAX];
    size_t mount_bytes = strlen(mount);
    int64_t least = NO_LIMIT;

    if (snprintf(folder, sizeof folder, "%s%s", mount, group) >= (int)sizeof folder)
        return NO_LIMIT;
    while (true) {
        size_t n = strlen(folder);
        while (n > mount_bytes && folder[n - 1] == '/')
            folder[--n] = '\0';
        int64_t here = limit(root, folder);
        if (here < least)
            least = here;
        if (n <= mount_bytes)
            return least;
        *strrchr(folder, '/') = '\0'; /* there is one: groups begin with it */
    }
}

/* True if `list`, such as "cpu,cpuacct", names `controller`. */
static bool lists(const char *list, const char *controller)
{
    size_t bytes = strlen(controller);

    while (*list) {
        size_t n = strcspn(list, ",");
        if (n == bytes && memcmp(list, controller, n) == 0)
            return true;
        list += n + (list[n] == ',');
    }
    return false;
}

/* /proc/self/cgroup has a line a hierarchy: "0::/path" (v2), "4:cpu,cpuacct:/path" (v1). */
static int64_t cgroup_limit(const char *root, const char *controller, group_limit v2,
                            group_limit v1)
{
    FILE *file = open_under(root, "/proc/self/cgroup", "");
    int64_t least = NO_LIMIT;
    char line[PATH_MAX], mount[64];

    if (!file)
        return NO_LIMIT;
    snprintf(mount, sizeof mount, "/sys/fs/cgroup/%s", controller);
    while (fgets(line, sizeof line, file)) {
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        int64_t here = NO_LIMIT;

        if (!group || group[1] != '/')
            continue;
        line[strcspn(line, "\n")] = '\0';
        *controllers++ = '\0';
        *group++ = '\0';
        if (*controllers == '\0')
            here = least_limit(root, "/sys/fs/cgroup", group, v2);
        else if (lists(controllers, controller))
            here = least_limit(root, mount, group, v1);
        if (here < least)
            least = here;
    }
    fclose(file);
    return least;
}

/* ---- Cores ------------------------------------------------------------------------------------*/

/* Of a list such as "0-1,8", the first CPU that the mask allows; -1 if there is none. */
static long first_allowed(const char *list, const cpu_set_t *mask, size_t mask_bytes)
{
    while (*list) {
        char *end;
        long first = strtol(list, &end, 10), last = first;

        if (end == list || first < 0)
            return -1;
        if (*end == '-') {
            list = end + 1;
            last = strtol(list, &end, 10);
            if (end == list)
                return -1;
        }
        for (long cpu = first; cpu <= last && cpu < MAX_CPUS; cpu++)
            if (CPU_ISSET_S((size_t)cpu, mask_bytes, mask))
                return cpu;
        if (*end && *end != ',')
            return -1;
        list = *end ? end + 1 : end;
    }
    return -1;
}

/* A core is counted at the first of its CPUs that the mask allows. A CPU whose siblings are not
 * known is a core of its own. */
static bool counts_as_core(const char *root, long cpu, const cpu_set_t *mask, size_t mask_bytes)
{
    char path[96], siblings[4096];

    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%ld/topology", cpu);
    if (!read_line(root, path, "/thread_siblings_list", siblings, sizeof siblings))
        return true;
    long first = first_allowed(siblings, mask, mask_bytes);
    return first == -1 || first == cpu;
}

static int allowed_cores(const char *root)
{
    size_t bytes = CPU_ALLOC_SIZE(MAX_CPUS);
    cpu_set_t *mask = CPU_ALLOC(MAX_CPUS);
    int cores = 0;

    if (!mask)
        return 1;
    CPU_ZERO_S(bytes, mask);
    if (sched_getaffinity(0, bytes, mask) == 0)
        for (long cpu = 0; cpu < MAX_CPUS; cpu++)
            if (CPU_ISSET_S((size_t)cpu, bytes, mask) && counts_as_core(root, cpu, mask, bytes))
                cores++;
    CPU_FREE(mask);
    return cores > 0 ? cores : 1;
}

int mx_machine_cores(const char *root)
{
    int cores = allowed_cores(root);
    int64_t quota = cgroup_limit(root, "cpu", cpus_v2, cpus_v1);

    if (quota < cores)
        cores = (int)quota;
    return cores < MX_THREADS_MAX ? cores : MX_THREADS_MAX;
}

int mx_threads_default(void)
{
    return mx_machine_cores("");
}

/* ---- Memory -----------------------------------------------------------------------------------*/

int64_t mx_machine_available_bytes(const char *root)
{
    int64_t kib = read_keyed(root, "/proc/meminfo", "", "MemAvailable:", NO_LIMIT);
    int64_t machine = kib < 0 || kib > INT64_MAX / 1024 ? NO_LIMIT : kib * 1024;
    int64_t group = cgroup_limit(root, "memory", memory_v2, memory_v1);

    return machine < group ? machine : group;
}
