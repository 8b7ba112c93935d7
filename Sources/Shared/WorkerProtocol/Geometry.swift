/// The disk that a target provides.
public struct Geometry: Equatable, Sendable {
    public struct Attributes: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let readOnly = Attributes(rawValue: 1 << 0)
        public static let rotational = Attributes(rawValue: 1 << 1)
        /// The target has a cache that FLUSH writes back.
        public static let volatileCache = Attributes(rawValue: 1 << 2)
        /// The target honours forced unit access.
        public static let fua = Attributes(rawValue: 1 << 3)
        /// The backing file is used through the page cache.
        public static let buffered = Attributes(rawValue: 1 << 4)
        /// The file's size is not a multiple of the block size; the disk lacks its tail.
        public static let sizeRoundedDown = Attributes(rawValue: 1 << 5)
        /// The user did not disable direct I/O, but it is impossible (DirectObstacle).
        public static let directRefused = Attributes(rawValue: 1 << 6)
        /// The file's descriptor is not writable, so the disk is read-only.
        public static let fileReadOnly = Attributes(rawValue: 1 << 7)
        /// The flags above and DirectObstacle's three bits.
        static let all: UInt32 = 0x7ff
    }

    /// Why direct I/O is not used although the user did not disable it. Stored in the attributes from bit 8 on.
    public enum DirectObstacle: UInt32, CaseIterable, Sendable {
        /// The file does not support it.
        case file
        /// Its minimum block is larger than the disk's; a disk with 4096-byte blocks would work.
        case blocks
        /// Its minimum block is larger than any disk's.
        case largeBlocks
        /// The disk's offset in the file is not aligned for it.
        case offset
        /// It needs memory better aligned than users' memory is (zero copy).
        case memory
        /// It is not safe on the file's file system (FUSE).
        case fileSystem
    }

    /// Bytes; a multiple of the logical block.
    public var size: UInt64
    /// Bytes: 512, 1024, 2048 or 4096.
    public var logicalBlock: UInt32
    /// Bytes; a power of two, at least the logical block, at most 1 MiB.
    public var physicalBlock: UInt32
    public var attributes: Attributes
    /// Valid only with the attribute directRefused.
    public var directObstacle: DirectObstacle {
        get { DirectObstacle(rawValue: attributes.rawValue >> 8) ?? .file }
        set { attributes = Attributes(rawValue: attributes.rawValue & 0xff | newValue.rawValue << 8) }
    }
    /// Bytes; 0: no discard.
    public var discardGranularity: UInt32
    /// Maximum of one discard, in 512-byte sectors.
    public var maxDiscardSectors: UInt32
    /// Maximum of one write-zeroes, in 512-byte sectors; 0: not supported.
    public var maxWriteZeroesSectors: UInt32
    /// The block device behind the disk; zeros when there is none. The worker has no /sys, so the broker decides from
    /// these numbers whether the device is a ublk disk or depends on one.
    public var backingMajor: UInt32 = 0
    public var backingMinor: UInt32 = 0
    /// The backing file; a later `ubd recover` must bring the same file.
    public var file = FileIdentity.none
    /// The worker's version (`PackedVersion`); unverified, for display only.
    public var version: UInt32 = 0

    public init(
        size: UInt64, logicalBlock: UInt32, physicalBlock: UInt32, attributes: Attributes = [],
        discardGranularity: UInt32 = 0, maxDiscardSectors: UInt32 = 0, maxWriteZeroesSectors: UInt32 = 0
    ) {
        self.size = size
        self.logicalBlock = logicalBlock
        self.physicalBlock = physicalBlock
        self.attributes = attributes
        self.discardGranularity = discardGranularity
        self.maxDiscardSectors = maxDiscardSectors
        self.maxWriteZeroesSectors = maxWriteZeroesSectors
    }

    func encode(to writer: inout ByteWriter) {
        writer.put(size)
        writer.put(logicalBlock)
        writer.put(physicalBlock)
        writer.put(attributes.rawValue)
        writer.put(discardGranularity)
        writer.put(maxDiscardSectors)
        writer.put(maxWriteZeroesSectors)
        writer.put(backingMajor)
        writer.put(backingMinor)
        writer.put(version)
        writer.put(file.device)
        writer.put(file.inode)
        writer.put(file.born)
    }

    /// Checks every limit that the broker relies on, since a worker is not trusted.
    init?(from reader: inout ByteReader) {
        size = reader.get()
        logicalBlock = reader.get()
        physicalBlock = reader.get()
        attributes = Attributes(rawValue: reader.get())
        discardGranularity = reader.get()
        maxDiscardSectors = reader.get()
        maxWriteZeroesSectors = reader.get()
        backingMajor = reader.get()
        backingMinor = reader.get()
        version = reader.get()
        file = FileIdentity(device: reader.get(), inode: reader.get(), born: reader.get())
        guard reader.intact,
            [512, 1024, 2048, 4096].contains(logicalBlock),
            physicalBlock.nonzeroBitCount == 1, physicalBlock >= logicalBlock, physicalBlock <= 1 << 20,
            size > 0, size.isMultiple(of: UInt64(logicalBlock)), size <= UInt64(Int64.max),
            attributes.rawValue <= Attributes.all, DirectObstacle(rawValue: attributes.rawValue >> 8) != nil,
            discardGranularity == 0 || discardGranularity.isMultiple(of: logicalBlock),
            (discardGranularity == 0) == (maxDiscardSectors == 0)
        else { return nil }
    }
}
