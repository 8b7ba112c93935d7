import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

/// The run folder is a file system like any other: it can be full, or become read-only.
@Suite("Records that cannot be written")
struct UnwrittenRecordTests {
    private static let recovery: [UblkFeatures] = [[.perIODaemon], []]

    private func info(_ host: Host) -> Device? { host.broker.devices[0]?.info }

    /// The record on disk.
    private func record(_ host: Host) -> DeviceRecord? { (try? host.broker.store.load())?.records.first }

    @Test(
        "an add whose device cannot be recorded fails, says where and why, and leaves nothing: a broker that starts would undo the device",
        arguments: [UblkControlOperation.addDevice, .setParameters, .startDevice, .getParameters])
    func add(_ moment: UblkControlOperation) throws {
        let host = try Host()
        host.kernel.beforeAnswer[moment] = { host.breakRecord(0) }
        var started = false
        host.kernel.beforeAnswer[.stopDevice] = { started = true }
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(error?.message.hasPrefix("could not write the device's record into \(host.folder)/state: ") == true)
        #expect(error?.remedy.contains("that folder") == true)
        // Before START_DEV, when it is known by then.
        #expect(started == (moment == .startDevice || moment == .getParameters))
        host.mendRecord(0)
        #expect(host.leftovers == [])
        host.kernel.beforeAnswer = [:]
        _ = try host.add().get()
    }

    @Test(
        "a device whose worker dies waits while its record cannot be written, and then gets another worker",
        arguments: recovery)
    func recover(_ features: UblkFeatures) throws {
        let host = try Host()
        host.kernel.features = features
        _ = try host.add().get()
        host.breakRecord(0)
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { self.info(host)?.reason?.contains("its record can not be written into") == true }
        #expect(info(host)?.state == .recovering)
        #expect(host.workers.count == 1)
        host.mendRecord(0)
        try host.run { self.info(host)?.state == .live }
        #expect(record(host)?.step == .live)
        #expect(host.workers.count == 2)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("before Linux 6.16 START_USER_RECOVERY is sent once also when its answer cannot be recorded")
    func recoverOnce() throws {
        let host = try Host()
        host.kernel.features = []
        _ = try host.add().get()
        var sent = 0
        host.kernel.beforeAnswer[.startUserRecovery] = {
            sent += 1
            host.breakRecord(0)
        }
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { self.info(host)?.reason?.contains("its record can not be written into") == true }
        host.mendRecord(0)
        try host.run { self.info(host)?.state == .live }
        #expect(sent == 1)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a device that waits for that can be deleted")
    func deleteWaiting() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.breakRecord(0)
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { self.info(host)?.reason?.contains("its record can not be written into") == true }
        #expect(try host.delete(0, force: true) == nil)
        host.mendRecord(0)
        #expect(host.leftovers == [])
    }

    @Test("an upgrade that cannot be recorded does not touch the device")
    func upgrade() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon, .quiesce]
        _ = try host.add().get()
        host.installed = try Host.program()
        host.breakRecord(0)
        var result: Result<UpgradeReply, InterfaceError>?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result = $0 }
        try host.run { result != nil }
        let error = #expect(throws: InterfaceError.self) { try result?.get() }
        #expect(error?.message.hasPrefix("could not write the device's record into") == true)
        #expect(info(host)?.state == .live)
        #expect(host.workers[0].isAlive)
        host.mendRecord(0)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("records, and what udev reads of a device, are root's alone")
    func modes() throws {
        let host = try Host()
        _ = try host.add().get()
        for name in ["state/0", "udev/0"] {
            var status = stat()
            #expect(stat("\(host.folder)/\(name)", &status) == 0)
            #expect(status.st_mode & 0o777 == 0o600, "\(name)")
        }
    }

    @Test("what could not be written is written as soon as it can be, without anybody's asking")
    func writtenLater() throws {
        let host = try Host()
        _ = try host.add().get()
        let device = try #require(host.broker.devices[0])
        host.breakRecord(0)
        device.info.deaths = 3
        #expect(host.broker.save(device) != nil)
        #expect(host.broker.recordProblem(of: device) != nil)
        #expect(record(host)?.device.deaths == 0)
        host.mendRecord(0)
        try host.run { self.record(host)?.device.deaths == 3 }
        #expect(host.broker.recordProblem(of: device) == nil)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }
}

extension Host {
    /// From now on no record of that device can be written, by root neither: a folder has the name of the file that would
    /// replace it.
    func breakRecord(_ id: UInt32) { mkdir("\(folder)/state/\(id).new", 0o700) }

    func mendRecord(_ id: UInt32) { rmdir("\(folder)/state/\(id).new") }
}
