/// Limits the log lines that each account causes, so that no flood of them displaces the events of devices, which are
/// not limited. The log says how many lines were left out.
struct LogLimits {
    enum Kind: Hashable {
        /// A refusal, or a protocol error: anybody can cause these.
        case refusal
        /// A request that was allowed, or failed afterwards: only a user with a right or a device can cause these.
        case request

        /// This many lines at once, then one per interval in nanoseconds.
        fileprivate var burst: UInt64 { self == .refusal ? 20 : 1200 }
        fileprivate var interval: UInt64 { self == .refusal ? 2_000_000_000 : 50_000_000 }
    }

    /// Suppressed lines of one account and kind.
    struct LeftOut: Equatable {
        /// nil: all accounts that have no entry of their own in the table.
        let account: UInt32?
        let count: Int
        /// Nanoseconds since the first one.
        let duration: UInt64
    }

    private struct Key: Hashable {
        let account: UInt32?
        let kind: Kind
    }

    private struct Bucket {
        /// The time until which the allowed rate is used up (as in `StartLimits`).
        var paidUntil: UInt64 = 0
        var leftOut = 0
        /// The time of the first one.
        var since: UInt64 = 0
    }

    /// The size of the table. When it is full of active accounts, the others share one entry per kind.
    static let mostAccounts = 64
    /// Nanoseconds between two lines about one account's suppressed lines of a kind.
    static let period: UInt64 = 10_000_000_000

    private var buckets: [Key: Bucket] = [:]

    /// Whether a line is written. `account`: nil when unknown.
    mutating func admits(_ kind: Kind, of account: UInt32?, now: UInt64) -> Bool {
        let key = place(for: Key(account: account, kind: kind), now)
        var bucket = buckets[key] ?? Bucket()
        defer { buckets[key] = bucket }
        let next = max(bucket.paidUntil, now) + kind.interval
        if next <= now + kind.burst * kind.interval {
            bucket.paidUntil = next
            return true
        }
        if bucket.leftOut == 0 { bucket.since = now }
        bucket.leftOut += 1
        return false
    }

    private mutating func place(for key: Key, _ now: UInt64) -> Key {
        if buckets[key] != nil || buckets.count < LogLimits.mostAccounts { return key }
        // Entries whose rate has recovered and that suppressed nothing can be dropped.
        buckets = buckets.filter { $0.value.paidUntil > now || $0.value.leftOut > 0 }
        return buckets.count < LogLimits.mostAccounts ? key : Key(account: nil, kind: key.kind)
    }

    /// The numbers of suppressed lines that are due to be logged; all of them at the broker's end.
    mutating func takeLeftOut(now: UInt64, all: Bool = false) -> [LeftOut] {
        var due: [LeftOut] = []
        for (key, bucket) in buckets where bucket.leftOut > 0 && (all || bucket.since + LogLimits.period <= now) {
            due.append(LeftOut(account: key.account, count: bucket.leftOut, duration: now - bucket.since))
            buckets[key]?.leftOut = 0
        }
        return due
    }
}
