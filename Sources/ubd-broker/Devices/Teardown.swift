import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// Takes a device down and leaves nothing of it: worker, kernel device, names, record, uid.
///
/// The order is the kernel's: a device whose worker hangs must lose its worker before STOP_DEV or DEL_DEV, because a
/// DEL_DEV that waits holds up every ADD and DEL on the host (docs/kernel-facts.md#waiting-commands). A worker that can't be killed gets
/// neither: the device is `stuck` until its pidfd fires.
final class Teardown: TakingDown {
    enum Manner {
        /// STOP_DEV while the worker still serves what is in flight.
        case orderly
        /// The worker first: nothing that it holds up can hold up us.
        case killFirst
    }

    /// Milliseconds.
    private enum Deadline {
        static let stop = 10_000
        /// For STOP_DEV of a device whose worker is dead: all that it can wait for then is said after so long.
        static let stopDead = 5_000
        static let kill = 5_000
        static let delete = 10_000
        static let firstPause = 50
        static let longestPause = 60_000
    }

    /// In the order in which they run; an orderly one begins with `stop`.
    private enum Step: CaseIterable {
        case killFirst
        case stop
        case kill
        case delete
        case clean
    }

    private let broker: Broker
    private let device: ManagedDevice
    private var operation: DeviceOperation<Step>
    /// Whoever waits for the end.
    private var completions: [(InterfaceError?) -> Void]
    /// What they were told, or nil when it was well.
    private var outcome: InterfaceError??
    /// What the kernel answered to the last STOP_DEV, when it did not stop it.
    private var stopProblem: String?
    /// While STOP_DEV is in the kernel: when it is told that the device is stuck.
    private var stopTimer: EventLoop.Timer?
    private var deleteAttempts = 0
    /// DEL_DEV in place of DEL_DEV_ASYNC.
    private var deletesWaiting = false
    /// Milliseconds before it begins again after its steps came out of order.
    private var pauseAfterFault = Deadline.firstPause

    init(_ device: ManagedDevice, broker: Broker, completion: @escaping (InterfaceError?) -> Void) {
        self.device = device
        self.broker = broker
        completions = [completion]
        operation = DeviceOperation(loop: broker.loop)
    }

    /// One more waits for the end.
    func join(_ completion: @escaping (InterfaceError?) -> Void) {
        if let outcome { completion(outcome) } else { completions.append(completion) }
    }

    /// Waits no longer for what the worker still serves: its death ends a STOP_DEV that hangs on it.
    func hurry() {
        // While a recovery ends its command this has not begun; the worker is killed right afterwards in any case.
        guard operation.hurry(device.worker) else { return }
        if stopTimer != nil { limitStop(to: Deadline.stopDead) }
    }

    func begin(_ manner: Manner) {
        device.teardown = self
        // One after another: an upgrade may be at a control command, or have handed over to a recovery.
        if let upgrade = device.upgrade {
            let isRehearsal = !upgrade.hasDevice
            return upgrade.abandon { [self] in begin(isRehearsal ? manner : .killFirst) }
        }
        if let reopening = device.reopening { reopening.abandon() }
        if let recovery = device.recovery {
            // Above all END_USER_RECOVERY must be over before its worker dies.
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
            case .killFirst: kill { [self] in operation.go(to: device.mayBeStarted ? .stop : .delete) }
            case .stop: stop()
            // Nothing to do when it was killed first.
            case .kill: kill { [self] in operation.next() }
            case .delete: delete()
            case .clean: clean()
            }
        }
    }

    /// Begins again from the first step once the kernel has answered, until nothing of the device is left. Each step may be
    /// repeated: `isDeleted` keeps a number that is free from being stopped and deleted once more.
    func outOfOrder() {
        operation.abandon { [self] in
            operation = DeviceOperation(loop: broker.loop)
            stopTimer = nil
            broker.loop.after(milliseconds: pauseAfterFault) { [self] in carryOut(from: .killFirst) }
            pauseAfterFault = min(2 * pauseAfterFault, Deadline.longestPause)
        }
    }

    /// STOP_DEV, to its very end: a DEL_DEV meanwhile would wait for it, and with it every ADD and DEL on the host. It
    /// outlasts a dead worker whose requests to a hung disk the kernel can't take back.
    private func stop() {
        // One that is late waits for the worker: without it it ends.
        let timer = device.worker == nil ? nil : operation.limit(milliseconds: Deadline.stop) { [self] in hurry() }
        limitStop(to: device.worker == nil ? Deadline.stopDead : 2 * Deadline.stop)
        stop(pause: Deadline.firstPause) { [self] in
            broker.loop.cancel(timer)
            broker.loop.cancel(stopTimer)
            stopTimer = nil
            operation.next()
        }
    }

    /// Again and again until the kernel has stopped it, or has no disk of ours to stop.
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

    /// What a STOP_DEV that takes longer waits for is told then.
    private func limitStop(to milliseconds: Int) {
        broker.loop.cancel(stopTimer)
        stopTimer = operation.limit(milliseconds: milliseconds) { [self] in
            if let stopProblem {
                return becomeStuck("the kernel can not stop it: \(stopProblem)", step: "STOP_DEV")
            }
            if device.worker?.isAlive == true { return becomeStuck() }
            // A disk that hangs can't be told from a kernel that does not know yet.
            let unnoticed =
                "or the kernel has not noticed its worker's death, which takes 30 s at most before Linux 6.16"
            becomeStuck(
                "the kernel waits for requests that its dead worker had taken: a file or disk does not answer"
                    + (broker.canRepeatRecovery ? "" : ", \(unnoticed)"),
                step: "STOP_DEV", remedy: "it is deleted by itself as soon as they end; see 'ubd list -n \(device.id)'")
        }
    }

    /// Kills the worker and goes on when it is dead.
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
        // The disk is gone, and its number free at any moment from here: the next one's owner is not ours to tell.
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
                // Before 6.7 there is only the one that waits for whoever has the disk open.
                deletesWaiting = true
                delete()
            default: retryDelete(answer.errno)
            }
        }
    }

    /// Whether the kernel still has our device under that number; another server may have got it meanwhile.
    private func deleteIfOurs() {
        operation.command({ broker.driver.info(of: device.id, $0) }) { [self] answer in
            guard let info = answer.content else {
                return isDeleted(answer.verdict) ? operation.next() : retryDelete(answer.errno)
            }
            device.mayBeInKernel = false
            device.isInKernel = info.serverFlags == device.info.generation
            // Another server's disk is not ours to stop.
            if !device.isInKernel { device.mayBeStarted = false }
            delete()
        }
    }

    /// The kernel has no such device any more, and another server may get its number.
    private func isDeleted(_ verdict: ControlVerdict) -> Bool {
        guard [.done, .gone].contains(verdict) else { return false }
        (device.isInKernel, device.mayBeInKernel, device.mayBeStarted) = (false, false, false)
        return true
    }

    /// A late command of the same device may still be in the kernel.
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
