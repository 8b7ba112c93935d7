/// The numbers of linux/io_uring.h that we use (Linux 7.3; Debian 12's header is older than some of them).
public enum IOUring {
    /// Operations of a submission entry.
    public enum Operation {
        public static let nop: UInt8 = 0
        public static let fsync: UInt8 = 3
        public static let asyncCancel: UInt8 = 14
        public static let fallocate: UInt8 = 17
        public static let openAt: UInt8 = 18
        public static let read: UInt8 = 22
        public static let write: UInt8 = 23
        public static let uringCommand: UInt8 = 46
    }

    /// Flags of a submission entry.
    public enum EntryFlags {
        public static let fixedFile: UInt8 = 1 << 0
    }

    /// Flags of io_uring_setup(2).
    public enum Setup {
        public static let completionSize: UInt32 = 1 << 3
        public static let disabled: UInt32 = 1 << 6
        public static let cooperativeTaskRun: UInt32 = 1 << 8
        public static let bigEntries: UInt32 = 1 << 10
        public static let singleIssuer: UInt32 = 1 << 12
        public static let deferTaskRun: UInt32 = 1 << 13
        public static let noSubmissionArray: UInt32 = 1 << 16
    }

    /// Flags of io_uring_enter(2).
    public enum Enter {
        public static let getEvents: UInt32 = 1 << 0
        public static let registeredRing: UInt32 = 1 << 4
    }

    /// Operations of io_uring_register(2).
    public enum Register {
        public static let files: UInt32 = 2
        public static let personality: UInt32 = 9
        public static let restrictions: UInt32 = 11
        public static let enableRings: UInt32 = 12
        public static let workerLimits: UInt32 = 19
        public static let ringDescriptors: UInt32 = 20
        /// Or-ed to the operation: the ring is named by its registered index.
        public static let useRegisteredRing: UInt32 = 1 << 31
    }

    /// Kinds of struct io_uring_restriction.
    public enum Restriction {
        public static let registerOperation: UInt16 = 0
        public static let entryOperation: UInt16 = 1
        public static let entryFlagsAllowed: UInt16 = 2
        public static let entryFlagsRequired: UInt16 = 3
    }

    /// Flags of a read or write (linux/fs.h).
    public enum ReadWrite {
        public static let dataSync: UInt32 = 0x2
        /// The write goes where it says even when somebody set O_APPEND on the open file (Linux 6.9).
        public static let noAppend: UInt32 = 0x20
    }

    public static let fsyncDataOnly: UInt32 = 1 << 0
    /// URING_CMD on a block device: discard (linux/blkdev.h, Linux 6.12).
    public static let blockDiscard: UInt32 = 0x12 << 8
}
