/// Why a text is no plan of faults: one line for people.
public struct FaultTextError: Error, Equatable, Sendable {
    /// What is wrong, with the value.
    public let message: String
    /// What to do.
    public let remedy: String
}

// Rules as people write them: 'read,write error=EIO rate=1% sectors=0-2047; write delay=5ms'.
extension FaultRule {
    /// Reads one rule: operations, then an action and conditions, in any order.
    public init(text: Substring) throws(FaultTextError) {
        self.init()
        let words = text.split(whereSeparator: { $0 == " " || $0 == "\t" })
        guard let first = words.first else {
            throw FaultTextError(message: "a rule is empty", remedy: "write one, as in 'read error=EIO'")
        }
        operations = try FaultRule.operations(first)
        var hasAction = false
        for word in words.dropFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let value = parts.count == 2 ? String(parts[1]) : nil
            if try takeAction(String(parts[0]), value) {
                guard !hasAction else {
                    throw FaultTextError(
                        message: "the rule '\(text)' has two actions",
                        remedy: "write two rules with ';' between them")
                }
                hasAction = true
            } else {
                try takeCondition(String(parts[0]), value)
            }
        }
        guard hasAction else {
            throw FaultTextError(
                message: "the rule '\(text)' does not say what happens",
                remedy: "add one of error=, delay=, torn=, flip= and stuck")
        }
        guard isSound else { throw FaultTextError(message: "the rule '\(text)' can not be", remedy: remedy) }
    }

    /// What a rule that is not sound lacks.
    private var remedy: String {
        switch action {
        case .torn where operations != .write: "only writes can be torn: begin it with 'write'"
        case .flip where operations != .read: "only reads have bits that flip: begin it with 'read'"
        case .flip: "flip 1 to \(FaultRule.mostFlips) bits"
        case .delay, .exponential:
            "delays are longer than 0 and at most an hour; an exponential one 3 minutes on average"
        default:
            heals
                ? "heal needs 'read', error= and at most \(FaultRule.mostHealed) sectors"
                : "acked is only for torn="
        }
    }

    private static func operations(_ text: Substring) throws(FaultTextError) -> Operations {
        var operations: Operations = []
        for name in text.split(separator: ",", omittingEmptySubsequences: false) {
            switch name {
            case "read": operations.insert(.read)
            case "write": operations.insert(.write)
            case "flush": operations.insert(.flush)
            case "discard": operations.insert(.discard)
            case "all": operations = .all
            default:
                throw FaultTextError(
                    message: "'\(name)' is no kind of request",
                    remedy: "begin each rule with read, write, flush, discard or all, or several with commas")
            }
        }
        return operations
    }

    /// False when the word names no action.
    private mutating func takeAction(_ name: String, _ value: String?) throws(FaultTextError) -> Bool {
        switch (name, value) {
        case ("error", let value?):
            action = .error
            failure = try FaultRule.failure(value)
        case ("delay", let value?): try takeDelay(value)
        case ("torn", let value?):
            action = .torn
            low = UInt32(clamping: try FaultRule.number(value, name))
        case ("flip", let value?):
            action = .flip
            low = UInt32(clamping: try FaultRule.number(value, name))
        case ("stuck", nil): action = .stuck
        default: return false
        }
        return true
    }

    private mutating func takeCondition(_ name: String, _ value: String?) throws(FaultTextError) {
        switch (name, value) {
        case ("rate", let value?): rate = try FaultRule.rate(value)
        case ("after", let value?): after = try FaultRule.number(value, name)
        case ("times", let value?):
            times = try FaultRule.number(value, name)
            guard times > 0 else {
                throw FaultTextError(message: "times can not be 0", remedy: "leave it out for any number of times")
            }
        case ("sectors", let value?):
            let ends = value.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
            first = try FaultRule.number(String(ends[0]), name)
            last = ends.count == 2 ? try FaultRule.number(String(ends[1]), name) : first
            guard first <= last else {
                throw FaultTextError(
                    message: "sectors=\(value) ends before it begins", remedy: "give FIRST-LAST, both included")
            }
        case ("heal", nil): heals = true
        case ("acked", nil): acknowledged = true
        default:
            throw FaultTextError(
                message: "'\(name)\(value.map { "=" + $0 } ?? "")' is no part of a rule",
                remedy: "actions: error=NAME, delay=TIME, torn=SECTORS, flip=BITS, stuck; conditions: rate=PERCENT%, "
                    + "sectors=FIRST-LAST, after=COUNT, times=COUNT, heal, acked")
        }
    }

    /// 5ms, 1ms-10ms or exp:5ms.
    private mutating func takeDelay(_ text: String) throws(FaultTextError) {
        if text.hasPrefix("exp:") {
            action = .exponential
            low = try FaultRule.microseconds(String(text.dropFirst(4)))
            return
        }
        action = .delay
        let ends = text.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
        low = try FaultRule.microseconds(String(ends[0]))
        high = ends.count == 2 ? try FaultRule.microseconds(String(ends[1])) : low
    }

    private static func microseconds(_ text: String) throws(FaultTextError) -> UInt32 {
        for (unit, factor) in [("us", 1), ("ms", 1000), ("s", 1_000_000)] as [(String, UInt64)] {
            guard text.hasSuffix(unit), let number = decimal(String(text.dropLast(unit.count))) else { continue }
            return UInt32(clamping: number.multipliedReportingOverflow(by: factor).overflow ? .max : number * factor)
        }
        throw FaultTextError(
            message: "delay can not be '\(text)'",
            remedy: "give a whole number with us, ms or s, a range as 1ms-10ms, or exp:5ms")
    }

    /// A percentage with at most four decimals.
    private static func rate(_ text: String) throws(FaultTextError) -> UInt32 {
        let parts = text.dropLast().split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
        let decimals = parts.count == 2 ? String(parts[1]) : "0"
        guard text.hasSuffix("%"), let whole = parts.first.flatMap({ decimal(String($0)) }), whole <= 100,
            decimals.utf8.count <= 4,
            let part = decimal(decimals + String(repeating: "0", count: 4 - decimals.utf8.count)),
            case let rate = UInt32(whole * 10_000 + part), (1...always).contains(rate)
        else {
            throw FaultTextError(
                message: "rate can not be '\(text)'", remedy: "give 0.0001% to 100%, with at most four decimals")
        }
        return rate
    }

    private static func failure(_ text: String) throws(FaultTextError) -> Failure {
        for failure in Failure.allCases where failure.name == text { return failure }
        throw FaultTextError(
            message: "error can not be '\(text)'",
            remedy: "give one of " + Failure.allCases.map(\.name).joined(separator: ", "))
    }

    private static func number(_ text: String, _ name: String) throws(FaultTextError) -> UInt64 {
        if let number = decimal(text), number <= UInt64(Int64.max) { return number }
        throw FaultTextError(message: "\(name) can not be '\(text)'", remedy: "give a whole number")
    }

    private static func decimal(_ text: String) -> UInt64? {
        guard !text.isEmpty, text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }) else {
            return nil
        }
        return UInt64(text)
    }
}

extension FaultRule.Failure {
    /// As in a rule.
    public var name: String {
        switch self {
        case .io: "EIO"
        case .noSpace: "ENOSPC"
        case .timeout: "ETIMEDOUT"
        case .medium: "medium"
        case .transport: "transport"
        case .target: "target"
        case .protection: "protection"
        }
    }
}

extension FaultRule: CustomStringConvertible {
    /// The rule as `init(text:)` takes it.
    public var description: String {
        var words = [operations.names.joined(separator: ",")]
        switch action {
        case .delay where low == high: words.append("delay=\(FaultRule.time(low))")
        case .delay: words.append("delay=\(FaultRule.time(low))-\(FaultRule.time(high))")
        case .exponential: words.append("delay=exp:\(FaultRule.time(low))")
        case .error: words.append("error=\(failure.name)")
        case .torn: words.append("torn=\(low)")
        case .flip: words.append("flip=\(low)")
        case .stuck: words.append("stuck")
        }
        if acknowledged { words.append("acked") }
        if heals { words.append("heal") }
        if !isAnywhere { words.append("sectors=\(first)-\(last)") }
        if rate != FaultRule.always { words.append("rate=\(FaultRule.percent(rate))%") }
        if after != 0 { words.append("after=\(after)") }
        if times != 0 { words.append("times=\(times)") }
        return words.joined(separator: " ")
    }

    private static func time(_ microseconds: UInt32) -> String {
        if microseconds.isMultiple(of: 1_000_000) { return "\(microseconds / 1_000_000)s" }
        return microseconds.isMultiple(of: 1000) ? "\(microseconds / 1000)ms" : "\(microseconds)us"
    }

    private static func percent(_ rate: UInt32) -> String {
        let (whole, part) = rate.quotientAndRemainder(dividingBy: 10_000)
        if part == 0 { return "\(whole)" }
        var decimals = String(part + 10_000).dropFirst()
        while decimals.hasSuffix("0") { decimals = decimals.dropLast() }
        return "\(whole).\(decimals)"
    }
}

extension FaultRule.Operations {
    /// Of each kind, in order; one name for all.
    public var names: [String] {
        if self == .all { return ["all"] }
        return [(.read, "read"), (.write, "write"), (.flush, "flush"), (.discard, "discard")]
            .filter { (kind: FaultRule.Operations, _: String) in contains(kind) }.map(\.1)
    }
}
