import CShims
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Ring
@testable import Worker

/// The loop target over real files and the host's kernel.
@Suite("The loop target")
struct LoopTargetTests {
    static let fua: UInt32 = 1 << 13
    static let noUnmap: UInt32 = 1 << 15

    private func target(
        start: UInt64 = 0, size: UInt64 = 1 << 20, readOnly: Bool = false, direct: Bool = false, writeFlags: UInt32 = 0,
        isBlockDevice: Bool = false
    ) -> LoopTarget {
        LoopTarget(
            start: start, bounds: DiskBounds(size: size, maxIOBytes: 65536), readOnly: readOnly,
            isBlockDevice: isBlockDevice, direct: direct, writeFlags: writeFlags)
    }

    /// The work of its range thread.
    private func work(_ file: Int32) throws(SystemError) -> FileRangeWork {
        try FileRangeWork(file: file, dataFile: file, end: 1 << 20)
    }

    @Test("reads what is in the file, and writes what it is told, at its offset")
    func integrity() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(start: 8192, size: 1 << 19), files: [file.file.raw])
        var expected = TestFile.pattern(1 << 20)
        for (sector, sectors) in [(0, 1), (5, 128), (1023, 1), (16, 3)] as [(Int, Int)] {
            let at = 8192 + sector * 512
            let read = try queue.read(sector: UInt64(sector), sectors: UInt32(sectors))
            #expect(read.result == Int32(sectors * 512))
            #expect(read.data == Array(expected[at..<(at + sectors * 512)]))
            let data = TestFile.pattern(sectors * 512, seed: UInt8(sectors) ^ 0xa5)
            #expect(try queue.write(sector: UInt64(sector), data) == Int32(sectors * 512))
            expected.replaceSubrange(at..<(at + sectors * 512), with: data)
        }
        #expect(try file.content() == expected)
    }

    @Test("moves data through the direct file when there is one")
    func direct() throws {
        let file = try TestFile(bytes: 1 << 20)
        let other = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        var queue = try TestQueue(target(direct: true), files: [file.file.raw, other.raw])
        let data = TestFile.pattern(8192, seed: 0x3c)
        #expect(try queue.write(sector: 16, data) == 8192)
        #expect(try queue.read(sector: 16, sectors: 16).data == data)
        let files = queue.submitted.map(\.file)
        #expect(files == [2, 2])
    }

    @Test("does through the page cache what the direct file refuses, and goes back to the direct file after it")
    func directRefused() throws {
        let file = try TestFile(bytes: 1 << 20)
        let other = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        // No file system takes direct I/O at an odd offset.
        var queue = try TestQueue(target(start: 1, size: 1 << 19, direct: true), files: [file.file.raw, other.raw])
        let read = try queue.read(sector: 0, sectors: 8)
        #expect(read.result == 4096)
        #expect(read.data == Array(TestFile.pattern(1 << 20)[1..<4097]))
        #expect(try queue.read(sector: 0, sectors: 8).result == 4096)
        let files = queue.submitted.map(\.file)
        #expect(files == [2, 1, 2, 1])
    }

    @Test("fails what a block device has lost: one that ends early was unplugged")
    func unplugged() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(isBlockDevice: true), files: [file.file.raw])
        #expect(try queue.read(sector: 0, sectors: 8).result == 4096)
        #expect(ftruncate(file.file.raw, 6144) == 0)
        #expect(try queue.read(sector: 8, sectors: 8).result == -EIO)
        #expect(try queue.read(sector: 512, sectors: 8).result == -EIO)
        #expect(try queue.read(sector: 0, sectors: 8).result == 4096)
    }

    @Test("fills with zeros what the file has lost, behind what it still has")
    func shrunk() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(), files: [file.file.raw])
        #expect(ftruncate(file.file.raw, 1000) == 0)
        queue.buffer.copyBytes(from: [UInt8](repeating: 0xee, count: 65536))
        let read = try queue.read(sector: 0, sectors: 8)
        #expect(read.result == 4096)
        #expect(read.data[..<1000] == TestFile.pattern(1000)[...])
        #expect(read.data[1000...].allSatisfy { $0 == 0 })
        queue.buffer.copyBytes(from: [UInt8](repeating: 0xee, count: 65536))
        let beyond = try queue.read(sector: 100, sectors: 4)
        #expect(beyond.result == 2048)
        #expect(beyond.data.allSatisfy { $0 == 0 })
        // Nothing is left over for the next request: an ordinary one is ordinary again.
        #expect(try queue.write(sector: 0, TestFile.pattern(512)) == 512)
        #expect(try queue.read(sector: 0, sectors: 1).data == TestFile.pattern(512))
    }

    @Test("goes on after a short read where it stopped, through the page cache")
    func shortRead() throws {
        let file = try TestFile(bytes: 1 << 20)
        let other = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        var queue = try TestQueue(target(direct: true), files: [file.file.raw, other.raw])
        #expect(ftruncate(file.file.raw, 3000) == 0)
        let read = try queue.read(sector: 0, sectors: 16)
        #expect(read.result == 8192)
        #expect(read.data[..<3000] == TestFile.pattern(3000)[...])
        #expect(read.data[3000...].allSatisfy { $0 == 0 })
        let submitted = queue.submitted
        #expect(submitted.count == 2)
        #expect(submitted[1].file == 1)
        #expect(submitted[1].offset == 3000)
        #expect(submitted[1].length == 8192 - 3000)
        #expect(submitted[1].address == submitted[0].address + 3000)
    }

    @Test("makes forced writes durable, flushes data, and lets nobody turn a write into an append")
    func flags() throws {
        let file = try TestFile(bytes: 1 << 20)
        let flags = IOUring.ReadWrite.noAppend
        var queue = try TestQueue(target(writeFlags: flags), files: [file.file.raw])
        #expect(try queue.write(sector: 0, TestFile.pattern(512)) == 512)
        #expect(try queue.write(sector: 0, TestFile.pattern(512), flags: Self.fua) == 512)
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        let submitted = queue.submitted
        #expect(
            submitted.map(\.operation) == [IOUring.Operation.write, IOUring.Operation.write, IOUring.Operation.fsync])
        #expect(submitted.map(\.operationFlags) == [0x20, 0x22, 1])
        #expect(submitted.allSatisfy { $0.flags == IOUring.EntryFlags.fixedFile })

        // The owner sets O_APPEND on the shared open file.
        #expect(fcntl(file.file.raw, F_SETFL, O_APPEND) == 0)
        #expect(try queue.write(sector: 4, TestFile.pattern(512, seed: 9)) == 512)
        let content = try file.content()
        #expect(content.count == 1 << 20)
        #expect(Array(content[2048..<2560]) == TestFile.pattern(512, seed: 9))
    }

    @Test("gives space back on discard, and reads zeros there")
    func discard() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(), files: [file.file.raw], ranges: work(file.file.raw))
        let before = try file.allocated()
        #expect(try queue.perform(UblkIOOperation.discard, sector: 128, sectors: 1024) == 0)
        #expect(try file.allocated() <= before - 512 * 1024)
        #expect(try file.content().count == 1 << 20)
        #expect(try queue.read(sector: 200, sectors: 8).data.allSatisfy { $0 == 0 })
        #expect(try queue.read(sector: 0, sectors: 8).data == Array(TestFile.pattern(4096)))
    }

    @Test("zeroes a range as a hole, or keeps its blocks when told to")
    func writeZeroes() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(), files: [file.file.raw], ranges: work(file.file.raw))
        let before = try file.allocated()
        let kept = try queue.perform(
            UblkIOOperation.writeZeroes, sector: 0, sectors: 256, flags: Self.noUnmap)
        #expect(kept == 0)
        #expect(try file.allocated() >= before)
        #expect(try queue.read(sector: 0, sectors: 128).data.allSatisfy { $0 == 0 })
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sector: 512, sectors: 256) == 0)
        #expect(try file.allocated() <= before - 128 * 1024)
        #expect(try queue.read(sector: 600, sectors: 8).data.allSatisfy { $0 == 0 })
        #expect(queue.submitted.allSatisfy { $0.operation != IOUring.Operation.fallocate })
    }

    @Test("writes zeros that must keep their space, where the file system has nothing better, too")
    func zeroesOnTmpfs() throws {
        // tmpfs has no ZERO_RANGE.
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("loop", 0) })
        #expect(ftruncate(file.raw, 1 << 20) == 0)
        var queue = try TestQueue(target(), files: [file.raw], ranges: work(file.raw))
        let result = try queue.perform(UblkIOOperation.writeZeroes, sectors: 8, flags: Self.noUnmap)
        #expect(result == 0)
        #expect(try file.status().st_blocks == 8)
    }

    @Test("says 'not supported' for ranges of a file that nobody does, so that the kernel writes zeros or does without")
    func noRanges() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(), files: [file.file.raw])
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sectors: 8) == -EOPNOTSUPP)
        #expect(try queue.perform(UblkIOOperation.discard, sectors: 8) == -EOPNOTSUPP)
        #expect(try file.content() == TestFile.pattern(1 << 20))
    }

    @Test("refuses every change when it is read-only, without asking the file")
    func readOnly() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(readOnly: true), files: [file.file.raw])
        #expect(try queue.write(sector: 0, TestFile.pattern(512, seed: 1)) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.discard, sectors: 8) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.writeZeroes, sectors: 8) == -EROFS)
        #expect(try queue.perform(UblkIOOperation.flush) == 0)
        let count = queue.submitted.count
        #expect(count == 0)
        #expect(try file.content() == TestFile.pattern(1 << 20))
    }

    @Test("refuses what lies beyond the disk, although the file goes on")
    func bounds() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(target(start: 4096, size: 65536), files: [file.file.raw])
        #expect(try queue.read(sector: 127, sectors: 1).result == 512)
        #expect(try queue.read(sector: 128, sectors: 1).result == -EIO)
        #expect(try queue.read(sector: 127, sectors: 2).result == -EIO)
        #expect(try queue.write(sector: .max, TestFile.pattern(512)) == -EIO)
        #expect(try queue.perform(UblkIOOperation.discard, sector: 127, sectors: 2) == -EIO)
        #expect(try queue.perform(99) == -EOPNOTSUPP)
        #expect(try file.content() == TestFile.pattern(1 << 20))
    }

    @Test("passes the file's own error on, and works again afterwards")
    func errors() throws {
        let file = try TestFile(bytes: 1 << 20)
        let readable = try FileDescriptor.open(file.path, O_RDONLY)
        var queue = try TestQueue(target(), files: [readable.raw])
        #expect(try queue.write(sector: 0, TestFile.pattern(512)) == -EBADF)
        #expect(try queue.read(sector: 0, sectors: 1).result == 512)
    }

    @Test("retries an interrupted read a number of times, then fails it")
    func retries() throws {
        var target = target()
        var queue = try TestQueue(target)
        queue.loop.queue.ownDescriptors[0] = UblkIODescriptor(operationAndFlags: 0, sectors: 8, startSector: 0)
        let key = RequestKey(tag: 0, .data)
        for _ in 0..<Request.mostRetries {
            #expect(target.finish(key, result: -EAGAIN, on: &queue.loop.queue) == .pending)
            queue.loop.queue.ring.discardPending()
        }
        #expect(target.finish(key, result: -EAGAIN, on: &queue.loop.queue) == .failed(EIO))
        #expect(queue.loop.queue.requests[0].troubled == 0)
        #expect(queue.loop.queue.requests[0].retries == 0)
        #expect(target.finish(key, result: 4096, on: &queue.loop.queue) == .done(4096))
    }

    @Test("never commits more than the request, a part of it, or a written nothing")
    func strangeResults() throws {
        var target = target()
        var queue = try TestQueue(target)
        func outcome(_ operation: UInt8, _ results: [Int32]) -> Outcome {
            queue.loop.queue.ownDescriptors[0] = UblkIODescriptor(
                operationAndFlags: UInt32(operation), sectors: 8, startSector: 0)
            var last = Outcome.pending
            for result in results {
                last = target.finish(RequestKey(tag: 0, .data), result: result, on: &queue.loop.queue)
                queue.loop.queue.ring.discardPending()
            }
            return last
        }
        #expect(outcome(UblkIOOperation.read, [4097]) == .failed(EIO))
        #expect(outcome(UblkIOOperation.write, [Int32.max]) == .failed(EIO))
        #expect(outcome(UblkIOOperation.write, [0]) == .failed(EIO))
        #expect(outcome(UblkIOOperation.write, [1000]) == .pending)
        #expect(outcome(UblkIOOperation.write, [3096]) == .done(4096))
        #expect(outcome(UblkIOOperation.read, [1000, 4096]) == .failed(EIO))
        #expect(outcome(UblkIOOperation.read, [1, 1, 0]) == .done(4096))
        #expect(outcome(UblkIOOperation.write, [512, -ENOSPC]) == .failed(ENOSPC))
        #expect(outcome(UblkIOOperation.read, [4096]) == .done(4096))
    }

    @Test("has few discards and write-zeroes under way at once, and begins the others in their order as those end")
    func fewRanges() throws {
        var target = target(isBlockDevice: true)
        let ring = try Ring(entries: 8, completions: 16, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        var queue = try Queue<LoopTarget>(number: 0, depth: 8, maxIOBytes: 4096, ring: ring)
        for tag in 0..<8 {
            let operation = tag % 2 == 0 ? UblkIOOperation.discard : UblkIOOperation.writeZeroes
            queue.ownDescriptors[tag] = UblkIODescriptor(
                operationAndFlags: UInt32(operation), sectors: 8, startSector: UInt64(tag) * 8)
        }
        func submitted() -> [UInt64] {
            defer { queue.ring.discardPending() }
            // A discard has its command's number in the offset field, and its start in the address field.
            return queue.ring.pendingEntries().map {
                ($0.operation == IOUring.Operation.uringCommand ? $0.address : $0.offset) / 4096
            }
        }
        func finish(_ tag: UInt16, _ result: Int32) -> Outcome {
            target.finish(RequestKey(tag: tag, .control), result: result, on: &queue)
        }
        for tag: UInt16 in 0..<8 {
            #expect(target.begin(tag, queue.descriptors[Int(tag)], on: &queue) == .pending)
        }
        #expect(submitted() == [0, 1, 2, 3])
        #expect(finish(2, 0) == .done(0))
        #expect(submitted() == [4])
        #expect(finish(0, -EIO) == .failed(EIO))
        #expect(finish(1, -EINTR) == .pending)
        #expect(submitted() == [5, 1])
        for tag: UInt16 in [1, 3, 4, 5, 6, 7] { #expect(finish(tag, 0) == .done(0)) }
        #expect(submitted() == [6, 7])
        #expect(queue.ranges.underWay == 0)
        #expect(target.begin(2, queue.descriptors[2], on: &queue) == .pending)
        #expect(submitted() == [2])
    }

    @Test("says 'no room' to the writer for a quota and for a limit of the file's size, which no block device can name")
    func noRoom() throws {
        var target = target()
        var queue = try TestQueue(target)
        for (operation, kind) in [
            (UblkIOOperation.write, .data), (UblkIOOperation.writeZeroes, .control), (UblkIOOperation.flush, .control),
        ] as [(UInt8, RequestKey.Kind)] {
            queue.loop.queue.ownDescriptors[0] = UblkIODescriptor(
                operationAndFlags: UInt32(operation), sectors: 8, startSector: 0)
            for (errno, wanted) in [(EDQUOT, ENOSPC), (EFBIG, ENOSPC), (ENOSPC, ENOSPC), (EIO, EIO)] {
                let outcome = target.finish(RequestKey(tag: 0, kind), result: -errno, on: &queue.loop.queue)
                #expect(outcome == .failed(wanted))
            }
        }
    }

    @Test("begins an interrupted flush, discard or write-zeroes anew, a number of times", arguments: [EINTR, EAGAIN])
    func interrupted(errno: Int32) throws {
        var target = target(isBlockDevice: true)
        var queue = try TestQueue(target)
        for operation in [UblkIOOperation.flush, UblkIOOperation.discard, UblkIOOperation.writeZeroes] {
            queue.loop.queue.ring.discardPending()
            queue.loop.queue.ownDescriptors[0] = UblkIODescriptor(
                operationAndFlags: UInt32(operation), sectors: 8, startSector: 16)
            let key = RequestKey(tag: 0, .control)
            let first = target.beginRare(0, on: &queue.loop.queue)
            #expect(first == .pending)
            for _ in 0..<Request.mostRetries {
                #expect(target.finish(key, result: -errno, on: &queue.loop.queue) == .pending)
            }
            let entries = queue.loop.queue.ring.pendingEntries()
            #expect(entries.count == Int(Request.mostRetries) + 1)
            #expect(entries.allSatisfy { $0 == entries[0] })
            #expect(target.finish(key, result: -errno, on: &queue.loop.queue) == .failed(EIO))
            #expect(queue.loop.queue.requests[0].retries == 0)
            // The next request has all its retries again.
            #expect(target.finish(key, result: -errno, on: &queue.loop.queue) == .pending)
            #expect(target.finish(key, result: 0, on: &queue.loop.queue) == .done(0))
            #expect(queue.loop.queue.requests[0].troubled == 0)
        }
    }

    @Test("writes the rest of a part to the direct file, where no page of it is left in the cache")
    func shortWrite() throws {
        var target = target(direct: true)
        var queue = try TestQueue(target)
        queue.loop.queue.ownDescriptors[0] = UblkIODescriptor(
            operationAndFlags: UInt32(UblkIOOperation.write) | Self.fua, sectors: 16, startSector: 8)
        let key = RequestKey(tag: 0, .data)
        #expect(target.finish(key, result: 4096, on: &queue.loop.queue) == .pending)
        let rest = try #require(queue.loop.queue.ring.pendingEntries().last)
        let buffer = queue.loop.queue.buffer(of: 0)
        #expect(rest.file == LoopTarget.directFile)
        #expect((rest.offset, rest.address, rest.length) == (8 * 512 + 4096, buffer + 4096, 4096))
        // Still forced.
        #expect(rest.operationFlags == IOUring.ReadWrite.dataSync)
        // Unless the direct file refuses the rest.
        #expect(target.finish(key, result: -EINVAL, on: &queue.loop.queue) == .pending)
        #expect(queue.loop.queue.ring.pendingEntries().last?.file == LoopTarget.bufferedFile)
        #expect(target.finish(key, result: 4096, on: &queue.loop.queue) == .done(8192))
    }
}
