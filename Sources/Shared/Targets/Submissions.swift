/// The maximum number of a target's submissions in flight on one queue. The ring has room for them, and the engine
/// stops a target that exceeds it.
///
/// A target's manifest names a constant of this type (`Submissions.loop`), and its code in the worker names the same
/// constant. It is inlinable, so that the compiler specializes each target's loop for it.
@frozen
public struct Submissions: Equatable, Sendable {
    /// Per request, 1 to 256. While the driver has the request, its fetch or commit is this submission.
    public let perRequest: UInt32
    /// Of the queue itself, for example a timer; 0 to 256.
    public let ofQueue: UInt32
    /// On the queue's socket, which has a ring of its own, 0 to 256. Not 0: the first of the queue itself is the engine's, for the
    /// event by which that ring wakes the queue.
    public let onSocket: UInt32

    @inlinable @inline(__always)
    public init(perRequest: UInt32 = 1, ofQueue: UInt32 = 0, onSocket: UInt32 = 0) {
        self.perRequest = perRequest
        self.ofQueue = ofQueue
        self.onSocket = onSocket
    }

    /// A queue has a second ring, for its socket. A constant once the loop is specialised.
    @inlinable @inline(__always)
    public var hasSocket: Bool { onSocket != 0 }

    /// Whether each request has one submission at a time and the queue has none, so that no bookkeeping is needed. It
    /// is constant in the specialized loop, so such a target does not pay for the bookkeeping of others.
    @inlinable @inline(__always)
    public var areSingle: Bool { perRequest == 1 && ofQueue == 0 && onSocket == 0 }

    /// The number of entries that a queue's ring needs: no slot is pushed again before its last submission has
    /// completed, so no more can be pending. Batch mode adds a commit list and a fetch.
    public func entries(depth: UInt16, batch: Bool = false) -> UInt32 {
        UInt32(depth) * perRequest + ofQueue + (batch ? Submissions.batchCommands : 0)
    }

    /// The number of entries to request for a queue's ring: at least a page of them, which takes no more memory than
    /// fewer, and makes the ring wrap around less often. One entry of a ring stays free.
    public func ringEntries(depth: UInt16, batch: Bool = false) -> UInt32 {
        max(entries(depth: depth, batch: batch), Submissions.pageOfEntries - 1)
    }

    /// What the ring of a queue's socket is asked for.
    public var socketRingEntries: UInt32 { max(onSocket, Submissions.pageOfEntries - 1) }

    private static let batchCommands: UInt32 = 2
    /// Entries of 64 bytes in a page of 4 KiB.
    private static let pageOfEntries: UInt32 = 64
}
