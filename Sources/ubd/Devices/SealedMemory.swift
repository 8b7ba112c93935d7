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

    /// MFD_NOEXEC_SEAL (8) where the kernel has it, Linux 6.3: a host may demand it (vm.memfd_noexec).
    private static func create(_ name: String) throws(SystemError) -> FileDescriptor {
        let flags = UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)
        let sealed = memfd_create(name, flags | 8)
        if sealed >= 0 { return FileDescriptor(owning: sealed) }
        return FileDescriptor(owning: try call("memfd_create") { memfd_create(name, flags) })
    }
}
