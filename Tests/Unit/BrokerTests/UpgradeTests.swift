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
        let (launch, parking) = (try #require(device.relaunch), device.parking?.raw ?? -1)
        do {
            let made = Rehearsal(
                of: host.installed, for: device, launch, parking: parking, broker: host.broker)
            made.begin { _ in isOver = true }
            rehearsal = made
        }
        #expect(rehearsal != nil)
        try host.run { isOver }
        // As a real worker does that is forgotten.
        host.workers.last?.setHandler { _ in }
        #expect(rehearsal == nil)
    }

    @Test("quiesces, drains, and lets a worker of the new program take over, which all later ones are of")
    func upgrades() throws {
        let host = try host()
        #expect(info(host)?.workerOutdated == true)
        // The program that the first worker was started from is still what new ones are.
        host.requestsInFlight = 3
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
        #expect(other.broker.store.load().records.map(\.step) == [.live])
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

@Suite("Bringing a device's file again")
struct ReopenTests {
    private static let file = FileIdentity(device: 2, inode: 3, born: 4)

    /// A host that has a loop device whose worker died together with its broker.
    private func host(policy: String? = nil, blockSize: UInt32 = 512) throws -> Host {
        let host = try Host(policy: policy)
        host.kernel.features = [.perIODaemon]
        host.geometry.file = ReopenTests.file
        host.geometry.logicalBlock = blockSize
        let device = Device(
            id: 0, generation: 77, owner: 1000, target: "loop", state: .live, node: "/dev/ublkb0", link: nil,
            sizeBytes: 1 << 20, blockSize: blockSize, physicalBlockSize: 4096, readOnly: false, queues: 1, depth: 1,
            maxIOBytes: 4096, mode: .copy, buffered: false, file: "1.img", workerPid: 99999, created: 0)
        var record = DeviceRecord(step: .live, device: device, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096)
        record.file = ReopenTests.file
        try host.broker.store.write(record)
        host.kernel.addDevice(0, generation: 77, state: .quiesced, pid: -1)
        try host.broker.reconcile()
        try host.run { self.info(host)?.reason?.contains("ubd recover -n 0") == true }
        #expect(info(host)?.deaths == 1)
        return host
    }

    private func info(_ host: Host) -> Device? { host.broker.devices[0]?.info }

    @Test(
        "keeps the blocks that the device had, which an earlier version chose by the file's direct I/O and did not name"
    )
    func keepsBlocks() throws {
        let host = try host(blockSize: 4096)
        let device = try #require(host.broker.devices[0])
        #expect(device.launch?.blockSize == 0)
        #expect(device.relaunch?.blockSize == 4096)
        #expect(try recover(host).get().blockSize == 4096)
    }

    private func recover(
        _ host: Host, as peer: PeerCredentials = Host.alice, parking: ((Int32) -> Void)? = nil
    ) throws -> Result<Device, InterfaceError> {
        var result: Result<Device, InterfaceError>?
        let operation = host.broker.recover(RecoverRequest(id: 0), peer: peer) { answer in
            switch answer {
            case .files(let count, let socket):
                #expect(count == 2)
                if let parking { parking(socket) } else { _ = try? send(socket, [0], files: [0]) }
                close(socket)
            case .added(let device, _): result = .success(device)
            case .failed(let error): result = .failure(error)
            }
        }
        try host.run { result != nil }
        withExtendedLifetime(operation) {}
        return try #require(result)
    }

    @Test(
        "the right file brings the device back, and nobody is asked before a worker has seen that it is the right one")
    func recovers() throws {
        let host = try host()
        host.kernel.beforeAnswer[.startUserRecovery] = { #expect(host.workers.map(\.isRehearsal) == [true]) }
        #expect(try recover(host).get().state == .live)
        #expect(host.workers.map(\.isRehearsal) == [true, false])
        host.kernel.beforeAnswer = [:]
        host.kernel.quiesce(0)
        host.workers[1].die(.killed(signal: SIGKILL))
        try host.run { host.workers.count == 3 && self.info(host)?.state == .live }
        #expect(try host.delete(0) == nil)
        // A child closes the file.
        try host.run { host.leftovers.isEmpty }
    }

    @Test("the file is nobody else's while the device waits for it, and no other bytes of it are kept")
    func keepsFile() throws {
        // No limit: files of adds that failed count for a moment longer.
        let host = try host(policy: "allow group=50 target=*\n")
        func add(_ peer: PeerCredentials, offset: UInt64 = 0, inode: UInt64 = 3) throws -> InterfaceError? {
            host.geometry.file.inode = inode
            let options = offset > 0 ? [OptionValue("offset", String(offset))] : []
            let result = try host.add(AddRequest(target: "loop", options: options), as: peer) {
                _ = try? send($0, [0], files: [0])
            }
            guard case .failure(let error) = result else { return nil }
            return error
        }
        let mine = try #require(try add(Host.alice))
        #expect(mine.name == "io.ubd.Broker.Busy" && mine.message.contains("/dev/ublkb0, which waits for it"))
        #expect(mine.remedy.contains("ubd recover -n 0"))
        let theirs = try #require(try add(Host.bob))
        #expect(
            theirs.name == "io.ubd.Broker.Busy" && !theirs.message.contains("ublkb0") && !theirs.remedy.contains("-n 0")
        )
        #expect(info(host)?.state == .recovering)
        #expect(try add(Host.alice, offset: 1 << 20) == nil)
        #expect(try add(Host.alice, inode: 9) == nil)
        host.geometry.file.inode = 3
        #expect(try recover(host).get().state == .live)
    }

    @Test("where in the file the device begins is known also from a record that has it only in the worker's orders")
    func oldRecord() throws {
        let host = try Host()
        var device = try #require(info(try self.host()))
        device.state = .live
        var record = DeviceRecord(step: .live, device: device, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096, offset: 4096)
        record.file = ReopenTests.file
        try host.broker.store.write(record)
        host.kernel.addDevice(0, generation: 77, state: .quiesced, pid: -1)
        try host.broker.reconcile()
        try host.run { self.info(host)?.state == .recovering }
        #expect(info(host)?.offset == 4096)
    }

    @Test(
        "another file, or the same one with another disk in it, leaves the device waiting",
        arguments: [
            { $0.geometry.file.inode = 5 }, { $0.geometry.file.born = 5 }, { $0.geometry.file.device = 5 },
            { $0.geometry.size = 512 }, { $0.geometry.attributes = .readOnly }, { $0.fault = .refusesFile },
            { $0.fault = .diesAtLaunch },
        ] as [@Sendable (Host) -> Void])
    func wrongFile(_ change: @Sendable (Host) -> Void) throws {
        let host = try host()
        let before = host.kernel.log
        change(host)
        #expect(throws: InterfaceError.self) { try recover(host).get() }
        #expect(info(host)?.state == .recovering)
        #expect(host.kernel.log == before)
        host.fault = nil
        host.geometry = Geometry(size: 1 << 20, logicalBlock: 512, physicalBlock: 4096)
        host.geometry.file = ReopenTests.file
        #expect(try recover(host).get().state == .live)
    }

    @Test("no file, or a client that goes away, leaves the device waiting")
    func noFile() throws {
        let host = try host()
        #expect(throws: InterfaceError.self) { try recover(host, parking: { _ in }).get() }
        let operation = host.broker.recover(RecoverRequest(id: 0), peer: Host.alice) { answer in
            if case .files(_, let socket) = answer { close(socket) }
        }
        operation?.clientGone()
        #expect(info(host)?.state == .recovering)
        #expect(try recover(host).get().state == .live)
    }

    @Test("it is the owner's to do, for a device that waits")
    func refuses() throws {
        let host = try host()
        #expect(throws: InterfaceError.self) { try recover(host, as: Host.bob).get() }
        _ = try recover(host).get()
        let error = #expect(throws: InterfaceError.self) { try recover(host).get() }
        #expect(error?.message.contains("does not wait for its file") == true)
    }

    @Test("a device that is deleted meanwhile is deleted")
    func deleted() throws {
        let host = try host()
        var outcomes = 0
        let operation = host.broker.recover(RecoverRequest(id: 0), peer: Host.alice) { answer in
            switch answer {
            case .files(_, let socket):
                _ = try? send(socket, [0], files: [0])
                close(socket)
            case .added: Issue.record("it was recovered")
            case .failed: outcomes += 1
            }
        }
        host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { error in
            #expect(error == nil)
            outcomes += 1
        }
        try host.run { outcomes == 2 && host.leftovers.isEmpty }
        withExtendedLifetime(operation) {}
    }
}

@Suite("A record")
struct RecordVersionTests {
    private static func sample() -> DeviceRecord {
        let device = Device(
            id: 3, generation: 7, owner: 1000, target: "loop", state: .live, node: "/dev/ublkb3", link: nil,
            sizeBytes: 4096, blockSize: 512, physicalBlockSize: 512, readOnly: false, queues: 1, depth: 1,
            maxIOBytes: 4096, mode: .copy, buffered: false, created: 0)
        var record = DeviceRecord(step: .live, device: device, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096)
        record.file = FileIdentity(device: .max, inode: 1 << 63, born: 1)
        return record
    }

    private func read(_ text: String) -> DeviceRecord? { DeviceRecord(bytes: Array(text.utf8)) }
    private let text = String(decoding: sample().bytes, as: UTF8.self)

    @Test("is read as it was written")
    func roundTrip() { #expect(read(text) == Self.sample()) }

    @Test("of a later broker that knows more is read, in the device too")
    func later() {
        let later = text.replacing("{\"version\":1,", with: "{\"version\":1,\"colour\":\"green\",")
            .replacing("\"device\":{", with: "\"device\":{\"colour\":\"green\",")
        #expect(later != text)
        #expect(read(later) == Self.sample())
    }

    @Test("of an earlier broker that knew less is read")
    func earlier() {
        let parts = text.components(from: ",\"file\":{", to: "}")
        #expect(read(parts)?.file == FileIdentity.none)
        #expect(read(parts)?.device == Self.sample().device)
    }

    @Test("whose launch message is of another version costs the device its next worker, not the present one")
    func launch() {
        let other = text.replacing("\"launch\":\"", with: "\"launch\":\"00")
        #expect(read(other)?.launch == nil)
        #expect(read(other)?.device == Self.sample().device)
    }

    @Test("of a version that earlier brokers would misunderstand is none")
    func incompatible() { #expect(read(text.replacing("\"version\":1", with: "\"version\":2")) == nil) }
}

extension String {
    /// Without the first piece that begins and ends so.
    fileprivate func components(from start: String, to end: String) -> String {
        guard let first = firstRange(of: start), let last = self[first.upperBound...].firstRange(of: end) else {
            return self
        }
        return String(self[..<first.lowerBound] + self[last.upperBound...])
    }
}
