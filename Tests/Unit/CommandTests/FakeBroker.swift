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
        var environment = CommandEnvironment(
            console: console, socketPath: socketPath, host: host, executable: Program.path,
            identity: { (node) throws(SystemError) in DeviceFlush.Identity(asFound: node) }, addSeconds: 10,
            callSeconds: 10, flushSeconds: 10, turnSeconds: 0)
        // No test reads what the user who runs it has enabled.
        let devices = folder.path + "/devices"
        environment.manager = { _ in ServiceManager(isSystem: false, folder: devices, runtime: nil) }
        return environment
    }

    static func device(
        id: UInt32 = 0, target: String = "loop", state: DeviceState = .live, reason: String? = nil,
        node: String? = nil, readOnly: Bool = false, file: String? = "1.img"
    ) -> Device {
        Device {
            ($0.id, $0.generation, $0.owner, $0.target) = (id, 40 + UInt64(id), 1000, target)
            ($0.state, $0.reason) = (state, reason)
            ($0.node, $0.link) = (node ?? "/dev/ublkb\(id)", "/dev/ubdb\(id)")
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (1 << 30, 512, 4096)
            ($0.readOnly, $0.file) = (readOnly, file)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 128, 524288)
            ($0.workerPid, $0.workerUid) = (4711, 1_879_048_192)
            $0.created = 1_790_000_000
        }
    }

    static let info = InfoReply {
        ($0.version, $0.kernel) = ("0.1.0", "6.12.95")
        $0.featureBits = 0x1FE
        $0.features = KernelFeature.names(in: 0x1FE)
        $0.ignoredFeatures = KernelFeature.ignoredNames(in: 0x1FE)
        $0.targets = ["null", "loop"]
        ($0.devices, $0.devicesOfCaller, $0.workerUidsFree) = (5, 2, 4091)
        ($0.workerGroup, $0.socket) = ("ubd-worker", "/run/ubd/io.ubd.Broker")
        $0.started = 1_790_000_000
        ($0.permitted, $0.rule) = (true, "allow group ubd")
        $0.limits = Limits {
            ($0.maxDevices, $0.maxQueues, $0.maxDepth, $0.maxMemoryBytes) = (8, 4, 256, 1 << 30)
            $0.targets = ["null", "loop"]
        }
    }
}
