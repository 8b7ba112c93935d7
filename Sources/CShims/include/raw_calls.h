/* System calls without a glibc wrapper, or whose wrapper is variadic: Swift imports neither. Each returns what the
 * kernel returns: a value, or the negated errno. */
#pragma once
#include <errno.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline long ubd_kernel_result(long r) { return r == -1 ? -(long)errno : r; }

static inline long ubd_seccomp(uint32_t operation, uint32_t flags, void *args) {
    return ubd_kernel_result(syscall(SYS_seccomp, operation, flags, args));
}
static inline long ubd_landlock_create_ruleset(const void *attr, size_t size, uint32_t flags) {
    return ubd_kernel_result(syscall(SYS_landlock_create_ruleset, attr, size, flags));
}
static inline long ubd_landlock_restrict_self(int fd, uint32_t flags) {
    return ubd_kernel_result(syscall(SYS_landlock_restrict_self, fd, flags));
}
static inline long ubd_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) {
    return ubd_kernel_result(syscall(SYS_prctl, option, a, b, c, d));
}
/* libcap would be a library in root's process for these two. */
static inline long ubd_capget(void *header, void *sets) { return ubd_kernel_result(syscall(SYS_capget, header, sets)); }
static inline long ubd_capset(void *header, void *sets) { return ubd_kernel_result(syscall(SYS_capset, header, sets)); }
static inline long ubd_pidfd_open(int32_t pid, uint32_t flags) {
    return ubd_kernel_result(syscall(SYS_pidfd_open, pid, flags));
}
static inline long ubd_pidfd_getfd(int pidfd, int target) {
    return ubd_kernel_result(syscall(SYS_pidfd_getfd, pidfd, target, 0));
}
static inline long ubd_pidfd_send_signal(int pidfd, int signal) {
    return ubd_kernel_result(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

/* The hot path's only system call: inline, so that the queue engine pays for the trap and nothing else (no libc call,
 * no errno). Source: io_uring_enter(2). */
static inline long ubd_io_uring_enter(int32_t fd, uint32_t to_submit, uint32_t min_complete, uint32_t flags) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = flags;
    register long r8 __asm__("r8") = 0;
    register long r9 __asm__("r9") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"((long)SYS_io_uring_enter), "D"((long)fd), "S"((long)to_submit), "d"((long)min_complete),
                       "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#else
    return ubd_kernel_result(syscall(SYS_io_uring_enter, fd, to_submit, min_complete, flags, NULL, 0));
#endif
}
