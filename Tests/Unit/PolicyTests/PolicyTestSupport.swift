import Foundation
import Policy

/// Files that exist only in a test, for `@include`.
struct Files {
    struct Missing: Error, CustomStringConvertible { let description = "no such file" }

    var contents: [String: String]

    func read(_ name: String) throws -> [UInt8] {
        guard let text = contents[name] else { throw Missing() }
        return Array(text.utf8)
    }
}

/// The folder policy/ of this repository.
let policyFolder = URL(filePath: #filePath).appending(path: "../../../../policy").standardizedFileURL

func shipped(_ folder: String) -> (String) throws -> [UInt8] {
    { name in Array(try Data(contentsOf: policyFolder.appending(path: folder).appending(path: name))) }
}

/// The error that `body` throws, as "line:column message"; "accepted" when it throws none.
func refusal(_ body: () throws(PolicyError) -> Void) -> String {
    do {
        try body()
        return "accepted"
    } catch {
        return "\(error.location.line):\(error.location.column) \(error.message)"
    }
}

func seccomp(_ text: String, include: String = "") throws(PolicyError) -> SeccompPolicy {
    try SeccompPolicy(parsing: "a.policy", read: Files(contents: ["a.policy": text, "b.policy": include]).read)
}

func ring(_ text: String, include: String = "", for mode: RingMode = RingMode()) throws(PolicyError) -> RingPolicy {
    try RingPolicy(parsing: "a.ring", for: mode, read: Files(contents: ["a.ring": text, "b.ring": include]).read)
}

/// Parses an access policy on a host with users alice and bob and group ubd.
func access(_ text: String) throws(PolicyError) -> AccessPolicy {
    try AccessPolicy(
        parsing: Array(text.utf8), file: "access.policy", targets: ["null", "loop"],
        user: { ["alice": 1000, "bob": 1001][$0] }, group: { ["ubd": 990][$0] })
}
