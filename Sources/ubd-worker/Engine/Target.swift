import Glibc
import KernelABI
import Ring
import Targets

/// What makes a disk: how one request becomes submissions on the queue's ring, and what their completions mean.
///
/// Each queue has its own copy, a small value without references; what must be remembered per request lies in the queue's
/// `requests`. Targets whose queues would have to share more have one queue. A target never allocates, blocks or calls the
/// system, and pushes submissions by `Queue.push` alone.
///
/// A request ends with the `Outcome` that `begin` or `finish` returns, or with `Queue.complete`, which any completion may
/// call for any request; in both cases not before all of its submissions have completed.
protocol Target: Sendable {
    /// What is remembered of each request.
    associatedtype State: RequestState

    /// How many submissions it can have under way: the constant that its manifest names.
    static var submissions: Submissions { get }

    /// The queue begins to serve: pushes the first submissions of the queue's own. Called once, when the driver has taken all
    /// fetches, so never in a worker that only rehearses (an upgrade) and must not touch the sockets of the one that serves.
    mutating func start(on queue: inout Queue<Self>)

    /// A request has arrived. `descriptor` is the kernel's word; the target checks it against its own bounds.
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<Self>) -> Outcome

    /// A submission of a request has completed with `result`: a count, or a negated errno. `key` is the submission's.
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<Self>) -> Outcome

    /// A submission of the queue's own has completed. With the flag IOUring.CompletionFlags.more it is still under way.
    mutating func finishOwn(_ key: RequestKey, _ completion: CompletionEntry, on queue: inout Queue<Self>)
}

extension Target {
    @inline(__always)
    mutating func start(on queue: inout Queue<Self>) {}

    @inline(__always)
    mutating func finishOwn(_ key: RequestKey, _ completion: CompletionEntry, on queue: inout Queue<Self>) {}
}

/// What a target remembers of one request. One per tag is made with the queue; none is made or reset later, so a target
/// that ends a request leaves its state as the next one needs it.
protocol RequestState: BitwiseCopyable, Sendable {
    init()

    /// Only in a test build: the first bytes of the request's buffer were filled with what is no data (Poison.swift).
    mutating func bufferWasFilled(bytes: UInt32)
}

extension RequestState {
    mutating func bufferWasFilled(bytes: UInt32) {}
}

/// What became of a request.
struct Outcome: Equatable, Sendable {
    let rawValue: Int32

    /// Not done yet: a submission is under way, or the completion of something else will end it.
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
