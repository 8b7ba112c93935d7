/* A child of ours that opens a block device for itself alone and flushes it. In C, because between fork and _exit only
 * async-signal-safe calls are allowed (fork(2)), and Swift code may allocate or take a lock. Not a program of its own:
 * starting one costs ten times as much as the child. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <unistd.h>

/* What the child writes when it is done: how far it came, and the errno of the step that failed, or 0. */
struct ubd_flush_report {
    int32_t step, error;
};
enum { UBD_FLUSH_OPEN, UBD_FLUSH_SYNC, UBD_FLUSH_DONE };

/* Returns the child's pid or a negated errno. The child has `null` as 0 to 2 and `report` as 3, nothing else of ours: one
 * that hangs must hold nobody's terminal or pipe. */
static inline pid_t ubd_flush_child(const char *node, int flags, int flushes, int null, int report) {
    pid_t child = fork();
    if (child != 0) return child > 0 ? child : -errno;
    struct ubd_flush_report done = {UBD_FLUSH_OPEN, 0};
    prctl(PR_SET_NAME, "ubd-flush");
    int ready = dup2(report, 3) == 3;
    for (int number = 0; number <= 2; number++) ready = ready && dup2(null, number) == number;
    if (!ready || close_range(4, ~0u, 0) != 0) _exit(1);
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
