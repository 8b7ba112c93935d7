import BrokerInterface
import SystemCalls
import Varlink
import WorkerProtocol

/// The replies to List and Stats, a device each. Each is made when the client has room for it, so that what the broker keeps
/// for a client that reads slowly does not grow with the number of devices.
struct ReplyStream {
    /// Numbers that have not been looked at yet. Devices of others and such as have gone meanwhile are left out when it is
    /// their turn.
    private var ids: ArraySlice<UInt32>
    /// The parameters of a reply with that device alone; nil when it is not to be told of.
    private let make: (UInt32) -> JSON?
    /// Of a reply without any device.
    private let empty: JSON
    private var ahead: JSON?

    init(_ ids: [UInt32], empty: JSON, make: @escaping (UInt32) -> JSON?) {
        self.ids = ids.sorted()[...]
        self.empty = empty
        self.make = make
        ahead = pull()
    }

    /// There is at least one device more to tell of.
    var hasDevices: Bool { ahead != nil }

    private mutating func pull() -> JSON? {
        while let id = ids.popFirst() {
            if let parameters = make(id) { return parameters }
        }
        return nil
    }

    /// The next reply; the last one does not say that it continues.
    mutating func next() -> Reply {
        let parameters = ahead ?? empty
        ahead = pull()
        return Reply(parameters: parameters, continues: ahead != nil)
    }

    /// All in one reply, for a client that takes no more than one.
    ///
    /// - Throws: `expectedMore` when that would have more than `limit` bytes.
    mutating func whole(limit: Int) throws(InterfaceError) -> Reply {
        guard case .object(var members) = ahead ?? empty,
            let place = members.firstIndex(where: { $0.name == "devices" })
        else { return next() }
        var devices: [JSON] = []
        var bytes = JSON.object(members).bytes.count
        while let parameters = ahead {
            guard case .array(let more)? = parameters["devices"] else { break }
            bytes += more.reduce(0) { $0 + $1.bytes.count + 1 }
            if bytes > limit { throw .expectedMore }
            devices += more
            ahead = pull()
        }
        members[place].value = .array(devices)
        return Reply(parameters: .object(members))
    }
}

extension Broker {
    /// What List tells this client.
    func listing(_ request: ListRequest, peer: PeerCredentials) throws(InterfaceError) -> ReplyStream {
        let ids = try visible(request.id, for: "list", peer)
        return ReplyStream(ids, empty: ListReply(devices: []).json) { [self] id in
            guard let device = devices[id], mayTouch(device, peer) else { return nil }
            return ListReply(devices: [description(of: device)]).json
        }
    }

    /// What Stats tells this client of its devices.
    func counting(_ request: StatsRequest, peer: PeerCredentials) throws(InterfaceError) -> ReplyStream {
        let perQueue = request.queues ?? false
        // A reply has one device at most, but who asks for all of them without more is answered in one.
        if perQueue, request.id == nil { throw .invalidParameter(parameter: "queues") }
        let ids = try visible(request.id, for: "stats", peer)
        let bounds = StatisticsPage.Latency.bounds
        return ReplyStream(ids, empty: StatsReply(latencyBounds: bounds, devices: []).json) { [self] id in
            guard let device = devices[id], mayTouch(device, peer) else { return nil }
            return StatsReply(latencyBounds: bounds, devices: [device.stats(perQueue: perQueue)]).json
        }
    }

    /// Numbers of devices, that one or all; whose they are is looked at when it is their turn.
    private func visible(
        _ id: UInt32?, for what: String, _ peer: PeerCredentials
    ) throws(InterfaceError) -> [UInt32] {
        guard let id else { return Array(devices.keys) }
        guard let device = devices[id], mayTouch(device, peer) else {
            noteRefusal(of: id, for: what, peer)
            throw noSuchDevice(id)
        }
        return [id]
    }
}
