import Glibc
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

/// A disk in a memfd. To the kernel that is a file on tmpfs, so loop's code serves it.
enum MemoryTarget: OpenedTarget {
    static var manifest: TargetManifest { .memory }
    static var submissions: Submissions { LoopTarget.submissions }

    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        // The broker always sends the size: the manifest has a default.
        guard let size = launch.options.size else { throw WorkerFailure(.geometry, errno: EINVAL) }
        try check(files[0], size: size)
        var open = try LoopTarget.open(launch, files: files, kernel: kernel, canWait: canWait)
        // Nothing is less stable than the memory itself, so no flush and no forced write is needed. A write is in the memfd
        // when it completes, and that outlives the worker.
        open.geometry.attributes.formIntersection([.readOnly, .sizeRoundedDown])
        // policy/rings/memory.ring does not have them.
        open.unneeded.removeAll { $0 == IOUring.Operation.fsync || $0 == IOUring.Operation.fallocate }
        return open
    }

    /// What the broker counted against `memory-disks` is the disk's size, so the file has that size for ever. Only a memfd has
    /// these seals, and a memfd that is not on a local file system (tmpfs) is one of hugetlbfs, which no write(2) reaches.
    private static func check(_ file: ClientFile, size: UInt64) throws(WorkerFailure) {
        let seals = fcntl(file.descriptor, Seal.get)
        guard seals >= 0, seals & Seal.wanted == Seal.wanted, seals & ~(Seal.wanted | Seal.executable) == 0,
            file.isWritable, file.fileSystem?.kind == .local
        else { throw WorkerFailure(.memoryNotSealed, detail: UInt64(bitPattern: Int64(seals))) }
        guard UInt64(clamping: file.status.st_size) == size else {
            throw WorkerFailure(.memorySize, detail: UInt64(clamping: file.status.st_size))
        }
    }

    /// linux/fcntl.h: F_GET_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW, and F_SEAL_EXEC (MFD_NOEXEC_SEAL sets it).
    private enum Seal {
        static let get: Int32 = 1034
        static let wanted: Int32 = 1 | 2 | 4
        static let executable: Int32 = 0x20
    }
}
