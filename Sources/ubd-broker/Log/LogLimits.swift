/// How many lines of the log one account can cause. What clients ask for is bounded by account, so that no flood of it
/// displaces what happens to devices, which is not bounded; how much was left out is told.
struct LogLimits {
    enum Kind: Hashable {
        /// Something was refused, or a client was no client: anybody can cause that.
        case refusal
        /// Something was allowed, or failed after it was: only who has a right or a device can cause that.
        case request

        /// So many lines at once, and then one in so many nanoseconds.
        fileprivate var burst: UInt64 { self == .refusal ? 20 : 1200 }
        fileprivate var interval: UInt64 { self == .refusal ? 2_000_000_000 : 50_000_000 }
    }

    /// An account's lines of one kind that were left out.
    struct LeftOut: Equatable {
        /// nil: those of all accounts for which there was no place in the table.
        let account: UInt32?
        let count: Int
        /// Since when, in nanoseconds.
        let duration: UInt64
    }

    private struct Key: Hashable {
        let account: UInt32?
        let kind: Kind
    }

    private struct Bucket {
        /// When all lines would have been written at the pace that is allowed (as in `StartLimits`).
        var paidUntil: UInt64 = 0
        var leftOut = 0
        /// Since the first one of them.
        var since: UInt64 = 0
    }

    /// Places in the table. When all are taken by accounts that are busy, the others share one for each kind.
    static let mostAccounts = 64
    /// Nanoseconds between two lines that say how much of one account and kind was left out.
    static let period: UInt64 = 10_000_000_000

    private var buckets: [Key: Bucket] = [:]

    /// Whether a line is written. `account`: nil when nobody knows whose it is.
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
        // Accounts that are even say nothing.
        buckets = buckets.filter { $0.value.paidUntil > now || $0.value.leftOut > 0 }
        return buckets.count < LogLimits.mostAccounts ? key : Key(account: nil, kind: key.kind)
    }

    /// What was left out and is due to be told; everything at the end.
    mutating func takeLeftOut(now: UInt64, all: Bool = false) -> [LeftOut] {
        var due: [LeftOut] = []
        for (key, bucket) in buckets where bucket.leftOut > 0 && (all || bucket.since + LogLimits.period <= now) {
            due.append(LeftOut(account: key.account, count: bucket.leftOut, duration: now - bucket.since))
            buckets[key]?.leftOut = 0
        }
        return due
    }
}
