import BrokerInterface
import Glibc
import SystemCalls
import Targets
import WorkerProtocol

/// A device in the broker, from the choice of its number until nothing of it is left.
final class ManagedDevice {
    /// The description for its owner.
    var info: Device
    /// Bytes of I/O buffers, for the owner's quota.
    let memoryBytes: UInt64
    /// Bytes of memory that its content has, for the owner's quota; 0 unless it is a memory disk. As asked for: until its worker
    /// reports it, and where its last block is left out, that is more than `info.sizeBytes`.
    let diskBytes: UInt64
    var step: DeviceRecord.Step
    var worker: (any Worker)?
    /// The parking socket with the client's files; every worker of this device gets a copy.
    var parking: FileDescriptor?
    /// START_DEV was sent, so there may be a disk to stop.
    var mayBeStarted = false
    /// ADD_DEV succeeded, so there is a kernel device to delete.
    var isInKernel = false
    /// It is unknown whether ADD_DEV succeeded: a device with this number may be ours or another server's.
    var mayBeInKernel = false
    /// The launch message of every worker of this device, so that a replacement provides the same disk.
    var launch: LaunchMessage?
    /// The program that its worker runs and that a replacement is started from; nil when unknown.
    var program: WorkerProgram?
    /// The program that its worker was started from, whether it serves yet or not; nil when unknown.
    var workerProgram: WorkerProgram?
    /// The backing file, as its first worker reported it.
    var file = FileIdentity.none
    /// Bytes: the size that the kernel is about to get. Until then its disk has `info.sizeBytes`, and a worker serves the
    /// larger of both.
    var pendingSize: UInt64?
    /// The kernel may have that size already.
    var kernelMayHavePending = true
    /// It has become smaller, or has not become larger: its next worker unlocks the bytes that it does not have.
    var releasesBytes = false
    /// The counters of its workers.
    var statistics: DeviceStatistics?
    /// Detects a lack of progress.
    var watch = ProgressWatch()
    /// Detects a worker that is busy without work.
    var busyWatch = BusyWatch()
    /// Why the broker killed the worker; nil when it did not.
    var killedBecause: String?
    /// The sockets in an earlier broker's record; nil for a device of this broker.
    var sockets: DeviceRecord.Sockets?
    /// The inode that its parking socket had, by the record; nil when its files were lost.
    var parked: UInt64?
    /// The recovery that replaces its worker.
    var recovery: (any Replacement)?
    /// START_USER_RECOVERY was sent and the recovery has not ended.
    var recoveryStarted = false
    /// The kernel has also answered, so replacements may have been started: before 6.16 the command must not be sent
    /// again.
    var recoveryAnswered = false
    /// The wait for its server, which new connections alone do not end.
    var serverWait = ServerWait()
    /// The upgrade that rehearses or installs another program.
    var upgrade: (any Replacement)?
    /// The operation by which its owner reopens its file.
    var reopening: (any Reopening)?
    var deathLog = DeathLog()
    /// An ordinary deletion that has not begun to take the device down and asks who uses it.
    var deletion: AnyObject?
    /// The operation that takes it down; later callers join it.
    var teardown: (any TakingDown)?

    /// What those who watch the device are told of it.
    private struct Watched: Equatable {
        var state: DeviceState
        var reason: String?
        var waits: Bool
        var sizeBytes: UInt64
    }

    private var watched: Watched?
    /// Another number for each state that they are told.
    private(set) var revision: UInt64 = 1
    /// Called when there is something to tell.
    var changed: (() -> Void)?

    init(info: Device, memoryBytes: UInt64, diskBytes: UInt64 = 0, step: DeviceRecord.Step) {
        self.info = info
        self.memoryBytes = memoryBytes
        self.diskBytes = diskBytes
        self.step = step
    }

    /// A device that an earlier broker has left.
    convenience init(_ record: DeviceRecord) {
        var options = record.launch?.options ?? DeviceOptions()
        options.size = max(options.size ?? 0, record.device.sizeBytes)
        let bytes = (try? TargetManifest.named(record.device.target))?.contentBytes(options) ?? 0
        self.init(info: record.device, memoryBytes: record.memoryBytes, diskBytes: bytes, step: record.step)
    }

    /// A device that is about to be added.
    convenience init(
        adding plan: AddPlan, mode: DataMode, ioTimeout: Int64, allowedCPUs: CPUList? = nil,
        groupLimits: GroupLimits? = nil, trustedContent: Bool,
        id: UInt32, owner: UInt32, generation: UInt64, node: String
    ) {
        let info = Device {
            ($0.id, $0.owner, $0.generation, $0.node) = (id, owner, generation, node)
            ($0.target, $0.file, $0.name) = (plan.target.name, plan.fileName, plan.name)
            ($0.queues, $0.depth, $0.maxIOBytes) = (plan.queues, plan.depth, plan.maxIOBytes)
            $0.mode = mode
            $0.readOnly = plan.readOnly
            $0.buffered = plan.options.buffered
            if plan.options.offset > 0 { $0.offset = Int64(clamping: plan.options.offset) }
            ($0.partition, $0.set) = (plan.partition, plan.set)
            if !plan.options.cipher.isEmpty { $0.cipher = plan.options.cipher }
            $0.recovery = plan.recovery
            $0.ioTimeout = ioTimeout
            if trustedContent { $0.trustedContent = true }
            ($0.cpus, $0.allowedCPUs, $0.groupLimits) = (plan.cpus, allowedCPUs, groupLimits)
            $0.created = Int64(time(nil))
            $0.since = $0.created
        }
        self.init(info: info, memoryBytes: plan.bufferBytes, diskBytes: plan.diskBytes, step: .adding)
    }

    var id: UInt32 { info.id }
    var owner: UInt32 { info.owner }

    /// The worker is dead, and no process holds the device's file or connections.
    var waitsForFile: Bool { info.state == .recovering && recovery == nil && upgrade == nil && parking == nil }

    var record: DeviceRecord {
        let worker = worker.map { DeviceRecord.Worker(pid: $0.pid, startTime: $0.startTime, uid: $0.uid) }
        var record = DeviceRecord(step: step, device: info, worker: worker, memoryBytes: memoryBytes)
        record.launch = launch
        record.recoveryStarted = recoveryStarted
        record.recoveryAnswered = recoveryAnswered
        record.inputsLost = serverWait.began
        record.file = file
        record.pendingSize = pendingSize
        record.releasesBytes = releasesBytes
        record.parked = parkingInode ?? parked
        if let control = self.worker?.controlInode, let parking = parkingInode {
            record.sockets = DeviceRecord.Sockets(
                control: control, parking: parking, worker: self.worker?.workerEndInode ?? sockets?.worker)
        } else {
            // The broker does not hold the sockets now; a later broker may be able to take them back.
            record.sockets = sockets
        }
        return record
    }

    /// The descriptors that its worker must have. Inodes that the broker does not hold come from the record.
    func descriptorTable(of worker: any Worker) -> DescriptorTable {
        DescriptorTable(
            number: id, files: launch?.keptDescriptors ?? 0...2, areSockets: hasServer,
            workerEnd: worker.workerEndInode ?? sockets?.worker, parking: parkingInode ?? sockets?.parking,
            brokerEnd: worker.controlInode ?? sockets?.control)
    }

    private var parkingInode: UInt64? {
        guard let status = try? parking?.status() else { return nil }
        return UInt64(status.st_ino)
    }

    /// Makes this the device's worker.
    func adopt(_ worker: any Worker, of program: WorkerProgram) {
        self.worker = worker
        workerProgram = program
        info.workerPid = worker.pid
        info.workerUid = worker.uid
    }

    /// Replaces the reason of its last worker's death by a better one.
    func correctDeath(_ words: String, to better: String) {
        if info.lastDeath == words { info.lastDeath = better }
        let (text, part) = (Array((info.reason ?? "").utf8), Array(words.utf8))
        guard let start = text.indices.first(where: { text[$0...].starts(with: part) }) else { return }
        info.reason = String(
            decoding: text[..<start] + Array(better.utf8) + text[(start + part.count)...], as: UTF8.self)
        tellChange()
    }

    /// Notes the program of its worker.
    func runs(_ program: WorkerProgram) {
        self.program = program
        info.workerVersion = program.version
    }

    func setState(_ state: DeviceState, reason: String? = nil) {
        if state != info.state { info.since = Int64(time(nil)) }
        info.state = state
        info.reason = reason
        info.waitsSince = nil
        tellChange()
    }

    /// The kernel's disk has this size now, in bytes.
    func resized(to bytes: UInt64) {
        releasesBytes = bytes < info.sizeBytes
        info.sizeBytes = bytes
        pendingSize = nil
        tellChange()
    }

    /// Gives up a larger size that the kernel cannot have yet.
    func forgetUntoldSize() {
        guard pendingSize != nil, !kernelMayHavePending else { return }
        pendingSize = nil
        releasesBytes = true
    }

    /// Whoever watches the device hears what is new.
    private func tellChange() {
        let now = Watched(state: info.state, reason: info.reason, waits: waitsForFile, sizeBytes: info.sizeBytes)
        guard now != watched else { return }
        watched = now
        revision += 1
        changed?()
    }
}
