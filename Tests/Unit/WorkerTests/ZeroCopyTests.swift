import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import Ring
@testable import Worker

/// The targets with buffers that are registered with the ring; the tests register what the driver would.
@Suite("Zero copy")
struct ZeroCopyTests {
    private func loop(start: UInt64 = 4096, direct: Bool = false) -> LoopTarget {
        LoopTarget(
            start: start, bounds: DiskBounds(size: 1 << 19, maxIOBytes: 65536), readOnly: false, isBlockDevice: false,
            direct: direct, writeFlags: 0, zeroCopy: true)
    }

    @Test("a loop disk reads and writes through the registered buffer of the request, and nothing else")
    func integrity() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(loop(), files: [file.file.raw], zeroCopy: true)
        let data = TestFile.pattern(8192, seed: 0x77)
        #expect(try queue.write(sector: 24, data) == 8192)
        #expect(Array(try file.content()[(4096 + 24 * 512)...].prefix(8192)) == data)
        #expect(try queue.read(sector: 0, sectors: 8).data == Array(TestFile.pattern(1 << 20)[4096..<8192]))
        let submitted = queue.submitted
        #expect(submitted.map(\.operation) == [IOUring.Operation.writeFixed, IOUring.Operation.readFixed])
        #expect(submitted.allSatisfy { $0.bufferIndex == 0 && $0.flags == IOUring.EntryFlags.fixedFile })
    }

    @Test("more files than have room before the zeros are refused")
    func tooManyFiles() throws {
        #expect(try QueueAssignment.fileTable([8, 9], zeroCopy: true) == [4, 8, 9, 0])
        #expect(try QueueAssignment.fileTable([8], zeroCopy: true) == [4, 8, -1, 0])
        #expect(try QueueAssignment.fileTable([8, 9, 10], zeroCopy: false) == [4, 8, 9, 10])
        let failure = #expect(throws: WorkerFailure.self) {
            try QueueAssignment.fileTable([8, 9, 10], zeroCopy: true)
        }
        #expect(failure?.step == .fileCount && failure?.detail == 3)
    }

    @Test("every target that the worker has is in the list, with its submissions, and its descriptors fit a file table")
    func targets() throws {
        #expect(servedTargets.map { $0.manifest.number } == TargetList.all.map(\.number))
        // The loop of each is compiled for a constant, which must be what the broker and the ring go by.
        for target in servedTargets { #expect(target.submissions == target.manifest.submissions, "\(target)") }
        for target in TargetList.all {
            // A map of blocks is mapped, and in no ring (OverlayOpenTests).
            let mapped = target.hasBlockMap ? 1 : 0
            let most = target.descriptors(DeviceOptions(), queues: 1).upperBound - mapped
            let files = [Int32](repeating: WorkerDescriptor.firstFile, count: most)
            #expect(try QueueAssignment.fileTable(files, zeroCopy: target.takes(.zeroCopy)).count > most)
        }
    }

    @Test("what lies behind the file's end is filled with zeros, at its place in the buffer")
    func endOfFile() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(loop(), files: [file.file.raw], zeroCopy: true)
        #expect(ftruncate(file.file.raw, 4096 + 5000) == 0)
        let read = try queue.read(sector: 0, sectors: 16)
        #expect(read.result == 8192)
        #expect(read.data[..<5000] == TestFile.pattern(1 << 20)[4096..<9096])
        #expect(read.data[5000...].allSatisfy { $0 == 0 })
        // What is beyond the request was not touched.
        let beyond = queue.buffer[8192]
        #expect(beyond == 0xee)
        let submitted = queue.submitted
        #expect(submitted.map(\.file) == [1, 1, RingFiles.zeroes])
        #expect(submitted[2].address == submitted[0].address + 5000)
        #expect(submitted[2].length == 3192)
        // The next request goes the ordinary way again.
        #expect(try queue.read(sector: 0, sectors: 1).result == 512)
        let last = queue.submitted.last?.file
        #expect(last == 1)
    }

    @Test("a read wholly behind the file's end is all zeros")
    func beyondEnd() throws {
        let file = try TestFile(bytes: 1 << 20)
        var queue = try TestQueue(loop(), files: [file.file.raw], zeroCopy: true)
        #expect(ftruncate(file.file.raw, 0) == 0)
        let read = try queue.read(sector: 8, sectors: 128)
        #expect(read.result == 65536)
        #expect(read.data.allSatisfy { $0 == 0 })
    }

    @Test("what the direct file refuses goes through the page cache, from the same pages")
    func directRefused() throws {
        let file = try TestFile(bytes: 1 << 20)
        let other = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        var queue = try TestQueue(
            loop(start: 1, direct: true), files: [file.file.raw, other.raw], zeroCopy: true)
        let read = try queue.read(sector: 0, sectors: 8)
        #expect(read.result == 4096)
        #expect(read.data == Array(TestFile.pattern(1 << 20)[1..<4097]))
        let submitted = queue.submitted
        #expect(submitted.map(\.file) == [2, 1])
        #expect(submitted.allSatisfy { $0.operation == IOUring.Operation.readFixed })
    }

    @Test("a null disk fills the reader's pages with zeros, and leaves the writer's alone")
    func null() throws {
        let target = NullTarget(bounds: DiskBounds(size: 1 << 20, maxIOBytes: 65536), readOnly: false)
        var queue = try TestQueue(target, zeroCopy: true)
        let read = try queue.read(sector: 3, sectors: 16)
        #expect(read.result == 8192)
        #expect(read.data.allSatisfy { $0 == 0 })
        let beyond = queue.buffer[8192]
        #expect(beyond == 0xee)
        let data = TestFile.pattern(4096)
        #expect(try queue.write(sector: 0, data) == 4096)
        let kept = Array(queue.buffer[..<4096])
        #expect(kept == data)
        let files = queue.submitted.map(\.file)
        #expect(files == [RingFiles.zeroes])
    }

    @Test("zeros that come in parts are all there before the request ends, and an error ends it")
    func parts() throws {
        let target = NullTarget(bounds: DiskBounds(size: 1 << 20, maxIOBytes: 65536), readOnly: false)
        var queue = try TestQueue(target, zeroCopy: true)
        func next(_ result: Int32) -> (outcome: Outcome, troubled: UInt32, entry: Submission?) {
            queue.loop.queue.ring.discardPending()
            let outcome = queue.loop.queue.continueZeroes(0, result, length: 8192)
            return (outcome, queue.loop.queue.requests[0].troubled, queue.loop.queue.ring.pendingEntries().last)
        }
        let first = next(4096)
        let address = queue.loop.queue.buffer(of: 0)
        #expect(first.outcome == .pending)
        #expect(first.entry?.length == 4096)
        #expect(first.entry?.address == address + 4096)
        let interrupted = next(-EINTR)
        #expect(interrupted.outcome == .pending)
        #expect(interrupted.entry == first.entry)
        let last = next(4096)
        #expect(last.outcome == .done(8192))
        #expect(last.troubled == 0)
        #expect(last.entry == nil)
        for (result, errno) in [(0, EIO), (-ENOMEM, ENOMEM), (8193, EIO)] as [(Int32, Int32)] {
            let failed = next(result).outcome
            #expect(failed == .failed(errno))
        }
        var outcome = Outcome.pending
        for _ in 0...Request.mostRetries where outcome == .pending { outcome = next(-EAGAIN).outcome }
        #expect(outcome == .failed(EIO))
    }
}
