import BrokerInterface
import Glibc
import Numbers
import SystemCalls
import WorkerProtocol

/// The dialogue between the broker and a new worker, from clone until it serves: launch, geometry, serve, sealed. All
/// of it is here: `WorkerStart` uses it with the device's node, `Rehearsal` with /dev/null.
///
/// It neither stops nor kills the worker and makes no decisions: it passes each event, and the reason when it breaks
/// off, to its owner.
final class WorkerConversation {
    /// The parameters of a conversation.
    struct Subject {
        let program: WorkerProgram
        let launch: LaunchMessage
        /// The node that the launcher opens as the worker's device.
        let node: String
        /// The socket with the files, and the worker's statistics page; nil when the files are gone. Called when the
        /// launch message is sent.
        let files: () throws(SystemError) -> (parking: Int32, statistics: DeviceStatistics)?
    }

    enum Event {
        /// The target is open. The worker waits for `serve`.
        case geometry(Geometry)
        /// It reports that its queues have fetched and that it is sealed.
        case sealed(SealReport)
        /// All its threads have stopped, after `Worker.stop`.
        case stopped
    }

    /// Why a conversation broke off.
    enum Failure {
        case noFreeUID(of: Int)
        /// A step of the broker failed.
        case broken(String, SystemError)
        /// A step between clone and exec failed.
        case launcher(step: Int32, errno: Int32)
        case filesGone
        /// The worker reported a failure.
        case worker(WorkerFailure)
        /// It sent an unexpected message or a file.
        case violation(String)
        case ended(ProcessChange)
        case late
    }

    /// Milliseconds for the whole conversation.
    private static let deadline = 20_000

    private let broker: Broker
    private let device: ManagedDevice
    private let subject: Subject
    /// Both nil when it is over, so that its owner can be freed.
    private var hear: ((Event) -> Void)?
    private var broke: ((Failure) -> Void)?
    private var worker: (any Worker)?
    private var timer: EventLoop.Timer?
    private var isOver: Bool { hear == nil }

    /// `broke` is called at most once, and after it nothing else.
    init(
        _ subject: Subject, for device: ManagedDevice, broker: Broker, hear: @escaping (Event) -> Void,
        broke: @escaping (Failure) -> Void
    ) {
        self.subject = subject
        self.device = device
        self.broker = broker
        self.hear = hear
        self.broke = broke
    }

    /// Starts a worker under a unique uid. The caller owns the worker and its uid. Returns nil, after calling `broke`,
    /// when there is none.
    func begin() -> (any Worker)? {
        guard let uid = broker.uids.lease() else {
            breakOff(.noFreeUID(of: broker.uids.range.count))
            return nil
        }
        var start = WorkerLaunch(subject, of: device, uid: uid, broker: broker)
        do {
            let worker = try broker.withGroup(of: device) { (group) throws(SystemError) in
                start.group = group
                return try broker.startWorker(start) { [self] event in handle(event) }
            }
            self.worker = worker
            timer = broker.loop.after(milliseconds: WorkerConversation.deadline) { [self] in breakOff(.late) }
            return worker
        } catch {
            broker.uids.giveBack(uid)
            breakOff(.broken("start the worker", error))
            return nil
        }
    }

    /// Lets the worker make its queues. `affinity`: the processors of each queue, one set for all, or empty.
    func serve(_ affinity: [[UInt64]]) {
        guard let worker, !isOver else { return }
        worker.expect(.sealed)
        do { try worker.send(ServeMessage(affinity: affinity)) } catch { sendFailed("send to the worker", error) }
    }

    /// Ends the conversation; no more calls follow.
    func end() {
        (hear, broke) = (nil, nil)
        broker.loop.cancel(timer)
    }

    private func handle(_ event: WorkerEvent) {
        if isOver { return }
        switch event {
        case .running: sendLaunchMessage()
        case .launchFailed(let step, let errno): breakOff(.launcher(step: step, errno: errno))
        case .unusable(let error): breakOff(.broken("watch the worker", error))
        case .message(.geometry(let geometry)):
            subject.program.version = PackedVersion.text(geometry.version)
            hear?(.geometry(geometry))
        case .message(.sealed(let report)): hear?(.sealed(report))
        case .message(.failed(let failure)): breakOff(.worker(failure))
        case .stopped: hear?(.stopped)
        case .violation(let what): breakOff(.violation(what))
        case .ended(let change): breakOff(.ended(change))
        }
    }

    private func sendLaunchMessage() {
        guard let worker, let walls = broker.walls[subject.launch.target.name] else { return breakOff(.filesGone) }
        worker.expect(.geometry)
        do throws(SystemError) {
            guard let files = try subject.files() else { return breakOff(.filesGone) }
            try worker.send(
                subject.launch, parking: files.parking, statistics: files.statistics.file.raw,
                bundle: walls.bundle(for: subject.launch.mode))
        } catch { sendFailed("send the launch message", error) }
    }

    /// A dying worker closes its socket first, so its death is the better explanation and follows as `.ended`. A worker
    /// that closed the socket and lives runs into the deadline.
    private func sendFailed(_ what: String, _ error: SystemError) {
        if error.errno != EPIPE, error.errno != ECONNRESET { breakOff(.broken(what, error)) }
    }

    private func breakOff(_ failure: Failure) {
        let broke = broke
        end()
        broke?(failure)
    }
}

extension WorkerConversation.Failure {
    /// The error for the user. `WorkerStart` handles `ended` itself, when it can tell more about the death.
    func explained(for device: ManagedDevice, workerGID: UInt32) -> InterfaceError {
        switch self {
        case .noFreeUID(let count):
            .quotaReached(
                message: "all \(count) worker uids are in use",
                remedy: "delete a device, or let the administrator start the broker with a larger --uid-count",
                limit: "worker-uids", value: Int64(count))
        case .broken(let what, let error): StartErrors.broken(what, error)
        case .launcher(let step, let errno): StartErrors.launcher(step, errno)
        case .filesGone: StartErrors.workerBroke("its files are gone")
        case .worker(let failure): StartErrors.explain(failure, device, workerGID: workerGID)
        case .violation(let what): StartErrors.workerBroke("it sent \(what)")
        case .ended(let change): StartErrors.workerBroke("it \(change)")
        case .late: StartErrors.late
        }
    }
}

extension WorkerLaunch {
    /// Bytes that a worker may map in addition to its buffers: for its program, and for the stack, ring and tables of
    /// each queue. This is about twice what it uses (8 MiB and 1 MiB). All of it is locked.
    private static let otherBytes: (process: UInt64, queue: UInt64) = (32 << 20, 2 << 20)
    /// Bytes of a submission entry and two completions, doubled because ring sizes are powers of two.
    private static let entryBytes: UInt64 = 2 * (64 + 2 * 16)

    /// The launcher's parameters for a worker of this device.
    init(_ subject: WorkerConversation.Subject, of device: ManagedDevice, uid: UInt32, broker: Broker) {
        let launch = subject.launch
        // A zero-copy worker has no buffers. `otherBytes` includes one ring entry per request.
        let buffers = launch.flags.contains(.zeroCopy) ? 0 : UInt64(launch.target.buffers(depth: launch.depth))
        let entries = launch.target.submissions.entries(depth: launch.depth) - UInt32(launch.depth)
        // An index of the cache takes less than one byte for 64 of it.
        let cache = launch.target.cacheBytes(launch.options) / 64 * 65
        let queue =
            buffers * UInt64(launch.maxIOBytes) + WorkerLaunch.otherBytes.queue
            + UInt64(entries) * WorkerLaunch.entryBytes
        self.init(
            binary: subject.program.file.raw, device: subject.node, uid: uid, gid: broker.workerGID,
            processes: WorkerLaunch.processes(queues: launch.queues),
            mappedBytes: WorkerLaunch.otherBytes.process + UInt64(launch.queues) * queue + cache
                + launch.target.tableBytes(launch.options, depth: launch.depth),
            // A ring for each queue, and where it has a second one the event between the two.
            openFiles: UInt64(launch.queues) * (launch.target.submissions.hasSocket ? 2 : 1) + 22
                + UInt64(launch.descriptors.upperBound),
            oomScore: broker.configuration.oomScore,
            processors: device.info.allowedCPUs?.words ?? [])
    }

    /// The maximum number of tasks of one worker, including the kernel's helper threads for its rings, with a margin.
    static func processes(queues: UInt16) -> UInt64 { UInt64(queues) * 32 + 32 }
}
