import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// Delete, as a user asked for it: refused while somebody uses the device, or when nobody can tell, unless by force.
///
/// Where the kernel has TRY_STOP_DEV it knows whether somebody has the device open, whoever that is; the host's tables then
/// only bring the words. Elsewhere they decide.
final class DeleteOperation {
    /// TRY_STOP_DEV says EBUSY also while udev looks at a new device for a moment.
    private static let attempts = 10
    /// Milliseconds.
    private enum Deadline {
        static let pause = 100
        static let tryStop = 10_000
    }

    /// It begins with `tryStop` where the kernel can tell whether somebody uses the device, else with `decide`, which may lead to
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
    /// nil once it was called.
    private var completion: ((InterfaceError?) -> Void)?
    private var attempt = 0
    /// TRY_STOP_DEV has stopped it.
    private var kernelHasStopped = false
    /// What the device was before it was tried to stop it.
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
                busyWith: "being deleted already",
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

    /// The driver can tell whether somebody has the device open (TRY_STOP_DEV). For a device whose worker does not serve the
    /// command would hang like STOP_DEV.
    private var kernelKnows: Bool {
        broker.driver.features.contains(.safeStop) && device.worker != nil && device.info.state != .stuck
    }

    /// What the device is busy with itself; nil when nothing.
    private var obstacle: (holder: String, remedy: String)? {
        if device.recovery != nil || device.upgrade?.hasDevice == true {
            return (
                "getting a new worker right now",
                "try again in a moment, or delete with --force (what is not written yet is lost)"
            )
        }
        if device.watch.isReported { return ("waiting for its file, which does not answer", DeleteOperation.release) }
        return nil
    }

    /// What happened while somebody else was asked: the device is being taken down by force, or is gone.
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
        // A stopped device's worker ends by itself: that is no failure then.
        device.setState(.deleting)
        tryStop()
    }

    /// TRY_STOP_DEV stops the device only while nobody has it open. One that is late may do so yet: it is heard out, also when
    /// its client has been told that it takes long.
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

    /// By whom it is held the host's tables may know, and then there is nothing to wait for.
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
        // What came meanwhile was taken for the end of a stopped device's worker.
        broker.replayEvents(of: device)
    }

    // MARK: The end

    /// STOP_DEV of a device whose worker does not serve would hang.
    private var manner: Teardown.Manner {
        device.worker == nil || device.info.state == .stuck ? .killFirst : .orderly
    }

    private func takeDown(_ manner: Teardown.Manner) {
        operation.finish()
        Teardown(device, broker: broker, completion: tell).begin(manner)
    }

    /// What the kernel has stopped goes. Anything else serves on, and the client is told that nobody knows who uses it.
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

    /// Once.
    private func tell(_ error: InterfaceError?) {
        if device.deletion === self { device.deletion = nil }
        let completion = completion
        self.completion = nil
        completion?(error)
    }
}
