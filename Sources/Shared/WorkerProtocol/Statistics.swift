/// How far a queue, or a whole device, is: what the broker's watchdog looks at. A stranger's claims.
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

/// The page in which all queues of a device have their counters: a memfd that can't change its size any more. It belongs
/// to the device: a worker's replacement goes on counting in it.
///
/// Each queue has `stride` bytes of 64-bit words, written by its loop alone with plain stores. To the broker they are a
/// stranger's claims.
public enum StatisticsPage {
    /// Which meaning the words have, in `Word.layout` of each queue. To be raised when one is given another: a worker serves
    /// on when ubd is replaced, and the next broker must know what it wrote.
    @inlinable public static var layout: UInt64 { 1 }

    /// Where a queue's words are.
    public enum Word {
        /// Requests given back, one word for each operation (`Operation`), whatever became of them.
        @inlinable public static var requests: Int { 0 }
        /// Bytes of those that succeeded.
        @inlinable public static var bytes: Int { 8 }
        /// How many of them failed.
        @inlinable public static var errors: Int { 16 }
        /// Requests that came from the kernel.
        @inlinable public static var taken: Int { 24 }
        /// Wake-ups.
        @inlinable public static var turns: Int { 25 }
        /// `StatisticsPage.layout` of the worker that counts; 0 before one does.
        @inlinable public static var layout: Int { 26 }
        /// Wake-ups by how many requests they brought: word n counts those of 2^n to 2^(n+1)-1 requests.
        @inlinable public static var batchSizes: Int { 32 }
        /// Requests whose time was taken, by it: see `Latency`.
        @inlinable public static var latencies: Int { 48 }
        @inlinable public static var count: Int { 80 }
    }

    /// The first two are the driver's own numbers, so that the loop need not translate them.
    public enum Operation: Int, CaseIterable, Sendable {
        case read = 0
        case write = 1
        case flush = 2
        case discard = 3
        case writeZeroes = 4
        /// What no target of ours does.
        case other = 7
    }

    /// How many sizes of wake-ups there are.
    @inlinable public static var batchSizes: Int { 16 }

    /// Classes of the time that a request takes in the worker, from the wake-up that brought it to the end of the one
    /// that gave it back. Class 0 is what took less than `unit`; class n what took from `unit` × 2^(n-1) up to twice that;
    /// the last one has no end.
    public enum Latency {
        /// Nanoseconds.
        @inlinable public static var unit: UInt64 { 250 }
        @inlinable public static var classes: Int { 32 }

        /// The class of a time in `unit`s.
        @inlinable
        public static func index(units: UInt64) -> Int { min(64 - units.leadingZeroBitCount, classes - 1) }

        /// Nanoseconds below which the times of each class lie; the last class has no such bound, so there is one less.
        public static var bounds: [UInt64] { (0..<classes - 1).map { unit << UInt64($0) } }
    }

    /// Bytes from one queue's counters to the next: whole cache lines, and pairs of them, which processors fetch together,
    /// so that no queue waits for another's writes.
    public static let stride = 640

    /// Bytes for so many queues: whole pages of 4096.
    public static func bytes(queues: Int) -> Int { max(1, (queues * stride + 4095) / 4096) * 4096 }

    /// One word of a queue, which may be changing. `base` is where the page is mapped.
    public static func word(_ base: UnsafeRawPointer, queue: Int, _ word: Int) -> UInt64 {
        base.load(fromByteOffset: queue * stride + word * 8, as: UInt64.self)
    }

    /// How far one queue is. Whatever is written there, `committed` is not more than `taken`.
    public static func read(_ base: UnsafeRawPointer, queue: Int) -> QueueStatistics {
        var result = QueueStatistics()
        // In this order: what is given back was taken before.
        for operation in 0..<8 { result.committed &+= word(base, queue: queue, Word.requests + operation) }
        result.taken = max(word(base, queue: queue, Word.taken), result.committed)
        result.turns = word(base, queue: queue, Word.turns)
        return result
    }
}
