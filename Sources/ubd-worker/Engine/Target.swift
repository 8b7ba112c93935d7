import Glibc
import KernelABI

/// What makes a disk: how one request becomes submissions on the queue's ring, and what their completions mean.
///
/// Each queue has its own copy, a small value without references; what must be remembered per request lies in the queue's
/// `requests`. A request has at most one submission under way. A target never allocates, blocks or calls the system.
protocol Target: Sendable {
    /// A request has arrived. `descriptor` is the kernel's word; the target checks it against its own bounds.
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue) -> Outcome

    /// A submission of the target's has completed with `result`: a count, or a negated errno.
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue) -> Outcome
}

/// What became of a request.
struct Outcome: Equatable, Sendable {
    let rawValue: Int32

    /// A submission is under way.
    @inline(__always)
    static var pending: Outcome { Outcome(rawValue: .min) }

    /// Done. For reads and writes `bytes` is the whole request, for all else 0: a part is never passed on, because the
    /// kernel would take a part of a zero-copy request for the whole (docs/kernel-facts.md#short-result).
    @inline(__always)
    static func done(_ bytes: UInt32) -> Outcome { Outcome(rawValue: Int32(bitPattern: bytes)) }

    /// Done, and data came or went: by far the most frequent end of a request.
    @inline(__always)
    var hasMoved: Bool { rawValue > 0 }

    /// `errno` is positive.
    @inline(__always)
    static func failed(_ errno: Int32) -> Outcome { Outcome(rawValue: -errno) }
}

/// The disk's size and the largest request, in 512-byte sectors: what a descriptor is checked against.
struct DiskBounds: Equatable, Sendable {
    let sectors: UInt64
    /// Not more than `sectors`.
    let maxSectors: UInt32

    /// `bytes` each.
    init(size: UInt64, maxIOBytes: UInt32) {
        sectors = size >> 9
        maxSectors = UInt32(truncatingIfNeeded: min(UInt64(maxIOBytes), size) >> 9)
    }

    /// The range lies on the disk.
    @inline(__always)
    func contains(_ descriptor: UblkIODescriptor) -> Bool {
        descriptor.startSector <= sectors && UInt64(descriptor.sectors) <= sectors &- descriptor.startSector
    }

    /// The range lies on the disk, and its data fits the request's buffer.
    @inline(__always)
    func containsData(_ descriptor: UblkIODescriptor) -> Bool {
        descriptor.sectors <= maxSectors && descriptor.startSector <= sectors &- UInt64(descriptor.sectors)
    }
}
