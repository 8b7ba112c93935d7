import Foundation
import Policy
import Testing

@testable import PolicyCompiler

@Suite("The seccomp compiler")
struct SeccompCompilerTests {
    private func compile(_ text: String) -> String {
        do {
            return "\(try SeccompCompiler.compile(try policy(text)).instructions.count) instructions"
        } catch {
            return "\(error)"
        }
    }

    @Test("the same policy gives the same program", arguments: shippedPolicyNames, Architecture.allCases)
    func deterministic(name: String, architecture: Architecture) throws {
        let policy = try shippedPolicy(name)
        let first = try SeccompCompiler.compile(policy, architecture: architecture)
        #expect(first == (try SeccompCompiler.compile(policy, architecture: architecture)))
        #expect(first.instructions.count > 10 && first.instructions.count < 500)
    }

    @Test("a name that libseccomp does not know is refused at its place, unless it is marked with ?")
    func unknownNames() throws {
        let version = SeccompCompiler.libraryVersion
        #expect(
            compile("read: allow\n exot: allow")
                == "test.policy:2:2: libseccomp \(version.major).\(version.minor).\(version.micro) knows no system call "
                + "'exot'; expected a name that it knows, or ?exot if it is merely newer")
        #expect(
            try SeccompCompiler.compile(try policy("read: allow\n?exot: allow"))
                == (try SeccompCompiler.compile(try policy("read: allow"))))
    }

    @Test("a call that an architecture does not have allows nothing there")
    func absentCalls() throws {
        let both = try policy("read: allow\nepoll_wait: allow")
        let readOnly = try policy("read: allow")
        let compiled = try SeccompCompiler.compile(both, architecture: .aarch64)
        #expect(compiled == (try SeccompCompiler.compile(readOnly, architecture: .aarch64)))
        #expect(
            try SeccompCompiler.compile(both, architecture: .amd64)
                != (try SeccompCompiler.compile(readOnly, architecture: .amd64)))
    }

    @Test("rules of the other architecture's @arch block are left out")
    func architectureBlocks() throws {
        let policy = try policy("read: allow\n@arch aarch64 {\nwrite: allow\n}")
        let write = SystemCall(number: try #require(SystemCall.number("write", .aarch64)))
        let program = try SeccompCompiler.compile(policy, architecture: .aarch64)
        let fate = try SeccompInterpreter(program: program)
            .fate(of: write, auditArchitecture: SeccompInterpreter.auditArchitecture(.aarch64))
        #expect(fate == .passes)
        #expect(
            try SeccompCompiler.compile(policy, architecture: .amd64)
                == (try SeccompCompiler.compile(try self.policy("read: allow"), architecture: .amd64)))
    }

    private func policy(_ text: String) throws -> SeccompPolicy {
        try SeccompPolicy(parsing: "test.policy") { _ in Array(text.utf8) }
    }

    @Test("too many alternatives before 'return' are refused at the rule")
    func complexity() {
        let values = (0..<32).map { "arg0 == \($0 * 0x1_0001_0001) && arg1 == \($0)" }.joined(separator: "||")
        #expect(
            compile("read: \(values); return EPERM")
                == "test.policy:1:1: too many alternatives before 'return'; expected fewer or simpler ones")
    }

    @Test("the complement of alternatives holds exactly where they do not, and its parts never overlap")
    func complements() throws {
        func test(_ index: Int, _ mask: UInt64, _ value: UInt64) -> ArgumentTest {
            ArgumentTest(index: index, mask: mask, value: value)
        }
        let samples = [
            [[test(0, 0b111, 0b101)]], [[test(0, 0b11, 0b01)], [test(0, 0b11, 0b10)]],
            [[test(0, 0b11, 0b01), test(1, 0b11, 0)], [test(1, 0b1, 0b1)]], [[test(0, 1, 1)], [test(0, 1, 0)]],
        ]
        for alternatives in samples {
            let others = try #require(complement(of: alternatives, limit: 256))
            for first in 0..<UInt64(8) {
                for second in 0..<UInt64(8) {
                    let arguments = [first, second]
                    func holds(_ tests: [ArgumentTest]) -> Bool {
                        tests.allSatisfy { arguments[$0.index] & $0.mask == $0.value }
                    }
                    let parts = others.filter(holds).count
                    #expect(parts == (alternatives.contains(where: holds) ? 0 : 1))
                }
            }
        }
    }

    @Test("a policy of many forms does on both architectures what its text says", arguments: Architecture.allCases)
    func forms(architecture: Architecture) throws {
        let policy = try policy(
            """
            exit_group: allow
            getpid: return EPERM
            read: arg0 == 3 || arg0 == 0xffffffff00000003 || arg2 & 0x100000000
            write: arg0 == 3 && arg2 in 0xfff || arg0 == 4 && arg2 in ~0xfff
            fcntl: arg1 == F_GETFL || arg1 == F_GETFD; return EINVAL
            mmap: arg2 in ~(PROT_EXEC|0x8000000000000000) && arg3 & MAP_PRIVATE; return EACCES # a test
            futex: arg1 in 0x81 && arg0 & 1 && arg5 == 0 || arg1 == 9
            """)
        let program = SeccompInterpreter(program: try SeccompCompiler.compile(policy, architecture: architecture))
        let audit = SeccompInterpreter.auditArchitecture(architecture)
        var fates: Set<Fate> = []
        for call in policy.probes(architecture) {
            let expected = policy.fate(of: call, architecture)
            #expect(try program.fate(of: call, auditArchitecture: audit) == expected, "\(call)")
            fates.insert(expected)
        }
        #expect(
            fates == [.passes, .kills, .fails(errno: 1), .fails(errno: 22), .fails(errno: 13)])
    }

    /// A random right-hand side of a rule; small values, so that alternatives often overlap.
    private static func expression(_ noise: inout Noise) -> String {
        func pick(_ count: UInt64) -> UInt64 { noise.next() % count }
        var alternatives: [String] = []
        for _ in 0...pick(4) {
            var tests: [String] = []
            for _ in 0...pick(3) {
                // Bits of both halves: libseccomp compares 32 at a time.
                let value = pick(8) << (pick(2) * 31)
                switch pick(4) {
                case 0: tests.append("arg\(pick(3)) == \(value)")
                case 1: tests.append("arg\(pick(3)) in \(value)")
                case 2: tests.append("arg\(pick(3)) in ~\(value | 1)")
                default: tests.append("arg\(pick(3)) & \(UInt64(1) << (pick(3) * 16))")
                }
            }
            alternatives.append(tests.joined(separator: " && "))
        }
        return alternatives.joined(separator: " || ") + (pick(4) == 0 ? "; return EPERM" : "")
    }

    @Test("rules made of noise do on both architectures what their text says", arguments: Architecture.allCases)
    func noise(architecture: Architecture) throws {
        var noise = Noise()
        var compiled = 0
        var fates: [Fate: Int] = [:]
        while compiled < 300 {
            let text = "exit_group: allow\nfutex: " + Self.expression(&noise)
            // Skips rules that are refused: contradictory or repeated ones, and those whose complement is too large.
            guard let policy = try? policy(text),
                let filter = try? SeccompCompiler.compile(policy, architecture: architecture)
            else { continue }
            compiled += 1
            let program = SeccompInterpreter(program: filter)
            let audit = SeccompInterpreter.auditArchitecture(architecture)
            let futex = try #require(SystemCall.number("futex", architecture))
            let small = (0..<100).map { _ in
                SystemCall(number: futex, arguments: (0..<6).map { _ in (noise.next() % 8) << (noise.next() % 2 * 31) })
            }
            for call in policy.probes(architecture) + small {
                let fate = try program.fate(of: call, auditArchitecture: audit)
                #expect(fate == policy.fate(of: call, architecture), "\(text): \(call)")
                fates[fate, default: 0] += 1
            }
        }
        for fate in [Fate.passes, .kills, .fails(errno: 1)] { #expect(fates[fate, default: 0] > 1000) }
    }

    /// Other versions of libseccomp order and comment their dumps differently.
    private static var isVersionOfDumps: Bool {
        SeccompCompiler.libraryVersion.major == 2 && SeccompCompiler.libraryVersion.minor == 5
    }

    @Test(
        "the dumps of the shipped filters are those of Tests/Golden/seccomp",
        .enabled(if: isVersionOfDumps, "the dumps were made by libseccomp 2.5; another version makes others"),
        arguments: shippedPolicyNames)
    func golden(name: String) throws {
        let file = repository.appending(path: "Tests/Golden/seccomp/\(name).x86_64.pfc")
        let dump = try SeccompCompiler.pseudoCode(try shippedPolicy(name), architecture: .amd64)
        if ProcessInfo.processInfo.environment["UBD_UPDATE_GOLDEN"] == "1" {
            try Data(dump.utf8).write(to: file)
        }
        let committed = try String(decoding: Data(contentsOf: file), as: UTF8.self)
        #expect(
            dump == committed,
            "the filter changed: run with UBD_UPDATE_GOLDEN=1 in the environment and review the diff")
    }
}
