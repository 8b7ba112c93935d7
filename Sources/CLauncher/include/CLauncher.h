/* From clone to exec of a worker. It is in C because only async-signal-safe calls are allowed in between, and Swift
 * code may take locks or allocate anywhere. The caller prepares everything; nothing here allocates. */
#pragma once
#include <stdint.h>
#include <sys/types.h>

/* The steps of a child. It reports the step that failed as {step, errno}. */
enum ubd_launch_step {
    UBD_LAUNCH_BEGUN = 0, /* not a failure: every file that is not the worker's is closed */
    UBD_LAUNCH_NAMESPACES,
    UBD_LAUNCH_FILES,
    UBD_LAUNCH_OPEN_DEVICE,
    UBD_LAUNCH_CONTROL_GROUP,
    UBD_LAUNCH_OOM_SCORE,
    UBD_LAUNCH_PROCESSORS,
    UBD_LAUNCH_MOUNTS,
    UBD_LAUNCH_PIVOT,
    UBD_LAUNCH_IO_FLUSHER,
    UBD_LAUNCH_LIMITS,
    UBD_LAUNCH_BOUNDING_SET,
    UBD_LAUNCH_GROUPS,
    UBD_LAUNCH_USER,
    UBD_LAUNCH_CAPABILITIES,
    UBD_LAUNCH_STILL_ROOT,
    UBD_LAUNCH_NO_NEW_PRIVILEGES,
    UBD_LAUNCH_SIGNALS,
    UBD_LAUNCH_EXEC,
};

struct ubd_launch_report {
    int32_t step;
    int32_t error;
};

struct ubd_launch {
    int worker_binary;       /* checked and opened once by the broker */
    int control;             /* becomes descriptor 3 */
    const char *device;      /* "/dev/ublkc0": becomes descriptor 4 */
    uid_t uid;
    gid_t gid;
    uint64_t processes;      /* RLIMIT_NPROC: threads, io-wq helpers included; never 0 (they could not be made) */
    uint64_t mapped_bytes;   /* RLIMIT_AS and RLIMIT_MEMLOCK: all that is mapped is locked */
    uint64_t open_files;     /* RLIMIT_NOFILE: the worker lowers it to 0 once it is sealed */
    const char *oom_score;   /* "-1000" to "1000" */
    void *no_capabilities;   /* of cap_init(3), called before the clone, since nothing here may allocate */
    const uint64_t *processors; /* a bit mask: the initial affinity of all its threads, the kernel's helpers included */
    size_t processor_words;  /* 0: no affinity */
    int group;               /* cgroup.procs of its control group, writable; -1: it stays in the caller's */
    char *const *argv;
    char *const *envp;
};

struct ubd_child {
    pid_t pid;  /* in the caller's pid namespace */
    int pidfd;
    int report; /* of a worker: UBD_LAUNCH_BEGUN, then the failing step, or end of file at exec */
};

/* Starts a worker. Returns 0 or a negative errno. It waits only until the child has closed all descriptors that are not
 * its own, so that the child is never the last holder of another client's file. */
int ubd_launch(const struct ubd_launch *launch, struct ubd_child *child);

/* Starts a child that holds only `files`, at most 63, and ends when `child.report` is closed. The last close of a
 * stranger's file may block forever, and then it blocks only the child: the caller closes its own copies first, then
 * `child.report`.
 * With `texts`, two for each file, the child first compares the file's content with the second text, and writes the
 * first text if the content does not begin with the second. This may block as long. The exit status is the errno of the
 * last failed write, or 0. */
int ubd_undertake(const int *files, char *const *texts, unsigned count, struct ubd_child *child);

/* Starts a child that copies a file into `child.report`; the reading end is non-blocking. The exit status is 0 after
 * the whole file, else an errno. For files in /proc whose read may take long or never end. */
int ubd_copy(const char *path, struct ubd_child *child);

/* Starts a long-lived child that closes sockets which hold strangers' files. It takes them from `bin`, the receiving
 * end of a SEQPACKET pair. Each message has one file and an account number (32 bits), which the child sends back on
 * `orders`, another SEQPACKET socket, after the close.
 * The child takes only as many messages as the caller has allowed on `orders` (each message there: 32 bits, the number
 * of further ones). The caller sends a file, closes its own copy while the message is in a queue that the caller itself
 * keeps open, and only then allows the child to take it. So the caller's close is never the last one, whatever happens
 * to the child.
 * At most `closers` closes run at a time, each in a process of its own, since each may block forever; the child itself
 * never blocks on one. When `orders` is closed, the child takes the remaining messages and ends after the last
 * close. */
int ubd_start_undertaker(int bin, int orders, unsigned closers, struct ubd_child *child);
