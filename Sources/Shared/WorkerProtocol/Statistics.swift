/// The progress of a queue or a device, for the broker's watchdog; unverified.
@frozen
public struct QueueStatistics: Equatable, Sendable {
    /// Requests received from the kernel.
    public var taken: UInt64 = 0
    /// Requests committed to the kernel; never more than `taken`.
    public var committed: UInt64 = 0
    /// Wake-ups of the loop.
    public var turns: UInt64 = 0

    @inlinable
    public init() {}
}

/// The counters of all queues of a device, in a memfd of fixed size. It belongs to the device: a replacement worker
/// continues the counters.
///
/// Each queue has `stride` bytes of 64-bit words, which only its loop writes, with plain stores. The broker does not
/// trust them.
public enum StatisticsPage {
    /// The version of the words' meaning, in `Word.layout` of each queue. Raise it when a word's meaning changes: a
    /// worker keeps serving when ubd is replaced, and the next broker must know what the worker writes.
    @inlinable public static var layout: UInt64 { 1 }

    /// The index of each of a queue's words.
    public enum Word {
        /// Requests committed, one word per operation (`Operation`), whatever their result.
        @inlinable public static var requests: Int { 0 }
        /// Bytes of the successful requests.
        @inlinable public static var bytes: Int { 8 }
        /// The number of failed requests.
        @inlinable public static var errors: Int { 16 }
        /// Requests received from the kernel.
        @inlinable public static var taken: Int { 24 }
        /// Wake-ups of the loop.
        @inlinable public static var turns: Int { 25 }
        /// `StatisticsPage.layout` of the worker that counts; 0 before the first one.
        @inlinable public static var layout: Int { 26 }
        /// Wake-ups by the number of requests that they brought: word n counts those with 2^n to 2^(n+1)-1 requests.
        @inlinable public static var batchSizes: Int { 32 }
        /// Measured requests by their time: see `Latency`.
        @inlinable public static var latencies: Int { 48 }
        @inlinable public static var count: Int { 80 }
    }

    /// `read` and `write` have the driver's numbers, so that the loop need not translate them.
    public enum Operation: Int, CaseIterable, Sendable {
        case read = 0
        case write = 1
        case flush = 2
        case discard = 3
        case writeZeroes = 4
        /// An operation that no target supports.
        case other = 7
    }

    /// The number of size classes of wake-ups.
    @inlinable public static var batchSizes: Int { 16 }

    /// Classes of the time that a request spends in the worker, from the wake-up that brought it to the end of the
    /// wake-up that committed it. Class 0 is below `unit`; class n is from `unit` × 2^(n-1) up to twice that; the last
    /// class is unbounded.
    public enum Latency {
        /// Nanoseconds.
        @inlinable public static var unit: UInt64 { 250 }
        @inlinable public static var classes: Int { 32 }

        /// The class of a time in units of `unit`.
        @inlinable
        public static func index(units: UInt64) -> Int { min(64 - units.leadingZeroBitCount, classes - 1) }

        /// The upper bound of each class in nanoseconds, without the last class, which has none.
        public static var bounds: [UInt64] { (0..<classes - 1).map { unit << UInt64($0) } }
    }

    /// Bytes per queue: a multiple of two cache lines, which processors fetch together, so that no queue waits for
    /// another's writes.
    public static let stride = 640

    /// Size for this many queues in bytes: whole pages of 4096.
    public static func bytes(queues: Int) -> Int { max(1, (queues * stride + 4095) / 4096) * 4096 }

    /// One word of a queue, which may change at any time. `base` is the mapped page.
    public static func word(_ base: UnsafeRawPointer, queue: Int, _ word: Int) -> UInt64 {
        base.load(fromByteOffset: queue * stride + word * 8, as: UInt64.self)
    }

    /// The progress of one queue. Even with arbitrary content `committed` is at most `taken`.
    public static func read(_ base: UnsafeRawPointer, queue: Int) -> QueueStatistics {
        var result = QueueStatistics()
        // Read before `taken`: a request is taken before it is committed.
        for operation in 0..<8 { result.committed &+= word(base, queue: queue, Word.requests + operation) }
        result.taken = max(word(base, queue: queue, Word.taken), result.committed)
        result.turns = word(base, queue: queue, Word.turns)
        return result
    }
}
