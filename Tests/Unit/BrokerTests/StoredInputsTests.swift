import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("A device whose broker and worker died together")
struct StoredInputsTests {
    private final class Systemd {
        var messages: [String] = []
    }

    private static let file = FileIdentity(device: 2, inode: 3, born: 4)

    private func inode(_ descriptor: Int32) -> UInt64 {
        var status = stat()
        #expect(fstat(descriptor, &status) == 0)
        return UInt64(status.st_ino)
    }

    /// A parking socket with a file in it, as a client leaves it.
    private func parked() throws -> Int32 {
        let pair = try makeMessagePair()
        try send(pair.second.raw, [0], files: [0])
        return try FileDescriptor.duplicate(of: pair.first.raw).release()
    }

    /// A host with that device, of generation 77. systemd passes `passed` to the broker. `recorded`: the inode in the record.
    private func host(
        _ systemd: Systemd, _ passed: [StoredName: [Int32]], recorded: UInt64?, step: DeviceRecord.Step = .live
    ) throws -> Host {
        let host = try Host { loop in
            DescriptorStore(loop: loop, offer: .init(room: 4), passed: passed) { message, descriptor in
                systemd.messages.append(message.split(separator: "\n").prefix(2).joined(separator: " "))
                return nil
            }
        }
        host.kernel.features = [.perIODaemon]
        host.geometry.file = Self.file
        let device = Device {
            ($0.id, $0.generation, $0.owner, $0.target, $0.state) = (0, 77, 1000, "loop", .live)
            ($0.node, $0.file) = ("/dev/ublkb0", "1.img")
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (1 << 20, 512, 4096)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
            $0.workerPid = 99999
        }
        var record = DeviceRecord(step: step, device: device, worker: nil, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 4096)
        record.file = Self.file
        record.parked = recorded
        try host.broker.store.write(record)
        host.kernel.addDevice(0, generation: 77, state: .quiesced, pid: -1)
        try host.broker.reconcile()
        return host
    }

    private func info(_ host: Host) -> Device? { host.broker.devices[0]?.info }

    private func waits(_ host: Host) throws {
        try host.run { self.info(host)?.reason?.contains("ubd recover -n 0") == true }
        #expect(host.workers.isEmpty)
    }

    @Test(
        "comes back by itself with the socket that systemd kept, whatever step it was in",
        arguments: [DeviceRecord.Step.live, .recovering, .upgrading])
    func comesBack(_ step: DeviceRecord.Step) throws {
        let systemd = Systemd()
        let socket = try parked()
        let name = StoredName(id: 0, generation: 77)
        let host = try host(systemd, [name: [socket]], recorded: inode(socket), step: step)
        try host.run { host.workers.count == 1 && self.info(host)?.state == .live }
        #expect(host.workers.map(\.isRehearsal) == [false])
        #expect(systemd.messages.isEmpty, "it is in the store")
        #expect(try host.broker.store.load().records.first?.parked == inode(socket))
        #expect(try host.delete(0) == nil)
        #expect(systemd.messages == ["FDSTOREREMOVE=1 FDNAME=ubd-0-77"])
        try host.run { host.leftovers.isEmpty }
    }

    @Test("gets no socket of another generation: that one leaves the store")
    func staleName() throws {
        let systemd = Systemd()
        let socket = try parked()
        let host = try host(systemd, [StoredName(id: 0, generation: 78): [socket]], recorded: inode(socket))
        try waits(host)
        #expect(systemd.messages == ["FDSTOREREMOVE=1 FDNAME=ubd-0-78"])
        // A child closes it.
        try host.run { host.broker.undertaker.waiting(for: 0) == 0 }
    }

    @Test("gets no other socket with its name; once its owner has brought the file, that one is stored")
    func wrongSocket() throws {
        let systemd = Systemd()
        let (socket, other) = (try parked(), try parked())
        let host = try host(systemd, [StoredName(id: 0, generation: 77): [other]], recorded: inode(socket))
        try waits(host)
        #expect(systemd.messages == ["FDSTOREREMOVE=1 FDNAME=ubd-0-77"])
        #expect(try host.recover(RecoverRequest(id: 0), as: Host.alice, files: 2).get().state == .live)
        #expect(systemd.messages.dropFirst() == ["FDSTORE=1 FDNAME=ubd-0-77"])
        close(socket)
    }

    @Test("without a recorded socket gets none")
    func unrecorded() throws {
        let systemd = Systemd()
        let socket = try parked()
        let host = try host(systemd, [StoredName(id: 0, generation: 77): [socket]], recorded: nil)
        try waits(host)
        #expect(systemd.messages == ["FDSTOREREMOVE=1 FDNAME=ubd-0-77"])
    }

    @Test("is in the store as soon as it serves, and a null device never")
    func stored() throws {
        let systemd = Systemd()
        let host = try Host { loop in
            DescriptorStore(loop: loop, offer: .init(room: 4)) { message, descriptor in
                systemd.messages.append(message.split(separator: "\n").prefix(2).joined(separator: " "))
                return nil
            }
        }
        let null = try host.add(AddRequest(target: "null"), as: Host.alice).get().0
        #expect(systemd.messages.isEmpty)
        let result = try host.add(AddRequest(target: "loop"), as: Host.alice) { _ = try? send($0, [0], files: [0]) }
        let device = try result.get().0
        #expect(systemd.messages == ["FDSTORE=1 FDNAME=ubd-\(device.id)-\(device.generation)"])
        #expect(try host.delete(null.id) == nil)
        #expect(systemd.messages.count == 1)
        #expect(try host.delete(device.id) == nil)
        #expect(systemd.messages.last == "FDSTOREREMOVE=1 FDNAME=ubd-\(device.id)-\(device.generation)")
    }
}
