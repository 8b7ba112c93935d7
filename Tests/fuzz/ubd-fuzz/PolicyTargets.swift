@testable import Policy
@testable import PolicyCompiler

/// A policy and the file that it may include: what stands behind a line `%% include` is `other`.
private struct PolicyFiles {
    let main: [UInt8]
    let other: [UInt8]
    private struct Missing: Error {}

    init(_ input: [UInt8]) {
        let mark = Array("%% include\n".utf8)
        let place = input.indices.first { input[$0] == mark[0] && input[$0...].starts(with: mark) } ?? input.count
        main = Array(input[..<place])
        other = Array(input[min(place + mark.count, input.count)...])
    }

    func read(_ name: String) throws -> [UInt8] {
        switch name {
        case "main": main
        case "other": other
        default: throw Missing()
        }
    }
}

private func checkLocation(_ error: PolicyError, _ files: PolicyFiles) {
    let text = error.location.file == "other" ? files.other : files.main
    let lines = text.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
    let place = error.location
    require(lines.indices.contains(place.line - 1), "\(error): there are \(lines.count) lines")
    require((1...lines[place.line - 1].count + 1).contains(place.column), "\(error)")
    require(error.message.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x7F }, "\(error)")
}

// MARK: System calls

/// An accepted policy has rules that fit together, means the same when written anew, and compiles without a trap.
func testSeccompPolicy(_ input: [UInt8]) {
    let files = PolicyFiles(input)
    let policy: SeccompPolicy
    do { policy = try SeccompPolicy(parsing: "main", read: files.read) } catch { return checkLocation(error, files) }
    require((1...400).contains(policy.rules.count), "\(policy.rules.count) rules")
    require((try? SeccompPolicy(parsing: "main", read: files.read)) == policy, "another policy the second time")
    var text = ""
    for rule in policy.rules {
        check(rule)
        text += line(rule)
    }
    let again = try? SeccompPolicy(parsing: "main") { _ in Array(text.utf8) }
    require(again?.rules.count == policy.rules.count, "refused when written anew:\n\(text)")
    for (old, new) in zip(policy.rules, again?.rules ?? []) {
        require(
            old.name == new.name && old.isOptional == new.isOptional && old.architecture == new.architecture
                && old.verdict == new.verdict, "\(old) became \(new)")
    }
    // libseccomp takes a hundred times as long as all else: some of the short ones.
    if policy.rules.count <= 6, isSample(input, oneIn: 128) { testCompiler(policy) }
}

private func check(_ rule: SeccompRule) {
    if DangerousCalls.contain(rule.name) { require(rule.reason?.isEmpty == false, "\(rule.name) without a reason") }
    switch rule.verdict {
    case .allow: break
    case .fail(let errno): require((1...4095).contains(errno), "\(rule)")
    case .test(let alternatives, let errno):
        require(!alternatives.isEmpty && errno.map { (1...4095).contains($0) } ?? true, "\(rule)")
        for tests in alternatives {
            require(!tests.isEmpty && zip(tests, tests.dropFirst()).allSatisfy { $0.index < $1.index }, "\(rule)")
            require(
                tests.allSatisfy { (0...5).contains($0.index) && $0.mask != 0 && $0.value & ~$0.mask == 0 }, "\(rule)")
        }
        if alternatives.count <= 2 { testComplement(alternatives) }
    }
}

/// A call either passes an alternative or falls under exactly one of the complement's.
private func testComplement(_ alternatives: [[ArgumentTest]]) {
    guard let others = complement(of: alternatives, limit: 256) else { return }
    let tests = alternatives.joined()
    for flip in [0, 1, UInt64(1) << 63, .max] {
        var arguments = [UInt64](repeating: flip, count: 6)
        for test in tests { arguments[test.index] = test.value ^ flip }
        let passes = { (tests: [ArgumentTest]) in tests.allSatisfy { arguments[$0.index] & $0.mask == $0.value } }
        let allowed = alternatives.contains(where: passes)
        let refused = others.count(where: passes)
        require(refused == (allowed ? 0 : 1), "\(arguments): allowed \(allowed), in \(refused) of the complement")
    }
}

/// The rule in the grammar's own words.
private func line(_ rule: SeccompRule) -> String {
    var text = (rule.isOptional ? "?" : "") + rule.name + ": "
    switch rule.verdict {
    case .allow: text += "allow"
    case .fail(let errno): text += "return \(errno)"
    case .test(let alternatives, let errno):
        text += alternatives.map { $0.map(words).joined(separator: " && ") }.joined(separator: " || ")
        if let errno { text += "; return \(errno)" }
    }
    text += " # reason\n"
    return rule.architecture.map { "@arch \($0.rawValue) {\n\(text)}\n" } ?? text
}

private func words(_ test: ArgumentTest) -> String {
    if test.mask == .max { return "arg\(test.index) == \(test.value)" }
    let bits = (0..<64).map { UInt64(1) << $0 }.filter { test.value & $0 != 0 }
    let zeros = test.mask & ~test.value
    return
        ((zeros == 0 ? [] : ["arg\(test.index) in ~\(hexadecimal(zeros))"])
        + bits.map { "arg\(test.index) & \(hexadecimal($0))" }).joined(separator: " && ")
}

private func testCompiler(_ policy: SeccompPolicy) {
    for architecture in Architecture.allCases {
        let first = Result { () throws(SeccompCompilerError) in
            try SeccompCompiler.compile(policy, architecture: architecture)
        }
        let second = Result { () throws(SeccompCompilerError) in
            try SeccompCompiler.compile(policy, architecture: architecture)
        }
        require(first == second, "compiled differently the second time")
        if case .success(let program) = first { require((1...4096).contains(program.instructions.count), "\(program)") }
        if case .failure(.failed(let call, let errno)) = first { require(false, "\(call) failed: \(errno)") }
    }
}

// MARK: Rings

/// An accepted policy always seals, and means the same when written anew.
func testRingPolicy(_ input: [UInt8]) {
    let files = PolicyFiles(input)
    for mode in RingMode.all {
        let policy: RingPolicy
        do { policy = try RingPolicy(parsing: "main", for: mode, read: files.read) } catch {
            checkLocation(error, files)
            // Only a policy that lacks something can be right in another mode, or have a name twice in this one alone.
            if mode == RingMode.all[0], !error.message.hasPrefix("no "), !error.message.hasSuffix("already") { return }
            continue
        }
        require(!policy.operations.isEmpty && !policy.registerOperations.isEmpty, "\(policy) does not seal")
        require(policy.requiredFlags & RingNames.fixedFile != 0, "\(policy) lets any file through")
        require(policy.requiredFlags & policy.allowedFlags == 0, "\(policy)")
        for list in [policy.operations, policy.registerOperations] {
            require(zip(list, list.dropFirst()).allSatisfy { $0 < $1 }, "\(policy)")
        }
        var lines = policy.operations.map { "op \(RingNames.operations[Int($0)])" }
        lines += policy.registerOperations.map { "register \(RingNames.registerOperations[Int($0)])" }
        for (word, flags) in [("required", policy.requiredFlags), ("allowed", policy.allowedFlags)] where flags != 0 {
            let names = RingNames.flags.indices.filter { flags & 1 << $0 != 0 }.map { RingNames.flags[$0] }
            lines.append("flags \(word) " + names.joined(separator: " "))
        }
        let again = try? RingPolicy(parsing: "main") { _ in Array(lines.joined(separator: "\n").utf8) }
        require(again == policy, "\(policy) became \(String(describing: again))")
    }
}
