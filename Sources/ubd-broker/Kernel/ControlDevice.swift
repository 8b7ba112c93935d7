import KernelABI

/// A control command with its arguments.
struct ControlRequest {
    var operation: UblkControlOperation
    var device: UInt32
    /// Only for commands about one queue.
    var queue: UInt16 = .max
    /// The command's inline data, for example a pid for START_DEV.
    var data: UInt64 = 0
    /// Read or filled by the kernel; the answer has its content after the command.
    var buffer: [UInt8] = []
    /// Milliseconds until the caller gets `.timedOut`. The kernel may still execute the command.
    var deadline: Int = 10_000
}

extension UblkControlOperation {
    /// Commands whose callers wait for the kernel's answer beyond the deadline.
    var mustBeHeardOut: Bool {
        switch self {
        case .addDevice, .deleteDevice, .deleteDeviceAsync, .startDevice, .stopDevice, .tryStopDevice,
            .startUserRecovery,
            .endUserRecovery, .quiesceDevice, .updateSize:
            true
        default: false
        }
    }
}

enum ControlAnswer {
    /// The kernel's result (a negative errno on failure) and the buffer after the command.
    case result(Int32, [UInt8])
    case timedOut

    /// The errno, positive; 0 on success; ETIMEDOUT after the deadline.
    var errno: Int32 {
        switch self {
        case .result(let value, _): value < 0 ? -value : 0
        case .timedOut: 110
        }
    }
}

/// The kernel's ublk control device. Unit tests replace this seam.
protocol ControlDevice: AnyObject {
    /// The driver's features (GET_FEATURES); empty on kernels without that command.
    var features: UblkFeatures { get }
    /// Starts a command. The event loop calls `completion` once, later.
    func submit(_ request: ControlRequest, _ completion: @escaping (ControlAnswer) -> Void)
}
