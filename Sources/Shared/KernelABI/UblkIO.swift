/// The commands of a queue: URING_CMDs on /dev/ublkcN (linux/ublk_cmd.h), ioctl-encoded (Linux 6.4 and later).
public enum UblkIOCommand {
    /// Bytes of struct ublksrv_io_cmd: they fit a 64-byte submission entry.
    @inlinable public static var payloadBytes: UInt32 { 16 }
    @inlinable public static var fetch: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x20, size: payloadBytes)
    }
    @inlinable public static var commitAndFetch: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x21, size: payloadBytes)
    }
    /// The same for drivers before Linux 6.4.
    @inlinable public static var legacyFetch: UInt32 { 0x20 }
    @inlinable public static var legacyCommitAndFetch: UInt32 { 0x21 }

    /// First half of struct ublksrv_io_cmd: queue, tag, result. The second half is the buffer's address.
    @inlinable @inline(__always)
    public static func payload(queue: UInt16, tag: UInt16, result: Int32) -> UInt64 {
        UInt64(queue) | UInt64(tag) << 16 | UInt64(UInt32(bitPattern: result)) << 32
    }

    // With BATCH_IO (Linux 7.0) these take the place of fetch and commitAndFetch, for many tags each.

    /// Bytes of struct ublk_batch_io.
    @inlinable public static var batchPayloadBytes: UInt32 { 16 }
    /// Gives the driver the tags, once.
    @inlinable public static var prepareMany: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x25, size: batchPayloadBytes)
    }
    /// Gives requests back. Completes with the bytes of the list that were handled.
    @inlinable public static var commitMany: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x26, size: batchPayloadBytes)
    }
    /// Completes with a provided buffer full of tags, again and again.
    @inlinable public static var fetchMany: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x27, size: batchPayloadBytes)
    }
    /// Flag of a list: each element has its buffer's address (UBLK_BATCH_F_HAS_BUF_ADDR).
    @inlinable public static var batchHasAddress: UInt16 { 1 << 1 }

    /// First half of struct ublk_batch_io; the second is reserved. `elementBytes`: 8, 16 with an address, 2 for a fetch.
    @inlinable @inline(__always)
    public static func batchPayload(queue: UInt16, flags: UInt16, count: UInt16, elementBytes: UInt8) -> UInt64 {
        UInt64(queue) | UInt64(flags) << 16 | UInt64(count) << 32 | UInt64(elementBytes) << 48
    }

    /// struct ublk_elem_header: one request of a list. `buffer` is where the next request's pages are to be registered.
    @inlinable @inline(__always)
    public static func batchElement(tag: UInt16, buffer: UInt16, result: Int32) -> UInt64 {
        UInt64(tag) | UInt64(buffer) << 16 | UInt64(UInt32(bitPattern: result)) << 32
    }

    /// A fetch completes with this when the device goes away: no new fetch is accepted for the tag.
    @inlinable public static var abortedResult: Int32 { -19 }  // -ENODEV
}

/// struct ublksrv_io_desc: one request as the driver wrote it to the shared page, read by tag. 24 bytes.
@frozen
public struct UblkIODescriptor: Equatable, Sendable {
    /// Operation in bits 0-7, flags above.
    public var operationAndFlags: UInt32
    /// 512-byte sectors.
    public var sectors: UInt32
    /// 512-byte sectors from the start of the disk.
    public var startSector: UInt64
    public var address: UInt64

    @inlinable
    public init(operationAndFlags: UInt32, sectors: UInt32, startSector: UInt64, address: UInt64 = 0) {
        self.operationAndFlags = operationAndFlags
        self.sectors = sectors
        self.startSector = startSector
        self.address = address
    }

    @inlinable @inline(__always)
    public var operation: UInt8 { UInt8(truncatingIfNeeded: operationAndFlags) }

    @inlinable @inline(__always)
    public var forceUnitAccess: Bool { operationAndFlags & (1 << 13) != 0 }

    /// WRITE_ZEROES only: the blocks must stay allocated.
    @inlinable @inline(__always)
    public var mustNotUnmap: Bool { operationAndFlags & (1 << 15) != 0 }
}

/// Operations of a request (UBLK_IO_OP_*).
public enum UblkIOOperation {
    @inlinable public static var read: UInt8 { 0 }
    @inlinable public static var write: UInt8 { 1 }
    @inlinable public static var flush: UInt8 { 2 }
    @inlinable public static var discard: UInt8 { 3 }
    @inlinable public static var writeZeroes: UInt8 { 5 }
}

/// Where a queue's descriptors lie in the mapping of /dev/ublkcN: each queue has room for the deepest possible queue.
public enum UblkDescriptorMapping {
    /// Bytes from the start of the file. `pageSize` in bytes.
    public static func offset(queue: Int, pageSize: Int) -> Int {
        queue * roundUp(UblkLimits.maxDepth * MemoryLayout<UblkIODescriptor>.stride, to: pageSize)
    }

    /// Bytes to map for one queue.
    public static func length(depth: Int, pageSize: Int) -> Int {
        roundUp(depth * MemoryLayout<UblkIODescriptor>.stride, to: pageSize)
    }

    private static func roundUp(_ value: Int, to unit: Int) -> Int { (value + unit - 1) / unit * unit }
}
