/// The commands of a queue: URING_CMDs on /dev/ublkcN (linux/ublk_cmd.h), ioctl-encoded (Linux 6.4 and later).
public enum UblkIOCommand {
    /// The size of struct ublksrv_io_cmd in bytes; it fits into a 64-byte submission entry.
    @inlinable public static var payloadBytes: UInt32 { 16 }
    @inlinable public static var fetch: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x20, size: payloadBytes)
    }
    @inlinable public static var commitAndFetch: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x21, size: payloadBytes)
    }
    /// For drivers before Linux 6.4.
    @inlinable public static var legacyFetch: UInt32 { 0x20 }
    @inlinable public static var legacyCommitAndFetch: UInt32 { 0x21 }

    /// The first half of struct ublksrv_io_cmd: queue, tag, result. The second half is the buffer's address.
    @inlinable @inline(__always)
    public static func payload(queue: UInt16, tag: UInt16, result: Int32) -> UInt64 {
        UInt64(queue) | UInt64(tag) << 16 | UInt64(UInt32(bitPattern: result)) << 32
    }

    // With BATCH_IO (Linux 7.0) these replace fetch and commitAndFetch; each handles many tags.

    /// The size of struct ublk_batch_io in bytes.
    @inlinable public static var batchPayloadBytes: UInt32 { 16 }
    /// Hands all tags to the driver, once.
    @inlinable public static var prepareMany: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x25, size: batchPayloadBytes)
    }
    /// Commits requests. The result is the number of bytes of the list that the driver handled.
    @inlinable public static var commitMany: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x26, size: batchPayloadBytes)
    }
    /// Completes repeatedly, each time with a provided buffer of tags.
    @inlinable public static var fetchMany: UInt32 {
        encodeIoctl(direction: 3, type: UInt8(ascii: "u"), number: 0x27, size: batchPayloadBytes)
    }
    /// Flag of a list: each element carries its buffer's address (UBLK_BATCH_F_HAS_BUF_ADDR).
    @inlinable public static var batchHasAddress: UInt16 { 1 << 1 }

    /// The first half of struct ublk_batch_io; the second half is reserved. `elementBytes`: 8, 16 with an address, 2
    /// for a fetch.
    @inlinable @inline(__always)
    public static func batchPayload(queue: UInt16, flags: UInt16, count: UInt16, elementBytes: UInt8) -> UInt64 {
        UInt64(queue) | UInt64(flags) << 16 | UInt64(count) << 32 | UInt64(elementBytes) << 48
    }

    /// struct ublk_elem_header: one request of a list. `buffer` is the slot where the driver registers the next
    /// request's pages.
    @inlinable @inline(__always)
    public static func batchElement(tag: UInt16, buffer: UInt16, result: Int32) -> UInt64 {
        UInt64(tag) | UInt64(buffer) << 16 | UInt64(UInt32(bitPattern: result)) << 32
    }

    /// The result of a fetch when the device goes away. The driver accepts no new fetch for its tag.
    @inlinable public static var abortedResult: Int32 { -19 }  // -ENODEV
}

/// struct ublksrv_io_desc, 24 bytes: a request in the page that the driver shares, indexed by tag.
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

/// The location of a queue's descriptors in the mapping of /dev/ublkcN. Each queue has room for the maximum depth.
public enum UblkDescriptorMapping {
    /// Offset in the file, in bytes. `pageSize` is in bytes.
    public static func offset(queue: Int, pageSize: Int) -> Int {
        queue * roundUp(UblkLimits.maxDepth * MemoryLayout<UblkIODescriptor>.stride, to: pageSize)
    }

    /// Length of one queue's mapping, in bytes.
    public static func length(depth: Int, pageSize: Int) -> Int {
        roundUp(depth * MemoryLayout<UblkIODescriptor>.stride, to: pageSize)
    }

    private static func roundUp(_ value: Int, to unit: Int) -> Int { (value + unit - 1) / unit * unit }
}
