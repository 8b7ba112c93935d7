/// The processor architectures that ubd supports. The raw value is the name in policies and in libseccomp.
public enum Architecture: String, Sendable, CaseIterable {
    case amd64 = "x86_64"
    case aarch64

    /// The architecture of this program.
    public static var native: Architecture {
        #if arch(x86_64)
            .amd64
        #elseif arch(arm64)
            .aarch64
        #else
            #error("ubd has no system call policy for this architecture")
        #endif
    }
}

/// A test of one argument: `argument & mask == value`. Every test of the grammar has this form.
public struct ArgumentTest: Sendable, Hashable {
    /// 0 to 5.
    public let index: Int
    /// The compared bits; at least one.
    public let mask: UInt64
    /// A subset of `mask`.
    public let value: UInt64

    public init(index: Int, mask: UInt64, value: UInt64) {
        self.index = index
        self.mask = mask
        self.value = value
    }
}

/// The rule for one system call.
public struct SeccompRule: Sendable, Equatable {
    public enum Verdict: Sendable, Equatable {
        case allow
        /// The call is not executed and returns this errno.
        case fail(errno: UInt16)
        /// The call is executed if all tests of one alternative hold. Otherwise it returns the errno, or without an
        /// errno kills the process. An alternative has at most one test per argument, sorted by index.
        case test(alternatives: [[ArgumentTest]], otherwise: UInt16?)
    }

    /// The name in the kernel's system call table, for example `io_uring_enter`.
    public let name: String
    /// Written `?name`: a name that the installed libseccomp does not know is no error, and the call kills the process.
    public let isOptional: Bool
    /// nil: every architecture.
    public let architecture: Architecture?
    public let verdict: Verdict
    /// The comment on the rule's line or directly above.
    public let reason: String?
    public let location: PolicyLocation
}

/// The system calls that a process may make; every other call kills it. `SeccompCompiler` compiles the text in
/// `policy/seccomp`. policy/README.md describes the grammar.
public struct SeccompPolicy: Sendable, Equatable {
    /// The file's name.
    public let name: String
    /// In the order of the file; included rules take the place of their `@include`.
    public let rules: [SeccompRule]

    /// Parses the file `name`. `read` returns its content and that of a file it includes.
    public init(parsing name: String, read: @escaping PolicyReader) throws(PolicyError) {
        var parser = SeccompParser(read: read)
        try parser.parse(PolicyFile(name, read: read), isIncluded: false)
        guard !parser.rules.isEmpty else {
            throw PolicyError(PolicyLocation(file: name, line: 1, column: 1), "no rule; expected at least one")
        }
        self.name = name
        rules = parser.rules
    }

    /// The rules for `architecture`.
    public func rules(for architecture: Architecture) -> [SeccompRule] {
        rules.filter { $0.architecture == nil || $0.architecture == architecture }
    }
}
