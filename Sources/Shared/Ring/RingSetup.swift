import CShims
import Glibc
import KernelABI
import Synchronization
import SystemCalls

/// What a ring is made of, and what is done to it before it serves: creation, registrations, the seal.
public struct RingSetup: ~Copyable {
    /// The ring's descriptor; -1 once it was replaced by its registered index and closed.
    public internal(set) var descriptor: Int32
    let parameters: RingParameters
    let rings: Mapping
    let entries: Mapping

    init(entries: UInt32, completions: UInt32, flags: UInt32) throws(SystemError) {
        let base = flags | IOUring.Setup.completionSize
        var parameters = RingParameters(flags: base | IOUring.Setup.noSubmissionArray, completions: completions)
        var fd = RingSetup.create(entries, &parameters)
        if fd == -Int(EINVAL) {
            // Before 6.6 there is an index array between the ring and its entries.
            parameters = RingParameters(flags: base, completions: completions)
            fd = RingSetup.create(entries, &parameters)
        }
        guard fd >= 0 else { throw SystemError("io_uring_setup", Int32(-fd)) }
        let ring = FileDescriptor(owning: Int32(fd))
        let arrayBytes = parameters.hasArray ? Int(parameters.array) + Int(parameters.submissionCount) * 4 : 0
        let completionBytes = Int(parameters.completionEntries) + Int(parameters.completionCount) * 16
        // One mapping holds both rings (IORING_FEAT_SINGLE_MMAP, Linux 5.4).
        let rings = try Mapping.shared(ring.raw, offset: 0, bytes: max(arrayBytes, completionBytes), writable: true)
        let entryBytes = flags & IOUring.Setup.bigEntries != 0 ? 128 : 64
        let slots = try Mapping.shared(
            ring.raw, offset: 0x1000_0000, bytes: Int(parameters.submissionCount) * entryBytes, writable: true)
        if parameters.hasArray {
            // Slot i always holds entry i: the array is written once and then forgotten.
            let array = (rings.base + Int(parameters.array)).assumingMemoryBound(to: UInt32.self)
            for index in 0..<parameters.submissionCount { array[Int(index)] = index }
        }
        self.parameters = parameters
        self.rings = rings
        self.entries = slots
        descriptor = ring.release()
    }

    deinit {
        if descriptor >= 0 { close(descriptor) }
    }

    private static func create(_ entries: UInt32, _ parameters: inout RingParameters) -> Int {
        parameters.words.withUnsafeMutableBytes { ubd_io_uring_setup(entries, $0.baseAddress) }
    }

    static func atomic(_ base: UnsafeMutableRawPointer, _ offset: UInt32) -> UnsafeMutablePointer<Atomic<UInt32>> {
        (base + Int(offset)).assumingMemoryBound(to: Atomic<UInt32>.self)
    }
}

/// struct io_uring_params: 30 words; those of the offsets are named.
struct RingParameters {
    var words = [UInt32](repeating: 0, count: 30)

    init(flags: UInt32, completions: UInt32) {
        words[1] = completions
        words[2] = flags
    }

    var submissionCount: UInt32 { words[0] }
    var completionCount: UInt32 { words[1] }
    var features: UInt32 { words[5] }
    var hasArray: Bool { words[2] & IOUring.Setup.noSubmissionArray == 0 }
    var submissionTail: UInt32 { words[11] }
    var submissionMask: UInt32 { words[12] }
    var array: UInt32 { words[16] }
    var completionHead: UInt32 { words[20] }
    var completionTail: UInt32 { words[21] }
    var completionMask: UInt32 { words[22] }
    var completionEntries: UInt32 { words[25] }
}

/// What a sealed ring may still do. Everything else is -EACCES.
public struct RingSeal: Equatable, Sendable {
    /// Operations of submission entries (IORING_OP_*).
    public var operations: [UInt8]
    /// Operations of io_uring_register(2). At least one: without any, Linux 7.x leaves all of them open.
    public var registerOperations: [UInt8]
    public var flagsAllowed: UInt8
    public var flagsRequired: UInt8

    public init(operations: [UInt8], registerOperations: [UInt8], flagsAllowed: UInt8, flagsRequired: UInt8) {
        self.operations = operations
        self.registerOperations = registerOperations
        self.flagsAllowed = flagsAllowed
        self.flagsRequired = flagsRequired
    }

    /// struct io_uring_restriction, 16 bytes each.
    func encoded() -> [UInt8] {
        var bytes: [UInt8] = []
        func add(_ kind: UInt16, _ value: UInt8) {
            bytes += [UInt8(truncatingIfNeeded: kind), UInt8(kind >> 8), value]
            bytes += [UInt8](repeating: 0, count: 13)
        }
        for operation in operations { add(IOUring.Restriction.entryOperation, operation) }
        for operation in registerOperations { add(IOUring.Restriction.registerOperation, operation) }
        add(IOUring.Restriction.entryFlagsAllowed, flagsAllowed)
        if flagsRequired != 0 { add(IOUring.Restriction.entryFlagsRequired, flagsRequired) }
        return bytes
    }
}

extension Ring {
    /// The ring's own descriptor, for a poller; -1 after `useRegisteredIndex`.
    public var descriptor: Int32 { setup.descriptor }

    /// Gives the ring its file table; submissions with the fixedFile flag name files by index.
    public mutating func register(files: [Int32]) throws(SystemError) {
        try register(IOUring.Register.files, files, "io_uring register files")
    }

    /// Gives the ring a table of `slots` registered buffers, all empty: the ublk driver puts requests' pages there.
    public mutating func registerBufferTable(slots: UInt32) throws(SystemError) {
        // struct io_uring_rsrc_register: number, flags, reserved, data, tags.
        let table: [UInt64] = [UInt64(slots) | UInt64(IOUring.sparseTable) << 32, 0, 0, 0]
        try rawCall("io_uring register buffer table") {
            table.withUnsafeBytes {
                ubd_io_uring_register(
                    enterDescriptor, registerFlags | IOUring.Register.buffers2, $0.baseAddress, UInt32($0.count))
            }
        }
    }

    /// Gives the ring a ring of provided buffers, as group 0: `entries` (a power of two) entries of 16 bytes at `memory`,
    /// which is page-aligned and outlives the ring.
    public mutating func registerBufferRing(memory: UnsafeMutableRawPointer, entries: UInt32) throws(SystemError) {
        // struct io_uring_buf_reg: address, entries, group, flags, reserved.
        let ring: [UInt64] = [UInt64(UInt(bitPattern: memory)), UInt64(entries), 0, 0, 0]
        try rawCall("io_uring register buffer ring") {
            ring.withUnsafeBytes {
                ubd_io_uring_register(
                    enterDescriptor, registerFlags | IOUring.Register.bufferRing, $0.baseAddress, 1)
            }
        }
    }

    /// Bounds the kernel's helper threads for this ring: those for regular files and block devices, and those for all else.
    public mutating func limitWorkers(bounded: UInt32, unbounded: UInt32) throws(SystemError) {
        try register(IOUring.Register.workerLimits, [bounded, unbounded], "io_uring limit workers")
    }

    /// Seals a ring that was created disabled. It can be done once.
    public mutating func restrict(to seal: RingSeal) throws(SystemError) {
        let bytes = seal.encoded()
        try rawCall("io_uring register restrictions") {
            bytes.withUnsafeBytes {
                ubd_io_uring_register(
                    enterDescriptor, registerFlags | IOUring.Register.restrictions, $0.baseAddress,
                    UInt32(bytes.count / 16))
            }
        }
    }

    /// Starts a ring that was created disabled; with SINGLE_ISSUER the calling thread becomes its only user.
    public mutating func enable() throws(SystemError) {
        try rawCall("io_uring enable") {
            ubd_io_uring_register(enterDescriptor, registerFlags | IOUring.Register.enableRings, nil, 0)
        }
    }

    /// Registers the ring's descriptor with this thread and closes it: no descriptor of the ring is left in the process,
    /// and entering is cheaper. Only this thread can use the ring from now on.
    public mutating func useRegisteredIndex() throws(SystemError) {
        // struct io_uring_rsrc_update: offset (-1: any), reserved, data.
        var update: [UInt64] = [UInt64(UInt32.max), UInt64(UInt32(bitPattern: setup.descriptor))]
        try rawCall("io_uring register ring") {
            update.withUnsafeMutableBytes {
                ubd_io_uring_register(enterDescriptor, IOUring.Register.ringDescriptors, $0.baseAddress, 1)
            }
        }
        enterDescriptor = Int32(truncatingIfNeeded: update[0])
        enterFlags |= IOUring.Enter.registeredRing
        close(setup.descriptor)
        setup.descriptor = -1
    }

    /// Tries one register operation and returns what the kernel says: how a worker probes its own seal.
    public func probeRegister(_ operation: UInt32) -> Int {
        ubd_io_uring_register(enterDescriptor, registerFlags | operation, nil, 0)
    }

    private var registerFlags: UInt32 {
        enterFlags & IOUring.Enter.registeredRing != 0 ? IOUring.Register.useRegisteredRing : 0
    }

    private func register<T: BitwiseCopyable>(
        _ operation: UInt32, _ values: [T], _ name: String
    ) throws(SystemError) {
        try rawCall(name) {
            values.withUnsafeBytes {
                ubd_io_uring_register(
                    enterDescriptor, registerFlags | operation, $0.baseAddress, UInt32(values.count))
            }
        }
    }
}

/// Takes from the calling thread the power to make a ring that could do anything (Linux 7.0: an empty task-wide
/// allow-list, kept for its life and by its children). Returns false where the kernel has no such thing.
public func forbidFutureRings() throws(SystemError) -> Bool {
    // struct io_uring_task_restriction: flags, count, reserved; then one entry that allows a register operation only,
    // because a list without register entries would leave all of those open.
    var bytes = [UInt8](repeating: 0, count: 16 + 2 * 16)
    bytes[2] = 2
    bytes[16] = UInt8(IOUring.Restriction.registerOperation)
    bytes[16 + 2] = UInt8(IOUring.Register.enableRings)
    bytes[32] = UInt8(IOUring.Restriction.entryFlagsAllowed)
    let result = bytes.withUnsafeBytes {
        ubd_io_uring_register(-1, IOUring.Register.restrictions, $0.baseAddress, 1)
    }
    switch result {
    case 0: return true
    case -Int(EBADF), -Int(EINVAL): return false
    default: throw SystemError("io_uring task restriction", Int32(-result))
    }
}
