/* Function-like macros and encoded constants; Swift imports neither. */
#pragma once
#include <linux/fs.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static inline uint32_t ubd_major(uint64_t device) { return major(device); }
static inline uint32_t ubd_minor(uint64_t device) { return minor(device); }
static inline uint64_t ubd_makedev(uint32_t major, uint32_t minor) { return makedev(major, minor); }

static const unsigned long ubd_BLKGETSIZE64 = BLKGETSIZE64;
static const unsigned long ubd_BLKSSZGET = BLKSSZGET;
static const unsigned long ubd_BLKPBSZGET = BLKPBSZGET;
static const unsigned long ubd_BLKROGET = BLKROGET;

/* Swift finds the name `environ` ambiguous. */
static inline char **ubd_environment(void) { return environ; }

/* The arguments of main, as bytes (start.c). Swift's CommandLine reads them from /proc/self/cmdline: where /proc is not mounted, as
 * in a chroot, it has none, and `ubd del` would print the help and end with status 0. */
char *const *ubd_arguments(int *count);

/* Debian 12's headers lack them. SO_PASSRIGHTS: Linux 6.16, asm-generic/socket.h. */
static const int ubd_SO_PEERGROUPS = 59;
static const int ubd_SO_PASSRIGHTS = 83;

/* Stores the processors on which the calling thread may run in `mask` (`words` words of 64 bits). Returns the number of
 * words that the kernel wrote, or a negative errno. */
static inline long ubd_thread_cpus(uint64_t *mask, size_t words) {
    long bytes = syscall(SYS_sched_getaffinity, 0, words * sizeof(uint64_t), mask);
    return bytes == -1 ? -(long)errno : bytes / (long)sizeof(uint64_t);
}

/* Pins the calling thread to the processors in `mask` (`words` words of 64 bits). Returns 0 or an errno. */
static inline int ubd_pin_thread(const uint64_t *mask, size_t words) {
    return sched_setaffinity(0, words * sizeof(uint64_t), (const cpu_set_t *)mask) == 0 ? 0 : errno;
}
