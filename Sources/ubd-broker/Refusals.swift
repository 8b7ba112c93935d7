import BrokerInterface
import Policy

/// Explains a refusal by the access policy: which rule, which limit, and a remedy.
enum Refusals {
    static func explain(_ refusal: AccessRefusal, _ request: AccessRequest, _ file: String) -> InterfaceError {
        switch refusal {
        case .noRule(let candidates):
            // Nobody can ask for root's own line, but for membership of a group.
            let example =
                candidates.first { $0.isForGroup }?.text ?? "allow group=ubd target=\(request.target)"
            let group = groupName(in: example)
            return .notPermitted(
                message: "not permitted: no rule of \(file) lets you have a \(request.target) device",
                remedy: group.map { "ask the administrator to add you to group \($0) (rule: \(example))" }
                    ?? "ask the administrator for a rule such as: \(example)",
                rule: example)
        case .denied(let rule):
            return .notPermitted(
                message: "not permitted: line \(rule.location.line) of \(file) says '\(rule.text)'",
                remedy: "ask the administrator", rule: rule.text)
        case .readOnlyOnly(let rule):
            return .notPermitted(
                message: "not permitted: line \(rule.location.line) of \(file) gives read-only devices only",
                remedy: "add --read-only, or ask the administrator", rule: rule.text)
        case .overLimit(let rule, "max-devices", 0, _):
            return .quotaReached(
                message: "max-devices=0 of line \(rule.location.line) of \(file) lets you have no device",
                remedy: "ask the administrator for more", limit: "max-devices", value: 0)
        case .overLimit(let rule, "connections", let maximum, let wanted) where rule.limits.connections == nil:
            return .quotaReached(
                message:
                    "\(wanted) connections are more than the \(maximum) that line \(rule.location.line) of \(file) gives "
                    + "without connections=",
                remedy: remedy("connections"), limit: "connections", value: Int64(clamping: maximum))
        case .overLimit(let rule, let limit, let maximum, let wanted):
            return .quotaReached(
                message: "\(wanted) exceeds \(limit)=\(maximum) of line \(rule.location.line) of \(file)",
                remedy: remedy(limit), limit: limit, value: Int64(clamping: maximum))
        case .ioTimeout(let rule, let bounds, let wanted):
            let range = "\(bounds.lowerBound)-\(bounds.upperBound)"
            return .quotaReached(
                message: "an I/O timeout of \(wanted) s is outside of io-timeout=\(range) of line "
                    + "\(rule.location.line) of \(file)",
                remedy: "give --io-timeout within it, or ask the administrator", limit: "io-timeout",
                value: Int64(clamping: wanted < bounds.lowerBound ? bounds.lowerBound : bounds.upperBound))
        case .id(let rule, let allowed, let wanted):
            return .notPermitted(
                message: "device number \(wanted) is outside of ids=\(allowed.text) of line \(rule.location.line) "
                    + "of \(file)",
                remedy: "give one of these with -n, or leave -n out", rule: rule.text)
        case .reservedID(let rule, let holder, let wanted):
            return .notPermitted(
                message: "device number \(wanted) is reserved by line \(holder.location.line) of \(file)",
                remedy: "choose another number, or leave -n out", rule: rule.text)
        case .cpus(let rule, let allowed, let wanted):
            return .notPermitted(
                message: "CPU \(wanted) is outside of cpus=\(allowed.text) of line \(rule.location.line) of \(file)",
                remedy: "give only these with --cpus, or leave --cpus out", rule: rule.text)
        }
    }

    /// `place`: the rule or the users that have these limits.
    static func explain(_ refusal: StartLimits.Refusal, _ limits: AccessLimits, _ place: String) -> InterfaceError {
        switch refusal {
        case .tooOften(let limit, let again):
            return .quotaReached(
                message: "more than max-starts=\(limit) of \(place): adds, upgrades and recoveries in a short time",
                remedy: "try again in \(again) s", limit: "max-starts", value: Int64(clamping: limit),
                again: Int64(clamping: again))
        case .penalty(let violations, let again):
            let often = violations == 1 ? "a worker of yours" : "\(violations) workers of yours within a day"
            return .quotaReached(
                message: "\(often) broke the sandbox, and penalty=\(limits.penalty ?? 0) of \(place) "
                    + "suspends your adds, upgrades and recoveries",
                remedy: "tell the administrator, whose log has 'sandbox-violation'; or try again in \(again) s",
                limit: "penalty", value: Int64(clamping: again))
        }
    }

    private static func remedy(_ limit: String) -> String {
        switch limit {
        case "max-devices": "delete a device first ('ubd list'), or ask the administrator for more"
        case "connections": "make fewer connections to the server, or ask the administrator for more"
        case "memory-disks": "give a smaller --size, delete a memory disk, or ask the administrator for more"
        case "max-memory": "use a smaller depth, fewer queues or a smaller --max-io-size, or delete a device"
        default: "ask for less, or ask the administrator for more"
        }
    }

    private static func groupName(in rule: String) -> String? {
        rule.split(separator: " ").first { $0.hasPrefix("group=") }.map { String($0.dropFirst("group=".count)) }
    }
}

extension AccessRule {
    fileprivate var isForGroup: Bool {
        identities.contains { identity in
            if case .gid = identity { true } else { false }
        }
    }
}
