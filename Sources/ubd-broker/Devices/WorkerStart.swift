import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Brings one worker from its clone to the moment when the kernel may be told of it: running, its target open, its
/// fetches made, both walls up, stopped, and verified. The same for a new device and for a replacement.
///
/// The owner hears three things, each at most once and in this order: `geometry` (then it calls `serve`), `ready`, and
/// instead of either `failed`. After `ready` or `failed` the worker's events are the owner's own business.
final class WorkerStart {
    struct Listener {
        /// The target is open. Nothing goes on until `serve` is called.
        var geometry: (Geometry) -> Void
        /// The worker is stopped and verified: the moment for START_DEV or END_USER_RECOVERY.
        var ready: () -> Void
        var failed: (InterfaceError) -> Void
        /// It says that it is sealed; comes just before it is stopped.
        var sealed: () -> Void = {}
    }

    /// Milliseconds for everything from clone to `ready`.
    private static let deadline = 20_000
    /// Bytes that a worker may map beside its buffers, for its program, and for the stack, ring and tables of each queue: about
    /// twice what it does (8 MiB and 1 MiB). All of it is locked.
    private static let otherBytes: (process: UInt64, queue: UInt64) = (32 << 20, 2 << 20)
    /// Bytes of a submission entry and of two completions, twice: a ring's sizes are powers of two.
    private static let entryBytes: UInt64 = 2 * (64 + 2 * 16)
    /// Milliseconds in which a killed process is gone, also on a host that is busy.
    private static let dying = 1000

    private let broker: Broker
    private let device: ManagedDevice
    private let launch: LaunchMessage
    private let listener: Listener
    private let program: WorkerProgram
    private var timer: EventLoop.Timer?
    private var isOver = false
    /// Threads of its own that the worker must have, as it says itself: were one of them a queue's that has left, the kernel
    /// would have taken that queue's fetches back.
    private var threads = 0

    /// `program`: nil for the one that the broker starts now.
    init(
        _ launch: LaunchMessage, for device: ManagedDevice, broker: Broker, program: WorkerProgram? = nil,
        listener: Listener
    ) {
        self.program = program ?? broker.program
        self.launch = launch
        self.device = device
        self.broker = broker
        self.listener = listener
    }

    func begin() {
        guard let uid = broker.uids.lease() else {
            return fail(WorkerStart.noFreeUID(broker.uids.range.count))
        }
        var start = WorkerStart.launch(
            launch, of: device, program: program, node: broker.nodes.char(device.id), uid: uid, broker: broker)
        do {
            let worker = try broker.withGroup(of: device) { (group) throws(SystemError) in
                start.group = group
                return try broker.startWorker(start) { [self] event in handle(event) }
            }
            device.adopt(worker, of: program)
            broker.save(device)
            timer = broker.loop.after(milliseconds: WorkerStart.deadline) { [self] in fail(StartErrors.late) }
        } catch {
            broker.uids.giveBack(uid)
            fail(StartErrors.broken("start the worker", error))
        }
    }

    /// What the launcher needs for a worker of that device node.
    static func launch(
        _ launch: LaunchMessage, of device: ManagedDevice, program: WorkerProgram, node: String, uid: UInt32,
        broker: Broker
    ) -> WorkerLaunch {
        // Without a copy there are no buffers of its own. `otherBytes` has room for one ring entry a request.
        let depth = launch.flags.contains(.zeroCopy) ? 0 : UInt64(launch.depth)
        let entries = launch.target.ringEntries(depth: launch.depth) - UInt32(launch.depth)
        let queue =
            depth * UInt64(launch.maxIOBytes) + WorkerStart.otherBytes.queue
            + UInt64(entries) * WorkerStart.entryBytes
        return WorkerLaunch(
            binary: program.file.raw, device: node, uid: uid, gid: broker.workerGID,
            processes: processes(queues: launch.queues),
            mappedBytes: WorkerStart.otherBytes.process + UInt64(launch.queues) * queue,
            openFiles: UInt64(launch.queues) + 22 + UInt64(launch.descriptors.upperBound),
            oomScore: broker.configuration.oomScore,
            processors: device.info.allowedCPUs?.words ?? [])
    }

    /// Tasks of one worker, the kernel's helpers of its rings included, with room.
    static func processes(queues: UInt16) -> UInt64 { UInt64(queues) * 32 + 32 }

    static func noFreeUID(_ count: Int) -> InterfaceError {
        .quotaReached(
            message: "all \(count) worker uids are in use",
            remedy: "delete a device, or let the administrator start the broker with a larger --uid-count",
            limit: "worker-uids",
            value: Int64(count))
    }

    /// The kernel knows the disk: rings, walls and fetches may follow.
    func serve() {
        guard let cpus = device.info.cpus else { return askAffinity(of: 0, known: []) }
        // One set for all queues.
        sendServe([cpus.words])
    }

    /// Which processors the kernel gives each queue's requests from: the queue's thread belongs there. A kernel that
    /// does not tell costs speed, nothing else.
    private func askAffinity(of queue: UInt16, known: [[UInt64]]) {
        guard !isOver, queue < launch.queues, let control = broker.driver.opened else { return sendServe(known) }
        let request = ControlRequest(
            operation: .getQueueAffinity, device: device.id, queue: queue, data: UInt64(queue),
            buffer: [UInt8](repeating: 0, count: WorkerStart.affinityBytes))
        control.submit(request) { [self] answer in
            guard case .result(let result, let bytes) = answer, result >= 0 else { return sendServe([]) }
            let words = WorkerStart.words(bytes)
            askAffinity(
                of: queue + 1, known: known + [device.info.allowedCPUs?.restricting(words) ?? words])
        }
    }

    private func sendServe(_ affinity: [[UInt64]]) {
        guard let worker = device.worker, !isOver else { return }
        worker.expect(.sealed)
        do { try worker.send(ServeMessage(affinity: affinity)) } catch {
            sendFailed("send to the worker", error)
        }
    }

    /// Room for 8192 processors: the kernel wants room for all that it could have.
    private static let affinityBytes = 1024

    /// The mask without the zeros behind it; as long for every queue.
    private static func words(_ bytes: [UInt8]) -> [UInt64] {
        let all = bytes.withUnsafeBytes { raw in
            (0..<raw.count / 8).map { raw.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
        }
        return Array(all.prefix(max(1, (Int(sysconf(Int32(_SC_NPROCESSORS_CONF))) + 63) / 64)))
    }

    /// The owner gives up; nothing more is heard.
    func abandon() {
        isOver = true
        broker.loop.cancel(timer)
    }

    private func handle(_ event: WorkerEvent) {
        if isOver { return }
        switch event {
        case .running: sendLaunchMessage()
        case .launchFailed(let step, let errno):
            fail(StartErrors.launcher(step, errno))
        case .unusable(let error): fail(StartErrors.broken("watch the worker", error))
        case .message(.geometry(let geometry)):
            program.version = PackedVersion.text(geometry.version)
            listener.geometry(geometry)
        case .message(.sealed(let report)): stop(report)
        case .message(.failed(let failure)): fail(StartErrors.explain(failure, device, workerGID: broker.workerGID))
        case .stopped: verify()
        case .violation(let what):
            Log.warning("worker-violation", ("device", "\(device.id)"), ("what", what))
            fail(StartErrors.workerBroke("it sent \(what)"))
        case .ended(let change):
            Log.warning("worker-ended", ("device", "\(device.id)"), ("how", "\(change)"))
            broker.deathCauses.ask(change, pid: device.worker?.pid ?? 0) { [self] words in
                fail(StartErrors.workerBroke("it \(words)"))
            }
        }
    }

    private func sendLaunchMessage() {
        guard let worker = device.worker, let end = device.parking?.raw, let walls = broker.walls[launch.target.name]
        else { return fail(StartErrors.workerBroke("its files are gone")) }
        worker.expect(.geometry)
        do throws(SystemError) {
            // The page is the device's: a replacement counts on where the dead worker stopped.
            let statistics: DeviceStatistics
            if let counted = device.statistics {
                statistics = counted
            } else {
                statistics = try DeviceStatistics(queues: Int(launch.queues))
            }
            var launch = launch
            // Asked anew for each worker: the kernel may have found out only now that they are not.
            if broker.hasSteadyTicks { launch.flags.insert(.steadyTicks) }
            try worker.send(
                launch, parking: end, statistics: statistics.file.raw, bundle: walls.bundle(for: launch.mode))
            device.statistics = statistics
        } catch {
            sendFailed("send the launch message", error)
        }
    }

    /// The worker must not run, and so not die, between its fetches and START_DEV: on 6.12 that crashes
    /// the host (docs/kernel-facts.md#start-race).
    private func stop(_ report: SealReport) {
        guard let worker = device.worker else { return }
        guard report.contains(.rings) else { return fail(StartErrors.sandboxMissing("its rings are not sealed")) }
        if !report.contains(.lockedMemory) { Log.warning("memory-not-locked", ("device", "\(device.id)")) }
        threads = Int(launch.queues) + (report.contains(.rangeThread) ? 2 : 1)
        listener.sealed()
        do { try worker.stop() } catch { fail(StartErrors.broken("stop the worker", error)) }
    }

    private func verify() {
        guard let worker = device.worker else { return }
        if let problem = broker.verification(of: worker, device, threads: threads) {
            // One that was just killed loses its threads and its status before its pidfd fires. It is stopped and gets no
            // further; when it has died by then, `.ended` has told of that.
            _ = broker.loop.after(milliseconds: WorkerStart.dying) { [self] in fail(StartErrors.sandboxMissing(problem))
            }
            return
        }
        guard worker.isAlive else { return }
        abandon()
        device.runs(program)
        listener.ready()
    }

    /// A worker that dies closes its socket first: then its death is the reason to be told, which `.ended` brings. One that
    /// closed it and lives has its deadline.
    private func sendFailed(_ what: String, _ error: SystemError) {
        if error.errno != EPIPE, error.errno != ECONNRESET { fail(StartErrors.broken(what, error)) }
    }

    private func fail(_ error: InterfaceError) {
        if isOver { return }
        abandon()
        listener.failed(error)
    }
}
