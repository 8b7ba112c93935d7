import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import WorkerProtocol

/// Replaces the dead worker of a live device: wait for QUIESCED, START_USER_RECOVERY, a new worker with the parked
/// files, END_USER_RECOVERY while it is stopped. The device's users notice a pause.
///
/// The kernel limits what may be sent when (docs/kernel-facts.md#half-ready). Without PER_IO_DAEMON (before 6.16) a
/// second START_USER_RECOVERY crashes the host when a replacement has made some but not all queues ready. There it is
/// sent once for each death of a sealed worker, and one more worker is tried without it.
final class RecoverOperation: Replacement {
    /// Milliseconds.
    private enum Deadline {
        /// After this time the delay is reported. (6.12 notices the death of a server that held every tag only by its
        /// request timeout.)
        static let quiesced = 10_000
        static let patientPause = 1_000
        static let startRecovery = 10_000
        static let kill = 5_000
        static let firstPause = 2
        static let longestPause = 100
    }

    /// In order. `endReplacement` leads back to `release` or `startWorker`.
    private enum Step: CaseIterable {
        case endWorker
        case pause
        case release
        case startRecovery
        case startWorker
        case endRecovery
        case serve
        case endReplacement
    }

    private let broker: Broker
    private let device: ManagedDevice
    private let operation: DeviceOperation<Step>
    private let began: UInt64
    /// The begin of the present wait: for QUIESCED, or for the kernel to accept START_USER_RECOVERY. Each has a
    /// deadline of its own.
    private var waitBegan: UInt64 = 0
    private var start: WorkerStart?
    private var pause = Deadline.firstPause
    /// The delay was reported: the kernel still has requests of the dead worker.
    private var isWaitTold = false
    /// Why the last replacement failed.
    private var replacementError: InterfaceError?
    /// START_USER_RECOVERY was sent for this death. Recorded before it is sent.
    private var isRecovering: Bool {
        get { device.recoveryStarted }
        set {
            device.recoveryStarted = newValue
            if !newValue { device.recoveryAnswered = false }
        }
    }
    /// Bytes that the current replacement is to serve.
    private var servedBytes: UInt64 = 0
    /// The current replacement was told to serve, so it may have fetched requests.
    private var mayHaveFetched = false
    /// Replacements started since then, including one of an earlier broker.
    private var attempts: Int
    /// The programs for replacements. When a replacement fails, the next one gets the next program.
    private var programs: [WorkerProgram]
    /// Why the device waits, unless for a death.
    private let reason: String?
    /// Called at the end: nil when the device is live.
    private var completion: ((InterfaceError?) -> Void)?

    /// `programs`: empty for the program that served before.
    init(
        _ device: ManagedDevice, broker: Broker, programs: [WorkerProgram] = [], reason: String? = nil,
        completion: ((InterfaceError?) -> Void)? = nil
    ) {
        self.programs = programs
        if programs.isEmpty {
            // The program that served before, several times; then the broker's, in case the program is at fault.
            let own = device.program ?? broker.program
            self.programs = broker.canRepeatRecovery ? [own, own, own, broker.program] : [own]
        }
        self.reason = reason
        self.completion = completion
        self.device = device
        self.broker = broker
        operation = DeviceOperation(loop: broker.loop)
        began = broker.now()
        attempts = device.recoveryAnswered ? 1 : 0
    }

    /// The worker has ended, or it is a replacement that an earlier broker left incomplete and that is killed now.
    func begin() {
        device.recovery = self
        device.setState(.recovering, reason: reason ?? device.info.lastDeath.map { "its worker \($0)" })
        device.step = .recovering
        broker.save(device)
        operation.begin(.endWorker, disordered: { [self] in outOfOrder() }) { [self] step in
            switch step {
            case .endWorker: endWorker { [self] in operation.next() }
            case .pause: pauseAfterDeath()
            case .release: awaitRelease()
            case .startRecovery: startRecovery()
            case .startWorker: startWorker()
            case .endRecovery: endRecovery()
            case .serve: serve()
            case .endReplacement: endWorker { [self] in replacementIsDead() }
            }
        }
    }

    private func pauseAfterDeath() {
        let delay = reason == nil ? device.deathLog.pauseBeforeNext : 0
        if delay == 0 { operation.next() } else { operation.wait(milliseconds: delay) { [self] in operation.next() } }
    }

    /// Kills the worker, if any, and continues after its end.
    private func endWorker(then next: @escaping () -> Void) {
        operation.kill(
            device.worker, milliseconds: Deadline.kill,
            stuck: { [self] in
                giveUp("its worker can not be killed: it waits for a file or disk that does not answer")
            },
            then: { [self] in
                broker.release(device)
                next()
            })
    }

    let hasDevice = true

    /// The device is being taken down: begins nothing more. `next` is called when the kernel has completed the current
    /// command.
    func abandon(then next: @escaping () -> Void) {
        start?.abandon()
        device.recovery = nil
        tell(
            .failed(
                message: "device \(device.id) is being deleted", remedy: "see 'ubd list'", step: "delete", errno: nil))
        operation.abandon(then: next)
    }

    // MARK: The kernel releases the dead worker

    private func awaitRelease() {
        beginWait()
        waitUntilQuiesced()
    }

    private func beginWait() {
        waitBegan = broker.now()
        pause = Deadline.firstPause
    }

    private func waitUntilQuiesced() {
        operation.command({ broker.driver.info(of: device.id, $0) }) { [self] answer in
            switch (answer.verdict, answer.content?.deviceState) {
            case (.done, .quiesced), (.done, .failIO):
                beginWait()
                operation.next()
            case (.done, .live): waitOn()
            case (.done, .dead): giveUp("the kernel stopped it")
            case (.done, nil): ask("the kernel returns a state that this version of ubd does not know")
            case (.again, _): ask("the kernel does not return its state: \(SystemError.message(answer.errno))")
            default: giveUp("the kernel does not know it any more: \(SystemError.message(answer.errno))")
            }
        }
    }

    /// Asks again later: an unknown state is no reason to give the device up.
    private func ask(_ reason: String) {
        device.setState(.recovering, reason: reason)
        operation.wait(milliseconds: Deadline.patientPause) { [self] in waitUntilQuiesced() }
    }

    /// The kernel releases a dead worker when its last request has ended. While its disk hangs, nothing can shorten
    /// that, not even STOP_DEV.
    private func waitOn() {
        let milliseconds = (broker.now() - waitBegan) / 1_000_000
        if milliseconds >= UInt64(Deadline.quiesced), !isWaitTold {
            isWaitTold = true
            let reason = "its worker is dead, but a file or disk does not answer its requests"
            device.setState(.recovering, reason: reason)
            Log.warning("not-quiesced", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", reason))
        }
        operation.wait(milliseconds: isWaitTold ? Deadline.patientPause : pause) { [self] in waitUntilQuiesced() }
        pause = min(pause * 2, Deadline.longestPause)
    }

    /// The kernel returns EBUSY until the last reference to the control node is gone, and a dying process takes its
    /// time.
    private func startRecovery() {
        if device.recoveryAnswered, !broker.canRepeatRecovery { return operation.next() }
        // An earlier broker may have sent it and been killed before it recorded the answer, so before any replacement.
        let mayHaveBeenSent = isRecovering
        isRecovering = true
        // A later broker must know of it: before 6.16 the command must not be sent again after a replacement has
        // fetched.
        if let problem = broker.save(device) {
            isRecovering = mayHaveBeenSent
            return awaitRecord(problem) { [self] in startRecovery() }
        }
        operation.command({ broker.driver.startRecovery(device.id, $0) }) { [self] answer in
            switch answer.verdict {
            case .done: recoveryStarted()
            // It was sent before: EINVAL is the answer to a repetition before any replacement has fetched.
            case .refused where answer.errno == EINVAL && mayHaveBeenSent && !broker.canRepeatRecovery:
                recoveryStarted()
            case .again:
                isRecovering = mayHaveBeenSent
                broker.save(device)
                again(Deadline.startRecovery, whyNotYet(answer.errno)) { [self] in startRecovery() }
            // It stays recorded as sent. No replacement has fetched, so it may be sent again.
            case .unknown:
                again(Deadline.startRecovery, whyNotYet(answer.errno)) { [self] in startRecovery() }
            default:
                giveUp("the kernel refused START_USER_RECOVERY: \(SystemError.message(answer.errno))")
            }
        }
    }

    private func whyNotYet(_ errno: Int32) -> String {
        errno == EBUSY
            ? "the dead worker's files stay open"
            : "the kernel does not do START_USER_RECOVERY: \(SystemError.message(errno))"
    }

    /// Recorded before the first replacement can fetch: from then on a repetition can crash the host before 6.16.
    private func recoveryStarted() {
        if !broker.canRepeatRecovery {
            device.recoveryAnswered = true
            if let problem = broker.save(device) { return awaitRecord(problem) { [self] in recoveryStarted() } }
        }
        operation.next()
    }

    /// Continues when the record can be written. Until then requests wait in the kernel, and none is lost.
    private func awaitRecord(_ problem: SystemError, then next: @escaping () -> Void) {
        device.setState(
            .recovering,
            reason: "its record can not be written into \(broker.store.folder): \(SystemError.message(problem.errno)); "
                + "requests wait until it can")
        operation.wait(milliseconds: Deadline.patientPause) { [self] in
            // The next wait has a deadline of its own.
            beginWait()
            next()
        }
    }

    // MARK: The replacement

    private func startWorker() {
        guard let launch = device.relaunch else { return giveUp("its launch message is not known") }
        attempts += 1
        mayHaveFetched = false
        servedBytes = device.servedBytes
        let start = WorkerStart(
            launch, for: device, broker: broker, program: programs.first,
            listener: WorkerStart.Listener(
                geometry: { [unowned self] geometry in compare(geometry) },
                ready: { [unowned self] in operation.next() },
                failed: { [unowned self] error in operation.turn { [self] in replacementFailed(error) } },
                affinity: { [unowned self] queue, next in
                    operation.command({ broker.driver.affinity(of: device.id, queue: queue, $0) }) { next($0.content) }
                },
                sealed: {}))
        self.start = start
        start.begin()
    }

    private func compare(_ geometry: Geometry) {
        if let difference = device.difference(geometry, size: servedBytes) {
            start?.abandon()
            return replacementFailed(StartErrors.workerBroke("it made another disk than before: \(difference)"))
        }
        mayHaveFetched = true
        start?.serve()
    }

    private func endRecovery() {
        guard let worker = device.worker else { return operation.lacks("a worker") }
        operation.commit({
            broker.driver.endRecovery(device.id, worker: worker.pid, $0)
        }) { [self] answer in
            guard answer.isDone else {
                return replacementFailed(StartErrors.kernelSaysNo("END_USER_RECOVERY", answer.errno))
            }
            guard worker.isAlive else {
                // The kernel has found every queue ready and has ended the recovery, so another live worker died, for
                // which START_USER_RECOVERY may be sent.
                isRecovering = false
                attempts = 0
                return replacementFailed(StartErrors.workerBroke("it died while the kernel accepted it"))
            }
            operation.next()
        }
    }

    private func serve() {
        do { try device.worker?.resume() } catch {
            return replacementFailed(StartErrors.broken("resume the worker", error))
        }
        operation.finish()
        device.recovery = nil
        isRecovering = false
        device.step = .live
        device.setState(.live)
        broker.noteLayout(of: device)
        broker.noteServing(device)
        broker.save(device)
        let milliseconds = (broker.now() - began) / 1_000_000
        Log.notice(
            "recovered", ("device", "\(device.id)"), ("worker", "\(device.info.workerPid ?? 0)"),
            ("milliseconds", "\(milliseconds)"), ("deaths", "\(device.info.deaths)"))
        broker.watchOver(device)
        // A smaller one is told first, by the upgrade (ResizeSteps.swift).
        guard let pending = device.pendingSize, pending > device.info.sizeBytes else { return tell(nil) }
        SizeUpdate(device, broker: broker) { [self] error in tell(error) }.begin()
    }

    /// A replacement failed. It must be dead before the next one is started.
    private func replacementFailed(_ error: InterfaceError) {
        Log.warning("replacement-failed", ("device", "\(device.id)"), ("why", error.message))
        // The next one serves the disk that the kernel has: the file may not have room for more.
        device.forgetUntoldSize()
        replacementError = error
        operation.go(to: .endReplacement)
    }

    private func replacementIsDead() {
        guard let error = replacementError else { return operation.lacks("a reason") }
        if device.needsFreshInputs, !mayHaveFetched, programs.count <= 1 { return connectionsFailed(error) }
        device.deathLog.add(window: broker.configuration.deathWindow)
        if programs.count > 1 { programs.removeFirst() }
        device.info.lastDeath = "did not get ready (\(error.message))"
        device.info.deaths += 1
        if device.deathLog.isTooMany { return giveUp("its workers keep dying: \(error.message)") }
        if isRecovering, !broker.canRepeatRecovery, attempts >= 2 {
            return giveUp("two new workers failed, and this kernel (before 6.16) allows no more: \(error.message)")
        }
        operation.wait(milliseconds: max(device.deathLog.pauseBeforeNext, Deadline.firstPause)) { [self] in
            operation.go(to: isRecovering && !broker.canRepeatRecovery ? .startWorker : .release)
        }
    }

    /// The new connections are no good, for example because the server went again. The replacement has fetched no request, so nothing
    /// is lost, and the device waits for other connections.
    private func connectionsFailed(_ error: InterfaceError) {
        operation.finish()
        device.recovery = nil
        broker.awaitInputs(device, because: "its new connections did not hold: \(error.message)")
        tell(error)
    }

    // MARK: The end

    /// Nothing more can be done: the device is stopped, so that nobody waits forever, and stays listed with its reason.
    private func giveUp(_ reason: String) {
        guard operation.isActive else { return }
        operation.finish()
        fail(reason)
    }

    /// Fails the device after the kernel has answered, so that nobody waits forever and no worker dies during
    /// END_USER_RECOVERY.
    func outOfOrder() {
        start?.abandon()
        operation.abandon { [self] in
            // The device is being taken down.
            guard device.recovery === self else { return }
            // A replacement may be stopped.
            device.worker?.kill()
            fail("the broker took the steps of its recovery out of order (operation-order in its log)")
        }
    }

    private func fail(_ reason: String) {
        start?.abandon()
        device.recovery = nil
        broker.fail(device, because: reason)
        tell(
            .failed(
                message: "device \(device.id) could not get a new worker: \(reason)",
                remedy: "delete it and add it again", step: "recovery", errno: nil))
    }

    private func tell(_ error: InterfaceError?) {
        let completion = completion
        self.completion = nil
        completion?(error)
    }

    private func again(_ deadline: Int, _ problem: String, _ next: @escaping () -> Void) {
        guard (broker.now() - waitBegan) / 1_000_000 < UInt64(deadline) else { return giveUp(problem) }
        operation.wait(milliseconds: pause, then: next)
        pause = min(pause * 2, Deadline.longestPause)
    }
}
