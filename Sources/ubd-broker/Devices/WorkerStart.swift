import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Brings a worker from clone to the moment for START_DEV or END_USER_RECOVERY: running, target open, tags fetched,
/// both walls up, stopped, and verified. It is the same for a new device and for a replacement.
///
/// The owner gets each of these calls at most once, in this order: `geometry`, after which it calls `serve`; then
/// `ready`. `failed` may come instead of either. After `ready` or `failed` the owner handles the worker's events.
final class WorkerStart {
    struct Listener {
        /// The target is open. The worker waits until `serve` is called.
        var geometry: (Geometry) -> Void
        /// The worker is stopped and verified: the moment for START_DEV or END_USER_RECOVERY.
        var ready: () -> Void
        var failed: (InterfaceError) -> Void
        /// Asks the kernel for a queue's processors with a command of the owner's operation. The second closure gets the
        /// answer; nil when the kernel gives none. `failed` may come before the answer.
        var affinity: (UInt16, @escaping ([UInt64]?) -> Void) -> Void
        /// It reports that it is sealed; called just before it is stopped.
        var sealed: () -> Void = {}
    }

    /// Milliseconds in which a killed process ends, even on a busy host.
    static let dying = 1000

    private let broker: Broker
    private let device: ManagedDevice
    private let launch: LaunchMessage
    private let listener: Listener
    private let program: WorkerProgram
    private var conversation: WorkerConversation?
    private var isOver = false
    /// The minimum number of its own threads, as it reports. If a queue's thread had ended, the kernel would have taken
    /// back that queue's fetches.
    private var threads = 0

    /// `program`: nil for the broker's current one.
    init(
        _ launch: LaunchMessage, for device: ManagedDevice, broker: Broker, program: WorkerProgram? = nil,
        listener: Listener
    ) {
        self.program = program ?? broker.program
        var launch = launch
        // Checked for each worker: the kernel may have found out by now that they are not steady.
        if broker.hasSteadyTicks { launch.flags.insert(.steadyTicks) }
        self.launch = launch
        self.device = device
        self.broker = broker
        self.listener = listener
    }

    func begin() {
        let subject = WorkerConversation.Subject(
            program: program, launch: launch, node: broker.nodes.char(device.id),
            files: { [device, launch] () throws(SystemError) in
                guard let parking = device.parking?.raw else { return nil }
                // The page is the device's: a replacement continues the dead worker's counters.
                if let page = device.statistics { return (parking, page) }
                let page = try DeviceStatistics(queues: Int(launch.queues))
                device.statistics = page
                return (parking, page)
            })
        let conversation = WorkerConversation(
            subject, for: device, broker: broker, hear: { [self] event in handle(event) },
            broke: { [self] failure in brokeOff(failure) })
        self.conversation = conversation
        guard let worker = conversation.begin() else { return }
        device.adopt(worker, of: program)
        broker.save(device)
    }

    /// The kernel knows the disk, so the worker may make its rings, fetch and seal itself.
    func serve() {
        guard let cpus = device.info.cpus else { return askAffinity(of: 0, known: []) }
        // One set for all queues.
        conversation?.serve([cpus.words])
    }

    /// Asks from which processors the kernel sends each queue's requests: the queue's thread runs there. Without an
    /// answer only speed is lost.
    private func askAffinity(of queue: UInt16, known: [[UInt64]]) {
        guard queue < launch.queues else { return conversation?.serve(known) ?? () }
        listener.affinity(queue) { [self] words in
            if isOver { return }
            guard let words else { return conversation?.serve([]) ?? () }
            askAffinity(
                of: queue + 1, known: known + [device.info.allowedCPUs?.restricting(words) ?? words])
        }
    }

    /// The owner gives up; no more calls follow.
    func abandon() {
        isOver = true
        conversation?.end()
    }

    private func handle(_ event: WorkerConversation.Event) {
        switch event {
        case .geometry(let geometry): listener.geometry(geometry)
        case .sealed(let report): stop(report)
        case .stopped: verify()
        }
    }

    private func brokeOff(_ failure: WorkerConversation.Failure) {
        switch failure {
        case .ended(let change):
            Log.warning("worker-ended", ("device", "\(device.id)"), ("how", "\(change)"))
            broker.deathCauses.ask(change, of: device.worker) { [self] words in
                fail(StartErrors.workerBroke("it \(words)"))
            }
            return
        case .violation(let what):
            Log.warning("worker-violation", ("device", "\(device.id)"), ("what", what))
        default: break
        }
        fail(failure.explained(for: device, workerGID: broker.workerGID))
    }

    /// The worker must not run, and so cannot die, between its fetches and START_DEV: on 6.12 that would crash the host
    /// (docs/kernel-facts.md#start-race).
    private func stop(_ report: SealReport) {
        guard let worker = device.worker else { return fail(StartErrors.outOfOrder) }
        guard report.contains(.rings) else { return fail(StartErrors.sandboxMissing("its rings are not sealed")) }
        if !report.contains(.lockedMemory) { Log.warning("memory-not-locked", ("device", "\(device.id)")) }
        threads = Int(launch.queues) + (report.contains(.rangeThread) ? 2 : 1)
        listener.sealed()
        do { try worker.stop() } catch { fail(StartErrors.broken("stop the worker", error)) }
    }

    private func verify() {
        guard let worker = device.worker else { return fail(StartErrors.outOfOrder) }
        if let problem = broker.verification(of: worker, device, threads: threads) {
            // A worker that was just killed loses its threads and its status before its pidfd fires. It is stopped and
            // gets no further. If it has died by the end of this pause, `.ended` has reported that.
            broker.loop.after(milliseconds: WorkerStart.dying) { [self] in fail(StartErrors.sandboxMissing(problem)) }
            return
        }
        guard worker.isAlive else { return }
        abandon()
        device.runs(program)
        listener.ready()
    }

    private func fail(_ error: InterfaceError) {
        if isOver { return }
        abandon()
        listener.failed(error)
    }
}
