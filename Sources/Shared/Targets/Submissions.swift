/// How many submissions of a target's can be under way at once on one queue. The ring is made for them, and the engine stops a
/// target that wants more.
///
/// A target's manifest names a constant of this type (`Submissions.loop`), and its code in the worker names the same one. It is
/// inlinable, so that the compiler makes the loop of each target for that target's number.
@frozen
public struct Submissions: Equatable, Sendable {
    /// Of each request, 1 to 256. While the request is the driver's, its fetch or commit is the one.
    public let perRequest: UInt32
    /// Of the queue itself, as a receive on its socket, 0 to 256.
    public let ofQueue: UInt32

    @inlinable @inline(__always)
    public init(perRequest: UInt32 = 1, ofQueue: UInt32 = 0) {
        self.perRequest = perRequest
        self.ofQueue = ofQueue
    }

    /// One submission at a time for each request and none beside: nothing has to be remembered of what is under way. A
    /// constant once the loop is specialised, so that such a target pays for nothing that others need.
    @inlinable @inline(__always)
    public var areSingle: Bool { perRequest == 1 && ofQueue == 0 }

    /// At least as many entries as a queue's ring needs: all that can be pushed and not taken by the kernel yet, because
    /// nothing is pushed for a slot before its last submission has completed. In batch mode a list and a fetch may be on their
    /// way beside.
    public func entries(depth: UInt16, batch: Bool = false) -> UInt32 {
        UInt32(depth) * perRequest + ofQueue + (batch ? Submissions.batchCommands : 0)
    }

    /// What the ring of a queue is asked for: at least a page of entries, which takes no more memory than fewer, and lets the
    /// ring begin again at its first entry less often. One entry of a ring stays free.
    public func ringEntries(depth: UInt16, batch: Bool = false) -> UInt32 {
        max(entries(depth: depth, batch: batch), Submissions.pageOfEntries - 1)
    }

    private static let batchCommands: UInt32 = 2
    /// Entries of 64 bytes in a page of 4 KiB.
    private static let pageOfEntries: UInt32 = 64
}
