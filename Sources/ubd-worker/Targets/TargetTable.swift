import Glibc
import SystemCalls
import Targets
import WorkerProtocol

/// A target that the worker can open for a device. Its manifest declares its inputs and options. What serves the requests
/// may be the code of another target.
protocol OpenedTarget: Sendable {
    static var manifest: TargetManifest { get }
    /// Those of the code that serves the requests.
    static var submissions: Submissions { get }

    /// Makes the libraries that its code uses ready, before the first filter.
    static func loadLibraries()

    /// Opens the target on `files`, the number of which its manifest declares. `canWait`: the ring policy has
    /// FUTEX_WAIT.
    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget
}

/// A target with code of its own for its requests.
protocol ServedTarget: Target, OpenedTarget {
    /// Makes the ring of one queue and serves it, in the loop that the compiler makes for this target.
    /// `helperProcessors`: the processors of the ring's helper threads, one bit each.
    func serve(_ assignment: QueueAssignment, _ helperProcessors: [UInt64]) throws(WorkerFailure)
}

extension OpenedTarget {
    static func loadLibraries() {}
}

extension ServedTarget {
    func serve(_ assignment: QueueAssignment, _ helperProcessors: [UInt64]) throws(WorkerFailure) {
        try QueueThread.run(self, assignment, helperProcessors)
    }
}

/// The targets of this worker: each is a folder beside this file. A test compares the list with `TargetList`.
let servedTargets: [any OpenedTarget.Type] = [
    NullTarget.self, LoopTarget.self, NBDTarget.self, MemoryTarget.self, CryptTarget.self, OverlayTarget.self,
    FaultTarget.self,
]

/// A target that is ready: the target itself, its disk, and what the queues need for it.
package struct OpenTarget: Sendable {
    var served: any ServedTarget
    var geometry: Geometry
    /// Descriptors that follow /dev/ublkcN in each ring's file table.
    package var files: [Int32]
    /// Bytes: no write may go beyond; nil for no limit.
    var fileSizeLimit: UInt64?
    /// Discards and zeroes ranges of the file, in a thread of its own; nil when there is no such work.
    var ranges: FileRangeWork?
    /// Operations (IORING_OP_*) of the ring policy that this file, or this kernel, does not need: its rings do not get
    /// them.
    var unneeded: [UInt8] = []
    /// The locks on the file's bytes; nil when there are none.
    var claim: ByteClaim?
    /// The socket of each queue, for its second ring; empty when the target's submissions have no socket.
    package var sockets: [Int32] = []
}

extension TargetManifest {
    /// Makes the target's libraries ready.
    func loadLibraries() { servedTargets.first { $0.manifest == self }?.loadLibraries() }

    /// Opens the target of a launch message.
    func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        guard let target = servedTargets.first(where: { $0.manifest == self }) else {
            throw WorkerFailure(.launchMessage, errno: ENOSYS, detail: UInt64(number))
        }
        return try target.open(launch, files: files, kernel: kernel, canWait: canWait)
    }
}

extension Geometry {
    /// The longest discard or write-zeroes that a target accepts, in 512-byte sectors: 2 GiB.
    static let longestRangeSectors: UInt32 = 1 << 22
}

/// A block size is a power of two from 512 bytes to 4096, the largest that every kernel accepts. `minimum` in bytes.
func checkBlockSize(_ size: UInt32, minimum: UInt32) throws(WorkerFailure) {
    guard size.nonzeroBitCount == 1, size <= 4096 else {
        throw WorkerFailure(.geometry, errno: EINVAL, detail: UInt64(size))
    }
    guard size >= minimum else { throw WorkerFailure(.blockSizeTooSmall, detail: UInt64(minimum)) }
}
