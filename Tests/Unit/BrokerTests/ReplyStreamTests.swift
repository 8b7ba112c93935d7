import BrokerInterface
import Glibc
import Policy
import SystemCalls
import Testing
import Varlink

@testable import ubd_broker

/// List and Stats over a real socket, with more devices than any one reply could hold.
@Suite("List and Stats of many devices")
struct ReplyStreamTests {
    private static let count = 1000
    private static let label = String(repeating: "/long/name/of/a/backing/file", count: 100).suffix(1000)

    /// A broker that serves on a socket, with that many devices of this process's user.
    private final class Serving {
        let host: Host
        let server: Server
        let path: String

        init(devices: Int) throws {
            host = try Host()
            path = host.folder + "/socket"
            server = Server(try listen(at: path, backlog: 8), broker: host.broker)
            try server.begin()
            for id in 0..<UInt32(devices) {
                let request = AddRequest(target: "loop", fileName: String(ReplyStreamTests.label))
                let device = ManagedDevice(
                    adding: try AddPlan(request), mode: .copy, ioTimeout: 30, trustedContent: false, id: id,
                    owner: getuid(), generation: UInt64(id) + 1, node: "/dev/ublkb\(id)")
                host.broker.enlist(device)
            }
        }

        func client() throws -> Client {
            let socket = try connect(to: path)
            try socket.setNonBlocking()
            let before = server.connections.count
            try host.run { self.server.connections.count > before }
            // Some hosts have room for megabytes in a socket.
            for connection in server.connections.values {
                if let descriptor = connection.descriptor { try setOption(descriptor, SO_SNDBUF, 16_384) }
            }
            return Client(socket)
        }
    }

    /// The client's side, read while the broker's loop has nothing to do.
    private final class Client {
        let socket: FileDescriptor
        private var reader = FrameReader(limit: JSONLimits.reply.bytes)
        private(set) var replies: [Reply] = []
        private(set) var hasEnded = false

        init(_ socket: consuming FileDescriptor) { self.socket = socket }

        func call(_ method: String, _ parameters: JSON = .empty, more: Bool) throws {
            let call = Call(method: "io.ubd.Broker.\(method)", parameters: parameters, more: more)
            _ = try send(socket.raw, call.message)
        }

        /// Reads at most `most` bytes of the available data.
        func read(most: Int = 1 << 20) {
            var bytes = [UInt8](repeating: 0, count: min(most, reader.room))
            let count = recv(socket.raw, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            if count == 0 { hasEnded = true }
            guard count > 0 else { return }
            try? reader.append(bytes[..<count])
            while let message = reader.next() {
                if let reply = try? Reply(message: message) { replies.append(reply) }
            }
        }

        /// All replies to the current call have arrived.
        var isAnswered: Bool { replies.last?.continues == false }
    }

    @Test("with more a thousand devices with long labels come one by one, in order")
    func list() throws {
        let serving = try Serving(devices: Self.count)
        let client = try serving.client()
        try client.call("List", more: true)
        try serving.host.run {
            client.read()
            return client.isAnswered
        }
        #expect(client.replies.count == Self.count)
        let devices = try client.replies.flatMap { try ListReply(parameters: $0.parameters).devices }
        #expect(devices.map(\.id) == Array(0..<UInt32(Self.count)))
        #expect(devices.allSatisfy { $0.file == String(Self.label) })
        // The connection can be used for another call.
        try client.call("Stats", more: true)
        try serving.host.run {
            client.read()
            return client.replies.count > Self.count && client.isAnswered
        }
        #expect(client.replies.count == 2 * Self.count)
        let last = try StatsReply(parameters: #require(client.replies.last).parameters)
        #expect(last.devices.map(\.id) == [UInt32(Self.count) - 1] && !last.latencyBounds.isEmpty)
    }

    @Test("without more they come in one reply as long as that is short, and then the error asks for more")
    func withoutMore() throws {
        for (count, fits) in [(0, true), (1, true), (100, true), (Self.count, false)] {
            let serving = try Serving(devices: count)
            let client = try serving.client()
            try client.call("List", more: false)
            try serving.host.run {
                client.read()
                return client.isAnswered
            }
            let reply = try #require(client.replies.first)
            #expect(client.replies.count == 1)
            if fits {
                #expect(try ListReply(parameters: reply.parameters).devices.count == count)
            } else {
                #expect(reply.error == InterfaceError.expectedMore.name)
            }
        }
    }

    @Test("nobody's devices are one reply without any")
    func none() throws {
        let serving = try Serving(devices: 0)
        let client = try serving.client()
        try client.call("List", more: true)
        try serving.host.run {
            client.read()
            return client.isAnswered
        }
        #expect(client.replies == [Reply(parameters: ListReply(devices: []).json)])
    }

    @Test("what the broker keeps for a client that does not read is bounded, and others are answered")
    func slowReader() throws {
        let serving = try Serving(devices: Self.count)
        let slow = try serving.client()
        try slow.call("List", more: true)
        let other = try serving.client()
        try other.call("Info", more: false)
        try serving.host.run {
            other.read()
            return other.isAnswered
        }
        try serving.host.run { serving.server.connections.values.contains { $0.backlog.count > 0 } }
        let kept = serving.server.connections.values.map(\.backlog.count).max() ?? 0
        #expect(kept > 0 && kept < 40_000)
        // It gets all replies in the end, however slowly it reads.
        try serving.host.run {
            for _ in 0..<10 { slow.read(most: 5000) }
            let most = serving.server.connections.values.map(\.backlog.count).max() ?? 0
            if most >= 40_000 { Issue.record("\(most) bytes are kept") }
            return slow.isAnswered
        }
        #expect(slow.replies.count == Self.count)
    }

    @Test(
        "a device that goes, or becomes another's, is left out when its turn comes; the last reply says that it is the last"
    )
    func changes() throws {
        let serving = try Serving(devices: Self.count)
        let peer = PeerCredentials(pid: 1, uid: 4711, gid: 1, groups: [])
        for id in 0..<UInt32(5) { serving.host.broker.devices[id]?.info.owner = 4711 }
        var replies = try serving.host.broker.listing(ListRequest(), peer: peer)
        let first = replies.next()
        #expect(try first.map { try ListReply(parameters: $0.parameters).devices.map(\.id) } == [0])
        serving.host.broker.devices[2] = nil
        serving.host.broker.devices[4]?.info.owner = 1
        let rest = [replies.next(), replies.next()].compactMap { $0 }
        #expect(try rest.map { try ListReply(parameters: $0.parameters).devices.map(\.id) } == [[1], [3]])
        #expect(rest.map(\.continues) == [true, false])
    }

    @Test(
        "Monitor tells changes as they come, keeps little for a client that does not read, and ends with its connection"
    )
    func monitor() throws {
        let serving = try Serving(devices: 20)
        let client = try serving.client()
        try client.call("Monitor", more: true)
        try serving.host.run {
            client.read()
            return client.replies.count == 21
        }
        let told = try client.replies.map { try MonitorReply(parameters: $0.parameters).change?.id }
        #expect(told == (0..<20).map { UInt32($0) } + [nil])
        let allContinue = client.replies.allSatisfy { $0.continues }
        #expect(allContinue)
        let connection = try #require(serving.server.connections.values.first)
        #expect(connection.isMonitor && connection.candidate.isBusy)
        // Nobody reads now.
        for round in 0..<500 {
            for device in serving.host.broker.devices.values {
                device.setState(.recovering, reason: String(repeating: "x", count: 1000) + "\(round)")
            }
            var isLater = false
            serving.host.loop.later { isLater = true }
            try serving.host.run { isLater }
        }
        #expect(connection.backlog.count < 64 << 10)
        var last: [UInt32: String] = [:]
        try serving.host.run {
            client.read()
            for reply in client.replies {
                guard let change = try? MonitorReply(parameters: reply.parameters).change else { continue }
                last[change.id] = change.reason
            }
            return last.count == 20 && last.values.allSatisfy { $0.hasSuffix("x499") }
        }
        #expect(client.replies.count < 20 * 500)
        shutdown(client.socket.raw, Int32(SHUT_RDWR))
        try serving.host.run { serving.server.connections.isEmpty }
        serving.host.broker.devices[0]?.setState(.live)
    }

    @Test("a client that leaves in the middle is forgotten")
    func leaves() throws {
        let serving = try Serving(devices: Self.count)
        do {
            let client = try serving.client()
            try client.call("List", more: true)
            try serving.host.run { serving.server.connections.values.contains { $0.backlog.count > 0 } }
        }
        try serving.host.run { serving.server.connections.isEmpty }
    }
}
