import KernelABI

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
    /// What a queue's ring may do.
    public var ring: RingSeal
    /// What the ring of a queue's socket may do; nil when the target's queues have none. It stands at the end of a bundle, so
    /// that workers without such a ring read what they always read.
    public var socketRing: RingSeal?

    public init(setupFilter: [UInt64], loopFilter: [UInt64], ring: RingSeal, socketRing: RingSeal? = nil) {
        self.setupFilter = setupFilter
        self.loopFilter = loopFilter
        self.ring = ring
        self.socketRing = socketRing
    }

    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        writer.put(SandboxBundle.magic)
        writer.put(UInt16(setupFilter.count))
        writer.put(UInt16(loopFilter.count))
        ring.put(to: &writer)
        for instruction in setupFilter { writer.put(instruction) }
        for instruction in loopFilter { writer.put(instruction) }
        socketRing?.put(to: &writer)
        return writer.bytes
    }

    /// The maximum size of a bundle in bytes.
    public static let longest = 12 + 2 * 255 + 2 * maxInstructions * 8 + 4 + 2 * 255

    public init?(decoding bytes: [UInt8]) {
        var reader = ByteReader(bytes)
        guard reader.get(UInt32.self) == SandboxBundle.magic else { return nil }
        let setupCount = Int(reader.get(UInt16.self))
        let loopCount = Int(reader.get(UInt16.self))
        guard (1...SandboxBundle.maxInstructions).contains(setupCount),
            (1...SandboxBundle.maxInstructions).contains(loopCount), let ring = RingSeal(from: &reader)
        else { return nil }
        self.ring = ring
        setupFilter = (0..<setupCount).map { _ in reader.get() }
        loopFilter = (0..<loopCount).map { _ in reader.get() }
        if reader.isComplete { return }
        guard let socketRing = RingSeal(from: &reader), reader.isComplete else { return nil }
        self.socketRing = socketRing
    }
}

extension RingSeal {
    fileprivate func put(to writer: inout ByteWriter) {
        writer.put(UInt8(operations.count))
        writer.put(UInt8(registerOperations.count))
        writer.put(flagsAllowed)
        writer.put(flagsRequired)
        for operation in operations { writer.put(operation) }
        for operation in registerOperations { writer.put(operation) }
    }

    /// nil: a seal without operations would be no wall.
    fileprivate init?(from reader: inout ByteReader) {
        let operationCount = Int(reader.get(UInt8.self))
        let registerCount = Int(reader.get(UInt8.self))
        let (allowed, required): (UInt8, UInt8) = (reader.get(), reader.get())
        guard operationCount > 0, registerCount > 0 else { return nil }
        let operations = (0..<operationCount).map { _ in reader.get(UInt8.self) }
        let registerOperations = (0..<registerCount).map { _ in reader.get(UInt8.self) }
        self.init(
            operations: operations, registerOperations: registerOperations, flagsAllowed: allowed,
            flagsRequired: required)
    }
}
