import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls
import WorkerProtocol

/// The broker's state. It is used by one thread; operations change it step by step from the event loop.
final class Broker {
    /// The broker's environment; unit tests replace it.
    struct Surroundings {
        var startWorker: (WorkerLaunch, @escaping (WorkerEvent) -> Void) throws(SystemError) -> any Worker
        /// What is wrong with a stopped worker's sandbox; nil when it is complete.
        var verify: (SandboxVerification, _ pid: Int32) -> String? = { $0.problem(inProcess: $1) }
        /// Whether something uses a device, so that the device must stay; nil: look into the host's tables.
        var holding: ((_ id: UInt32, _ completion: @escaping (Holding) -> Void) -> Void)?
        var sysfs = "/sys"
        /// The running kernel's release (uname -r).
        var release = kernelRelease()
        var nodes = Nodes(folder: "/dev")
        /// Monotonic nanoseconds, for the deadlines of recoveries.
        var now: () -> UInt64 = monotonicNanoseconds
        /// nil when there are no control groups for devices.
        var groups: (any DeviceGroups)?
        /// Takes over an earlier broker's worker; ESRCH when it has ended.
        var adoptWorker: (DeviceRecord.Worker, EventLoop) throws(SystemError) -> any Worker = {
            (recorded, loop) throws(SystemError) in
            try WorkerProcess(
                adopting: recorded.pid, uid: recorded.uid, startTime: recorded.startTime, loop: loop)
        }
        /// nil when it cannot be read.
        var kernelLog: KernelLog?
        /// systemd's store of descriptors; nil without one.
        var descriptorStore: DescriptorStore?
        /// Requests that the block layer has passed to a device and that have not ended.
        var requestsInFlight: (_ id: UInt32) -> Int? = BlockLayer.requestsInFlight
        /// Requests of a device that have ended.
        var requestsDone: (_ id: UInt32) -> Int? = BlockLayer.requestsDone
        /// Opens the program that has the configured name now.
        var openProgram: (_ path: String) throws(TrustedFile.Distrust) -> WorkerProgram = WorkerProgram.init(path:)
        /// The program that has this name now; nil when there is none.
        var programNow: (_ path: String) -> WorkerProgram.Identity? = WorkerProgram.Identity.init(of:)
    }

    let configuration: Configuration
    let loop: EventLoop
    let policy: AccessPolicy
    /// By target name.
    let walls: [String: Walls]
    /// The program for new workers.
    var program: WorkerProgram
    let workerGID: UInt32
    let accounts: Accounts
    let driver: Driver
    let store: RecordStore
    let undertaker: Undertaker
    private let holders: Holders
    let orphans: Orphans
    let deathCauses: DeathCauses
    let monitors = Monitors()
    let started = Int64(time(nil))
    /// Created at the start, since it reads the broker's own table of mounts.
    private let mountCount = MountCount()
    /// The number of the broker's own seccomp filters, which workers inherit. If it cannot be read, no worker passes
    /// verification.
    private var ownFilters: Int { (try? ProcessStatus(of: "self").seccompFilters) ?? .max - 2 }
    private let surroundings: Surroundings
    /// Replaces a device's worker after its death.
    let replaceWorker: (Broker, ManagedDevice, ProcessChange) -> Void

    var uids: WorkerUIDs
    var startLimits = StartLimits()
    var devices: [UInt32: ManagedDevice] = [:]
    /// The deletions of the last minute, in monotonic nanoseconds, by device number.
    private var deletions: [UInt32: UInt64] = [:]
    /// Why a device's last change is not in its record yet, by device number.
    private var unwritten: [UInt32: SystemError] = [:]
    var adds: [ObjectIdentifier: any PendingAdd] = [:]
    /// Rehearsals with unkillable workers: their owners, and the bytes of their buffers.
    var stuckRehearsals: [ObjectIdentifier: (owner: UInt32, memoryBytes: UInt64)] = [:]

    init(
        configuration: Configuration, loop: EventLoop, policy: AccessPolicy, walls: [String: Walls],
        program: WorkerProgram, workerGID: UInt32, driver: Driver,
        surroundings: Surroundings, accounts: Accounts = Accounts(),
        replaceWorker: @escaping (Broker, ManagedDevice, ProcessChange) -> Void
    ) throws(SystemError) {
        guard let uids = WorkerUIDs(base: configuration.uidBase, count: configuration.uidCount) else {
            throw SystemError("uids from \(configuration.uidBase) on", ERANGE)
        }
        self.configuration = configuration
        self.loop = loop
        self.policy = policy
        self.walls = walls
        self.program = program
        self.workerGID = workerGID
        self.driver = driver
        self.surroundings = surroundings
        self.replaceWorker = replaceWorker
        self.accounts = accounts
        store = RecordStore(runFolder: configuration.runFolder)
        undertaker = Undertaker(loop: loop) { accounts.account(of: $0) }
        holders = Holders(loop: loop)
        orphans = Orphans(loop: loop)
        deathCauses = DeathCauses(loop: loop, log: surroundings.kernelLog)
        self.uids = uids
    }

    /// The folder of a device's queue settings.
    func queueFolder(of id: UInt32) -> String { "\(surroundings.sysfs)/block/ublkb\(id)/queue" }

    /// Whether START_USER_RECOVERY may be sent again after a replacement that died half-ready (Linux 6.16;
    /// docs/kernel-facts.md#half-ready).
    var canRepeatRecovery: Bool { driver.features.contains(.perIODaemon) }

    /// Whether the kernel notices a worker's death when the last reference to its control node closes, and a live device
    /// then becomes another (Linux 6.16). Before, it notices at a request or when one times out.
    var noticesDeaths: Bool { driver.features.contains(.perIODaemon) }

    /// Why no device may be made on this kernel; nil when one may.
    var badKernel: KnownBadKernel? {
        configuration.allowsBadKernel ? nil : KnownBadKernel.entry(for: surroundings.release)
    }

    var descriptorStore: DescriptorStore? { surroundings.descriptorStore }

    // MARK: For the operations

    func startWorker(
        _ launch: WorkerLaunch, _ handler: @escaping (WorkerEvent) -> Void
    ) throws(SystemError) -> any Worker {
        try surroundings.startWorker(launch, handler)
    }

    var nodes: Nodes { surroundings.nodes }
    var sysfs: String { surroundings.sysfs }
    var groups: (any DeviceGroups)? { surroundings.groups }

    /// Opens the worker program that has the configured name now.
    func openProgram() throws(TrustedFile.Distrust) -> WorkerProgram {
        try surroundings.openProgram(configuration.workerProgram)
    }

    /// The worker that an earlier broker recorded; nil when it has ended.
    ///
    /// - Throws: when nobody can tell. A worker that serves must not be taken for a dead one: its device would be stopped.
    func adopt(_ recorded: DeviceRecord.Worker) throws(SystemError) -> (any Worker)? {
        do throws(SystemError) {
            let worker = try surroundings.adoptWorker(recorded, loop)
            // A broker that died during START_DEV may have left it stopped. ESRCH: it ends just now.
            try? worker.resume()
            return worker
        } catch {
            if error.errno == ESRCH { return nil }
            throw error
        }
    }

    /// A device as its owner sees it.
    func description(of device: ManagedDevice) -> Device {
        var info = device.info
        info.keeper = monitors.keeper(of: device)
        // Compared with the file that an upgrade would take, not with the one that this broker opened at its start.
        if device.worker != nil, let program = device.program,
            let now = surroundings.programNow(configuration.workerProgram)
        {
            info.workerOutdated = program.identity != now
        }
        return info
    }

    /// Why the block device behind a disk is unsuitable; nil when it is suitable, or when the disk has a file behind
    /// it.
    func backingProblem(_ geometry: Geometry) -> WorkerFailure? {
        guard geometry.backingMajor != 0 || geometry.backingMinor != 0 else { return nil }
        let device = BackingDevice(
            major: geometry.backingMajor, minor: geometry.backingMinor, sysfs: surroundings.sysfs)
        guard device.exists else { return WorkerFailure(.fileStatus, errno: ENODEV) }
        return device.liesOnUblk ? WorkerFailure(.fileIsUbdDevice) : nil
    }

    /// The writable devices with the same bytes that wait for their owners to reopen the file. They have no open file, so no
    /// lock protects their bytes (FileClaim), and their mounted file systems and waiting requests would later overwrite the
    /// new device's data.
    func devicesWaiting(for bytes: Range<UInt64>, of file: FileIdentity) -> [ManagedDevice] {
        guard file != .none else { return [] }
        return devices.values.filter { device in
            // What has no name is never brought again, and no other device has its bytes.
            guard device.waitsForFile, !device.isDisposable, !device.info.readOnly, device.file == file else {
                return false
            }
            let begin = UInt64(clamping: device.info.offset ?? 0)
            return bytes.overlaps(begin..<begin + UInt64(clamping: device.info.sizeBytes))
        }
    }

    /// Monotonic nanoseconds.
    func now() -> UInt64 { surroundings.now() }

    func requestsInFlight(_ id: UInt32) -> Int? { surroundings.requestsInFlight(id) }

    /// Bytes of the kernel's disk; nil when it cannot be read.
    func diskBytes(_ id: UInt32) -> UInt64? { BlockLayer.bytes(id, sysfs: surroundings.sysfs) }

    func requestsDone(_ id: UInt32) -> Int? { surroundings.requestsDone(id) }

    /// Whether the kernel considers the processors' counters good enough for its clock: they run at the same constant
    /// rate. Otherwise it removes them from this list. In the first seconds after boot the TSC is named tsc-early.
    var hasSteadyTicks: Bool {
        let path = "\(surroundings.sysfs)/devices/system/clocksource/clocksource0/available_clocksource"
        guard let bytes = try? readFile(path) else { return false }
        return String(decoding: bytes, as: UTF8.self).split { $0 == " " || $0 == "\n" }
            .contains { ["tsc", "tsc-early", "arch_sys_counter"].contains($0) }
    }

    /// Determines whether something uses a device, so that the device must stay; calls `completion` later.
    func askHolding(of device: ManagedDevice, _ completion: @escaping (Holding) -> Void) {
        if let ask = surroundings.holding { return ask(device.id, completion) }
        holders.ask("ublkb\(device.id)", completion)
    }

    /// What is wrong with a stopped worker's sandbox; nil when it is complete.
    func verification(of worker: any Worker, _ device: ManagedDevice, threads: Int) -> String? {
        // The worker's two stages add to the filters that it inherits.
        surroundings.verify(
            SandboxVerification(
                uid: worker.uid, gid: workerGID, seccompFilters: ownFilters + 2,
                descriptors: device.descriptorTable(of: worker), mountCount: mountCount, threads: threads), worker.pid)
    }

    /// A number that no other device of this host has had: random and positive.
    func newGeneration() -> UInt64 {
        UInt64.random(in: 1...UInt64(Int64.max))
    }

    /// The sockets that hold clients' files, or may hold them.
    var parkingEnds: [Int32] {
        devices.values.compactMap { $0.parking?.raw } + adds.values.compactMap(\.parkingEnd)
            + devices.values.compactMap { $0.reopening?.parkingEnd }
    }

    /// Writes a device's record. A failed write is retried every second. If another broker starts before it succeeds,
    /// that broker acts on the previous record.
    ///
    /// - Returns: the error; nil on success.
    @discardableResult
    func save(_ device: ManagedDevice) -> SystemError? {
        do throws(SystemError) { try store.write(device.record) } catch {
            if unwritten.isEmpty { writeAgain() }
            if unwritten.updateValue(error, forKey: device.id) == nil {
                Log.error("record", ("device", "\(device.id)"), ("why", "\(error)"))
            }
            return error
        }
        storeInputs(of: device)
        if unwritten.removeValue(forKey: device.id) != nil {
            Log.notice("record", ("device", "\(device.id)"), ("what", "written at last"))
        }
        return nil
    }

    /// Why a device's last change is not in its record yet; nil when it is.
    func recordProblem(of device: ManagedDevice) -> SystemError? { unwritten[device.id] }

    private func writeAgain() {
        loop.after(milliseconds: 1000) { [self] in
            for device in unwritten.keys.compactMap({ devices[$0] }) { save(device) }
            if !unwritten.isEmpty { writeAgain() }
        }
    }

    /// Whether a device of ours with this number was deleted within this time.
    func hasDeleted(_ id: UInt32, withinMilliseconds limit: Int) -> Bool {
        guard let time = deletions[id] else { return false }
        return monotonicNanoseconds() - time < UInt64(limit) * 1_000_000
    }

    /// To be called when nothing is left of the device, as far as the broker can tell.
    func noteDeletion(of id: UInt32) {
        let now = monotonicNanoseconds()
        deletions = deletions.filter { now - $0.value < 60_000_000_000 }
        deletions[id] = now
    }

    /// From now on there is a device of that number.
    func enlist(_ device: ManagedDevice) {
        devices[device.id] = device
        device.changed = { [unowned self, unowned device] in monitors.note(device.id) }
        monitors.note(device.id)
    }

    func forget(_ device: ManagedDevice) {
        guard devices[device.id] === device else { return }
        devices[device.id] = nil
        monitors.note(device.id)
        unwritten[device.id] = nil
    }

    func ended(_ operation: any PendingAdd) {
        adds[ObjectIdentifier(operation)] = nil
    }

    /// From now on the worker's events are handled as those of a live device, including one that came a moment ago.
    func watchOver(_ device: ManagedDevice) {
        device.worker?.setHandler { [self] event in workerEvent(device, event) }
        replayEvents(of: device)
    }

    /// Handles an event that came while no handler was set.
    func replayEvents(of device: ManagedDevice) {
        if let end = device.worker?.end {
            workerEvent(device, .ended(end))
        } else if let what = device.worker?.violation {
            workerEvent(device, .violation(what))
        }
    }

    /// Frees a dead worker's uid and closes its socket.
    func release(_ device: ManagedDevice) {
        guard let worker = device.worker else { return }
        judge(worker, of: device.workerProgram, for: device)
        worker.forget(undertaker: undertaker, owner: device.owner)
        uids.giveBack(worker.uid)
        device.worker = nil
        device.info.workerPid = nil
        device.info.workerUid = nil
    }

    /// Gives up a device that cannot be served any more. Its disk is stopped, so that nobody waits for it forever. It
    /// stays listed with its reason until its owner deletes it.
    func fail(_ device: ManagedDevice, because reason: String) {
        Log.error("failed", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", reason))
        guard device.worker == nil || device.worker?.end != nil else {
            // An unkillable worker: STOP_DEV and DEL_DEV would block all other devices' commands
            // (docs/kernel-facts.md#waiting-commands).
            device.setState(.stuck, reason: reason)
            save(device)
            device.worker?.setHandler { [self] event in
                if case .ended = event, device.teardown == nil { fail(device, because: reason) }
            }
            return
        }
        release(device)
        device.setState(.failed, reason: reason)
        save(device)
        stopWhenReleased(device, looks: 0)
    }

    /// Stops the disk of a device without a worker, unless the kernel fails its requests: then it may stay. (The kernel does
    /// so only with a flag of ADD_DEV that excludes reissue; users of all other devices would wait.)
    ///
    /// The kernel takes a moment to notice the death, and must not be asked to stop the disk meanwhile
    /// (docs/kernel-facts.md#stop-during-release).
    private func stopWhenReleased(_ device: ManagedDevice, looks: Int) {
        guard devices[device.id] === device, device.teardown == nil else { return }
        let fails = device.info.recovery == .fail
        let limit = fails ? 100 : noticesDeaths ? 10 : 0
        if looks == limit { return stopFailed(device) }
        driver.info(of: device.id) { [self] answer in
            switch (answer.verdict, answer.content?.deviceState) {
            case (.done, .failIO) where fails:
                Log.notice("fails-io", ("device", "\(device.id)"), ("what", "it stays; its requests fail"))
            case (.done, .live), (.done, nil), (.again, _):
                loop.after(milliseconds: 100) { [self] in stopWhenReleased(device, looks: looks + 1) }
            case (.done, .quiesced) where noticesDeaths: stopWhenClosed(device, looks: looks)
            default: stopFailed(device)
            }
        }
    }

    /// The last replacement may be dead and not released: START_USER_RECOVERY answers EBUSY until it is.
    private func stopWhenClosed(_ device: ManagedDevice, looks: Int) {
        driver.startRecovery(device.id) { [self] answer in
            guard answer.verdict == .again else { return stopFailed(device) }
            loop.after(milliseconds: 100) { [self] in stopWhenReleased(device, looks: looks + 1) }
        }
    }

    private func stopFailed(_ device: ManagedDevice) {
        guard devices[device.id] === device, device.teardown == nil else { return }
        // UPDATE_SIZE crashes some kernels after STOP_DEV.
        if let upgrade = device.upgrade, upgrade.hasDevice { return upgrade.abandon { [self] in stopFailed(device) } }
        driver.stop(device.id) { answer in
            if [.done, .gone].contains(answer.verdict) { return }
            Log.warning("stop", ("device", "\(device.id)"), ("errno", SystemError.name(answer.errno)))
        }
    }

    /// Children changed state. The pidfds report ends; stops must be polled for.
    func childChanged() {
        for device in devices.values { device.worker?.checkStopped() }
    }
}
