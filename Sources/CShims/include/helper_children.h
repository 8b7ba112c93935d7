/* Children that ask a disk for something and may wait forever. They are in C because only async-signal-safe calls are
 * allowed between fork and _exit (fork(2)), and Swift code may allocate or take a lock. They are forks, not separate
 * programs: starting a program costs ten times as much. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* fork; returns a negative errno on failure. The child has `null` as 0 to 2 and `output` as 3, and no other descriptor:
 * a child that hangs must not hold a terminal, pipe or file of ours. */
static inline pid_t ubd_fork_helper(const char *name, int null, int output) {
    pid_t child = fork();
    if (child != 0) return child > 0 ? child : -errno;
    prctl(PR_SET_NAME, name);
    int ready = dup2(output, 3) == 3;
    for (int number = 0; number <= 2; number++) ready = ready && dup2(null, number) == number;
    if (!ready || close_range(4, ~0u, 0) != 0) _exit(1);
    return 0;
}

/* The exit status of a child that could not drop root's privileges. */
enum { UBD_CHILD_IS_ROOT = 125 };

/* In a child of root: becomes `user` for good, with Debian's nogroup as only group, since root must not parse what
 * others wrote. Does nothing if `user` is -1. The calls are raw, since glibc's signal the parent's other threads, which
 * the child does not have. */
static inline void ubd_become(int64_t user) {
    const unsigned nogroup = 65534, uid = (unsigned)user;
    if (user == -1) return;
    if (syscall(SYS_setgroups, 0, NULL) != 0 || syscall(SYS_setresgid, nogroup, nogroup, nogroup) != 0 ||
        syscall(SYS_setresuid, uid, uid, uid) != 0)
        _exit(UBD_CHILD_IS_ROOT);
}

/* Runs a program as `user` (see ubd_become) with `output` as standard output, without other descriptors of ours, and
 * without environment. Returns the child's pid or a negative errno. */
static inline pid_t ubd_program_child(const char *program, char *const *argv, int64_t user, int null, int output) {
    pid_t child = ubd_fork_helper("ubd-program", null, output);
    if (child != 0) return child;
    char *none[] = {NULL};
    sigset_t no_signals;
    sigemptyset(&no_signals);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    if (dup2(3, 1) != 1 || close(3) != 0 || sigprocmask(SIG_SETMASK, &no_signals, NULL) != 0) _exit(1);
    ubd_become(user);
    execve(program, argv, none);
    _exit(127);
}

/* The report of the flushing child: the step that it reached, and that step's errno or 0. */
struct ubd_flush_report { int32_t step, error; };
enum { UBD_FLUSH_OPEN, UBD_FLUSH_SYNC, UBD_FLUSH_DONE };

/* Whether a stat call succeeded and found a node of this type (S_IFBLK) and device number. Any other file is ENOTBLK. */
static inline int ubd_is_node(int result, const struct stat *found, mode_t type, dev_t number) {
    if (result == 0 && ((found->st_mode & S_IFMT) != type || found->st_rdev != number)) errno = ENOTBLK;
    return result == 0 && (found->st_mode & S_IFMT) == type && found->st_rdev == number;
}

/* Opens a block device with `flags` and flushes it. The name must lead to a node of this type and number: a container's
 * /dev may have another file or disk of that name. It is compared before the open, since opening a FIFO waits, and
 * afterwards, since the name may have changed. Returns the child's pid or a negative errno. */
static inline pid_t ubd_flush_child(const char *node, mode_t type, dev_t number, int flags, int flushes, int null, int report) {
    pid_t child = ubd_fork_helper("ubd-flush", null, report);
    if (child != 0) return child;
    struct ubd_flush_report done = {UBD_FLUSH_OPEN, 0};
    struct stat found;
    int device = ubd_is_node(stat(node, &found), &found, type, number) ? open(node, flags) : -1;
    int is_open = device != -1 && ubd_is_node(fstat(device, &found), &found, type, number);
    if (is_open) done.step = UBD_FLUSH_SYNC;
    if (!is_open || (flushes && fsync(device) != 0)) {
        done.error = errno;
    } else {
        /* Before the report: the reader of the report wants the device for itself. */
        close(device);
        done.step = UBD_FLUSH_DONE;
    }
    _exit(write(3, &done, sizeof done) != sizeof done);
}

/* Copies at most `bytes` of a file from `offset` to `output`, with the rights of `user` (see ubd_become). It opens the
 * file anew, since a child that hangs must not keep the caller's locks. It uses read and write, since sendfile(2) would
 * hold the pipe's lock while it waits for the file, and the caller could not even close its end. Returns the child's
 * pid or a negative errno. The exit status is 0 at the end of the file or range, else an errno. */
static inline pid_t ubd_head_child(const char *path, off_t offset, size_t bytes, int64_t user, int null, int output) {
    pid_t child = ubd_fork_helper("ubd-head", null, output);
    if (child != 0) return child;
    ubd_become(user);
    char part[12 << 10];
    int file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    ssize_t count = file == -1 ? -1 : 1;
    while (count > 0 && bytes > 0) {
        count = pread(file, part, bytes < sizeof part ? bytes : sizeof part, offset);
        if (count > 0 && write(3, part, (size_t)count) != count) count = -1;
        if (count > 0) {
            offset += count;
            bytes -= (size_t)count;
        }
    }
    _exit(count < 0 ? errno : 0);
}
