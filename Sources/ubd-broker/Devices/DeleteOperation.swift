import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// Delete, as a user requests it: refused while the device is in use, and when that is unknown, unless forced.
///
/// If the kernel has TRY_STOP_DEV, it knows whether anybody has the device open, and the host's tables only name the
/// user. Otherwise the tables decide.
final class DeleteOperation {
    /// TRY_STOP_DEV also returns EBUSY while udev briefly examines a new device.
    private static let attempts = 10
    /// Milliseconds.
    private enum Deadline {
        static let pause = 100
        static let tryStop = 10_000
    }

    /// Starts with `tryStop` if the kernel can tell whether the device is in use, else with `decide`, which may lead to
    /// `tryStop`.
    private enum Step: CaseIterable {
        case tryStop
        case askHolder
        case decide
        case takeDown
    }

    private let broker: Broker
    private let device: ManagedDevice
    private let operation: DeviceOperation<Step>
    /// nil after it was called.
    private var completion: ((InterfaceError?) -> Void)?
    private var attempt = 0
    /// TRY_STOP_DEV has stopped the device.
    private var kernelHasStopped = false
    /// The device's state before TRY_STOP_DEV.
    private var before: (state: DeviceState, reason: String?) = (.live, nil)

    init(_ device: ManagedDevice, broker: Broker, completion: @escaping (InterfaceError?) -> Void) {
        self.device = device
        self.broker = broker
        self.completion = completion
        operation = DeviceOperation(loop: broker.loop)
    }

    func begin(force: Bool) {
        if device.info.state == .adding || device.info.state == .starting {
            return refuse(busyWith: "being added right now", remedy: "try again in a moment")
        }
        if force { return forced() }
        guard device.teardown == nil, device.deletion == nil, device.info.state != .deleting else {
            return refuse(
                busyWith: BrokerAPI.beingDeleted,
                remedy: "wait for that, or hurry it with --force (what is not written yet is lost)")
        }
        device.deletion = self
        let first: Step = kernelKnows && obstacle == nil ? .tryStop : .decide
        operation.begin(first, disordered: { [self] in outOfOrder() }) { [self] step in
            switch step {
            case .tryStop: beginToStop()
            case .askHolder: askHolder()
            case .decide: askAndDecide()
            case .takeDown: takeDown(kernelHasStopped ? .orderly : manner)
            }
        }
    }

    private func askAndDecide() {
        broker.askHolding(of: device) { [self] holding in
            if isOvertaken { return }
            decide(holding)
        }
    }

    /// Overtakes a deletion that waits for the worker, or for somebody to close the device.
    private func forced() {
        guard let teardown = device.teardown else { return takeDown(.killFirst) }
        teardown.hurry()
        teardown.join(finish)
    }

    /// Whether TRY_STOP_DEV can tell if somebody has the device open. If the worker does not serve, the command would
    /// hang like STOP_DEV.
    private var kernelKnows: Bool {
        broker.driver.features.contains(.safeStop) && device.worker != nil && device.info.state != .stuck
    }

    /// What the device itself is busy with; nil when nothing.
    private var obstacle: (holder: String, remedy: String)? {
        if device.recovery != nil || device.upgrade?.hasDevice == true {
            return (
                "getting a new worker right now",
                "try again in a moment, or delete with --force (what is not written yet is lost)"
            )
        }
        if device.watch.isReported {
            return ("waiting for \(device.source), which does not answer", DeleteOperation.release)
        }
        return nil
    }

    /// Whether the device is being taken down by force or is gone since this operation asked somebody.
    private var isOvertaken: Bool {
        if let teardown = device.teardown {
            teardown.join(finish)
            return true
        }
        if broker.devices[device.id] === device { return false }
        finish(nil)
        return true
    }

    private func decide(_ holding: Holding) {
        switch holding {
        case .held(let holder): return refuse(busyWith: holder)
        case .unknown(let why): return refuse(unknown: why)
        case .free: break
        }
        if let (holder, remedy) = obstacle { return refuse(busyWith: holder, remedy: remedy) }
        operation.go(to: kernelKnows ? .tryStop : .takeDown)
    }

    // MARK: TRY_STOP_DEV

    private func beginToStop() {
        before = (device.info.state, device.info.reason)
        // The worker of a stopped device ends by itself, which must not count as a failure.
        device.setState(.deleting)
        tryStop()
    }

    /// TRY_STOP_DEV stops the device only while nobody has it open. A late command may still do so: its answer is
    /// awaited even after the client was told that it takes long.
    private func tryStop() {
        let limit = operation.limit(milliseconds: Deadline.tryStop) { [self] in
            let why = "the kernel has not answered TRY_STOP_DEV within \(Deadline.tryStop / 1000) s"
            tell(unknownError(why, remedy: "see 'ubd list -n \(device.id)', or delete it with --force"))
        }
        operation.command(
            { broker.driver.stop(device.id, onlyUnused: true, $0) },
            late: { [self] answer in kernelHasStopped = [.done, .gone].contains(answer.verdict) }
        ) { [self] answer in
            broker.loop.cancel(limit)
            if isOvertaken { return }
            switch answer.verdict {
            case .done, .gone:
                kernelHasStopped = true
                operation.go(to: .takeDown)
            case .again: operation.go(to: .askHolder)
            case .taken, .unsupported, .refused, .unknown:
                serveOn()
                refuse(unknown: "the kernel answered TRY_STOP_DEV with \(SystemError.message(answer.errno))")
            }
        }
    }

    /// The host's tables may name the user; then waiting is useless.
    private func askHolder() {
        attempt += 1
        if attempt > 1 { return tryAgain() }
        broker.askHolding(of: device) { [self] holding in
            if isOvertaken { return }
            guard case .held(let holder) = holding else { return tryAgain() }
            serveOn()
            refuse(busyWith: holder)
        }
    }

    private func tryAgain() {
        guard attempt < DeleteOperation.attempts else {
            serveOn()
            return refuse(busyWith: BrokerAPI.openSomewhere)
        }
        operation.wait(milliseconds: Deadline.pause) { [self] in
            if !isOvertaken { tryStop() }
        }
    }

    private func serveOn() {
        device.setState(before.state, reason: before.reason)
        // Events that came meanwhile were ignored as the end of a stopped device's worker.
        broker.replayEvents(of: device)
    }

    // MARK: The end

    /// STOP_DEV would hang when the worker does not serve.
    private var manner: Teardown.Manner {
        device.worker == nil || device.info.state == .stuck ? .killFirst : .orderly
    }

    private func takeDown(_ manner: Teardown.Manner) {
        operation.finish()
        Teardown(device, broker: broker, completion: tell).begin(manner)
    }

    /// A device that the kernel has stopped is taken down. Any other device serves on, and the client gets an error
    /// that its use is unknown.
    func outOfOrder() {
        operation.abandon { [self] in
            if isOvertaken { return }
            if kernelHasStopped { return takeDown(.orderly) }
            if device.info.state == .deleting { serveOn() }
            refuse(unknown: "the broker took its own steps out of order (operation-order in its log)")
        }
    }

    private static let release = "release it first, or delete with --force (what is not written yet is lost)"

    private func refuse(busyWith holder: String, remedy: String = release) {
        finish(
            .busy(
                message: "\(device.info.link ?? device.info.node) is \(holder)", remedy: remedy,
                id: Int64(device.id), holder: holder))
    }

    private func refuse(unknown why: String) {
        Log.warning("holder-unknown", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", why))
        finish(
            unknownError(
                why, remedy: "try again; when nobody uses it, delete it with --force (what is not written yet is lost)")
        )
    }

    private func unknownError(_ why: String, remedy: String) -> InterfaceError {
        .busy(
            message: "whether \(device.info.link ?? device.info.node) is in use can not be told: \(why)",
            remedy: remedy, id: Int64(device.id), holder: BrokerAPI.holderUnknown)
    }

    private func finish(_ error: InterfaceError?) {
        operation.finish()
        tell(error)
    }

    /// Replies once.
    private func tell(_ error: InterfaceError?) {
        if device.deletion === self { device.deletion = nil }
        let completion = completion
        self.completion = nil
        completion?(error)
    }
}
