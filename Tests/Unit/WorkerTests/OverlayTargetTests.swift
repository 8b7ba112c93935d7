import CShims
import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import Ring
@testable import Worker

@Suite("The overlay target")
struct OverlayTargetTests {
    @Test(
        "random requests side by side, many in one block, with short results, errors and killed workers: each sector is what a model says",
        arguments: [false, true])
    func model(zeroCopy: Bool) throws {
        let rounds = 20
        var kills = 0
        var ended: [Int32: Int] = [:]
        for round in 0..<rounds {
            let seed = round == 0 ? 1 : UInt64.random(in: .min ... .max)
            var kernel = try OverlayKernel(seed: seed, zeroCopy: zeroCopy)
            defer { kernel.deallocate() }
            try kernel.run(requests: 3000)
            #expect(kernel.failure == nil, "seed \(seed): \(kernel.failure ?? "")")
            kills += kernel.kills
            for (result, count) in kernel.ended { ended[result, default: 0] += count }
            #expect(kernel.mostRuns > 8, "seed \(seed)")
            // Without a copy, only blocks that are copied up go through the memory of the worker.
            #expect(!zeroCopy || kernel.copies > 100, "seed \(seed)")
        }
        // Enough of each kind happened: in all of them, since a single one has few of some by chance.
        #expect(kills > 2 * rounds, "\(kills)")
        #expect(ended[1, default: 0] > 500 * rounds && ended[0, default: 0] > 100 * rounds, "\(ended)")
        #expect(ended[-ENOSPC, default: 0] + ended[-EIO, default: 0] > rounds, "\(ended)")
    }

    /// A target over a map of its own, which stays.
    private static func target(
        _ size: UInt64, base: UInt64? = nil, map: UnsafeMutableRawPointer, readOnly: Bool = false,
        zeroCopy: Bool = false,
        isDisk: Bool = false
    ) -> OverlayTarget {
        OverlayTarget(
            bounds: DiskBounds(size: size, maxIOBytes: 65536), readOnly: readOnly,
            baseSectors: (base ?? size) / 512, baseIsBlockDevice: isDisk, writeFlags: 0, zeroCopy: zeroCopy,
            map: LiveMap(map, blocks: BlockMap.blocks(disk: size)))
    }

    private static func withMap(_ size: UInt64, _ body: (UnsafeMutableRawPointer) throws -> Void) rethrows {
        let bytes = Int(BlockMap.bytes(disk: size))
        let map = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 8)
        memset(map, 0, bytes)
        defer { map.deallocate() }
        try body(map)
    }

    @Test("over real files: what was written is in the layer at its place, and the base stays as it is")
    func files() throws {
        let size: UInt64 = 1 << 20
        try Self.withMap(size) { map in
            let base = try TestFile(bytes: Int(size))
            let layer = try TestFile(bytes: 0)
            #expect(ftruncate(layer.file.raw, off_t(size)) == 0)
            let ranges = try FileRangeWork(file: layer.file.raw, dataFile: layer.file.raw, end: size)
            var queue = try TestQueue(
                Self.target(size, map: map), files: [layer.file.raw, base.file.raw], ranges: ranges)
            let data = TestFile.pattern(8192, seed: 9)
            #expect(try queue.write(sector: 16, data) == 8192)
            // A part of a block: the rest comes from the base.
            #expect(try queue.write(sector: 35, TestFile.pattern(512, seed: 3)) == 512)
            var expected = TestFile.pattern(Int(size))
            expected.replaceSubrange(8192..<16384, with: data)
            expected.replaceSubrange(35 << 9..<36 << 9, with: TestFile.pattern(512, seed: 3))
            #expect(try queue.perform(UblkIOOperation.discard, sector: 64, sectors: 64) == 0)
            expected.replaceSubrange(64 << 9..<128 << 9, with: [UInt8](repeating: 0, count: 64 << 9))
            #expect(try queue.perform(UblkIOOperation.writeZeroes, sector: 133, sectors: 2) == 0)
            expected.replaceSubrange(133 << 9..<135 << 9, with: [UInt8](repeating: 0, count: 1024))
            for sector in stride(from: UInt64(0), to: size >> 9, by: 128) {
                let read = try queue.read(sector: sector, sectors: 128)
                let isRight =
                    read.result == 65536 && read.data == Array(expected[Int(sector) << 9..<Int(sector + 128) << 9])
                #expect(isRight, "\(sector)")
            }
            let isUntouched = try base.content() == TestFile.pattern(Int(size))
            #expect(isUntouched)
            let kept = try layer.content()
            let isThere = Array(kept[8192..<16384]) == data
            #expect(isThere)
            // 2 blocks, and 2 that were copied.
            #expect(try layer.allocated() <= 4 * 4096 + 4096)
        }
    }

    @Test("a discard gives the space of the layer back, and what comes after it is there")
    func gives() throws {
        let size: UInt64 = 1 << 20
        try Self.withMap(size) { map in
            let base = try TestFile(bytes: Int(size))
            let layer = try TestFile(bytes: 0)
            #expect(ftruncate(layer.file.raw, off_t(size)) == 0)
            let ranges = try FileRangeWork(file: layer.file.raw, dataFile: layer.file.raw, end: size)
            var queue = try TestQueue(
                Self.target(size, map: map), files: [layer.file.raw, base.file.raw], ranges: ranges)
            for sector in stride(from: UInt64(0), to: size >> 9, by: 128) {
                #expect(try queue.write(sector: sector, TestFile.pattern(65536, seed: 1)) == 65536)
            }
            let full = try layer.allocated()
            #expect(full >= Int(size))
            #expect(try queue.perform(UblkIOOperation.discard, sectors: UInt32(size >> 9)) == 0)
            #expect(try layer.allocated() < full / 2)
            #expect(try queue.read(sector: 0, sectors: 8).data.allSatisfy { $0 == 0 })
            #expect(try queue.write(sector: 3, TestFile.pattern(512, seed: 2)) == 512)
            let block = try queue.read(sector: 0, sectors: 8).data
            let isRight =
                Array(block[1536..<2048]) == TestFile.pattern(512, seed: 2) && block[..<1536].allSatisfy { $0 == 0 }
            #expect(isRight)
        }
    }

    @Test("a state that no worker writes is an error, and not the base's data")
    func unknownState() throws {
        let size: UInt64 = 1 << 20
        try Self.withMap(size) { map in
            let base = try TestFile(bytes: Int(size))
            let layer = try TestFile(bytes: Int(size))
            memset(map, 0xff, 1)
            var queue = try TestQueue(Self.target(size, map: map), files: [layer.file.raw, base.file.raw])
            #expect(try queue.read(sector: 0, sectors: 8).result == -EIO)
            #expect(try queue.write(sector: 0, TestFile.pattern(4096)) == -EIO)
            #expect(try queue.write(sector: 1, TestFile.pattern(512)) == -EIO)
            #expect(try queue.perform(UblkIOOperation.writeZeroes, sector: 1, sectors: 1) == -EIO)
            #expect(try queue.read(sector: 32, sectors: 8).result == 4096)
            // Zeroing the whole block makes it known again.
            #expect(try queue.perform(UblkIOOperation.writeZeroes, sectors: 8) == 0)
            #expect(try queue.read(sector: 0, sectors: 8).data.allSatisfy { $0 == 0 })
        }
    }

    @Test("refuses writes when it is read-only, and what lies beyond its end")
    func refused() throws {
        let size: UInt64 = 1 << 20
        try Self.withMap(size) { map in
            let base = try TestFile(bytes: Int(size))
            let layer = try TestFile(bytes: Int(size))
            var queue = try TestQueue(
                Self.target(size, map: map, readOnly: true), files: [layer.file.raw, base.file.raw])
            #expect(try queue.write(sector: 0, TestFile.pattern(4096)) == -EROFS)
            for operation in [UblkIOOperation.discard, UblkIOOperation.writeZeroes] {
                #expect(try queue.perform(operation, sectors: 8) == -EROFS)
            }
            #expect(try queue.perform(UblkIOOperation.flush) == 0)
            #expect(try queue.read(sector: 2048 - 7, sectors: 8).result == -EIO)
            #expect(try queue.read(sector: 1, sectors: 8).result == 4096)
        }
    }

    @Test("a disk that ends early is gone: its data is not zeros")
    func shorterDisk() throws {
        let size: UInt64 = 1 << 20
        for isDisk in [true, false] {
            try Self.withMap(size) { map in
                let base = try TestFile(bytes: 8192)
                let layer = try TestFile(bytes: Int(size))
                var queue = try TestQueue(
                    Self.target(size, map: map, isDisk: isDisk), files: [layer.file.raw, base.file.raw])
                let read = try queue.read(sector: 8, sectors: 16)
                #expect(read.result == (isDisk ? -EIO : 8192))
                #expect(try queue.write(sector: 33, TestFile.pattern(512)) == (isDisk ? -EIO : 512))
                if !isDisk { #expect(read.data[4096...].allSatisfy { $0 == 0 }) }
            }
        }
    }

    @Test("zeros behind the base's end stay zeros for the next worker, whose base may be longer")
    func zerosBehindTheBase() throws {
        let size: UInt64 = 1 << 20
        try Self.withMap(size) { map in
            let base = try TestFile(bytes: Int(size))
            let layer = try TestFile(bytes: 0)
            #expect(ftruncate(layer.file.raw, off_t(size)) == 0)
            let files = [layer.file.raw, base.file.raw]
            // The base ends in the middle of block 2.
            var queue = try TestQueue(Self.target(size, base: 17 * 512, map: map), files: files)
            for sector: UInt64 in [18, 41] {
                #expect(try queue.perform(UblkIOOperation.writeZeroes, sector: sector, sectors: 2) == 0)
            }
            var later = try TestQueue(Self.target(size, map: map), files: files)
            for sector: UInt64 in [18, 41] {
                #expect(try later.read(sector: sector, sectors: 2).data.allSatisfy { $0 == 0 }, "\(sector)")
            }
            let first = try later.read(sector: 16, sectors: 1).data
            #expect(first == Array(TestFile.pattern(Int(size))[16 << 9..<17 << 9]))
        }
    }

    @Test("the map: states and ends of runs are what a plain array says")
    func map() {
        var random = SplitMix(state: 7)
        let blocks = 700
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 256, alignment: 8)
        memset(memory, 0, 256)
        defer { memory.deallocate() }
        let map = LiveMap(memory, blocks: UInt64(blocks))
        var plain = [BlockState](repeating: .base, count: blocks)
        for _ in 0..<3000 {
            let first = Int(random.next() % UInt64(blocks))
            let count = 1 + Int(random.next() % UInt64(min(blocks - first, random.next() % 2 == 0 ? 5 : 300)))
            let state = BlockState(rawValue: UInt8(random.next() % 3))!
            map.set(UInt64(first)..<UInt64(first + count), state)
            for block in first..<(first + count) { plain[block] = state }
            let at = Int(random.next() % UInt64(blocks))
            let limit = at + Int(random.next() % UInt64(blocks - at + 1))
            let found = map.end(of: plain[at], from: UInt64(at), to: UInt64(limit))
            let wanted = plain[at..<limit].firstIndex { $0 != plain[at] } ?? limit
            #expect(found == UInt64(wanted) && map.state(UInt64(at)) == plain[at])
            #expect(map.hasLayer(UInt64(at)..<UInt64(limit)) == plain[at..<limit].contains(.layer))
        }
    }
}

/// Real memfds and files, and what is none.
@Suite("Opening target overlay")
struct OverlayOpenTests {
    private static let size: UInt64 = (1 << 20) + 512

    static func memory(_ bytes: UInt64, seals: Int32 = 1 | 2 | 4) throws -> FileDescriptor {
        let file = FileDescriptor(
            owning: try call("memfd_create") { memfd_create("test", UInt32(MFD_CLOEXEC | MFD_ALLOW_SEALING)) })
        try call("ftruncate") { ftruncate(file.raw, off_t(bytes)) }
        // F_ADD_SEALS.
        if seals != 0 { try call("seal") { fcntl(file.raw, 1033, seals) } }
        return file
    }

    private func opened(
        _ layer: Int32, _ map: Int32, _ base: Int32, _ kind: LayerKind = .memory
    ) throws(WorkerFailure) -> OpenTarget {
        var options = DeviceOptions(initialOf: .overlay)
        options.size = Self.size
        options.layerKind = kind
        let launch = LaunchMessage(
            target: .overlay, queues: 1, depth: 1, maxIOBytes: 4096, flags: [.allowOther], options: options)
        var files: [ClientFile] = []
        for (index, descriptor) in [layer, map, base].enumerated() {
            files.append(try ClientFile(checking: descriptor, index: index, launch))
        }
        return try OverlayTarget.open(launch, files: files, kernel: .running(), canWait: true)
    }

    private func refusal(
        _ layer: Int32, _ map: Int32, _ base: Int32, _ kind: LayerKind = .memory
    ) -> WorkerFailure? {
        do throws(WorkerFailure) { _ = try opened(layer, map, base, kind) } catch { return error }
        return nil
    }

    @Test("makes a disk of the size that was counted, which needs no flush and whose ring does not sync")
    func opens() throws {
        let layer = try Self.memory(BlockMap.layerBytes(disk: Self.size))
        let map = try Self.memory(BlockMap.bytes(disk: Self.size))
        let base = try TestFile(bytes: 4096)
        let reader = try FileDescriptor.open(base.path, O_RDONLY)
        let open = try opened(layer.raw, map.raw, reader.raw)
        #expect(open.geometry.size == Self.size && open.geometry.attributes == .buffered)
        #expect(open.geometry.discardGranularity == 4096 && open.fileSizeLimit == BlockMap.layerBytes(disk: Self.size))
        #expect(open.files == [layer.raw, reader.raw])
    }

    @Test(
        "refuses a base that can be written, a map that is not sealed at its size, and a layer of another size or kind")
    func refuses() throws {
        let layer = try Self.memory(BlockMap.layerBytes(disk: Self.size))
        let map = try Self.memory(BlockMap.bytes(disk: Self.size))
        let base = try TestFile(bytes: 4096)
        let reader = try FileDescriptor.open(base.path, O_RDONLY)
        #expect(refusal(layer.raw, map.raw, base.file.raw)?.step == .baseWritable)
        let loose = try Self.memory(BlockMap.bytes(disk: Self.size), seals: 0)
        #expect(refusal(layer.raw, loose.raw, reader.raw)?.step == .memoryNotSealed)
        let long = try Self.memory(BlockMap.bytes(disk: Self.size) + 4096)
        #expect(refusal(layer.raw, long.raw, reader.raw)?.step == .memorySize)
        #expect(refusal(base.file.raw, map.raw, reader.raw)?.step == .memoryNotSealed)
        let short = try Self.memory(Self.size)
        #expect(refusal(short.raw, map.raw, reader.raw)?.step == .memorySize)
        // A file without seals is a layer of the other kind, when it has the size.
        let file = try TestFile(bytes: Int(BlockMap.layerBytes(disk: Self.size)))
        #expect(refusal(file.file.raw, map.raw, reader.raw, .scratch) == nil)
        #expect(refusal(base.file.raw, map.raw, reader.raw, .scratch) == WorkerFailure(.layerUnusable, detail: 4096))
        let readable = try FileDescriptor.open(file.path, O_RDONLY)
        #expect(refusal(readable.raw, map.raw, reader.raw, .scratch)?.step == .layerUnusable)
    }
}
