public import CLiburing

/// The io_uring constants that ubd uses: liburing's names where Debian 12's header has them, else the values of Linux
/// 7.3. They are inlinable getters; a stored constant would cost the queue's loop a call.
public enum IOUring {
    /// Operations of a submission entry.
    public enum Operation {
        @inlinable @inline(__always)
        static func number(_ operation: io_uring_op) -> UInt8 { UInt8(truncatingIfNeeded: operation.rawValue) }

        @inlinable public static var nop: UInt8 { number(IORING_OP_NOP) }
        @inlinable public static var fsync: UInt8 { number(IORING_OP_FSYNC) }
        @inlinable public static var readFixed: UInt8 { number(IORING_OP_READ_FIXED) }
        @inlinable public static var writeFixed: UInt8 { number(IORING_OP_WRITE_FIXED) }
        @inlinable public static var asyncCancel: UInt8 { number(IORING_OP_ASYNC_CANCEL) }
        @inlinable public static var fallocate: UInt8 { number(IORING_OP_FALLOCATE) }
        /// Linux 6.7; the header of Debian 12's liburing does not know it.
        @inlinable public static var futexWait: UInt8 { 51 }
        @inlinable public static var timeout: UInt8 { number(IORING_OP_TIMEOUT) }
        @inlinable public static var openAt: UInt8 { number(IORING_OP_OPENAT) }
        @inlinable public static var read: UInt8 { number(IORING_OP_READ) }
        @inlinable public static var write: UInt8 { number(IORING_OP_WRITE) }
        @inlinable public static var readv: UInt8 { number(IORING_OP_READV) }
        @inlinable public static var writev: UInt8 { number(IORING_OP_WRITEV) }
        @inlinable public static var uringCommand: UInt8 { number(IORING_OP_URING_CMD) }
    }

    /// Flags of a submission entry.
    public enum EntryFlags {
        @inlinable public static var fixedFile: UInt8 { 1 << UInt8(IOSQE_FIXED_FILE_BIT) }
        @inlinable public static var link: UInt8 { 1 << UInt8(IOSQE_IO_LINK_BIT) }
        @inlinable public static var async: UInt8 { 1 << UInt8(IOSQE_ASYNC_BIT) }
        /// The kernel picks a buffer for each completion from the group that the entry names.
        @inlinable public static var bufferSelect: UInt8 { 1 << UInt8(IOSQE_BUFFER_SELECT_BIT) }
    }

    /// Flags of io_uring_setup(2).
    public enum Setup {
        @inlinable public static var completionSize: UInt32 { IORING_SETUP_CQSIZE }
        @inlinable public static var disabled: UInt32 { IORING_SETUP_R_DISABLED }
        /// A rejected entry does not stop the submission of the entries after it (Linux 5.18).
        @inlinable public static var submitAll: UInt32 { IORING_SETUP_SUBMIT_ALL }
        @inlinable public static var cooperativeTaskRun: UInt32 { IORING_SETUP_COOP_TASKRUN }
        @inlinable public static var bigEntries: UInt32 { IORING_SETUP_SQE128 }
        @inlinable public static var singleIssuer: UInt32 { IORING_SETUP_SINGLE_ISSUER }
        @inlinable public static var deferTaskRun: UInt32 { IORING_SETUP_DEFER_TASKRUN }
        @inlinable public static var noSubmissionArray: UInt32 { 1 << 16 }
    }

    /// Flags of io_uring_enter(2).
    public enum Enter {
        @inlinable public static var getEvents: UInt32 { IORING_ENTER_GETEVENTS }
        @inlinable public static var registeredRing: UInt32 { IORING_ENTER_REGISTERED_RING }
        /// The wait does not count as a wait for I/O (Linux 6.15, `Feature.noIOWait`).
        @inlinable public static var noIOWait: UInt32 { 1 << 7 }
    }

    /// Features of the kernel's rings: bits of `features` in struct io_uring_params.
    public enum Feature {
        @inlinable public static var noIOWait: UInt32 { 1 << 17 }
    }

    /// Operations of io_uring_register(2).
    public enum Register {
        @inlinable public static var files: UInt32 { UInt32(IORING_REGISTER_FILES) }
        @inlinable public static var personality: UInt32 { UInt32(IORING_REGISTER_PERSONALITY) }
        @inlinable public static var restrictions: UInt32 { UInt32(IORING_REGISTER_RESTRICTIONS) }
        @inlinable public static var enableRings: UInt32 { UInt32(IORING_REGISTER_ENABLE_RINGS) }
        /// Flag in the operation: the descriptor argument is the ring's registered index.
        @inlinable public static var useRegisteredRing: UInt32 { 1 << 31 }
    }

    /// Flags of a completion.
    public enum CompletionFlags {
        /// The kernel picked a buffer; its number is in the upper 16 bits.
        @inlinable public static var buffer: UInt32 { IORING_CQE_F_BUFFER }
        /// The submission will complete again.
        @inlinable public static var more: UInt32 { IORING_CQE_F_MORE }
    }

    /// Flag of a ring's completions: none signals the ring's event (IORING_CQ_EVENTFD_DISABLED).
    @inlinable public static var eventDisabled: UInt32 { IORING_CQ_EVENTFD_DISABLED }

    /// A URING_CMD that completes once for each buffer. Used with EntryFlags.bufferSelect.
    @inlinable public static var multishotCommand: UInt32 { 1 << 1 }

    /// Kinds of struct io_uring_restriction.
    public enum Restriction {
        @inlinable public static var registerOperation: UInt16 { UInt16(IORING_RESTRICTION_REGISTER_OP) }
        @inlinable public static var entryOperation: UInt16 { UInt16(IORING_RESTRICTION_SQE_OP) }
        @inlinable public static var entryFlagsAllowed: UInt16 { UInt16(IORING_RESTRICTION_SQE_FLAGS_ALLOWED) }
        @inlinable public static var entryFlagsRequired: UInt16 { UInt16(IORING_RESTRICTION_SQE_FLAGS_REQUIRED) }
    }

    /// Flags of a read or write (linux/fs.h).
    public enum ReadWrite {
        @inlinable public static var dataSync: UInt32 { 0x2 }
        /// The write ignores O_APPEND on the open file, which another process may set (Linux 6.9).
        @inlinable public static var noAppend: UInt32 { 0x20 }
    }

    @inlinable public static var fsyncDataOnly: UInt32 { IORING_FSYNC_DATASYNC }
    /// Flags of a FUTEX_WAIT, in the entry's file field: FUTEX2_SIZE_U32 and FUTEX2_PRIVATE (linux/futex.h).
    @inlinable public static var privateFutex32: Int32 { 0x82 }
    /// URING_CMD on a block device: discard (linux/blkdev.h, Linux 6.12).
    @inlinable public static var blockDiscard: UInt32 { 0x12 << 8 }
}
