import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import WorkerProtocol

/// Replaces the worker of a live device by one with the current program. A rehearsal tests the program first: if it
/// crashes or provides another disk, the device is untouched. Then the device is quiesced where the kernel can (6.16,
/// not in batch mode): requests in flight end, new ones wait in the kernel. Elsewhere the worker is killed and the
/// kernel gives its requests to the next one, which it does only with `--recovery reissue`. The rest is a recovery with
/// the new program, or with the old one if that fails.
final class UpgradeOperation: Replacement {
    /// Milliseconds.
    private enum Deadline {
        /// For the kernel to find an idle request on each queue.
        static let quiesce = 5_000
        static let drain = 5_000
        static let kill = 5_000
        static let pause = 2
    }

    /// In order.
    enum Step: CaseIterable {
        case rehearse
        /// The next two only when the device becomes smaller (ResizeSteps.swift).
        case shrink
        case lookAgain
        case takeOver
        case quiesce
        case drain
        case kill
        case recover
    }

    enum Outcome {
        case upgraded
        /// The worker has this program already.
        case current
        case failed(InterfaceError)
    }

    /// What the new worker is for.
    enum Purpose {
        /// The installed program.
        case program
        /// Another size, with the program that the device has.
        case size(Resizing)

        /// Why the device has no worker for a moment.
        var reason: String {
            if case .size = self { return Self.resizing }
            return Self.upgrading
        }

        /// How its worker dies for that.
        var death: String {
            if case .size = self { return "was killed to give the device another size" }
            return "was killed for an upgrade"
        }

        static let upgrading = "its worker is being replaced by a newer one"
        static let resizing = "it is being resized: its worker is being replaced"
    }

    let broker: Broker
    let device: ManagedDevice
    private let purpose: Purpose
    let operation: DeviceOperation<Step>
    private let permission: () -> InterfaceError?
    private var completion: ((Outcome) -> Void)?
    private var rehearsal: Rehearsal?
    private var candidate: WorkerProgram?
    /// The operation, and not only the worker, controls the device.
    var hasDevice: Bool { ![nil, .rehearse].contains(operation.step) }
    private var drainBegan: UInt64 = 0
    /// Bytes; 0 unless the size is to change.
    var newSize: UInt64 = 0
    /// The old worker has answered all that it had taken.
    private var isDrained = false

    /// `permission`: called when there is something to do; returns why it is not permitted.
    init(
        _ device: ManagedDevice, broker: Broker, purpose: Purpose = .program,
        permission: @escaping () -> InterfaceError?,
        completion: @escaping (Outcome) -> Void
    ) {
        self.permission = permission
        self.purpose = purpose
        self.device = device
        self.broker = broker
        self.completion = completion
        operation = DeviceOperation(loop: broker.loop)
    }

    // MARK: Before the device is touched

    func begin() {
        // First: it names the kernel that a resize needs.
        if case .size(let resizing) = purpose, let refusal = resizing.refusal(device, broker.driver.features) {
            return tell(.failed(refusal))
        }
        if let refusal { return tell(.failed(refusal)) }
        if case .size(let resizing) = purpose {
            // Not the device's own program: one of an earlier version could not claim the bytes.
            return begin(broker.program) { [device] in resizing.launch($0, device) }
        }
        let candidate: WorkerProgram
        do {
            let opened = try broker.openProgram()
            // The broker's own object already knows its version.
            candidate = opened.identity == broker.program.identity ? broker.program : opened
        } catch {
            return tell(
                .failed(
                    .failed(
                        message: "there is no worker program to upgrade to: \(error)",
                        remedy: "install it again; the device is served on", step: "open", errno: nil)))
        }
        if device.program?.identity == candidate.identity { return tell(.current) }
        begin(candidate) { $0 }
    }

    /// `change`: what the launch message has besides what every replacement's has.
    private func begin(_ candidate: WorkerProgram, _ change: (LaunchMessage) -> LaunchMessage) {
        if let error = permission() { return tell(.failed(error)) }
        guard let launch = device.relaunch.map(change), let parking = device.parking?.raw else {
            return tell(.failed(StartErrors.workerBroke("its files are gone")))
        }
        self.candidate = candidate
        device.upgrade = self
        operation.begin(.rehearse, disordered: { [self] in outOfOrder() }) { [self] step in
            switch step {
            case .rehearse: rehearse(candidate, launch, parking)
            case .shrink: shrink()
            case .lookAgain: lookAgain()
            case .takeOver: takeOver()
            case .quiesce: quiesce()
            case .drain: drain()
            case .kill: kill()
            case .recover: recover()
            }
        }
    }

    private func rehearse(_ candidate: WorkerProgram, _ launch: LaunchMessage, _ parking: Int32) {
        var refuse: (Geometry) -> InterfaceError? = { _ in nil }
        if case .size(let resizing) = purpose { refuse = { [self] in resizing.refusal($0, device, broker) } }
        let rehearsal = Rehearsal(
            of: candidate, for: device, launch, parking: parking, broker: broker, refuse: refuse)
        self.rehearsal = rehearsal
        rehearsal.begin { [self] result in
            self.rehearsal = nil
            if operation.isActive { rehearsed(result) }
        }
    }

    private func rehearsed(_ result: Result<Geometry, InterfaceError>) {
        if case .size(let resizing) = purpose { return measured(result, resizing) }
        let problem: String
        switch result {
        case .failure(let error): problem = error.message
        case .success(let geometry):
            if let difference = device.difference(geometry) {
                problem = "it makes another disk: \(difference)"
            } else if geometry.file != device.file, device.file != .none {
                problem = "it reports another file"
            } else {
                return operation.go(to: .takeOver)
            }
        }
        Log.error("upgrade-refused", ("device", "\(device.id)"), ("why", problem))
        end(
            .failed(
                .failed(
                    message: "the new worker program is not fit to serve: \(problem)",
                    remedy: "the old one serves on; install a program that works and try again", step: "rehearsal",
                    errno: nil)))
    }

    // MARK: From the old worker to the new one

    private func takeOver() {
        guard device.info.state == .live, device.recovery == nil, device.teardown == nil, let worker = device.worker,
            worker.isAlive
        else {
            if isShrunk { return end(.upgraded) }
            // The worker of the rehearsal has locked the bytes.
            if newSize > device.info.sizeBytes { device.releasesBytes = true }
            return end(
                .failed(
                    .busy(
                        message: "something else happened to the device meanwhile", remedy: "try again",
                        id: Int64(device.id), holder: "the broker")))
        }
        device.setState(.recovering, reason: purpose.reason)
        // If the broker is killed from here on, the device looks live and may have been quiesced: the next broker must
        // complete the replacement.
        device.step = .upgrading
        if newSize > device.info.sizeBytes {
            device.pendingSize = newSize
            device.kernelMayHavePending = false
        }
        if let problem = broker.save(device) {
            device.step = .live
            device.forgetUntoldSize()
            device.setState(.live)
            return end(isShrunk ? .upgraded : .failed(StartErrors.notRecorded(problem, in: broker.store.folder)))
        }
        worker.setHandler { [self] event in
            if case .ended = event { ended() }
        }
        if worker.end != nil { return ended() }
        operation.go(to: canQuiesce ? .quiesce : .kill)
    }

    /// After its answer the kernel sends no request to the old worker.
    private func quiesce() {
        operation.command({
            broker.driver.quiesce(device.id, patience: Deadline.quiesce, $0)
        }) { [self] answer in
            // The worker has ended, and only this answer was awaited.
            if device.worker?.end != nil { return ended() }
            switch answer.verdict {
            case .done: operation.next()
            case .unsupported: notQuiesced()
            // The kernel may hold back new requests now, which only a new worker ends.
            default:
                Log.warning("quiesce", ("device", "\(device.id)"), ("errno", SystemError.name(answer.errno)))
                operation.go(to: .kill)
            }
        }
    }

    /// An earlier version of the broker added the device without this feature.
    private func notQuiesced() {
        if device.info.recovery == .reissue { return operation.go(to: .kill) }
        device.step = .live
        device.forgetUntoldSize()
        device.setState(.live)
        broker.save(device)
        let refusal = wouldFailRequests
        operation.finish()
        device.upgrade = nil
        broker.watchOver(device)
        tell(isShrunk ? .upgraded : .failed(refusal))
    }

    /// The worker completes the requests that it has taken. Then it must be killed: the kernel has ended some of its
    /// fetches, and those made since never complete.
    private func drain() {
        drainBegan = monotonicNanoseconds()
        waitUntilDrained()
    }

    private func waitUntilDrained() {
        if device.worker?.end != nil { return }
        // Unknown does not count as drained. The kernel sends nothing new, so a flush that it does not count is in the worker's count.
        isDrained = broker.requestsInFlight(device.id) == 0 && device.holdsRequests == false
        let waited = (monotonicNanoseconds() - drainBegan) / 1_000_000
        if isDrained || waited >= UInt64(Deadline.drain) {
            if !isDrained { Log.warning("not-drained", ("device", "\(device.id)")) }
            return operation.next()
        }
        operation.wait(milliseconds: Deadline.pause) { [self] in waitUntilDrained() }
    }

    private func kill() {
        operation.kill(device.worker, milliseconds: Deadline.kill, stuck: { [self] in becomeStuck() }) { [self] in
            operation.next()
        }
    }

    /// The worker waits for its file, so it cannot be replaced now. When it dies, its death is handled like any other.
    private func becomeStuck() {
        if device.worker?.end != nil { return }
        let reason =
            "its worker \(purpose.death), but it does not die: it waits for a file or disk that does not answer"
        device.killedBecause = purpose.death
        device.setState(.stuck, reason: reason)
        // The command fails: the next worker serves the size that the kernel has.
        device.forgetUntoldSize()
        broker.save(device)
        Log.error(
            "stuck", ("device", "\(device.id)"), ("owner", "\(device.owner)"),
            ("worker", "\(device.worker?.pid ?? 0)"))
        end(
            .failed(
                .failed(
                    message: "device \(device.id) is stuck: \(reason)",
                    remedy: "bring the backing storage back; the device gets another worker as soon as it answers",
                    step: "kill", errno: nil)))
        broker.watchOver(device)
    }

    /// The old worker has ended, killed or by itself: QUIESCE_DEV lets an idle worker end.
    private func ended() {
        // A command is awaited first; its handler checks for this end.
        if operation.phase == .running, operation.step != .recover { operation.go(to: .recover) }
    }

    private func recover() {
        guard let candidate else { return operation.lacks("a program") }
        let old = device.program
        operation.finish()
        device.upgrade = nil
        // The old worker has not answered all that it had taken, so the next one can't have its connections.
        if device.needsFreshInputs, !isDrained, device.worker?.end != .exited(WorkerExit.done) {
            return tell(.failed(broker.awaitInputsAfterUpgrade(device)))
        }
        let recovery = RecoverOperation(
            device, broker: broker, programs: [candidate] + [old].compactMap { $0 }, reason: purpose.reason
        ) { [self] error in
            if let error { return tell(.failed(error)) }
            if newSize > 0 { return tell(resized) }
            guard device.program === candidate else {
                let why = device.info.lastDeath.map { ": it \($0)" } ?? ""
                return tell(
                    .failed(
                        .failed(
                            message: "the new worker program did not get ready\(why)",
                            remedy: "the old one has taken over again; install a program that works and try again",
                            step: "upgrade", errno: nil)))
            }
            // The program has proved that it can serve, so all new workers get it.
            broker.program = candidate
            Log.notice(
                "upgraded", ("device", "\(device.id)"), ("version", candidate.version ?? "unknown"),
                ("worker", "\(device.info.workerPid ?? 0)"))
            tell(.upgraded)
        }
        recovery.begin()
    }

    /// The old worker serves on, or is killed and its death is handled like any other.
    func outOfOrder() {
        operation.abandon { [self] in
            // The device is being taken down.
            guard device.upgrade === self else { return }
            rehearsal?.abandon()
            rehearsal = nil
            if hasDevice {
                device.killedBecause = purpose.death
                device.setState(.stuck, reason: purpose.reason)
                broker.save(device)
                device.worker?.kill()
            }
            tell(.failed(StartErrors.outOfOrder))
            if hasDevice { broker.watchOver(device) }
        }
    }

    /// The device is being taken down: `next` is called when the kernel has completed the current command.
    func abandon(then next: @escaping () -> Void) {
        rehearsal?.abandon()
        rehearsal = nil
        tell(
            .failed(
                .failed(
                    message: "device \(device.id) is being deleted", remedy: "see 'ubd list'", step: "delete",
                    errno: nil)))
        operation.abandon { [self] in
            if device.upgrade === self { device.upgrade = nil }
            next()
        }
    }

    func end(_ outcome: Outcome) {
        operation.finish()
        tell(outcome)
    }

    private func tell(_ outcome: Outcome) {
        if device.upgrade === self { device.upgrade = nil }
        let completion = completion
        self.completion = nil
        completion?(outcome)
    }
}
