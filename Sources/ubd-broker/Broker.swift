import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls
import WorkerProtocol

/// What the broker knows and holds. It lives in one thread; operations change it step by step from the event loop.
final class Broker {
    /// The outside as the broker meets it; the unit tests have one of their own.
    struct Surroundings {
        var startWorker: (WorkerLaunch, @escaping (WorkerEvent) -> Void) throws(SystemError) -> any Worker
        /// What is wrong with a stopped worker's sandbox; nil when it stands.
        var verify: (SandboxVerification, _ pid: Int32) -> String? = { $0.problem(inProcess: $1) }
        /// Whether somebody uses a device, so that it must not go; nil for the host's own tables.
        var holding: ((_ id: UInt32, _ completion: @escaping (Holding) -> Void) -> Void)?
        var sysfs = "/sys"
        var nodes = Nodes(folder: "/dev")
        /// Monotonic nanoseconds, for the deadlines of recoveries.
        var now: () -> UInt64 = monotonicNanoseconds
        /// nil where there are no control groups for devices.
        var groups: (any DeviceGroups)?
        /// Where it can be read.
        var kernelLog: KernelLog?
        /// Requests that the block layer has given to a device and waits for.
        var requestsInFlight: (_ id: UInt32) -> Int? = BlockLayer.requestsInFlight
        /// Requests of a device that have ended.
        var requestsDone: (_ id: UInt32) -> Int? = BlockLayer.requestsDone
        /// Opens the program that has the configured name now.
        var openProgram: (_ path: String) throws(TrustedFile.Distrust) -> WorkerProgram = WorkerProgram.init(path:)
        /// Which program has that name now; nil when none has.
        var programNow: (_ path: String) -> WorkerProgram.Identity? = WorkerProgram.Identity.init(of:)
    }

    let configuration: Configuration
    let loop: EventLoop
    let policy: AccessPolicy
    /// By target name.
    let walls: [String: Walls]
    /// What new workers are started from.
    var program: WorkerProgram
    let workerGID: UInt32
    let accounts: Accounts
    let driver: Driver
    let store: RecordStore
    let undertaker: Undertaker
    private let holders: Holders
    let orphans: Orphans
    let deathCauses: DeathCauses
    let started = Int64(time(nil))
    /// Made at the start, since it looks at the broker's own table of mounts.
    private let mountCount = MountCount()
    /// The broker's own seccomp filters, which its workers inherit. If that can't be read, no worker is believed.
    private var ownFilters: Int { (try? ProcessStatus(of: "self").seccompFilters) ?? .max - 2 }
    private let surroundings: Surroundings
    /// Gives a device another worker after the death of the last one.
    let replaceWorker: (Broker, ManagedDevice, ProcessChange) -> Void

    var uids: WorkerUIDs
    var startLimits = StartLimits()
    var devices: [UInt32: ManagedDevice] = [:]
    /// Monotonic nanoseconds of the last minute's deletions, by number.
    private var deletions: [UInt32: UInt64] = [:]
    var adds: [ObjectIdentifier: any PendingAdd] = [:]
    /// Rehearsals whose workers can't be killed: whose they are, and the bytes of their buffers.
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

    /// START_USER_RECOVERY may be sent again after a replacement that died half-way (Linux 6.16;
    /// docs/kernel-facts.md#half-ready).
    var canRepeatRecovery: Bool { driver.features.contains(.perIODaemon) }

    // MARK: For the operations

    func startWorker(
        _ launch: WorkerLaunch, _ handler: @escaping (WorkerEvent) -> Void
    ) throws(SystemError) -> any Worker {
        try surroundings.startWorker(launch, handler)
    }

    var nodes: Nodes { surroundings.nodes }
    var sysfs: String { surroundings.sysfs }
    var groups: (any DeviceGroups)? { surroundings.groups }

    /// The worker program that has the configured name now.
    func openProgram() throws(TrustedFile.Distrust) -> WorkerProgram {
        try surroundings.openProgram(configuration.workerProgram)
    }

    /// A device as its owner is told of it.
    func description(of device: ManagedDevice) -> Device {
        var info = device.info
        // By the file that an upgrade would take, not by the one that this broker opened when it started.
        if device.worker != nil, let program = device.program,
            let now = surroundings.programNow(configuration.workerProgram)
        {
            info.workerOutdated = program.identity != now
        }
        return info
    }

    /// Why the block device behind a disk must not be there; nil when it may, or when it is a file that is behind it.
    func backingProblem(_ geometry: Geometry) -> WorkerFailure? {
        guard geometry.backingMajor != 0 || geometry.backingMinor != 0 else { return nil }
        let device = BackingDevice(
            major: geometry.backingMajor, minor: geometry.backingMinor, sysfs: surroundings.sysfs)
        guard device.exists else { return WorkerFailure(.fileStatus, errno: ENODEV) }
        return device.liesOnUblk ? WorkerFailure(.fileIsUbdDevice) : nil
    }

    /// A device that writes to the same bytes, and waits for its owner to bring the file again: nobody has the file open for
    /// it, so no lock tells (FileClaim), and its mounted file system or waiting requests would come down on a stranger's data.
    func deviceWaiting(for geometry: Geometry, offset: UInt64) -> ManagedDevice? {
        guard geometry.file != .none else { return nil }
        let bytes = offset..<offset + geometry.size
        return devices.values.first { device in
            guard device.waitsForFile, !device.info.readOnly, device.file == geometry.file else { return false }
            let begin = UInt64(clamping: device.info.offset ?? 0)
            return bytes.overlaps(begin..<begin + UInt64(clamping: device.info.sizeBytes))
        }
    }

    /// Monotonic nanoseconds.
    func now() -> UInt64 { surroundings.now() }

    func requestsInFlight(_ id: UInt32) -> Int? { surroundings.requestsInFlight(id) }

    func requestsDone(_ id: UInt32) -> Int? { surroundings.requestsDone(id) }

    /// The kernel finds the processors' own clocks good enough to keep its time by: they run at one pace, in step. (On
    /// others it takes them off the list. In the first seconds after boot the TSC has the other name.)
    var hasSteadyTicks: Bool {
        let path = "\(surroundings.sysfs)/devices/system/clocksource/clocksource0/available_clocksource"
        guard let bytes = try? readFile(path) else { return false }
        return String(decoding: bytes, as: UTF8.self).split { $0 == " " || $0 == "\n" }
            .contains { ["tsc", "tsc-early", "arch_sys_counter"].contains($0) }
    }

    /// Tells, later, whether somebody uses a device so that it must not go.
    func askHolding(of device: ManagedDevice, _ completion: @escaping (Holding) -> Void) {
        if let ask = surroundings.holding { return ask(device.id, completion) }
        holders.ask("ublkb\(device.id)", completion)
    }

    /// What is wrong with a stopped worker's sandbox; nil when it stands.
    func verification(of worker: any Worker, _ device: ManagedDevice, threads: Int) -> String? {
        // The stages of the worker's own come on top of what it inherits.
        surroundings.verify(
            SandboxVerification(
                uid: worker.uid, gid: workerGID, seccompFilters: ownFilters + 2,
                descriptors: device.descriptorTable(of: worker), mountCount: mountCount, threads: threads), worker.pid)
    }

    /// A number that no other device of this host has had: random, positive, not 0.
    func newGeneration() -> UInt64 {
        UInt64.random(in: 1...UInt64(Int64.max))
    }

    /// Sockets in which files of clients lie, or may.
    var parkingEnds: [Int32] {
        devices.values.compactMap { $0.parking?.raw } + adds.values.compactMap(\.parkingEnd)
            + devices.values.compactMap { $0.reopening?.parkingEnd }
    }

    func save(_ device: ManagedDevice) {
        do { try store.write(device.record) } catch {
            // The device serves on; only a restarted broker would know less of it.
            Log.error("record", ("device", "\(device.id)"), ("why", "\(error)"))
        }
    }

    /// A device of ours had that number until so long ago.
    func hasDeleted(_ id: UInt32, withinMilliseconds limit: Int) -> Bool {
        guard let time = deletions[id] else { return false }
        return monotonicNanoseconds() - time < UInt64(limit) * 1_000_000
    }

    /// Nothing of the device is left, as far as we can tell.
    func noteDeletion(of id: UInt32) {
        let now = monotonicNanoseconds()
        deletions = deletions.filter { now - $0.value < 60_000_000_000 }
        deletions[id] = now
    }

    func forget(_ device: ManagedDevice) {
        if devices[device.id] === device { devices[device.id] = nil }
    }

    func ended(_ operation: any PendingAdd) {
        adds[ObjectIdentifier(operation)] = nil
    }

    /// From now on the worker's events are those of a live device, one that came a moment ago included.
    func watchOver(_ device: ManagedDevice) {
        device.worker?.setHandler { [self] event in workerEvent(device, event) }
        replayEvents(of: device)
    }

    /// What its worker did while nobody looked.
    func replayEvents(of device: ManagedDevice) {
        if let end = device.worker?.end {
            workerEvent(device, .ended(end))
        } else if let what = device.worker?.violation {
            workerEvent(device, .violation(what))
        }
    }

    /// A dead worker's uid is free again and its socket gone.
    func release(_ device: ManagedDevice) {
        guard let worker = device.worker else { return }
        judge(worker, of: device.workerProgram, for: device)
        worker.forget(undertaker: undertaker, owner: device.owner)
        uids.giveBack(worker.uid)
        device.worker = nil
        device.info.workerPid = nil
        device.info.workerUid = nil
    }

    /// The device can't be served any more: it is stopped, so that nobody waits for it for ever, and stays listed with
    /// its reason until its owner deletes it.
    func fail(_ device: ManagedDevice, because reason: String) {
        Log.error("failed", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", reason))
        guard device.worker == nil || device.worker?.end != nil else {
            // A worker that can't be killed: neither STOP nor DEL, they would hold up everybody (docs/kernel-facts.md#waiting-commands).
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
        if device.info.recovery == .fail { leaveFailing(device, looks: 0) } else { stopFailed(device) }
    }

    /// The kernel fails its requests by itself, so the disk need not go. (The flag for that excludes reissue, and is given
    /// when the device is added: all other devices would keep their users waiting.) It takes a moment to notice the death.
    private func leaveFailing(_ device: ManagedDevice, looks: Int) {
        guard devices[device.id] === device, device.teardown == nil else { return }
        driver.info(of: device.id) { [self] answer in
            if answer.verdict == .again, looks < 100 {
                loop.after(milliseconds: 100) { [self] in leaveFailing(device, looks: looks + 1) }
                return
            }
            switch answer.content?.deviceState {
            case .failIO: Log.notice("fails-io", ("device", "\(device.id)"), ("what", "it stays; its requests fail"))
            case .live where looks < 100:
                loop.after(milliseconds: 100) { [self] in leaveFailing(device, looks: looks + 1) }
            default: stopFailed(device)
            }
        }
    }

    private func stopFailed(_ device: ManagedDevice) {
        guard devices[device.id] === device, device.teardown == nil else { return }
        driver.stop(device.id) { answer in
            if [.done, .gone].contains(answer.verdict) { return }
            Log.warning("stop", ("device", "\(device.id)"), ("errno", SystemError.name(answer.errno)))
        }
    }

    /// Children changed state: the pidfds tell of ends, stops have to be looked for.
    func childChanged() {
        for device in devices.values { device.worker?.checkStopped() }
    }
}
