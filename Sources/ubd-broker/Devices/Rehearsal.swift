import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Tries a worker program, or a file that a client brought, for a device without touching it: a worker is started as ever,
/// with /dev/null in place of `/dev/ublkcN`. It opens the target on the parked files and tells the disk that it would be;
/// then it makes its rings and walls and asks its device for requests, which /dev/null has none of. Whoever gets as far as
/// that would have served. It is killed at the end, whatever came out.
final class Rehearsal {
    /// Milliseconds.
    private enum Deadline {
        static let all = 20_000
        static let kill = 5_000
    }

    private let broker: Broker
    private let device: ManagedDevice
    private let program: WorkerProgram
    private let launch: LaunchMessage
    /// Where the files lie; the caller keeps it open.
    private let parking: Int32
    private var worker: (any Worker)?
    private var statistics: DeviceStatistics?
    private var geometry: Geometry?
    private var timer: EventLoop.Timer?
    private var completion: ((Result<Geometry, InterfaceError>) -> Void)?
    private var outcome: Result<Geometry, InterfaceError>?

    init(
        of program: WorkerProgram, for device: ManagedDevice, _ launch: LaunchMessage, parking: Int32, broker: Broker
    ) {
        self.program = program
        self.device = device
        self.launch = launch
        self.parking = parking
        self.broker = broker
    }

    /// `completion` hears the disk that it would be, or why it would not, when the worker is gone.
    func begin(_ completion: @escaping (Result<Geometry, InterfaceError>) -> Void) {
        self.completion = completion
        guard let uid = broker.uids.lease() else {
            outcome = .failure(WorkerStart.noFreeUID(broker.uids.range.count))
            return broker.loop.later { [self] in finish() }
        }
        var start = WorkerStart.launch(
            launch, of: device, program: program, node: broker.nodes.null, uid: uid, broker: broker)
        do {
            worker = try broker.withGroup(of: device) { (group) throws(SystemError) in
                start.group = group
                return try broker.startWorker(start) { [self] event in handle(event) }
            }
            timer = broker.loop.after(milliseconds: Deadline.all) { [self] in
                end(.failure(StartErrors.late))
            }
        } catch {
            broker.uids.giveBack(uid)
            outcome = .failure(StartErrors.broken("start the worker", error))
            broker.loop.later { [self] in finish() }
        }
    }

    /// Nobody wants to know any more.
    func abandon() {
        completion = nil
        end(.failure(StartErrors.workerBroke("nobody waits for it any more")))
    }

    private func handle(_ event: WorkerEvent) {
        if case .ended(let change) = event { return ended(change) }
        if outcome != nil { return }
        switch event {
        case .running: sendLaunchMessage()
        case .launchFailed(let step, let errno):
            let what = StartFailure.launcherStep(step)
            end(.failure(StartErrors.broken(what, SystemError(what, errno))))
        case .unusable(let error): end(.failure(StartErrors.broken("watch the worker", error)))
        case .message(.geometry(let geometry)): serve(geometry)
        case .message(.failed(let failure)): hear(failure)
        case .message(.sealed): end(.failure(StartErrors.workerBroke("it claims to serve /dev/null")))
        case .violation(let what): end(.failure(StartErrors.workerBroke("it sent \(what)")))
        case .stopped, .ended: break
        }
    }

    private func sendLaunchMessage() {
        guard let worker, let walls = broker.walls[launch.target.name] else {
            return end(.failure(StartErrors.workerBroke("its walls are gone")))
        }
        worker.expect(.geometry)
        do throws(SystemError) {
            let page = try DeviceStatistics(queues: Int(launch.queues))
            try worker.send(launch, parking: parking, statistics: page.file.raw, bundle: walls.bundle(for: launch.mode))
            statistics = page
        } catch {
            sendFailed("send the launch message", error)
        }
    }

    /// A worker that dies closes its socket first: then its death is the reason to be told, and comes as an event.
    private func sendFailed(_ what: String, _ error: SystemError) {
        if error.errno != EPIPE, error.errno != ECONNRESET { end(.failure(StartErrors.broken(what, error))) }
    }

    private func serve(_ geometry: Geometry) {
        self.geometry = geometry
        program.version = PackedVersion.text(geometry.version)
        worker?.expect(.sealed)
        do throws(SystemError) { try worker?.send(ServeMessage()) } catch {
            sendFailed("send to the worker", error)
        }
    }

    /// It must fail, at the one thing that it can't do without a device.
    private func hear(_ failure: WorkerFailure) {
        if let geometry, failure.step == .fetch || failure.step == .mapDescriptors { return end(.success(geometry)) }
        end(.failure(StartErrors.explain(failure, device, workerGID: broker.workerGID)))
    }

    private func end(_ result: Result<Geometry, InterfaceError>) {
        if outcome != nil { return }
        outcome = result
        broker.loop.cancel(timer)
        guard let worker, worker.end == nil else { return broker.loop.later { [self] in finish() } }
        worker.kill()
        timer = broker.loop.after(milliseconds: Deadline.kill) { [self] in
            // It waits for its file, as the next one would. Its uid is free when it ends.
            Log.warning("rehearsal-stuck", ("device", "\(device.id)"), ("worker", "\(worker.pid)"))
            broker.stuckRehearsals[ObjectIdentifier(self)] = (device.owner, device.memoryBytes)
            outcome = .failure(StartErrors.workerBroke("it can not be killed: its file does not answer"))
            finish()
        }
    }

    private func ended(_ change: ProcessChange) {
        broker.loop.cancel(timer)
        broker.stuckRehearsals[ObjectIdentifier(self)] = nil
        if outcome == nil { outcome = .failure(StartErrors.workerBroke("it \(change)")) }
        guard let worker else { return }
        broker.judge(worker, of: program, for: device)
        worker.forget(undertaker: broker.undertaker, owner: device.owner)
        broker.uids.giveBack(worker.uid)
        self.worker = nil
        // Not from the depths of its own event.
        broker.loop.later { [self] in finish() }
    }

    private func finish() {
        let completion = completion
        self.completion = nil
        if let outcome { completion?(outcome) }
    }
}

extension ManagedDevice {
    /// What every further worker of it is told: exactly the disk that the kernel has, whatever became of the file.
    var relaunch: LaunchMessage? {
        guard var launch else { return nil }
        if launch.target.hasSize { launch.options.size = info.sizeBytes }
        if launch.target.hasBlockSize { launch.options.blockSize = info.blockSize }
        return launch
    }

    /// How a disk differs from the one that the kernel has, in words; nil when it does not.
    func difference(_ geometry: Geometry) -> String? {
        if geometry.size != info.sizeBytes { return "\(geometry.size) bytes instead of \(info.sizeBytes)" }
        if geometry.logicalBlock != info.blockSize {
            return "blocks of \(geometry.logicalBlock) bytes instead of \(info.blockSize)"
        }
        if geometry.attributes.contains(.readOnly) != info.readOnly {
            return info.readOnly ? "it can be written" : "it can not be written"
        }
        return nil
    }
}
