import BrokerInterface
import Glibc
import KernelABI

/// Delete, as a user asked for it: refused while somebody uses the device, unless by force.
final class DeleteOperation {
    /// TRY_STOP_DEV says EBUSY also while udev looks at a new device for a moment.
    private static let attempts = 10
    private static let pause = 100

    private let broker: Broker
    private let device: ManagedDevice
    private let completion: (InterfaceError?) -> Void
    private var attempt = 0
    /// What the device was before it was tried to stop it.
    private var before: (state: DeviceState, reason: String?) = (.live, nil)

    init(_ device: ManagedDevice, broker: Broker, completion: @escaping (InterfaceError?) -> Void) {
        self.device = device
        self.broker = broker
        self.completion = completion
    }

    func begin(force: Bool) {
        if device.info.state == .adding || device.info.state == .starting {
            return refuse(busyWith: "being added right now", remedy: "try again in a moment")
        }
        if force { return forced() }
        guard device.teardown == nil, device.info.state != .deleting else {
            return refuse(
                busyWith: "being deleted already",
                remedy: "wait for that, or hurry it with --force (what is not written yet is lost)")
        }
        if let holder = broker.holder(of: device) { return refuse(busyWith: holder) }
        if device.recovery != nil || device.upgrade?.hasDevice == true {
            return refuse(
                busyWith: "getting a new worker right now",
                remedy: "try again in a moment, or delete with --force (what is not written yet is lost)")
        }
        if device.watch.isReported { return refuse(busyWith: "waiting for its file, which does not answer") }
        // STOP_DEV of a device whose worker does not serve would hang.
        if device.worker == nil || device.info.state == .stuck { return takeDown(.killFirst) }
        guard let control = broker.driver.opened, control.features.contains(.safeStop) else {
            // Before 7.0 the kernel can't tell whether somebody has it open; mounts, swap and holders were checked.
            return takeDown(.orderly)
        }
        before = (device.info.state, device.info.reason)
        // A stopped device's worker ends by itself: that is no failure then.
        device.setState(.deleting)
        tryStop(control)
    }

    /// Overtakes a deletion that waits for the worker, or for somebody to close the device.
    private func forced() {
        guard let teardown = device.teardown else { return takeDown(.killFirst) }
        teardown.hurry()
        teardown.join(completion)
    }

    /// TRY_STOP_DEV stops the device only while nobody has it open.
    private func tryStop(_ control: any ControlDevice) {
        // Somebody forced it in the meantime.
        if let teardown = device.teardown { return teardown.join(completion) }
        guard broker.devices[device.id] === device else { return completion(nil) }
        control.submit(ControlRequest(operation: .tryStopDevice, device: device.id)) { [self] answer in
            if let teardown = device.teardown { return teardown.join(completion) }
            guard broker.devices[device.id] === device else { return completion(nil) }
            guard answer.errno == EBUSY else { return takeDown(.orderly) }
            attempt += 1
            if attempt < DeleteOperation.attempts {
                broker.loop.after(milliseconds: DeleteOperation.pause) { [self] in tryStop(control) }
            } else {
                serveOn()
                refuse(busyWith: broker.holder(of: device) ?? BrokerAPI.openSomewhere)
            }
        }
    }

    private func serveOn() {
        device.setState(before.state, reason: before.reason)
        // What came meanwhile was taken for the end of a stopped device's worker.
        broker.replayEvents(of: device)
    }

    private func takeDown(_ manner: Teardown.Manner) {
        Teardown(device, broker: broker, completion: completion).begin(manner)
    }

    private func refuse(
        busyWith holder: String,
        remedy: String = "release it first, or delete with --force (what is not written yet is lost)"
    ) {
        completion(
            .busy(
                message: "\(device.info.link ?? device.info.node) is \(holder)", remedy: remedy,
                id: Int64(device.id), holder: holder))
    }
}
