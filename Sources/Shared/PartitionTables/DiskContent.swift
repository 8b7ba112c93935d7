/// The bytes of a disk, for the readers of tables.
public protocol DiskContent {
    /// Bytes.
    var size: UInt64 { get }

    /// Exactly `count` bytes from `offset` on; the caller asks for none beyond the size.
    ///
    /// - Throws: `PartitionTableError.unreadable`.
    mutating func bytes(at offset: UInt64, count: Int) throws(PartitionTableError) -> [UInt8]
}

extension DiskContent {
    /// Whether the disk has these bytes.
    func has(_ offset: UInt64, _ count: UInt64) -> Bool { offset <= size && count <= size - offset }
}

/// Why a disk's partition table could not be read.
public enum PartitionTableError: Error, Equatable {
    /// The disk has no table.
    case none
    /// A read failed with that errno.
    case unreadable(errno: Int32)
    /// There is a GPT, but the MBR before it does not say so, or is gone. The kernel and sfdisk do not use such a GPT.
    case unprotected(sectorSize: UInt64)
    /// There is a GPT for sectors of 512 bytes and one for sectors of 4096 bytes.
    case ambiguous
    /// What is wrong with the table: continues a sentence that begins with the disk.
    case damaged(String)

    /// Continues a sentence that begins with the disk.
    public var text: String {
        switch self {
        case .none: "has no partition table (GPT or MBR)"
        case .unreadable(let errno): "could not be read (errno \(errno))"
        case .unprotected(let size):
            "has a GPT of \(size)-byte sectors without the protective partition of type ee in the MBR, so nothing says that "
                + "it is in force"
        case .ambiguous:
            "has a GPT of 512-byte sectors and one of 4096-byte sectors, and nothing says which is in force"
        case .damaged(let what): what
        }
    }
}

/// Numbers in a sector. Reads beyond its end give 0.
struct SectorBytes {
    let bytes: [UInt8]

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// A little-endian number of `count` bytes.
    func number(at offset: Int, bytes count: Int) -> UInt64 {
        guard offset + count <= bytes.count else { return 0 }
        return (0..<count).reduce(0) { $0 | UInt64(bytes[offset + $1]) << (8 * UInt64($1)) }
    }

    /// A GUID as text; its first three groups are little-endian (UEFI specification, appendix A).
    func guid(at offset: Int) -> String {
        let order = [3, 2, 1, 0, -1, 5, 4, -1, 7, 6, -1, 8, 9, -1, 10, 11, 12, 13, 14, 15]
        return order.map { place in
            guard place >= 0 else { return "-" }
            let byte = number(at: offset + place, bytes: 1)
            return (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
        }.joined()
    }

    /// CRC-32 as in Ethernet and zlib.
    static func checksum(_ bytes: some Sequence<UInt8>) -> UInt64 {
        var value: UInt32 = .max
        for byte in bytes { value = value >> 8 ^ table[Int(UInt8(truncatingIfNeeded: value) ^ byte)] }
        return UInt64(~value)
    }

    private static let table: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in value >> 1 ^ (value & 1 == 1 ? 0xedb8_8320 : 0) }
    }
}
