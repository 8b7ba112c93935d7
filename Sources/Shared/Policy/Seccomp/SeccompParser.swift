/// Parses `policy/seccomp/*.policy`, line by line:
///
///     ['?'] name ':' ( 'allow' | tests ('||' tests)* [';' 'return' ERRNO] | 'return' ERRNO )   [# reason]
///     tests    := test ('&&' test)*
///     test     := argN '==' VALUE | argN 'in' ['~'] VALUE | argN '&' BIT
///     @include FILE
///     @arch x86_64|aarch64 {  …  }
struct SeccompParser {
    private(set) var rules: [SeccompRule] = []
    private let read: PolicyReader
    /// The open `@arch` block: its architecture and where it begins.
    private var block: (architecture: Architecture, location: PolicyLocation)?
    /// The comment lines directly above the current line.
    private var commentAbove: String?

    init(read: @escaping PolicyReader) { self.read = read }

    mutating func parse(_ file: PolicyFile, isIncluded: Bool) throws(PolicyError) {
        for line in file.lines {
            if line.hasNoCode {
                commentAbove = line.comment.map { [commentAbove, $0].compactMap { $0 }.joined(separator: " ") }
                continue
            }
            var cursor = LineCursor(line)
            if cursor.takeKeyword("@include") {
                guard !isIncluded else { throw nestedInclude(cursor.location(at: 0)) }
                try include(&cursor)
            } else if cursor.takeKeyword("@arch") {
                try openBlock(&cursor)
            } else if cursor.take("}") {
                guard block != nil else { throw PolicyError(cursor.location(at: 0), "'}' without an open @arch") }
                try cursor.expectEnd(after: "'}'")
                block = nil
            } else {
                try rule(&cursor, comment: line.comment)
            }
            commentAbove = nil
        }
        if let block { throw PolicyError(block.location, "@arch is not closed; expected a line '}'") }
        commentAbove = nil
    }

    private mutating func include(_ cursor: inout LineCursor) throws(PolicyError) {
        guard block == nil else {
            throw PolicyError(cursor.location(at: 0), "@include inside @arch; expected it outside of the block")
        }
        let name = try cursor.includeName()
        commentAbove = nil
        try parse(PolicyFile(name.text, from: name.location, read: read), isIncluded: true)
    }

    private mutating func openBlock(_ cursor: inout LineCursor) throws(PolicyError) {
        if let block { throw PolicyError(cursor.location(at: 0), "@arch inside the @arch of \(block.location)") }
        cursor.skipBlanks()
        let before = cursor
        guard let name = cursor.identifier(), let architecture = Architecture(rawValue: name.text) else {
            throw before.expected("x86_64 or aarch64 after @arch")
        }
        guard cursor.take("{") else { throw cursor.expected("'{' after @arch \(name.text)") }
        try cursor.expectEnd(after: "'{'")
        block = (architecture, before.location(at: 0))
    }

    private mutating func rule(_ cursor: inout LineCursor, comment: String?) throws(PolicyError) {
        let isOptional = cursor.take("?")
        cursor.skipBlanks()
        let before = cursor
        guard let name = cursor.identifier(), name.text.utf8.count <= 64,
            name.text.utf8.allSatisfy({ !(UInt8(ascii: "A")...UInt8(ascii: "Z")).contains($0) }),
            !name.text.utf8.first!.isDigit
        else { throw before.expected("the name of a system call, @include, @arch or '}'") }
        guard cursor.take(":") else { throw cursor.expected("':' after '\(printable(name.text))'") }

        let verdict = try cursor.verdict()
        let reason = [commentAbove, comment].compactMap { $0 }.first { text in
            text.unicodeScalars.contains { $0.properties.isAlphabetic }
        }
        if DangerousCalls.contain(name.text), reason == nil {
            throw PolicyError(
                name.location,
                "\(name.text) has no comment; expected its reason after '#', on this line or directly above")
        }
        let rule = SeccompRule(
            name: name.text, isOptional: isOptional, architecture: block?.architecture, verdict: verdict,
            reason: reason, location: name.location)
        try add(rule)
    }

    private mutating func add(_ rule: SeccompRule) throws(PolicyError) {
        let other = rules.first {
            $0.name == rule.name
                && ($0.architecture == nil || rule.architecture == nil || $0.architecture == rule.architecture)
        }
        if let other {
            throw PolicyError(
                rule.location, "\(rule.name) has a rule at \(other.location) already; expected one rule per call")
        }
        guard rules.count < PolicySource.maximumRules else {
            throw PolicyError(rule.location, "more than \(PolicySource.maximumRules) rules")
        }
        rules.append(rule)
    }
}

/// Calls that create processes, code, privileges, files or rings: a rule that allows one must state the reason.
enum DangerousCalls {
    private static let names: Set<String> = [
        "bpf", "clone", "clone3", "connect", "execve", "execveat", "fork", "ioctl", "keyctl", "mmap", "mount",
        "mount_setattr", "move_mount", "mprotect", "perf_event_open", "pidfd_getfd", "pkey_mprotect", "pivot_root",
        "prctl", "process_vm_readv", "process_vm_writev", "ptrace", "seccomp", "setns", "socket", "socketpair",
        "umount2", "unshare", "userfaultfd", "vfork",
    ]

    static func contain(_ name: String) -> Bool {
        names.contains(name) || name.hasPrefix("open") || name.hasPrefix("io_uring_")
    }
}

extension UInt8 {
    var isDigit: Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(self) }
}
