import Glibc
import Testing
import WorkerProtocol

@testable import Worker

@Suite("A loop disk's geometry")
struct LoopGeometryTests {
    static let megabyte: UInt64 = 1 << 20

    private func plan(
        _ file: BackingFile = BackingFile(size: megabyte, direct: DirectNeeds(block: 512)),
        flags: LaunchMessage.Flags = [],
        buffered: Bool = false, offset: UInt64 = 0, size: UInt64? = nil, blockSize: UInt32? = nil
    ) throws -> LoopPlan {
        var launch = LaunchMessage(target: .loop, queues: 1, depth: 1, maxIOBytes: 65536, flags: flags)
        launch.options.buffered = buffered
        launch.options.offset = offset
        launch.options.size = size
        launch.options.blockSize = blockSize
        return try LoopPlan(file, launch)
    }

    @Test("is the file's, with direct I/O where the file takes it")
    func plain() throws {
        let plan = try plan()
        #expect(plan.direct)
        #expect(!plan.readOnly)
        #expect(
            plan.geometry
                == Geometry(
                    size: Self.megabyte, logicalBlock: 512, physicalBlock: 4096, attributes: [.volatileCache, .fua],
                    discardGranularity: 4096, maxDiscardSectors: 1 << 22, maxWriteZeroesSectors: 64 << 11))
    }

    @Test("goes through the page cache when there is no direct file, and says why")
    func buffered() throws {
        let refused = try plan(BackingFile(size: Self.megabyte))
        #expect(!refused.direct)
        #expect(refused.geometry.attributes.isSuperset(of: [.buffered, .directRefused]))
        let asked = try plan(buffered: true)
        #expect(!asked.direct)
        #expect(asked.geometry.attributes.contains(.buffered))
        #expect(!asked.geometry.attributes.contains(.directRefused))
    }

    @Test(
        "has blocks of 512 bytes whatever the file's direct I/O needs, and goes without it where they are too small for it"
    )
    func alignment() throws {
        let file = BackingFile(size: Self.megabyte, preferredBlock: 512, direct: DirectNeeds(block: 4096))
        let usual = try plan(file)
        #expect(usual.geometry.logicalBlock == 512)
        #expect(usual.geometry.physicalBlock == 4096)
        #expect(!usual.direct)
        #expect(usual.geometry.attributes.isSuperset(of: [.buffered, .directRefused]))
        #expect(usual.geometry.directObstacle == .blocks)
        #expect(try plan(file, blockSize: 512) == usual)
        #expect(try !plan(file, blockSize: 2048).direct)
        #expect(try plan(file, blockSize: 4096).direct)
        #expect(try plan(BackingFile(size: Self.megabyte, direct: DirectNeeds(block: 512))).direct)
        // Larger than the largest block of a disk.
        let large = try plan(BackingFile(size: Self.megabyte, direct: DirectNeeds(block: 65536)), blockSize: 4096)
        #expect(!large.direct)
        #expect(large.geometry.directObstacle == .largeBlocks)
    }

    @Test("keeps its blocks for life: what a replacement is told makes the same disk, direct I/O or not")
    func replacement() throws {
        let file = BackingFile(size: Self.megabyte, direct: DirectNeeds(block: 4096))
        for blockSize: UInt32? in [nil, 512, 1024, 4096] {
            let first = try plan(file, blockSize: blockSize)
            let second = try plan(file, size: first.geometry.size, blockSize: first.geometry.logicalBlock)
            #expect(first == second)
        }
    }

    @Test("says what keeps direct I/O away", arguments: Geometry.DirectObstacle.allCases)
    func obstacles(_ obstacle: Geometry.DirectObstacle) throws {
        var file = BackingFile(size: Self.megabyte, direct: DirectNeeds(block: 512))
        var offset: UInt64 = 0
        var flags: LaunchMessage.Flags = []
        switch obstacle {
        case .file: file.direct = nil
        case .blocks: file.direct = DirectNeeds(block: 1024)
        case .largeBlocks: file.direct = DirectNeeds(block: 8192)
        case .offset: offset = 100
        case .memory:
            file.direct = DirectNeeds(block: 512, memory: 4096)
            flags = .zeroCopy
        case .fileSystem: file.isSafeDirectly = false
        }
        let plan = try plan(file, flags: flags, offset: offset)
        #expect(!plan.direct)
        #expect(plan.geometry.attributes.contains(.directRefused))
        #expect(plan.geometry.directObstacle == obstacle)
        let message = WorkerMessage.geometry(plan.geometry)
        #expect(WorkerMessage(decoding: message.encoded()) == message)
        let asked = try self.plan(file, flags: flags, buffered: true, offset: offset)
        #expect(!asked.geometry.attributes.contains(.directRefused))
    }

    @Test("offers no range that the file's file system lacks, so that the kernel writes the zeros itself")
    func ranges() throws {
        func plan(_ magic: UInt32) throws -> Geometry {
            var file = BackingFile(size: Self.megabyte)
            file.ranges = FileRanges(magic: magic)
            return try self.plan(file).geometry
        }
        // tmpfs punches holes; it has no call for zeros that must keep their space, so these are written.
        for magic: UInt32 in [0xef53, 0x0102_1994] {
            let geometry = try plan(magic)
            #expect(geometry.maxDiscardSectors > 0 && geometry.maxWriteZeroesSectors > 0)
        }
        for magic: UInt32 in [0x4d44, 0x2011_bab0] {
            let fat = try plan(magic)
            #expect(fat.maxDiscardSectors == 0 && fat.discardGranularity == 0 && fat.maxWriteZeroesSectors == 0)
        }
    }

    @Test("goes without direct I/O when memory would have to be aligned better than it is")
    func memoryAlignment() throws {
        func direct(_ memory: UInt32, _ flags: LaunchMessage.Flags) throws -> Bool {
            try plan(BackingFile(size: Self.megabyte, direct: DirectNeeds(block: 512, memory: memory)), flags: flags)
                .direct
        }
        #expect(try direct(4, .zeroCopy))
        #expect(try direct(512, .zeroCopy))
        #expect(try !direct(4096, .zeroCopy))
        // The worker's own buffers are page-aligned.
        #expect(try direct(4096, []))
        #expect(try !direct(65536, []))
    }

    @Test("forces no write on a file system that would not, so that the kernel flushes instead")
    func forcedWrites() throws {
        let plan = try plan(BackingFile(size: Self.megabyte, forcesWrites: false))
        #expect(plan.geometry.attributes.contains(.volatileCache))
        #expect(!plan.geometry.attributes.contains(.fua))
    }

    @Test("starts where it was told, without direct I/O when that is not aligned")
    func offset() throws {
        let aligned = try plan(offset: 512)
        #expect(aligned.direct)
        #expect(aligned.geometry.size == Self.megabyte - 512)
        let odd = try plan(offset: 100)
        #expect(!odd.direct)
        #expect(odd.geometry.size == Self.megabyte - 512)
        #expect(odd.geometry.attributes.contains(.sizeRoundedDown))
        // Holes consist of the file's own blocks, to which this disk's are never aligned.
        #expect(odd.geometry.discardGranularity == 0)
        #expect(odd.geometry.maxWriteZeroesSectors > 0)
    }

    @Test("refuses an offset, or a size, beyond the end, and says where the end is")
    func beyondEnd() {
        #expect(throws: WorkerFailure(.offsetBeyondEnd, detail: Self.megabyte)) { try plan(offset: Self.megabyte) }
        #expect(throws: WorkerFailure(.offsetBeyondEnd, detail: Self.megabyte)) { try plan(offset: .max) }
        #expect(throws: WorkerFailure(.sizeBeyondEnd, detail: Self.megabyte)) { try plan(size: Self.megabyte + 1) }
        #expect(throws: WorkerFailure(.sizeBeyondEnd, detail: Self.megabyte - 4096)) {
            try plan(offset: 4096, size: Self.megabyte)
        }
        #expect(throws: WorkerFailure(.sizeBeyondEnd, detail: Self.megabyte)) { try plan(size: .max) }
    }

    @Test("is a whole number of blocks, rounded down")
    func rounding() throws {
        let plan = try plan(size: 10_000)
        #expect(plan.geometry.size == 9728)
        #expect(plan.geometry.attributes.contains(.sizeRoundedDown))
        #expect(try !self.plan(size: 8192).geometry.attributes.contains(.sizeRoundedDown))
        #expect(try self.plan(blockSize: 4096).geometry.size == Self.megabyte)
    }

    @Test("refuses files that hold no block")
    func empty() {
        #expect(throws: WorkerFailure(.fileEmpty)) { try plan(BackingFile(size: 0)) }
        #expect(throws: WorkerFailure(.smallerThanBlock, detail: 512)) { try plan(BackingFile(size: 511)) }
        #expect(throws: WorkerFailure(.smallerThanBlock, detail: 4096)) {
            try plan(BackingFile(size: 4095), blockSize: 4096)
        }
    }

    @Test("refuses block sizes that are none, or smaller than the backing device's")
    func blockSizes() throws {
        for size: UInt32 in [1, 511, 513, 3000, 8192, 1 << 31] {
            #expect(throws: WorkerFailure.self) { try plan(blockSize: size) }
        }
        let device = BackingFile(size: Self.megabyte, isBlockDevice: true, logicalBlock: 4096, preferredBlock: 4096)
        #expect(throws: WorkerFailure(.blockSizeTooSmall, detail: 4096)) { try plan(device, blockSize: 512) }
        #expect(try plan(device).geometry.logicalBlock == 4096)
        // A device whose blocks are larger than the largest supported size still works through the page cache.
        let large = BackingFile(
            size: Self.megabyte, isBlockDevice: true, logicalBlock: 16384, preferredBlock: 16384,
            direct: DirectNeeds(block: 16384)
        )
        #expect(try plan(large).geometry.logicalBlock == 4096)
        #expect(try !plan(large).direct)
    }

    @Test("has physical blocks that are powers of two, from its own blocks to 1 MiB")
    func physical() throws {
        for (preferred, physical) in [
            (0, 512), (512, 512), (4096, 4096), (6000, 4096), (131_072, 131_072), (4 << 20, 1 << 20),
        ] {
            let file = BackingFile(size: 8 << 20, preferredBlock: UInt32(preferred))
            #expect(try plan(file).geometry.physicalBlock == UInt32(physical))
        }
        #expect(
            try plan(BackingFile(size: Self.megabyte, preferredBlock: 512), blockSize: 4096).geometry.physicalBlock
                == 4096)
    }

    @Test("is read-only when that was asked for, or when the file can't be written, and offers no change then")
    func readOnly() throws {
        let asked = try plan(flags: .readOnly)
        #expect(asked.readOnly)
        #expect(asked.geometry.attributes == .readOnly)
        let file = try plan(BackingFile(size: Self.megabyte, writable: false, direct: DirectNeeds(block: 512)))
        #expect(file.readOnly)
        #expect(file.geometry.attributes == [.readOnly, .fileReadOnly])
        #expect(file.geometry.maxDiscardSectors == 0)
        #expect(file.geometry.maxWriteZeroesSectors == 0)
    }

    @Test("of a file offers no ranges where its queues can't wait for the thread that does them")
    func oldKernel() throws {
        var file = BackingFile(size: Self.megabyte, direct: DirectNeeds(block: 512))
        #expect(try plan(file).geometry.maxDiscardSectors > 0)
        file.doesRanges = false
        let geometry = try plan(file).geometry
        #expect(geometry.maxDiscardSectors == 0 && geometry.discardGranularity == 0)
        #expect(geometry.maxWriteZeroesSectors == 0)
    }

    @Test("of a block device names it, and discards only where the kernel can")
    func blockDevice() throws {
        var device = BackingFile(
            size: Self.megabyte, isBlockDevice: true, preferredBlock: 4096, direct: DirectNeeds(block: 512))
        device.major = 259
        device.minor = 4
        let plan = try plan(device)
        #expect(plan.geometry.backingMajor == 259)
        #expect(plan.geometry.backingMinor == 4)
        #expect(plan.geometry.discardGranularity == 512)
        #expect(plan.geometry.maxWriteZeroesSectors == 131_072)
        device.discardsBlocks = false
        #expect(try self.plan(device).geometry.maxDiscardSectors == 0)
        // The kernel's block layer accepts only ranges made of the device's blocks.
        device.discardsBlocks = true
        #expect(try self.plan(device, offset: 100).geometry.maxDiscardSectors == 0)
        #expect(try self.plan(device, offset: 100).geometry.maxWriteZeroesSectors == 0)
    }

    @Test("is always one that the broker accepts")
    func accepted() throws {
        for size in [512, 4096, 10_000, 1 << 20, 1 << 45] as [UInt64] {
            for preferred in [0, 512, 4096, 1 << 22] as [UInt32] {
                for alignment in [nil, 512, 4096, 1000] as [UInt32?] {
                    for offset in [0, 100, 512] as [UInt64] where offset + 4096 <= size {
                        for block in [nil, 512, 4096] as [UInt32?] where UInt64(block ?? 0) + offset <= size {
                            let file = BackingFile(
                                size: size, preferredBlock: preferred, direct: alignment.map { DirectNeeds(block: $0) })
                            let message = WorkerMessage.geometry(
                                try plan(file, offset: offset, blockSize: block).geometry)
                            #expect(WorkerMessage(decoding: message.encoded()) == message)
                        }
                    }
                }
            }
        }
    }
}
