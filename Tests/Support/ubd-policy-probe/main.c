/* ubd-policy-probe: shows what the kernel does with seccomp filters that ubd compiled. For unit tests only.
 *
 *   ubd-policy-probe calls FILTER... < CASES  one forked child per line "ENTRY NR A0 A1 A2 A3 A4 A5" (hexadecimal;
 *                                             ENTRY is "native" or "int80"); prints one line each:
 *                                               passed      the filter let the call through
 *                                               errno N     the filter gave this error
 *                                               signal N    the child died
 *   ubd-policy-probe NAME FILTER...           loads the filters one after another and does what the scenario NAME says;
 *                                             exits with 0, or dies as the scenario's child did
 *
 * A filter is a file of struct sock_filter. In "calls" no system call is ever made: under the filter lies another one
 * that turns what passes into an errno of its own, so that reboot(2) can be tried as well. In C, single-threaded, since a
 * forked child of a Swift test process could not safely run anything. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The errno by which the lower filter says "passed": below the kernel's MAX_ERRNO, used by nothing else. */
#define PASSED 4000
/* Sixth argument of the one seccomp call that the lower filter lets through. */
#define COOKIE 0x75626421u

static void check(int failed, const char *what) {
    if (failed) {
        perror(what);
        exit(99);
    }
}

static struct sock_fprog read_filter(const char *path) {
    static struct sock_filter space[8][4096];
    static int used;
    check(used == 8, "too many filters");
    struct sock_filter *code = space[used++];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    check(fd < 0, path);
    ssize_t size = read(fd, code, sizeof space[0]);
    check(size <= 0 || size % sizeof *code, "read filter");
    close(fd);
    return (struct sock_fprog){.len = size / sizeof *code, .filter = code};
}

static void load(const struct sock_fprog *program, unsigned flags) {
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program, 0, 0, COOKIE) != 0, "seccomp");
}

static void load_lower_filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, COOKIE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | PASSED),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    load(&program, 0);
}

/* Without glibc's syscall(), which would take 32-bit entries and sign-extend nothing. */
static long call(int is_int80, uint64_t nr, const uint64_t a[6]) {
#if defined(__x86_64__)
    long result;
    if (is_int80) {
        __asm__ volatile("int $0x80"
                         : "=a"(result)
                         : "a"(nr), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4])
                         : "memory", "r8", "r9", "r10", "r11");
        return result;
    }
    register uint64_t r10 __asm__("r10") = a[3];
    register uint64_t r8 __asm__("r8") = a[4];
    register uint64_t r9 __asm__("r9") = a[5];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#else
    check(is_int80, "int80 exists on x86_64 only");
    long result = syscall((long)nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    return result == -1 ? -errno : result;
#endif
}

static void calls(const struct sock_fprog *filters, int count) {
    volatile long *result = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(result == MAP_FAILED, "mmap");
    char entry[16];
    uint64_t nr, a[6];
    while (scanf("%15s %lx %lx %lx %lx %lx %lx %lx", entry, &nr, &a[0], &a[1], &a[2], &a[3], &a[4], &a[5]) == 8) {
        int is_int80 = !strcmp(entry, "int80");
        *result = 1;
        pid_t pid = fork();
        check(pid < 0, "fork");
        if (pid == 0) {
            load_lower_filter();
            for (int i = 0; i < count; i++) load(&filters[i], 0);
            *result = call(is_int80, nr, a);
            call(0, SYS_exit_group, (uint64_t[6]){0});
        }
        int status;
        check(waitpid(pid, &status, 0) != pid, "waitpid");
        if (WIFEXITED(status) && WEXITSTATUS(status) == 99) exit(99);
        /* 1: the call did not return. It was exit_group, or it killed. */
        if (*result == 1 && WIFEXITED(status)) printf("passed\n");
        else if (*result == 1) printf("signal %d\n", WTERMSIG(status));
        else if (*result == -PASSED) printf("passed\n");
        else printf("errno %ld\n", -*result);
    }
}

static void *answer(void *unused) { return unused; }

static _Atomic int has_started;

/* Waits for a byte in read(2), then ends this thread alone with the one call that stage B leaves for it. */
static void *stay(void *unused) {
    char byte;
    has_started = 1;
    call(0, SYS_read, (uint64_t[6]){3, (uint64_t)(uintptr_t)&byte, 1});
    call(0, SYS_exit, (uint64_t[6]){0});
    return unused;
}

static void make_thread(void *(*body)(void *), pthread_t *thread) {
    int error = pthread_create(thread, 0, body, 0);
    if (error) {
        fprintf(stderr, "pthread_create: %s\n", strerror(error));
        _exit(98);
    }
}

/* In the child, after the first filter was loaded. */
static void scenario(const char *name, const struct sock_fprog *filters, int count) {
    pthread_t thread;
    if (!strcmp(name, "thread")) {
        make_thread(answer, &thread);
        _exit(pthread_join(thread, 0) ? 97 : 0);
    }
    if (!strcmp(name, "fork")) _exit(fork() == 0 ? 0 : 97);
    /* The others have a second thread before they load the remaining filters on all threads. */
    make_thread(stay, &thread);
    /* Before its body runs, glibc still makes calls in it that stage B kills. */
    while (!has_started) sched_yield();
    for (int i = 1; i < count; i++) load(&filters[i], SECCOMP_FILTER_FLAG_TSYNC);
    if (!strcmp(name, "sealed")) {
        if (call(0, SYS_io_uring_enter, (uint64_t[6]){~0ul}) != -EBADF) _exit(97);
        _exit(0);
    }
    if (!strcmp(name, "sealed-thread")) {
        pthread_create(&thread, 0, answer, 0);
        _exit(0);
    }
    if (!strcmp(name, "stopped")) {
        /* The parent stops and continues this process while it waits here, then writes one byte for each thread. */
        char byte;
        _exit(read(3, &byte, 1) == 1 ? 0 : 97);
    }
    _exit(96);
}

static int run_scenario(const char *name, const struct sock_fprog *filters, int count) {
    int ends[2];
    check(pipe(ends) != 0, "pipe");
    /* The reading end is 3 for the child, whatever the test's own process left open. */
    int writer = fcntl(ends[1], F_DUPFD, 10);
    if (ends[0] != 3) check(dup2(ends[0], 3) != 3, "dup2");
    pid_t pid = fork();
    check(pid < 0, "fork");
    if (pid == 0) {
        load(&filters[0], 0);
        scenario(name, filters, count);
    }
    int status;
    if (!strcmp(name, "stopped")) {
        for (int i = 0; i < 5; i++) {
            usleep(50 * 1000);
            kill(pid, SIGSTOP);
            check(waitpid(pid, &status, WUNTRACED) != pid, "waitpid");
            if (!WIFSTOPPED(status)) break;
            kill(pid, SIGCONT);
        }
        check(write(writer, "xx", 2) != 2, "write");
    }
    check(waitpid(pid, &status, 0) != pid && !WIFSIGNALED(status), "waitpid");
    if (WIFSIGNALED(status)) {
        signal(WTERMSIG(status), SIG_DFL);
        raise(WTERMSIG(status));
    }
    return WEXITSTATUS(status);
}

int main(int argc, char **argv) {
    struct rlimit no_core = {0, 0};
    check(argc < 3, "usage: ubd-policy-probe calls|SCENARIO FILTER...");
    check(setrlimit(RLIMIT_CORE, &no_core) != 0, "setrlimit");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0, "prctl");
    signal(SIGPIPE, SIG_IGN);
    struct sock_fprog filters[8];
    for (int i = 2; i < argc && i < 10; i++) filters[i - 2] = read_filter(argv[i]);
    if (!strcmp(argv[1], "calls")) {
        calls(filters, argc - 2);
        return 0;
    }
    return run_scenario(argv[1], filters, argc - 2);
}
