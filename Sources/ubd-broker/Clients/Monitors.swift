import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// The replies to a call that has several. Each is made when the client has read the ones before.
protocol ReplySource {
    /// A reply can be made now.
    var hasNext: Bool { get }
    /// The next reply; nil when there is none at the moment.
    mutating func next() -> Reply?
}

/// One call of Monitor. It stores the numbers of devices that have changed, not the changes themselves, so its memory is bounded by
/// the number of devices, however slowly the client reads.
final class Monitor: ReplySource {
    /// What the client was last told of a device.
    private struct Told {
        let generation: UInt64
        let revision: UInt64
    }

    let uid: UInt32
    let pid: Int32
    /// The devices that the client began to keep, with their generations.
    let kept: [UInt32: UInt64]
    /// nil: all devices that the user may see.
    private let ids: Set<UInt32>?
    private let device: (UInt32) -> ManagedDevice?
    private let wake: () -> Void
    private var told: [UInt32: Told] = [:]
    /// The numbers of devices that may have changed, each once. Those before `first` have been told.
    private(set) var changed: [UInt32]
    private var first = 0
    private var isChanged: Set<UInt32>
    /// The present states and the reply after them have been told.
    private var isComplete = false

    /// `present`: the numbers of the devices at the beginning. `device`: finds a device, if this client may see it. `wake`: is
    /// called when `hasNext` becomes true.
    init(
        _ peer: PeerCredentials, ids: Set<UInt32>?, kept: [UInt32: UInt64], present: [UInt32],
        device: @escaping (UInt32) -> ManagedDevice?, wake: @escaping () -> Void
    ) {
        uid = peer.uid
        pid = peer.pid
        self.ids = ids
        self.kept = kept
        self.device = device
        self.wake = wake
        changed = present.sorted()
        isChanged = Set(present)
    }

    var hasNext: Bool { first < changed.count || !isComplete }

    /// One of the devices that the client keeps exists.
    var isKeeping: Bool { kept.contains { device($0.key)?.info.generation == $0.value } }

    /// The client kept devices, none of them exists, and it has been told so.
    var isOver: Bool { !kept.isEmpty && !hasNext && !isKeeping }

    /// A device with this number has changed, is new, or is gone.
    func note(_ id: UInt32) {
        guard ids?.contains(id) ?? true, told[id] != nil || device(id) != nil else { return }
        let wasIdle = !hasNext
        guard isChanged.insert(id).inserted else { return }
        changed.append(id)
        if wasIdle { wake() }
    }

    func next() -> Reply? {
        while first < changed.count {
            let id = changed[first]
            if let change = change(of: id) { return MonitorReply(change: change).reply }
            first += 1
            isChanged.remove(id)
            // A client that always leaves one may never see the list end. Half of it at once, so that a number is moved once.
            if first == changed.count || first > 64 && first * 2 > changed.count {
                changed.removeFirst(first)
                first = 0
            }
        }
        if isComplete { return nil }
        isComplete = true
        return MonitorReply(change: nil).reply
    }

    /// The next change with this number that the client has not been told; nil when there is none. The end of a device comes before
    /// a later device with its number.
    private func change(of id: UInt32) -> DeviceChange? {
        let device = device(id)
        if let last = told[id], last.generation != device?.info.generation {
            told[id] = nil
            return DeviceChange {
                ($0.id, $0.generation, $0.state) = (id, last.generation, nil)
                $0.since = Int64(time(nil))
            }
        }
        guard let device, told[id]?.revision != device.revision else { return nil }
        told[id] = Told(generation: device.info.generation, revision: device.revision)
        return DeviceChange {
            ($0.id, $0.generation, $0.state) = (id, device.info.generation, device.info.state)
            ($0.reason, $0.since, $0.waits) = (device.info.reason, device.info.since, device.waitsForFile)
            if device.waitsForFile, device.serverWait.unanswered > 0 { $0.unanswered = device.serverWait.unanswered }
        }
    }
}

/// All calls of Monitor.
final class Monitors {
    /// The limits of one user, and of all users but root. Calls that keep a device do not count while it exists: there is at most one
    /// per device.
    static let mostOfAccount = 8
    static let most = 224

    private var all: [ObjectIdentifier: (monitor: Monitor, account: UInt32)] = [:]

    /// A device with this number has changed.
    func note(_ id: UInt32) {
        for entry in all.values { entry.monitor.note(id) }
    }

    func add(_ monitor: Monitor, account: UInt32) { all[ObjectIdentifier(monitor)] = (monitor, account) }

    func remove(_ monitor: Monitor) { all[ObjectIdentifier(monitor)] = nil }

    /// The pid of the device's keeper; nil when it has none.
    func keeper(of device: ManagedDevice) -> Int32? {
        all.values.first { $0.monitor.kept[device.id] == device.info.generation }?.monitor.pid
    }

    /// Why one more call is refused; nil when it is not. `keeps`: it keeps a device. Such a call is held up only by calls of the same
    /// user whose own devices are gone: those end when their clients have read that.
    func refusal(account: UInt32, keeps: Bool) -> InterfaceError? {
        var counts: [UInt32: Int] = [:]
        for (monitor, account) in all.values where monitor.uid != 0 && !monitor.isKeeping {
            if !keeps || !monitor.kept.isEmpty { counts[account, default: 0] += 1 }
        }
        let isUserCrowded = counts[account, default: 0] >= Monitors.mostOfAccount
        // Whoever is beyond his own limit takes no more than his part from the others.
        let total = counts.values.reduce(0) { $0 + min($1, Monitors.mostOfAccount) }
        guard isUserCrowded || !keeps && total >= Monitors.most else { return nil }
        let (most, whom) =
            isUserCrowded ? (Monitors.mostOfAccount, "one user") : (Monitors.most, "users")
        return .limitReached(
            message: "the limit of \(most) monitors of \(whom) is reached",
            remedy: "end one of them, or try again later",
            limit: isUserCrowded ? "user-monitors" : "monitors", value: Int64(most))
    }
}
