/*
 * test_machine.c: cores and memory as the machine's and the cgroup's files tell them, in a tree of
 * files of our own.
 */
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "../../core/math/machine.h"
#include "../../core/math/thread_pool.h"

/* ---- A root of our own ------------------------------------------------------------------------*/

typedef struct {
    char path[64];
} tree;

static void tree_file(const tree *t, const char *path, const char *content)
{
    char name[PATH_MAX];
    FILE *file;

    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(name, sizeof name, "%s%.*s", t->path, (int)(slash - path), path);
        assert_true(mkdir(name, 0700) == 0 || errno == EEXIST);
    }
    snprintf(name, sizeof name, "%s%s", t->path, path);
    file = fopen(name, "w");
    assert_non_null(file);
    assert_true(fputs(content, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int tree_open(void **state)
{
    tree *t = calloc(1, sizeof *t);

    if (!t)
        return -1;
    strcpy(t->path, "/tmp/mixtral-machine-XXXXXX");
    *state = t;
    return mkdtemp(t->path) ? 0 : -1;
}

static int tree_close(void **state)
{
    tree *t = *state;
    char command[128];

    snprintf(command, sizeof command, "rm -rf %s", t->path);
    int rc = system(command);
    free(t);
    return rc;
}

static int allowed_cpus(cpu_set_t *mask)
{
    assert_int_equal(sched_getaffinity(0, sizeof *mask, mask), 0);
    return CPU_COUNT(mask);
}

/* ---- Cores ------------------------------------------------------------------------------------*/

static void cores_are_within_the_mask(void **state)
{
    cpu_set_t mask;
    (void)state;

    int n = mx_threads_default();
    assert_true(n >= 1);
    assert_true(n <= allowed_cpus(&mask));
}

static void cores_are_counted_not_siblings(void **state)
{
    cpu_set_t mask;
    int cpus = allowed_cpus(&mask);

    /* No topology: every CPU is a core. */
    assert_int_equal(mx_machine_cores(((tree *)*state)->path), cpus);
    /* One core with all CPUs, and a CPU that is not ours. */
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[96];
        if (!CPU_ISSET((size_t)cpu, &mask))
            continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 cpu);
        tree_file(*state, path, "0-1023,2048\n");
    }
    assert_int_equal(mx_machine_cores(((tree *)*state)->path), 1);
}

/* Each case: files under the tree, and what a machine with many CPUs would take (this one may have
 * fewer). */
static void expect_quota(const tree *t, int quota)
{
    cpu_set_t mask;
    int cpus = allowed_cpus(&mask);

    assert_int_equal(mx_machine_cores(t->path), cpus < quota ? cpus : quota);
}

static void cores_obey_cgroup_v2(void **state)
{
    tree *t = *state;

    tree_file(t, "/proc/self/cgroup", "0::/a/b\n");
    tree_file(t, "/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    expect_quota(t, INT_MAX);
    tree_file(t, "/sys/fs/cgroup/a/cpu.max", "150000 100000\n"); /* the group above counts too */
    expect_quota(t, 1);
    tree_file(t, "/sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    expect_quota(t, 2);
    tree_file(t, "/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n"); /* half a CPU is one thread */
    expect_quota(t, 1);
}

static void cores_obey_cgroup_v2_in_a_container(void **state)
{
    tree *t = *state;

    tree_file(t, "/proc/self/cgroup", "0::/\n");
    tree_file(t, "/sys/fs/cgroup/cpu.max", "100000 100000\n");
    expect_quota(t, 1);
    tree_file(t, "/proc/self/cgroup", "0::/docker/0123abcd\n"); /* a path of the outside */
    expect_quota(t, 1);
}

static void cores_obey_cgroup_v1(void **state)
{
    tree *t = *state;

    tree_file(t, "/proc/self/cgroup", "9:cpuset:/x\n4:cpu,cpuacct:/job\n1:name=systemd:/\n");
    tree_file(t, "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
    tree_file(t, "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
    expect_quota(t, INT_MAX);
    tree_file(t, "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "120000\n");
    expect_quota(t, 1);
}

static void cores_survive_nonsense(void **state)
{
    tree *t = *state;

    tree_file(t, "/proc/self/cgroup", "\n:\n::\n0\n0::\n0::/a\nx:cpu\n");
    tree_file(t, "/sys/fs/cgroup/a/cpu.max", "0 0\n");
    tree_file(t, "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "-,x-9\n");
    expect_quota(t, INT_MAX);
}

/* ---- Memory -----------------------------------------------------------------------------------*/

static int64_t available(const tree *t)
{
    return mx_machine_available_bytes(t->path);
}

static void memory_is_what_the_kernel_says(void **state)
{
    tree *t = *state;

    assert_true(available(t) == INT64_MAX);
    tree_file(t, "/proc/meminfo", "MemTotal: 4000 kB\nMemFree: 1 kB\nMemAvailable:   3000 kB\n");
    assert_int_equal(available(t), 3000 * 1024);
    assert_true(mx_machine_available_bytes("") > 0);
}

static void memory_obeys_cgroup_v2(void **state)
{
    tree *t = *state;

    tree_file(t, "/proc/meminfo", "MemAvailable: 3000 kB\n");
    tree_file(t, "/proc/self/cgroup", "0::/a/b\n");
    tree_file(t, "/sys/fs/cgroup/a/b/memory.max", "max\n");
    tree_file(t, "/sys/fs/cgroup/a/b/memory.current", "5000\n");
    assert_int_equal(available(t), 3000 * 1024);
    tree_file(t, "/sys/fs/cgroup/a/memory.max", "100000\n");
    tree_file(t, "/sys/fs/cgroup/a/memory.current", "30000\n");
    assert_int_equal(available(t), 70000);
    tree_file(t, "/sys/fs/cgroup/a/memory.stat", "anon 1\nfile 9\ninactive_file 20000\n");
    assert_int_equal(available(t), 90000);
    tree_file(t, "/sys/fs/cgroup/a/memory.current", "200000\n");
    assert_int_equal(available(t), 0);
}

static void memory_obeys_cgroup_v1(void **state)
{
    tree *t = *state;

    tree_file(t, "/proc/meminfo", "MemAvailable: 3000 kB\n");
    tree_file(t, "/proc/self/cgroup", "7:memory:/job\n3:cpu,cpuacct:/job\n");
    tree_file(t, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    tree_file(t, "/sys/fs/cgroup/memory/memory.usage_in_bytes", "4096\n");
    assert_int_equal(available(t), 3000 * 1024);
    tree_file(t, "/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "50000\n");
    tree_file(t, "/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "10000\n");
    assert_int_equal(available(t), 40000);
}

int main(void)
{
#define WITH_TREE(test) cmocka_unit_test_setup_teardown(test, tree_open, tree_close)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cores_are_within_the_mask),
        WITH_TREE(cores_are_counted_not_siblings),
        WITH_TREE(cores_obey_cgroup_v2),
        WITH_TREE(cores_obey_cgroup_v2_in_a_container),
        WITH_TREE(cores_obey_cgroup_v1),
        WITH_TREE(cores_survive_nonsense),
        WITH_TREE(memory_is_what_the_kernel_says),
        WITH_TREE(memory_obeys_cgroup_v2),
        WITH_TREE(memory_obeys_cgroup_v1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
