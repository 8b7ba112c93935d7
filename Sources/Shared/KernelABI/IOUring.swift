/// The numbers of linux/io_uring.h that we use (Linux 7.3; Debian 12's header is older than some of them).
/// Inlinable getters, not stored constants: those would cost the queue's loop a call each.
public enum IOUring {
    /// Operations of a submission entry.
    public enum Operation {
        @inlinable public static var nop: UInt8 { 0 }
        @inlinable public static var fsync: UInt8 { 3 }
        @inlinable public static var readFixed: UInt8 { 4 }
        @inlinable public static var writeFixed: UInt8 { 5 }
        @inlinable public static var asyncCancel: UInt8 { 14 }
        @inlinable public static var fallocate: UInt8 { 17 }
        @inlinable public static var openAt: UInt8 { 18 }
        @inlinable public static var read: UInt8 { 22 }
        @inlinable public static var write: UInt8 { 23 }
        @inlinable public static var uringCommand: UInt8 { 46 }
    }

    /// Flags of a submission entry.
    public enum EntryFlags {
        @inlinable public static var fixedFile: UInt8 { 1 << 0 }
        @inlinable public static var link: UInt8 { 1 << 2 }
        @inlinable public static var async: UInt8 { 1 << 4 }
        /// The kernel takes a buffer of the group that the entry names for each completion.
        @inlinable public static var bufferSelect: UInt8 { 1 << 5 }
    }

    /// Flags of io_uring_setup(2).
    public enum Setup {
        @inlinable public static var completionSize: UInt32 { 1 << 3 }
        @inlinable public static var disabled: UInt32 { 1 << 6 }
        /// One entry that is refused does not keep the ones behind it from being taken (Linux 5.18).
        @inlinable public static var submitAll: UInt32 { 1 << 7 }
        @inlinable public static var cooperativeTaskRun: UInt32 { 1 << 8 }
        @inlinable public static var bigEntries: UInt32 { 1 << 10 }
        @inlinable public static var singleIssuer: UInt32 { 1 << 12 }
        @inlinable public static var deferTaskRun: UInt32 { 1 << 13 }
        @inlinable public static var noSubmissionArray: UInt32 { 1 << 16 }
    }

    /// Flags of io_uring_enter(2).
    public enum Enter {
        @inlinable public static var getEvents: UInt32 { 1 << 0 }
        @inlinable public static var registeredRing: UInt32 { 1 << 4 }
        /// Who sleeps here waits for nothing that counts as I/O (Linux 6.15, `Feature.noIOWait`).
        @inlinable public static var noIOWait: UInt32 { 1 << 7 }
    }

    /// What a ring's kernel has: bits of `features` in struct io_uring_params.
    public enum Feature {
        @inlinable public static var noIOWait: UInt32 { 1 << 17 }
    }

    /// Operations of io_uring_register(2).
    public enum Register {
        @inlinable public static var files: UInt32 { 2 }
        @inlinable public static var personality: UInt32 { 9 }
        @inlinable public static var restrictions: UInt32 { 11 }
        @inlinable public static var enableRings: UInt32 { 12 }
        @inlinable public static var buffers2: UInt32 { 15 }
        @inlinable public static var workerLimits: UInt32 { 19 }
        @inlinable public static var ringDescriptors: UInt32 { 20 }
        @inlinable public static var bufferRing: UInt32 { 22 }
        /// Or-ed to the operation: the ring is named by its registered index.
        @inlinable public static var useRegisteredRing: UInt32 { 1 << 31 }
    }

    /// Flags of a completion.
    public enum CompletionFlags {
        /// A buffer was taken; its number is in the upper 16 bits.
        @inlinable public static var buffer: UInt32 { 1 << 0 }
        /// The submission will complete again.
        @inlinable public static var more: UInt32 { 1 << 1 }
    }

    /// URING_CMD that completes once for each buffer; goes with EntryFlags.bufferSelect.
    @inlinable public static var multishotCommand: UInt32 { 1 << 1 }
    /// BUFFERS2: a table of empty slots.
    @inlinable public static var sparseTable: UInt32 { 1 << 0 }

    /// Kinds of struct io_uring_restriction.
    public enum Restriction {
        @inlinable public static var registerOperation: UInt16 { 0 }
        @inlinable public static var entryOperation: UInt16 { 1 }
        @inlinable public static var entryFlagsAllowed: UInt16 { 2 }
        @inlinable public static var entryFlagsRequired: UInt16 { 3 }
    }

    /// Flags of a read or write (linux/fs.h).
    public enum ReadWrite {
        @inlinable public static var dataSync: UInt32 { 0x2 }
        /// The write goes where it says even when somebody set O_APPEND on the open file (Linux 6.9).
        @inlinable public static var noAppend: UInt32 { 0x20 }
    }

    @inlinable public static var fsyncDataOnly: UInt32 { 1 << 0 }
    /// URING_CMD on a block device: discard (linux/blkdev.h, Linux 6.12).
    @inlinable public static var blockDiscard: UInt32 { 0x12 << 8 }
}
