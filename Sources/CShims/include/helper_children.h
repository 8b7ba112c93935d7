/* Children of ours that ask a disk for what may never come. In C, because between fork and _exit only async-signal-safe calls
 * are allowed (fork(2)), and Swift code may allocate or take a lock. Not programs of their own: starting one costs ten times
 * as much as the child. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* fork, with a negated errno. The child has `null` as 0 to 2 and `output` as 3, nothing else of ours: one that hangs must hold
 * nobody's terminal, pipe or file. */
static inline pid_t ubd_fork_helper(const char *name, int null, int output) {
    pid_t child = fork();
    if (child != 0) return child > 0 ? child : -errno;
    prctl(PR_SET_NAME, name);
    int ready = dup2(output, 3) == 3;
    for (int number = 0; number <= 2; number++) ready = ready && dup2(null, number) == number;
    if (!ready || close_range(4, ~0u, 0) != 0) _exit(1);
    return 0;
}

/* The exit status of a child that could not give up root's rights. */
enum { UBD_CHILD_IS_ROOT = 125 };

/* In a child of root's: that user's rights in place of root's, for good, and no group that owns anything (Debian's nogroup). What
 * others have written is not for root to parse. Nothing when `user` is -1. Raw calls: glibc's tell threads that a child has not. */
static inline void ubd_become(int64_t user) {
    const unsigned nogroup = 65534, uid = (unsigned)user;
    if (user == -1) return;
    if (syscall(SYS_setgroups, 0, NULL) != 0 || syscall(SYS_setresgid, nogroup, nogroup, nogroup) != 0 ||
        syscall(SYS_setresuid, uid, uid, uid) != 0)
        _exit(UBD_CHILD_IS_ROOT);
}

/* Runs a program as that user (see ubd_become), with nothing of ours but `output` as its standard output, and no environment.
 * Returns the child's pid or a negated errno. */
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

/* What the child that flushes writes when it is done: how far it came, and the errno of the step that failed, or 0. */
struct ubd_flush_report {
    int32_t step, error;
};
enum { UBD_FLUSH_OPEN, UBD_FLUSH_SYNC, UBD_FLUSH_DONE };

/* Opens a block device for itself alone and flushes it. Returns the child's pid or a negated errno. */
static inline pid_t ubd_flush_child(const char *node, int flags, int flushes, int null, int report) {
    pid_t child = ubd_fork_helper("ubd-flush", null, report);
    if (child != 0) return child;
    struct ubd_flush_report done = {UBD_FLUSH_OPEN, 0};
    int device = open(node, flags);
    if (device != -1) done.step = UBD_FLUSH_SYNC;
    if (device == -1 || (flushes && fsync(device) != 0)) {
        done.error = errno;
    } else {
        /* Before the report: whoever reads that wants the device for himself. */
        close(device);
        done.step = UBD_FLUSH_DONE;
    }
    _exit(write(3, &done, sizeof done) != sizeof done);
}

/* Writes what a file has from `offset` on, at most `bytes`, with the rights of `user` (see ubd_become). Opens it anew: a child that hangs must not keep the caller's locks.
 * And reads before it writes, since sendfile(2) would hold the pipe's own lock while it waits for the file, and the caller could
 * not even close its end. Returns the child's pid or a negated errno; its exit status is 0 when that was all there is. */
static inline pid_t ubd_head_child(
    const char *path, off_t offset, size_t bytes, int64_t user, int null, int output) {
    pid_t child = ubd_fork_helper("ubd-head", null, output);
    if (child != 0) return child;
    ubd_become(user);
    char part[12 << 10];
    int file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    ssize_t count = 1;
    while (count > 0 && bytes > 0) {
        count = pread(file, part, bytes < sizeof part ? bytes : sizeof part, offset);
        if (count > 0 && write(3, part, (size_t)count) != count) count = -1;
        if (count > 0) {
            offset += count;
            bytes -= (size_t)count;
        }
    }
    _exit(count < 0);
}
