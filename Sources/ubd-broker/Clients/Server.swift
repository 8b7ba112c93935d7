import BrokerInterface
import CShims
import Glibc
import SystemCalls

/// Accepts clients, so many in all and so many of one user (`Admission`).
final class Server {
    /// Connections that are accepted before the others have their turn.
    private static let acceptsPerTurn = 8

    let broker: Broker
    private let listener: FileDescriptor
    private var watch: EventLoop.Watch?
    private(set) var connections: [ObjectIdentifier: Connection] = [:]
    private var perAccount: [UInt32: Int] = [:]
    private var perStanding: [Admission.Standing: Int] = [:]

    init(_ listener: consuming FileDescriptor, broker: Broker) {
        self.listener = consume listener
        self.broker = broker
    }

    func begin() throws(SystemError) {
        // No files by this way where the kernel can forbid it (6.16): those of clients are parked, never received.
        do { try setOption(listener.raw, ubd_SO_PASSRIGHTS, 0) } catch {
            if error.errno != ENOPROTOOPT { throw error }
        }
        watch = try broker.loop.watch(listener.raw, .readable) { [unowned self] _ in acceptSome() }
    }

    /// All that clients can have put files into: the connections, and those that nobody has accepted yet.
    var sockets: [Int32] { [listener.raw] + connections.values.compactMap(\.descriptor) }

    func forget(_ connection: Connection) {
        guard connections.removeValue(forKey: ObjectIdentifier(connection)) != nil else { return }
        count(connection, -1)
    }

    private func count(_ connection: Connection, _ change: Int) {
        let left = perAccount[connection.account, default: 0] + change
        perAccount[connection.account] = left > 0 ? left : nil
        perStanding[connection.standing, default: 0] += change
    }

    private func acceptSome() {
        for _ in 0..<Server.acceptsPerTurn {
            do {
                guard let socket = try accept(listener.raw) else { return }
                admit(socket)
            } catch {
                Log.client(.refusal, nil, .error, "accept", [("why", "\(error)")])
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

    private func admit(_ socket: consuming FileDescriptor) {
        let peer: PeerCredentials
        do {
            peer = try PeerCredentials(of: socket.raw)
            // Otherwise urgent data (MSG_OOB) is skipped by a peek and dropped by the next read, with its files.
            try setOption(socket.raw, SO_OOBINLINE, 1)
        } catch {
            Log.client(.refusal, nil, .error, "peer", [("why", "\(error)")])
            return broker.undertaker.letGo(socket, owner: 0, isStranger: true)
        }
        let account = broker.account(of: peer.uid)
        let standing = broker.standing(of: peer)
        switch verdict(socket.raw, account, standing) {
        case .refuse(let error): return refuse(socket, peer, standing, error)
        case .keepInsteadOf(let idle): idle.makeRoom()
        case .keep: break
        }
        let connection = Connection(socket, peer: peer, account: account, standing: standing, server: self)
        connections[ObjectIdentifier(connection)] = connection
        count(connection, 1)
        do { try connection.begin() } catch {
            Log.client(.refusal, peer.uid, .error, "connection", [("why", "\(error)")])
            connection.close()
        }
    }

    private func verdict(
        _ descriptor: Int32, _ account: UInt32, _ standing: Admission.Standing
    ) -> Admission.Verdict<Connection> {
        if standing != .root, let error = DescriptorReserve.refusal(descriptor) { return .refuse(error) }
        return Admission.decide(
            account: account, standing: standing, hanging: broker.undertaker.waiting(for: account),
            among: { connections.values.map(\.candidate) },
            counts: (perAccount[account] ?? 0, perStanding[standing] ?? 0), now: monotonicNanoseconds(),
            isQuiet: \.isQuiet)
    }

    private func refuse(
        _ socket: consuming FileDescriptor, _ peer: PeerCredentials, _ standing: Admission.Standing,
        _ error: InterfaceError
    ) {
        Log.client(
            .refusal, peer.uid, .notice, "connection-refused",
            [("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("result", "refused"), ("why", error.message)])
        // There is room for that much in a socket that nothing was written to.
        _ = try? send(socket.raw, error.reply.message, wait: false)
        broker.undertaker.letGo(socket, owner: peer.uid, isStranger: standing == .stranger)
    }
}
