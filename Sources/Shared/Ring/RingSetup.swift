import CLiburing
import Glibc
import KernelABI
import SystemCalls

/// Creates, registers and seals a ring before it serves. liburing does all of this; only push, submit and reap are
/// ubd's own (Ring.swift).
public struct RingSetup: ~Copyable {
    /// `ring_fd` is -1 after `closeDescriptor`; the ring is then used by its registered index.
    var ring: io_uring

    init(entries: UInt32, completions: UInt32, flags: UInt32) throws(SystemError) {
        let base = flags | IOUring.Setup.completionSize
        do {
            ring = try RingSetup.made(entries, completions, base | IOUring.Setup.noSubmissionArray)
        } catch {
            // Before Linux 6.6 an index array maps the ring's slots to entries.
            guard error.errno == EINVAL else { throw error }
            ring = try RingSetup.made(entries, completions, base)
            // Slot i always holds entry i, so the array never changes again.
            for index in 0..<ring.sq.ring_entries { ring.sq.array[Int(index)] = index }
        }
    }

    /// Replaces io_uring_queue_init_params: that of liburing 2.3 writes the index array even if the ring has none.
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
        // liburing 2.3 sets it only in io_uring_queue_init_params.
        ring.features = parameters.features
        return ring
    }

    deinit { RingSetup.giveBack(ring) }

    // Swift 6.3.1 fails an assertion when it inlines this function into inlinable code of clients.
    @inline(never)
    private static func giveBack(_ ring: io_uring) {
        var ring = ring
        if ring.ring_fd >= 0 { return io_uring_queue_exit(&ring) }
        // io_uring_queue_exit would close a descriptor that is no longer ours; only the memory is left to unmap.
        munmap(ring.sq.sqes, Int(ring.sq.ring_entries) * MemoryLayout<io_uring_sqe>.size)
        munmap(ring.sq.ring_ptr, ring.sq.ring_sz)
    }
}

extension RingSeal {
    /// The list for io_uring_register_restrictions(3).
    func restrictions() -> [io_uring_restriction] {
        func entry(_ kind: UInt16, _ value: UInt8) -> io_uring_restriction {
            var entry = io_uring_restriction()
            entry.opcode = kind
            // One byte of a union: an operation of an entry, an operation of register, or flags.
            entry.sqe_op = value
            return entry
        }
        var list = operations.map { entry(IOUring.Restriction.entryOperation, $0) }
        list += registerOperations.map { entry(IOUring.Restriction.registerOperation, $0) }
        list.append(entry(IOUring.Restriction.entryFlagsAllowed, flagsAllowed))
        if flagsRequired != 0 { list.append(entry(IOUring.Restriction.entryFlagsRequired, flagsRequired)) }
        return list
    }

    /// Restricts a ring that was created disabled, by its descriptor. Returns 0 or a negative errno. It uses neither
    /// io_uring_register_restrictions(3) nor, below, io_uring_enable_rings(3), since the shared library of liburing 2.3
    /// (Debian 12) does not export them.
    public func apply(to descriptor: Int32) -> Int32 {
        let list = restrictions()
        let operation = IOUring.Register.restrictions
        return io_uring_register(UInt32(bitPattern: descriptor), operation, list, UInt32(list.count))
    }
}

/// Enables a ring that was created disabled, by its descriptor. Returns 0 or a negative errno.
public func enableRing(_ descriptor: Int32) -> Int32 {
    io_uring_register(UInt32(bitPattern: descriptor), IOUring.Register.enableRings, nil, 0)
}

extension Ring {
    /// The ring's descriptor, for a poller; -1 after `closeDescriptor`.
    public var descriptor: Int32 { setup.ring.ring_fd }

    /// Registers the ring's file table; submissions with the fixedFile flag refer to files by index.
    public mutating func register(files: [Int32]) throws(SystemError) {
        try check("io_uring register files", io_uring_register_files(&setup.ring, files, UInt32(files.count)))
    }

    /// Registers a table of `slots` empty buffers; the ublk driver registers the pages of requests in them.
    public mutating func registerBufferTable(slots: UInt32) throws(SystemError) {
        try check("io_uring register buffer table", io_uring_register_buffers_sparse(&setup.ring, slots))
    }

    /// Registers a ring of provided buffers as group 0: `entries` (a power of two) entries of 16 bytes at `memory`,
    /// which must be page-aligned and outlive the ring.
    public mutating func registerBufferRing(memory: UnsafeMutableRawPointer, entries: UInt32) throws(SystemError) {
        var group = io_uring_buf_reg()
        group.ring_addr = UInt64(UInt(bitPattern: memory))
        group.ring_entries = entries
        try check("io_uring register buffer ring", io_uring_register_buf_ring(&setup.ring, &group, 0))
    }

    /// The kernel signals this eventfd(2) when there are completions.
    public mutating func register(event: Int32) throws(SystemError) {
        try check("io_uring register eventfd", io_uring_register_eventfd(&setup.ring, event))
    }

    /// Limits the kernel's helper threads for this ring: bounded ones serve regular files and block devices, unbounded
    /// ones everything else.
    public mutating func limitWorkers(bounded: UInt32, unbounded: UInt32) throws(SystemError) {
        var limits = [bounded, unbounded]
        try check("io_uring limit workers", io_uring_register_iowq_max_workers(&setup.ring, &limits))
    }

    /// Registers the ring's descriptor with this thread, which makes io_uring_enter cheaper. Call it before `restrict`,
    /// which forbids it.
    public mutating func registerIndex() throws(SystemError) {
        let count = io_uring_register_ring_fd(&setup.ring)
        guard count == 1 else { throw SystemError("io_uring register ring", count < 0 ? -count : EINVAL) }
        enterDescriptor = setup.ring.enter_ring_fd
        enterFlags |= IOUring.Enter.registeredRing
        enterFlagsForIO |= IOUring.Enter.registeredRing
    }

    /// Pins the kernel's helper threads for this thread's rings to these processors, one bit each.
    public mutating func placeWorkers(on processors: [UInt64]) throws(SystemError) {
        let status = processors.withUnsafeBytes { mask in
            io_uring_register_iowq_aff(
                &setup.ring, mask.count, mask.baseAddress?.assumingMemoryBound(to: cpu_set_t.self))
        }
        try check("io_uring place workers", status)
    }

    /// Seals a ring that was created disabled. The kernel allows this once.
    public mutating func restrict(to seal: RingSeal) throws(SystemError) {
        try check("io_uring register restrictions", seal.apply(to: setup.ring.ring_fd))
    }

    /// Enables a ring that was created disabled; with SINGLE_ISSUER only the calling thread can use it from then on.
    public mutating func enable() throws(SystemError) {
        try check("io_uring enable", enableRing(setup.ring.ring_fd))
    }

    /// Closes the descriptor of a ring whose index is registered. Then only this thread can use the ring, and the
    /// process has no descriptor of it.
    public mutating func closeDescriptor() {
        precondition(enterFlags & IOUring.Enter.registeredRing != 0)
        close(setup.ring.ring_fd)
        setup.ring.ring_fd = -1
    }

    /// Attempts a register operation and returns the kernel's result. A worker probes its seal with it.
    public func probeRegister(_ operation: UInt32) -> Int {
        let isRegistered = enterFlags & IOUring.Enter.registeredRing != 0
        let flag = isRegistered ? IOUring.Register.useRegisteredRing : 0
        return Int(io_uring_register(UInt32(bitPattern: enterDescriptor), operation | flag, nil, 0))
    }

    private func check(_ name: String, _ status: Int32) throws(SystemError) {
        guard status >= 0 else { throw SystemError(name, -status) }
    }
}

/// Restricts all rings that the calling thread creates later, so that they can do nothing (Linux 7.0: a task-wide
/// restriction that lasts for the thread's life and is inherited). Returns false when the kernel does not support this.
public func forbidFutureRings() throws(SystemError) -> Bool {
    // struct io_uring_task_restriction (flags, count, reserved), then its entries. One entry allows a register
    // operation, since a list without any would allow all of them.
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
