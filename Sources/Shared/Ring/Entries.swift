import KernelABI

/// One submission: the first 64 bytes of struct io_uring_sqe as eight words, so that filling it takes eight stores.
@frozen
public struct SubmissionEntry: Equatable, Sendable {
    @usableFromInline var word0: UInt64
    @usableFromInline var word1: UInt64
    @usableFromInline var word2: UInt64
    @usableFromInline var word3: UInt64
    @usableFromInline var word4: UInt64
    @usableFromInline var word5: UInt64
    @usableFromInline var word6: UInt64
    @usableFromInline var word7: UInt64

    /// The completion carries the same value.
    @inlinable @inline(__always)
    public var userData: UInt64 { word4 }

    /// `file` is an index into the ring's file table if `flags` has fixedFile. Offsets and lengths are in bytes.
    @inlinable @inline(__always)
    public init(
        operation: UInt8, flags: UInt8 = IOUring.EntryFlags.fixedFile, file: Int32, offset: UInt64 = 0,
        address: UInt64 = 0, length: UInt32 = 0, operationFlags: UInt32 = 0, userData: UInt64,
        bufferIndex: UInt16 = 0, word6: UInt64 = 0, word7: UInt64 = 0
    ) {
        word0 = UInt64(operation) | UInt64(flags) << 8 | UInt64(UInt32(bitPattern: file)) << 32
        word1 = offset
        word2 = address
        word3 = UInt64(length) | UInt64(operationFlags) << 32
        word4 = userData
        word5 = UInt64(bufferIndex)
        self.word6 = word6
        self.word7 = word7
    }

    /// A read or write. `head` is the first word (see `head(operation:flags:file:)`), `operationFlags` is one of
    /// IOUring.ReadWrite. For READ_FIXED and WRITE_FIXED `address` is an offset into the registered buffer
    /// `bufferIndex`; other operations ignore the index.
    @inlinable @inline(__always)
    public static func transfer(
        head: UInt64, address: UInt64, length: UInt32, offset: UInt64, operationFlags: UInt32, userData: UInt64,
        bufferIndex: UInt16 = 0
    ) -> SubmissionEntry {
        var entry = SubmissionEntry(
            operation: 0, flags: 0, file: 0, offset: offset, address: address, length: length,
            operationFlags: operationFlags, userData: userData, bufferIndex: bufferIndex)
        entry.word0 = head
        return entry
    }

    @inlinable @inline(__always)
    public static func read(
        file: Int32, into address: UInt64, length: UInt32, offset: UInt64, userData: UInt64
    ) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.read, file: file, offset: offset, address: address, length: length,
            userData: userData)
    }

    /// `flags`: IOUring.ReadWrite.
    @inlinable @inline(__always)
    public static func write(
        file: Int32, from address: UInt64, length: UInt32, offset: UInt64, flags: UInt32, userData: UInt64
    ) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.write, file: file, offset: offset, address: address, length: length,
            operationFlags: flags, userData: userData)
    }

    @inlinable @inline(__always)
    public static func syncData(file: Int32, userData: UInt64) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.fsync, file: file, operationFlags: IOUring.fsyncDataOnly, userData: userData)
    }

    /// fallocate(2): the kernel reads `bytes` from the address field and `mode` from the length field.
    @inlinable @inline(__always)
    public static func allocate(
        file: Int32, mode: Int32, offset: UInt64, bytes: UInt64, userData: UInt64
    ) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.fallocate, file: file, offset: offset, address: bytes,
            length: UInt32(bitPattern: mode), userData: userData)
    }

    /// Completes when another thread wakes the private 32-bit word at `address`, or at once with EAGAIN when the word
    /// is not `value` (futex(2)). It uses no file; it has the fixedFile flag only because the seal requires it of every
    /// entry.
    @inlinable
    public static func waitForWord(address: UInt64, value: UInt32, userData: UInt64) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.futexWait, file: IOUring.privateFutex32, offset: UInt64(value),
            address: address, userData: userData, word6: UInt64(UInt32.max))
    }

    /// Completes with ETIME after the time at `address` (struct __kernel_timespec, 16 bytes, which the kernel copies when it takes the
    /// entry). As `waitForWord` it uses no file.
    @inlinable
    public static func timeout(address: UInt64, userData: UInt64) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.timeout, file: 0, address: address, length: 1, userData: userData)
    }

    /// A URING_CMD whose command area holds 16 bytes, as ublk's queue commands do.
    @inlinable @inline(__always)
    public static func command(
        _ command: UInt32, file: Int32, payload: UInt64, address: UInt64, userData: UInt64
    ) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.uringCommand, file: file, offset: UInt64(command), userData: userData,
            word6: payload, word7: address)
    }

    /// The same with `head` as first word. `entryAddress` and `length` fill the entry's own fields, which some commands
    /// read: the place to register a request's pages, or a list.
    @inlinable @inline(__always)
    public static func command(
        head: UInt64, _ command: UInt32, payload: UInt64, address: UInt64, userData: UInt64,
        entryAddress: UInt64 = 0, length: UInt32 = 0
    ) -> SubmissionEntry {
        var entry = SubmissionEntry(
            operation: 0, flags: 0, file: 0, offset: UInt64(command), address: entryAddress, length: length,
            userData: userData, word6: payload, word7: address)
        entry.word0 = head
        return entry
    }

    /// A URING_CMD that completes once for each buffer of group `bufferGroup`. `head` has the flag bufferSelect.
    @inlinable
    public static func multishotCommand(
        head: UInt64, _ command: UInt32, payload: UInt64, bufferGroup: UInt16, userData: UInt64
    ) -> SubmissionEntry {
        var entry = SubmissionEntry(
            operation: 0, flags: 0, file: 0, offset: UInt64(command), operationFlags: IOUring.multishotCommand,
            userData: userData, bufferIndex: bufferGroup, word6: payload)
        entry.word0 = head
        return entry
    }

    /// An entry's first word: operation, flags and file.
    @inlinable
    public static func head(operation: UInt8, flags: UInt8, file: Int32) -> UInt64 {
        SubmissionEntry(operation: operation, flags: flags, file: file, userData: 0).word0
    }

    /// Discards a range of a block device (BLOCK_URING_CMD_DISCARD: start in addr, bytes in addr3).
    @inlinable @inline(__always)
    public static func discardBlocks(
        file: Int32, offset: UInt64, bytes: UInt64, userData: UInt64
    ) -> SubmissionEntry {
        SubmissionEntry(
            operation: IOUring.Operation.uringCommand, file: file, offset: UInt64(IOUring.blockDiscard),
            address: offset, userData: userData, word6: bytes)
    }
}

/// One completion: struct io_uring_cqe.
@frozen
public struct CompletionEntry: Equatable, Sendable {
    public var userData: UInt64
    /// A count, or a negative errno.
    public var result: Int32
    public var flags: UInt32

    @inlinable
    public init(userData: UInt64, result: Int32, flags: UInt32) {
        self.userData = userData
        self.result = result
        self.flags = flags
    }
}
