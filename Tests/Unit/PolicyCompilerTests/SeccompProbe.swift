import Foundation
import Policy
import PolicyCompiler
import Testing

/// `ubd-policy-probe` (Tests/Support), which shows what the running kernel does with a filter.
enum SeccompProbe {
    struct Failure: Error { let message: String }

    /// How a scenario ended.
    enum End: Equatable {
        case exited(Int32)
        case signalled(Int32)
    }

    /// SwiftPM puts all programs of a build beside the test program.
    private static var program: URL {
        URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
            .appending(path: "ubd-policy-probe")
    }

    /// The fates of many calls, made natively or (on x86_64) through the i386 entry.
    static func fates(
        of calls: [SystemCall], under filter: FilterProgram, throughInt80: Bool = false
    ) throws -> [Fate] {
        try fates(of: calls, under: [filter], throughInt80: throughInt80)
    }

    /// The same under several filters, loaded one after another.
    static func fates(
        of calls: [SystemCall], under filters: [FilterProgram], throughInt80: Bool = false
    ) throws -> [Fate] {
        let entry = throughInt80 ? "int80" : "native"
        let lines = calls.map { call in
            ([entry] + ([call.number] + call.arguments).map { String($0, radix: 16) }).joined(separator: " ")
        }
        let (output, end) = try run("calls", filters, input: lines.joined(separator: "\n") + "\n")
        guard end == .exited(0) else { throw Failure(message: "ubd-policy-probe: \(end)") }
        let fates = try output.split(separator: "\n").map { line -> Fate in
            switch line.split(separator: " ").map(String.init) {
            case ["passed"]: return .passes
            case ["signal", "31"]: return .kills
            case let words where words.count == 2:
                guard let number = Int(words[1]) else { fallthrough }
                return words[0] == "errno" ? .fails(errno: number) : .dies(signal: number)
            default: throw Failure(message: "ubd-policy-probe: '\(line)'")
            }
        }
        guard fates.count == calls.count else {
            throw Failure(message: "ubd-policy-probe: \(fates.count) answers to \(calls.count) calls")
        }
        return fates
    }

    static func scenario(_ name: String, _ filters: [FilterProgram]) throws -> End {
        try run(name, filters, input: "").end
    }

    private static func run(
        _ command: String, _ filters: [FilterProgram], input: String
    ) throws -> (output: String, end: End) {
        let folder = FileManager.default.temporaryDirectory.appending(path: "ubd-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let paths = try filters.enumerated().map { index, filter in
            let file = folder.appending(path: "\(index).bpf")
            try filter.instructions.withUnsafeBytes { Data($0) }.write(to: file)
            return file.path
        }
        let inputFile = folder.appending(path: "input")
        try Data(input.utf8).write(to: inputFile)
        let process = Process()
        process.executableURL = program
        process.arguments = [command] + paths
        process.standardInput = try FileHandle(forReadingFrom: inputFile)
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        let output = String(decoding: try pipe.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
        process.waitUntilExit()
        let end: End =
            process.terminationReason == .exit
            ? .exited(process.terminationStatus) : .signalled(process.terminationStatus)
        return (output, end)
    }
}
