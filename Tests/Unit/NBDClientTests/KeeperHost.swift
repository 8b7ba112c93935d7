import BrokerInterface
import Dialing
import Foundation
import Glibc
import SystemCalls
import Varlink

@testable import NBDClient

/// The broker's side of what a keeper says, one step after another.
struct Broker: ~Copyable {
    let listener: FileDescriptor
    let path: String

    init(_ path: String) throws {
        self.path = path
        listener = try SystemCalls.listen(at: path, backlog: 8)
    }

    /// The next connection with its call.
    func next() throws -> (call: Call, socket: Int32) {
        var waiting = pollfd(fd: listener.raw, events: Int16(POLLIN), revents: 0)
        guard poll(&waiting, 1, 20_000) == 1, let socket = try SystemCalls.accept(listener.raw) else {
            throw Failed(program: "nobody called")
        }
        _ = fcntl(socket.raw, F_SETFL, 0)
        var bytes: [UInt8] = []
        var byte: UInt8 = 1
        while byte != 0, recv(socket.raw, &byte, 1, 0) == 1 { bytes.append(byte) }
        return (try Call(message: bytes.dropLast()), socket.release())
    }

    /// Says that what is now has been told, and then the state.
    static func tell(_ socket: Int32, _ state: DeviceState?, waits: Bool, unanswered: Int64? = nil) {
        let change = DeviceChange {
            $0.id = 3
            $0.generation = 9
            $0.state = state
            $0.waits = waits
            $0.unanswered = unanswered
        }
        send(socket, MonitorReply(change: change).reply)
    }

    static func send(_ socket: Int32, _ reply: Reply, files: [Int32] = []) {
        _ = try? SystemCalls.send(socket, reply.message, files: files)
    }

    /// Takes the sockets that come with Recover.
    static func takeSockets(_ socket: Int32, _ count: Int) throws -> [Int32] {
        let pair = try makeMessagePair()
        send(socket, AddReply.files(count: count, parking: 0).reply, files: [pair.second.raw])
        var byte = [UInt8](repeating: 0, count: 8)
        let ours = pair.first.raw
        return try byte.withUnsafeMutableBytes { bytes in
            try receiveWithFiles(ours, into: bytes, maximum: 16, peek: false).files
        }
    }

    static var device: Device {
        Device {
            $0.id = 3
            $0.generation = 9
            $0.target = "nbd"
            $0.state = .live
            $0.node = "/dev/ublkb3"
        }
    }
}

/// A keeper in a thread, with everything that it needs.
final class Kept: @unchecked Sendable {
    private let finished = DispatchSemaphore(value: 0)

    /// Dials, and keeps device 3 of generation 9.
    init(_ words: [String], count: Int, server: Bool = false, log: String? = nil) throws {
        let arguments = try Arguments((["--connections", String(count)] + words).map { Array($0.utf8) })
        let attention = Attention()
        let command = server ? try ServerCommand(arguments.command, attention) { _ in } : nil
        try command?.start()
        let address =
            try command.map { NBDAddress(place: .local(path: $0.socketPath), export: [], tls: nil) }
            ?? arguments.address(arguments.uri ?? "")
        let dialer = Dialer(address: address, attention: attention)
        let keeper = Keeper(
            KeepOrder(id: 3, generation: 9), dialer, arguments, command,
            try ConnectionSet.dial(dialer, count: arguments.connections))
        if let log { keeper.journal.path = log }
        nonisolated(unsafe) let running = keeper
        let finished = finished
        Thread {
            running.run()
            finished.signal()
        }.start()
    }

    /// True when it has ended.
    func hasEnded() -> Bool { finished.wait(timeout: .now() + 20) == .success }
}

/// nbdkit with 10 MiB of memory, and keepers of connections to it.
struct MemoryServer {
    let server: RealServer
    /// Where the broker of its keepers listens.
    var broker: String { server.folder.path + "/b" }
    private static let uri = "nbd+unix:///?socket=%S"

    init() throws {
        server = try RealServer("nbdkit", ["-f", "-U", "%S", "memory", "10M"])
        _ = try server.address(Self.uri)
    }

    func keep(connections: Int, log: String? = nil) throws -> Kept {
        try Kept(["--uri", server.filled(Self.uri), "--broker", broker], count: connections, log: log)
    }
}
