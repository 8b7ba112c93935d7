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
