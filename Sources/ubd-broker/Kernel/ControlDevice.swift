import KernelABI

/// One control command and what goes with it.
struct ControlRequest {
    var operation: UblkControlOperation
    var device: UInt32
    /// For commands about one queue.
    var queue: UInt16 = .max
    /// The command's inline data: a pid for START_DEV, for instance.
    var data: UInt64 = 0
    /// Read or filled by the kernel; its content after the command is in the answer.
    var buffer: [UInt8] = []
    /// Milliseconds until the caller hears `.timedOut`. The kernel may go on with the command.
    var deadline: Int = 10_000
}

extension UblkControlOperation {
    /// A deadline does not end these: their callers wait for the kernel's own answer.
    var mustBeHeardOut: Bool {
        switch self {
        case .addDevice, .deleteDevice, .deleteDeviceAsync, .startDevice, .stopDevice, .tryStopDevice,
            .startUserRecovery,
            .endUserRecovery, .quiesceDevice:
            true
        default: false
        }
    }
}

enum ControlAnswer {
    /// The kernel's result (negated errno when negative) and the buffer afterwards.
    case result(Int32, [UInt8])
    case timedOut

    /// The errno, positive; 0 for success; ETIMEDOUT when the deadline passed.
    var errno: Int32 {
        switch self {
        case .result(let value, _): value < 0 ? -value : 0
        case .timedOut: 110
        }
    }
}

/// The kernel's ublk control device. The seam at which the unit tests put a kernel of their own.
protocol ControlDevice: AnyObject {
    /// What the driver can do (GET_FEATURES); empty on kernels that do not tell.
    var features: UblkFeatures { get }
    /// Starts a command. `completion` is called once, later, from the event loop.
    func submit(_ request: ControlRequest, _ completion: @escaping (ControlAnswer) -> Void)
}
