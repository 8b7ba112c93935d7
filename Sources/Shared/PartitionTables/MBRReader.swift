/// The first sector of a disk with an MBR, or of a logical partition (EBR): four entries of 16 bytes from byte 446 on.
struct BootSector {
    struct Entry {
        var type: UInt8
        /// Sectors; what it counts from depends on the entry.
        var start: UInt64
        /// Sectors.
        var count: UInt64

        var isUsed: Bool { type != 0 && count != 0 }
        /// Extended: 05, 0f and 85 are the same for Linux.
        var isContainer: Bool { isUsed && [0x05, 0x0f, 0x85].contains(type) }
    }

    let entries: [Entry]
    private let hasSignature: Bool
    private let hasFlags: Bool
    private let isEmpty: Bool
    /// No byte of it is set.
    let isZero: Bool

    init(_ bytes: [UInt8]) {
        let sector = SectorBytes(bytes)
        let places = (0..<4).map { 446 + 16 * $0 }
        entries = places.map { place in
            Entry(
                type: UInt8(sector.number(at: place + 4, bytes: 1)), start: sector.number(at: place + 8, bytes: 4),
                count: sector.number(at: place + 12, bytes: 4))
        }
        hasSignature = sector.number(at: 510, bytes: 2) == 0xaa55
        hasFlags = places.allSatisfy { sector.number(at: $0, bytes: 1) & 0x7f == 0 }
        // Byte 440: the number of the disk.
        isEmpty = bytes[440..<444].allSatisfy { $0 == 0 } && bytes[446..<510].allSatisfy { $0 == 0 }
        isZero = bytes.allSatisfy { $0 == 0 }
    }

    /// A boot sector of a file system has the same signature, and code or zeros where entries would be.
    var isTable: Bool { hasSignature && hasFlags && !isEmpty }
    /// The sector of a logical partition may be empty.
    var isLink: Bool { hasSignature && hasFlags }
    /// It has the partition of type ee that stands for a GPT.
    var isProtective: Bool { entries.contains { $0.type == 0xee && $0.count != 0 } }
}

/// Reads an MBR and the chain of its logical partitions.
struct MBRReader {
    /// More logical partitions than any program makes; also what ends a chain that does not end.
    static let mostLogical = 128

    private let sectorSize: UInt64
    private var table: PartitionTable
    /// Where links of the chain lie, in bytes.
    private var links: [UInt64] = []

    static func read(
        _ disk: inout some DiskContent, _ boot: BootSector, sectorSize: UInt64
    ) throws(PartitionTableError) -> PartitionTable {
        var reader = MBRReader(sectorSize: sectorSize)
        var container: BootSector.Entry?
        for (index, entry) in boot.entries.enumerated() where entry.isUsed {
            reader.add(index + 1, entry, from: 0)
            guard entry.isContainer else { continue }
            guard container == nil else { throw .damaged("has an MBR with two extended partitions") }
            container = entry
        }
        if let container { try reader.readChain(&disk, container) }
        reader.findFaults(container)
        reader.table.findFaults(diskSize: disk.size)
        return reader.table
    }

    private init(sectorSize: UInt64) {
        self.sectorSize = sectorSize
        table = PartitionTable(label: .dos, sectorSize: sectorSize, partitions: [], notes: [])
    }

    /// Numbers of 32 bits times 4096 stay far below 64 bits.
    private mutating func add(_ number: Int, _ entry: BootSector.Entry, from sector: UInt64) {
        table.partitions.append(
            PartitionTable.Partition(
                number: number, offset: (sector + entry.start) * sectorSize, size: entry.count * sectorSize,
                type: String(entry.type, radix: 16), isContainer: entry.isContainer))
    }

    /// Each link is a sector with a logical partition, which counts from that sector, and the place of the next link, which
    /// counts from the beginning of the extended partition.
    private mutating func readChain(
        _ disk: inout some DiskContent, _ container: BootSector.Entry
    ) throws(PartitionTableError) {
        var (sector, number) = (container.start, 5)
        while true {
            let offset = sector * sectorSize
            guard !links.contains(offset) else { throw Self.broken("comes back to sector \(sector)") }
            guard links.count < Self.mostLogical else { throw Self.broken("has more than \(Self.mostLogical) links") }
            guard sector - container.start < container.count, disk.has(offset, 512) else {
                throw Self.broken("leads outside, to sector \(sector)")
            }
            let link = BootSector(try disk.bytes(at: offset, count: 512))
            links.append(offset)
            guard link.isLink else {
                // Nobody has written into the extended partition.
                if links.count == 1, link.isZero { return }
                throw Self.broken("breaks at sector \(sector)")
            }
            for entry in link.entries where entry.isUsed && !entry.isContainer {
                add(number, entry, from: sector)
                number += 1
            }
            let next = link.entries.filter(\.isContainer)
            guard next.count < 2 else { throw Self.broken("has two ends at sector \(sector)") }
            guard let next = next.first else { return }
            sector = container.start + next.start
        }
    }

    private static func broken(_ what: String) -> PartitionTableError {
        .damaged("has a chain of logical partitions that \(what)")
    }

    /// Partitions on top of the table, and logical ones outside of the extended one.
    private mutating func findFaults(_ container: BootSector.Entry?) {
        let inside = container.map { $0.start * sectorSize..<($0.start + $0.count) * sectorSize }
        for (index, partition) in table.partitions.enumerated() {
            guard let end = partition.end else { continue }
            let tables = partition.number < 5 ? [0] : links
            if tables.contains(where: { $0 < end && partition.offset < $0 + sectorSize }) {
                table.partitions[index].fault = "lies where a part of the table is"
            } else if partition.number >= 5, let inside, partition.offset < inside.lowerBound || end > inside.upperBound
            {
                table.partitions[index].fault = "lies outside the extended partition"
            }
        }
    }
}
