import Foundation
import Forked
import Glibc

@testable import NBDClient

/// A server of Debian's in a process of its own, for as long as this lives.
final class RealServer {
    let folder: URL
    private let process: ChildProcess
    let port: UInt16

    /// "%S" in the arguments is the path of a socket, "%P" a free port, "%D" the folder.
    init(_ program: String, _ arguments: [String], prepare: (URL, UInt16) throws -> Void = { _, _ in }) throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("nbd-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        port = Self.freePort()
        try prepare(folder, port)
        let (place, number) = (folder, port)
        process = try ChildProcess([program] + arguments.map { Self.filled($0, place, number) })
    }

    func filled(_ text: String) -> String { Self.filled(text, folder, port) }

    private static func filled(_ text: String, _ folder: URL, _ port: UInt16) -> String {
        text.replacingOccurrences(of: "%S", with: folder.appendingPathComponent("s").path)
            .replacingOccurrences(of: "%P", with: String(port)).replacingOccurrences(of: "%D", with: folder.path)
    }

    var socket: String { folder.appendingPathComponent("s").path }

    /// The address of a URI with the same letters, once somebody listens there.
    func address(_ uri: String) throws -> NBDAddress {
        let address = try NBDAddress(filled(uri))
        for _ in 0..<200 {
            if (try? StreamSocket(address, Deadline(seconds: 5), Attention())) != nil { return address }
            usleep(50_000)
        }
        return address
    }

    func stop() {
        // One that has gone into the background left its number there.
        if let text = try? String(contentsOf: folder.appendingPathComponent("pid"), encoding: .utf8),
            let daemon = pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines))
        {
            kill(daemon, SIGTERM)
        }
        process.end()
    }

    deinit {
        stop()
        try? FileManager.default.removeItem(at: folder)
    }

    private static func freePort() -> UInt16 {
        let file = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(file) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = in_addr_t(0x7F00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        withUnsafeMutablePointer(to: &address) { pointer in
            _ = bind(file, __CONST_SOCKADDR_ARG(__sockaddr_in__: UnsafePointer(pointer)), size)
            _ = getsockname(file, __SOCKADDR_ARG(__sockaddr_in__: pointer), &size)
        }
        return UInt16(bigEndian: address.sin_port)
    }
}

/// Runs a program and waits for it.
func perform(_ program: String, _ arguments: [String]) throws {
    guard try ChildProcess([program] + arguments).wait() == 0 else { throw Failed(program: program) }
}

struct Failed: Error { let program: String }

/// Reads 512 bytes at an offset, by the simplest request of the transmission phase; nil when the answer is not one.
func readSector(_ file: Int32, at offset: UInt64) -> [UInt8]? {
    let request =
        Wire.number(UInt32(0x2560_9513)) + [0, 0, 0, 0] + Wire.number(UInt64(77)) + Wire.number(offset)
        + Wire.number(UInt32(512))
    guard write(file, request, request.count) == request.count else { return nil }
    var reply = [UInt8](repeating: 0, count: 16 + 512)
    guard recv(file, &reply, reply.count, Int32(MSG_WAITALL)) == reply.count,
        Array(reply.prefix(16)) == Wire.number(UInt32(0x6744_6698)) + [0, 0, 0, 0] + Wire.number(UInt64(77))
    else { return nil }
    return Array(reply.dropFirst(16))
}
