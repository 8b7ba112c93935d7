/// A control command: a URING_CMD on /dev/ublk-control with a 128-byte submission entry.
/// Source: linux/ublk_cmd.h and Documentation/block/ublk.rst.
public enum UblkControlOperation: UInt32, Sendable {
    case getQueueAffinity = 0x01
    case getDeviceInfo = 0x02
    case addDevice = 0x04
    case deleteDevice = 0x05
    case startDevice = 0x06
    case stopDevice = 0x07
    case setParameters = 0x08
    case getParameters = 0x09
    case startUserRecovery = 0x10
    case endUserRecovery = 0x11
    case getDeviceInfo2 = 0x12
    case getFeatures = 0x13
    case deleteDeviceAsync = 0x14
    case updateSize = 0x15
    case quiesceDevice = 0x16
    case tryStopDevice = 0x17

    /// The ioctl number (Linux 6.4 and later): _IOR for commands that only read, _IOWR otherwise.
    public var ioctlEncoded: UInt32 {
        let readsOnly: Bool
        switch self {
        case .getQueueAffinity, .getDeviceInfo, .getParameters, .getDeviceInfo2, .getFeatures, .deleteDeviceAsync:
            readsOnly = true
        default:
            readsOnly = false
        }
        let size = UInt32(MemoryLayout<UblkControlCommand>.size)
        return encodeIoctl(direction: readsOnly ? 2 : 3, type: UInt8(ascii: "u"), number: rawValue, size: size)
    }

    /// The plain number for drivers before 6.4; nil for later commands.
    public var legacy: UInt32? { rawValue <= UblkControlOperation.getDeviceInfo2.rawValue ? rawValue : nil }
}

/// The _IOC macro of asm-generic/ioctl.h.
@inlinable
public func encodeIoctl(direction: UInt32, type: UInt8, number: UInt32, size: UInt32) -> UInt32 {
    direction << 30 | size << 16 | UInt32(type) << 8 | number
}

/// struct ublksrv_ctrl_cmd: 32 bytes, in the command area of a 128-byte submission entry.
@frozen
public struct UblkControlCommand: Equatable, Sendable {
    public var deviceID: UInt32 = .max
    /// 0xffff unless the command is for one queue.
    public var queueID: UInt16 = .max
    /// Bytes at `address`.
    public var length: UInt16 = 0
    public var address: UInt64 = 0
    public var inlineData: UInt64 = 0
    public var devicePathLength: UInt16 = 0
    public var padding: UInt16 = 0
    public var reserved: UInt32 = 0

    public init() {}
}

/// State of a device as the kernel reports it.
public enum UblkDeviceState: UInt16, Sendable {
    case dead = 0
    case live = 1
    case quiesced = 2
    case failIO = 3
}

/// struct ublksrv_ctrl_dev_info, 64 bytes: input and output of ADD_DEV, output of GET_DEV_INFO.
@frozen
public struct UblkDeviceInfo: Equatable, Sendable {
    public var queues: UInt16 = 0
    /// Requests (tags) per queue.
    public var depth: UInt16 = 0
    public var state: UInt16 = 0
    /// io_desc_size; zero without its feature flag.
    public var ioDescriptorSize: UInt16 = 0
    /// Bytes.
    public var maxIOBytes: UInt32 = 0
    public var deviceID: UInt32 = .max
    /// Linux 6.12 returns the caller's value unchanged, so the caller passes zero.
    public var serverPID: Int32 = 0
    public var padding: UInt32 = 0
    public var flags: UInt64 = 0
    public var serverFlags: UInt64 = 0
    public var ownerUID: UInt32 = 0
    public var ownerGID: UInt32 = 0
    public var reserved1: UInt64 = 0
    public var reserved2: UInt64 = 0

    public init() {}

    public var features: UblkFeatures { UblkFeatures(rawValue: flags) }
    /// nil for an unknown state.
    public var deviceState: UblkDeviceState? { UblkDeviceState(rawValue: state) }
}

/// Limits of the driver (linux/ublk_cmd.h).
public enum UblkLimits {
    /// Requests per queue.
    public static let maxDepth = 4096
    public static let maxQueues = 4096
    /// Bytes of one request.
    public static let maxIOBytes = 32 << 20
}
