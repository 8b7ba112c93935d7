import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// A kind of disk: how a request becomes submissions on the queue's ring, and what their completions mean.
///
/// Each queue has its own copy, a small value without references; the data of each request is in the queue's
/// `requests`. A target whose queues would have to share more has one queue. A target never allocates, blocks or makes
/// a system call, and pushes submissions only by `Queue.push`.
///
/// A request ends with the `Outcome` that `begin` or `finish` returns, or with `Queue.complete`, which any completion
/// may call for any request; in both cases after all of its submissions have completed.
protocol Target: Sendable {
    /// The target's data for each request.
    associatedtype State: RequestState

    /// The most submissions under way: the constant that its manifest names.
    static var submissions: Submissions { get }

    /// Buffers that each queue has beside those of its requests, and that may change places with them; 0: each request's buffer
    /// stays its own. The constant that its manifest names.
    static var spareBuffers: UInt32 { get }

    /// Takes the memory that it needs on a queue beside the requests' own (`Queue.hold`). Called once, before anything else.
    mutating func prepare(on queue: inout Queue<Self>) throws(SystemError)

    /// The queue begins to serve: pushes the first of the queue's own submissions. Called once, when the driver has
    /// taken all fetches, so never in a worker that only rehearses (an upgrade) and must not touch the sockets of the
    /// one that serves.
    mutating func start(on queue: inout Queue<Self>)

    /// A request has arrived. `descriptor` comes from the kernel; the target checks it against its own bounds.
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<Self>) -> Outcome

    /// A submission of a request has completed with `result`: a count, or a negated errno. `key` is the submission's.
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<Self>) -> Outcome

    /// A submission of the queue itself has completed. With the flag IOUring.CompletionFlags.more it is still under
    /// way.
    mutating func finishOwn(_ key: RequestKey, _ completion: CompletionEntry, on queue: inout Queue<Self>)

    // Only of a target whose submissions have a socket:

    /// All completions that were there have been handled: pushes what the socket is to do now (`Queue.pushToSocket`).
    mutating func useSocket(on queue: inout Queue<Self>)

    /// A submission on the socket has completed with `result`. A target that can't go on with its socket says so
    /// (`Queue.giveUp`).
    mutating func finishOnSocket(_ key: RequestKey, result: Int32, on queue: inout Queue<Self>)
}

extension Target {
    @inline(__always)
    static var spareBuffers: UInt32 { 0 }

    mutating func prepare(on queue: inout Queue<Self>) throws(SystemError) {}

    @inline(__always)
    mutating func useSocket(on queue: inout Queue<Self>) {}

    @inline(__always)
    mutating func finishOnSocket(_ key: RequestKey, result: Int32, on queue: inout Queue<Self>) {}

    @inline(__always)
    mutating func start(on queue: inout Queue<Self>) {}

    @inline(__always)
    mutating func finishOwn(_ key: RequestKey, _ completion: CompletionEntry, on queue: inout Queue<Self>) {}
}

/// A target's data for one request. The queue makes one per tag; none is made or reset later, so a target that ends a
/// request leaves its state as the next request needs it.
protocol RequestState: BitwiseCopyable, Sendable {
    init()

    /// Only in a test build: the first bytes of the request's buffer were filled with garbage (Poison.swift).
    mutating func bufferWasFilled(bytes: UInt32)
}

extension RequestState {
    mutating func bufferWasFilled(bytes: UInt32) {}
}

/// The result of a request.
struct Outcome: Equatable, Sendable {
    let rawValue: Int32

    /// Not done yet: a submission is under way, or another completion will end it.
    @inline(__always)
    static var pending: Outcome { Outcome(rawValue: .min) }

    /// Done. For reads and writes `bytes` is the whole request, otherwise 0. A partial result is never passed on,
    /// because the kernel would take a partial zero-copy request for the whole (docs/kernel-facts.md#short-result).
    @inline(__always)
    static func done(_ bytes: UInt32) -> Outcome { Outcome(rawValue: Int32(bitPattern: bytes)) }

    /// Done, with data moved: by far the most frequent end of a request.
    @inline(__always)
    var hasMoved: Bool { rawValue > 0 }

    /// `errno` is positive.
    @inline(__always)
    static func failed(_ errno: Int32) -> Outcome { Outcome(rawValue: -errno) }

    /// A file's positive `errno`, as the writer is told it. The block layer passes few errors on; all others arrive as EIO. It has no
    /// code for a quota or for a limit of the file's size, so these become ENOSPC.
    static func told(_ errno: Int32) -> Int32 { errno == EDQUOT || errno == EFBIG ? ENOSPC : errno }

    /// A file's positive `errno`.
    static func fileFailed(_ errno: Int32) -> Outcome { .failed(told(errno)) }
}

/// The disk's size and the largest request, in 512-byte sectors: the bounds for descriptors.
struct DiskBounds: Equatable, Sendable {
    let sectors: UInt64
    /// Not more than `sectors`.
    let maxSectors: UInt32

    /// Both in bytes.
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
