import Policy

/// How often users' requests may start a worker (adds, upgrades, recoveries), and which users get none for a while because a
/// worker of theirs broke its sandbox: whoever has taken a worker over must not try again as often as he likes. Replacements
/// of workers that died are not counted here; `DeathLog` bounds them.
struct StartLimits {
    /// Why a request may start none now. Times are seconds, rounded up.
    enum Refusal: Equatable {
        /// `max-starts` is used up until then.
        case tooOften(limit: UInt64, again: UInt64)
        /// `penalty`, for so many violations.
        case penalty(violations: Int, again: UInt64)
    }

    /// What is known of a user. Times are monotonic nanoseconds.
    private struct Record {
        /// When all that was asked for would be done at the pace that the limit allows (the generic cell rate algorithm,
        /// ITU-T I.371): a bucket that needs no refilling.
        var paidUntil: UInt64 = 0
        var violations = 0
        var lastViolation: UInt64 = 0
    }

    private static let second: UInt64 = 1_000_000_000
    private static let minute = 60 * second
    /// Seconds.
    static let longestPenalty: UInt64 = 3600
    /// Seconds without another after which violations are forgotten.
    static let memory: UInt64 = 86400

    private var records: [UInt32: Record] = [:]

    /// Takes one start of that user; why not, when there is none left.
    mutating func take(uid: UInt32, _ limits: AccessLimits, now: UInt64) -> Refusal? {
        var record = records[uid] ?? Record()
        if let least = limits.penalty, isRemembered(record, now) {
            let doubled = least << UInt64(min(record.violations - 1, 12))
            let end = record.lastViolation + min(doubled, StartLimits.longestPenalty) * StartLimits.second
            if end > now { return .penalty(violations: record.violations, again: StartLimits.seconds(end - now)) }
        }
        guard let most = limits.maxStarts else { return nil }
        let interval = StartLimits.minute / most
        let next = max(record.paidUntil, now) + interval
        if next > now + StartLimits.minute {
            return .tooOften(limit: most, again: StartLimits.seconds(next - now - StartLimits.minute))
        }
        record.paidUntil = next
        remember(record, uid, now)
        return nil
    }

    /// A worker of that user did what no worker of ours does.
    mutating func noteViolation(uid: UInt32, now: UInt64) {
        var record = records[uid] ?? Record()
        if !isRemembered(record, now) { record.violations = 0 }
        record.violations += 1
        record.lastViolation = now
        remember(record, uid, now)
    }

    private func isRemembered(_ record: Record, _ now: UInt64) -> Bool {
        record.violations > 0 && now < record.lastViolation + StartLimits.memory * StartLimits.second
    }

    /// Records that say nothing any more go when there are many.
    private mutating func remember(_ record: Record, _ uid: UInt32, _ now: UInt64) {
        if records.count >= 256 { records = records.filter { $0.value.paidUntil > now || isRemembered($0.value, now) } }
        records[uid] = record
    }

    private static func seconds(_ nanoseconds: UInt64) -> UInt64 { (nanoseconds + second - 1) / second }
}
