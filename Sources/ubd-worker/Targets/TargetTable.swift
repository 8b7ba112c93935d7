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
}

extension TargetKind {
    /// How many files the client sends for it.
    var fileCount: ClosedRange<Int> {
        switch self {
        case .null: 0...0
        case .loop: 1...2
        }
    }

    /// Opens the target. `files` are as many as `fileCount` says.
    func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion
    ) throws(WorkerFailure) -> OpenTarget {
        switch self {
        case .null: try NullTarget.open(launch)
        case .loop: try LoopTarget.open(launch, files: files, kernel: kernel)
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
