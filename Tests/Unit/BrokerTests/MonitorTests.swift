import BrokerInterface
import Glibc
import SystemCalls
import Testing
import Varlink
import WorkerProtocol

@testable import ubd_broker

@Suite("Watching devices")
struct MonitorTests {
    private static func device(
        _ id: UInt32, generation: UInt64 = 1, owner: UInt32 = Host.alice.uid, target: String = "null"
    ) throws -> ManagedDevice {
        let options = target == "null" ? [] : NBDHost.agreed
        return ManagedDevice(
            adding: try AddPlan(AddRequest(target: target, options: options)), mode: .copy, ioTimeout: 30,
            trustedContent: false, id: id, owner: owner, generation: generation, node: "/dev/ublkb\(id)")
    }

    /// A call, and how often there was something to tell again.
    private final class Call {
        var monitor: Monitor?
        var wakes = 0

        /// All that there is to tell now: "3 live", "3 gone"; "-" for the reply that says that this was all.
        func told() throws -> [String] {
            var all: [String] = []
            while let reply = monitor?.next() {
                #expect(reply.continues)
                let change = try MonitorReply(parameters: reply.parameters).change
                all.append(change.map { "\($0.id) \($0.state?.rawValue ?? "gone")" } ?? "-")
            }
            return all
        }
    }

    private func call(
        _ host: Host, _ request: MonitorRequest = MonitorRequest(), as peer: PeerCredentials = Host.alice,
        _ standing: Admission.Standing = .permitted
    ) throws -> Call {
        let call = Call()
        call.monitor = try host.broker.monitor(request, peer: peer, standing: standing) { call.wakes += 1 }
        return call
    }

    @Test("tells what is now, then each change of the caller's devices, and wakes once for all that waits")
    func tells() throws {
        let host = try Host()
        for id in [5, 2] as [UInt32] { host.broker.enlist(try Self.device(id)) }
        host.broker.enlist(try Self.device(3, owner: Host.bob.uid))
        let alice = try call(host)
        #expect(try alice.told() == ["2 adding", "5 adding", "-"])
        #expect(try alice.told() == [] && alice.monitor?.hasNext == false)
        host.broker.devices[5]?.setState(.live)
        host.broker.devices[3]?.setState(.live)
        host.broker.devices[2]?.setState(.live)
        #expect(alice.wakes == 1)
        #expect(try alice.told() == ["5 live", "2 live"])
        // Nothing has changed.
        host.broker.devices[5]?.setState(.live)
        #expect(alice.wakes == 1)
        host.broker.enlist(try Self.device(9))
        #expect(try alice.wakes == 2 && alice.told() == ["9 adding"])
        let root = try call(host, as: Host.root, .root)
        #expect(try root.told() == ["2 live", "3 live", "5 live", "9 adding", "-"])
    }

    @Test("a slow client is told what a device has become, and not what it was in between")
    func slow() throws {
        let host = try Host()
        host.broker.enlist(try Self.device(0))
        let alice = try call(host)
        #expect(try alice.told() == ["0 adding", "-"])
        for _ in 0..<1000 {
            host.broker.devices[0]?.setState(.live)
            host.broker.devices[0]?.setState(.recovering, reason: "it died")
        }
        #expect(try alice.wakes == 1 && alice.told() == ["0 recovering"])
        // A thousand devices that come and go leave nothing to remember.
        for generation in 2..<1000 as Range<UInt64> {
            let device = try Self.device(1, generation: generation)
            host.broker.enlist(device)
            host.broker.forget(device)
        }
        #expect(try alice.told() == [])
    }

    @Test("a client that always leaves one change unread makes the broker remember no more for it")
    func alwaysOneBehind() throws {
        let host = try Host()
        for id in 0..<2 as Range<UInt32> { host.broker.enlist(try Self.device(id)) }
        let alice = try call(host)
        _ = try alice.told()
        let monitor = try #require(alice.monitor)
        var told: [UInt32] = []
        var most = 0
        for turn in 0..<10_000 as Range<UInt32> {
            let device = try #require(host.broker.devices[turn % 2])
            device.setState(device.info.state == .live ? .recovering : .live)
            // The number stays until the next reply is asked for.
            if let reply = monitor.next(), let id = try MonitorReply(parameters: reply.parameters).change?.id {
                told.append(id)
            }
            most = max(most, monitor.changed.count)
        }
        #expect(monitor.hasNext && most <= 200)
        #expect(told == (0..<10_000).map { $0 % 2 })
    }

    @Test("the end of a device is told before another one that has its number")
    func replaced() throws {
        let host = try Host()
        let first = try Self.device(0)
        host.broker.enlist(first)
        let alice = try call(host, MonitorRequest(ids: [0]))
        #expect(try alice.told() == ["0 adding", "-"])
        host.broker.forget(first)
        #expect(try alice.told() == ["0 gone"])
        host.broker.enlist(try Self.device(0, generation: 2))
        host.broker.devices[0]?.setState(.live)
        host.broker.enlist(try Self.device(1))
        #expect(try alice.told() == ["0 live"])
        let second = try #require(host.broker.devices[0])
        host.broker.forget(second)
        host.broker.enlist(try Self.device(0, generation: 3))
        #expect(try alice.told() == ["0 gone", "0 adding"])
        // It has become another user's.
        host.broker.forget(try #require(host.broker.devices[0]))
        host.broker.enlist(try Self.device(0, generation: 4, owner: Host.bob.uid))
        #expect(try alice.told() == ["0 gone"])
    }

    @Test("whether a device waits for its inputs is told, too")
    func waiting() throws {
        let host = try NBDHost()
        let alice = try call(host.host)
        func waits() throws -> [Bool] {
            var all: [Bool] = []
            while let reply = alice.monitor?.next() {
                if let change = try MonitorReply(parameters: reply.parameters).change { all.append(change.waits) }
            }
            return all
        }
        #expect(try waits() == [false])
        host.end()
        #expect(try waits() == [true])
        _ = try host.recover().get()
        let after = try waits()
        #expect(after.last == false && !after.contains(true))
    }

    @Test("and how often new ones brought no answer before, which its keeper goes by")
    func unanswered() throws {
        // Without a limit: closes of sockets count for a moment.
        let host = try NBDHost(policy: "allow group=50 target=*\n")
        let alice = try call(host.host)
        func told() throws -> Int64? {
            var last: DeviceChange?
            while let reply = alice.monitor?.next() {
                last = try MonitorReply(parameters: reply.parameters).change ?? last
            }
            return last?.unanswered
        }
        for expected in [nil, 1, 2] as [Int64?] {
            host.end()
            #expect(try told() == expected)
            _ = try host.recover().get()
            #expect(try told() == nil)
        }
        try host.answer()
        host.end()
        #expect(try told() == nil)
    }

    @Test("a device is named that is there and the caller's")
    func names() throws {
        let host = try Host()
        host.broker.enlist(try Self.device(0))
        #expect(try call(host, MonitorRequest(ids: [0])).told() == ["0 adding", "-"])
        for (ids, peer) in [([0], Host.bob), ([0, 1], Host.alice)] as [([UInt32], PeerCredentials)] {
            let error = #expect(throws: InterfaceError.self) { try call(host, MonitorRequest(ids: ids), as: peer) }
            guard case .noSuchDevice? = error else {
                Issue.record("\(ids)")
                continue
            }
        }
    }

    @Test("a user has 8 such calls, all users 224 and root any number; those that keep a device do not count")
    func limits() throws {
        let host = try Host()
        for id in 0..<20 as Range<UInt32> {
            let device = try Self.device(id, target: "nbd")
            device.launch = LaunchMessage(target: .nbd, queues: 1, depth: 1, maxIOBytes: 4096)
            host.broker.enlist(device)
        }
        var calls: [Call] = []
        for id in 0..<20 as Range<UInt32> { calls.append(try call(host, MonitorRequest(ids: [id], keep: true))) }
        for _ in 0..<8 { calls.append(try call(host)) }
        func limit(_ peer: PeerCredentials) -> String? {
            do throws(InterfaceError) {
                calls.append(try anyCall(host, peer))
                return nil
            } catch {
                guard case .limitReached(_, _, let limit, let value) = error else { return "\(error)" }
                return "\(limit) \(value)"
            }
        }
        #expect(limit(Host.alice) == "user-monitors 8")
        host.broker.monitors.remove(try #require(calls.last?.monitor))
        #expect(limit(Host.alice) == nil)
        for uid in 5000..<5027 as Range<UInt32> {
            for _ in 0..<8 { #expect(limit(PeerCredentials(pid: 1, uid: uid, gid: 1, groups: [50])) == nil) }
        }
        #expect(limit(Host.bob) == "monitors 224")
        for _ in 0..<300 { #expect(limit(Host.root) == nil) }
    }

    private func enlistConnected(
        _ host: Host, _ id: UInt32, generation: UInt64 = 1, owner: UInt32 = Host.alice.uid
    ) throws {
        let device = try Self.device(id, generation: generation, owner: owner, target: "nbd")
        device.launch = LaunchMessage(target: .nbd, queues: 1, depth: 1, maxIOBytes: 4096)
        host.broker.enlist(device)
    }

    private func refusal(_ host: Host, _ request: MonitorRequest) throws -> String? {
        do throws(InterfaceError) {
            let monitor = try host.broker.monitor(request, peer: Host.alice, standing: .permitted) {}
            host.broker.monitors.remove(monitor)
            return nil
        } catch {
            guard case .limitReached(_, _, let limit, let value) = error else { return "\(error)" }
            return "\(limit) \(value)"
        }
    }

    @Test("a call that keeps counts as any other once its devices are gone, also when others have their numbers")
    func keepersOfNothing() throws {
        let host = try Host()
        for id in 0..<20 as Range<UInt32> { try enlistConnected(host, id) }
        var calls: [Call] = []
        // One of them keeps two: it keeps while there is one.
        calls.append(try call(host, MonitorRequest(ids: [0, 19], keep: true)))
        for id in 1..<19 as Range<UInt32> { calls.append(try call(host, MonitorRequest(ids: [id], keep: true))) }
        for _ in 0..<8 { calls.append(try call(host)) }
        try enlistConnected(host, 20)
        let (keeping, watching) = (MonitorRequest(ids: [20], keep: true), MonitorRequest())
        // What only watches holds up no keeper.
        #expect(try refusal(host, keeping) == nil && refusal(host, watching) == "user-monitors 8")
        for call in calls.suffix(8) { host.broker.monitors.remove(try #require(call.monitor)) }
        for id in 0..<8 as Range<UInt32> {
            #expect(try refusal(host, keeping) == nil && refusal(host, watching) == nil, "\(id)")
            host.broker.forget(try #require(host.broker.devices[id]))
            try enlistConnected(host, id, generation: 2)
        }
        // The first call still keeps device 19.
        #expect(try refusal(host, keeping) == nil)
        host.broker.forget(try #require(host.broker.devices[19]))
        #expect(try refusal(host, keeping) == "user-monitors 8" && refusal(host, watching) == "user-monitors 8")
        // It takes no more than a user's part from the others, and holds up none of their keepers.
        for id in 8..<19 as Range<UInt32> { host.broker.forget(try #require(host.broker.devices[id])) }
        #expect(try refusal(host, keeping) == "user-monitors 8")
        for uid in 5000..<5027 as Range<UInt32> {
            for _ in 0..<8 {
                calls.append(try anyCall(host, PeerCredentials(pid: 1, uid: uid, gid: 1, groups: [50])))
            }
        }
        let error = #expect(throws: InterfaceError.self) { try anyCall(host, Host.bob) }
        #expect(error?.name.hasSuffix("LimitReached") == true)
        try enlistConnected(host, 30, owner: Host.bob.uid)
        _ = try call(host, MonitorRequest(ids: [30], keep: true), as: Host.bob)
        for call in calls.prefix(12) { host.broker.monitors.remove(try #require(call.monitor)) }
        #expect(try refusal(host, keeping) == nil)
    }

    /// A client of a broker that serves on a socket, as this process's user.
    private final class Client {
        let socket: FileDescriptor
        private var heard = ""
        private(set) var hasEnded = false

        init(_ path: String, keep: Bool) throws {
            socket = try connect(to: path)
            let request = MonitorRequest(ids: [0, 1], keep: keep)
            let call = Varlink.Call(method: "io.ubd.Broker.Monitor", parameters: request.json, more: true)
            _ = try send(socket.raw, call.message)
        }

        /// Reads what has come. Returns the number of replies and of those that tell an end.
        func read() -> (all: Int, gone: Int) {
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = recv(socket.raw, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            if count == 0 { hasEnded = true }
            if count > 0 { heard += String(decoding: bytes.prefix(count), as: UTF8.self) }
            let replies = heard.split(separator: "\0")
            return (replies.count, replies.filter { $0.contains("gone") }.count)
        }
    }

    @Test("the connection of a keeper ends when it has been told that its devices are gone, and no other does")
    func keeperEnds() throws {
        let host = try Host()
        for id in 0..<2 as Range<UInt32> { try enlistConnected(host, id, owner: getuid()) }
        let server = Server(try listen(at: host.folder + "/monitors", backlog: 8), broker: host.broker)
        try server.begin()
        let keeper = try Client(host.folder + "/monitors", keep: true)
        let watcher = try Client(host.folder + "/monitors", keep: false)
        try host.run { keeper.read().all == 3 && watcher.read().all == 3 }
        host.broker.forget(try #require(host.broker.devices[0]))
        try host.run { keeper.read().gone == 1 && watcher.read().gone == 1 }
        // It keeps the other one.
        #expect(!keeper.hasEnded && server.connections.count == 2)
        host.broker.forget(try #require(host.broker.devices[1]))
        try host.run {
            _ = keeper.read()
            return keeper.hasEnded && watcher.read().gone == 2
        }
        #expect(keeper.read().gone == 2 && !watcher.hasEnded && server.connections.count == 1)
    }

    private func anyCall(_ host: Host, _ peer: PeerCredentials) throws(InterfaceError) -> Call {
        let call = Call()
        call.monitor = try host.broker.monitor(
            MonitorRequest(), peer: peer, standing: peer.uid == 0 ? .root : .permitted
        ) {}
        return call
    }

    @Test("a user to whom the policy gives nothing, and who has no device, is refused")
    func strangers() throws {
        let host = try Host()
        let error = #expect(throws: InterfaceError.self) { try call(host, as: Host.mallory, .stranger) }
        guard case .notPermitted? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
    }

    @Test("a device of connections has one keeper, of its owner's, which the list shows")
    func keeper() throws {
        let host = try NBDHost()
        let broker = host.host.broker
        _ = try host.host.add().get()
        func refusal(_ id: UInt32, _ peer: PeerCredentials) -> String? {
            let request = MonitorRequest(ids: [id], keep: true)
            do throws(InterfaceError) {
                _ = try broker.monitor(request, peer: peer, standing: .permitted) {}
                return nil
            } catch { return error.name.split(separator: ".").last.map(String.init) }
        }
        #expect(host.info?.keeper == nil)
        let keeper = try call(host.host, MonitorRequest(ids: [0], keep: true))
        #expect(host.info?.keeper == Host.alice.pid)
        #expect(refusal(0, Host.alice) == "Busy" && refusal(0, Host.root) == "NotPermitted")
        #expect(refusal(0, Host.bob) == "NoSuchDevice" && refusal(1, Host.alice) == "InvalidOption")
        // Who only looks keeps nothing.
        _ = try call(host.host, MonitorRequest(ids: [0]))
        #expect(host.info?.keeper == Host.alice.pid)
        broker.monitors.remove(try #require(keeper.monitor))
        #expect(host.info?.keeper == nil && refusal(0, Host.alice) == nil)
    }

    @Test("no record has a keeper: who watched an earlier broker's devices has to call again")
    func notRecorded() throws {
        let host = try NBDHost()
        _ = try call(host.host, MonitorRequest(ids: [0], keep: true))
        host.end()
        #expect(try host.host.broker.store.load().records.first?.device.keeper == nil)
    }
}
