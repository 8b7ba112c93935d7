import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import WorkerProtocol

/// Replaces the dead worker of a live device: QUIESCED, START_USER_RECOVERY, a new worker from the parked files, and
/// END_USER_RECOVERY while it is stopped. The device's users see a pause.
///
/// What may be sent when is the kernel's to say (docs/kernel-facts.md#half-ready). Without PER_IO_DAEMON (before 6.16) a second
/// START_USER_RECOVERY after a replacement that made some but not all queues ready crashes the host: there it is sent
/// once for each death of a worker that was sealed, and one more worker is tried without it.
final class RecoverOperation {
    /// Milliseconds.
    private enum Deadline {
        /// Later than that it is told that it takes long. (6.12 notices the death of a server that held every tag only by its
        /// request timeout.)
        static let quiesced = 10_000
        static let patientPause = 1_000
        static let startRecovery = 10_000
        static let kill = 5_000
        static let firstPause = 2
        static let longestPause = 100
    }

    private let broker: Broker
    private let device: ManagedDevice
    private let began: UInt64
    /// When the present wait began: for QUIESCED, or for START_USER_RECOVERY to be taken. Each has its own deadline.
    private var waitBegan: UInt64 = 0
    private var start: WorkerStart?
    private var pause = Deadline.firstPause
    private var timer: EventLoop.Timer?
    /// That the kernel still has requests of the dead worker has been told.
    private var isWaitTold = false
    private var isCommandInFlight = false
    private var isAbandoned = false
    private var whenIdle: (() -> Void)?
    /// START_USER_RECOVERY was sent for this death. Recorded before it is sent.
    private var isRecovering: Bool {
        get { device.recoveryStarted }
        set {
            device.recoveryStarted = newValue
            if !newValue { device.recoveryAnswered = false }
        }
    }
    /// Replacements tried after it, one of an earlier broker included.
    private var attempts: Int
    /// What replacements are started from: the first, and the next one when one of the first has failed.
    private var programs: [WorkerProgram]
    /// Why the device waits, when it is not for a death.
    private let reason: String?
    /// Hears the end: nil when the device is live.
    private var completion: ((InterfaceError?) -> Void)?

    /// `programs`: none for the one that served before.
    init(
        _ device: ManagedDevice, broker: Broker, programs: [WorkerProgram] = [], reason: String? = nil,
        completion: ((InterfaceError?) -> Void)? = nil
    ) {
        self.programs = programs
        if programs.isEmpty {
            // What served before, again and again; something else when that can't be the reason any more.
            let own = device.program ?? broker.program
            self.programs = broker.canRepeatRecovery ? [own, own, own, broker.program] : [own]
        }
        self.reason = reason
        self.completion = completion
        self.device = device
        self.broker = broker
        began = broker.now()
        attempts = device.recoveryAnswered ? 1 : 0
    }

    /// The worker has ended, or is a replacement that an earlier broker left half-way, which is ended now.
    func begin() {
        device.recovery = self
        device.setState(.recovering, reason: reason ?? device.info.lastDeath.map { "its worker \($0)" })
        device.step = .recovering
        broker.save(device)
        endWorker { [self] in
            broker.release(device)
            let delay = reason == nil ? device.deathLog.pauseBeforeNext : 0
            if delay == 0 { awaitRelease() } else { after(delay) { [self] in awaitRelease() } }
        }
    }

    /// Kills the worker, if there is one, and goes on when it is dead.
    private func endWorker(then next: @escaping () -> Void) {
        guard let worker = device.worker, worker.end == nil else { return next() }
        worker.setHandler { [self] event in
            guard case .ended = event, !isAbandoned else { return }
            broker.loop.cancel(timer)
            next()
        }
        worker.kill()
        timer = broker.loop.after(milliseconds: Deadline.kill) { [self] in
            giveUp("its worker can not be killed: it waits for a file or disk that does not answer")
        }
    }

    /// Somebody takes the device down: nothing more is begun, and `next` runs when the kernel has finished the command
    /// that it is at.
    func abandon(then next: @escaping () -> Void) {
        isAbandoned = true
        broker.loop.cancel(timer)
        start?.abandon()
        device.recovery = nil
        tell(
            .failed(
                message: "device \(device.id) is being deleted", remedy: "see 'ubd list'", step: "delete", errno: nil))
        if isCommandInFlight { whenIdle = next } else { next() }
    }

    // MARK: The kernel lets go of the dead worker

    private func awaitRelease() {
        beginWait()
        waitUntilQuiesced()
    }

    private func beginWait() {
        waitBegan = broker.now()
        pause = Deadline.firstPause
    }

    private func waitUntilQuiesced() {
        command({ [self] in broker.driver.info(of: device.id, $0) }) { [self] answer in
            switch answer.verdict {
            case .done: break
            case .again:
                // Nothing is known that would be a reason to give the device up.
                let reason = "the kernel does not tell its state: \(SystemError.message(answer.errno))"
                device.setState(.recovering, reason: reason)
                return after(Deadline.patientPause) { [self] in waitUntilQuiesced() }
            default: return giveUp("the kernel does not know it any more: \(SystemError.message(answer.errno))")
            }
            switch answer.content?.deviceState {
            case .quiesced, .failIO:
                beginWait()
                startRecovery()
            case .live: waitOn()
            case .dead, nil: giveUp("the kernel stopped it")
            }
        }
    }

    /// The kernel lets go of a dead worker when the last request that it had made is done. That can take as long as its disk
    /// hangs: nothing else would be quicker, STOP_DEV included.
    private func waitOn() {
        let milliseconds = (broker.now() - waitBegan) / 1_000_000
        if milliseconds >= UInt64(Deadline.quiesced), !isWaitTold {
            isWaitTold = true
            let reason = "its worker is dead, but a file or disk does not answer what it had asked for"
            device.setState(.recovering, reason: reason)
            Log.warning("not-quiesced", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", reason))
        }
        after(isWaitTold ? Deadline.patientPause : pause) { [self] in waitUntilQuiesced() }
        pause = min(pause * 2, Deadline.longestPause)
    }

    /// EBUSY until the last reference to the device's control node is gone: a dying process takes its time.
    private func startRecovery() {
        if device.recoveryAnswered, !broker.canRepeatRecovery { return startWorker() }
        // By an earlier broker, which was killed before it had recorded the answer, and so before any replacement.
        let mayHaveBeenSent = isRecovering
        isRecovering = true
        do throws(SystemError) { try broker.store.write(device.record) } catch {
            // A later broker would not know that it must not be sent again.
            return giveUp("its record can not be written: \(error)")
        }
        command({ [self] in broker.driver.startRecovery(device.id, $0) }) { [self] answer in
            switch answer.verdict {
            case .done: recoveryStarted()
            // It was: "nothing is ready" is what the kernel says when it is sent again before a replacement has fetched.
            case .refused where answer.errno == EINVAL && mayHaveBeenSent && !broker.canRepeatRecovery:
                recoveryStarted()
            case .again:
                isRecovering = mayHaveBeenSent
                broker.save(device)
                again(Deadline.startRecovery, "the dead worker's files stay open") { [self] in startRecovery() }
            default:
                giveUp("the kernel refused START_USER_RECOVERY: \(SystemError.message(answer.errno))")
            }
        }
    }

    /// Recorded before the first replacement can fetch: from then on it must not be sent again where that can crash the host.
    private func recoveryStarted() {
        if !broker.canRepeatRecovery {
            device.recoveryAnswered = true
            do throws(SystemError) { try broker.store.write(device.record) } catch {
                return giveUp("its record can not be written: \(error)")
            }
        }
        startWorker()
    }

    // MARK: The replacement

    private func startWorker() {
        guard let launch = device.relaunch else { return giveUp("its launch message is not known") }
        attempts += 1
        let start = WorkerStart(
            launch, for: device, broker: broker, program: programs.first,
            listener: WorkerStart.Listener(
                geometry: { [unowned self] geometry in compare(geometry) },
                ready: { [unowned self] in endRecovery() },
                failed: { [unowned self] error in replacementFailed(error) },
                sealed: {}))
        self.start = start
        start.begin()
    }

    private func compare(_ geometry: Geometry) {
        if let difference = device.difference(geometry) {
            start?.abandon()
            return replacementFailed(StartErrors.workerBroke("it made another disk than before: \(difference)"))
        }
        start?.serve()
    }

    private func endRecovery() {
        guard let worker = device.worker else { return }
        command({ [self] in broker.driver.endRecovery(device.id, worker: worker.pid, $0) }) { [self] answer in
            guard answer.isDone else {
                return replacementFailed(StartErrors.kernelSaysNo("END_USER_RECOVERY", answer.errno))
            }
            guard worker.isAlive else {
                // The kernel has found every queue ready and ended the recovery: this is the death of another live worker,
                // for which START_USER_RECOVERY may be sent.
                isRecovering = false
                attempts = 0
                return replacementFailed(StartErrors.workerBroke("it died while the kernel accepted it"))
            }
            do throws(SystemError) { try worker.resume() } catch {
                return replacementFailed(StartErrors.broken("resume the worker", error))
            }
            succeed()
        }
    }

    private func succeed() {
        device.recovery = nil
        isRecovering = false
        device.step = .live
        device.setState(.live)
        broker.save(device)
        let milliseconds = (broker.now() - began) / 1_000_000
        Log.notice(
            "recovered", ("device", "\(device.id)"), ("worker", "\(device.info.workerPid ?? 0)"),
            ("milliseconds", "\(milliseconds)"), ("deaths", "\(device.info.deaths)"))
        broker.noteLayout(of: device)
        broker.watchOver(device)
        tell(nil)
    }

    /// A replacement did not get there. It must be dead before the next one is tried.
    private func replacementFailed(_ error: InterfaceError) {
        Log.warning("replacement-failed", ("device", "\(device.id)"), ("why", error.message))
        endWorker { [self] in replacementIsDead(error) }
    }

    private func replacementIsDead(_ error: InterfaceError) {
        broker.release(device)
        device.deathLog.add(window: broker.configuration.deathWindow)
        if programs.count > 1 { programs.removeFirst() }
        device.info.lastDeath = "did not get ready (\(error.message))"
        device.info.deaths += 1
        if device.deathLog.isTooMany { return giveUp("its workers keep dying: \(error.message)") }
        if isRecovering, !broker.canRepeatRecovery, attempts >= 2 {
            return giveUp("two new workers failed, and this kernel (before 6.16) allows no more: \(error.message)")
        }
        after(max(device.deathLog.pauseBeforeNext, Deadline.firstPause)) { [self] in
            if isRecovering, !broker.canRepeatRecovery { startWorker() } else { awaitRelease() }
        }
    }

    // MARK: The end

    /// Nothing more can be done: the device stops, so that nobody waits for ever, and stays listed with its reason.
    private func giveUp(_ reason: String) {
        if isAbandoned { return }
        isAbandoned = true
        broker.loop.cancel(timer)
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

    private func after(_ milliseconds: Int, _ next: @escaping () -> Void) {
        timer = broker.loop.after(milliseconds: milliseconds) { [self] in if !isAbandoned { next() } }
    }

    private func again(_ deadline: Int, _ problem: String, _ next: @escaping () -> Void) {
        guard (broker.now() - waitBegan) / 1_000_000 < UInt64(deadline) else { return giveUp(problem) }
        after(pause, next)
        pause = min(pause * 2, Deadline.longestPause)
    }

    private func command<Content>(
        _ submit: (@escaping Driver.Completion<Content>) -> Void, _ next: @escaping Driver.Completion<Content>
    ) {
        isCommandInFlight = true
        submit { [self] answer in
            isCommandInFlight = false
            if !isAbandoned { return next(answer) }
            let idle = whenIdle
            whenIdle = nil
            idle?()
        }
    }
}
