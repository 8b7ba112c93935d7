/// Features of a ublk driver, or those requested for a device: the UBLK_F_* bits of linux/ublk_cmd.h (Linux 7.3).
///
/// ADD_DEV silently clears unknown bits, so the broker compares its answer with the request.
public struct UblkFeatures: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let supportZeroCopy = UblkFeatures(rawValue: 1 << 0)
    public static let commandCompletionInTask = UblkFeatures(rawValue: 1 << 1)
    public static let needGetData = UblkFeatures(rawValue: 1 << 2)
    public static let userRecovery = UblkFeatures(rawValue: 1 << 3)
    public static let userRecoveryReissue = UblkFeatures(rawValue: 1 << 4)
    public static let unprivilegedDevice = UblkFeatures(rawValue: 1 << 5)
    public static let ioctlEncoding = UblkFeatures(rawValue: 1 << 6)
    public static let userCopy = UblkFeatures(rawValue: 1 << 7)
    public static let zoned = UblkFeatures(rawValue: 1 << 8)
    public static let userRecoveryFailIO = UblkFeatures(rawValue: 1 << 9)
    public static let updateSize = UblkFeatures(rawValue: 1 << 10)
    public static let autoBufferRegistration = UblkFeatures(rawValue: 1 << 11)
    public static let quiesce = UblkFeatures(rawValue: 1 << 12)
    public static let perIODaemon = UblkFeatures(rawValue: 1 << 13)
    public static let bufferRegistrationOffDaemon = UblkFeatures(rawValue: 1 << 14)
    public static let batchIO = UblkFeatures(rawValue: 1 << 15)
    public static let integrity = UblkFeatures(rawValue: 1 << 16)
    public static let safeStop = UblkFeatures(rawValue: 1 << 17)
    public static let noAutoPartitionScan = UblkFeatures(rawValue: 1 << 18)
    public static let sharedMemoryZeroCopy = UblkFeatures(rawValue: 1 << 19)
    public static let ioDescriptorSize = UblkFeatures(rawValue: 1 << 20)

    /// Bit numbers and the kernel's names without UBLK_F_.
    public static let names: [(bit: Int, name: String)] = [
        (0, "SUPPORT_ZERO_COPY"), (1, "URING_CMD_COMP_IN_TASK"), (2, "NEED_GET_DATA"), (3, "USER_RECOVERY"),
        (4, "USER_RECOVERY_REISSUE"), (5, "UNPRIVILEGED_DEV"), (6, "CMD_IOCTL_ENCODE"), (7, "USER_COPY"),
        (8, "ZONED"), (9, "USER_RECOVERY_FAIL_IO"), (10, "UPDATE_SIZE"), (11, "AUTO_BUF_REG"), (12, "QUIESCE"),
        (13, "PER_IO_DAEMON"), (14, "BUF_REG_OFF_DAEMON"), (15, "BATCH_IO"), (16, "INTEGRITY"), (17, "SAFE_STOP_DEV"),
        (18, "NO_AUTO_PART_SCAN"), (19, "SHMEM_ZC"), (20, "IO_DESC_SIZE"),
    ]

    /// The kernel's names of the set bits; an unknown bit is "BIT_n".
    public var nameList: [String] {
        (0..<64).filter { rawValue & (1 << UInt64($0)) != 0 }.map { bit in
            UblkFeatures.names.first { $0.bit == bit }?.name ?? "BIT_\(bit)"
        }
    }
}
