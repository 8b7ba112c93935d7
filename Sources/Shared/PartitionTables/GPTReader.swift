/// The header of a GPT, from one sector (UEFI specification, 5.3.2).
struct GPTHeader {
    /// Its own sector.
    var place: UInt64
    /// Sectors.
    var alternate: UInt64
    var firstUsable: UInt64
    var lastUsable: UInt64
    var entries: UInt64
    var entryCount: UInt64
    /// Bytes.
    var entrySize: UInt64
    var entriesChecksum: UInt64
    var diskID: String

    /// More than any program makes: 16 KiB is usual.
    static let mostEntryBytes: UInt64 = 1 << 20
    static let signature = Array("EFI PART".utf8)

    /// - Parameter place: the sector's number, which stands in it.
    /// - Throws: what is wrong with it, in words.
    init(_ bytes: [UInt8], place: UInt64) throws(Damage) {
        let sector = SectorBytes(bytes)
        guard bytes.starts(with: Self.signature) else { throw Damage("is not there") }
        let size = sector.number(at: 12, bytes: 4)
        guard (92...UInt64(bytes.count)).contains(size) else { throw Damage("has a header of \(size) bytes") }
        var header = Array(bytes[..<Int(size)])
        header.replaceSubrange(16..<20, with: [0, 0, 0, 0])
        guard SectorBytes.checksum(header) == sector.number(at: 16, bytes: 4) else {
            throw Damage("has a header with a wrong checksum")
        }
        guard sector.number(at: 24, bytes: 8) == place else { throw Damage("has the header of another place") }
        self.place = place
        alternate = sector.number(at: 32, bytes: 8)
        firstUsable = sector.number(at: 40, bytes: 8)
        lastUsable = sector.number(at: 48, bytes: 8)
        diskID = sector.guid(at: 56)
        entries = sector.number(at: 72, bytes: 8)
        entryCount = sector.number(at: 80, bytes: 4)
        entrySize = sector.number(at: 84, bytes: 4)
        entriesChecksum = sector.number(at: 88, bytes: 4)
        // 128, 256, 512, …
        guard entrySize.isMultiple(of: 128), (entrySize / 128).nonzeroBitCount == 1, entrySize <= 4096,
            entryCount > 0, entryCount <= Self.mostEntryBytes / entrySize
        else { throw Damage("has \(entryCount) entries of \(entrySize) bytes") }
    }

    struct Damage: Error {
        var text: String
        init(_ text: String) { self.text = text }
    }

    /// The same table, as far as the header says it.
    func describesSameTable(as other: GPTHeader) -> Bool {
        diskID == other.diskID && entriesChecksum == other.entriesChecksum && entryCount == other.entryCount
            && entrySize == other.entrySize && firstUsable == other.firstUsable && lastUsable == other.lastUsable
    }
}

/// Reads a GPT: the primary table, or the backup where that is damaged.
enum GPTReader {
    /// One copy of the table, or what is wrong with it.
    private enum Copy {
        case whole(GPTHeader, entries: [UInt8])
        /// `header`: when only the entries are damaged.
        case damaged(String, header: GPTHeader?)
    }

    /// The size of sectors for which there is a primary header; nil: there is none.
    static func firstHeader(in disk: inout some DiskContent) throws(PartitionTableError) -> UInt64? {
        for size in PartitionTable.sectorSizes {
            if case .whole = try copy(at: 1, size, in: &disk) { return size }
        }
        return nil
    }

    static func read(
        _ disk: inout some DiskContent, preferred: UInt64?
    ) throws(PartitionTableError) -> PartitionTable {
        var primaries: [(UInt64, Copy)] = []
        for size in PartitionTable.sectorSizes { primaries.append((size, try copy(at: 1, size, in: &disk))) }
        if let (size, header, entries) = try choose(primaries, preferred) {
            let (other, notes) = try compareBackup(header, size, in: &disk)
            return table(header, other, entries, size, notes, disk.size)
        }
        var backups: [(UInt64, Copy)] = []
        for (size, primary) in primaries { backups.append((size, try backup(primary, size, in: &disk))) }
        if let (size, header, entries) = try choose(backups, preferred) {
            let note = "the primary table \(fault(primaries, size)), so this is the backup at the disk's end"
            return table(header, damagedHeader(primaries, size), entries, size, [note], disk.size)
        }
        let size = preferred ?? primaries.first { !fault(primaries, $0.0).hasSuffix("not there") }?.0 ?? 512
        throw .damaged(
            "has the protective partition of a GPT, but the GPT is damaged or gone: its primary table "
                + "\(fault(primaries, size)), its backup \(fault(backups, size))")
    }

    private static func fault(_ copies: [(UInt64, Copy)], _ size: UInt64) -> String {
        for case (size, .damaged(let text, _)) in copies { return text }
        return "is not there"
    }

    /// The header of that copy when only its entries are damaged: a partition on top of them makes a repair harm it.
    private static func damagedHeader(_ copies: [(UInt64, Copy)], _ size: UInt64) -> GPTHeader? {
        for case (size, .damaged(_, let header)) in copies { return header }
        return nil
    }

    private static func choose(
        _ copies: [(UInt64, Copy)], _ preferred: UInt64?
    ) throws(PartitionTableError) -> (UInt64, GPTHeader, [UInt8])? {
        var found: [(UInt64, GPTHeader, [UInt8])] = []
        for case (let size, .whole(let header, let entries)) in copies { found.append((size, header, entries)) }
        guard found.count > 1 else { return found.first }
        guard let preferred, let chosen = found.first(where: { $0.0 == preferred }) else { throw .ambiguous }
        return chosen
    }

    /// The copy of the table whose header is in that sector.
    private static func copy(
        at place: UInt64, _ sectorSize: UInt64, in disk: inout some DiskContent
    ) throws(PartitionTableError) -> Copy {
        let sectors = disk.size / sectorSize
        guard place < sectors else { return .damaged("is not there: the file ends before it", header: nil) }
        let bytes = try disk.bytes(at: place * sectorSize, count: Int(sectorSize))
        let header: GPTHeader
        do { header = try GPTHeader(bytes, place: place) } catch { return .damaged(error.text, header: nil) }
        let length = header.entryCount * header.entrySize
        guard header.entries > 0, header.entries < sectors, disk.has(header.entries * sectorSize, length) else {
            return .damaged("has its entries outside the file", header: header)
        }
        let entries = try disk.bytes(at: header.entries * sectorSize, count: Int(length))
        guard SectorBytes.checksum(entries) == header.entriesChecksum else {
            return .damaged("has entries with a wrong checksum", header: header)
        }
        return .whole(header, entries: entries)
    }

    /// The backup is where the primary header says, if that can be read, and otherwise in the disk's last sector.
    private static func backup(
        _ primary: Copy, _ sectorSize: UInt64, in disk: inout some DiskContent
    ) throws(PartitionTableError) -> Copy {
        if case .damaged(_, let header?) = primary {
            let named = try copy(at: header.alternate, sectorSize, in: &disk)
            if case .whole = named { return named }
        }
        guard disk.size / sectorSize > 2 else { return .damaged("is not there", header: nil) }
        return try copy(at: disk.size / sectorSize - 1, sectorSize, in: &disk)
    }

    /// The backup's header, and what a user should know of the backup. Which of two whole copies is newer nobody can tell; the
    /// primary counts, as for firmware and kernel.
    private static func compareBackup(
        _ primary: GPTHeader, _ sectorSize: UInt64, in disk: inout some DiskContent
    ) throws(PartitionTableError) -> (GPTHeader?, [String]) {
        guard primary.alternate != primary.place else {
            return (nil, ["there is no backup table: the primary one names itself as that"])
        }
        switch try copy(at: primary.alternate, sectorSize, in: &disk) {
        case .whole(let header, _) where primary.describesSameTable(as: header): return (header, [])
        case .whole(let header, _): return (header, ["the backup table is another one; the primary table counts"])
        case .damaged(let text, let header): return (header, ["the backup table \(text)"])
        }
    }

    /// `other`: the header of the other copy, where it can be read.
    private static func table(
        _ header: GPTHeader, _ other: GPTHeader?, _ bytes: [UInt8], _ sectorSize: UInt64, _ notes: [String],
        _ diskSize: UInt64
    ) -> PartitionTable {
        let headers = [header] + (other.map { [$0] } ?? [])
        var table = PartitionTable(label: .gpt, sectorSize: sectorSize, partitions: [], notes: notes)
        for index in 0..<Int(header.entryCount) {
            let start = index * Int(header.entrySize)
            let entry = SectorBytes(Array(bytes[start..<start + 128]))
            guard entry.bytes[..<16].contains(where: { $0 != 0 }) else { continue }
            table.partitions.append(partition(index + 1, entry, headers, sectorSize))
        }
        table.findFaults(diskSize: diskSize)
        return table
    }

    private static func partition(
        _ number: Int, _ entry: SectorBytes, _ headers: [GPTHeader], _ sectorSize: UInt64
    ) -> PartitionTable.Partition {
        let (first, last) = (entry.number(at: 32, bytes: 8), entry.number(at: 40, bytes: 8))
        var partition = PartitionTable.Partition(
            number: number, offset: .max, size: 0, type: entry.guid(at: 0), name: name(entry))
        // The last sector belongs to it.
        let (count, isReversed) = last.subtractingReportingOverflow(first)
        let (offset, isTooFar) = first.multipliedReportingOverflow(by: sectorSize)
        let (size, isTooLarge) = count.addingReportingOverflow(1).partialValue.multipliedReportingOverflow(
            by: sectorSize)
        if isReversed {
            partition.fault = "ends before it begins"
            if !isTooFar { partition.offset = offset }
        } else if isTooFar || isTooLarge || count == .max {
            partition.fault = "ends outside every disk"
        } else {
            (partition.offset, partition.size) = (offset, size)
            if first < headers[0].firstUsable || last > headers[0].lastUsable {
                partition.fault = "lies outside the sectors that the table calls usable"
            }
        }
        // Whatever a header calls usable, the sectors of both copies are not.
        if partition.fault == nil, headers.contains(where: { covers(first...last, $0, sectorSize) }) {
            partition.fault = "lies where a part of the table is"
        }
        return partition
    }

    private static func covers(_ sectors: ClosedRange<UInt64>, _ header: GPTHeader, _ sectorSize: UInt64) -> Bool {
        let entries = (header.entryCount * header.entrySize + sectorSize - 1) / sectorSize
        // A header whose entries lie outside the disk may name any sector.
        let end = header.entries.addingReportingOverflow(entries - 1)
        return sectors.lowerBound < 2 || sectors.contains(header.place) || sectors.contains(header.alternate)
            || !end.overflow && sectors.overlaps(header.entries...end.partialValue)
    }

    /// 36 units of UTF-16; nil when it has none.
    private static func name(_ entry: SectorBytes) -> String? {
        let units = (0..<36).map { UInt16(entry.number(at: 56 + 2 * $0, bytes: 2)) }.prefix { $0 != 0 }
        return units.isEmpty ? nil : String(decoding: units, as: UTF16.self)
    }
}
