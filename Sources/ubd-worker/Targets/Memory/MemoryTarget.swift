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
        // What the broker counted against `memory-disks` is the disk's size, so the file has that size for ever.
        try files[0].checkIsSealedMemory(size: size)
        var open = try LoopTarget.open(launch, files: files, kernel: kernel, canWait: canWait)
        // Nothing is less stable than the memory itself, so no flush and no forced write is needed. A write is in the memfd
        // when it completes, and that outlives the worker.
        open.geometry.attributes.formIntersection([.readOnly, .sizeRoundedDown])
        // policy/rings/memory.ring does not have them.
        open.unneeded.removeAll { $0 == IOUring.Operation.fsync || $0 == IOUring.Operation.fallocate }
        return open
    }
}
