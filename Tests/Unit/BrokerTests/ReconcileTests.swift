import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("A broker that starts")
struct ReconcileTests {
    private func leave(
        _ step: DeviceRecord.Step, in host: Host, id: UInt32 = 3, generation: UInt64 = 77,
        recovery: RecoveryMode = .reissue, started: Bool = false, answered: Bool = false,
        worker: DeviceRecord.Worker? = nil
    ) throws {
        let device = Device {
            ($0.id, $0.generation, $0.owner, $0.target, $0.state) = (id, generation, 1000, "null", .live)
            $0.node = "/dev/ublkb\(id)"
            ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (4096, 512, 512)
            ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
            $0.recovery = recovery
        }
        var record = DeviceRecord(step: step, device: device, worker: worker, memoryBytes: 4096)
        record.launch = LaunchMessage(target: .null, queues: 1, depth: 1, maxIOBytes: 4096)
        record.recoveryStarted = started
        record.recoveryAnswered = answered
        try host.broker.store.write(record)
    }

    /// A host on which an earlier broker left that record, and a device that the kernel says this of.
    private func host(
        _ step: DeviceRecord.Step, _ state: UblkDeviceState, pid: Int32 = -1, recovery: RecoveryMode = .reissue,
        started: Bool = false, answered: Bool = false
    ) throws -> Host {
        let host = try Host()
        host.geometry.size = 4096
        try leave(step, in: host, recovery: recovery, started: started, answered: answered)
        host.kernel.addDevice(3, generation: 77, state: state, pid: pid)
        return host
    }

    @Test("undoes what was half-made", arguments: [DeviceRecord.Step.adding, .starting, .deleting])
    func undoes(_ step: DeviceRecord.Step) throws {
        let host = try host(step, .dead)
        try host.broker.reconcile()
        try host.run { host.leftovers.isEmpty }
        #expect(host.kernel.devices[3] == nil)
    }

    @Test("does not touch a device of another server that has the recorded number")
    func sparesForeign() throws {
        let host = try Host()
        try leave(.adding, in: host)
        host.kernel.addForeignDevice(3)
        try host.broker.reconcile()
        try host.run { host.broker.devices.isEmpty }
        #expect(host.kernel.devices[3] != nil)
        #expect(host.kernel.log == ["getDeviceInfo 3"])
        #expect(try host.broker.store.load().records.isEmpty)
    }

    @Test("reports a live device whose worker is gone, and lets its owner delete it")
    func reportsDead() throws {
        let host = try host(.live, .dead, recovery: .none)
        try host.broker.reconcile()
        try host.run { host.broker.devices[3]?.info.state == .failed }
        #expect(try host.delete(3) == nil)
        #expect(host.kernel.devices[3] == nil)
    }

    @Test("ends a deletion that had begun: only STOP_DEV makes a device that can be recovered DEAD")
    func endsDeletion() throws {
        let host = try host(.live, .dead)
        try host.broker.reconcile()
        try host.run { host.leftovers.isEmpty }
        #expect(host.kernel.devices[3] == nil)
    }

    @Test("is ready for clients only when it knows what became of each device")
    func knowsBeforeItAnswers() throws {
        let host = try host(.live, .dead, recovery: .none)
        var isReady = false
        host.kernel.beforeAnswer[.getDeviceInfo] = { #expect(!isReady) }
        try host.broker.reconcile {
            #expect(host.broker.devices[3]?.info.state == .failed)
            isReady = true
        }
        #expect(!isReady)
        try host.run { isReady }
        let empty = try Host()
        var isEmptyReady = false
        try empty.broker.reconcile { isEmptyReady = true }
        try empty.run { isEmptyReady }
    }

    @Test("removes its link to a number that another server has by now")
    func removesStaleLink() throws {
        let host = try Host()
        try leave(.live, in: host)
        host.kernel.addForeignDevice(3)
        #expect(symlink("ublkb3", host.folder + "/ubdb3") == 0)
        try host.broker.reconcile()
        try host.run { host.broker.devices.isEmpty }
        #expect(linkTarget(host.folder + "/ubdb3") == nil)
        #expect(host.kernel.devices[3] != nil)
    }

    @Test("removes names and udev records of devices that nobody has a record of, and no others")
    func removesStrays() throws {
        let host = try host(.live, .quiesced)
        // 4 has no owner, 5 has a damaged record, 6 belongs to another server.
        try replaceFile(host.folder + "/state/5", with: [0x7b], mode: 0o600)
        for (name, target) in [("ubdb4", "ublkb4"), ("ubdb5", "ublkb5"), ("ubdb6", "elsewhere")] {
            #expect(symlink(target, "\(host.folder)/\(name)") == 0)
        }
        for name in ["3", "4", "5"] { try replaceFile("\(host.folder)/udev/\(name)", with: [], mode: 0o644) }
        try host.broker.reconcile()
        #expect(listFolder(host.folder + "/udev").sorted() == ["3", "5"])
        #expect(listFolder(host.folder).filter { $0.hasPrefix("ubdb") }.sorted() == ["ubdb5", "ubdb6"])
    }

    @Test("goes on with an upgrade that had begun: the device may have been told to take no requests")
    func finishesUpgrade() throws {
        let host = try host(.upgrading, .quiesced, pid: 4711)
        host.kernel.features = [.perIODaemon]
        try host.broker.reconcile()
        try host.run { host.kernel.log.contains("endUserRecovery 3") && host.broker.devices[3]?.info.state == .live }
        #expect(host.broker.devices[3]?.info.deaths == 0)
    }

    @Test(
        "begins a recovery that may have been begun, where a second beginning can crash the host, only if no answer is recorded",
        arguments: [(false, 0, 1), (false, EINVAL, 1), (true, 0, 0)])
    func beginsRecoveryOnce(answered: Bool, errno: Int32, asked: Int) throws {
        let host = try host(.recovering, .quiesced, pid: 4711, started: true, answered: answered)
        if errno != 0 { host.kernel.failures[.startUserRecovery] = errno }
        try host.broker.reconcile()
        try host.run { host.kernel.log.contains("endUserRecovery 3") && host.broker.devices[3]?.info.state == .live }
        #expect(host.kernel.log.filter { $0 == "startUserRecovery 3" }.count == asked)
        #expect(try host.broker.store.load().records.first?.recoveryStarted == false)
    }

    @Test("has recorded the kernel's answer before a replacement can fetch")
    func recordsAnswer() throws {
        let host = try host(.recovering, .quiesced, pid: 4711)
        var recorded: [Bool?] = []
        host.kernel.beforeAnswer[.endUserRecovery] = {
            recorded.append((try? host.broker.store.load())?.records.first?.recoveryAnswered)
        }
        try host.broker.reconcile()
        try host.run { host.kernel.log.contains("endUserRecovery 3") && host.broker.devices[3]?.info.state == .live }
        #expect(recorded == [true])
    }

    @Test("takes a beginning that an earlier broker recorded for one that was answered")
    func oldRecord() throws {
        let host = try Host()
        try leave(.recovering, in: host, started: true)
        let path = host.folder + "/state/3"
        let text = String(decoding: try readFile(path), as: UTF8.self)
        #expect(text.contains("recoveryAnswered"))
        try replaceFile(path, with: Array(text.replacing("recoveryAnswered", with: "somethingElse").utf8), mode: 0o600)
        #expect(try host.broker.store.load().records.first?.recoveryAnswered == true)
    }

    @Test("throws away what was half written when the last one was killed")
    func dropsHalfWritten() throws {
        let host = try Host()
        try leave(.live, in: host)
        for name in ["state/3.new", "udev/3.new"] {
            try FileDescriptor.open("\(host.folder)/\(name)", O_WRONLY | O_CREAT, mode: 0o600).writeAll([0x7b])
        }
        try host.broker.store.prepare()
        let (records, damaged) = try host.broker.store.load()
        #expect(records.map(\.device.id) == [3] && damaged == [])
        #expect(listFolder(host.folder + "/udev") == [])
    }

    @Test("leaves a device alone when the kernel does not say what it is")
    func leavesUnknown() throws {
        let host = try host(.live, .live, pid: 4711)
        host.kernel.failures[.getDeviceInfo] = EBUSY
        try host.broker.reconcile()
        try host.run { host.broker.devices[3]?.info.state == .unmanaged }
        #expect(host.kernel.log == ["getDeviceInfo 3"])
        #expect(try host.broker.store.load().records.count == 1)
    }

    @Test(
        "leaves a device alone whose state in the kernel it does not know, unless nobody has it yet",
        arguments: [DeviceRecord.Step.live, .recovering, .upgrading, .adding])
    func leavesUnknownState(_ step: DeviceRecord.Step) throws {
        let host = try host(step, .live)
        host.kernel.becomeUnknown(3)
        try host.broker.reconcile()
        guard step != .adding else { return try host.run { host.leftovers.isEmpty } }
        try host.run { host.broker.devices[3]?.info.state == .unmanaged }
        #expect(host.broker.devices[3]?.info.reason?.contains("a state (9)") == true)
        #expect(host.kernel.log == ["getDeviceInfo 3"])
    }

    @Test("takes a worker that is just dying for one that died, and never for one that it can not take over")
    func dyingWorker() throws {
        let child = try Sleeper()
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        host.geometry.size = 4096
        try leave(
            .live, in: host, worker: DeviceRecord.Worker(pid: child.pid, startTime: child.startTime, uid: 0x7100_0000))
        host.kernel.addDevice(3, generation: 77, state: .live, pid: child.pid)
        var looks = 0
        host.sandboxProblem = "it has lost its threads"
        host.whileVerified = { [unowned host] in
            looks += 1
            guard looks == 1 else { return host.sandboxProblem = nil }
            kill(child.pid, SIGKILL)
            host.kernel.quiesce(3)
        }
        var states: Set<DeviceState> = []
        try host.broker.reconcile()
        try host.run {
            host.broker.devices[3].map { _ = states.insert($0.info.state) }
            return host.workers.count == 1 && host.broker.devices[3]?.info.state == .live
        }
        #expect(looks > 1 && !states.contains(.unmanaged))
        #expect(host.broker.devices[3]?.info.deaths == 1)
    }

    /// A host with that many devices whose workers run, and do not pass.
    private func hostOfUnfit(_ count: UInt32, _ child: Sleeper, takesDown: Bool = false) throws -> Host {
        let host = try Host(uids: 64, takesDown: takesDown)
        host.sandboxProblem = "it has lost its threads"
        for id in 0..<count {
            let worker = DeviceRecord.Worker(pid: child.pid, startTime: child.startTime, uid: 0x7100_0000 + id)
            try leave(.live, in: host, id: id, worker: worker)
            host.kernel.addDevice(id, generation: 77, state: .live, pid: child.pid)
        }
        return host
    }

    /// How often workers are looked at until the broker is ready, and how long that takes.
    private func looksUntilReady(_ host: Host) throws -> (looks: Int, nanoseconds: UInt64) {
        var looks = 0
        host.whileVerified = { looks += 1 }
        var isReady = false
        let began = monotonicNanoseconds()
        try host.broker.reconcile { isReady = true }
        try host.run { isReady }
        return (looks, monotonicNanoseconds() - began)
    }

    @Test("is ready a second later when workers do not pass, however many they are")
    func looksAgainAtAll() throws {
        let child = try Sleeper()
        let host = try hostOfUnfit(40, child)
        let (looks, nanoseconds) = try looksUntilReady(host)
        #expect(nanoseconds < 5_000_000_000)
        #expect(looks == 80)
        #expect(host.broker.devices.values.allSatisfy { $0.info.state == .unmanaged })
    }

    @Test("looks only once at a worker that does not pass when the host goes down, and ends its device")
    func looksOnceWhenGoingDown() throws {
        let child = try Sleeper()
        let host = try hostOfUnfit(3, child, takesDown: true)
        let (looks, nanoseconds) = try looksUntilReady(host)
        #expect(nanoseconds < UInt64(WorkerStart.dying) * 1_000_000)
        #expect(looks == 3)
        var isDone = false
        TakeDown(host.broker).begin { isDone = true }
        try host.run { isDone }
        #expect(host.kernel.devices.isEmpty && listFolder(host.folder + "/state").isEmpty)
    }

    @Test(
        "does not take a worker for dead that it can not look for: it does not start, and touches no device",
        arguments: [EMFILE, ENFILE, ENOMEM, EPERM, ENOSPC])
    func unknownWorker(_ errno: Int32) throws {
        let child = try Sleeper()
        let host = try hostOfUnfit(1, child)
        host.adoptError = errno
        #expect(throws: SystemError("adopt", errno)) { try host.broker.reconcile() }
        #expect(host.kernel.log.isEmpty)
        #expect(try host.broker.store.load().records.count == 1)
        host.adoptError = ESRCH
        host.kernel.quiesce(0)
        host.geometry.size = 4096
        host.sandboxProblem = nil
        try host.broker.reconcile()
        try host.run { host.workers.count == 1 && host.broker.devices[0]?.info.state == .live }
    }

    @Test("does not take records that it can not read for none: it does not start, and removes nothing")
    func unreadableRecords() throws {
        let host = try Host()
        try leave(.live, in: host)
        try replaceFile(host.folder + "/udev/3", with: [], mode: 0o644)
        #expect(rename(host.folder + "/state", host.folder + "/elsewhere") == 0)
        try replaceFile(host.folder + "/state", with: [], mode: 0o600)
        #expect(throws: SystemError.self) { try host.broker.reconcile() }
        #expect(listFolder(host.folder + "/udev") == ["3"])
        #expect(throws: SystemError.self) { try host.broker.removeStrays(except: []) }
        #expect(listFolder(host.folder + "/udev") == ["3"])
    }

    @Test("does not take a number that is no file name of its own for a record")
    func strangeNames() throws {
        let host = try Host()
        try leave(.live, in: host)
        let record = try readFile(host.folder + "/state/3")
        for name in ["+3", "03"] { try replaceFile("\(host.folder)/state/\(name)", with: record, mode: 0o600) }
        let (records, damaged) = try host.broker.store.load()
        #expect(records.map(\.device.id) == [3])
        #expect(damaged == ["+3", "03"].map { "\(host.folder)/state/\($0)" })
    }

    @Test(
        "takes a record with impossible numbers for a damaged one",
        arguments: [
            ("\"ioTimeout\":30", "\"ioTimeout\":9223372036854775807"),
            ("\"deaths\":0", "\"deaths\":9223372036854775807"), ("\"deaths\":0", "\"deaths\":-1"),
            ("\"queues\":1,", "\"queues\":0,"), ("\"depth\":128", "\"depth\":65535"),
            ("\"memoryBytes\":67108864", "\"memoryBytes\":9223372036854775807"),
        ])
    func refusesNumbers(_ part: String, _ replacement: String) throws {
        let host = try Host()
        _ = try host.add().get()
        let path = host.folder + "/state/0"
        let text = String(decoding: try readFile(path), as: UTF8.self)
        #expect(text.contains(part), "\(text)")
        try replaceFile(path, with: Array(text.replacing(part, with: replacement).utf8), mode: 0o600)
        #expect(try host.broker.store.load().damaged == [path])
    }

    @Test("keeps a damaged record out of the way and goes on")
    func survivesDamage() throws {
        let host = try Host()
        try replaceFile(host.folder + "/state/9", with: Array("{\"version\":1".utf8), mode: 0o600)
        try host.broker.reconcile()
        #expect(try host.broker.store.load().damaged == [host.folder + "/state/9"])
        #expect(try host.add().get().0.state == .live)
    }
}

/// A process that does nothing until it is killed.
private final class Sleeper {
    let pid: Int32
    let startTime: UInt64

    init() throws {
        let path = "/bin/sleep"
        var arguments: [UnsafeMutablePointer<CChar>?] = [strdup(path), strdup("60"), nil]
        defer { for argument in arguments { free(argument) } }
        var pid: pid_t = 0
        let result = posix_spawn(&pid, path, nil, nil, &arguments, nil)
        guard result == 0 else { throw SystemError("start \(path)", result) }
        self.pid = pid
        startTime = try WorkerProcess.startTime(of: pid)
    }

    deinit { kill(pid, SIGKILL) }
}
