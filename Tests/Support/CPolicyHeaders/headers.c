#include "CPolicyHeaders.h"

#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/nsfs.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* umount2(2); sys/mount.h, which has it, clashes with linux/fs.h. */
#define MNT_DETACH 2

/* glibc leaves this one to linux/sched.h, which clashes with sched.h. */
#ifndef CLONE_DETACHED
#define CLONE_DETACHED 0x00400000
#endif

/* Linux 6.12; Debian 12's headers are older. struct mnt_ns_info has 16 bytes. */
#ifndef NS_MNT_GET_INFO
#define NS_MNT_GET_INFO _IOR(NSIO, 10, uint64_t[2])
#endif

/* Through unsigned: CLONE_IO and ioctl numbers have bit 31 set and must not be extended with ones. */
#define C(name) {#name, (uint32_t)(name)}
#define OP(name) {#name, IORING_OP_##name}
#define REGISTER(name) {#name, IORING_REGISTER_##name}
#define UNREGISTER(name) {"UNREGISTER_" #name, IORING_UNREGISTER_##name}
#define TABLE(names) (struct policy_header_table){names, sizeof names / sizeof *names}
#define FLAG(name) {#name, IOSQE_##name##_BIT}

struct policy_header_table policy_constants(void) {
    static const struct policy_header_name names[] = {
        C(PROT_READ), C(PROT_WRITE), C(PROT_EXEC), C(MAP_SHARED), C(MAP_PRIVATE), C(MAP_FIXED), C(MAP_ANONYMOUS),
        C(MAP_GROWSDOWN), C(MAP_LOCKED), C(MAP_NORESERVE), C(MAP_POPULATE), C(MAP_STACK), C(MAP_HUGETLB),
        C(MADV_DONTNEED), C(MADV_FREE), C(MADV_DONTFORK), C(MADV_HUGEPAGE), C(MADV_DONTDUMP), C(MADV_POPULATE_WRITE),
        C(CLONE_VM), C(CLONE_FS), C(CLONE_FILES), C(CLONE_SIGHAND), C(CLONE_PIDFD), C(CLONE_PTRACE), C(CLONE_VFORK),
        C(CLONE_PARENT), C(CLONE_THREAD), C(CLONE_NEWNS), C(CLONE_SYSVSEM), C(CLONE_SETTLS), C(CLONE_PARENT_SETTID),
        C(CLONE_CHILD_CLEARTID), C(CLONE_DETACHED), C(CLONE_UNTRACED), C(CLONE_CHILD_SETTID), C(CLONE_NEWCGROUP),
        C(CLONE_NEWUTS), C(CLONE_NEWIPC), C(CLONE_NEWUSER), C(CLONE_NEWPID), C(CLONE_NEWNET), C(CLONE_IO), C(FUTEX_WAIT),
        C(FALLOC_FL_KEEP_SIZE), C(FALLOC_FL_PUNCH_HOLE), C(FALLOC_FL_ZERO_RANGE),
        C(FUTEX_WAKE), C(FUTEX_REQUEUE), C(FUTEX_CMP_REQUEUE), C(FUTEX_WAKE_OP), C(FUTEX_WAIT_BITSET),
        C(FUTEX_WAKE_BITSET), C(FUTEX_PRIVATE_FLAG), C(FUTEX_CLOCK_REALTIME), C(F_DUPFD), C(F_GETFD), C(F_SETFD),
        C(F_GETFL), C(F_SETFL), C(F_DUPFD_CLOEXEC), C(F_ADD_SEALS), C(F_GET_SEALS), C(F_OFD_GETLK), C(F_OFD_SETLK),
        C(FD_CLOEXEC), C(O_NONBLOCK), C(O_CLOEXEC), C(BLKROSET), C(BLKROGET), C(BLKGETSIZE), C(BLKFLSBUF), C(BLKSSZGET),
        C(BLKGETSIZE64), C(BLKDISCARD), C(BLKIOMIN), C(BLKIOOPT), C(BLKALIGNOFF), C(BLKPBSZGET), C(BLKDISCARDZEROES),
        C(BLKSECDISCARD), C(BLKROTATIONAL), C(BLKZEROOUT), C(BLKGETDISKSEQ), C(AF_UNSPEC), C(AF_UNIX), C(AF_INET),
        C(AF_INET6), C(AF_NETLINK), C(AF_VSOCK), C(SOCK_STREAM), C(SOCK_DGRAM), C(SOCK_SEQPACKET), C(SOCK_NONBLOCK),
        C(SOCK_CLOEXEC), C(MSG_PEEK), C(MSG_TRUNC), C(MSG_DONTWAIT), C(MSG_NOSIGNAL), C(MSG_CMSG_CLOEXEC),
        C(PR_SET_PDEATHSIG), C(PR_GET_DUMPABLE), C(PR_SET_DUMPABLE), C(PR_SET_NAME), C(PR_GET_NAME), C(PR_GET_SECCOMP),
        C(PR_CAPBSET_READ), C(PR_SET_TIMERSLACK), C(PR_SET_NO_NEW_PRIVS), C(PR_GET_NO_NEW_PRIVS), C(PR_CAPBSET_DROP),
        C(PR_SET_SECUREBITS), C(PR_CAP_AMBIENT), C(PR_SET_IO_FLUSHER), C(TCGETS), C(TCGETS2), C(NS_MNT_GET_INFO), C(MS_RDONLY), C(MS_NOSUID), C(MS_NODEV),
        C(SOL_SOCKET), C(SO_TYPE), C(SO_ACCEPTCONN), C(SO_PROTOCOL), C(SO_DOMAIN), C(SO_LOCK_FILTER), C(IPPROTO_TCP),
        C(TCP_ULP), C(EFD_CLOEXEC),
        C(MS_NOEXEC), C(MS_REC), C(MS_PRIVATE), C(MNT_DETACH),
        C(SECCOMP_SET_MODE_FILTER), C(SECCOMP_GET_ACTION_AVAIL), C(SECCOMP_FILTER_FLAG_TSYNC),
        C(SECCOMP_FILTER_FLAG_TSYNC_ESRCH), C(AT_SYMLINK_NOFOLLOW), C(AT_NO_AUTOMOUNT), C(AT_EMPTY_PATH),
        C(AT_STATX_FORCE_SYNC), C(AT_STATX_DONT_SYNC), C(RLIMIT_FSIZE), C(RLIMIT_CORE), C(RLIMIT_NPROC), C(RLIMIT_NOFILE),
        C(RLIMIT_MEMLOCK), C(SIGABRT), C(SIGKILL),
    };
    return TABLE(names);
}

struct policy_header_table policy_errnos(void) {
    static const struct policy_header_name names[] = {
        C(EPERM), C(ENOENT), C(EIO), C(EBADF), C(EAGAIN), C(ENOMEM), C(EACCES), C(EBUSY), C(EEXIST), C(ENODEV), C(EINVAL),
        C(ENOTTY), C(ENOSYS), C(EOPNOTSUPP),
    };
    return TABLE(names);
}

struct policy_header_table policy_ring_operations(void) {
    static const struct policy_header_name names[] = {
        OP(NOP), OP(READV), OP(WRITEV), OP(FSYNC), OP(READ_FIXED), OP(WRITE_FIXED), OP(POLL_ADD), OP(POLL_REMOVE),
        OP(SYNC_FILE_RANGE), OP(SENDMSG), OP(RECVMSG), OP(TIMEOUT), OP(TIMEOUT_REMOVE), OP(ACCEPT), OP(ASYNC_CANCEL),
        OP(LINK_TIMEOUT), OP(CONNECT), OP(FALLOCATE), OP(OPENAT), OP(CLOSE), OP(FILES_UPDATE), OP(STATX), OP(READ),
        OP(WRITE), OP(FADVISE), OP(MADVISE), OP(SEND), OP(RECV), OP(OPENAT2), OP(EPOLL_CTL), OP(SPLICE),
        OP(PROVIDE_BUFFERS), OP(REMOVE_BUFFERS), OP(TEE), OP(SHUTDOWN), OP(RENAMEAT), OP(UNLINKAT), OP(MKDIRAT),
        OP(SYMLINKAT), OP(LINKAT), OP(MSG_RING), OP(FSETXATTR), OP(SETXATTR), OP(FGETXATTR), OP(GETXATTR), OP(SOCKET),
        OP(URING_CMD), OP(SEND_ZC), OP(SENDMSG_ZC),
    };
    return TABLE(names);
}

struct policy_header_table policy_ring_register_operations(void) {
    static const struct policy_header_name names[] = {
        REGISTER(BUFFERS), UNREGISTER(BUFFERS), REGISTER(FILES), UNREGISTER(FILES), REGISTER(EVENTFD),
        UNREGISTER(EVENTFD), REGISTER(FILES_UPDATE), REGISTER(EVENTFD_ASYNC), REGISTER(PROBE), REGISTER(PERSONALITY),
        UNREGISTER(PERSONALITY), REGISTER(RESTRICTIONS), REGISTER(ENABLE_RINGS), REGISTER(FILES2),
        REGISTER(FILES_UPDATE2), REGISTER(BUFFERS2), REGISTER(BUFFERS_UPDATE), REGISTER(IOWQ_AFF), UNREGISTER(IOWQ_AFF),
        REGISTER(IOWQ_MAX_WORKERS), REGISTER(RING_FDS), UNREGISTER(RING_FDS), REGISTER(PBUF_RING), UNREGISTER(PBUF_RING),
        REGISTER(SYNC_CANCEL), REGISTER(FILE_ALLOC_RANGE),
    };
    return TABLE(names);
}

struct policy_header_table policy_ring_flag_bits(void) {
    static const struct policy_header_name names[] = {
        FLAG(FIXED_FILE), FLAG(IO_DRAIN), FLAG(IO_LINK), FLAG(IO_HARDLINK), FLAG(ASYNC), FLAG(BUFFER_SELECT),
        FLAG(CQE_SKIP_SUCCESS),
    };
    return TABLE(names);
}
