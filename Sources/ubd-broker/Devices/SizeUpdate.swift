import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// Tells the kernel the new size of a live device (`ManagedDevice.pendingSize`). A device that is taken down waits for the
/// kernel's answer: after STOP_DEV the command crashes some kernels.
final class SizeUpdate: Replacement {
    private enum Step: CaseIterable {
        case update
    }

    private let device: ManagedDevice
    private let broker: Broker
    private let operation: DeviceOperation<Step>
    private var completion: ((InterfaceError?) -> Void)?

    /// No ordinary deletion, and so no TRY_STOP_DEV, meanwhile.
    let hasDevice = true

    init(_ device: ManagedDevice, broker: Broker, completion: @escaping (InterfaceError?) -> Void) {
        self.device = device
        self.broker = broker
        self.completion = completion
        operation = DeviceOperation(loop: broker.loop)
    }

    func begin() {
        // With --recovery none the kernel removes the disk when the worker dies, at any moment.
        guard let bytes = device.pendingSize, device.info.state == .live, device.upgrade == nil, device.teardown == nil,
            device.info.recovery != .none
        else {
            device.forgetUntoldSize()
            return end(Self.notLive(device))
        }
        device.upgrade = self
        device.kernelMayHavePending = true
        operation.begin(.update, disordered: { [self] in outOfOrder() }) { [self] _ in
            operation.command({ broker.driver.resize(device.id, bytes: bytes, $0) }) { [self] answer in
                updated(answer, bytes)
            }
        }
    }

    private func updated(_ answer: DriverAnswer<Void>, _ bytes: UInt64) {
        operation.finish()
        device.upgrade = nil
        guard broker.hasDisk(of: bytes, device.id, answer) else {
            // When nobody knows, the next worker serves the larger size, too, and the kernel is told once more.
            if answer.verdict != .unknown {
                device.pendingSize = nil
                device.releasesBytes = true
            }
            broker.save(device)
            Log.warning("not-resized", ("device", "\(device.id)"), ("errno", SystemError.name(answer.errno)))
            return end(StartErrors.kernelSaysNo("UPDATE_SIZE", answer.errno))
        }
        let before = device.info.sizeBytes
        device.resized(to: bytes)
        broker.save(device)
        Self.log(device, before: before)
        end(nil)
    }

    static func log(_ device: ManagedDevice, before: UInt64) {
        Log.notice(
            "resized", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("before", "\(before)"),
            ("bytes", "\(device.info.sizeBytes)"))
    }

    func abandon(then next: @escaping () -> Void) {
        end(Self.notLive(device))
        operation.abandon { [self] in
            if device.upgrade === self { device.upgrade = nil }
            next()
        }
    }

    private func outOfOrder() {
        operation.abandon { [self] in
            if device.upgrade === self { device.upgrade = nil }
            end(StartErrors.outOfOrder)
        }
    }

    private func end(_ error: InterfaceError?) {
        let completion = completion
        self.completion = nil
        completion?(error)
    }

    static func notLive(_ device: ManagedDevice) -> InterfaceError {
        .failed(
            message: "device \(device.id) is not live any more", remedy: "see 'ubd list -n \(device.id)'",
            step: "state",
            errno: nil)
    }
}

extension Broker {
    /// Whether UPDATE_SIZE has given a disk this size, in bytes. Where its answer does not say so, the disk itself does.
    func hasDisk(of bytes: UInt64, _ id: UInt32, _ answer: DriverAnswer<Void>) -> Bool {
        answer.isDone || answer.verdict == .unknown && diskBytes(id) == bytes
    }
}
