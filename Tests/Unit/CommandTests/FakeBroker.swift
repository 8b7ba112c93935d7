import BrokerInterface
import Foundation
import Glibc
import Synchronization
import SystemCalls
import Varlink

@testable import ubd

/// A broker whose behaviour a test defines, on a real socket in a thread of its own.
final class FakeBroker: Sendable {
    /// One connection, seen from the broker.
    struct Connection: ~Copyable {
        private let socket: FileDescriptor
        private var reader = FrameReader()

        init(_ socket: consuming FileDescriptor) {
            self.socket = socket
            // Tests block where the real broker polls.
            _ = fcntl(self.socket.raw, F_SETFL, 0)
        }

        /// The next call; nil when the client closed.
        mutating func receive() -> Call? {
            while true {
                if let message = reader.next() { return try? Call(message: message) }
                var bytes = [UInt8](repeating: 0, count: reader.room)
                let count = recv(socket.raw, &bytes, bytes.count, 0)
                guard count > 0 else { return nil }
                try? reader.append(bytes[..<count])
            }
        }

        func send(_ reply: Reply, files: [Int32] = []) { send(bytes: reply.message, files: files) }

        func send(bytes: [UInt8], files: [Int32] = []) {
            var rest = bytes[...]
            var files = files
            while !rest.isEmpty {
                guard let count = try? SystemCalls.send(socket.raw, Array(rest), files: files) else { return }
                rest = rest.dropFirst(count)
                files = []
            }
        }

        /// Asks for files and keeps those that come: the client's side of the parking socket goes with the reply.
        func askForFiles(_ count: Int) -> [Int32] {
            guard let pair = try? makeMessagePair() else { return [] }
            send(AddReply.files(count: count, parking: 0).reply, files: [pair.second.raw])
            // Do not wait for a client that never gets its end.
            close(pair.second.release())
            let ours = FileDescriptor(owning: pair.first.release())
            shutdown(ours.raw, Int32(SHUT_WR))
            var byte = [UInt8](repeating: 0, count: 8)
            let received = byte.withUnsafeMutableBytes { bytes in
                try? receiveWithFiles(ours.raw, into: bytes, maximum: 4, peek: false)
            }
            return received?.bytes == 1 ? received!.files : []
        }

        /// Waits until the client is gone.
        mutating func waitForEnd() -> Bool { receive() == nil }
    }

    let folder = TemporaryFolder()
    private let calls = Mutex<[Call]>([])
    private let finished = DispatchSemaphore(value: 0)
    var socketPath: String { folder.path + "/socket" }
    /// All calls received so far.
    var received: [Call] { calls.withLock { $0 } }

    /// Serves that many connections, one after another, each with the first call that it brings.
    init(connections: Int = 1, _ serve: @escaping @Sendable (inout Connection, Call) -> Void) {
        let path = socketPath
        let listener = try! SystemCalls.listen(at: path, backlog: 8).release()
        let thread = Thread { [self] in
            for _ in 0..<connections {
                var waiting = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
                guard poll(&waiting, 1, 20_000) == 1, let socket = try? SystemCalls.accept(listener) else { break }
                var connection = Connection(socket)
                guard let call = connection.receive() else { continue }
                calls.withLock { $0.append(call) }
                serve(&connection, call)
            }
            close(listener)
            finished.signal()
        }
        thread.start()
    }

    /// True when all connections were served.
    func finish() -> Bool { finished.wait(timeout: .now() + 20) == .success }

    /// The environment of a command with this broker.
    func environment(_ console: Recorder, host: any Machine = FakeMachine.healthy) -> CommandEnvironment {
        CommandEnvironment(
            console: console, socketPath: socketPath, host: host, executable: Program.path, addSeconds: 10,
            callSeconds: 10, flushSeconds: 10, turnSeconds: 0)
    }

    static func device(
        id: UInt32 = 0, target: String = "loop", state: DeviceState = .live, reason: String? = nil,
        node: String? = nil, readOnly: Bool = false, file: String? = "1.img"
    ) -> Device {
        Device(
            id: id, generation: 40 + UInt64(id), owner: 1000, target: target, state: state, reason: reason,
            node: node ?? "/dev/ublkb\(id)", link: "/dev/ubdb\(id)", sizeBytes: 1 << 30, blockSize: 512,
            physicalBlockSize: 4096, readOnly: readOnly, queues: 1, depth: 128, maxIOBytes: 524288, mode: .copy,
            buffered: false, file: file, workerPid: 4711, workerUid: 1_879_048_192, created: 1_790_000_000)
    }

    static let info = InfoReply(
        version: "0.1.0", kernel: "6.12.95", featureBits: 0x1FE, features: KernelFeature.names(in: 0x1FE),
        ignoredFeatures: KernelFeature.ignoredNames(in: 0x1FE), targets: ["null", "loop"], devices: 5,
        devicesOfCaller: 2, workerUidsFree: 4091, workerGroup: "ubd-worker", socket: "/run/ubd/io.ubd.Broker",
        controlGroup: nil, controllers: [], started: 1_790_000_000, permitted: true, rule: "allow group ubd",
        limits: Limits(
            maxDevices: 8, maxQueues: 4, maxDepth: 256, maxMemoryBytes: 1 << 30, maxSizeBytes: nil,
            targets: ["null", "loop"], readOnlyOnly: false, zeroCopy: false))
}
