import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// A device as the broker keeps it, from the moment its number is chosen until nothing of it is left.
final class ManagedDevice {
    /// What its owner is told.
    var info: Device
    /// Bytes of I/O buffers, for the owner's quota.
    let memoryBytes: UInt64
    var step: DeviceRecord.Step
    var worker: (any Worker)?
    /// The end in which the client's files lie; every worker of this device is given a copy.
    var parking: FileDescriptor?
    /// START_DEV was sent: there may be a disk to stop.
    var mayBeStarted = false
    /// ADD_DEV succeeded: there is a kernel device to delete.
    var isInKernel = false
    /// Nobody can tell whether ADD_DEV succeeded: a device of that number may be ours or another server's.
    var mayBeInKernel = false
    /// What each worker of this device is told, so that a replacement makes the same disk.
    var launch: LaunchMessage?
    /// The program that its worker runs, and that a replacement of it is started from; nil when it is not known.
    var program: WorkerProgram?
    /// The program that its worker was started from, whether it came to serve or not; nil when that is not known.
    var workerProgram: WorkerProgram?
    /// The file behind it, as its first worker told.
    var file = FileIdentity.none
    /// What its worker says of its progress.
    var statistics: DeviceStatistics?
    /// Whether that progress has stopped.
    var watch = ProgressWatch()
    /// Whether its worker runs although there is nothing to do.
    var busyWatch = BusyWatch()
    /// Why the broker itself killed its worker; nil when it did not.
    var killedBecause: String?
    /// As an earlier broker recorded them; nil for a device of this broker's.
    var sockets: DeviceRecord.Sockets?
    /// Its worker is being replaced.
    var recovery: (any Replacement)?
    /// START_USER_RECOVERY was sent and not ended.
    var recoveryStarted = false
    /// And answered, so that replacements may have been tried: before 6.16 it must not be sent again.
    var recoveryAnswered = false
    /// Its worker is being replaced by one of another program, or that is being tried out.
    var upgrade: (any Replacement)?
    /// Its owner brings its file again.
    var reopening: (any Reopening)?
    var deathLog = DeathLog()
    /// An ordinary deletion that has not begun to take it down: it asks who uses the device.
    var deletion: AnyObject?
    /// Being taken down; whoever else wants that is told.
    var teardown: (any TakingDown)?

    init(info: Device, memoryBytes: UInt64, step: DeviceRecord.Step) {
        self.info = info
        self.memoryBytes = memoryBytes
        self.step = step
    }

    /// A device that is about to be added.
    convenience init(
        adding plan: AddPlan, mode: DataMode, ioTimeout: Int64, allowedCPUs: CPUList? = nil,
        groupLimits: GroupLimits? = nil, trustedContent: Bool,
        id: UInt32, owner: UInt32, generation: UInt64, node: String
    ) {
        let now = Int64(time(nil))
        let info = Device(
            id: id, generation: generation, owner: owner, target: plan.target.name, state: .adding, node: node,
            link: nil, sizeBytes: 0, blockSize: 0, physicalBlockSize: 0, readOnly: plan.readOnly, queues: plan.queues,
            depth: plan.depth, maxIOBytes: plan.maxIOBytes, mode: mode, buffered: plan.options.buffered,
            recovery: plan.recovery, ioTimeout: ioTimeout,
            trustedContent: trustedContent ? true : nil, since: now, file: plan.fileName,
            offset: plan.options.offset > 0 ? Int64(clamping: plan.options.offset) : nil, cpus: plan.cpus,
            allowedCPUs: allowedCPUs, groupLimits: groupLimits,
            created: now)
        self.init(info: info, memoryBytes: plan.bufferBytes, step: .adding)
    }

    var id: UInt32 { info.id }
    var owner: UInt32 { info.owner }

    /// Its worker is dead, and nobody has its file.
    var waitsForFile: Bool { info.state == .recovering && recovery == nil && upgrade == nil && parking == nil }

    var record: DeviceRecord {
        let worker = worker.map { DeviceRecord.Worker(pid: $0.pid, startTime: $0.startTime, uid: $0.uid) }
        var record = DeviceRecord(step: step, device: info, worker: worker, memoryBytes: memoryBytes)
        record.launch = launch
        record.recoveryStarted = recoveryStarted
        record.recoveryAnswered = recoveryAnswered
        record.file = file
        if let control = self.worker?.controlInode, let parking = parkingInode {
            record.sockets = DeviceRecord.Sockets(
                control: control, parking: parking, worker: self.worker?.workerEndInode ?? sockets?.worker)
        } else {
            // Not held at the moment: a later broker may have more luck.
            record.sockets = sockets
        }
        return record
    }

    /// What its worker's descriptors must be. What is not held at the moment is as it was recorded.
    func descriptorTable(of worker: any Worker) -> DescriptorTable {
        DescriptorTable(
            number: id, files: launch.map { $0.target.needsFiles ? 1...2 : 0...0 } ?? 0...2,
            workerEnd: worker.workerEndInode ?? sockets?.worker, parking: parkingInode ?? sockets?.parking,
            brokerEnd: worker.controlInode ?? sockets?.control)
    }

    private var parkingInode: UInt64? {
        guard let status = try? parking?.status() else { return nil }
        return UInt64(status.st_ino)
    }

    /// The worker that serves it from now on.
    func adopt(_ worker: any Worker, of program: WorkerProgram) {
        self.worker = worker
        workerProgram = program
        info.workerPid = worker.pid
        info.workerUid = worker.uid
    }

    /// More has become known of its last worker's death.
    func correctDeath(_ words: String, to better: String) {
        if info.lastDeath == words { info.lastDeath = better }
        let (text, part) = (Array((info.reason ?? "").utf8), Array(words.utf8))
        guard let start = text.indices.first(where: { text[$0...].starts(with: part) }) else { return }
        info.reason = String(
            decoding: text[..<start] + Array(better.utf8) + text[(start + part.count)...], as: UTF8.self)
    }

    /// Its worker is one of that program.
    func runs(_ program: WorkerProgram) {
        self.program = program
        info.workerVersion = program.version
    }

    func setState(_ state: DeviceState, reason: String? = nil) {
        if state != info.state { info.since = Int64(time(nil)) }
        info.state = state
        info.reason = reason
    }
}
