import Glibc
import SystemCalls
import WorkerProtocol

/// The targets. A new one is a folder beside this file, a case here, and its two policy files.
enum ServedTarget: Sendable {
    case null(NullTarget)
    case loop(LoopTarget)
}

/// A target that is ready: what serves, the disk that it makes, and what the queues need for it.
package struct OpenTarget: Sendable {
    var served: ServedTarget
    var geometry: Geometry
    /// Descriptors that follow /dev/ublkcN in each ring's file table.
    package var files: [Int32]
    /// Bytes: no write may go beyond; nil where that makes no sense.
    var fileSizeLimit: UInt64?
    /// Discards and zeroes ranges of the file, in a thread of its own; nil when nothing is to be done there.
    var ranges: FileRangeWork?
    /// Operations (IORING_OP_*) of the ring policy that this file, or this kernel, has no use for: its rings don't get them.
    var unneeded: [UInt8] = []
}

extension TargetKind {
    /// How many files the client sends for it.
    var fileCount: ClosedRange<Int> {
        switch self {
        case .null: 0...0
        case .loop: 1...2
        }
    }

    /// Opens the target. `files` are as many as `fileCount` says. `canWait`: the ring policy has FUTEX_WAIT.
    func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        switch self {
        case .null: try NullTarget.open(launch)
        case .loop: try LoopTarget.open(launch, files: files, kernel: kernel, canWait: canWait)
        }
    }
}

extension Geometry {
    /// 512-byte sectors of the longest discard or write-zeroes that a target takes at once: 2 GiB.
    static let longestRangeSectors: UInt32 = 1 << 22
}

/// A block size is a power of two from 512 bytes to the 4096 that every kernel takes. `minimum` in bytes.
func checkBlockSize(_ size: UInt32, minimum: UInt32) throws(WorkerFailure) {
    guard size.nonzeroBitCount == 1, size <= 4096 else {
        throw WorkerFailure(.geometry, errno: EINVAL, detail: UInt64(size))
    }
    guard size >= minimum else { throw WorkerFailure(.blockSizeTooSmall, detail: UInt64(minimum)) }
}
