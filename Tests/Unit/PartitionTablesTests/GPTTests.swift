import Testing

@testable import PartitionTables

@Suite("A GPT")
struct GPTTests {
    private static let image = GPTImage(partitions: [(64, 127, "boot"), (128, 1023, "röot")])

    private func faults(_ table: PartitionTable) -> [String?] { table.partitions.map(\.fault) }

    @Test("is read in sectors of 512 and of 4096 bytes, found by itself", arguments: [512, 4096])
    func sizes(sectorSize: Int) throws {
        var image = Self.image
        image.sectorSize = sectorSize
        let table = try MemoryDisk(image.bytes).table()
        let unit = UInt64(sectorSize)
        #expect(table.label == .gpt && table.sectorSize == unit && table.notes == [])
        #expect(
            table.partitions == [
                .init(
                    number: 1, offset: 64 * unit, size: 64 * unit, type: "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
                    name: "boot"),
                .init(
                    number: 2, offset: 128 * unit, size: 896 * unit, type: "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
                    name: "röot"),
            ])
        // The other size that a user gives does not hide it.
        #expect(try MemoryDisk(image.bytes).table(sectorSize == 512 ? 4096 : 512) == table)
    }

    @Test("for each size of sectors is ambiguous, until the user says which is meant")
    func both() throws {
        var bytes = Self.image.bytes
        var other = Self.image
        other.sectorSize = 4096
        other.sectors = 512
        // Sector 1 of 4096 bytes lies in the entries of the first table, which stay unused there: 64 of them are enough.
        var small = Self.image
        small.entryCount = 16
        bytes = small.bytes
        let large = other.bytes
        bytes.replaceSubrange(4096..<4096 * 6, with: large[4096..<4096 * 6])
        #expect(throws: PartitionTableError.ambiguous) { try MemoryDisk(bytes).table() }
        #expect(try MemoryDisk(bytes).table(512).sectorSize == 512)
        #expect(try MemoryDisk(bytes).table(4096).sectorSize == 4096)
    }

    @Test("whose first copy is damaged is read from its backup, and that is told", arguments: [512, 4096])
    func backup(sectorSize: Int) throws {
        var image = Self.image
        image.sectorSize = sectorSize
        let whole = try MemoryDisk(image.bytes).table()
        // A byte of the header, a byte of the entries, or all of it.
        for range in [
            sectorSize + 40..<sectorSize + 41, 2 * sectorSize + 130..<2 * sectorSize + 131, sectorSize..<6 * sectorSize,
        ] {
            var bytes = image.bytes
            for place in range { bytes[place] ^= 0xFF }
            let table = try MemoryDisk(bytes).table()
            #expect(table.partitions == whole.partitions)
            #expect(table.notes.count == 1 && table.notes[0].hasSuffix("this is the backup at the disk's end"))
        }
    }

    @Test("whose file has grown finds its backup where the header says, when only the entries are damaged")
    func grown() throws {
        var bytes = Self.image.bytes
        bytes[2 * 512 + 33] ^= 1
        #expect(throws: Never.self) { try MemoryDisk(bytes, size: UInt64(bytes.count) * 2).table() }
        bytes[512 + 40] ^= 1
        // Nobody knows where the backup is now.
        #expect(throws: PartitionTableError.self) { try MemoryDisk(bytes, size: UInt64(bytes.count) * 2).table() }
    }

    @Test("of which both copies are damaged is no table, and says of each what is wrong")
    func damaged() throws {
        var bytes = Self.image.bytes
        bytes[512 + 40] ^= 1
        bytes[bytes.count - 512] = 0
        #expect(
            throws: PartitionTableError.damaged(
                "has the protective partition of a GPT, but the GPT is damaged or gone: its primary table has a header with a "
                    + "wrong checksum, its backup is not there")
        ) { try MemoryDisk(bytes).table() }
    }

    @Test(
        "with a backup of another table, perhaps a newer one, counts as the firmware counts it: the first copy; it is told"
    )
    func otherBackup() throws {
        var newer = Self.image
        newer.partitions[1].last = 2047
        newer.disk = 2
        var bytes = Self.image.bytes
        bytes.replaceSubrange((bytes.count - 33 * 512)..., with: newer.bytes.suffix(33 * 512))
        let table = try MemoryDisk(bytes).table()
        #expect(table.partitions[1].size == 896 * 512)
        #expect(table.notes == ["the backup table is another one; the primary table counts"])
    }

    @Test("of a file that ends before its backup is read, and what lies outside is a fault")
    func cutOff() throws {
        let table = try MemoryDisk(Array(Self.image.bytes[..<(512 * 512)])).table()
        #expect(table.notes == ["the backup table is not there: the file ends before it"])
        #expect(faults(table) == [nil, "ends outside the file, which has 262144 bytes"])
    }

    @Test("without the MBR's protective partition is not in force, and nobody takes it for none")
    func unprotected() throws {
        var image = Self.image
        image.hasProtection = false
        #expect(throws: PartitionTableError.unprotected(sectorSize: 512)) { try MemoryDisk(image.bytes).table() }
        // An MBR with partitions of its own, which a program made later.
        var bytes = image.bytes
        bytes.replaceSubrange(0..<512, with: bootSector([(0x83, 2048, 100)]))
        let table = try MemoryDisk(bytes).table()
        #expect(table.label == .dos && table.partitions.count == 1 && table.notes.count == 1)
    }

    @Test("beside other partitions in the MBR counts alone")
    func hybrid() throws {
        var bytes = Self.image.bytes
        bytes.replaceSubrange(0..<512, with: bootSector([(0x0C, 64, 64), (0xEE, 1, 63)]))
        #expect(try MemoryDisk(bytes).table().label == .gpt)
    }

    @Test(
        "with partitions that overlap says which, of each", arguments: [(100, 200), (64, 127), (1, 2000), (127, 127)])
    func overlaps(first: UInt64, last: UInt64) throws {
        var image = Self.image
        image.partitions.append((first, last, "bad"))
        let table = try MemoryDisk(image.bytes).table()
        #expect(table.partitions[0].fault == "overlaps partition 3")
        #expect(table.partitions[2].fault != nil)
    }

    @Test("with a partition on top of the table, reversed, or beyond all disks has that as its fault")
    func nonsense() throws {
        var image = Self.image
        image.firstUsable = 0
        image.lastUsable = .max
        image.partitions = [
            (0, 0, "mbr"), (1, 1, "header"), (5, 70, "entries"), (4095, 4095, "backup"), (100, 99, "reversed"),
            (200, .max, "all"), (.max, .max, "last"), (0, .max, "everything"), (1 << 62, 1 << 63, "far"),
            (4096, 4096, "outside"), (3000, 3001, "good"),
        ]
        let faults = faults(try MemoryDisk(image.bytes).table())
        #expect(faults.dropLast().allSatisfy { $0 != nil })
        #expect(faults.last == .some(nil))
        #expect(faults[4] == "ends before it begins")
        #expect(faults[1] == "lies where a part of the table is")
        // The header says which sectors may be used.
        var narrow = Self.image
        narrow.firstUsable = 100
        #expect(
            self.faults(try MemoryDisk(narrow.bytes).table())[0]
                == "lies outside the sectors that the table calls usable")
    }

    @Test("with a partition on top of the entries of its other copy has that as its fault, whichever copy counts")
    func otherCopy() throws {
        var image = Self.image
        image.firstUsable = 2
        image.lastUsable = 4094
        // The entries lie in the sectors 2 to 33, those of the backup in 4063 to 4094.
        image.partitions = [(64, 100, "good"), (4063, 4063, "backup's"), (33, 33, "primary's"), (4062, 4062, "beside")]
        let fault = "lies where a part of the table is"
        var bytes = image.bytes
        #expect(faults(try MemoryDisk(bytes).table()) == [nil, fault, fault, nil])
        // The primary entries are damaged, so the backup counts; its header knows of no other entries than its own.
        bytes[2 * 512 + 200] ^= 1
        let table = try MemoryDisk(bytes).table()
        #expect(faults(table) == [nil, fault, fault, nil])
        #expect(table.notes[0].hasSuffix("this is the backup at the disk's end"))
    }

    @Test("whose primary copy names itself as the backup has none, which is told")
    func noBackup() throws {
        let bytes = Self.image.bytes { $0.put(1, at: 32, bytes: 8) }
        #expect(
            try MemoryDisk(bytes).table().notes == ["there is no backup table: the primary one names itself as that"])
    }

    @Test(
        "with a header that cannot be right, though its checksum is, does not count",
        arguments: [
            (84, 4, 0), (84, 4, 1), (84, 4, 96), (84, 4, 384), (84, 4, 0xFFFF_FFFF), (84, 4, 1 << 31), (80, 4, 0),
            (80, 4, 0xFFFF_FFFF), (80, 4, 8193), (12, 4, 91), (12, 4, 513), (12, 4, 0xFFFF_FFFF), (24, 8, 2),
            (72, 8, 0),
            (72, 8, 4095), (72, 8, UInt64.max), (72, 8, 1 << 55), (72, 8, 3), (80, 4, 127), (88, 4, 0),
        ] as [(Int, Int, UInt64)])
    func header(place: Int, count: Int, value: UInt64) throws {
        let bytes = Self.image.bytes { $0.put(value, at: place, bytes: count) }
        let table = try MemoryDisk(bytes).table()
        #expect(table.notes.count == 1 && table.notes[0].hasSuffix("this is the backup at the disk's end"))
    }

    @Test("may have other numbers and sizes of entries, as the specification says")
    func entries() throws {
        for (size, count) in [(256, 16), (512, 4), (128, 1024), (4096, 3)] {
            var image = Self.image
            (image.entrySize, image.entryCount) = (size, count)
            image.partitions = [(600, 700, "a"), (701, 800, "b")]
            #expect(try MemoryDisk(image.bytes).table().partitions.map(\.name) == ["a", "b"], "\(size)")
        }
    }

    @Test("has any text for a name, also none that is UTF-16")
    func names() throws {
        var image = Self.image
        image.partitions[0].name = String(repeating: "x", count: 36)
        #expect(try MemoryDisk(image.bytes).table().partitions[0].name?.count == 36)
        image.partitions[0].name = ""
        #expect(try MemoryDisk(image.bytes).table().partitions[0].name == nil)
    }
}
