/// The disk that a target makes.
public struct Geometry: Equatable, Sendable {
    public struct Attributes: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let readOnly = Attributes(rawValue: 1 << 0)
        public static let rotational = Attributes(rawValue: 1 << 1)
        /// The target has a cache that FLUSH empties.
        public static let volatileCache = Attributes(rawValue: 1 << 2)
        /// The target honours forced unit access.
        public static let fua = Attributes(rawValue: 1 << 3)
        /// The backing file goes through the page cache.
        public static let buffered = Attributes(rawValue: 1 << 4)
        /// The file's size was not a multiple of the block size: its tail is not on the disk.
        public static let sizeRoundedDown = Attributes(rawValue: 1 << 5)
        /// Direct I/O was not asked away, but the file does not take it.
        public static let directRefused = Attributes(rawValue: 1 << 6)
        /// The file can't be written through this descriptor, so the disk is read-only.
        public static let fileReadOnly = Attributes(rawValue: 1 << 7)
        /// The flags above, and DirectObstacle's three bits.
        static let all: UInt32 = 0x7ff
    }

    /// Why direct I/O is not used, when it was not asked away. It stands in the attributes, from bit 8 on.
    public enum DirectObstacle: UInt32, CaseIterable, Sendable {
        /// The file takes none.
        case file
        /// The file takes it only in blocks larger than the disk's; a disk of 4096-byte blocks would fit.
        case blocks
        /// The file takes it only in blocks larger than a disk can have.
        case largeBlocks
        /// The disk does not begin where a block of the file's direct I/O does.
        case offset
        /// The file wants memory aligned better than users' own is (zero copy).
        case memory
        /// It is not safe on the file's file system (FUSE).
        case fileSystem
    }

    /// Bytes; a multiple of the block size.
    public var size: UInt64
    /// Bytes: 512, 1024, 2048 or 4096.
    public var logicalBlock: UInt32
    /// Bytes; a power of two, at least the logical block, at most 1 MiB.
    public var physicalBlock: UInt32
    public var attributes: Attributes
    /// What keeps direct I/O away; says something only together with the attribute directRefused.
    public var directObstacle: DirectObstacle {
        get { DirectObstacle(rawValue: attributes.rawValue >> 8) ?? .file }
        set { attributes = Attributes(rawValue: attributes.rawValue & 0xff | newValue.rawValue << 8) }
    }
    /// Bytes; 0: no discard.
    public var discardGranularity: UInt32
    /// 512-byte sectors of one discard.
    public var maxDiscardSectors: UInt32
    /// 512-byte sectors of one write-zeroes; 0: none.
    public var maxWriteZeroesSectors: UInt32
    /// The block device behind the disk, zeros when there is none. A worker has no /sys to look up what that device is:
    /// whether it is, or lies on, a ublk disk must be decided from these two numbers by the broker.
    public var backingMajor: UInt32 = 0
    public var backingMinor: UInt32 = 0
    /// The file behind the disk: whoever brings it again after a disaster must bring this one.
    public var file = FileIdentity.none
    /// The worker's own (`PackedVersion`): a claim, to be shown.
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

    /// Checks every bound that the broker relies on: a worker is not believed.
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
