/// The walls for one target: both seccomp programs and the rings' allow-lists. The broker compiles them from policy/ at
/// its start and passes them to each worker in a sealed memfd, since a worker has no file system to read policies from.
public struct SandboxBundle: Equatable, Sendable {
    static let magic: UInt32 = 0x5542_4453
    /// The kernel's limit for one program (BPF_MAXINSNS).
    static let maxInstructions = 4096

    /// struct sock_filter, eight bytes each. Loaded before the worker touches the client's files.
    public var setupFilter: [UInt64]
    /// Loaded before the loop serves; filters add up, so it can only narrow the first.
    public var loopFilter: [UInt64]
    /// Operations of submission entries that a ring allows (IORING_OP_*).
    public var ringOperations: [UInt8]
    /// Operations of io_uring_register(2) that a sealed ring allows.
    public var ringRegisterOperations: [UInt8]
    public var ringFlagsAllowed: UInt8
    public var ringFlagsRequired: UInt8

    public init(
        setupFilter: [UInt64], loopFilter: [UInt64], ringOperations: [UInt8], ringRegisterOperations: [UInt8],
        ringFlagsAllowed: UInt8, ringFlagsRequired: UInt8
    ) {
        self.setupFilter = setupFilter
        self.loopFilter = loopFilter
        self.ringOperations = ringOperations
        self.ringRegisterOperations = ringRegisterOperations
        self.ringFlagsAllowed = ringFlagsAllowed
        self.ringFlagsRequired = ringFlagsRequired
    }

    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(SandboxBundle.magic)
        writer.put(UInt16(setupFilter.count))
        writer.put(UInt16(loopFilter.count))
        writer.put(UInt8(ringOperations.count))
        writer.put(UInt8(ringRegisterOperations.count))
        writer.put(ringFlagsAllowed)
        writer.put(ringFlagsRequired)
        for operation in ringOperations { writer.put(operation) }
        for operation in ringRegisterOperations { writer.put(operation) }
        for instruction in setupFilter { writer.put(instruction) }
        for instruction in loopFilter { writer.put(instruction) }
        return writer.bytes
    }

    /// The maximum size of a bundle in bytes.
    public static let longest = 12 + 2 * 255 + 2 * maxInstructions * 8

    public init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes)
        guard reader.get(UInt32.self) == SandboxBundle.magic else { return nil }
        let setupCount = Int(reader.get(UInt16.self))
        let loopCount = Int(reader.get(UInt16.self))
        let operationCount = Int(reader.get(UInt8.self))
        let registerCount = Int(reader.get(UInt8.self))
        ringFlagsAllowed = reader.get()
        ringFlagsRequired = reader.get()
        guard (1...SandboxBundle.maxInstructions).contains(setupCount),
            (1...SandboxBundle.maxInstructions).contains(loopCount), operationCount > 0, registerCount > 0
        else { return nil }
        ringOperations = (0..<operationCount).map { _ in reader.get() }
        ringRegisterOperations = (0..<registerCount).map { _ in reader.get() }
        setupFilter = (0..<setupCount).map { _ in reader.get() }
        loopFilter = (0..<loopCount).map { _ in reader.get() }
        guard reader.isComplete else { return nil }
    }
}
