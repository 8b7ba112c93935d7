/* System calls without a glibc wrapper or with a variadic one; Swift imports neither. They return the kernel's result:
 * a value or a negative errno. Sources/Shared/SystemCalls/RawCalls.swift gives them names and types. */
#pragma once
#include <errno.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Any call with up to five arguments. The numbers are SYS_* of sys/syscall.h. */
static inline long ubd_call(long number, unsigned long a, unsigned long b, unsigned long c, unsigned long d, unsigned long e) {
    long result = syscall(number, a, b, c, d, e);
    return result == -1 ? -(long)errno : result;
}

/* The only system call of the hot path. It is inline, so that the queue engine pays only for the trap, without a libc
 * call and errno. Source: io_uring_enter(2). */
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
    long result = syscall(SYS_io_uring_enter, fd, to_submit, min_complete, flags, NULL, 0);
    return result == -1 ? -(long)errno : result;
#endif
}
