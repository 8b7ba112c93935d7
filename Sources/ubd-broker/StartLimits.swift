import Policy

/// Limits how often users' requests may start a worker (adds, upgrades, recoveries), and suspends users whose worker
/// broke its sandbox, so that an attacker with an exploit has few attempts. Replacements of dead workers are not
/// counted here; `DeathLog` limits them.
struct StartLimits {
    /// Why a request may not start a worker now. Times are in seconds, rounded up.
    enum Refusal: Equatable {
        /// `max-starts` is used up.
        case tooOften(limit: UInt64, again: UInt64)
        /// `penalty` applies, after this many violations.
        case penalty(violations: Int, again: UInt64)
    }

    /// A user's starts are counted separately for each line of the access policy.
    private struct Account: Hashable {
        var uid: UInt32
        var line: Int
    }

    private struct Violations {
        var count: Int
        /// The first violation of the last incident and the last violation, in monotonic nanoseconds.
        var began: UInt64
        var last: UInt64
    }

    private static let second: UInt64 = 1_000_000_000
    private static let minute = 60 * second
    /// Seconds.
    static let longestPenalty: UInt64 = 3600
    /// Seconds after the last violation until the user's violations are forgotten.
    static let memory: UInt64 = 86400
    /// Violations within this many seconds of the first count as one: a request that breaks each worker it gets is one
    /// attempt.
    static let oneIncident: UInt64 = 60

    /// The time until which the allowed rate is used up, in monotonic nanoseconds (the generic cell rate algorithm,
    /// ITU-T I.371): a token bucket that needs no refilling.
    private var paidUntil: [Account: UInt64] = [:]
    private var violations: [UInt32: Violations] = [:]

    /// Takes one start of this user under this line. Returns why not when none is left.
    mutating func take(uid: UInt32, line: Int, _ limits: AccessLimits, now: UInt64) -> Refusal? {
        if let refusal = penalty(uid, limits, now) { return refusal }
        guard let most = limits.maxStarts else { return nil }
        let account = Account(uid: uid, line: line)
        let next = max(paidUntil[account] ?? 0, now) + StartLimits.minute / most
        if next > now + StartLimits.minute {
            return .tooOften(limit: most, again: StartLimits.seconds(next - now - StartLimits.minute))
        }
        // Entries whose rate has recovered can be dropped.
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

    /// To be called when a worker of this user broke its sandbox or the protocol.
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
