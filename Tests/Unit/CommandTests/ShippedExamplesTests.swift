import BrokerInterface
import Foundation
import Policy
import Targets
import Testing

@testable import ubd

/// What the pages, the manual and --help suggest, and what `ubd add` chooses by itself, against the access policy that ships.
@Suite("The shipped access policy")
struct ShippedExamplesTests {
    private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()

    /// Whether a member of group ubd without any device gets it. Memory disks are for those whose line says so: then with the
    /// line that docs/memory.md suggests.
    private static func decision(_ request: AddRequest) throws -> AccessDecision {
        let plan = try AddPlan(request)
        var text = try String(contentsOf: root.appending(path: "policy/access.policy"), encoding: .utf8)
        if plan.target.isInMemory {
            let lines = text.replacing(
                "target=null,loop,nbd,crypt,overlay,fault ",
                with: "target=null,loop,nbd,crypt,overlay,fault,memory memory-disks=512M ")
            #expect(lines != text)
            text = lines
        }
        let policy = try AccessPolicy(
            parsing: Array(text.utf8), file: "access.policy", targets: TargetList.names, user: { _ in nil },
            group: { $0 == "ubd" ? 990 : nil })
        // As the broker asks (Access.swift).
        let asked = AccessRequest(
            target: plan.target.name, readOnly: plan.readOnly, queues: UInt64(plan.queues), depth: UInt64(plan.depth),
            maxIOBytes: UInt64(plan.maxIOBytes), sizeBytes: plan.target.hasOwnSize ? plan.options.size : nil,
            ioTimeout: plan.ioTimeout.map { UInt64($0) }, id: plan.id.map { UInt64($0) },
            connections: plan.target.queues == .onePerConnection ? UInt64(plan.queues) : nil,
            spareBuffers: UInt64(plan.target.buffers(depth: plan.depth)) - UInt64(plan.depth),
            extraBytes: plan.extraBytes, diskBytes: plan.diskBytes)
        return policy.decide(
            AccessPeer(uid: 1000, groups: [1000, 990]), asked, usage: AccessUsage(devices: 0, memoryBytes: 0))
    }

    private static func isAllowed(_ decision: AccessDecision) -> Bool {
        if case .allowed = decision { true } else { false }
    }

    @Test("allows a device of each target with every number of queues that it allows, with the other values left out")
    func defaults() throws {
        for target in TargetList.all {
            for queues in 1...(target.queues == .one ? 1 : 4) as ClosedRange<Int64> {
                let decision = try Self.decision(AddRequest(target: target.name, queues: queues))
                #expect(Self.isAllowed(decision), "\(target.name) with \(queues) queues: \(decision)")
            }
            let (queues, depth): (Int64, Int64) = target.queues == .one ? (1, 1024) : (4, 256)
            let many = try Self.decision(AddRequest(target: target.name, queues: queues, depth: depth))
            #expect(!Self.isAllowed(many), "this test would not find what is too much")
        }
    }

    @Test("the default depth of several queues with spare buffers needs no more memory than the limit of one user")
    func depths() throws {
        let depths = try [1, 2, 3, 4, 8, 16].map { try AddPlan(AddRequest(target: "nbd", queues: $0)).depth }
        #expect(depths == [128, 128, 85, 64, 32, 32])
        let encrypted = try [1, 2, 3, 4, 8, 16].map { try AddPlan(AddRequest(target: "crypt", queues: $0)).depth }
        #expect(encrypted == [128, 128, 85, 64, 32, 32])
        #expect(try AddPlan(AddRequest(target: "null", queues: 16)).depth == 128)
        #expect(try AddPlan(AddRequest(target: "nbd", queues: 4, depth: 128)).depth == 128)
    }

    /// The rules of target fault are one word, in quotes, with spaces and semicolons.
    private static func keepingRules(_ line: Substring) -> Substring {
        guard let begin = line.firstRange(of: "--rules '")?.upperBound, let end = line[begin...].firstIndex(of: "'")
        else { return line }
        let rules = line[begin..<end].replacing(" ", with: "\u{1}").replacing(";", with: "\u{2}")
        return line[..<begin] + rules + line[end...]
    }

    /// Every `ubd add` with a target in a text, as words.
    private static func commands(in text: String) -> [[String]] {
        text.replacing("\\-", with: "-").split(separator: "\n").flatMap { line in
            line.split(separator: "ubd add ", omittingEmptySubsequences: false).dropFirst().map { rest in
                // Up to the end of the code, of the command, or to the next column.
                let rest = keepingRules(rest)
                let ends = ["`", ")", " && ", ";", "  ", " #", "\""].compactMap { rest.firstRange(of: $0)?.lowerBound }
                return rest[..<(ends.min() ?? rest.endIndex)].split(separator: " ").map {
                    $0.trimmingCharacters(in: CharacterSet(charactersIn: "'"))
                        .replacing("\u{1}", with: " ").replacing("\u{2}", with: ";")
                }
            }
        }.filter { words in
            // One with an ellipsis is a kind of command.
            !words.contains { $0.contains("…") } && (words.contains("-t") || words.contains("--target"))
        }
    }

    @Test("allows what the pages, the manual and --help suggest")
    func examples() throws {
        var texts: [String: String] = [
            "ubd --help": UBD.configuration.discussion, "ubd add --help": AddArguments.configuration.discussion,
        ]
        for folder in ["docs", "docs/man"] {
            for name in try FileManager.default.contentsOfDirectory(atPath: Self.root.appending(path: folder).path)
            where ["md", "1", "5", "8"].contains(name.split(separator: ".").last.map(String.init)) {
                texts["\(folder)/\(name)"] = try String(
                    contentsOf: Self.root.appending(path: "\(folder)/\(name)"), encoding: .utf8)
            }
        }
        texts["README.md"] = try String(contentsOf: Self.root.appending(path: "README.md"), encoding: .utf8)
        var seen: [String: Int] = [:]
        for (place, text) in texts {
            for words in Self.commands(in: text) {
                let command = try AddArguments.parse(words).command
                let decision = try Self.decision(command.request)
                #expect(Self.isAllowed(decision), "\(place): ubd add \(words.joined(separator: " ")): \(decision)")
                seen[place, default: 0] += 1
            }
        }
        #expect(seen["ubd add --help"] ?? 0 >= 6 && seen["docs/nbd.md"] ?? 0 >= 9, "\(seen)")
        #expect(seen["docs/man/ubd.1"] ?? 0 >= 3 && seen["README.md"] ?? 0 >= 3, "\(seen)")
    }
}
