/* Runs a program and kills it at the N-th of the steps by which it changes the world: deterministic, with the program as
 * it is installed. usage: die-at FILE PROGRAM [ARGUMENT...]
 * FILE says N. SIGUSR1 begins the count, and FILE.armed is there when it has begun; the end of FILE ends it. Before and
 * after, the program runs without a stop: to trace all its calls makes its start twelve times as long.
 * When the program is killed FILE.died says at which step. A step is a
 * system call that renames, removes, links or gives away a name, sends a message or a signal, makes a process, or submits
 * to a ring; the latter counts twice: before it, and right after it. The program's children are left alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *file;
static pid_t child;

static int wanted(void) {
    int number = 0;
    FILE *f = fopen(file, "r");
    if (!f) return 0;
    if (fscanf(f, "%d", &number) != 1) number = 0;
    fclose(f);
    return number;
}

static const char *text_at(unsigned long address) {
    static char text[256];
    struct iovec here = {text, sizeof text - 1}, there = {(void *)address, sizeof text - 1};
    memset(text, 0, sizeof text);
    /* It may lie less than that before the end of a mapping. */
    while (there.iov_len && process_vm_readv(child, &here, 1, &there, 1, 0) == -1) here.iov_len = there.iov_len /= 2;
    text[strcspn(text, "\n")] = 0;
    return text;
}

/* What a system call does, in words; NULL when it is no step. */
static const char *step(const struct __ptrace_syscall_info *i, unsigned long number, const unsigned long *a) {
    static char words[320];
    const char *name = NULL, *path = "";
    switch (number) {
    case SYS_rename: name = "rename to", path = text_at(a[1]); break;
    case SYS_unlink: name = "remove", path = text_at(a[0]); break;
    case SYS_symlink: name = "link", path = text_at(a[1]); break;
    case SYS_chmod: name = "chmod", path = text_at(a[0]); break;
    case SYS_fchownat: name = "chown of a node"; break;
    case SYS_sendmsg: name = "message"; break;
    case SYS_clone: name = "clone"; break;
    case SYS_pidfd_send_signal: name = "signal", path = sigabbrev_np((int)a[1]); break;
    case SYS_io_uring_enter:
        if (a[1]) name = i->op == PTRACE_SYSCALL_INFO_EXIT ? "after a control command" : "before a control command";
        break;
    }
    if (!name || (i->op == PTRACE_SYSCALL_INFO_EXIT && number != SYS_io_uring_enter)) return NULL;
    snprintf(words, sizeof words, "%s%s%s", name, path && *path ? " " : "", path ? path : "");
    return words;
}

/* Writes the words into FILE.SUFFIX. */
static void say(const char *suffix, const char *words) {
    char name[256];
    snprintf(name, sizeof name, "%s.%s", file, suffix);
    FILE *f = fopen(name, "w");
    if (f) fprintf(f, "%s\n", words), fclose(f);
}

static void die(const char *words) {
    /* Before the death: whoever sees that must find the words. */
    say("died", words);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    exit(0);
}

/* Who ends this program means the other one, and waits for its end. */
static void pass_on(int number) { kill(child, number); }

/* The program stops for it at once, wherever it is, or after the stop that it is at. */
static volatile sig_atomic_t asked;
static void arm(int number) {
    (void)number;
    asked = 1;
    ptrace(PTRACE_INTERRUPT, child, 0, 0);
}

/* Starts the program, with this one as its tracer. */
static int start(char **command) {
    int go[2];
    char byte;
    if (pipe2(go, O_CLOEXEC)) return -1;
    child = fork();
    if (child == 0) {
        close(go[1]);
        if (read(go[0], &byte, 1) == 1) execv(command[0], command);
        _exit(127);
    }
    close(go[0]);
    int failed = ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) || write(go[1], "g", 1) != 1;
    close(go[1]);
    return failed ? -1 : 0;
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    file = arguments[1];
    if (start(arguments + 2)) return 3;
    struct sigaction end = {.sa_handler = pass_on}, begin = {.sa_handler = arm};
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGUSR1, &begin, NULL);
    int status, counted = 0, counts = 0;
    unsigned long number = -1, a[6] = {0};
    for (;;) {
        while (waitpid(child, &status, 0) == -1)
            if (errno != EINTR) return 5;
        if (WIFEXITED(status)) return WEXITSTATUS(status);
        if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
        int signal = 0;
        if (status >> 16 == PTRACE_EVENT_STOP) {
            if (asked) {
                asked = counted = 0;
                counts = 1;
                /* The end of a call whose beginning was not seen is no step. */
                number = -1;
                say("armed", "");
            }
        } else if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
            signal = WSTOPSIG(status);
        } else {
            struct __ptrace_syscall_info info;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) > 0) {
                if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
                    number = info.entry.nr;
                    for (int n = 0; n < 6; n++) a[n] = info.entry.args[n];
                }
                const char *words = info.op == PTRACE_SYSCALL_INFO_ENTRY || info.op == PTRACE_SYSCALL_INFO_EXIT ? step(&info, number, a) : NULL;
                int limit = words ? wanted() : 0;
                if (words && !limit) counts = 0;
                if (limit && ++counted == limit) die(words);
            }
        }
        if (ptrace(counts ? PTRACE_SYSCALL : PTRACE_CONT, child, 0, signal) == -1 && errno != ESRCH) return 4;
    }
}
