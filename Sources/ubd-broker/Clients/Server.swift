import BrokerInterface
import CShims
import Glibc
import SystemCalls

/// Accepts clients within the limits of `Admission`.
///
/// The kernel queues connections in order of arrival, so root's wait behind everybody's. So nothing slow may happen to
/// a connection when it is accepted. Only looking up a user's groups can be slow, when there are very many: this
/// happens in fair turns, and only a few connections of one account may wait for it.
final class Server {
    /// The number of connections to accept before other events are handled.
    private static let acceptsPerTurn = 8

    /// Up to this many groups are looked up at once. The kernel takes about 40 ns for each: 3 ms for 65,536.
    private static let fewGroups = 1024

    /// A connection that waits for the lookup of its user's groups.
    private final class Arrival {
        var socket: FileDescriptor?
        let account: UInt32

        init(_ socket: consuming FileDescriptor, account: UInt32) {
            self.socket = consume socket
            self.account = account
        }
    }

    let broker: Broker
    private let listener: FileDescriptor
    private var watch: EventLoop.Watch?
    private(set) var connections: [ObjectIdentifier: Connection] = [:]
    private var arrivals: [ObjectIdentifier: Arrival] = [:]
    private var arrivalsOf: [UInt32: Int] = [:]
    private var perAccount: [UInt32: Int] = [:]
    private var perStanding: [Admission.Standing: Int] = [:]

    init(_ listener: consuming FileDescriptor, broker: Broker) {
        self.listener = consume listener
        self.broker = broker
    }

    func begin() throws(SystemError) {
        // Forbids files on these sockets where the kernel can (6.16): clients' files are parked, never received.
        do { try setOption(listener.raw, ubd_SO_PASSRIGHTS, 0) } catch {
            if error.errno != ENOPROTOOPT { throw error }
        }
        watch = try broker.loop.watch(listener.raw, .readable) { [unowned self] _ in acceptSome() }
    }

    /// The sockets in which clients can have put files, including those that wait to be admitted.
    var sockets: [Int32] {
        [listener.raw] + connections.values.compactMap(\.descriptor) + arrivals.values.compactMap { $0.socket?.raw }
    }

    func forget(_ connection: Connection) {
        guard connections.removeValue(forKey: ObjectIdentifier(connection)) != nil else { return }
        if !connection.isMonitor { count(connection, -1) }
    }

    /// It becomes one that hears what becomes of devices, and leaves its place to another. `Monitors` counts these, but not keepers:
    /// they end with their devices.
    func release(_ connection: Connection) { count(connection, -1) }

    private func count(_ connection: Connection, _ change: Int) {
        let left = perAccount[connection.account, default: 0] + change
        perAccount[connection.account] = left > 0 ? left : nil
        perStanding[connection.standing, default: 0] += change
    }

    private func acceptSome() {
        for _ in 0..<Server.acceptsPerTurn {
            do {
                guard let socket = try accept(listener.raw) else { return }
                arrive(socket)
            } catch {
                Log.client(.refusal, nil, .error, "accept", [("why", "\(error)")])
                return pause()
            }
        }
    }

    /// On a lack of descriptors or memory an immediate retry would only burn processor time.
    private func pause() {
        guard let watch else { return }
        broker.loop.change(watch, [])
        broker.loop.after(milliseconds: 100) { [unowned self] in broker.loop.change(watch, .readable) }
    }

    private func arrive(_ socket: consuming FileDescriptor) {
        let peer: PeerCredentials
        let groups: Int
        do {
            // Otherwise a peek skips urgent data (MSG_OOB), and the next read drops it with its files.
            try setOption(socket.raw, SO_OOBINLINE, 1)
            // The client is gone and has sent nothing, so a plain close cannot block.
            if hasEnded(socket.raw) { return }
            peer = try PeerCredentials(withoutGroupsOf: socket.raw)
            groups = try PeerCredentials.groupCount(of: socket.raw)
        } catch { return giveUp(socket, error) }
        if peer.uid != 0, let error = DescriptorReserve.refusal(socket.raw) {
            return refuse(socket, peer, error, error.reply.message)
        }
        let arrival = Arrival(socket, account: broker.account(of: peer.uid))
        if groups <= Server.fewGroups { lookAt(arrival) } else { letWait(arrival, peer) }
    }

    private func letWait(_ arrival: Arrival, _ peer: PeerCredentials) {
        let waiting = arrivalsOf[arrival.account] ?? 0
        if waiting >= Admission.mostArrivals, peer.uid != 0, let socket = arrival.socket.take() {
            let (error, reply) = Admission.tooManyArrivals
            return refuse(socket, peer, error, reply)
        }
        arrivals[ObjectIdentifier(arrival)] = arrival
        arrivalsOf[arrival.account] = waiting + 1
        broker.loop.inTurn(of: peer.uid == 0 ? .root : .arrivals, arrival.account) { [weak self] in
            guard let self else { return }
            arrivals[ObjectIdentifier(arrival)] = nil
            let rest = (arrivalsOf[arrival.account] ?? 1) - 1
            arrivalsOf[arrival.account] = rest > 0 ? rest : nil
            lookAt(arrival)
        }
    }

    private func lookAt(_ arrival: Arrival) {
        guard let socket = arrival.socket.take() else { return }
        let peer: PeerCredentials
        do { peer = try PeerCredentials(of: socket.raw, groups: broker.policy.groups.contains) } catch {
            return giveUp(socket, error)
        }
        admit(socket, peer, arrival.account)
    }

    private func giveUp(_ socket: consuming FileDescriptor, _ error: SystemError) {
        Log.client(.refusal, nil, .error, "peer", [("why", "\(error)")])
        broker.undertaker.letGo(socket, owner: 0, isStranger: true)
    }

    private func admit(_ socket: consuming FileDescriptor, _ peer: PeerCredentials, _ account: UInt32) {
        let standing = broker.standing(of: peer)
        switch verdict(account, standing) {
        case .refuse(let error):
            return refuse(socket, peer, error, error.reply.message, isStranger: standing == .stranger)
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

    private func verdict(_ account: UInt32, _ standing: Admission.Standing) -> Admission.Verdict<Connection> {
        Admission.decide(
            account: account, standing: standing, hanging: broker.undertaker.waiting(for: account),
            among: { connections.values.map(\.candidate) },
            counts: (perAccount[account] ?? 0, perStanding[standing] ?? 0), now: monotonicNanoseconds(),
            isQuiet: \.isQuiet)
    }

    /// `isStranger`: true also when the standing is not known yet.
    private func refuse(
        _ socket: consuming FileDescriptor, _ peer: PeerCredentials, _ error: InterfaceError, _ reply: [UInt8],
        isStranger: Bool = true
    ) {
        Log.client(
            .refusal, peer.uid, .notice, "connection-refused",
            [("uid", "\(peer.uid)"), ("pid", "\(peer.pid)"), ("result", "refused"), ("why", error.message)])
        // The empty socket buffer has room for a reply.
        _ = try? send(socket.raw, reply, wait: false)
        broker.undertaker.letGo(socket, owner: peer.uid, isStranger: isStranger)
    }
}
