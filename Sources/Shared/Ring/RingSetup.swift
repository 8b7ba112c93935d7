import CLiburing
import Glibc
import KernelABI
import SystemCalls

/// What a ring is made of, and what is done to it before it serves: creation, registrations, the seal. All of it is
/// liburing's; only the queue's push, submit and reap are our own (Ring.swift).
public struct RingSetup: ~Copyable {
    /// `ring_fd` is -1 once the ring is used by its registered index alone.
    var ring: io_uring

    init(entries: UInt32, completions: UInt32, flags: UInt32) throws(SystemError) {
        let base = flags | IOUring.Setup.completionSize
        do {
            ring = try RingSetup.made(entries, completions, base | IOUring.Setup.noSubmissionArray)
        } catch {
            // Before 6.6 there is an index array between the ring and its entries.
            guard error.errno == EINVAL else { throw error }
            ring = try RingSetup.made(entries, completions, base)
            // Slot i always holds entry i: the array is written once and then forgotten.
            for index in 0..<ring.sq.ring_entries { ring.sq.array[Int(index)] = index }
        }
    }

    /// Not io_uring_queue_init_params: liburing 2.3 writes the index array there, which a ring without one has not.
    private static func made(_ entries: UInt32, _ completions: UInt32, _ flags: UInt32) throws(SystemError) -> io_uring
    {
        var parameters = io_uring_params()
        parameters.flags = flags
        parameters.cq_entries = completions
        let descriptor = io_uring_setup(entries, &parameters)
        guard descriptor >= 0 else { throw SystemError("io_uring_setup", -descriptor) }
        var ring = io_uring()
        let status = io_uring_queue_mmap(descriptor, &parameters, &ring)
        guard status == 0 else {
            close(descriptor)
            throw SystemError("map a ring", -status)
        }
        // liburing 2.3 sets them in io_uring_queue_init_params only.
        ring.features = parameters.features
        return ring
    }

    deinit { RingSetup.giveBack(ring) }

    // Swift 6.3.1 fails an assertion when it inlines this into what clients inline.
    @inline(never)
    private static func giveBack(_ ring: io_uring) {
        var ring = ring
        if ring.ring_fd >= 0 { return io_uring_queue_exit(&ring) }
        // That would close a descriptor which is not ours any more; only the memory is left to give back.
        munmap(ring.sq.sqes, Int(ring.sq.ring_entries) * MemoryLayout<io_uring_sqe>.size)
        munmap(ring.sq.ring_ptr, ring.sq.ring_sz)
    }
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

    /// The list that the kernel takes, for io_uring_register_restrictions(3).
    func restrictions() -> [io_uring_restriction] {
        func entry(_ kind: UInt16, _ value: UInt8) -> io_uring_restriction {
            var entry = io_uring_restriction()
            entry.opcode = kind
            // Operation of an entry, operation of register, or flags: one byte of a union.
            entry.sqe_op = value
            return entry
        }
        var list = operations.map { entry(IOUring.Restriction.entryOperation, $0) }
        list += registerOperations.map { entry(IOUring.Restriction.registerOperation, $0) }
        list.append(entry(IOUring.Restriction.entryFlagsAllowed, flagsAllowed))
        if flagsRequired != 0 { list.append(entry(IOUring.Restriction.entryFlagsRequired, flagsRequired)) }
        return list
    }

    /// Restricts a ring that was created disabled, by its descriptor. Returns 0 or a negated errno. Not
    /// io_uring_register_restrictions(3), nor io_uring_enable_rings(3) below: the shared library of liburing 2.3 (Debian 12) does
    /// not export them.
    public func apply(to descriptor: Int32) -> Int32 {
        let list = restrictions()
        let operation = IOUring.Register.restrictions
        return io_uring_register(UInt32(bitPattern: descriptor), operation, list, UInt32(list.count))
    }
}

/// Starts a ring that was created disabled, by its descriptor. Returns 0 or a negated errno.
public func enableRing(_ descriptor: Int32) -> Int32 {
    io_uring_register(UInt32(bitPattern: descriptor), IOUring.Register.enableRings, nil, 0)
}

extension Ring {
    /// The ring's own descriptor, for a poller; -1 after `closeDescriptor`.
    public var descriptor: Int32 { setup.ring.ring_fd }

    /// Gives the ring its file table; submissions with the fixedFile flag name files by index.
    public mutating func register(files: [Int32]) throws(SystemError) {
        try check("io_uring register files", io_uring_register_files(&setup.ring, files, UInt32(files.count)))
    }

    /// Gives the ring a table of `slots` registered buffers, all empty: the ublk driver puts requests' pages there.
    public mutating func registerBufferTable(slots: UInt32) throws(SystemError) {
        try check("io_uring register buffer table", io_uring_register_buffers_sparse(&setup.ring, slots))
    }

    /// Gives the ring a ring of provided buffers, as group 0: `entries` (a power of two) entries of 16 bytes at `memory`,
    /// which is page-aligned and outlives the ring.
    public mutating func registerBufferRing(memory: UnsafeMutableRawPointer, entries: UInt32) throws(SystemError) {
        var group = io_uring_buf_reg()
        group.ring_addr = UInt64(UInt(bitPattern: memory))
        group.ring_entries = entries
        try check("io_uring register buffer ring", io_uring_register_buf_ring(&setup.ring, &group, 0))
    }

    /// Bounds the kernel's helper threads for this ring: those for regular files and block devices, and those for all else.
    public mutating func limitWorkers(bounded: UInt32, unbounded: UInt32) throws(SystemError) {
        var limits = [bounded, unbounded]
        try check("io_uring limit workers", io_uring_register_iowq_max_workers(&setup.ring, &limits))
    }

    /// Registers the ring's descriptor with this thread, which makes entering cheaper. Only before `restrict`, which
    /// forbids it.
    public mutating func registerIndex() throws(SystemError) {
        let count = io_uring_register_ring_fd(&setup.ring)
        guard count == 1 else { throw SystemError("io_uring register ring", count < 0 ? -count : EINVAL) }
        enterDescriptor = setup.ring.enter_ring_fd
        enterFlags |= IOUring.Enter.registeredRing
        enterFlagsForIO |= IOUring.Enter.registeredRing
    }

    /// Keeps the kernel's helper threads for this thread's rings on these processors, one bit each.
    public mutating func placeWorkers(on processors: [UInt64]) throws(SystemError) {
        let status = processors.withUnsafeBytes { mask in
            io_uring_register_iowq_aff(
                &setup.ring, mask.count, mask.baseAddress?.assumingMemoryBound(to: cpu_set_t.self))
        }
        try check("io_uring place workers", status)
    }

    /// Seals a ring that was created disabled. It can be done once.
    public mutating func restrict(to seal: RingSeal) throws(SystemError) {
        try check("io_uring register restrictions", seal.apply(to: setup.ring.ring_fd))
    }

    /// Starts a ring that was created disabled; with SINGLE_ISSUER the calling thread becomes its only user.
    public mutating func enable() throws(SystemError) {
        try check("io_uring enable", enableRing(setup.ring.ring_fd))
    }

    /// Closes the descriptor of a ring whose index is registered: none is left in the process, and only this thread can
    /// use the ring from now on.
    public mutating func closeDescriptor() {
        precondition(enterFlags & IOUring.Enter.registeredRing != 0)
        close(setup.ring.ring_fd)
        setup.ring.ring_fd = -1
    }

    /// Tries one register operation and returns what the kernel says: how a worker probes its own seal.
    public func probeRegister(_ operation: UInt32) -> Int {
        let isRegistered = enterFlags & IOUring.Enter.registeredRing != 0
        let flag = isRegistered ? IOUring.Register.useRegisteredRing : 0
        return Int(io_uring_register(UInt32(bitPattern: enterDescriptor), operation | flag, nil, 0))
    }

    private func check(_ name: String, _ status: Int32) throws(SystemError) {
        guard status >= 0 else { throw SystemError(name, -status) }
    }
}

/// Takes from the calling thread the power to make a ring that could do anything (Linux 7.0: an empty task-wide
/// allow-list, kept for its life and by its children). Returns false where the kernel has no such thing.
public func forbidFutureRings() throws(SystemError) -> Bool {
    // struct io_uring_task_restriction: flags, count, reserved; then one entry that allows a register operation only,
    // because a list without register entries would leave all of those open.
    let nothing = RingSeal(
        operations: [], registerOperations: [UInt8(IOUring.Register.enableRings)], flagsAllowed: 0, flagsRequired: 0)
    let entries = nothing.restrictions()
    var bytes = [UInt8](repeating: 0, count: 16)
    bytes[2] = UInt8(entries.count)
    entries.withUnsafeBytes { bytes += $0 }
    let status = io_uring_register(UInt32.max, IOUring.Register.restrictions, bytes, 1)
    switch status {
    case 0: return true
    case -EBADF, -EINVAL: return false
    default: throw SystemError("io_uring task restriction", -status)
    }
}
