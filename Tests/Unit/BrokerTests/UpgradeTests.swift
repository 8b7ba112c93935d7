import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("Upgrading a device's worker")
struct UpgradeTests {
    /// A host with one live device, and a new worker program since then.
    private func host(
        features: UblkFeatures = [.perIODaemon, .quiesce], _ request: AddRequest = AddRequest(target: "null")
    ) throws -> Host {
        let host = try Host()
        host.kernel.features = features
        _ = try host.add(request).get()
        host.installed = try Host.program()
        // It notices the death of its server.
        host.kernel.beforeAnswer[.getDeviceInfo] = { host.kernel.quiesce(0) }
        return host
    }

    private func upgrade(_ host: Host, as peer: PeerCredentials = Host.alice) throws -> Result<
        UpgradeReply, InterfaceError
    > {
        var result: Result<UpgradeReply, InterfaceError>?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: peer) { result = $0 }
        try host.run { result != nil }
        return try #require(result)
    }

    private func info(_ host: Host) -> Device? { host.broker.devices[0].map(host.broker.description) }

    @Test("lets go of a rehearsal that is over, and with it of the page that its worker counted in")
    func rehearsalIsFreed() throws {
        let host = try host()
        let device = try #require(host.broker.devices[0])
        weak var rehearsal: Rehearsal?
        var isOver = false
        do {
            let parking = device.parking?.raw
            let (launch, end) = (try #require(device.relaunch), try #require(parking))
            let made = Rehearsal(of: host.installed, for: device, launch, parking: end, broker: host.broker)
            made.begin { _ in isOver = true }
            rehearsal = made
        }
        #expect(rehearsal != nil)
        try host.run { isOver }
        // As a real worker does when its owner drops it.
        host.workers.last?.setHandler { _ in }
        #expect(rehearsal == nil)
    }

    @Test(
        "quiesces, drains, and lets a worker of the new program take over, which all later ones are of",
        arguments: [3, nil])
    func upgrades(inFlight: Int?) throws {
        let host = try host()
        #expect(info(host)?.workerOutdated == true)
        // New workers still run the program of the first worker.
        // An unknown number is not zero.
        host.requestsInFlight = inFlight
        var drained = false
        host.kernel.beforeAnswer[.quiesceDevice] = {
            host.loop.after(milliseconds: 20) {
                #expect(host.workers[0].isAlive)
                drained = true
                host.requestsInFlight = 0
            }
        }
        #expect(try upgrade(host).get().upgraded)
        #expect(drained)
        #expect(host.workers.map(\.isRehearsal) == [false, true, false])
        #expect(host.workers[2].binary == host.installed.file.raw)
        #expect(host.broker.program === host.installed)
        #expect(info(host)?.state == .live)
        #expect(info(host)?.workerOutdated == false)
        #expect(info(host)?.deaths == 0)
        let commands = host.kernel.log.filter { !$0.hasPrefix("get") }.suffix(3)
        #expect(Array(commands) == ["quiesceDevice 0", "startUserRecovery 0", "endUserRecovery 0"])
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("waits for flushes, which the block layer does not count, until the worker has given back all that it took")
    func flushes() throws {
        let host = try host()
        let page = try #require(host.broker.devices[0]?.statistics)
        let memory = try Mapping.shared(page.file.raw, offset: 0, bytes: 4096, writable: true)
        func count(_ word: Int) {
            let value = page.word(queue: 0, word) + 1
            memory.base.storeBytes(of: value, toByteOffset: word * 8, as: UInt64.self)
        }
        var drained = false
        host.kernel.beforeAnswer[.quiesceDevice] = {
            count(StatisticsPage.Word.taken)
            host.loop.after(milliseconds: 50) {
                #expect(host.workers[0].isAlive)
                drained = true
                count(StatisticsPage.Word.requests + StatisticsPage.Operation.flush.rawValue)
            }
        }
        #expect(try upgrade(host).get().upgraded)
        #expect(drained && info(host)?.state == .live)
        withExtendedLifetime(memory) {}
    }

    @Test("kills where the kernel can not quiesce, and only where it repeats what the worker had taken")
    func kills() throws {
        let host = try host(features: [])
        #expect(try upgrade(host).get().upgraded)
        #expect(!host.kernel.log.contains("quiesceDevice 0"))
        let other = try self.host(features: [], AddRequest(target: "null", recovery: "queue"))
        let error = #expect(throws: InterfaceError.self) { try upgrade(other).get() }
        #expect(error?.name == "io.ubd.Broker.KernelUnsupported")
        #expect(other.workers.count == 1)
    }

    @Test("quiesces no device in batch mode: the driver would fail its requests")
    func sparesBatch() throws {
        let host = try host(features: [.perIODaemon, .quiesce, .batchIO], AddRequest(target: "null", mode: "batch"))
        #expect(try upgrade(host).get().upgraded)
        #expect(!host.kernel.log.contains("quiesceDevice 0"))
    }

    @Test("a device of an older broker, which did not ask for it, is killed too, or left as it was")
    func notAsked() throws {
        let host = try host()
        host.kernel.failures[.quiesceDevice] = EOPNOTSUPP
        #expect(try upgrade(host).get().upgraded)
        let other = try self.host(AddRequest(target: "null", recovery: "queue"))
        other.kernel.failures[.quiesceDevice] = EOPNOTSUPP
        #expect(throws: InterfaceError.self) { try upgrade(other).get() }
        #expect(info(other)?.state == .live)
        #expect(other.workers[0].isAlive)
        #expect(try other.broker.store.load().records.map(\.step) == [.live])
    }

    @Test(
        "a program that does not get through its rehearsal costs the device nothing",
        arguments: [FakeWorker.Fault.launchFails, .diesAtLaunch, .refusesFile, .violates, .diesInRehearsal])
    func unfit(_ fault: FakeWorker.Fault) throws {
        let host = try host()
        host.fault = fault
        let before = host.kernel.log
        let error = #expect(throws: InterfaceError.self) { try upgrade(host).get() }
        #expect(error?.message.contains("not fit") == true)
        #expect(host.workers[0].isAlive && host.workers[0].signals.filter { $0 == "KILL" } == [])
        #expect(host.kernel.log == before)
        #expect(info(host)?.state == .live)
        #expect(host.broker.uids.free == host.broker.uids.range.count - 1)
        host.fault = nil
        #expect(try upgrade(host).get().upgraded)
    }

    @Test("a program that makes another disk is not fit")
    func anotherDisk() throws {
        let host = try host()
        host.geometry.size /= 2
        let error = #expect(throws: InterfaceError.self) { try upgrade(host).get() }
        #expect(error?.message.contains("another disk: 524288 bytes instead of 1048576") == true)
        #expect(host.workers[0].isAlive)
    }

    @Test(
        "a program that fails with the device in its hands is given up for the old one",
        arguments: [[UblkFeatures.perIODaemon, .quiesce], []] as [UblkFeatures])
    func fallsBack(_ features: UblkFeatures) throws {
        let host = try host(features: features)
        let old = host.broker.program
        let new = host.installed
        host.faultOf = { $0.binary == new.file.raw && $0.device != "/dev/null" ? .diesAfterGeometry : nil }
        let error = #expect(throws: InterfaceError.self) { try upgrade(host).get() }
        #expect(error?.message.contains("did not get ready") == true)
        #expect(info(host)?.state == .live)
        #expect(info(host)?.workerOutdated == true)
        #expect(host.workers.last?.binary == old.file.raw)
        #expect(host.broker.program === old)
    }

    @Test(
        "a worker that does not die of its kill leaves the device stuck, told within 5 seconds, and mended when it dies after all",
        arguments: [[UblkFeatures.perIODaemon, .quiesce], []] as [UblkFeatures])
    func survivesKill(_ features: UblkFeatures) throws {
        let host = try host(features: features)
        host.workers[0].survivesKill = true
        let began = monotonicNanoseconds()
        let error = #expect(throws: InterfaceError.self) { try upgrade(host).get() }
        #expect(monotonicNanoseconds() - began < 8_000_000_000)
        #expect(error?.message.contains("stuck: its worker was killed for an upgrade, but it does not die") == true)
        #expect(info(host)?.state == .stuck)
        #expect(host.workers.count == 2)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { self.info(host)?.state == .live }
        #expect(info(host)?.lastDeath == "was killed for an upgrade")
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a stuck upgrade can be deleted: the device goes when its worker does")
    func deletesStuck() throws {
        let host = try host(features: [])
        host.workers[0].survivesKill = true
        #expect(throws: InterfaceError.self) { try upgrade(host).get() }
        let error = try host.delete(0, force: true)
        #expect(error?.message.contains("stuck") == true)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices.isEmpty }
        #expect(host.leftovers == [])
    }

    @Test("a death is mended with the program that served, whatever is installed")
    func keepsProgram() throws {
        let host = try host()
        let old = host.broker.program
        host.workers[0].die(.killed(signal: SIGSEGV))
        try host.run { host.workers.count == 2 && self.info(host)?.state == .live }
        #expect(host.workers[1].binary == old.file.raw)
    }

    @Test("does nothing to a worker that is of the present program")
    func current() throws {
        let host = try host()
        host.installed = host.broker.program
        #expect(try upgrade(host).get().upgraded == false)
        #expect(host.workers.count == 1)
    }

    @Test("is refused without recovery, to strangers, and when there is no program")
    func refuses() throws {
        let host = try host(AddRequest(target: "null", recovery: "none"))
        let error = #expect(throws: InterfaceError.self) { try upgrade(host).get() }
        #expect(error?.message.contains("--recovery none") == true)
        let other = try self.host()
        #expect(throws: InterfaceError.self) { try upgrade(other, as: Host.bob).get() }
        other.isProgramMissing = true
        #expect(throws: InterfaceError.self) { try upgrade(other).get() }
        #expect(info(other)?.state == .live)
    }

    @Test("is one at a time")
    func onlyOne() throws {
        let host = try host()
        var results: [String] = []
        for _ in 0..<2 {
            host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result in
                switch result {
                case .success: results.append("upgraded")
                case .failure(let error): results.append(error.name)
                }
            }
        }
        try host.run { results.count == 2 }
        #expect(results == ["io.ubd.Broker.Busy", "upgraded"])
    }

    @Test("a worker that dies while it is being drained is replaced all the same")
    func diesWhileDraining() throws {
        let host = try host()
        host.requestsInFlight = 1
        host.kernel.beforeAnswer[.quiesceDevice] = {
            host.loop.after(milliseconds: 5) { host.workers[0].die(.exited(0)) }
        }
        #expect(try upgrade(host).get().upgraded)
    }

    @Test(
        "a device that is deleted by force at any moment of it is deleted",
        arguments: [UblkControlOperation.quiesceDevice, .getDeviceInfo, .startUserRecovery, .endUserRecovery])
    func deleted(_ operation: UblkControlOperation) throws {
        let host = try host()
        var outcomes = 0
        host.kernel.beforeAnswer[operation] = {
            host.kernel.beforeAnswer = [:]
            host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { error in
                #expect(error == nil)
                outcomes += 1
            }
        }
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { _ in outcomes += 1 }
        try host.run { outcomes == 2 }
        #expect(host.leftovers == [])
    }

    @Test("so is one that is deleted during the rehearsal")
    func deletedInRehearsal() throws {
        let host = try host()
        var outcomes = 0
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result in
            #expect(throws: InterfaceError.self) { try result.get() }
            outcomes += 1
        }
        host.broker.delete(DeleteRequest(id: 0), peer: Host.alice) { error in
            #expect(error == nil)
            outcomes += 1
        }
        try host.run { outcomes == 2 && host.leftovers.isEmpty }
    }
}
