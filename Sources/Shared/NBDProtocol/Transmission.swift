/// The transmission phase of the NBD protocol, with simple replies: the numbers. Everything is big-endian.
///
/// Source: the protocol's document (github.com/NetworkBlockDevice/nbd, proto), sections "Transmission phase" and
/// "Values". Names are those of that document without their prefix.
public enum NBD {
    /// The first word of a request (NBD_REQUEST_MAGIC).
    @inlinable public static var requestMagic: UInt32 { 0x2560_9513 }
    /// The first word of a simple reply (NBD_SIMPLE_REPLY_MAGIC).
    @inlinable public static var simpleReplyMagic: UInt32 { 0x6744_6698 }

    /// Bytes of a request without the data of a write.
    @inlinable public static var requestBytes: Int { 28 }
    /// Bytes of a simple reply without the data of a read.
    @inlinable public static var simpleReplyBytes: Int { 16 }

    /// What a request asks for (NBD_CMD_*). A number and no enumeration, since it is compared for each request and then costs
    /// nothing in another module.
    @frozen
    public struct Command: RawRepresentable, Equatable, BitwiseCopyable, Sendable {
        public let rawValue: UInt16

        @inlinable @inline(__always)
        public init(rawValue: UInt16) { self.rawValue = rawValue }

        @inlinable @inline(__always)
        public static func == (one: Command, other: Command) -> Bool { one.rawValue == other.rawValue }

        @inlinable public static var read: Command { Command(rawValue: 0) }
        @inlinable public static var write: Command { Command(rawValue: 1) }
        /// The client goes; there is no reply.
        @inlinable public static var disconnect: Command { Command(rawValue: 2) }
        @inlinable public static var flush: Command { Command(rawValue: 3) }
        @inlinable public static var trim: Command { Command(rawValue: 4) }
        @inlinable public static var writeZeroes: Command { Command(rawValue: 6) }
    }

    /// Flags of a request (NBD_CMD_FLAG_*).
    public enum CommandFlags {
        /// The reply comes when what was written is on stable storage.
        @inlinable public static var fua: UInt16 { 1 << 0 }
        /// Zeros must not become a hole.
        @inlinable public static var noHole: UInt16 { 1 << 1 }
        /// Zeros that are no quicker than a write are to be refused with ENOTSUP.
        @inlinable public static var fastZero: UInt16 { 1 << 4 }
    }

    /// What a server can do with an export: the transmission flags (NBD_FLAG_*), as NBD_OPT_GO agrees on them.
    public struct ExportFlags: OptionSet, Equatable, Sendable {
        public let rawValue: UInt16
        public init(rawValue: UInt16) { self.rawValue = rawValue }
        /// The others mean something. Always set.
        public static let hasFlags = ExportFlags(rawValue: 1 << 0)
        public static let readOnly = ExportFlags(rawValue: 1 << 1)
        public static let sendFlush = ExportFlags(rawValue: 1 << 2)
        public static let sendFUA = ExportFlags(rawValue: 1 << 3)
        public static let rotational = ExportFlags(rawValue: 1 << 4)
        public static let sendTrim = ExportFlags(rawValue: 1 << 5)
        public static let sendWriteZeroes = ExportFlags(rawValue: 1 << 6)
        public static let sendDF = ExportFlags(rawValue: 1 << 7)
        /// What one connection wrote and flushed is there for the others: an export may have several.
        public static let canMultiConn = ExportFlags(rawValue: 1 << 8)
        public static let sendResize = ExportFlags(rawValue: 1 << 9)
        public static let sendCache = ExportFlags(rawValue: 1 << 10)
        public static let sendFastZero = ExportFlags(rawValue: 1 << 11)
    }

    /// Errors in a reply ("Error values"). They look like Linux's errno, but the numbers are the protocol's own.
    public enum ErrorCode {
        @inlinable public static var none: UInt32 { 0 }
        @inlinable public static var notPermitted: UInt32 { 1 }
        @inlinable public static var io: UInt32 { 5 }
        @inlinable public static var noMemory: UInt32 { 12 }
        @inlinable public static var invalid: UInt32 { 22 }
        @inlinable public static var noSpace: UInt32 { 28 }
        @inlinable public static var overflow: UInt32 { 75 }
        @inlinable public static var notSupported: UInt32 { 95 }
        /// The server is about to end.
        @inlinable public static var shutdown: UInt32 { 108 }
    }

    /// What a server that tells no sizes of blocks has: "Block size constraints".
    public enum BlockSizes {
        /// Bytes.
        public static let defaultMinimum: UInt64 = 1
        public static let defaultPreferred: UInt64 = 4096
        public static let defaultMaximum: UInt64 = 32 << 20
        /// The largest minimum that the document allows.
        public static let largestMinimum: UInt64 = 64 << 10
    }
}

/// One request's 28 bytes: magic, flags, command, cookie, offset, length.
@frozen
public struct NBDRequest: Equatable, Sendable {
    /// The first 8 bytes, as they lie in memory: magic, flags and command.
    @usableFromInline let head: UInt64
    /// Comes back in the reply; means nothing to the server.
    public let cookie: UInt64
    /// Bytes from the start of the export.
    public let offset: UInt64
    /// Bytes.
    public let length: UInt32

    @inlinable @inline(__always)
    public init(_ command: NBD.Command, flags: UInt16 = 0, cookie: UInt64, offset: UInt64, length: UInt32) {
        head =
            (UInt64(NBD.requestMagic) &<< 32 | UInt64(flags) &<< 16 | UInt64(command.rawValue)).bigEndian
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }

    /// Writes the 28 bytes; the place needs no alignment.
    @inlinable @inline(__always)
    public func encode(to bytes: UnsafeMutableRawPointer) {
        bytes.storeBytes(of: head, as: UInt64.self)
        bytes.storeBytes(of: cookie.bigEndian, toByteOffset: 8, as: UInt64.self)
        bytes.storeBytes(of: offset.bigEndian, toByteOffset: 16, as: UInt64.self)
        bytes.storeBytes(of: length.bigEndian, toByteOffset: 24, as: UInt32.self)
    }
}

/// The 16 bytes of a simple reply, before the data of a read.
@frozen
public struct NBDSimpleReply: Equatable, Sendable {
    /// `NBD.ErrorCode`, or any other number: a server can send what it likes.
    public let error: UInt32
    public let cookie: UInt64

    /// Reads 16 bytes, which need no alignment. nil: they are no simple reply, so nothing after them can be understood.
    @inlinable @inline(__always)
    public init?(decoding bytes: UnsafeRawPointer) {
        guard UInt32(bigEndian: bytes.loadUnaligned(as: UInt32.self)) == NBD.simpleReplyMagic else { return nil }
        error = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        cookie = UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
    }
}
