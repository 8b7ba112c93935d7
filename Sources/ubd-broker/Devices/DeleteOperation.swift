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

    init(_ device: ManagedDevice, broker: Broker, completion: @escaping (InterfaceError?) -> Void) {
        self.device = device
        self.broker = broker
        self.completion = completion
    }

    func begin(force: Bool) {
        if device.info.state == .adding || device.info.state == .starting {
            return refuse(busyWith: "being added right now")
        }
        guard device.teardown == nil, device.info.state != .deleting else {
            return refuse(busyWith: "being deleted already")
        }
        if force || device.worker == nil { return takeDown(.killFirst) }
        if let holder = broker.holder(of: device) { return refuse(busyWith: holder) }
        guard let control = broker.driver.opened, control.features.contains(.safeStop) else {
            // Before 7.0 the kernel can't tell whether somebody has it open; mounts, swap and holders were checked.
            return takeDown(.orderly)
        }
        tryStop(control)
    }

    /// TRY_STOP_DEV stops the device only while nobody has it open.
    private func tryStop(_ control: any ControlDevice) {
        // A stopped device's worker ends by itself: that is no failure then.
        device.setState(.deleting)
        control.submit(ControlRequest(operation: .tryStopDevice, device: device.id)) { [self] answer in
            guard answer.errno == EBUSY else { return takeDown(.orderly) }
            attempt += 1
            if attempt < DeleteOperation.attempts {
                broker.loop.after(milliseconds: DeleteOperation.pause) { [self] in tryStop(control) }
            } else {
                device.setState(.live)
                refuse(busyWith: broker.holder(of: device) ?? openedBy())
            }
        }
    }

    private func openedBy() -> String {
        Holders.opener(of: device.id).map { "open in \($0)" } ?? "open somewhere"
    }

    private func takeDown(_ manner: Teardown.Manner) {
        Teardown(device, broker: broker, completion: completion).begin(manner)
    }

    private func refuse(busyWith holder: String) {
        completion(
            .busy(
                message: "\(device.info.link ?? device.info.node) is \(holder)",
                remedy: "release it first, or delete with --force (what is not written yet is lost)",
                id: Int64(device.id), holder: holder))
    }
}
