/// The names of linux/io_uring.h (Linux 7.3.4), each at the index of its number. A unit test compares them with the
/// header of the build host, up to that header's last name.
enum RingNames {
    /// `enum io_uring_op`, without `IORING_OP_`.
    static let operations: [String] = [
        "NOP", "READV", "WRITEV", "FSYNC", "READ_FIXED", "WRITE_FIXED", "POLL_ADD", "POLL_REMOVE", "SYNC_FILE_RANGE",
        "SENDMSG", "RECVMSG", "TIMEOUT", "TIMEOUT_REMOVE", "ACCEPT", "ASYNC_CANCEL", "LINK_TIMEOUT", "CONNECT",
        "FALLOCATE", "OPENAT", "CLOSE", "FILES_UPDATE", "STATX", "READ", "WRITE", "FADVISE", "MADVISE", "SEND",
        "RECV", "OPENAT2", "EPOLL_CTL", "SPLICE", "PROVIDE_BUFFERS", "REMOVE_BUFFERS", "TEE", "SHUTDOWN", "RENAMEAT",
        "UNLINKAT", "MKDIRAT", "SYMLINKAT", "LINKAT", "MSG_RING", "FSETXATTR", "SETXATTR", "FGETXATTR", "GETXATTR",
        "SOCKET", "URING_CMD", "SEND_ZC", "SENDMSG_ZC", "READ_MULTISHOT", "WAITID", "FUTEX_WAIT", "FUTEX_WAKE",
        "FUTEX_WAITV", "FIXED_FD_INSTALL", "FTRUNCATE", "BIND", "LISTEN", "RECV_ZC", "EPOLL_WAIT", "READV_FIXED",
        "WRITEV_FIXED", "PIPE", "NOP128", "URING_CMD128",
    ]

    /// `enum io_uring_register_op`, without `IORING_REGISTER_`; `IORING_UNREGISTER_X` is `UNREGISTER_X`.
    static let registerOperations: [String] = [
        "BUFFERS", "UNREGISTER_BUFFERS", "FILES", "UNREGISTER_FILES", "EVENTFD", "UNREGISTER_EVENTFD", "FILES_UPDATE",
        "EVENTFD_ASYNC", "PROBE", "PERSONALITY", "UNREGISTER_PERSONALITY", "RESTRICTIONS", "ENABLE_RINGS", "FILES2",
        "FILES_UPDATE2", "BUFFERS2", "BUFFERS_UPDATE", "IOWQ_AFF", "UNREGISTER_IOWQ_AFF", "IOWQ_MAX_WORKERS",
        "RING_FDS", "UNREGISTER_RING_FDS", "PBUF_RING", "UNREGISTER_PBUF_RING", "SYNC_CANCEL", "FILE_ALLOC_RANGE",
        "PBUF_STATUS", "NAPI", "UNREGISTER_NAPI", "CLOCK", "CLONE_BUFFERS", "SEND_MSG_RING", "ZCRX_IFQ",
        "RESIZE_RINGS", "MEM_REGION", "QUERY", "ZCRX_CTRL", "BPF_FILTER",
    ]

    /// `IOSQE_*_BIT`, without `IOSQE_` and `_BIT`.
    static let flags: [String] = [
        "FIXED_FILE", "IO_DRAIN", "IO_LINK", "IO_HARDLINK", "ASYNC", "BUFFER_SELECT", "CQE_SKIP_SUCCESS",
    ]

    /// IOSQE_FIXED_FILE.
    static let fixedFile: UInt8 = 1
}
