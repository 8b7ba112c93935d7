import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Tests a worker program, or a file that a client brought, without touching the device. It starts a worker as usual,
/// with /dev/null in place of `/dev/ublkcN`. The worker opens the target with the parked files and reports its disk;
/// then it makes its rings and walls and fetches. The first fetch must fail; a worker that gets that far is fit. It is
/// killed at the end in any case.
final class Rehearsal {
    /// Milliseconds.
    private static let killDeadline = 5_000

    private let broker: Broker
    private let device: ManagedDevice
    private let program: WorkerProgram
    private let launch: LaunchMessage
    /// The socket with the files; the caller keeps it open.
    private let parking: Int32
    /// Why the disk is not wanted; nil when it is. The worker hears nothing more before this has been asked.
    private let refuse: (Geometry) -> InterfaceError?
    private var conversation: WorkerConversation?
    private var worker: (any Worker)?
    private var statistics: DeviceStatistics?
    private var geometry: Geometry?
    private var timer: EventLoop.Timer?
    private var completion: ((Result<Geometry, InterfaceError>) -> Void)?
    private var outcome: Result<Geometry, InterfaceError>?

    init(
        of program: WorkerProgram, for device: ManagedDevice, _ launch: LaunchMessage, parking: Int32, broker: Broker,
        refuse: @escaping (Geometry) -> InterfaceError? = { _ in nil }
    ) {
        self.refuse = refuse
        self.program = program
        self.device = device
        self.launch = launch
        self.parking = parking
        self.broker = broker
    }

    /// `completion` gets the disk or an error, when the worker is gone.
    func begin(_ completion: @escaping (Result<Geometry, InterfaceError>) -> Void) {
        self.completion = completion
        let subject = WorkerConversation.Subject(
            program: program, launch: launch, node: broker.nodes.null,
            files: { [self] () throws(SystemError) in
                // A page of its own: the device's page belongs to the serving worker.
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

    /// Nobody wants the result any more.
    func abandon() {
        completion = nil
        end(.failure(StartErrors.workerBroke("nobody waits for it any more")))
    }

    private func handle(_ event: WorkerConversation.Event) {
        switch event {
        case .geometry(let geometry):
            self.geometry = geometry
            if let error = refuse(geometry) { return end(.failure(error)) }
            conversation?.serve([])
        case .sealed: end(.failure(StartErrors.workerBroke("it claims to serve /dev/null")))
        case .stopped: break
        }
    }

    private func brokeOff(_ failure: WorkerConversation.Failure) {
        // The fetch must fail, since the worker has no device.
        if case .worker(let failure) = failure, let geometry, [.fetch, .mapDescriptors].contains(failure.step) {
            return end(.success(geometry))
        }
        end(.failure(failure.explained(for: device, workerGID: broker.workerGID)))
    }

    private func end(_ result: Result<Geometry, InterfaceError>) {
        if outcome != nil { return }
        outcome = result
        conversation?.end()
        // Its closures refer to this object, which holds the statistics page.
        conversation = nil
        // Later: the caller may be handling an event of this worker.
        guard let worker else { return broker.loop.later { [self] in finish() } }
        guard worker.end == nil else { return ended() }
        worker.setHandler { [self] event in
            if case .ended = event { ended() }
        }
        worker.kill()
        timer = broker.loop.after(milliseconds: Rehearsal.killDeadline) { [self] in
            // It waits for its file, as the next worker would. Its uid stays in use until it ends.
            Log.warning("rehearsal-stuck", ("device", "\(device.id)"), ("worker", "\(worker.pid)"))
            broker.stuckRehearsals[ObjectIdentifier(self)] = (device.owner, device.memoryBytes)
            outcome = .failure(StartErrors.workerBroke("it can not be killed: its file does not answer"))
            finish()
        }
    }

    private func ended() {
        broker.loop.cancel(timer)
        broker.stuckRehearsals[ObjectIdentifier(self)] = nil
        guard let worker else { return finish() }
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
    /// The launch message of every further worker: it demands exactly the disk that the kernel has, whatever happened
    /// to the file.
    var relaunch: LaunchMessage? {
        guard var launch else { return nil }
        if launch.target.hasSize { launch.options.size = servedBytes }
        if launch.target.hasBlockSize { launch.options.blockSize = info.blockSize }
        if releasesBytes { launch.flags.insert(.releasesBytes) }
        return launch
    }

    /// Bytes that a worker serves: the kernel's disk is never larger.
    var servedBytes: UInt64 { max(info.sizeBytes, pendingSize ?? 0) }

    /// How a disk differs from the one that a worker is to serve, as text; nil when it does not. `size`: what the worker was
    /// told, in bytes, when that may have changed since.
    func difference(_ geometry: Geometry, size: UInt64? = nil) -> String? {
        let size = size ?? servedBytes
        if geometry.size != size { return "\(geometry.size) bytes instead of \(size)" }
        return differenceBesideSize(geometry)
    }

    func differenceBesideSize(_ geometry: Geometry) -> String? {
        if geometry.logicalBlock != info.blockSize {
            return "blocks of \(geometry.logicalBlock) bytes instead of \(info.blockSize)"
        }
        if geometry.attributes.contains(.readOnly) != info.readOnly {
            return info.readOnly ? "it can be written" : "it can not be written"
        }
        return nil
    }
}
