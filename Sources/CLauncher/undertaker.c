#include "CLauncher.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "child.h"

/* The maximum number of concurrent closes. */
#define MOST_CLOSERS 16

struct held {
    int file;
    uint32_t account;
};

/* A child that closes one file and may never end. */
struct closer {
    pid_t pid; /* 0: none */
    uint32_t account;
};

struct undertaker {
    int bin, orders;
    struct held *ring; /* files that wait for a closer, oldest first */
    size_t room, first, count;
    struct closer closers[MOST_CLOSERS];
    unsigned most, running;
    uint64_t allowed;  /* messages that it may take, since the caller has closed its copies */
    int is_orphan;     /* the caller is gone or closed `orders` */
    int is_bin_empty;  /* found as an orphan */
};

/* The maximum number of files to hold. No message may be taken without room for its file: the kernel would close the
 * file in this process. */
static size_t raise_open_files(void) {
    struct rlimit limit = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_NOFILE, &limit) == -1) {
        if (getrlimit(RLIMIT_NOFILE, &limit) == -1) return 0;
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) == -1) return 0;
    }
    return limit.rlim_cur > 64 ? limit.rlim_cur - 64 : 0;
}

/* It handles sockets that hold strangers' files, and needs no capability for that. */
static void drop_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    syscall(SYS_capset, &header, none);
}

/* Takes one message from the bin. Returns 0 when there is none. */
static int take(struct undertaker *u) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    uint32_t account = 0;
    struct iovec part = {&account, sizeof account};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t size = recvmsg(u->bin, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size == -1 && errno == EINTR) return 1;
    if (size <= 0) return 0;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int))) {
        struct held *held = &u->ring[(u->first + u->count++) % u->room];
        memcpy(&held->file, CMSG_DATA(header), sizeof held->file);
        held->account = account;
    }
    if (u->allowed) u->allowed--;
    return 1;
}

/* The process shares the table of descriptors, so a close that never ends blocks no other close. */
static int start_closer(struct undertaker *u) {
    struct held held = u->ring[u->first];
    unsigned free = 0;
    while (u->closers[free].pid) free++;
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0);
    if (pid == -1) return -1;
    if (pid == 0) {
        close(held.file);
        _exit(0);
    }
    u->closers[free] = (struct closer){pid, held.account};
    u->running++;
    u->first = (u->first + 1) % u->room;
    u->count--;
    return 0;
}

/* Reports the account of each closed file. The caller may be gone. */
static void collect(struct undertaker *u) {
    pid_t pid;
    while ((pid = (pid_t)syscall(SYS_wait4, -1, NULL, WNOHANG, NULL)) > 0)
        for (unsigned i = 0; i < u->most; i++)
            if (u->closers[i].pid == pid) {
                u->closers[i].pid = 0;
                u->running--;
                while (send(u->orders, &u->closers[i].account, sizeof u->closers[i].account, MSG_NOSIGNAL) == -1 &&
                       errno == EINTR) {
                }
            }
}

static void hear(struct undertaker *u) {
    uint32_t more = 0;
    ssize_t size = recv(u->orders, &more, sizeof more, MSG_DONTWAIT);
    if (size == sizeof more) u->allowed += more;
    else if (size != -1 || (errno != EAGAIN && errno != EINTR)) u->is_orphan = 1;
}

static void wait_for_change(struct undertaker *u, int again) {
    struct pollfd orders = {.fd = u->is_orphan ? -1 : u->orders, .events = POLLIN};
    struct timespec soon = {0, 100 * 1000 * 1000};
    sigset_t none;
    sigemptyset(&none);
    /* SIGCHLD is blocked except during ppoll, so that none is missed before it. */
    if (ppoll(&orders, 1, again ? &soon : NULL, &none) == 1) hear(u);
}

static void on_child(int signal) { (void)signal; }

static _Noreturn void serve(struct undertaker *u) {
    for (;;) {
        collect(u);
        while (u->count < u->room && (u->allowed || u->is_orphan))
            if (!take(u)) {
                u->is_bin_empty = u->is_orphan;
                break;
            }
        int again = 0;
        while (u->count && u->running < u->most && !again) again = start_closer(u) == -1;
        if (u->is_bin_empty && !u->count && !u->running) _exit(0);
        wait_for_change(u, again);
    }
}

static _Noreturn void become_undertaker(int bin, int orders, unsigned most, int pipe) {
    int kept[] = {bin, orders, pipe};
    if (ubd_keep_only(kept, 3) == -1) _exit(1);
    prctl(PR_SET_NAME, "ubd-undertaker", 0, 0, 0);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    struct sigaction action = {.sa_handler = on_child};
    struct undertaker u = {.bin = kept[0], .orders = kept[1], .most = most < MOST_CLOSERS ? most : MOST_CLOSERS};
    u.room = raise_open_files();
    drop_capabilities();
    u.ring = mmap(NULL, u.room * sizeof *u.ring, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (u.ring == MAP_FAILED || sigaction(SIGCHLD, &action, NULL) == -1 ||
        sigprocmask(SIG_BLOCK, &child, NULL) == -1)
        _exit(1);
    ubd_report(kept[2], UBD_LAUNCH_BEGUN, 0);
    close(kept[2]);
    serve(&u);
}

int ubd_start_undertaker(int bin, int orders, unsigned closers, struct ubd_child *child) {
    int ends[2], pidfd = -1;
    if (pipe2(ends, O_CLOEXEC) == -1) return -errno;
    pid_t pid = ubd_start(0, &pidfd);
    if (pid == 0) become_undertaker(bin, orders, closers, ends[1]);
    int error = ubd_begun(pid, pidfd, ends);
    close(ends[0]);
    if (!error) *child = (struct ubd_child){pid, pidfd, -1};
    return error;
}
