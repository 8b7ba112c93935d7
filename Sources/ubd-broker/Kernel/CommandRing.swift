import CLiburing
import Glibc
import KernelABI
import Ring
import SystemCalls

/// A ring of 128-byte entries, sealed to URING_CMD on one file and ASYNC_CANCEL. It uses liburing throughout, since the
/// broker sends few commands.
struct CommandRing: ~Copyable {
    private var ring: io_uring

    /// Errors: EPERM when io_uring is forbidden.
    init(entries: UInt32, file: Int32) throws(SystemError) {
        // `ring` is set last, when nothing can fail any more, since deinit expects a complete ring.
        var made = io_uring()
        var parameters = io_uring_params()
        parameters.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SQE128
        try CommandRing.check("io_uring_setup", io_uring_queue_init_params(entries, &made, &parameters))
        do throws(SystemError) {
            try CommandRing.seal(&made, file)
        } catch {
            io_uring_queue_exit(&made)
            throw error
        }
        ring = made
    }

    private static func seal(_ ring: inout io_uring, _ file: Int32) throws(SystemError) {
        var file = file
        try CommandRing.check("io_uring register files", io_uring_register_files(&ring, &file, 1))
        // A command that hangs occupies a helper thread of the kernel; by default there are only a few per processor.
        var workers: [UInt32] = [1024, 1024]
        try CommandRing.check("io_uring limit workers", io_uring_register_iowq_max_workers(&ring, &workers))
        let seal = RingSeal(
            operations: [IOUring.Operation.uringCommand, IOUring.Operation.asyncCancel],
            registerOperations: [UInt8(IOUring.Register.enableRings)],
            flagsAllowed: 0, flagsRequired: IOUring.EntryFlags.fixedFile)
        try CommandRing.check("io_uring register restrictions", seal.apply(to: ring.ring_fd))
        try CommandRing.check("io_uring enable", enableRing(ring.ring_fd))
    }

    deinit {
        var ring = ring
        io_uring_queue_exit(&ring)
    }

    /// The ring's descriptor, for a poller.
    var descriptor: Int32 { ring.ring_fd }

    /// Queues a command with its 32 bytes. Returns false when the ring is full.
    mutating func push(code: UInt32, _ command: UblkControlCommand, userData: UInt64) -> Bool {
        guard let entry = io_uring_get_sqe(&ring) else { return false }
        // 0 is the index of the registered file. io_uring_prep_rw(3) clears the rest of the first 64 bytes.
        io_uring_prep_rw(CInt(IORING_OP_URING_CMD.rawValue), entry, 0, nil, 0, UInt64(code))
        entry.pointee.flags = IOUring.EntryFlags.fixedFile
        entry.pointee.user_data = userData
        // The command area begins at byte 48 of the entry; Swift imports it as an array without elements.
        UnsafeMutableRawPointer(entry).storeBytes(of: command, toByteOffset: 48, as: UblkControlCommand.self)
        return true
    }

    /// Asks the kernel to cancel the command with this user data. Returns false when the ring is full.
    mutating func pushCancel(of userData: UInt64) -> Bool {
        guard let entry = io_uring_get_sqe(&ring) else { return false }
        io_uring_prep_cancel64(entry, userData, 0)
        entry.pointee.flags = IOUring.EntryFlags.fixedFile
        entry.pointee.user_data = 0
        return true
    }

    /// Submits the queued entries and waits for `count` completions. Entries that the kernel does not consume stay
    /// queued. Returns the number consumed or a negative errno.
    mutating func submit(waitingFor count: UInt32 = 0) -> Int32 {
        count == 0 ? io_uring_submit(&ring) : io_uring_submit_and_wait(&ring, count)
    }

    /// The next completion that has arrived; nil when there is none.
    mutating func take() -> (userData: UInt64, result: Int32)? {
        var entry: UnsafeMutablePointer<io_uring_cqe>?
        guard io_uring_peek_cqe(&ring, &entry) == 0, let entry else { return nil }
        defer { io_uring_cqe_seen(&ring, entry) }
        return (entry.pointee.user_data, entry.pointee.res)
    }

    private static func check(_ name: String, _ status: Int32) throws(SystemError) {
        guard status >= 0 else { throw SystemError(name, -status) }
    }
}
