/// struct ublk_params, the disk's description for SET_PARAMS, in the layout of Linux 7.3 (152 bytes). Older drivers
/// copy the part that they know.
public struct UblkParameters: Equatable, Sendable {
    public static let encodedBytes = 152

    public struct Attributes: OptionSet, Sendable {
        public let rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let readOnly = Attributes(rawValue: 1 << 0)
        public static let rotational = Attributes(rawValue: 1 << 1)
        /// The disk has a write cache: the kernel sends FLUSH.
        public static let volatileCache = Attributes(rawValue: 1 << 2)
        /// The kernel honours it only together with volatileCache.
        public static let fua = Attributes(rawValue: 1 << 3)
    }

    public struct Discard: Equatable, Sendable {
        /// Bytes.
        public var alignment: UInt32 = 0
        /// Bytes.
        public var granularity: UInt32
        /// 512-byte sectors.
        public var maxDiscardSectors: UInt32
        /// 512-byte sectors.
        public var maxWriteZeroesSectors: UInt32
        public var maxSegments: UInt16 = 1

        public init(granularity: UInt32, maxDiscardSectors: UInt32, maxWriteZeroesSectors: UInt32) {
            self.granularity = granularity
            self.maxDiscardSectors = maxDiscardSectors
            self.maxWriteZeroesSectors = maxWriteZeroesSectors
        }
    }

    /// The device numbers of both nodes. START_DEV sets the disk's.
    public struct Nodes: Equatable, Sendable {
        public var charMajor: UInt32 = 0
        public var charMinor: UInt32 = 0
        public var diskMajor: UInt32 = 0
        public var diskMinor: UInt32 = 0
    }

    public var attributes: Attributes = []
    /// Each is log2 of a number of bytes.
    public var logicalBlockShift: UInt8 = 9
    public var physicalBlockShift: UInt8 = 9
    public var optimalIOShift: UInt8 = 12
    public var minimumIOShift: UInt8 = 9
    /// Maximum size of a request, in 512-byte sectors.
    public var maxSectors: UInt32 = 0
    public var chunkSectors: UInt32 = 0
    /// Size of the disk, in 512-byte sectors.
    public var diskSectors: UInt64 = 0
    public var virtualBoundaryMask: UInt64 = 0
    public var discard: Discard?
    /// Only GET_PARAMS sets it.
    public var nodes: Nodes?
    /// Required alignment of a request's memory minus one, in bytes.
    public var dmaAlignmentMask: UInt32?

    public init() {}

    private enum TypeBit {
        static let basic: UInt32 = 1 << 0
        static let discard: UInt32 = 1 << 1
        static let nodes: UInt32 = 1 << 2
        static let dmaAlignment: UInt32 = 1 << 4
    }

    /// The struct's bytes for SET_PARAMS.
    public func encoded() -> [UInt8] {
        var types = TypeBit.basic
        var bytes = [UInt8](repeating: 0, count: UblkParameters.encodedBytes)
        bytes.withUnsafeMutableBytes { raw in
            func put<T>(_ value: T, _ offset: Int) { raw.storeBytes(of: value, toByteOffset: offset, as: T.self) }
            put(UInt32(raw.count), 0)
            put(attributes.rawValue, 8)
            put(logicalBlockShift, 12)
            put(physicalBlockShift, 13)
            put(optimalIOShift, 14)
            put(minimumIOShift, 15)
            put(maxSectors, 16)
            put(chunkSectors, 20)
            put(diskSectors, 24)
            put(virtualBoundaryMask, 32)
            if let discard {
                types |= TypeBit.discard
                put(discard.alignment, 40)
                put(discard.granularity, 44)
                put(discard.maxDiscardSectors, 48)
                put(discard.maxWriteZeroesSectors, 52)
                put(discard.maxSegments, 56)
            }
            if let dmaAlignmentMask {
                types |= TypeBit.dmaAlignment
                put(dmaAlignmentMask, 108)
            }
            put(types, 4)
        }
        return bytes
    }

    /// A buffer for GET_PARAMS; its first word is its length.
    public static func emptyBuffer() -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: encodedBytes)
        bytes.withUnsafeMutableBytes {
            $0.storeBytes(of: UInt32(encodedBytes), toByteOffset: 0, as: UInt32.self)
        }
        return bytes
    }

    /// Decodes the result of GET_PARAMS. `bytes` has encodedBytes bytes.
    public init(decoding bytes: [UInt8]) {
        precondition(bytes.count == UblkParameters.encodedBytes)
        bytes.withUnsafeBytes { raw in
            func get<T: FixedWidthInteger>(_ offset: Int) -> T { raw.loadUnaligned(fromByteOffset: offset, as: T.self) }
            let types: UInt32 = get(4)
            attributes = Attributes(rawValue: get(8))
            logicalBlockShift = get(12)
            physicalBlockShift = get(13)
            optimalIOShift = get(14)
            minimumIOShift = get(15)
            maxSectors = get(16)
            chunkSectors = get(20)
            diskSectors = get(24)
            virtualBoundaryMask = get(32)
            if types & TypeBit.discard != 0 {
                var value = Discard(
                    granularity: get(44), maxDiscardSectors: get(48), maxWriteZeroesSectors: get(52))
                value.alignment = get(40)
                value.maxSegments = get(56)
                discard = value
            }
            if types & TypeBit.nodes != 0 {
                nodes = Nodes(charMajor: get(60), charMinor: get(64), diskMajor: get(68), diskMinor: get(72))
            }
            if types & TypeBit.dmaAlignment != 0 { dmaAlignmentMask = get(108) }
        }
    }
}
