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
    private static let killDeadline = 5_000

    private let broker: Broker
    private let device: ManagedDevice
    private let program: WorkerProgram
    private let launch: LaunchMessage
    /// Where the files lie; the caller keeps it open.
    private let parking: Int32
    private var conversation: WorkerConversation?
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
        let subject = WorkerConversation.Subject(
            program: program, launch: launch, node: broker.nodes.null,
            files: { [self] () throws(SystemError) in
                // A page of its own: that of the device is the serving worker's.
                let page = try DeviceStatistics(queues: Int(launch.queues))
                statistics = page
                return (parking, page)
            })
        let conversation = WorkerConversation(
            subject, for: device, broker: broker, hear: { [self] event in handle(event) },
            broke: { [self] failure in brokeOff(failure) })
        self.conversation = conversation
        worker = conversation.begin()
    }

    /// Nobody wants to know any more.
    func abandon() {
        completion = nil
        end(.failure(StartErrors.workerBroke("nobody waits for it any more")))
    }

    private func handle(_ event: WorkerConversation.Event) {
        switch event {
        case .geometry(let geometry):
            self.geometry = geometry
            conversation?.serve([])
        case .sealed: end(.failure(StartErrors.workerBroke("it claims to serve /dev/null")))
        case .stopped: break
        }
    }

    private func brokeOff(_ failure: WorkerConversation.Failure) {
        // It must fail, at the one thing that it can't do without a device.
        if case .worker(let failure) = failure, let geometry, [.fetch, .mapDescriptors].contains(failure.step) {
            return end(.success(geometry))
        }
        end(.failure(failure.explained(for: device, workerGID: broker.workerGID)))
    }

    private func end(_ result: Result<Geometry, InterfaceError>) {
        if outcome != nil { return }
        outcome = result
        conversation?.end()
        // Its closures hold this rehearsal, and with it the statistics page.
        conversation = nil
        // Later: the caller may be in the middle of an event of that worker.
        guard let worker else { return broker.loop.later { [self] in finish() } }
        guard worker.end == nil else { return ended() }
        worker.setHandler { [self] event in
            if case .ended = event { ended() }
        }
        worker.kill()
        timer = broker.loop.after(milliseconds: Rehearsal.killDeadline) { [self] in
            // It waits for its file, as the next one would. Its uid is free when it ends.
            Log.warning("rehearsal-stuck", ("device", "\(device.id)"), ("worker", "\(worker.pid)"))
            broker.stuckRehearsals[ObjectIdentifier(self)] = (device.owner, device.memoryBytes)
            outcome = .failure(StartErrors.workerBroke("it can not be killed: its file does not answer"))
            finish()
        }
    }

    private func ended() {
        broker.loop.cancel(timer)
        broker.stuckRehearsals[ObjectIdentifier(self)] = nil
        guard let worker else { return }
        broker.judge(worker, of: program, for: device)
        worker.forget(undertaker: broker.undertaker, owner: device.owner)
        broker.uids.giveBack(worker.uid)
        self.worker = nil
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
