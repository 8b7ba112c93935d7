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

    /// What a line of the access policy counts for a user.
    private struct Account: Hashable {
        var uid: UInt32
        var line: Int
    }

    private struct Violations {
        var count: Int
        /// When the last incident began, and its last violation, in monotonic nanoseconds.
        var began: UInt64
        var last: UInt64
    }

    private static let second: UInt64 = 1_000_000_000
    private static let minute = 60 * second
    /// Seconds.
    static let longestPenalty: UInt64 = 3600
    /// Seconds without another after which violations are forgotten.
    static let memory: UInt64 = 86400
    /// Seconds from the first on within which violations are one: a request that breaks each worker that it is given is one attempt.
    static let oneIncident: UInt64 = 60

    /// When all that was asked for would be done at the pace that the limit allows, in monotonic nanoseconds (the generic
    /// cell rate algorithm, ITU-T I.371): a bucket that needs no refilling.
    private var paidUntil: [Account: UInt64] = [:]
    private var violations: [UInt32: Violations] = [:]

    /// Takes one start of that user by that line of the policy; why not, when there is none left.
    mutating func take(uid: UInt32, line: Int, _ limits: AccessLimits, now: UInt64) -> Refusal? {
        if let refusal = penalty(uid, limits, now) { return refusal }
        guard let most = limits.maxStarts else { return nil }
        let account = Account(uid: uid, line: line)
        let next = max(paidUntil[account] ?? 0, now) + StartLimits.minute / most
        if next > now + StartLimits.minute {
            return .tooOften(limit: most, again: StartLimits.seconds(next - now - StartLimits.minute))
        }
        // Accounts that are even say nothing.
        if paidUntil.count >= 256 { paidUntil = paidUntil.filter { $0.value > now } }
        paidUntil[account] = next
        return nil
    }

    private func penalty(_ uid: UInt32, _ limits: AccessLimits, _ now: UInt64) -> Refusal? {
        guard let least = limits.penalty, let known = violations[uid], StartLimits.isRemembered(known, now) else {
            return nil
        }
        let doubled = least << UInt64(min(known.count - 1, 12))
        let end = known.last + min(doubled, StartLimits.longestPenalty) * StartLimits.second
        return end > now ? .penalty(violations: known.count, again: StartLimits.seconds(end - now)) : nil
    }

    /// A worker of that user did what no worker of ours does.
    mutating func noteViolation(uid: UInt32, now: UInt64) {
        violations = violations.filter { StartLimits.isRemembered($0.value, now) }
        var known = violations[uid] ?? Violations(count: 0, began: 0, last: 0)
        if known.count == 0 || now >= known.began + StartLimits.oneIncident * StartLimits.second {
            known.count += 1
            known.began = now
        }
        known.last = now
        violations[uid] = known
    }

    private static func isRemembered(_ known: Violations, _ now: UInt64) -> Bool {
        now < known.last + memory * second
    }

    private static func seconds(_ nanoseconds: UInt64) -> UInt64 { (nanoseconds + second - 1) / second }
}
