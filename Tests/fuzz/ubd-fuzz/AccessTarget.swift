import Numbers
import Policy

/// An accepted policy decides as its text says: nothing is allowed that no line allows (a second, plain reading of the
/// text says so), and it means the same when it is written from its rules' own texts.
func testAccessPolicy(_ input: [UInt8]) {
    let users: [String: UInt32] = ["alice": 1000, "bob": 1001]
    let groups: [String: UInt32] = ["ubd": 990, "staff": 50]
    func parse(_ bytes: [UInt8]) throws(PolicyError) -> AccessPolicy {
        try AccessPolicy(
            parsing: bytes, file: "a", targets: ["null", "loop", "nbd", "memory"], user: { users[$0] },
            group: { groups[$0] })
    }
    guard let policy = try? parse(input) else { return }
    let again = try? parse(Array(policy.rules.map(\.text).joined(separator: "\n").utf8))
    require(again?.rules.count == policy.rules.count, "refused when written anew: \(policy.rules.map(\.text))")
    for (old, new) in zip(policy.rules, again?.rules ?? []) {
        require(
            old.isAllow == new.isAllow && old.identities == new.identities && old.targets == new.targets
                && old.limits == new.limits, "\(old) became \(new)")
        require(!old.identities.isEmpty && (old.isAllow || old.limits == AccessLimits()), "\(old)")
    }
    let lines = plainLines(input)
    require(lines.count == policy.rules.count, "\(policy.rules.count) rules of \(lines.count) lines")
    let peers = [
        AccessPeer(uid: 0, groups: [0]), AccessPeer(uid: 1000, groups: [1000, 990]),
        AccessPeer(uid: 1001, groups: [50]), AccessPeer(uid: 4_294_967_295, groups: []),
    ]
    for peer in peers {
        for request in requests { check(policy, lines, peer, request) }
    }
}

private let requests = [
    AccessRequest(target: "null", readOnly: false, queues: 1, depth: 128, maxIOBytes: 524_288, sizeBytes: nil),
    AccessRequest(
        target: "loop", readOnly: true, queues: 4, depth: 4096, maxIOBytes: 1 << 25, sizeBytes: 1 << 40, ioTimeout: 30,
        id: 3, cpus: NumberList([0...1, 7...7])),
    AccessRequest(
        target: "Null", readOnly: true, queues: 1, depth: 1, maxIOBytes: 4096, sizeBytes: 512,
        id: 1_048_575),
    AccessRequest(
        target: "loop", readOnly: false, queues: .max, depth: .max, maxIOBytes: .max, sizeBytes: .max,
        id: .max, cpus: NumberList([64...64])),
    AccessRequest(
        target: "nbd", readOnly: false, queues: 5, depth: 1, maxIOBytes: 4096, sizeBytes: 4096, connections: 5),
    AccessRequest(
        target: "memory", readOnly: false, queues: 1, depth: 128, maxIOBytes: 4096, sizeBytes: 1 << 29,
        diskBytes: 1 << 29),
    AccessRequest(
        target: "memory", readOnly: false, queues: 1, depth: 1, maxIOBytes: 4096, sizeBytes: .max, diskBytes: .max),
]
private let usage = AccessUsage(devices: 3, memoryBytes: 64 << 20, diskBytes: 32 << 20)

private func check(_ policy: AccessPolicy, _ lines: [PlainLine], _ peer: AccessPeer, _ request: AccessRequest) {
    let expected = lines.first { $0.fits(peer, request.target) }
    let decision = policy.decide(peer, request, usage: usage)
    switch decision {
    case .allowed(let rule):
        require(expected?.verb == "allow", "\(rule.text) allows \(request) to \(peer), the text does not")
        require(expected?.admits(request) == true, "\(rule.text) allows \(request), its limits do not")
        require(expected?.admitsNumbers(of: request, lines) == true, "\(rule.text) allows the numbers of \(request)")
        checkAutomatic(policy, lines, rule, expected!)
    case .refused(.noRule(let candidates)):
        require(expected == nil, "\(peer) has no rule for \(request), but a line")
        require(candidates.allSatisfy(\.isAllow), "\(candidates)")
    case .refused(.denied(let rule)): require(expected?.verb == "deny", "\(rule.text) denies, the text does not")
    case .refused(let why):
        require(
            expected?.verb == "allow" && !(expected!.admits(request) && expected!.admitsNumbers(of: request, lines)),
            "refused although it fits: \(why)")
    }
}

/// A number that comes by itself is one that no line names, or else one of the line's own.
private func checkAutomatic(_ policy: AccessPolicy, _ lines: [PlainLine], _ rule: AccessRule, _ line: PlainLine) {
    let lists = policy.automaticIDs(for: rule)
    for number in [0, 1, 3, 15, 16, 100, 1_048_575] {
        let named = lines.contains { $0.names("ids", number) }
        require(lists[0].contains(number) == !named, "\(number) of \(lists[0])")
        require((lists.count > 1 && lists[1].contains(number)) == line.names("ids", number), "\(number) of \(lists)")
    }
}

/// A line read as an administrator does: words, and what stands before and after their `=`.
private struct PlainLine {
    let verb: String
    let values: [String: String]

    func fits(_ peer: AccessPeer, _ target: String) -> Bool {
        let users = ["alice": "1000", "bob": "1001"]
        let groups = ["ubd": "990", "staff": "50"]
        if let uid = values["uid"], uid != "*", uid != "\(peer.uid)" { return false }
        if let user = values["user"], users[user] != "\(peer.uid)" { return false }
        if let group = values["group"] {
            let number = groups[group] ?? group
            guard peer.groups.contains(where: { "\($0)" == number }) else { return false }
        }
        guard let targets = values["target"] else { return false }
        return targets == "*" || targets.split(separator: ",").contains { $0 == target }
    }

    func admits(_ request: AccessRequest) -> Bool {
        if values["mode"] == "ro", !request.readOnly { return false }
        var memory: UInt64 = 1
        for factor in [request.queues, request.depth, request.maxIOBytes] {
            let product = memory.multipliedReportingOverflow(by: factor)
            memory = product.overflow ? .max : product.partialValue
        }
        let total = memory.addingReportingOverflow(usage.memoryBytes)
        let wanted: [(String, UInt64)] = [
            ("max-devices", usage.devices + 1), ("max-queues", request.queues), ("max-depth", request.depth),
            ("max-io-size", request.maxIOBytes), ("max-memory", total.overflow ? .max : total.partialValue),
            ("max-size", request.sizeBytes ?? 0),
            ("device-memory", plus(plus(memory, 64 << 20), request.diskBytes)),
            (
                "user-memory",
                plus(
                    plus(plus(memory, usage.memoryBytes), (usage.devices + 1) * (64 << 20)),
                    plus(request.diskBytes, usage.diskBytes))
            ),
            ("memory-disks", request.diskBytes == 0 ? 0 : plus(request.diskBytes, usage.diskBytes)),
            ("connections", request.connections ?? 0),
            ("device-tasks", request.queues > 1 << 40 ? .max : 2 * (11 * request.queues + 1)),
        ]
        // The limits that hold when they are not written.
        if values["memory-disks"] == nil, request.diskBytes > 0 { return false }
        if values["connections"] == nil, request.connections ?? 0 > 4 { return false }
        for (key, value) in wanted { if let most = values[key].map(number), value > most { return false } }
        guard let seconds = request.ioTimeout, let bounds = values["io-timeout"] else { return true }
        let ends = bounds.split(separator: "-").compactMap { UInt64($0) }
        return ends.first! <= seconds && seconds <= ends.last!
    }

    /// Each number alone, as somebody who reads the line would compare it.
    func names(_ key: String, _ number: Int) -> Bool {
        (values[key] ?? "").split(separator: ",").contains { part in
            let ends = part.split(separator: "-").map { Int($0)! }
            return ends.first! <= number && number <= ends.last!
        }
    }

    func admitsNumbers(of request: AccessRequest, _ lines: [PlainLine]) -> Bool {
        if let id = request.id.map({ Int(clamping: $0) }) {
            let isBound = values["ids"] != nil || lines.contains { $0.names("ids", id) }
            if isBound, !names("ids", id) { return false }
        }
        return values["cpus"] == nil || (request.cpus?.ranges.flatMap { $0 } ?? []).allSatisfy { names("cpus", $0) }
    }

    private func plus(_ one: UInt64, _ two: UInt64) -> UInt64 {
        let sum = one.addingReportingOverflow(two)
        return sum.overflow ? .max : sum.partialValue
    }

    private func number(_ text: String) -> UInt64 {
        let shifts: [Character: UInt64] = ["K": 10, "M": 20, "G": 30, "T": 40]
        guard let shift = shifts[text.last!] else { return UInt64(text)! }
        return UInt64(text.dropLast())! << shift
    }
}

private func plainLines(_ input: [UInt8]) -> [PlainLine] {
    input.split(separator: UInt8(ascii: "\n")).compactMap { line in
        let code = line.prefix { $0 != UInt8(ascii: "#") }
        let words = code.split { $0 == 0x20 || $0 == 0x09 }.map { String(decoding: $0, as: UTF8.self) }
        guard let verb = words.first else { return nil }
        let pairs = words.dropFirst().map { word in
            let parts = word.split(separator: "=", maxSplits: 1)
            return (String(parts[0]), String(parts.last!))
        }
        return PlainLine(verb: verb, values: Dictionary(pairs) { first, _ in first })
    }
}
