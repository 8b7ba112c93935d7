/* The processor's clock, read without the kernel: a sealed worker may not call clock_gettime(2), and the vDSO falls
 * back to that call on hosts whose clock source it cannot read. */
#pragma once
#include <stdint.h>

static inline uint64_t ubd_ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return 0;
#endif
}
