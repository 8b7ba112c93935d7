/* One system call, whatever it is, with nothing between it and the kernel: libc's wrappers would do other calls first. */
#pragma once
#include <stdint.h>
#include <sys/syscall.h>

/* Returns what the kernel returns. Should the call make a new process, that ends at once: it must not go on to be a
 * second worker. It shares the caller's stack after vfork, so it ends here, without a return. */
static inline int64_t ubd_escape_call(const uint64_t call[7]) {
    int64_t result;
    register uint64_t r10 __asm__("r10") = call[4];
    register uint64_t r8 __asm__("r8") = call[5];
    register uint64_t r9 __asm__("r9") = call[6];
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(call[0]), "D"(call[1]), "S"(call[2]), "d"(call[3]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result == 0 && (call[0] == SYS_fork || call[0] == SYS_vfork || call[0] == SYS_clone || call[0] == SYS_clone3))
        __asm__ volatile("syscall" : : "a"((uint64_t)SYS_exit_group), "D"((uint64_t)0) : "rcx", "r11", "memory");
    return result;
}
