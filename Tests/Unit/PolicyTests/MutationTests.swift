import Foundation
import Policy
import Testing

/// A small generator with a fixed seed (xorshift64*, Vigna 2016): the same inputs on every run.
struct Generator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

    mutating func next() -> UInt64 {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return state &* 0x2545_F491_4F6C_DD1D
    }
}

@Suite("The parsers and damaged input")
struct MutationTests {
    private static let tokens = [
        "allow", "deny", "return", "arg0", "arg9", "==", "in", "~", "&", "&&", "||", "|", ";", ":", "?", "(", ")", "{",
        "}", "@include", "@arch", "x86_64", "b", "op", "register", "flags", "required", "FIXED_FILE", "uid=", "group=",
        "target=", "*", "max-size=", "18446744073709551616", "0x", "-1", "K", "#", "\n", "\t", "\u{0}", "é", "ENOSYS",
        "PROT_EXEC", ",", "=", "99999999999T",
    ]

    /// One to six changes: a byte, a cut, a copy of a part, a token in between.
    private static func mutate(_ original: [UInt8], _ generator: inout Generator) -> [UInt8] {
        var bytes = original
        for _ in 0..<Int.random(in: 1...6, using: &generator) {
            let at = Int.random(in: 0...bytes.count, using: &generator)
            let end = min(bytes.count, at + Int.random(in: 0...40, using: &generator))
            switch Int.random(in: 0..<5, using: &generator) {
            case 0 where at < bytes.count: bytes[at] = UInt8.random(in: 0...255, using: &generator)
            case 1: bytes.removeSubrange(at..<end)
            case 2: bytes.insert(contentsOf: bytes[at..<end], at: Int.random(in: 0...bytes.count, using: &generator))
            default: bytes.insert(contentsOf: tokens.randomElement(using: &generator)!.utf8, at: at)
            }
        }
        return bytes
    }

    /// Runs `parse` over many mutants of `seeds`; `parse` returns whether it accepted, after checking what it accepted.
    private func fuzz(
        _ seeds: [[UInt8]], rounds: Int, parse: ([UInt8]) throws(PolicyError) -> Void
    ) -> (accepted: Int, refused: Int) {
        var counts = (accepted: 0, refused: 0)
        var generator = Generator(seed: 2022)
        for round in 0..<rounds {
            let input = Self.mutate(seeds[round % seeds.count], &generator)
            do {
                try parse(input)
                counts.accepted += 1
            } catch {
                counts.refused += 1
                let lines = input.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
                #expect(error.location.line >= 1 && error.location.line <= lines.count || error.location.file != "a")
                #expect(error.location.column >= 1)
                #expect(error.message.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x7F }, "\(error)")
            }
        }
        return counts
    }

    private func seeds(_ folder: String) throws -> [[UInt8]] {
        try FileManager.default.contentsOfDirectory(atPath: policyFolder.appending(path: folder).path).sorted()
            .map(shipped(folder))
    }

    /// Words of the code part of a text: what an accepted policy must account for.
    private func codeLines(_ bytes: [UInt8]) -> [[UInt8]] {
        bytes.split(separator: UInt8(ascii: "\n")).map { Array($0.prefix { $0 != UInt8(ascii: "#") }) }
            .filter { $0.contains { $0 != 0x20 && $0 != 0x09 } }
    }

    @Test("damaged seccomp policies are refused at a place, or every line of code in them is a rule")
    func seccompMutants() throws {
        let counts = fuzz(try seeds("seccomp"), rounds: 4000) { (input) throws(PolicyError) in
            let policy = try SeccompPolicy(parsing: "a") { name in
                if name == "a" { return input }
                return try shipped("seccomp")(name)
            }
            let directives = self.codeLines(input).filter { line in
                let start = line.first { $0 != 0x20 && $0 != 0x09 }
                return start == UInt8(ascii: "@") || start == UInt8(ascii: "}")
            }
            let own = policy.rules.filter { $0.location.file == "a" }
            #expect(own.count == self.codeLines(input).count - directives.count)
            for rule in policy.rules {
                guard case .test(let alternatives, _) = rule.verdict else { continue }
                #expect(!alternatives.isEmpty)
                for test in alternatives.joined() {
                    #expect((0...5).contains(test.index) && test.mask != 0 && test.value & ~test.mask == 0)
                }
            }
        }
        #expect(counts.accepted > 100 && counts.refused > 1000)
    }

    @Test("damaged ring policies are refused at a place, or keep what makes a ring sealed")
    func ringMutants() throws {
        let counts = fuzz(try seeds("rings"), rounds: 3000) { (input) throws(PolicyError) in
            let policy = try RingPolicy(parsing: "a", for: RingMode(zeroCopy: true, batch: true)) { name in
                if name == "a" { return input }
                return try shipped("rings")(name)
            }
            #expect(policy.requiredFlags & 1 == 1 && policy.requiredFlags & policy.allowedFlags == 0)
            #expect(!policy.operations.isEmpty && !policy.registerOperations.isEmpty)
            #expect(policy.operations == Set(policy.operations).sorted())
        }
        #expect(counts.accepted > 100 && counts.refused > 500)
    }

    @Test("damaged access policies are refused at a place, or every line of code in them is a rule for somebody")
    func accessMutants() throws {
        let examples = [
            "allow uid=0 target=* zero-copy=yes\nallow group=ubd target=null,loop max-devices=16 max-memory=256M",
            "deny user=bob target=loop\nallow uid=* target=* mode=ro max-size=1T max-io-size=1M allow-other-fs=no # all",
        ].map { Array($0.utf8) }
        let own = Array(try Data(contentsOf: policyFolder.appending(path: "access.policy")))
        let counts = fuzz(examples + [own], rounds: 4000) { (input) throws(PolicyError) in
            let policy = try AccessPolicy(
                parsing: input, file: "a", targets: ["null", "loop", "nbd", "memory", "crypt", "overlay", "fault"],
                user: { _ in 1001 },
                group: { $0 == "ubd" ? 990 : nil })
            #expect(policy.rules.count == self.codeLines(input).count)
            #expect(policy.rules.allSatisfy { !$0.identities.isEmpty })
            for rule in policy.rules where !rule.isAllow { #expect(rule.limits == AccessLimits()) }
        }
        #expect(counts.accepted > 100 && counts.refused > 1000)
    }
}
