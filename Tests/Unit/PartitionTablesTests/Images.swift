@testable import PartitionTables

/// A disk in memory that counts what is read of it.
struct MemoryDisk: DiskContent {
    var bytes: [UInt8]
    /// The size that it pretends to have; its end is zeros then.
    var size: UInt64
    var reads = 0

    init(_ bytes: [UInt8], size: UInt64? = nil) {
        self.bytes = bytes
        self.size = size ?? UInt64(bytes.count)
    }

    mutating func bytes(at offset: UInt64, count: Int) throws(PartitionTableError) -> [UInt8] {
        precondition(offset <= size && UInt64(count) <= size - offset, "read beyond the end")
        reads += 1
        let start = min(offset, UInt64(bytes.count))
        let there = bytes[Int(start)..<Int(min(start + UInt64(count), UInt64(bytes.count)))]
        return there + [UInt8](repeating: 0, count: count - there.count)
    }

    /// The table, read from a fresh copy.
    func table(_ sectorSize: UInt64? = nil) throws(PartitionTableError) -> PartitionTable {
        var disk = self
        return try PartitionTable.read(&disk, sectorSize: sectorSize)
    }
}

extension [UInt8] {
    mutating func put(_ number: UInt64, at offset: Int, bytes count: Int) {
        for index in 0..<count { self[offset + index] = UInt8(truncatingIfNeeded: number >> (8 * UInt64(index))) }
    }
}

/// A GPT that a test makes byte by byte, with what a hostile one would have.
struct GPTImage {
    var sectorSize = 512
    var sectors = 4096
    /// First and last sector, by number from 1 on.
    var partitions: [(first: UInt64, last: UInt64, name: String)] = []
    var entrySize = 128
    var entryCount = 128
    var hasProtection = true
    /// Differs in the backup when the backup is of another table.
    var disk: UInt8 = 1
    var firstUsable: UInt64?
    var lastUsable: UInt64?

    var entrySectors: Int { (entrySize * entryCount + sectorSize - 1) / sectorSize }

    private var entries: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: entrySectors * sectorSize)
        for (index, partition) in partitions.enumerated() {
            let start = index * entrySize
            // 0FC63DAF-8483-4772-8E79-3D69D8477DE4: Linux.
            let type: [UInt8] = [
                0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4,
            ]
            bytes.replaceSubrange(start..<start + 16, with: type)
            bytes.put(partition.first, at: start + 32, bytes: 8)
            bytes.put(partition.last, at: start + 40, bytes: 8)
            for (place, unit) in partition.name.utf16.enumerated() {
                bytes.put(UInt64(unit), at: start + 56 + 2 * place, bytes: 2)
            }
        }
        return bytes
    }

    func header(at place: UInt64, alternate: UInt64, entriesAt: UInt64) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: sectorSize)
        bytes.replaceSubrange(0..<8, with: GPTHeader.signature)
        bytes.put(0x10000, at: 8, bytes: 4)
        bytes.put(92, at: 12, bytes: 4)
        bytes.put(place, at: 24, bytes: 8)
        bytes.put(alternate, at: 32, bytes: 8)
        bytes.put(firstUsable ?? UInt64(2 + entrySectors), at: 40, bytes: 8)
        bytes.put(lastUsable ?? UInt64(sectors - 2 - entrySectors), at: 48, bytes: 8)
        bytes[56] = disk
        bytes.put(entriesAt, at: 72, bytes: 8)
        bytes.put(UInt64(entryCount), at: 80, bytes: 4)
        bytes.put(UInt64(entrySize), at: 84, bytes: 4)
        bytes.put(SectorBytes.checksum(entries[..<(entrySize * entryCount)]), at: 88, bytes: 4)
        Self.seal(&bytes)
        return bytes
    }

    /// Makes a header's checksum right.
    static func seal(_ header: inout [UInt8]) {
        header.put(0, at: 16, bytes: 4)
        header.put(SectorBytes.checksum(header[..<92]), at: 16, bytes: 4)
    }

    var bytes: [UInt8] {
        var image = [UInt8](repeating: 0, count: sectors * sectorSize)
        if hasProtection {
            image[446 + 4] = 0xEE
            image.put(1, at: 446 + 8, bytes: 4)
            image.put(UInt64(sectors - 1), at: 446 + 12, bytes: 4)
            image.put(0xAA55, at: 510, bytes: 2)
        }
        let (last, entries) = (sectors - 1, entries)
        func place(_ bytes: [UInt8], at sector: Int) {
            image.replaceSubrange(sector * sectorSize..<sector * sectorSize + bytes.count, with: bytes)
        }
        place(header(at: 1, alternate: UInt64(last), entriesAt: 2), at: 1)
        place(entries, at: 2)
        place(entries, at: last - entrySectors)
        place(header(at: UInt64(last), alternate: 1, entriesAt: UInt64(last - entrySectors)), at: last)
        return image
    }

    /// The image after a change of its primary header, whose checksum is right again.
    func bytes(primary change: (inout [UInt8]) -> Void) -> [UInt8] {
        var image = bytes
        var header = Array(image[sectorSize..<2 * sectorSize])
        change(&header)
        Self.seal(&header)
        image.replaceSubrange(sectorSize..<2 * sectorSize, with: header)
        return image
    }
}

/// An MBR, or the sector of a logical partition.
func bootSector(_ entries: [(type: UInt8, start: UInt64, count: UInt64)]) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 512)
    for (index, entry) in entries.enumerated() {
        bytes[446 + 16 * index + 4] = entry.type
        bytes.put(entry.start, at: 446 + 16 * index + 8, bytes: 4)
        bytes.put(entry.count, at: 446 + 16 * index + 12, bytes: 4)
    }
    bytes.put(0xAA55, at: 510, bytes: 2)
    return bytes
}

/// A disk of 4096 sectors with these first 512 bytes in these sectors.
func disk(_ sectors: [Int: [UInt8]], sectorSize: Int = 512, count: Int = 4096) -> MemoryDisk {
    var bytes = [UInt8](repeating: 0, count: count * sectorSize)
    for (sector, content) in sectors {
        bytes.replaceSubrange(sector * sectorSize..<sector * sectorSize + content.count, with: content)
    }
    return MemoryDisk(bytes)
}
