/* From clone to exec of a worker, in C: between the two only async-signal-safe calls are allowed, and Swift code may
 * take locks or allocate at any point. Everything is prepared by the caller; nothing here allocates. */
#pragma once
#include <stdint.h>
#include <sys/types.h>

/* The steps of the child, in order; a failing one is reported as {step, errno}. */
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
    void *no_capabilities;   /* what cap_init(3) returns, made before the clone: nothing here allocates */
    const uint64_t *processors; /* one bit each: where every thread of it begins, the kernel's helpers included */
    size_t processor_words;  /* 0: anywhere */
    int group;               /* cgroup.procs of its control group, to write; -1: the caller's */
    char *const *argv;
    char *const *envp;
};

struct ubd_child {
    pid_t pid;  /* in the caller's pid namespace */
    int pidfd;
    int report; /* of a worker: UBD_LAUNCH_BEGUN, then the step that fails, or end of file once it runs */
};

/* Starts a worker. Returns 0 or a negated errno. It waits until the child has closed what is not its own (so that the
 * child is never the last holder of another client's file), and not for the steps after that. */
int ubd_launch(const struct ubd_launch *launch, struct ubd_child *child);

/* Starts a child that holds nothing but `files`, at most 63, and ends once `child.report` is closed. The last close of a
 * stranger's file may block for ever, and then blocks only the child: so the caller closes its own copies first, and
 * `child.report` when it has. With `texts`, two a file, it first writes the one into the file where what the file says does
 * not begin with the other, which may block as long; its exit status is the last errno of that, or 0. */
int ubd_undertake(const int *files, char *const *texts, unsigned count, struct ubd_child *child);

/* Starts a child that reads a file and writes what it says into `child.report`, which does not block the reader. Its exit
 * status is 0 when that was all, else an errno. For a file of /proc whose reading may take long, or for ever. */
int ubd_copy(const char *path, struct ubd_child *child);

/* Starts a child that closes sockets in which files of strangers lie, for as long as it is given any. It takes them from
 * `bin`, the receiving end of a SEQPACKET pair: a message has one file and an account's number (32 bits), which the child
 * sends back on `orders`, another SEQPACKET socket, when the file is closed. It takes only as many messages as it was told
 * to on `orders` (32 bits: so many more). So the caller sends a file, closes its own copy while the message lies in a queue
 * that the caller itself holds open, and only then says that it may be taken: whatever becomes of the child, the caller's
 * close is never the last one. At most `closers` closes are under way at one time, each in a process of its own, since each
 * may last for ever; the child itself never waits for one. When `orders` is closed it takes what is left, and ends after
 * the last close. */
int ubd_start_undertaker(int bin, int orders, unsigned closers, struct ubd_child *child);
