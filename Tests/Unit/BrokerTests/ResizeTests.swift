import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("Another size for a live device")
struct ResizeTests {
    private static let features: UblkFeatures = [.perIODaemon, .quiesce, .updateSize]

    /// A host with one live device of 1 MiB, whose next workers make a disk of that many bytes.
    private func host(
        features: UblkFeatures = features, _ request: AddRequest = AddRequest(target: "null"), policy: String? = nil,
        next: UInt64 = 2 << 20
    ) throws -> Host {
        let host = try Host(policy: policy)
        host.kernel.features = features
        _ = try host.add(request).get()
        host.geometry.size = next
        host.kernel.beforeAnswer[.getDeviceInfo] = { host.kernel.quiesce(0) }
        return host
    }

    private func resize(
        _ host: Host, to bytes: Int64? = nil, shrink: Bool? = nil, as peer: PeerCredentials = Host.alice
    ) throws -> Result<ResizeReply, InterfaceError> {
        var result: Result<ResizeReply, InterfaceError>?
        host.broker.resize(ResizeRequest(id: 0, sizeBytes: bytes, shrink: shrink), peer: peer) { result = $0 }
        try host.run { result != nil }
        return try #require(result)
    }

    private func record(_ host: Host) throws -> DeviceRecord { try #require(host.broker.store.load().records.first) }

    /// The commands that change something, from the resize on.
    private func commands(_ host: Host) -> [String] {
        host.kernel.log.filter { !$0.hasPrefix("get") && !$0.hasPrefix("add") && !$0.hasPrefix("set") }
            .filter { !$0.hasPrefix("startDevice") }
    }

    @Test("grows it: first a worker that serves more, then the kernel, with both sizes on record before")
    func grows() throws {
        let host = try host()
        var written: DeviceRecord?
        host.kernel.beforeAnswer[.updateSize] = { written = try? record(host) }
        let reply = try resize(host, to: 2 << 20).get()
        #expect(reply.previousBytes == 1 << 20 && reply.device.sizeBytes == 2 << 20 && reply.device.state == .live)
        #expect(
            commands(host) == ["quiesceDevice 0", "startUserRecovery 0", "endUserRecovery 0", "updateSize 0"])
        #expect(host.kernel.sectors[0] == 4096)
        #expect(written?.device.sizeBytes == 1 << 20 && written?.pendingSize == 2 << 20)
        #expect(try record(host).device.sizeBytes == 2 << 20 && record(host).pendingSize == nil)
        #expect(host.workers.map(\.isRehearsal) == [false, true, false])
        // The rehearsal claims the bytes; the replacement serves them.
        #expect(host.workers[1].launch?.flags.contains(.claimsBytes) == true)
        #expect(host.workers[2].launch?.flags.contains(.claimsBytes) == false)
        #expect(host.workers.dropFirst().map { $0.launch?.options.size } == [2 << 20, 2 << 20])
        #expect(host.workers[2].launch?.flags.contains(.releasesBytes) == false)
        #expect(reply.device.deaths == 0)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("is what later workers have, after an upgrade and after a death")
    func lasts() throws {
        let host = try host()
        _ = try resize(host, to: 2 << 20).get()
        host.installed = try Host.program()
        var upgraded: Result<UpgradeReply, InterfaceError>?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { upgraded = $0 }
        try host.run { upgraded != nil }
        #expect(try upgraded?.get().upgraded == true && upgraded?.get().device.sizeBytes == 2 << 20)
        let before = host.workers.count
        host.workers.last?.die(.killed(signal: SIGKILL))
        try host.run { host.workers.count == before + 1 && host.broker.devices[0]?.info.state == .live }
        #expect(host.workers.dropFirst(3).map { $0.launch?.options.size } == [2 << 20, 2 << 20, 2 << 20])
        #expect(host.kernel.log.filter { $0 == "updateSize 0" }.count == 1)
    }

    @Test("shrinks it: first the kernel, then a worker that serves less")
    func shrinks() throws {
        let host = try host(next: 512 << 10)
        let reply = try resize(host, to: 512 << 10, shrink: true).get()
        #expect(reply.device.sizeBytes == 512 << 10 && host.kernel.sectors[0] == 1024)
        #expect(
            commands(host) == ["updateSize 0", "quiesceDevice 0", "startUserRecovery 0", "endUserRecovery 0"])
        #expect(host.workers.last?.launch?.options.size == 512 << 10)
        #expect(try record(host).device.sizeBytes == 512 << 10 && record(host).pendingSize == nil)
        // Nothing is to be claimed, and what it had behind its end is released when no worker writes there any more.
        #expect(host.workers[1].launch?.flags.isDisjoint(with: [.claimsBytes, .releasesBytes]) == true)
        #expect(host.workers[2].launch?.flags.contains(.releasesBytes) == true)
    }

    @Test("gives the old size back when somebody began to use the device while it became smaller")
    func usedMeanwhile() throws {
        let host = try host(next: 512 << 10)
        var told: [UInt64] = []
        host.kernel.beforeAnswer[.updateSize] = {
            host.holding = .held("mounted on /mnt")
            told.append(host.kernel.sectors[0] ?? 0)
        }
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 512 << 10, shrink: true).get() }
        #expect(error?.name == "io.ubd.Broker.Busy" && error?.message.contains("mounted on /mnt") == true)
        // Before the first command none, before the second the smaller one.
        #expect(told == [0, 1024] && host.kernel.sectors[0] == 2048)
        let device = try #require(host.broker.devices[0])
        #expect(device.info.sizeBytes == 1 << 20 && device.info.state == .live && device.worker === host.workers[0])
        #expect(try record(host).pendingSize == nil)
    }

    @Test("does not shrink it unless that was asked for, nor while it is in use, nor when nobody can tell")
    func keeps() throws {
        let host = try host(next: 512 << 10)
        #expect(throws: InterfaceError.self) { try resize(host, to: 512 << 10).get() }
        for holding in [Holding.held("mounted on /mnt"), .unknown("no sysfs")] {
            host.holding = holding
            let error = #expect(throws: InterfaceError.self) { try resize(host, to: 512 << 10, shrink: true).get() }
            #expect(error?.name == "io.ubd.Broker.Busy")
        }
        #expect(host.kernel.sectors == [:] && host.broker.devices[0]?.info.sizeBytes == 1 << 20)
        #expect(host.broker.devices[0]?.worker === host.workers[0])
    }

    @Test("is refused on kernels before 6.16, which the error names, and where there can be no second worker")
    func unsupported() throws {
        let error = #expect(throws: InterfaceError.self) {
            try resize(self.host(features: [.perIODaemon]), to: 2 << 20).get()
        }
        #expect(error?.name == "io.ubd.Broker.KernelUnsupported" && error?.remedy.contains("6.16") == true)
        // Also where an upgrade would be refused for another reason.
        let failing = #expect(throws: InterfaceError.self) {
            try resize(
                self.host(features: [.perIODaemon], AddRequest(target: "null", recovery: "fail")), to: 2 << 20
            ).get()
        }
        #expect(failing?.name == error?.name && failing?.remedy == error?.remedy)
        let host = try self.host(AddRequest(target: "null", recovery: "none"))
        #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        #expect(host.workers.count == 1 && host.kernel.sectors == [:])
    }

    @Test("is not more than the access policy gives, and nothing for whom it gives nothing")
    func policy() throws {
        let policy = "allow uid=1000 target=null max-size=1536K\n"
        let request = AddRequest(target: "null", options: [OptionValue("size", "1048576")])
        let host = try host(request, policy: policy)
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        #expect(error?.name == "io.ubd.Broker.QuotaReached")
        // It hears of that before it claims any byte.
        #expect(host.workers.count == 2 && host.workers[1].serve == nil)
        #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20, as: Host.bob).get() }
        #expect(host.kernel.sectors == [:])
    }

    @Test("whose old worker does not die fails, and does not happen later, when that one is dead")
    func stuck() throws {
        let host = try host()
        host.workers[0].survivesKill = true
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        #expect(error?.message.contains("is stuck") == true)
        #expect(try record(host).pendingSize == nil)
        host.geometry.size = 1 << 20
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(host.broker.devices[0]?.info.sizeBytes == 1 << 20 && host.kernel.sectors == [:])
        #expect(host.workers.last?.launch?.options.size == 1 << 20)
        // The worker of the rehearsal had locked the new bytes.
        #expect(host.workers.last?.launch?.flags.contains(.releasesBytes) == true)
    }

    @Test("that made it smaller leaves on record that its next worker unlocks the rest")
    func unlocksLater() throws {
        let host = try host(next: 512 << 10)
        #expect(try resize(host, to: 512 << 10, shrink: true).get().device.sizeBytes == 512 << 10)
        #expect(host.workers.last?.launch?.flags.contains(.releasesBytes) == true)
        #expect(try record(host).releasesBytes)
    }

    @Test("needs a size where there is no file to follow")
    func noFile() throws {
        let host = try host()
        for bytes in [nil, 0, -1] as [Int64?] {
            #expect(throws: InterfaceError.self) { try resize(host, to: bytes).get() }
        }
        #expect(host.workers.count == 1)
    }

    private func addLoop(_ host: Host, _ request: AddRequest) throws -> Device {
        try host.add(request) { _ = try? send($0, [0], files: [0]) }.get().0
    }

    @Test("is not that of the file when the device is a part of it, and no partition grows over the next one")
    func parts() throws {
        let host = try Host()
        host.kernel.features = Self.features
        let size = [OptionValue("size", "1048576")]
        _ = try addLoop(host, AddRequest(target: "loop", options: size))
        let open = #expect(throws: InterfaceError.self) { try resize(host).get() }
        #expect(open?.message.contains("a part of its file") == true && host.workers.count == 1)
        #expect(try host.delete(0) == nil)
        _ = try addLoop(host, AddRequest(target: "loop", partition: 2, options: size))
        host.geometry.size = 2 << 20
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        #expect(error?.message.contains("is partition 2") == true && host.kernel.sectors == [:])
        #expect(host.workers.last?.isRehearsal == true && host.workers.last?.serve == nil)
    }

    @Test("does not take bytes of a device that waits for its file, and so has no lock on them")
    func waiting() throws {
        let host = try Host(policy: "allow group=50 target=*\n")
        host.kernel.features = Self.features
        let file = FileIdentity(device: 2, inode: 3, born: 4)
        host.geometry.file = file
        let waiting = Device {
            ($0.id, $0.generation, $0.owner, $0.target, $0.state) = (7, 77, 1000, "loop", .live)
            ($0.node, $0.file, $0.offset) = ("/dev/ublkb7", "1.img", 4 << 20)
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (1 << 20, 512, 4096)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
        }
        var record = DeviceRecord(step: .live, device: waiting, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096)
        record.file = file
        try host.broker.store.write(record)
        host.kernel.addDevice(7, generation: 77, state: .quiesced, pid: -1)
        try host.broker.reconcile()
        try host.run { host.broker.devices[7]?.waitsForFile == true }
        _ = try addLoop(host, AddRequest(target: "loop", id: 0))
        host.geometry.size = (4 << 20) + 512
        let error = #expect(throws: InterfaceError.self) { try resize(host).get() }
        #expect(error?.name == "io.ubd.Broker.Busy" && error?.remedy.contains("ubd recover -n 7") == true)
        #expect(host.kernel.sectors == [:] && host.workers.last?.serve == nil)
        host.geometry.size = 4 << 20
        host.kernel.beforeAnswer[.getDeviceInfo] = { host.kernel.quiesce(0) }
        #expect(try resize(host).get().device.sizeBytes == 4 << 20)
    }

    /// A host on which a broker died while device 3 of 4096 bytes was to get another size. `has`: what the kernel's disk has;
    /// nil when that cannot be read.
    private func interrupted(pending: UInt64, has: UInt64?) throws -> Host {
        let host = try Host()
        host.kernel.features = Self.features
        let device = Device {
            ($0.id, $0.generation, $0.owner, $0.target, $0.state) = (3, 77, 1000, "null", .live)
            $0.node = "/dev/ublkb3"
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (4096, 512, 512)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
        }
        var record = DeviceRecord(step: .upgrading, device: device, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .null, queues: 1, depth: 1, maxIOBytes: 4096)
        record.pendingSize = pending
        try host.broker.store.write(record)
        host.kernel.addDevice(3, generation: 77, state: .quiesced, pid: -1)
        if let has {
            var folder = host.folder
            for name in ["sys", "block", "ublkb3"] {
                folder += "/" + name
                mkdir(folder, 0o700)
            }
            try writeFile(folder + "/size", "\(has / 512)\n")
        }
        return host
    }

    private func writeFile(_ path: String, _ text: String) throws {
        let file = FileDescriptor(owning: try call("open") { open(path, O_CREAT | O_WRONLY, 0o600) })
        _ = try call("write") { Int32(write(file.raw, text, text.utf8.count)) }
    }

    @Test(
        "during which the broker died: the next one makes the device larger",
        arguments: [4096, nil] as [UInt64?])
    func goesOn(_ has: UInt64?) throws {
        let host = try interrupted(pending: 8192, has: has)
        host.geometry.size = 8192
        try host.broker.reconcile()
        try host.run { host.broker.devices[3]?.info.sizeBytes == 8192 }
        #expect(host.kernel.sectors[3] == 16 && host.workers.map { $0.launch?.options.size } == [8192])
        #expect(try record(host).pendingSize == nil && record(host).device.sizeBytes == 8192)
    }

    @Test("during which the broker died: when there is no worker for it, the device keeps the size that it has")
    func doesNotGoOn() throws {
        let host = try interrupted(pending: 8192, has: 4096)
        host.geometry.size = 4096
        try host.broker.reconcile()
        try host.run { host.workers.count == 2 && host.broker.devices[3]?.recovery == nil }
        #expect(host.broker.devices[3]?.info.state == .live)
        #expect(host.workers.map { $0.launch?.options.size } == [8192, 4096] && host.kernel.sectors == [:])
        #expect(host.workers[1].launch?.flags.contains(.releasesBytes) == true)
        #expect(try record(host).pendingSize == nil && record(host).device.sizeBytes == 4096)
    }

    @Test("that the kernel had when the broker died is what the next one knows", arguments: [8192, 1024] as [UInt64])
    func wasDone(_ bytes: UInt64) throws {
        let host = try interrupted(pending: bytes, has: bytes)
        host.geometry.size = bytes
        try host.broker.reconcile()
        try host.run { host.workers.count == 1 && host.broker.devices[3]?.recovery == nil }
        #expect(host.broker.devices[3]?.info.state == .live)
        #expect(host.broker.devices[3]?.info.sizeBytes == bytes && host.kernel.sectors == [:])
        #expect(try record(host).device.sizeBytes == bytes && host.workers.map { $0.launch?.options.size } == [bytes])
    }

    @Test("a smaller one that the kernel had not got is forgotten: the device may be in use by now")
    func notSmaller() throws {
        let host = try interrupted(pending: 1024, has: 4096)
        host.geometry.size = 4096
        try host.broker.reconcile()
        try host.run { host.workers.count == 1 && host.broker.devices[3]?.recovery == nil }
        #expect(host.broker.devices[3]?.info.state == .live)
        #expect(host.broker.devices[3]?.info.sizeBytes == 4096 && host.kernel.sectors == [:])
        #expect(try record(host).pendingSize == nil)
    }

    @Test("is not for a device of target nbd, which has the size of its export")
    func export() throws {
        let host = try NBDHost(features: Self.features).host
        let error = #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        #expect(error?.message.contains("the size of its export") == true && host.workers.count == 1)
    }

    @Test("that the kernel refuses leaves the old one")
    func kernelRefuses() throws {
        let host = try host()
        host.kernel.failures[.updateSize] = EINVAL
        #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        let device = try #require(host.broker.devices[0])
        #expect(device.info.state == .live && device.info.sizeBytes == 1 << 20 && device.pendingSize == nil)
        #expect(try record(host).pendingSize == nil)
    }

    @Test("for which no worker gets ready leaves the old one, and the device serves")
    func workerFails() throws {
        let host = try host()
        var started = 0
        host.faultOf = { launch in
            started += 1
            // The rehearsal is well; the first replacement is not.
            if started == 2 { return .diesAfterGeometry }
            if started > 2 { host.geometry.size = 1 << 20 }
            return nil
        }
        #expect(throws: InterfaceError.self) { try resize(host, to: 2 << 20).get() }
        let device = try #require(host.broker.devices[0])
        #expect(device.info.state == .live && device.info.sizeBytes == 1 << 20 && host.kernel.sectors == [:])
        #expect(host.workers.last?.launch?.options.size == 1 << 20)
    }

    /// Begins to enlarge device 0, up to UPDATE_SIZE, which the kernel answers when it may.
    private func inKernel(_ host: Host, until mayAnswer: @escaping () -> Bool) throws {
        host.kernel.hangsUntil[.updateSize] = mayAnswer
        host.broker.resize(ResizeRequest(id: 0, sizeBytes: 2 << 20), peer: Host.alice) { _ in }
        try host.run { host.kernel.log.contains("updateSize 0") }
    }

    @Test("is told to the kernel to the end before a device that cannot be served any more is stopped")
    func failedMeanwhile() throws {
        let host = try host()
        var mayAnswer = false
        try inKernel(host) { mayAnswer }
        host.workers[2].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices[0]?.recovery != nil }
        (host.broker.devices[0]?.recovery as? RecoverOperation)?.outOfOrder()
        try host.run { host.broker.devices[0]?.info.state == .failed }
        for _ in 0..<20 { try host.run { true } }
        #expect(!host.kernel.log.contains("stopDevice 0"))
        mayAnswer = true
        try host.run { host.kernel.log.contains("stopDevice 0") }
    }

    @Test("keeps an ordinary deletion away, and with it TRY_STOP_DEV, until the kernel has answered")
    func notDeletedMeanwhile() throws {
        let host = try host()
        host.kernel.features.insert(.safeStop)
        var mayAnswer = false
        try inKernel(host) { mayAnswer }
        #expect(try host.delete(0)?.name == "io.ubd.Broker.Busy")
        #expect(!host.kernel.log.contains("tryStopDevice 0"))
        mayAnswer = true
        try host.run { host.broker.devices[0]?.info.sizeBytes == 2 << 20 }
        #expect(try host.delete(0) == nil)
    }

    @Test("is told to the kernel to the end before the device is stopped: afterwards the command crashes some kernels")
    func deletedMeanwhile() throws {
        let host = try host()
        var mayAnswer = false
        host.kernel.hangsUntil[.updateSize] = { mayAnswer }
        var result: Result<ResizeReply, InterfaceError>?
        host.broker.resize(ResizeRequest(id: 0, sizeBytes: 2 << 20), peer: Host.alice) { result = $0 }
        try host.run { host.kernel.log.contains("updateSize 0") }
        var deleted = false
        host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { _ in deleted = true }
        try host.run { result != nil }
        #expect(throws: InterfaceError.self) { try result?.get() }
        #expect(!host.kernel.log.contains("stopDevice 0"))
        mayAnswer = true
        try host.run { deleted }
        #expect(host.kernel.log.contains("stopDevice 0") && host.leftovers == [])
    }
}
