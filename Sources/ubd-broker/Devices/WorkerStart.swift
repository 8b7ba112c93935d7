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

    /// Milliseconds in which a killed process is gone, also on a host that is busy.
    private static let dying = 1000

    private let broker: Broker
    private let device: ManagedDevice
    private let launch: LaunchMessage
    private let listener: Listener
    private let program: WorkerProgram
    private var conversation: WorkerConversation?
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
        var launch = launch
        // Asked anew for each worker: the kernel may have found out only now that they are not.
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
                // The page is the device's: a replacement counts on where the dead worker stopped.
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

    /// The kernel knows the disk: rings, walls and fetches may follow.
    func serve() {
        guard let cpus = device.info.cpus else { return askAffinity(of: 0, known: []) }
        // One set for all queues.
        conversation?.serve([cpus.words])
    }

    /// Which processors the kernel gives each queue's requests from: the queue's thread belongs there. A kernel that
    /// does not tell costs speed, nothing else.
    private func askAffinity(of queue: UInt16, known: [[UInt64]]) {
        guard !isOver, queue < launch.queues else { return conversation?.serve(known) ?? () }
        broker.driver.affinity(of: device.id, queue: queue) { [self] answer in
            guard let words = answer.content else { return conversation?.serve([]) ?? () }
            askAffinity(
                of: queue + 1, known: known + [device.info.allowedCPUs?.restricting(words) ?? words])
        }
    }

    /// The owner gives up; nothing more is heard.
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
