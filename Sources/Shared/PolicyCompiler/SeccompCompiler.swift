import CLibseccomp
import Glibc
import Policy

/// A classic BPF program for `seccomp(SECCOMP_SET_MODE_FILTER)`.
public struct FilterProgram: Sendable, Equatable {
    /// One `struct sock_filter` (linux/filter.h) each, 8 bytes, so `struct sock_fprog.filter` can point to the array.
    public let instructions: [UInt64]

    public init(instructions: [UInt64]) { self.instructions = instructions }
}

/// Why a valid policy could not be compiled.
public enum SeccompCompilerError: Error, Sendable, Equatable, CustomStringConvertible {
    /// A rule of the policy is wrong.
    case rule(PolicyError)
    /// A call of libseccomp failed, or one of the kernel for the result's memory.
    case failed(call: String, errno: Int32)

    public var description: String {
        switch self {
        case .rule(let error): "\(error)"
        case .failed(let call, let errno):
            "\(call) failed: errno \(errno); check the installed libseccomp (2.5 or newer)"
        }
    }
}

/// Compiles a seccomp policy into a filter program with libseccomp. A system call that the policy does not list kills
/// the process, as does every call of another architecture (i386 and x32 on x86_64).
public enum SeccompCompiler {
    /// Compiles for an architecture, which may differ from the one it runs on. The result is deterministic.
    public static func compile(
        _ policy: SeccompPolicy, architecture: Architecture = .native
    ) throws(SeccompCompilerError) -> FilterProgram {
        let context = try FilterContext()
        try context.add(policy, architecture: architecture)
        let bytes = try context.export("seccomp_export_bpf", seccomp_export_bpf)
        let program = FilterProgram(
            instructions: stride(from: 0, to: bytes.count, by: 8).map { start in
                bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: start, as: UInt64.self) }
            })
        // BPF_MAXINSNS. Checked here, since the kernel would refuse a longer program only when the worker loads it.
        guard program.instructions.count <= 4096, bytes.count % 8 == 0 else {
            throw .failed(call: "seccomp_export_bpf: \(bytes.count) bytes", errno: E2BIG)
        }
        return program
    }

    /// The filter as libseccomp's pseudo code, for human readers.
    public static func pseudoCode(
        _ policy: SeccompPolicy, architecture: Architecture = .native
    ) throws(SeccompCompilerError) -> String {
        let context = try FilterContext()
        try context.add(policy, architecture: architecture)
        return String(decoding: try context.export("seccomp_export_pfc", seccomp_export_pfc), as: UTF8.self)
    }

    /// The version of the loaded libseccomp; its pseudo code differs between versions.
    public static var libraryVersion: (major: UInt32, minor: UInt32, micro: UInt32) {
        guard let version = seccomp_version()?.pointee else { return (0, 0, 0) }
        return (version.major, version.minor, version.micro)
    }
}

/// libseccomp's filter context with all rules of one policy.
private struct FilterContext: ~Copyable {
    private let context: scmp_filter_ctx

    init() throws(SeccompCompilerError) {
        guard let context = seccomp_init(SCMP_ACT_KILL_PROCESS) else {
            throw .failed(call: "seccomp_init", errno: EINVAL)
        }
        self.context = context
    }

    deinit { seccomp_release(context) }

    func add(_ policy: SeccompPolicy, architecture: Architecture) throws(SeccompCompilerError) {
        try Self.check("seccomp_attr_set", seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS))
        if architecture != .native {
            let token = seccomp_arch_resolve_name(architecture.rawValue)
            try Self.check("seccomp_arch_add", seccomp_arch_add(context, token))
            try Self.check("seccomp_arch_remove", seccomp_arch_remove(context, seccomp_arch_native()))
        }
        for rule in policy.rules(for: architecture) { try add(rule, architecture: architecture) }
    }

    private func add(_ rule: SeccompRule, architecture: Architecture) throws(SeccompCompilerError) {
        // libseccomp expects the native number and translates it. For a name that only other architectures have, the
        // number is a negative one of libseccomp's.
        let number = seccomp_syscall_resolve_name(rule.name)
        guard number != __NR_SCMP_ERROR else {
            if rule.isOptional { return }
            let version = SeccompCompiler.libraryVersion
            throw .rule(
                PolicyError(
                    rule.location,
                    "libseccomp \(version.major).\(version.minor).\(version.micro) knows no system call '\(rule.name)';"
                        + " expected a name that it knows, or ?\(rule.name) if it is merely newer"))
        }
        let token = seccomp_arch_resolve_name(architecture.rawValue)
        // This architecture lacks the call, so there is nothing to allow.
        if seccomp_syscall_resolve_name_arch(token, rule.name) < 0 { return }
        switch rule.verdict {
        case .allow: try add(number, SCMP_ACT_ALLOW, [], rule)
        case .fail(let errno): try add(number, Self.fail(errno), [], rule)
        case .test(let alternatives, let errno):
            for tests in alternatives { try add(number, SCMP_ACT_ALLOW, tests, rule) }
            guard let errno else { return }
            guard let others = complement(of: alternatives, limit: 256) else {
                throw .rule(
                    PolicyError(rule.location, "too many alternatives before 'return'; expected fewer or simpler ones"))
            }
            for tests in others { try add(number, Self.fail(errno), tests, rule) }
        }
    }

    private func add(
        _ number: Int32, _ action: UInt32, _ tests: [ArgumentTest], _ rule: SeccompRule
    ) throws(SeccompCompilerError) {
        let comparisons = tests.map { test in
            // For a full mask libseccomp emits a plain comparison, which the dump shows more readably.
            test.mask == .max
                ? scmp_arg_cmp(arg: UInt32(test.index), op: SCMP_CMP_EQ, datum_a: test.value, datum_b: 0)
                : scmp_arg_cmp(
                    arg: UInt32(test.index), op: SCMP_CMP_MASKED_EQ, datum_a: test.mask, datum_b: test.value)
        }
        let result = seccomp_rule_add_array(context, action, number, UInt32(comparisons.count), comparisons)
        guard result == 0 else {
            throw .rule(PolicyError(rule.location, "libseccomp refuses the rule for \(rule.name): errno \(-result)"))
        }
    }

    /// SCMP_ACT_ERRNO(), a macro that Swift does not import.
    private static func fail(_ errno: UInt16) -> UInt32 { 0x0005_0000 | UInt32(errno) }

    private static func check(_ call: String, _ result: Int32) throws(SeccompCompilerError) {
        if result != 0 { throw .failed(call: call, errno: -result) }
    }

    /// Exports through a memfd, since libseccomp 2.5 exports only to a file descriptor.
    func export(
        _ call: String, _ function: (scmp_filter_ctx?, Int32) -> Int32
    ) throws(SeccompCompilerError) -> [UInt8] {
        let file = memfd_create("seccomp", UInt32(MFD_CLOEXEC))
        guard file >= 0 else { throw .failed(call: "memfd_create", errno: errno) }
        defer { close(file) }
        try Self.check(call, function(context, file))
        let size = lseek(file, 0, SEEK_END)
        guard size > 0 else { throw .failed(call: "lseek", errno: errno) }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        guard pread(file, &bytes, bytes.count, 0) == bytes.count else { throw .failed(call: "pread", errno: errno) }
        return bytes
    }
}

/// The argument values that no alternative matches, as mutually exclusive alternatives. libseccomp has no "else": a
/// rule without tests would replace those with tests. Returns nil for more than `limit` alternatives.
func complement(of alternatives: [[ArgumentTest]], limit: Int) -> [[ArgumentTest]]? {
    var remaining: [[ArgumentTest]] = [[]]
    for alternative in alternatives {
        remaining = remaining.flatMap { subtract(alternative, from: $0) }
        if remaining.count > limit { return nil }
    }
    return remaining
}

/// The values that match `tests` and not `other`, bit by bit: those that differ in the first bit, then those that agree
/// in the first and differ in the second, and so on.
private func subtract(_ other: [ArgumentTest], from tests: [ArgumentTest]) -> [[ArgumentTest]] {
    var known = [Int: ArgumentTest](uniqueKeysWithValues: tests.map { ($0.index, $0) })
    var result: [[ArgumentTest]] = []
    for test in other {
        for bit in (0..<64).map({ UInt64(1) << $0 }) where test.mask & bit != 0 {
            let current = known[test.index] ?? ArgumentTest(index: test.index, mask: 0, value: 0)
            let wanted = test.value & bit
            if current.mask & bit != 0 {
                // This bit is fixed already: either none of `tests` matches `other`, or the bit makes no difference.
                if current.value & bit != wanted { return result + [known.values.sorted { $0.index < $1.index }] }
                continue
            }
            let mask = current.mask | bit
            known[test.index] = ArgumentTest(index: test.index, mask: mask, value: current.value | (wanted ^ bit))
            result.append(known.values.sorted { $0.index < $1.index })
            known[test.index] = ArgumentTest(index: test.index, mask: mask, value: current.value | wanted)
        }
    }
    return result
}
