import Glibc
import SystemCalls

/// Memory for a worker: a memfd of the user's, sealed against any other size, as the worker demands it.
enum SealedMemory {
    /// `bytes` of zeros. `name`: for /proc.
    static func make(_ name: String, bytes: UInt64) throws(SystemError) -> FileDescriptor {
        let file = try create(name)
        try call("ftruncate of a memfd") { ftruncate(file.raw, off_t(clamping: bytes)) }
        // linux/fcntl.h: F_ADD_SEALS; F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW.
        try call("fcntl(F_ADD_SEALS)") { fcntl(file.raw, 1033, Int32(1 | 2 | 4)) }
        return file
    }

    /// A file in memory opened once more, so that io_uring serves it without a helper thread: a memfd, or a file on tmpfs. O_NONBLOCK:
    /// as in BackingFile.stayWaitless. O_DIRECT: io_uring hands buffered writes to a helper thread (io_write, io_uring/rw.c), and
    /// tmpfs does direct ones in the page cache, too. nil before Linux 6.6, whose tmpfs has no direct I/O.
    static func waitless(_ file: borrowing FileDescriptor) -> FileDescriptor? {
        let flags = O_RDWR | O_DIRECT | O_NONBLOCK | O_CLOEXEC
        let direct = open("/proc/self/fd/\(file.raw)", flags)
        return direct >= 0 ? FileDescriptor(owning: direct) : nil
    }

    /// MFD_NOEXEC_SEAL (8) where the kernel has it, Linux 6.3: a host may demand it (vm.memfd_noexec).
    private static func create(_ name: String) throws(SystemError) -> FileDescriptor {
        let flags = UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)
        let sealed = memfd_create(name, flags | 8)
        if sealed >= 0 { return FileDescriptor(owning: sealed) }
        return FileDescriptor(owning: try call("memfd_create") { memfd_create(name, flags) })
    }
}
