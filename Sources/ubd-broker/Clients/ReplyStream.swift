import BrokerInterface
import SystemCalls
import Varlink
import WorkerProtocol

/// The replies to List and Stats, one device each. Each is made when the client has room for it, so that the memory for
/// a slow client does not grow with the number of devices.
struct ReplyStream: ReplySource {
    /// Numbers not yet processed. When a device's turn comes it is skipped if it is gone or not the client's.
    private var ids: ArraySlice<UInt32>
    /// The parameters of a reply with this device; nil to skip it.
    private let make: (UInt32) -> JSON?
    /// The parameters of a reply without devices.
    private let empty: JSON
    private var ahead: JSON?

    init(_ ids: [UInt32], empty: JSON, make: @escaping (UInt32) -> JSON?) {
        self.ids = ids.sorted()[...]
        self.empty = empty
        self.make = make
        ahead = pull()
    }

    /// At least one more device follows.
    var hasDevices: Bool { ahead != nil }

    /// The last reply comes in any case.
    let hasNext = true

    private mutating func pull() -> JSON? {
        while let id = ids.popFirst() {
            if let parameters = make(id) { return parameters }
        }
        return nil
    }

    /// The next reply. All but the last announce another one.
    mutating func next() -> Reply? {
        let parameters = ahead ?? empty
        ahead = pull()
        return Reply(parameters: parameters, continues: ahead != nil)
    }

    /// All devices in one reply, for a client that accepts only one.
    ///
    /// - Throws: `expectedMore` when it would exceed `limit` bytes.
    mutating func whole(limit: Int) throws(InterfaceError) -> Reply {
        guard case .object(var members) = ahead ?? empty,
            let place = members.firstIndex(where: { $0.name == "devices" })
        else { return Reply(parameters: ahead ?? empty) }
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
    /// The replies to List for this client.
    func listing(_ request: ListRequest, peer: PeerCredentials) throws(InterfaceError) -> ReplyStream {
        let ids = try visible(request.id, for: "list", peer)
        return ReplyStream(ids, empty: ListReply(devices: []).json) { [self] id in
            guard let device = devices[id], mayTouch(device, peer) else { return nil }
            return ListReply(devices: [description(of: device)]).json
        }
    }

    /// The replies to Stats for this client.
    func counting(_ request: StatsRequest, peer: PeerCredentials) throws(InterfaceError) -> ReplyStream {
        let perQueue = request.queues ?? false
        // Without `more` the counters of all queues of all devices would have to fit into one reply.
        if perQueue, request.id == nil { throw .invalidParameter(parameter: "queues") }
        let ids = try visible(request.id, for: "stats", peer)
        let bounds = StatisticsPage.Latency.bounds
        return ReplyStream(ids, empty: StatsReply(latencyBounds: bounds, devices: []).json) { [self] id in
            guard let device = devices[id], mayTouch(device, peer) else { return nil }
            return StatsReply(latencyBounds: bounds, devices: [device.stats(perQueue: perQueue)]).json
        }
    }

    /// The number of one device, or all numbers; ownership of those is checked when their turn comes.
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
