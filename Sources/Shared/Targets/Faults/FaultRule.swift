/// One rule of a plan of faults: which requests it is about, which of them it strikes, and what becomes of those.
///
/// A plain value of fixed size, so that a sealed worker can take it from a file without memory for it.
public struct FaultRule: Equatable, Sendable, BitwiseCopyable {
    /// Kinds of requests.
    public struct Operations: OptionSet, Sendable, BitwiseCopyable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let read = Operations(rawValue: 1 << 0)
        public static let write = Operations(rawValue: 1 << 1)
        public static let flush = Operations(rawValue: 1 << 2)
        public static let discard = Operations(rawValue: 1 << 3)
        public static let all: Operations = [.read, .write, .flush, .discard]
    }

    /// What becomes of a request.
    public enum Action: UInt8, Sendable, CaseIterable, BitwiseCopyable {
        /// It waits, from `low` to `high` microseconds, each time as likely, and goes on.
        case delay = 1
        /// It waits `low` microseconds on average, distributed exponentially, and goes on.
        case exponential
        /// It fails, and moves no data.
        case error
        /// Of a write only the first `low` sectors are written; then it fails, or (`acknowledged`) it looks as if all were.
        case torn
        /// `low` bits of what a read returns are wrong.
        case flip
        /// It is not answered before the plan changes or the device ends.
        case stuck
    }

    /// The error that a request ends with.
    public enum Failure: UInt8, Sendable, CaseIterable, BitwiseCopyable {
        case io
        case noSpace
        case timeout
        case medium
        case transport
        case target
        case protection
    }

    public var operations: Operations = .all
    public var action: Action = .error
    public var failure: Failure = .io
    /// A write makes the sectors good that it covers (reads that fail).
    public var heals = false
    /// A torn write looks like a whole one.
    public var acknowledged = false
    /// Of a million requests that the rule is about, so many are struck; 1 to 1,000,000.
    public var rate: UInt32 = FaultRule.always
    /// The first and last 512-byte sector that a request must touch; a flush touches none, so it needs all of them.
    public var first: UInt64 = 0
    public var last: UInt64 = .max
    /// Requests that pass before the first one is struck.
    public var after: UInt64 = 0
    /// The most requests that are struck; 0: any number.
    public var times: UInt64 = 0
    /// As the action says.
    public var low: UInt32 = 0
    public var high: UInt32 = 0

    public static let always: UInt32 = 1_000_000
    /// Microseconds: an hour.
    public static let longestDelay: UInt32 = 3_600_000_000
    /// Sectors that all healing rules of a plan may have together: the worker has a bit for each.
    public static let mostHealed: UInt64 = 65_536
    /// Bits that one read may have wrong.
    public static let mostFlips: UInt32 = 64

    public init() {}

    /// It is about requests anywhere.
    public var isAnywhere: Bool { first == 0 && last == .max }

    /// Whether its parts go together. What a worker reads must pass, whoever wrote it.
    public var isSound: Bool {
        guard !operations.isEmpty, operations.isSubset(of: .all), (1...FaultRule.always).contains(rate), first <= last
        else { return false }
        if heals { guard action == .error, operations == .read, healed <= FaultRule.mostHealed else { return false } }
        if acknowledged, action != .torn { return false }
        if action != .error, failure != .io { return false }
        switch action {
        case .delay: return low <= high && high <= FaultRule.longestDelay && high > 0
        case .exponential: return (1...FaultRule.longestDelay / 20).contains(low) && high == 0
        case .error, .stuck: return low == 0 && high == 0
        case .torn: return operations == .write && high == 0
        case .flip: return operations == .read && (1...FaultRule.mostFlips).contains(low) && high == 0
        }
    }

    /// Sectors for which it needs a bit.
    public var healed: UInt64 { heals ? (last - first == .max ? .max : last - first + 1) : 0 }
}

// The rule as eight words of 64 bits.
extension FaultRule {
    public static let words = 8

    /// Writes its words to `words`.
    public func encode(to words: UnsafeMutablePointer<UInt64>) {
        var head = UInt64(operations.rawValue) | UInt64(action.rawValue) << 8 | UInt64(failure.rawValue) << 16
        head |= (heals ? 1 : 0) << 24 | (acknowledged ? 1 : 0) << 25 | UInt64(rate) << 32
        words[0] = head
        words[1] = first
        words[2] = last
        words[3] = after
        words[4] = times
        words[5] = UInt64(low) | UInt64(high) << 32
        words[6] = 0
        words[7] = 0
    }

    /// nil when the words are no sound rule.
    public init?(_ words: UnsafePointer<UInt64>) {
        let head = words[0]
        guard let action = Action(rawValue: UInt8(truncatingIfNeeded: head >> 8)),
            let failure = Failure(rawValue: UInt8(truncatingIfNeeded: head >> 16)),
            head >> 26 & 0x3f == 0, words[6] == 0, words[7] == 0
        else { return nil }
        operations = Operations(rawValue: UInt8(truncatingIfNeeded: head))
        self.action = action
        self.failure = failure
        heals = head >> 24 & 1 == 1
        acknowledged = head >> 25 & 1 == 1
        rate = UInt32(truncatingIfNeeded: head >> 32)
        first = words[1]
        last = words[2]
        after = words[3]
        times = words[4]
        low = UInt32(truncatingIfNeeded: words[5])
        high = UInt32(truncatingIfNeeded: words[5] >> 32)
        guard isSound else { return nil }
    }
}
