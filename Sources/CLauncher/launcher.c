#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Lower numbers have a fixed meaning in the worker (WorkerDescriptor). */
#define FIRST_SPARE 16
/* udev may hold a new node for a moment: 200 attempts, 10 ms apart. */
#define OPEN_ATTEMPTS 200

void ubd_report(int pipe, int step, int error) {
    struct ubd_launch_report r = {step, error};
    while (write(pipe, &r, sizeof r) == -1 && errno == EINTR) continue;
}

static _Noreturn void fail(int pipe, int step) {
    ubd_report(pipe, step, errno);
    _exit(127);
}

/* Moves `kept` to high numbers and closes all other descriptors. */
int ubd_keep_only(int *kept, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        kept[i] = fcntl(kept[i], F_DUPFD_CLOEXEC, FIRST_SPARE);
        if (kept[i] == -1) return -1;
    }
    unsigned from = 0;
    for (;;) {
        /* The lowest kept number from `from` on. */
        unsigned next = ~0U;
        for (unsigned i = 0; i < count; i++)
            if ((unsigned)kept[i] >= from && (unsigned)kept[i] < next) next = (unsigned)kept[i];
        unsigned last = next == ~0U ? ~0U : next - 1;
        if (from <= last && syscall(SYS_close_range, from, last, 0) == -1) return -1;
        if (next == ~0U) return 0;
        from = next + 1;
    }
}

/* Opens descriptors 0 to 4 of WorkerDescriptor; none is close-on-exec. */
static void set_up_files(const struct ubd_launch *l, int control, int pipe) {
    if (open("/dev/zero", O_RDONLY) != 0) fail(pipe, UBD_LAUNCH_FILES);
    int null = open("/dev/null", O_RDWR);
    if (null == -1 || dup2(null, 1) == -1 || dup2(null, 2) == -1) fail(pipe, UBD_LAUNCH_FILES);
    if (null > 2) close(null);
    if (dup2(control, 3) == -1) fail(pipe, UBD_LAUNCH_FILES);
    /* The worker opens the device, not the broker: the kernel takes the opener for the server, and notices the server's
     * death only when the last reference is gone (docs/kernel-facts.md#opener, docs/kernel-facts.md#last-reference). */
    int device = -1;
    for (int attempt = 0; attempt < OPEN_ATTEMPTS; attempt++) {
        device = open(l->device, O_RDWR | O_NOFOLLOW);
        if (device != -1 || (errno != EBUSY && errno != ENOENT)) break;
        struct timespec pause = {0, 10 * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
    struct stat status;
    if (device == -1 || fstat(device, &status) == -1) fail(pipe, UBD_LAUNCH_OPEN_DEVICE);
    if (device != 4 || !S_ISCHR(status.st_mode)) {
        errno = ENODEV;
        fail(pipe, UBD_LAUNCH_OPEN_DEVICE);
    }
}

/* The child moves itself: CLONE_INTO_CGROUP would need clone3 (see ubd_start). It does so after opening its device,
 * because the device rules are those of the caller's group. The move may take milliseconds; the caller does not wait
 * for it. */
static void enter_group(int group, int pipe) {
    if (group == -1) return;
    if (write(group, "0", 1) != 1) fail(pipe, UBD_LAUNCH_CONTROL_GROUP);
    close(group);
}

static void set_oom_score(const char *score, int pipe) {
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file == -1 || write(file, score, strlen(score)) == -1) fail(pipe, UBD_LAUNCH_OOM_SCORE);
    close(file);
}

/* EINVAL: none of these processors is online any more. A replacement then runs anywhere; an add was refused before. */
static void set_processors(const struct ubd_launch *l, int pipe) {
    if (l->processor_words == 0) return;
    if (syscall(SYS_sched_setaffinity, 0, l->processor_words * sizeof *l->processors, l->processors) == -1 &&
        errno != EINVAL)
        fail(pipe, UBD_LAUNCH_PROCESSORS);
}

/* Makes an empty read-only file system the root, without any of the host's. It mounts it over /dev, which every host
 * has. */
static void empty_root(int pipe) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == -1 ||
        mount("ubd", "/dev", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "size=4k,nr_inodes=1,mode=0555") ==
            -1 ||
        chdir("/dev") == -1)
        fail(pipe, UBD_LAUNCH_MOUNTS);
    /* pivot_root(".", ".") as in pivot_root(2): it stacks the old root on the new one, where umount2 detaches it. */
    if (syscall(SYS_pivot_root, ".", ".") == -1 || umount2(".", MNT_DETACH) == -1 || chdir("/") == -1)
        fail(pipe, UBD_LAUNCH_PIVOT);
}

static void limit(int resource, uint64_t value, int pipe) {
    struct rlimit l = {value, value};
    if (setrlimit(resource, &l) == -1) fail(pipe, UBD_LAUNCH_LIMITS);
}

static void set_limits(const struct ubd_launch *l, int pipe) {
    limit(RLIMIT_CORE, 0, pipe);
    limit(RLIMIT_FSIZE, RLIM_INFINITY, pipe); /* not the caller's; the worker narrows it once it knows its file */
    limit(RLIMIT_MEMLOCK, l->mapped_bytes, pipe);
    limit(RLIMIT_NOFILE, l->open_files, pipe);
    limit(RLIMIT_NPROC, l->processes, pipe);
}

/* libcap's calls allocate nothing here. The other calls are raw, since glibc's wrappers would signal the broker's other
 * threads, which the child does not have. */
static void drop_privileges(const struct ubd_launch *l, int pipe) {
    for (cap_value_t capability = 0; capability < cap_max_bits(); capability++)
        if (cap_drop_bound(capability) == -1) fail(pipe, UBD_LAUNCH_BOUNDING_SET);
    if (cap_reset_ambient() == -1 ||
        cap_set_secbits(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                        SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED) == -1)
        fail(pipe, UBD_LAUNCH_BOUNDING_SET);
    if (syscall(SYS_setgroups, 0, NULL) == -1 || syscall(SYS_setresgid, l->gid, l->gid, l->gid) == -1)
        fail(pipe, UBD_LAUNCH_GROUPS);
    if (syscall(SYS_setresuid, l->uid, l->uid, l->uid) == -1) fail(pipe, UBD_LAUNCH_USER);
    if (cap_set_proc(l->no_capabilities) == -1) fail(pipe, UBD_LAUNCH_CAPABILITIES);
    if (syscall(SYS_setresuid, 0, 0, 0) != -1 || syscall(SYS_setresgid, 0, 0, 0) != -1) {
        errno = EPERM;
        fail(pipe, UBD_LAUNCH_STILL_ROOT);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == -1)
        fail(pipe, UBD_LAUNCH_NO_NEW_PRIVILEGES);
}

static void reset_signals(int pipe) {
    sigset_t none;
    sigemptyset(&none);
    /* ubd_start() has reset the handlers. A write beyond RLIMIT_FSIZE must fail instead of ending the process. */
    if (signal(SIGXFSZ, SIG_IGN) == SIG_ERR || signal(SIGPIPE, SIG_IGN) == SIG_ERR ||
        sigprocmask(SIG_SETMASK, &none, NULL) == -1)
        fail(pipe, UBD_LAUNCH_SIGNALS);
}

/* Not with flags of clone, for which the broker would have to wait: copying the mount namespace takes longer the more
 * mounts the host has, and creating a network namespace waits for locks of everybody who creates or destroys one. */
static void enter_namespaces(int pipe) {
    if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) == -1)
        fail(pipe, UBD_LAUNCH_NAMESPACES);
}

static _Noreturn void become_worker(const struct ubd_launch *l, int pipe) {
    int kept[] = {l->worker_binary, l->control, pipe, l->group};
    if (ubd_keep_only(kept, l->group == -1 ? 3 : 4) == -1) fail(pipe, UBD_LAUNCH_FILES);
    int binary = kept[0];
    pipe = kept[2];
    ubd_report(pipe, UBD_LAUNCH_BEGUN, 0);
    enter_namespaces(pipe);
    umask(077);
    setsid();
    set_up_files(l, kept[1], pipe);
    enter_group(kept[3], pipe);
    set_oom_score(l->oom_score, pipe);
    set_processors(l, pipe);
    /* Memory reclaim may depend on the worker, so it must not wait for writeback to its own device (prctl(2)). */
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == -1) fail(pipe, UBD_LAUNCH_IO_FLUSHER);
    empty_root(pipe);
    set_limits(l, pipe);
    drop_privileges(l, pipe);
    reset_signals(pipe);
    /* Last, since the process still has the broker's memory: that may exceed this limit, and its stack could not
     * grow. */
    limit(RLIMIT_AS, l->mapped_bytes, pipe);
    syscall(SYS_execveat, binary, "", l->argv, l->envp, AT_EMPTY_PATH);
    fail(pipe, UBD_LAUNCH_EXEC);
}

pid_t ubd_start(unsigned long namespaces, int *pidfd) {
    /* Not clone3: its flags are in memory, where no seccomp filter sees them, so RestrictNamespaces of the unit refuses
     * it. */
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_PIDFD | namespaces | SIGCHLD, NULL, pidfd, NULL, 0);
    if (pid == 0)
        for (int number = 1; number < NSIG; number++) {
            struct sigaction action;
            if (sigaction(number, NULL, &action) == -1 || action.sa_handler == SIG_IGN || action.sa_handler == SIG_DFL)
                continue;
            signal(number, SIG_DFL); /* a handler of the broker must not run in the child */
        }
    return pid;
}

/* Waits until the child reports that it closed foreign descriptors, reports a failure, or dies. */
void ubd_wait_until_begun(int pipe) {
    struct pollfd word = {.fd = pipe, .events = POLLIN};
    while (poll(&word, 1, -1) == -1 && errno == EINTR) continue;
}

int ubd_launch(const struct ubd_launch *launch, struct ubd_child *child) {
    int ends[2], pidfd = -1;
    if (pipe2(ends, O_CLOEXEC) == -1) return -errno;
    pid_t pid = ubd_start(CLONE_NEWPID, &pidfd);
    if (pid == 0) become_worker(launch, ends[1]);
    int error = pid == -1 ? -errno : 0;
    close(ends[1]);
    if (error) {
        close(ends[0]);
        return error;
    }
    ubd_wait_until_begun(ends[0]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    *child = (struct ubd_child){pid, pidfd, ends[0]};
    return 0;
}

int ubd_begun(pid_t pid, int pidfd, const int *pipe) {
    int error = pid == -1 ? -errno : 0;
    close(pipe[1]);
    if (error) return error;
    /* The caller may close its copies only when the child holds its own. */
    struct ubd_launch_report first;
    ubd_wait_until_begun(pipe[0]);
    if (read(pipe[0], &first, sizeof first) == sizeof first) return 0;
    syscall(SYS_wait4, pid, NULL, 0, NULL);
    close(pidfd);
    return -ECHILD;
}

/* Skips values that are in force already: writing them costs the kernel as much as a change. */
static int write_settings(const int *files, char *const *texts, unsigned count) {
    int error = 0;
    for (unsigned i = 0; i < count; i++) {
        const char *wanted = texts[2 * i], *already = texts[2 * i + 1];
        char now[64];
        ssize_t length = read(files[i], now, sizeof now);
        if (length >= (ssize_t)strlen(already) && memcmp(now, already, strlen(already)) == 0) continue;
        if (write(files[i], wanted, strlen(wanted)) == -1) error = errno;
    }
    return error;
}

static _Noreturn void become_short_undertaker(const int *files, char *const *texts, unsigned count, int pipe) {
    int kept[64];
    if (count > 63) _exit(1);
    for (unsigned i = 0; i < count; i++) kept[i] = files[i];
    kept[count] = pipe;
    if (ubd_keep_only(kept, count + 1) == -1) _exit(1);
    ubd_report(kept[count], UBD_LAUNCH_BEGUN, 0);
    /* The caller must close its copies first, since the last close may block. It has done so when the pipe has no
     * reader. */
    struct pollfd reader = {.fd = kept[count]};
    while (poll(&reader, 1, -1) == -1 && errno == EINTR) continue;
    _exit(texts ? write_settings(kept, texts, count) : 0);
}

int ubd_undertake(const int *files, char *const *texts, unsigned count, struct ubd_child *child) {
    int ends[2], pidfd = -1;
    if (pipe2(ends, O_CLOEXEC) == -1) return -errno;
    pid_t pid = ubd_start(0, &pidfd);
    if (pid == 0) become_short_undertaker(files, texts, count, ends[1]);
    int error = ubd_begun(pid, pidfd, ends);
    if (error) close(ends[0]);
    else *child = (struct ubd_child){pid, pidfd, ends[0]};
    return error;
}
