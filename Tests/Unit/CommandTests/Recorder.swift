import Foundation
import Glibc
import SystemCalls

@testable import ubd

/// A console that records its output.
final class Recorder: Console {
    private(set) var output: [String] = []
    private(set) var errors: [String] = []
    private(set) var asides: [String] = []
    private(set) var progressLines: [String] = []
    var lost: SystemError?

    func out(_ text: String) { output.append(text) }
    private(set) var drawings: [String] = []
    func draw(_ text: String) { drawings.append(text) }
    func error(_ text: String) { errors.append(text) }
    func aside(_ text: String) { asides.append(text) }
    func wait(milliseconds: UInt64) {}
    func finish() {}
    func progress(_ text: String?) { if let text { progressLines.append(text) } }
}

/// A folder for one test, removed at its end. Its path is short, since a socket's path must be.
final class TemporaryFolder: Sendable {
    let path: String

    init() {
        var template = Array("/tmp/ubd-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else { fatalError("mkdtemp: \(String(cString: strerror(errno)))") }
        path = String(cString: made)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// A new file of that many zero bytes.
    func file(_ name: String, bytes: Int, mode: mode_t = 0o644) -> String {
        let file = path + "/" + name
        let fd = open(file, O_CREAT | O_RDWR | O_EXCL | O_CLOEXEC, mode)
        guard fd >= 0, ftruncate(fd, off_t(bytes)) == 0 else {
            fatalError("\(file): \(String(cString: strerror(errno)))")
        }
        fchmod(fd, mode)
        close(fd)
        return file
    }
}

extension DeviceFlush.Identity {
    /// What the file is, as if it were the device's node. Tests can make no disks.
    init(asFound node: String) {
        var found = stat()
        self = stat(node, &found) == 0 ? Self(type: found.st_mode & S_IFMT, number: found.st_rdev) : Self(number: 0)
    }
}

/// The program that was built beside these tests.
enum Program {
    static let path = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        .appendingPathComponent("ubd").path

    struct Result {
        var status: Int32
        var output: String
        var errors: String
    }

    /// `shell`: a script for sh that executes the program, which is its $0, with its arguments.
    static func start(
        _ arguments: [String], socket: String, shell: String? = nil
    ) throws -> (process: Process, output: Pipe, errors: Pipe) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: shell == nil ? path : "/bin/sh")
        process.arguments = (shell.map { ["-c", $0, path] } ?? []) + arguments
        process.environment = ["UBD_SOCKET": socket, "PATH": "/usr/bin:/bin"]
        let output = Pipe()
        let errors = Pipe()
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = errors
        // The threads of the test runner block most signals. A child inherits that, and must not mind.
        try process.run()
        return (process, output, errors)
    }

    static func run(_ arguments: [String], socket: String, shell: String? = nil) throws -> Result {
        let (process, output, errors) = try start(arguments, socket: socket, shell: shell)
        let out = output.fileHandleForReading.readDataToEndOfFile()
        let error = errors.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return Result(
            status: process.terminationStatus, output: String(decoding: out, as: UTF8.self),
            errors: String(decoding: error, as: UTF8.self))
    }
}
