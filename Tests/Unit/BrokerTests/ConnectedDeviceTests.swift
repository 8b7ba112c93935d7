import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("A device of connections, across brokers and upgrades")
struct ConnectedDeviceTests {
    // MARK: Another broker

    /// A host whose broker has just started, with a record of such a device.
    private func restarted(
        step: DeviceRecord.Step, state: DeviceState, lost: UInt64? = nil, worker: DeviceRecord.Worker? = nil,
        kernel: UblkDeviceState = .quiesced, reconnect: String = "60000"
    ) throws -> Host {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        var device = Device {
            ($0.generation, $0.owner, $0.target, $0.state) = (77, 1000, "nbd", state)
            ($0.node, $0.file) = ("/dev/ublkb0", "nbd://server")
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (1 << 20, 512, 4096)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
        }
        if state == .live { device.workerPid = worker?.pid ?? 99999 }
        var record = DeviceRecord(step: step, device: device, worker: worker, memoryBytes: 4096)
        let options = try DeviceOptions(
            target: .nbd, options: NBDHost.agreed + [OptionValue("reconnect", reconnect)])
        record.launch = LaunchMessage(target: .nbd, queues: 1, depth: 1, maxIOBytes: 4096, options: options)
        record.inputsLost = lost
        try host.broker.store.write(record)
        host.kernel.addDevice(0, generation: 77, state: kernel, pid: -1)
        var isDone = false
        try host.broker.reconcile { isDone = true }
        try host.run { isDone }
        return host
    }

    private func info(_ host: Host) -> Device? { host.broker.devices[0]?.info }

    @Test("waits when broker and worker died together, and its time begins then")
    func diedTogether() throws {
        let host = try restarted(step: .live, state: .live)
        #expect(info(host)?.state == .recovering && info(host)?.deaths == 1)
        #expect(info(host)?.reason?.contains("requests wait for 60 s") == true)
        #expect(host.broker.devices[0]?.waitsForFile == true)
        #expect(host.kernel.log.contains("startUserRecovery 0") == false)
        let record = try #require(host.broker.store.load().records.first)
        #expect(record.step == .recovering && record.inputsLost != nil)
        #expect(DeviceRecord(bytes: record.bytes) == record)
    }

    @Test("that waited when the broker ended has the rest of its time, and nonsense is no time")
    func restOfTime() throws {
        let now = monotonicNanoseconds()
        let late = try restarted(
            step: .recovering, state: .recovering, lost: now - min(now - 1, 5_000_000_000), reconnect: "1000")
        try late.run { self.info(late)?.state == .failed }
        let early = try restarted(step: .recovering, state: .recovering, lost: now, reconnect: "60000")
        #expect(info(early)?.state == .recovering && early.broker.devices[0]?.serverWait.began == now)
        let odd = try restarted(
            step: .recovering, state: .recovering, lost: now + 3_600_000_000_000, reconnect: "60000")
        #expect(odd.broker.devices[0].flatMap(\.serverWait.began).map { $0 <= monotonicNanoseconds() } == true)
    }

    @Test("goes on with its wait when broker and worker died together and new connections had brought no answer")
    func unansweredWait() throws {
        let now = monotonicNanoseconds()
        let host = try restarted(step: .live, state: .live, lost: now)
        #expect(info(host)?.state == .recovering && host.broker.devices[0]?.serverWait.began == now)
    }

    @Test("whose upgrade a broker's death cut off loses its worker, whose connections may have answers in them")
    func cutOffUpgrade() throws {
        let host = try restarted(step: .upgrading, state: .recovering)
        #expect(host.broker.devices[0]?.waitsForFile == true)
    }

    // MARK: Upgrades

    @Test("keeps them when its worker is upgraded, once all is answered")
    func upgrades() throws {
        let host = try NBDHost(features: [.perIODaemon, .quiesce])
        host.host.installed = try Host.program()
        host.host.kernel.beforeAnswer[.getDeviceInfo] = { host.host.kernel.quiesce(0) }
        #expect(try upgrade(host).get().upgraded)
        #expect(host.info?.state == .live && host.host.workers.map(\.isRehearsal) == [false, true, false])
    }

    @Test(
        "waits for fresh ones when its worker was upgraded before its server had answered all",
        arguments: [false, true])
    func notDrained(isFlush: Bool) throws {
        let host = try NBDHost(features: [.perIODaemon, .quiesce])
        host.host.installed = try Host.program()
        let page = try #require(host.device?.statistics)
        let memory = try Mapping.shared(page.file.raw, offset: 0, bytes: 4096, writable: true)
        host.host.kernel.beforeAnswer[.quiesceDevice] = {
            // The block layer does not count a flush.
            host.host.requestsInFlight = isFlush ? 0 : 1
            memory.base.storeBytes(of: 1, toByteOffset: StatisticsPage.Word.taken * 8, as: UInt64.self)
            host.host.kernel.quiesce(0)
            // It ends while its server owes it an answer.
            host.host.workers[0].dieSoon(.killed(signal: SIGKILL))
        }
        guard case .failure(.failed(let message, _, "drain", _)) = try upgrade(host) else {
            Issue.record("upgraded")
            return
        }
        #expect(message.contains("waits for new connections") && host.device?.waitsForFile == true)
        #expect(try host.recover().get().state == .live)
        withExtendedLifetime(memory) {}
    }

    @Test("is not upgraded where the kernel can not quiesce it")
    func needsQuiesce() throws {
        let host = try NBDHost(features: [])
        host.host.installed = try Host.program()
        guard case .failure(.kernelUnsupported(let message, _, "QUIESCE")) = try upgrade(host) else {
            Issue.record("upgraded")
            return
        }
        #expect(message.contains("connections") && host.info?.state == .live && host.host.workers.count == 1)
    }

    private func upgrade(_ host: NBDHost) throws -> Result<UpgradeReply, InterfaceError> {
        var result: Result<UpgradeReply, InterfaceError>?
        host.host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result = $0 }
        try host.host.run { result != nil }
        return try #require(result)
    }

    // MARK: A server that does not answer

    @Test(
        "says since when it waits for a server that does not answer; a worker that takes no requests is replaced",
        arguments: [4, 0])
    func silentServer(counted: Int) throws {
        var request = NBDHost.request()
        request.ioTimeout = 2
        let host = try NBDHost(request)
        let page = try #require(host.device?.statistics)
        let memory = try Mapping.shared(page.file.raw, offset: 0, bytes: 4096, writable: true)
        memory.base.storeBytes(of: 4, toByteOffset: StatisticsPage.Word.taken * 8, as: UInt64.self)
        // None of flushes, which the block layer does not count.
        host.host.requestsInFlight = counted
        let began = Int64(time(nil))
        Watchdog(host.host.broker).begin()
        try host.host.run { host.info?.reason != nil }
        #expect(host.info?.state == .live && host.info?.reason == "it waits for its server, which does not answer")
        #expect(host.info?.waitsSince.map { abs($0 - began) <= 2 } == true)
        host.host.requestsInFlight = 0
        memory.base.storeBytes(of: 0, toByteOffset: StatisticsPage.Word.taken * 8, as: UInt64.self)
        try host.host.run { host.info?.reason == nil }
        #expect(host.info?.waitsSince == nil)
        // It says that it has none of the requests that the kernel waits for.
        host.host.requestsInFlight = 4
        try host.host.run { host.info?.state == .recovering }
        #expect(host.info?.lastDeath?.contains("watchdog") == true)
        #expect(host.info?.reason?.contains("requests wait for 300 s") == true)
        withExtendedLifetime(memory) {}
    }
}
