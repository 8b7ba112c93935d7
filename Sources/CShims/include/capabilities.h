/* The kernel's capability sets are pairs of words behind a versioned header (capset(2)), and libcap would be a library in
 * root's process for one call. */
#pragma once
#include <linux/capability.h>
#include <stdint.h>
#include "raw_calls.h"

/* Leaves the calling thread those of its permitted capabilities that are in `mask`, all of them effective, none
 * inheritable. Returns 0 or the negated errno. */
static inline long ubd_keep_capabilities(uint64_t mask) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    long result = ubd_kernel_result(syscall(SYS_capget, &header, sets));
    if (result < 0) return result;
    for (int word = 0; word < 2; word++) {
        sets[word].permitted &= (uint32_t)(mask >> 32 * word);
        sets[word].effective = sets[word].permitted;
        sets[word].inheritable = 0;
    }
    return ubd_kernel_result(syscall(SYS_capset, &header, sets));
}
