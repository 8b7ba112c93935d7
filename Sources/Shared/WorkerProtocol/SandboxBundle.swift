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
    /// What the ring of a queue's socket may do; nil when the target's queues have none. It stands at the end of a bundle, so
    /// that workers without such a ring read what they always read.
    public var socketRing: SocketRing?

    public struct SocketRing: Equatable, Sendable {
        public var operations: [UInt8]
        public var registerOperations: [UInt8]
        public var flagsAllowed: UInt8
        public var flagsRequired: UInt8

        public init(operations: [UInt8], registerOperations: [UInt8], flagsAllowed: UInt8, flagsRequired: UInt8) {
            self.operations = operations
            self.registerOperations = registerOperations
            self.flagsAllowed = flagsAllowed
            self.flagsRequired = flagsRequired
        }
    }

    public init(
        setupFilter: [UInt64], loopFilter: [UInt64], ringOperations: [UInt8], ringRegisterOperations: [UInt8],
        ringFlagsAllowed: UInt8, ringFlagsRequired: UInt8, socketRing: SocketRing? = nil
    ) {
        self.setupFilter = setupFilter
        self.loopFilter = loopFilter
        self.ringOperations = ringOperations
        self.ringRegisterOperations = ringRegisterOperations
        self.ringFlagsAllowed = ringFlagsAllowed
        self.ringFlagsRequired = ringFlagsRequired
        self.socketRing = socketRing
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
        if let socketRing {
            writer.put(UInt8(socketRing.operations.count))
            writer.put(UInt8(socketRing.registerOperations.count))
            writer.put(socketRing.flagsAllowed)
            writer.put(socketRing.flagsRequired)
            for operation in socketRing.operations { writer.put(operation) }
            for operation in socketRing.registerOperations { writer.put(operation) }
        }
        return writer.bytes
    }

    /// The maximum size of a bundle in bytes.
    public static let longest = 12 + 2 * 255 + 2 * maxInstructions * 8 + 4 + 2 * 255

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
        if reader.isComplete { return }
        guard let socketRing = SocketRing(from: &reader), reader.isComplete else { return nil }
        self.socketRing = socketRing
    }
}

extension SandboxBundle.SocketRing {
    init?(from reader: inout ByteReader) {
        let operationCount = Int(reader.get(UInt8.self))
        let registerCount = Int(reader.get(UInt8.self))
        flagsAllowed = reader.get()
        flagsRequired = reader.get()
        guard operationCount > 0, registerCount > 0 else { return nil }
        operations = (0..<operationCount).map { _ in reader.get() }
        registerOperations = (0..<registerCount).map { _ in reader.get() }
    }
}
