/* Tries system calls, each in a process of its own, behind the seccomp programs that it is given: the first call that a
 * filter kills for ends its process, so one worker could try but one.
 *
 * try-calls UID GID MILLISECONDS < INPUT: 32-bit number of programs (0 to 2); each as a 32-bit number of instructions and
 * those; then attempts of eight 64-bit words: entry (0 syscall, 1 int 0x80), number, six arguments. The programs are
 * loaded as a worker loads them: the first, RLIMIT_NOFILE 0, the second. One line for each attempt: how it ended (returned
 * RESULT, signal N, exited STATUS, waits, or not-tried), where "waits" is a call that had not come back in that time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct report {
    volatile int64_t state, result; /* state 1: the walls stand; 2: the call came back */
};
static struct report *reports; /* 64 */
static unsigned turn;
static struct sock_fprog programs[2];
static uint32_t program_count;
static char stack[64 << 10] __attribute__((aligned(64)));

static _Noreturn void die(const char *what) {
    perror(what);
    _exit(3);
}

static void take(void *to, size_t bytes) {
    if (bytes && fread(to, bytes, 1, stdin) != 1) die("input");
}

static void load(struct sock_fprog *program) {
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, program)) _exit(5);
}

static void limit(int resource, rlim_t value) {
    struct rlimit l = {value, value};
    if (setrlimit(resource, &l)) die("setrlimit");
}

/* One attempt. Should the call make another process, or a thread on this very stack, that does the same: it ends. */
static int attempt(void *words) {
    const uint64_t *a = words;
    /* A process that an attempt made may still run in the next one's time. */
    struct report *report = reports + turn % 64;
    int64_t result;
    if (program_count > 0) load(&programs[0]);
    /* prlimit64, as the worker's: stage A allows no setrlimit. */
    struct rlimit none = {0, 0};
    if (syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, &none, NULL)) _exit(5);
    if (program_count > 1) load(&programs[1]);
    report->state = 1;
    if (a[0]) {
        __asm__ volatile("int $0x80"
                         : "=a"(result)
                         : "a"(a[1]), "b"(a[2]), "c"(a[3]), "d"(a[4]), "S"(a[5]), "D"(a[6])
                         : "r8", "r9", "r10", "r11", "memory");
    } else {
        register uint64_t r10 __asm__("r10") = a[5];
        register uint64_t r8 __asm__("r8") = a[6];
        register uint64_t r9 __asm__("r9") = a[7];
        __asm__ volatile("syscall"
                         : "=a"(result)
                         : "a"(a[1]), "D"(a[2]), "S"(a[3]), "d"(a[4]), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
    }
    report->result = result;
    report->state = 2;
    for (;;) __asm__ volatile("syscall" : : "a"((uint64_t)SYS_exit_group), "D"((uint64_t)0) : "rcx", "r11", "memory");
}

static void try(uint64_t a[8], long milliseconds, const sigset_t *child) {
    struct report *report = reports + ++turn % 64;
    report->state = report->result = 0;
    /* A process of its own, so that a filter's kill ends it alone; but on our memory: copying that takes most of the time. */
    pid_t pid = clone(attempt, stack + sizeof stack, CLONE_VM | SIGCHLD, a);
    if (pid == -1) die("clone");
    struct timespec wait = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    int status, waits = 0;
    while (waitpid(pid, &status, WNOHANG | __WALL) != pid)
        if (sigtimedwait(child, NULL, &wait) == -1 && errno == EAGAIN) {
            waits = 1;
            kill(pid, SIGKILL);
            waitpid(pid, &status, __WALL);
            break;
        }
    /* Whatever it left: this is the init of its pid namespace. */
    while (waitpid(-1, NULL, WNOHANG | __WALL) > 0) {
    }
    if (report->state == 0) printf("not-tried\n");
    else if (report->state == 2) printf("returned %lld\n", (long long)report->result);
    else if (waits) printf("waits\n");
    else if (WIFSIGNALED(status)) printf("signal %d\n", WTERMSIG(status));
    else printf("exited %d\n", WEXITSTATUS(status));
}

/* A worker's surroundings, as far as they matter to a call that gets through. */
static void confine(uid_t uid, gid_t gid) {
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("mount");
    if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) die("uid");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)) die("prctl");
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_NPROC, 64);
    if (signal(SIGXFSZ, SIG_IGN) == SIG_ERR || signal(SIGPIPE, SIG_IGN) == SIG_ERR) die("signal");
    /* Descriptor 3 is what a filter may let through. */
    int null = open("/dev/null", O_RDWR);
    if (null == -1 || dup2(null, 3) == -1) die("/dev/null");
}

int main(int count, char **words) {
    if (count != 4) return 2;
    take(&program_count, sizeof program_count);
    if (program_count > 2) return 2;
    for (uint32_t i = 0; i < program_count; i++) {
        uint32_t length;
        take(&length, sizeof length);
        programs[i].len = (unsigned short)length;
        programs[i].filter = malloc(length * 8ul);
        take(programs[i].filter, length * 8ul);
    }
    reports = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (reports == MAP_FAILED) die("mmap");
    if (unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)) die("unshare");
    /* One processor: to wake the other for each attempt takes longer than the attempt. */
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    if (sched_setaffinity(0, sizeof first, &first)) die("sched_setaffinity");
    pid_t init = fork();
    if (init == -1) die("fork");
    if (init) {
        int status;
        if (waitpid(init, &status, 0) != init) die("waitpid");
        return WIFEXITED(status) ? WEXITSTATUS(status) : 4;
    }
    confine((uid_t)strtoul(words[1], NULL, 10), (gid_t)strtoul(words[2], NULL, 10));
    /* The attempts end with the test, however that ends. (A change of the uid would undo it.) */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    long milliseconds = strtol(words[3], NULL, 10);
    uint64_t words_of_it[8];
    while (fread(words_of_it, sizeof words_of_it, 1, stdin) == 1) {
        try(words_of_it, milliseconds, &child);
        fflush(stdout);
    }
    return 0;
}
