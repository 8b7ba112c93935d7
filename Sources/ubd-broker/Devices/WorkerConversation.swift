import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// What the broker and a new worker say to each other, from the clone to the worker's last word before it serves: launch,
/// geometry, serve, sealed. The only place where this is done; `WorkerStart` has it with the device's node, `Rehearsal` with
/// /dev/null.
///
/// It neither stops nor kills the worker and decides nothing: whoever has the conversation hears each step, and why it broke off.
final class WorkerConversation {
    /// What a conversation is about.
    struct Subject {
        let program: WorkerProgram
        let launch: LaunchMessage
        /// The node that the launcher opens as the worker's device.
        let node: String
        /// The socket in which the files lie, and the page that the worker counts in; nil when the files are gone. Asked when the
        /// launch message is sent.
        let files: () throws(SystemError) -> (parking: Int32, statistics: DeviceStatistics)?
    }

    enum Event {
        /// The target is open. The worker waits for `serve`.
        case geometry(Geometry)
        /// It says that its queues have made their fetches and that it is sealed.
        case sealed(SealReport)
        /// All its threads stand still, after `Worker.stop`.
        case stopped
    }

    /// Why a conversation broke off.
    enum Failure {
        case noFreeUID(of: Int)
        /// A step of the broker's own failed.
        case broken(String, SystemError)
        /// A step between clone and exec failed.
        case launcher(step: Int32, errno: Int32)
        case filesGone
        /// The worker's own word.
        case worker(WorkerFailure)
        /// It sent what it must not.
        case violation(String)
        case ended(ProcessChange)
        case late
    }

    /// Milliseconds for all of it.
    private static let deadline = 20_000

    private let broker: Broker
    private let device: ManagedDevice
    private let subject: Subject
    /// Both nil once it is over, so that whoever had it can go.
    private var hear: ((Event) -> Void)?
    private var broke: ((Failure) -> Void)?
    private var worker: (any Worker)?
    private var timer: EventLoop.Timer?
    private var isOver: Bool { hear == nil }

    /// `broke` is called at most once, and nothing is heard afterwards.
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

    /// Starts a worker under a uid that nobody else has. The worker, and with it the uid, is the caller's from now on; nil when
    /// there is none, which `broke` has been told.
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

    /// The worker may make its queues; `affinity`: the processors of each, or one set for all, or nothing.
    func serve(_ affinity: [[UInt64]]) {
        guard let worker, !isOver else { return }
        worker.expect(.sealed)
        do { try worker.send(ServeMessage(affinity: affinity)) } catch { sendFailed("send to the worker", error) }
    }

    /// Nothing more is heard.
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

    /// A worker that dies closes its socket first: then its death is the reason to be told, which `.ended` brings. One that
    /// closed it and lives has its deadline.
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
    /// In words for the user. A worker's death is told by `ended`, when more is known of it than how it ended.
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
    /// Bytes that a worker may map beside its buffers, for its program, and for the stack, ring and tables of each queue: about
    /// twice what it does (8 MiB and 1 MiB). All of it is locked.
    private static let otherBytes: (process: UInt64, queue: UInt64) = (32 << 20, 2 << 20)
    /// Bytes of a submission entry and of two completions, twice: a ring's sizes are powers of two.
    private static let entryBytes: UInt64 = 2 * (64 + 2 * 16)

    /// What the launcher needs for a worker of that device.
    init(_ subject: WorkerConversation.Subject, of device: ManagedDevice, uid: UInt32, broker: Broker) {
        let launch = subject.launch
        // Without a copy there are no buffers of its own. `otherBytes` has room for one ring entry a request.
        let depth = launch.flags.contains(.zeroCopy) ? 0 : UInt64(launch.depth)
        let entries = launch.target.submissions.entries(depth: launch.depth) - UInt32(launch.depth)
        let queue =
            depth * UInt64(launch.maxIOBytes) + WorkerLaunch.otherBytes.queue
            + UInt64(entries) * WorkerLaunch.entryBytes
        self.init(
            binary: subject.program.file.raw, device: subject.node, uid: uid, gid: broker.workerGID,
            processes: WorkerLaunch.processes(queues: launch.queues),
            mappedBytes: WorkerLaunch.otherBytes.process + UInt64(launch.queues) * queue,
            openFiles: UInt64(launch.queues) + 22 + UInt64(launch.descriptors.upperBound),
            oomScore: broker.configuration.oomScore,
            processors: device.info.allowedCPUs?.words ?? [])
    }

    /// Tasks of one worker, the kernel's helpers of its rings included, with room.
    static func processes(queues: UInt16) -> UInt64 { UInt64(queues) * 32 + 32 }
}
