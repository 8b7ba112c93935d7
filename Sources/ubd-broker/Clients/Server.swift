import CShims
import Glibc
import SystemCalls

/// Accepts clients, so many in all and so many of one user.
final class Server {
    private static let mostConnections = 256
    private static let mostConnectionsPerUser = 16

    let broker: Broker
    private let listener: FileDescriptor
    private var watch: EventLoop.Watch?
    private(set) var connections: [ObjectIdentifier: Connection] = [:]
    private var perUser: [UInt32: Int] = [:]
    /// Connections refused since the log last told of one.
    private var refused = 0
    /// Nanoseconds of the monotonic clock: until then the log tells of none.
    private var quietUntil: UInt64 = 0

    init(_ listener: consuming FileDescriptor, broker: Broker) {
        self.listener = consume listener
        self.broker = broker
    }

    func begin() throws(SystemError) {
        // No files by this way where the kernel can forbid it (6.16): those of clients are parked, never received.
        do { try setOption(listener.raw, ubd_SO_PASSRIGHTS, 0) } catch {
            if error.errno != ENOPROTOOPT { throw error }
        }
        watch = try broker.loop.watch(listener.raw, .readable) { [unowned self] _ in acceptAll() }
    }

    /// All that clients can have put files into: the connections, and those that nobody has accepted yet.
    var sockets: [Int32] { [listener.raw] + connections.values.compactMap(\.descriptor) }

    func forget(_ connection: Connection) {
        guard connections.removeValue(forKey: ObjectIdentifier(connection)) != nil else { return }
        let uid = connection.peer.uid
        perUser[uid, default: 1] -= 1
        if perUser[uid] == 0 { perUser[uid] = nil }
    }

    private func acceptAll() {
        // A few, then those that are connected have their turn.
        for _ in 0..<16 {
            do {
                guard let socket = try accept(listener.raw) else { return }
                admit(socket)
            } catch {
                Log.error("accept", ("why", "\(error)"))
                return pause()
            }
        }
    }

    /// Out of descriptors or memory: trying again at once would only burn the processor.
    private func pause() {
        guard let watch else { return }
        broker.loop.change(watch, [])
        broker.loop.after(milliseconds: 100) { [unowned self] in broker.loop.change(watch, .readable) }
    }

    /// One line a second at most: a flood of connections is not to become one of the log.
    private func noteRefusal(of peer: PeerCredentials) {
        refused += 1
        let now = monotonicNanoseconds()
        guard now >= quietUntil else { return }
        Log.notice(
            "connection-refused", ("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("why", "too many"),
            ("refused", "\(refused)"))
        quietUntil = now + 1_000_000_000
        refused = 0
    }

    private func admit(_ socket: consuming FileDescriptor) {
        let peer: PeerCredentials
        do {
            peer = try PeerCredentials(of: socket.raw)
            // Otherwise urgent data (MSG_OOB) is skipped by a peek and dropped by the next read, with its files.
            try setOption(socket.raw, SO_OOBINLINE, 1)
        } catch {
            Log.error("peer", ("why", "\(error)"))
            return broker.undertaker.letGo(socket, owner: 0)
        }
        // Root always gets in: it is the one who has to mend things.
        let isFull = connections.count >= Server.mostConnections && peer.uid != 0
        if isFull || perUser[peer.uid, default: 0] >= Server.mostConnectionsPerUser {
            noteRefusal(of: peer)
            return broker.undertaker.letGo(socket, owner: peer.uid)
        }
        let connection = Connection(socket, peer: peer, server: self)
        connections[ObjectIdentifier(connection)] = connection
        perUser[peer.uid, default: 0] += 1
        do { try connection.begin() } catch {
            Log.error("connection", ("why", "\(error)"))
            connection.close()
        }
    }
}
