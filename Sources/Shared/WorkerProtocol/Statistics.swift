/// What a queue's loop tells the world while it serves: plain counters in shared memory, written by the loop alone, once
/// for each wake-up. To the broker they are a stranger's claims.
@frozen
public struct QueueStatistics: Equatable, Sendable {
    /// Requests that came from the kernel.
    public var taken: UInt64 = 0
    /// Requests that went back to it. Never more than `taken`.
    public var committed: UInt64 = 0
    /// Wake-ups.
    public var turns: UInt64 = 0

    @inlinable
    public init() {}
}

/// The page in which all queues of a device have their counters: a memfd that can't change its size any more.
public enum StatisticsPage {
    /// Bytes from one queue's counters to the next: two cache lines, so that no queue waits for another's writes.
    public static let stride = 128

    /// Bytes for so many queues: whole pages of 4096.
    public static func bytes(queues: Int) -> Int { max(1, (queues * stride + 4095) / 4096) * 4096 }

    /// Reads one queue's counters, which may be changing. `base` is where the page is mapped.
    public static func read(_ base: UnsafeRawPointer, queue: Int) -> QueueStatistics {
        base.loadUnaligned(fromByteOffset: queue * stride, as: QueueStatistics.self)
    }
}
