import Numbers

/// Parses a line of the access policy: `allow` or `deny`, then `key=value` words in any order.
struct AccessLineParser {
    private(set) var warnings: [PolicyError] = []
    private let line: SourceLine
    private let knownTargets: [String]
    private var identities: [AccessRule.Identity] = []
    private var targets: [String]?
    private var limits = AccessLimits()
    private var seen: Set<String> = []

    init(_ line: SourceLine, targets: [String]) {
        self.line = line
        knownTargets = targets
    }

    mutating func rule(
        user: AccessPolicy.NameResolver, group: AccessPolicy.NameResolver
    ) throws(PolicyError) -> AccessRule {
        var cursor = LineCursor(line)
        cursor.skipBlanks()
        let start = cursor
        guard let verb = cursor.blankSeparated(), verb.text == "allow" || verb.text == "deny" else {
            throw start.expected("'allow' or 'deny'")
        }
        let isAllow = verb.text == "allow"
        while true {
            cursor.skipBlanks()
            if cursor.isAtEnd { break }
            try word(&cursor, isAllow: isAllow, user: user, group: group)
        }
        guard !identities.isEmpty else {
            throw cursor.expected("the users of the line: uid=NUMBER, user=NAME, group=NAME or uid=*")
        }
        guard seen.contains("target") else { throw cursor.expected("target=NAME,… or target=*") }
        return AccessRule(
            isAllow: isAllow, identities: identities, targets: targets, limits: limits, location: verb.location,
            text: cursor.text(from: start))
    }

    private mutating func word(
        _ cursor: inout LineCursor, isAllow: Bool, user: AccessPolicy.NameResolver, group: AccessPolicy.NameResolver
    ) throws(PolicyError) {
        let before = cursor
        guard let key = cursor.word({ !isBlank($0) && $0 != UInt8(ascii: "=") }),
            !cursor.isAtBlank, cursor.take("=")
        else {
            throw before.expected("key=value")
        }
        guard seen.insert(Self.current[key.text] ?? key.text).inserted else {
            throw PolicyError(key.location, "\(printable(key.text))= is in the line already")
        }
        let valueStart = cursor
        guard !cursor.isAtBlank, let value = cursor.blankSeparated()?.text else {
            throw valueStart.expected("a value after \(printable(key.text))=")
        }
        switch key.text {
        case "uid", "user", "group":
            try identity(key.text, value, at: valueStart, isAllow: isAllow, user: user, group: group)
        case "target": try target(value, at: valueStart)
        default:
            let isKnown = try limit(key.text, value, at: valueStart)
            guard isKnown else {
                throw before.expected(Self.keys)
            }
            guard isAllow else {
                throw PolicyError(key.location, "\(key.text)= on a deny line; expected uid, user, group or target")
            }
        }
    }

    /// Keys of earlier versions and their present names.
    private static let current = ["allow-fuse": "allow-other-fs"]

    private static let keys =
        "uid, user, group, target, mode, max-devices, max-queues, max-depth, max-memory, memory-disks, max-size, max-io-size, "
        + "io-timeout, max-starts, penalty, ids, cpus, "
        + "device-memory, user-memory, device-tasks, cpu-weight, cpu-quota, io-bandwidth, io-operations, "
        + "connections, nbd, zero-copy, allow-other-fs, allow-network-fs or trusted-content"

    private mutating func identity(
        _ key: String, _ value: String, at start: LineCursor, isAllow: Bool, user: AccessPolicy.NameResolver,
        group: AccessPolicy.NameResolver
    ) throws(PolicyError) {
        if key == "uid" {
            if value == "*" { return identities.append(.everybody) }
            guard let uid = Self.number(value, below: 0xFFFF_FFFF) else {
                throw start.expected("a user's number or * after uid=")
            }
            return identities.append(.uid(UInt32(uid)))
        }
        if key == "group", let gid = Self.number(value, below: 0xFFFF_FFFF) {
            return identities.append(.gid(UInt32(gid)))
        }
        guard Self.isAccountName(value) else { throw start.expected("the name of a \(key) after \(key)=") }
        guard let number = key == "user" ? user(value) : group(value) else {
            // A deny line that matches nobody would admit the users that it is meant to refuse.
            guard isAllow else { throw start.expected("a \(key) of this host on a deny line") }
            warnings.append(
                PolicyError(start.location, "this host has no \(key) '\(printable(value))': the line matches nobody"))
            return identities.append(.unknown)
        }
        identities.append(key == "user" ? .uid(number) : .gid(number))
    }

    private mutating func target(_ value: String, at start: LineCursor) throws(PolicyError) {
        if value == "*" { return }
        let names = value.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        for name in names where !knownTargets.contains(name) {
            throw start.expected("targets that ubd has (\(knownTargets.joined(separator: ", "))) or *")
        }
        guard Set(names).count == names.count else { throw start.expected("each target once") }
        targets = names
    }

    /// Stores one limit. Returns false for an unknown key.
    private mutating func limit(_ key: String, _ value: String, at start: LineCursor) throws(PolicyError) -> Bool {
        switch Self.current[key] ?? key {
        case "mode":
            guard value == "ro" || value == "rw" else { throw start.expected("mode=ro or mode=rw") }
            limits.readOnlyOnly = value == "ro"
        case "max-devices": limits.maxDevices = try count(value, at: start)
        case "max-queues": limits.maxQueues = try count(value, at: start)
        case "max-depth": limits.maxDepth = try count(value, at: start)
        case "max-memory": limits.maxMemoryBytes = try size(value, at: start)
        case "memory-disks": limits.memoryDisks = try size(value, at: start)
        case "max-size": limits.maxSizeBytes = try size(value, at: start)
        case "max-io-size": limits.maxIOBytes = try size(value, at: start)
        case "io-timeout": limits.ioTimeout = try seconds(value, at: start)
        case "max-starts": limits.maxStarts = try number(value, 1...1_000_000, at: start)
        case "penalty": limits.penalty = try number(value, 1...3600, at: start)
        case "ids": limits.ids = try list(value, AccessPolicy.greatestID, at: start)
        case "cpus": limits.cpus = try list(value, AccessPolicy.greatestCPU, at: start)
        case "device-memory": limits.deviceMemory = try groupSize(value, at: start)
        case "user-memory": limits.userMemory = try groupSize(value, at: start)
        case "device-tasks": limits.deviceTasks = try number(value, 1...4_194_304, at: start)
        case "cpu-weight": limits.cpuWeight = try number(value, 1...10_000, at: start)
        case "cpu-quota": limits.cpuQuota = try number(value, 1...1_000_000, at: start)
        case "io-bandwidth": limits.ioBandwidth = try groupSize(value, at: start)
        case "io-operations": limits.ioOperations = try count(value, at: start)
        case "zero-copy": limits.zeroCopy = try yes(value, at: start)
        case "allow-other-fs": limits.otherFileSystem = try yes(value, at: start)
        case "allow-network-fs": limits.networkFileSystem = try yes(value, at: start)
        case "connections": limits.connections = try number(value, 1...16, at: start)
        case "nbd":
            guard value == "local" || value == "any" else { throw start.expected("nbd=local or nbd=any") }
            limits.anyServer = value == "any"
        case "trusted-content": limits.trustedContent = try yes(value, at: start)
        default: return false
        }
        return true
    }

    private func count(_ value: String, at start: LineCursor) throws(PolicyError) -> UInt64 {
        try number(value, 1...UInt64(UInt32.max), at: start)
    }

    private func number(
        _ value: String, _ range: ClosedRange<UInt64>, at start: LineCursor
    ) throws(PolicyError) -> UInt64 {
        guard let number = Self.number(value), range.contains(number) else {
            throw start.expected("a number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    /// Bytes; a suffix K, M, G or T multiplies by a power of 1024.
    private func size(_ value: String, at start: LineCursor) throws(PolicyError) -> UInt64 {
        let wanted = "bytes, or a number with K, M, G or T (powers of 1024), from 1 to below 2^64"
        let power = value.last.flatMap { ["K", "M", "G", "T"].firstIndex(of: $0) }
        guard let count = Self.number(power == nil ? value[...] : value.dropLast()), count > 0 else {
            throw start.expected(wanted)
        }
        let (bytes, overflow) = count.multipliedReportingOverflow(by: 1 << (10 * UInt64(power.map { $0 + 1 } ?? 0)))
        if overflow { throw start.expected(wanted) }
        return bytes
    }

    /// A size that every limit file of a control group accepts: page counters and 63-bit numbers.
    private func groupSize(_ value: String, at start: LineCursor) throws(PolicyError) -> UInt64 {
        let bytes = try size(value, at: start)
        guard (4096...(1 << 62)).contains(bytes) else { throw start.expected("from 4096 bytes to 4194304T") }
        return bytes
    }

    /// `2-30`, or `30` for exactly 30.
    private func seconds(_ value: String, at start: LineCursor) throws(PolicyError) -> ClosedRange<UInt64> {
        let ends = value.split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false)
        guard let least = Self.number(ends[0], below: 3601), let most = Self.number(ends[ends.count - 1], below: 3601),
            2 <= least, least <= most
        else { throw start.expected("seconds from 2 to 3600, as in 30 or 5-60") }
        return least...most
    }

    /// `0-3,8`.
    private func list(_ value: String, _ highest: Int, at start: LineCursor) throws(PolicyError) -> NumberList {
        guard let list = NumberList(value, highest: highest) else {
            throw start.expected("numbers up to \(highest) and ranges, as in 0-3,8")
        }
        return list
    }

    private func yes(_ value: String, at start: LineCursor) throws(PolicyError) -> Bool {
        guard value == "yes" || value == "no" else { throw start.expected("yes or no") }
        return value == "yes"
    }

    /// Only decimal digits without leading zero; Swift's conversion would accept a sign.
    private static func number(_ text: some StringProtocol, below bound: UInt64 = .max) -> UInt64? {
        guard text.utf8.allSatisfy(\.isDigit), text == "0" || !text.hasPrefix("0"), let number = UInt64(text),
            number < bound
        else { return nil }
        return number
    }

    /// Names as useradd(8) accepts them, plus dots and '@' for names from a directory service.
    private static func isAccountName(_ text: String) -> Bool {
        let marks: [UInt8] = [UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "@")]
        guard let first = text.utf8.first, isWordByte(first), !first.isDigit, text.utf8.count < 256 else {
            return false
        }
        return text.utf8.allSatisfy { isWordByte($0) || marks.contains($0) }
    }
}
