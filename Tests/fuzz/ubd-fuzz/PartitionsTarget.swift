@testable import PartitionTables

/// A disk with a partition table. The input says how large it is and what lies where; checksums are made right where it wants,
/// since no fuzzer finds one. Reading ends, asks for nothing outside the disk and for little of it; partitions without a fault are
/// inside the disk, not empty, and have no byte in common.
func testPartitions(_ input: [UInt8]) {
    var script = Script(input)
    let shape = script.next(UInt8.self)
    let sectorSize: UInt64 = shape & 1 == 0 ? 512 : 4096
    let sectors = 1 + UInt64(script.next(UInt16.self)) % 2048
    var disk = FuzzedDisk(size: sectors * sectorSize + UInt64(shape >> 6) * 100)
    while !script.isAtEnd {
        // Near the beginning, near the end, or anywhere.
        let place = script.next(UInt16.self)
        let sector = place & 0x8000 == 0 ? UInt64(place) : sectors &- UInt64(place & 0x7fff)
        let within = script.next(UInt16.self)
        let bytes = script.next(bytes: Int(script.next(UInt8.self)))
        disk.put(bytes, at: sector &* sectorSize &+ UInt64(within) % sectorSize)
    }
    if shape & 2 != 0 {
        for sector in [1, sectors - 1] { disk.seal(headerAt: sector * sectorSize, sectorSize) }
    }
    let preferred: UInt64? = shape & 4 == 0 ? nil : shape & 8 == 0 ? 512 : 4096
    guard let table = try? PartitionTable.read(&disk, sectorSize: preferred) else { return check(disk) }
    check(disk)
    require(table.partitions.count <= 8192, "\(table.partitions.count) partitions")
    for (one, next) in zip(table.partitions, table.partitions.dropFirst()) {
        require(one.number < next.number, "\(next.number) after \(one.number)")
    }
    let good = table.partitions.filter { $0.fault == nil && !$0.isContainer }
    for partition in good {
        require(partition.size > 0 && partition.offset > 0, "\(partition)")
        require(partition.size <= disk.size && partition.offset <= disk.size - partition.size, "\(partition)")
        require(partition.offset % table.sectorSize == 0 && partition.size % table.sectorSize == 0, "\(partition)")
    }
    let sorted = good.sorted { $0.offset < $1.offset }
    for (one, next) in zip(sorted, sorted.dropFirst()) {
        require(one.offset + one.size <= next.offset, "\(one) and \(next)")
    }
}

private func check(_ disk: FuzzedDisk) {
    require(disk.reads <= 200 && disk.readBytes <= 10 << 20, "\(disk.reads) reads of \(disk.readBytes) bytes")
}

/// Zeros, except for what was put there.
private struct FuzzedDisk: DiskContent {
    let size: UInt64
    private var parts: [(offset: UInt64, bytes: [UInt8])] = []
    private(set) var reads = 0
    private(set) var readBytes = 0

    init(size: UInt64) { self.size = size }

    mutating func put(_ bytes: [UInt8], at offset: UInt64) {
        guard offset < size else { return }
        parts.append((offset, bytes))
    }

    mutating func bytes(at offset: UInt64, count: Int) throws(PartitionTableError) -> [UInt8] {
        require(count >= 0 && offset <= size && UInt64(count) <= size - offset, "reads \(count) bytes at \(offset)")
        reads += 1
        readBytes += count
        return content(at: offset, count)
    }

    private func content(at offset: UInt64, _ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        for part in parts {
            let start = max(part.offset, offset)
            let end = min(part.offset + UInt64(part.bytes.count), offset + UInt64(count))
            guard start < end else { continue }
            let piece = part.bytes[Int(start - part.offset)..<Int(end - part.offset)]
            bytes.replaceSubrange(Int(start - offset)..<Int(end - offset), with: piece)
        }
        return bytes
    }

    /// Makes the header there one, with right checksums.
    mutating func seal(headerAt offset: UInt64, _ sectorSize: UInt64) {
        guard offset > 0, offset + sectorSize <= size else { return }
        let header = SectorBytes(content(at: offset, 92))
        put(GPTHeader.signature, at: offset)
        put(little(92, 4), at: offset + 12)
        put(little(offset / sectorSize, 8), at: offset + 24)
        let (entries, isFar) = header.number(at: 72, bytes: 8).multipliedReportingOverflow(by: sectorSize)
        let length = header.number(at: 80, bytes: 4) * header.number(at: 84, bytes: 4)
        if !isFar, length <= 1 << 20, entries <= size, length <= size - entries {
            put(little(SectorBytes.checksum(content(at: entries, Int(length))), 4), at: offset + 88)
        }
        put(little(0, 4), at: offset + 16)
        put(little(SectorBytes.checksum(content(at: offset, 92)), 4), at: offset + 16)
    }

    private func little(_ number: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: number >> (8 * UInt64($0))) }
    }
}
