import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// Takes a device down completely: worker, kernel device, names, record, uid.
///
/// The kernel determines the order: a device whose worker hangs must lose its worker before STOP_DEV or DEL_DEV,
/// because a waiting DEL_DEV blocks every ADD and DEL on the host (docs/kernel-facts.md#waiting-commands). An
/// unkillable worker gets neither command: the device is `stuck` until its pidfd fires.
final class Teardown: TakingDown {
    enum Manner {
        /// STOP_DEV while the worker still serves requests in flight.
        case orderly
        /// Kill the worker first, so that nothing waits for it.
        case killFirst
    }

    /// Milliseconds.
    private enum Deadline {
        static let stop = 10_000
        /// STOP_DEV of a device with a dead worker: after this time the delay is reported.
        static let stopDead = 5_000
        static let leastStop = 1_000
        static let kill = 5_000
        static let delete = 10_000
        /// Between two looks whether the kernel has released a dead worker.
        static let releasePause = 10
        /// A disk that does not answer delays the release for ever.
        static let release = 2_000
        static let firstPause = 50
        static let longestPause = 60_000
    }

    /// In order; an orderly one begins with `stop`.
    private enum Step: CaseIterable {
        case killFirst
        case awaitRelease
        case stop
        case kill
        case delete
        case clean
    }

    private let broker: Broker
    private let device: ManagedDevice
    private var operation: DeviceOperation<Step>
    /// The callers that wait for the end.
    private var completions: [(InterfaceError?) -> Void]
    /// The reply that they got; the inner value is nil for success.
    private var outcome: InterfaceError??
    /// The error of the last STOP_DEV.
    private var stopProblem: String?
    /// While STOP_DEV is in the kernel: reports the device as stuck.
    private var stopTimer: EventLoop.Timer?
    /// When the kernel was first asked whether it has released the dead worker, in monotonic nanoseconds; nil: it was not.
    private var releaseBegan: UInt64?
    /// Milliseconds since then. They count as a part of STOP_DEV's.
    private var releaseWait: Int {
        releaseBegan.map { Int(clamping: (monotonicNanoseconds() - $0) / 1_000_000) } ?? 0
    }
    private var deleteAttempts = 0
    /// Send DEL_DEV instead of DEL_DEV_ASYNC.
    private var deletesWaiting = false
    /// Milliseconds before a restart after an event out of order.
    private var pauseAfterFault = Deadline.firstPause

    init(_ device: ManagedDevice, broker: Broker, completion: @escaping (InterfaceError?) -> Void) {
        self.device = device
        self.broker = broker
        completions = [completion]
        operation = DeviceOperation(loop: broker.loop)
    }

    /// Adds a caller that waits for the end.
    func join(_ completion: @escaping (InterfaceError?) -> Void) {
        if let outcome { completion(outcome) } else { completions.append(completion) }
    }

    /// Stops waiting for what the worker still serves: its death ends a STOP_DEV that waits for it.
    func hurry() {
        // While a recovery completes its command this operation has not begun; it then kills the worker in any case.
        guard operation.hurry(device.worker) else { return }
        if stopTimer != nil { limitStop(to: Deadline.stopDead) }
    }

    func begin(_ manner: Manner) {
        device.teardown = self
        // One after another: an upgrade may have a command in the kernel, or may have handed over to a recovery.
        if let upgrade = device.upgrade {
            let isRehearsal = !upgrade.hasDevice
            return upgrade.abandon { [self] in begin(isRehearsal ? manner : .killFirst) }
        }
        if let reopening = device.reopening { reopening.abandon() }
        if let recovery = device.recovery {
            // Above all END_USER_RECOVERY must have completed before the worker dies.
            return recovery.abandon { [self] in begin(.killFirst) }
        }
        device.setState(.deleting, reason: device.info.reason)
        device.step = .deleting
        broker.save(device)
        carryOut(from: manner == .orderly ? .stop : .killFirst)
    }

    private func carryOut(from first: Step) {
        operation.begin(first, disordered: { [self] in outOfOrder() }) { [self] step in
            switch step {
            case .killFirst: kill { [self] in operation.go(to: device.mayBeStarted ? .awaitRelease : .delete) }
            case .awaitRelease: awaitRelease()
            case .stop: stop()
            // Does nothing when it was killed first.
            case .kill: kill { [self] in operation.next() }
            case .delete: delete()
            case .clean: clean()
            }
        }
    }

    /// Begins again at the first step when the kernel has answered, until nothing of the device is left. Each step may
    /// be repeated: `isDeleted` prevents a second stop and deletion of a number that is free.
    func outOfOrder() {
        operation.abandon { [self] in
            operation = DeviceOperation(loop: broker.loop)
            stopTimer = nil
            broker.loop.after(milliseconds: pauseAfterFault) { [self] in carryOut(from: .killFirst) }
            pauseAfterFault = min(2 * pauseAfterFault, Deadline.longestPause)
        }
    }

    /// A STOP_DEV while the kernel still takes back a dead worker's fetches can make the kernel warn
    /// (docs/kernel-facts.md#stop-during-release). It has taken them back when the device is no longer live.
    private func awaitRelease() {
        guard broker.noticesDeaths, releaseWait < Deadline.release else { return operation.next() }
        releaseBegan = releaseBegan ?? monotonicNanoseconds()
        operation.command({ broker.driver.info(of: device.id, $0) }) { [self] answer in
            switch (answer.verdict, answer.content?.deviceState) {
            case (.done, .live), (.done, nil), (.again, _):
                operation.wait(milliseconds: Deadline.releasePause) { [self] in awaitRelease() }
            case (.done, .quiesced), (.done, .failIO): awaitClose()
            default: operation.next()
            }
        }
    }

    /// The state does not tell whether a replacement that was killed before END_USER_RECOVERY has been released.
    /// START_USER_RECOVERY does: it answers EBUSY until nobody has the control node open.
    private func awaitClose() {
        operation.command({ broker.driver.startRecovery(device.id, $0) }) { [self] answer in
            guard answer.verdict == .again else { return operation.next() }
            operation.wait(milliseconds: Deadline.releasePause) { [self] in awaitRelease() }
        }
    }

    /// Waits for STOP_DEV to complete: a DEL_DEV meanwhile would wait for it, and block every ADD and DEL on the host.
    /// It may last longer than the worker, when the kernel cannot take back requests to a hung disk.
    private func stop() {
        // A late STOP_DEV waits for the worker and ends with it.
        let timer = device.worker == nil ? nil : operation.limit(milliseconds: Deadline.stop) { [self] in hurry() }
        limitStop(
            to: device.worker == nil ? max(Deadline.stopDead - releaseWait, Deadline.leastStop) : 2 * Deadline.stop)
        stop(pause: Deadline.firstPause) { [self] in
            broker.loop.cancel(timer)
            broker.loop.cancel(stopTimer)
            stopTimer = nil
            operation.next()
        }
    }

    /// Repeats STOP_DEV until the kernel has stopped the disk, or has none of ours.
    private func stop(pause: Int, then next: @escaping () -> Void) {
        operation.command({ broker.driver.stop(device.id, $0) }) { [self] answer in
            switch answer.verdict {
            case .done, .gone: next()
            case .taken, .again, .unsupported, .refused, .unknown:
                stopProblem = SystemError.message(answer.errno)
                Log.warning("stop", ("device", "\(device.id)"), ("errno", SystemError.name(answer.errno)))
                operation.wait(milliseconds: pause) { [self] in
                    stop(pause: min(2 * pause, Deadline.longestPause), then: next)
                }
            }
        }
    }

    /// Reports after this time what STOP_DEV waits for.
    private func limitStop(to milliseconds: Int) {
        broker.loop.cancel(stopTimer)
        stopTimer = operation.limit(milliseconds: milliseconds) { [self] in
            if let stopProblem {
                return becomeStuck("the kernel can not stop it: \(stopProblem)", step: "STOP_DEV")
            }
            if device.worker?.isAlive == true { return becomeStuck() }
            // A hung disk cannot be told from a kernel that has not noticed the death.
            let unnoticed =
                "or the kernel has not noticed its worker's death, which takes 30 s at most before Linux 6.16"
            becomeStuck(
                "the kernel waits for requests that its dead worker had taken: a file or disk does not answer"
                    + (broker.noticesDeaths ? "" : ", \(unnoticed)"),
                step: "STOP_DEV", remedy: "it is deleted by itself as soon as they end; see 'ubd list -n \(device.id)'")
        }
    }

    /// Kills the worker and continues after its end.
    private func kill(then next: @escaping () -> Void) {
        operation.kill(device.worker, milliseconds: Deadline.kill, stuck: { [self] in becomeStuck() }) { [self] in
            broker.release(device)
            next()
        }
    }

    private func becomeStuck(
        _ reason: String = "its worker can not be killed: it waits for a file or disk that does not answer",
        step: String = "kill",
        remedy: String = "bring the backing storage back; the device is deleted as soon as it answers"
    ) {
        device.setState(.stuck, reason: reason)
        broker.save(device)
        Log.warning("stuck", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
        report(
            .failed(
                message: "device \(device.id) is stuck: \(reason)",
                remedy: remedy, step: step, errno: nil))
    }

    private func delete() {
        guard device.isInKernel else { return device.mayBeInKernel ? deleteIfOurs() : operation.next() }
        // From here on the kernel may free the number at any moment, and our user must not get the next device with it.
        broker.store.removeUdev(device.id)
        let timer = operation.limit(milliseconds: Deadline.delete) { [self] in
            becomeStuck("the kernel has not deleted it yet", step: "DEL_DEV")
        }
        operation.command(
            { broker.driver.delete(device.id, waiting: deletesWaiting, $0) },
            late: { [self] answer in _ = isDeleted(answer.verdict) }
        ) { [self] answer in
            broker.loop.cancel(timer)
            switch answer.verdict {
            case let verdict where isDeleted(verdict): operation.next()
            case .unsupported where !deletesWaiting:
                // Before 6.7 only DEL_DEV exists, which waits until nobody has the disk open.
                deletesWaiting = true
                delete()
            default: retryDelete(answer.errno)
            }
        }
    }

    /// Finds out whether the device with this number is still ours; another server may have the number now.
    private func deleteIfOurs() {
        operation.command({ broker.driver.info(of: device.id, $0) }) { [self] answer in
            guard let info = answer.content else {
                return isDeleted(answer.verdict) ? operation.next() : retryDelete(answer.errno)
            }
            device.mayBeInKernel = false
            device.isInKernel = info.serverFlags == device.info.generation
            // Another server's disk must not be stopped.
            if !device.isInKernel { device.mayBeStarted = false }
            delete()
        }
    }

    /// Notes that the kernel has no such device any more, so that another server may get its number.
    private func isDeleted(_ verdict: ControlVerdict) -> Bool {
        guard [.done, .gone].contains(verdict) else { return false }
        (device.isInKernel, device.mayBeInKernel, device.mayBeStarted) = (false, false, false)
        return true
    }

    /// Repeats later: another command for the device may still be in the kernel.
    private func retryDelete(_ errno: Int32) {
        deleteAttempts += 1
        Log.warning("delete", ("device", "\(device.id)"), ("errno", SystemError.name(errno)))
        if deleteAttempts == 3 {
            device.setState(.stuck, reason: "the kernel does not delete it: \(SystemError.message(errno))")
            broker.save(device)
            report(
                .failed(
                    message: "the kernel does not delete device \(device.id): \(SystemError.message(errno))",
                    remedy: "it is tried again by itself; see 'ubd list -n \(device.id)'", step: "DEL_DEV",
                    errno: Int64(errno)))
        }
        operation.wait(milliseconds: min(1000 * deleteAttempts, 60_000)) { [self] in deleteIfOurs() }
    }

    private func clean() {
        broker.nodes.removeLink(device.id)
        broker.unstoreInputs(of: device)
        if let parking = device.parking.take() { broker.undertaker.letGo(parking, owner: device.owner) }
        broker.groups?.remove(broker.group(of: device))
        broker.store.remove(device.id)
        operation.finish()
        device.teardown = nil
        broker.forget(device)
        broker.noteDeletion(of: device.id)
        Log.info("deleted", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
        report(nil)
    }

    private func report(_ error: InterfaceError?) {
        if outcome != nil { return }
        outcome = .some(error)
        let waiting = completions
        completions = []
        for completion in waiting { completion(error) }
    }
}
