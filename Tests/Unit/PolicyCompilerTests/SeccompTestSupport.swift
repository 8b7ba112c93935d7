import CLibseccomp
import Foundation
import Policy
import PolicyCompiler
import Testing

/// The root of this repository.
let repository = URL(filePath: #filePath).appending(path: "../../../..").standardizedFileURL

/// All seccomp policies that ship, and those of them that are a target's stage B.
let shippedPolicyNames: [String] = {
    let folder = repository.appending(path: "policy/seccomp")
    let files = (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
    return files.filter { $0.pathExtension == "policy" }.map { $0.deletingPathExtension().lastPathComponent }.sorted()
}()
let targetPolicyNames = shippedPolicyNames.filter { $0.hasPrefix("target-") }

func shippedPolicy(_ name: String) throws -> SeccompPolicy {
    try SeccompPolicy(parsing: name + ".policy") { file in
        Array(try Data(contentsOf: repository.appending(path: "policy/seccomp").appending(path: file)))
    }
}

func policy(_ text: String) throws -> SeccompPolicy {
    try SeccompPolicy(parsing: "test.policy") { _ in Array(text.utf8) }
}

/// The kernel's result for several filters: a kill before an error, an error before a pass.
func together(_ fates: [Fate]) -> Fate {
    if fates.contains(.kills) { return .kills }
    return fates.last { $0 != .passes } ?? .passes
}

/// One system call as a filter sees it.
struct SystemCall: Sendable, Hashable {
    /// As in the table of the architecture.
    var number: UInt64
    var arguments: [UInt64] = [0, 0, 0, 0, 0, 0]

    /// The number of a call by name; nil when the architecture has none.
    static func number(_ name: String, _ architecture: Architecture = .native) -> UInt64? {
        let number = seccomp_syscall_resolve_name_arch(seccomp_arch_resolve_name(architecture.rawValue), name)
        return number < 0 ? nil : UInt64(number)
    }
}

/// Random arguments, the same in every run (xorshift64, Marsaglia 2003).
struct Noise {
    private var state: UInt64 = 0x2022_0830

    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state
    }
}

/// The result of a system call.
enum Fate: Sendable, Hashable {
    case passes
    case fails(errno: Int)
    /// SIGSYS.
    case kills
    /// Another signal: not the filter's doing.
    case dies(signal: Int)
}

extension SeccompPolicy {
    /// The result for a call according to the text, computed from the rules alone: the reference for filters.
    func fate(of call: SystemCall, _ architecture: Architecture) -> Fate {
        let rule = rules(for: architecture).first { SystemCall.number($0.name, architecture) == call.number }
        switch rule?.verdict {
        case nil: return .kills
        case .allow: return .passes
        case .fail(let errno): return .fails(errno: Int(errno))
        case .test(let alternatives, let otherwise):
            let holds = alternatives.contains { $0.allSatisfy { call.arguments[$0.index] & $0.mask == $0.value } }
            return holds ? .passes : otherwise.map { .fails(errno: Int($0)) } ?? .kills
        }
    }

    /// Calls that try every rule: for each alternative one with fitting arguments, the others being noise, and for each
    /// bit that it looks at one in which that bit differs.
    func probes(_ architecture: Architecture) -> [SystemCall] {
        var noise = Noise()
        return rules(for: architecture).flatMap { rule -> [SystemCall] in
            guard let number = SystemCall.number(rule.name, architecture) else { return [] }
            guard case .test(let alternatives, _) = rule.verdict else {
                return [
                    SystemCall(number: number),
                    SystemCall(number: number, arguments: (0..<6).map { _ in noise.next() }),
                ]
            }
            return alternatives.flatMap { tests -> [SystemCall] in
                var fitting = SystemCall(number: number, arguments: (0..<6).map { _ in noise.next() })
                for test in tests {
                    fitting.arguments[test.index] = fitting.arguments[test.index] & ~test.mask | test.value
                }
                var changed: [SystemCall] = []
                for test in tests {
                    for bit in (0..<64).map({ UInt64(1) << $0 }) where test.mask & bit != 0 {
                        var call = fitting
                        call.arguments[test.index] ^= bit
                        changed.append(call)
                    }
                }
                return [fitting] + changed
            }
        }
    }
}
