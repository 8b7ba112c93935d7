/// The processor architectures for which ubd has policies. The raw value is the name in policies and in libseccomp.
public enum Architecture: String, Sendable, CaseIterable {
    case amd64 = "x86_64"
    case aarch64

    /// The architecture that this program was compiled for.
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

/// One test of one argument: it holds when `argument & mask == value`. Every test of the grammar has this form.
public struct ArgumentTest: Sendable, Hashable {
    /// 0 to 5.
    public let index: Int
    /// The bits that are looked at; at least one.
    public let mask: UInt64
    /// A subset of `mask`.
    public let value: UInt64

    public init(index: Int, mask: UInt64, value: UInt64) {
        self.index = index
        self.mask = mask
        self.value = value
    }
}

/// What a policy says about one system call.
public struct SeccompRule: Sendable, Equatable {
    public enum Verdict: Sendable, Equatable {
        case allow
        /// The call is not made and gives this errno.
        case fail(errno: UInt16)
        /// The call is made when all tests of one alternative hold; otherwise it gives the errno, and without an errno
        /// the process is killed. An alternative has one test per argument, sorted by index.
        case test(alternatives: [[ArgumentTest]], otherwise: UInt16?)
    }

    /// As in the kernel's system call table, `io_uring_enter`.
    public let name: String
    /// Written `?name`: no error when the installed libseccomp does not know the name; the call is then killed.
    public let isOptional: Bool
    /// Nil: on every architecture.
    public let architecture: Architecture?
    public let verdict: Verdict
    /// The comment that stands with the rule.
    public let reason: String?
    public let location: PolicyLocation
}

/// The system calls that a process may make; every other one kills it. Text in `policy/seccomp`, compiled by
/// `SeccompCompiler`. The grammar is described in policy/README.md.
public struct SeccompPolicy: Sendable, Equatable {
    /// The file's name.
    public let name: String
    /// In the order of the file, included rules where their `@include` stands.
    public let rules: [SeccompRule]

    /// Parses the file `name`, which `read` delivers, as it does the file that it may include.
    public init(parsing name: String, read: @escaping PolicyReader) throws(PolicyError) {
        var parser = SeccompParser(read: read)
        try parser.parse(PolicyFile(name, read: read), isIncluded: false)
        guard !parser.rules.isEmpty else {
            throw PolicyError(PolicyLocation(file: name, line: 1, column: 1), "no rule; expected at least one")
        }
        self.name = name
        rules = parser.rules
    }

    /// The rules that count on `architecture`.
    public func rules(for architecture: Architecture) -> [SeccompRule] {
        rules.filter { $0.architecture == nil || $0.architecture == architecture }
    }
}
