import Testing

@testable import PartitionTables

@Suite("An MBR")
struct MBRTests {
    /// Primary 1, and an extended partition with two logical ones.
    private static let sectors: [Int: [UInt8]] = [
        0: bootSector([(0x83, 64, 100), (0x05, 1000, 1000)]),
        1000: bootSector([(0x83, 10, 90), (0x05, 200, 300)]),
        1200: bootSector([(0x82, 8, 200)]),
    ]

    @Test("is read with its logical partitions, in sectors of 512 and of 4096 bytes", arguments: [512, 4096])
    func read(sectorSize: Int) throws {
        let table = try disk(Self.sectors, sectorSize: sectorSize).table(UInt64(sectorSize))
        let unit = UInt64(sectorSize)
        #expect(table.label == .dos && table.sectorSize == unit && table.notes == [])
        #expect(
            table.partitions == [
                .init(number: 1, offset: 64 * unit, size: 100 * unit, type: "83"),
                .init(number: 2, offset: 1000 * unit, size: 1000 * unit, type: "5", isContainer: true),
                .init(number: 5, offset: 1010 * unit, size: 90 * unit, type: "83"),
                .init(number: 6, offset: 1208 * unit, size: 200 * unit, type: "82"),
            ])
    }

    @Test("counts in sectors of 512 bytes unless the user says otherwise")
    func usual() throws {
        #expect(try disk(Self.sectors).table().sectorSize == 512)
    }

    @Test(
        "that fits its file in sectors of 512 bytes and in no larger ones counts in those, whatever blocks the user wants"
    )
    func otherBlocks() throws {
        // In sectors of 4096 bytes the second one lies outside, and the first one in the middle of the second.
        let file = disk([0: bootSector([(0x0C, 64, 100), (0x83, 1000, 3000)])])
        var table = try file.table(4096)
        #expect(table.sectorSize == 512 && table.partitions.map(\.offset) == [64 * 512, 1000 * 512])
        #expect(
            table.notes == ["the MBR fits the file in sectors of 512 bytes, and not in sectors of 4096 bytes"])
        // A chain that leads nowhere in the larger sectors.
        table = try disk(Self.sectors).table(4096)
        #expect(table.sectorSize == 512 && table.partitions.count == 4)
        // It fits in neither, or in both: then the user's word counts.
        #expect(try disk([0: bootSector([(0x83, 1000, 5000)])]).table(4096).partitions[0].fault != nil)
        #expect(try disk([0: bootSector([(0x83, 1000, 5000)])]).table(4096).sectorSize == 4096)
        #expect(try disk([0: bootSector([(0x83, 10, 20)])]).table(4096).partitions[0].offset == 40960)
        #expect(throws: PartitionTableError.self) {
            try disk(Self.sectors.merging([1000: bootSector([(0x83, 1, 1), (0x05, 5000, 1)])]) { $1 }).table(4096)
        }
    }

    @Test("is none without its signature, with other flags, or with nothing in it")
    func none() throws {
        var noSignature = bootSector([(0x83, 64, 100)])
        noSignature[511] = 0
        var text = bootSector([(0x83, 64, 100)])
        text[446 + 16] = 0x20
        for sector in [
            noSignature, text, bootSector([]), [UInt8](repeating: 0, count: 512), [UInt8](repeating: 0xFF, count: 512),
        ] {
            #expect(throws: PartitionTableError.none) { try disk([0: sector]).table() }
        }
        #expect(throws: PartitionTableError.none) { try MemoryDisk([]).table() }
        #expect(throws: PartitionTableError.none) { try MemoryDisk([UInt8](repeating: 0, count: 511)).table() }
        // A new table, which has a number and no partition yet.
        var fresh = bootSector([])
        fresh[440] = 1
        #expect(try disk([0: fresh]).table().partitions == [])
    }

    @Test("whose chain of logical partitions loops, breaks, leads outside or does not end is damaged")
    func chains() throws {
        func damage(_ changes: [Int: [UInt8]]) -> String? {
            do {
                _ = try disk(Self.sectors.merging(changes) { $1 }).table()
                return nil
            } catch PartitionTableError.damaged(let text) { return text } catch { return "\(error)" }
        }
        let loops = "has a chain of logical partitions that comes back to sector "
        #expect(damage([1200: bootSector([(0x82, 8, 100), (0x05, 200, 300)])]) == loops + "1200")
        #expect(damage([1200: bootSector([(0x82, 8, 100), (0x0F, 0, 300)])]) == loops + "1000")
        #expect(damage([1200: [UInt8](repeating: 0, count: 512)])?.hasSuffix("breaks at sector 1200") == true)
        #expect(damage([1000: bootSector([(0x83, 10, 90), (0x05, 1000, 300)])])?.contains("leads outside") == true)
        #expect(
            damage([1000: bootSector([(0x83, 10, 90), (0x05, 0xFFFF_FFFF, 300)])])?.contains("leads outside") == true)
        #expect(damage([1000: bootSector([(0x05, 100, 90), (0x05, 200, 300)])])?.contains("two ends") == true)
        #expect(damage([0: bootSector([(0x0F, 5000, 100)])])?.contains("leads outside") == true)
        #expect(
            damage([0: bootSector([(0x05, 1000, 100), (0x0F, 2000, 100)])]) == "has an MBR with two extended partitions"
        )
        // Each link leads to the next sector.
        var endless = [0: bootSector([(0x05, 1000, 2000)])]
        for sector in 1000..<1500 { endless[sector] = bootSector([(0, 0, 0), (0x05, UInt64(sector - 999), 1)]) }
        var long = disk(endless)
        #expect(throws: PartitionTableError.damaged("has a chain of logical partitions that has more than 128 links")) {
            try PartitionTable.read(&long)
        }
        #expect(long.reads < 140)
    }

    @Test("with an extended partition that nobody has written into has no logical ones")
    func emptyContainer() throws {
        #expect(try disk([0: bootSector([(0x05, 1000, 1000)])]).table().partitions.map(\.number) == [1])
        // The first link may be empty and lead on.
        let table = try disk([
            0: bootSector([(0x05, 1000, 1000)]), 1000: bootSector([(0, 0, 0), (0x05, 200, 300)]),
            1200: bootSector([(0x83, 8, 100)]),
        ]).table()
        #expect(table.partitions.map(\.number) == [1, 5])
    }

    @Test("with partitions that overlap, lie outside, or on the table has that as their faults")
    func faults() throws {
        func faults(_ sectors: [Int: [UInt8]]) throws -> [String?] {
            try disk(Self.sectors.merging(sectors) { $1 }).table().partitions.map(\.fault)
        }
        #expect(
            try faults([0: bootSector([(0x83, 64, 100), (0x83, 163, 10), (0x83, 4000, 97), (0x83, 0, 10)])]) == [
                "overlaps partition 2", "overlaps partition 1", "ends outside the file, which has 2097152 bytes",
                "lies where a part of the table is",
            ])
        // A primary partition that reaches into a logical one, and so into the extended one.
        #expect(try faults([0: bootSector([(0x83, 64, 950), (0x05, 1000, 1000)])]).allSatisfy { $0 != nil } == false)
        let reach = try faults([0: bootSector([(0x83, 64, 950), (0x05, 1000, 1000)])])
        #expect(reach[0] != nil && reach[1] != nil && reach[2] == "overlaps partition 1" && reach[3] == nil)
        // A logical one that is longer than the extended one, or covers the next link.
        #expect(try faults([1200: bootSector([(0x82, 8, 900)])])[3] == "lies outside the extended partition")
        #expect(
            try faults([1000: bootSector([(0x83, 10, 191), (0x05, 200, 300)])])[2]
                == "lies where a part of the table is")
        #expect(try faults([1000: bootSector([(0x83, 10, 0xFFFF_FFFF), (0x05, 200, 300)])])[2] != nil)
    }
}
