import Foundation
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Ring
@testable import Worker

@Suite("Ranges of a file")
struct RangeTests {
    private static let hasFutexWait = KernelVersion.running() >= KernelVersion(6, 7)

    @Test("are done by system calls: a hole, zeros by whichever way, and zeros that keep their space")
    func work() throws {
        let file = try TestFile(bytes: 1 << 20)
        let direct = try FileDescriptor.open(file.path, O_RDWR | O_DIRECT)
        let work = try FileRangeWork(file: file.file.raw, dataFile: direct.raw, end: 1 << 20)
        var expected = TestFile.pattern(1 << 20)
        let before = try file.allocated()
        for (kind, at) in [(RangeBoard.Kind.discard, 0), (.zero, 256 << 10), (.zeroAllocated, 512 << 10)] {
            #expect(work.perform(kind, UInt64(at), 128 << 10) == 0)
            expected.replaceSubrange(at..<at + 128 << 10, with: [UInt8](repeating: 0, count: 128 << 10))
            #expect(try file.content() == expected)
        }
        #expect(try file.allocated() == before - 256 << 10)
    }

    @Test("do nothing beyond the disk, whatever is asked, and make no file longer")
    func bounds() throws {
        let file = try TestFile(bytes: 1 << 20)
        let before = try file.allocated()
        let work = try FileRangeWork(file: file.file.raw, dataFile: file.file.raw, end: 512 << 10)
        for kind in [RangeBoard.Kind.discard, .zero, .zeroAllocated] {
            for (offset, bytes) in [
                (UInt64(512 << 10), UInt64(4096)), (508 << 10, 8192), (0, 1 << 20), (.max, 1), (0, .max), (1 << 40, 1),
            ] {
                #expect(work.perform(kind, offset, bytes) == -EIO)
            }
        }
        #expect(try file.content() == TestFile.pattern(1 << 20))
        #expect(try file.allocated() == before)
    }

    @Test("that fail say why")
    func fails() throws {
        let file = try TestFile(bytes: 1 << 20)
        let readable = try FileDescriptor.open(file.path, O_RDONLY)
        let work = try FileRangeWork(file: readable.raw, dataFile: readable.raw, end: 1 << 20)
        #expect(work.perform(.discard, 0, 4096) == -EBADF)
        #expect(work.perform(.zeroAllocated, 0, 4096) == -EBADF)
    }

    @Test("go to the thread and back by their queue and tag")
    func board() throws {
        let board = try RangeBoard(queues: 2, depth: 4)
        var done: [UInt64] = []
        let work: (RangeBoard.Kind, UInt64, UInt64) -> Int32 = { _, offset, bytes in
            done.append(offset)
            return -Int32(bytes)
        }
        #expect(!board.serveOnce(work))
        board.ask(.discard, queue: 1, tag: 3, offset: 70, bytes: 7)
        board.ask(.zero, queue: 0, tag: 2, offset: 50, bytes: 5)
        #expect(board.result(queue: 1, tag: 3) == nil)
        #expect(board.serveOnce(work))
        #expect(done.sorted() == [50, 70])
        #expect(board.result(queue: 1, tag: 3) == -7)
        #expect(board.result(queue: 0, tag: 2) == -5)
        #expect(board.result(queue: 0, tag: 1) == nil)
        #expect(!board.serveOnce(work))
        // The place is used again.
        board.ask(.discard, queue: 1, tag: 3, offset: 90, bytes: 9)
        #expect(board.result(queue: 1, tag: 3) == nil)
        #expect(board.serveOnce(work))
        #expect(board.result(queue: 1, tag: 3) == -9)
    }

    /// A queue of that depth with a range thread.
    private func queue(_ board: RangeBoard, depth: UInt16) throws -> Queue<LoopTarget> {
        let ring = try Ring(
            entries: UInt32(depth), completions: UInt32(depth) * 2, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        return try Queue<LoopTarget>(number: 0, depth: depth, maxIOBytes: 4096, ring: ring, board: board)
    }

    @Test(
        "wake the queue that waits for them in its ring, each its own request",
        .enabled(if: hasFutexWait, "this kernel's rings have no FUTEX_WAIT"))
    func wakes() throws {
        let depth: UInt16 = 8
        let board = try RangeBoard(queues: 1, depth: depth)
        let file = try TestFile(bytes: 1 << 20)
        let work = try FileRangeWork(file: file.file.raw, dataFile: file.file.raw, end: 1 << 20)
        // Slow enough for the ring to wait, and endless, as in a worker.
        Thread.detachNewThread {
            board.serve { kind, offset, bytes in
                usleep(2000)
                return work.perform(kind, offset, bytes)
            }
        }
        var queue = try queue(board, depth: depth)
        var target = LoopTarget(
            start: 0, bounds: DiskBounds(size: 1 << 20, maxIOBytes: 65536), readOnly: false, isBlockDevice: false,
            direct: false, writeFlags: 0)
        for round in 0..<20 {
            for tag in 0..<depth {
                let operation = tag % 2 == 0 ? UblkIOOperation.discard : UblkIOOperation.writeZeroes
                queue.ownDescriptors[Int(tag)] = UblkIODescriptor(
                    operationAndFlags: UInt32(operation), sectors: 8, startSector: UInt64(tag) * 8)
                #expect(target.begin(tag, queue.descriptors[Int(tag)], on: &queue) == .pending)
            }
            var ended: Set<UInt16> = []
            while ended.count < Int(depth) {
                let status = queue.ring.submit(waitingFor: 1)
                #expect(status >= 0 || status == -Int(EINTR))
                var batch = queue.ring.completions()
                while let completion = batch.take() {
                    let key = RequestKey(rawValue: completion.userData)
                    let outcome = target.finish(key, result: completion.result, on: &queue)
                    if outcome == .pending { continue }
                    #expect(outcome == .done(0))
                    #expect(ended.insert(key.tag).inserted, "round \(round)")
                }
                queue.ring.finish(batch)
            }
        }
        #expect(queue.ranges.underWay == 0)
        #expect(Array(try file.content()[..<32768]).allSatisfy { $0 == 0 })
    }

    @Test("are not taken for done when the ring is woken for nothing")
    func woken() throws {
        let board = try RangeBoard(queues: 1, depth: 1)
        var queue = try queue(board, depth: 1)
        var target = LoopTarget(
            start: 0, bounds: DiskBounds(size: 1 << 20, maxIOBytes: 65536), readOnly: false, isBlockDevice: false,
            direct: false, writeFlags: 0)
        queue.ownDescriptors[0] = UblkIODescriptor(
            operationAndFlags: UInt32(UblkIOOperation.discard), sectors: 8, startSector: 0)
        #expect(target.begin(0, queue.descriptors[0], on: &queue) == .pending)
        let key = RequestKey(tag: 0, .control)
        for result in [0, -EAGAIN, -EINTR, -ENOMEM, -ECANCELED] {
            queue.ring.discardPending()
            #expect(target.finish(key, result: result, on: &queue) == .pending)
            #expect(queue.ring.pendingEntries().map(\.operation) == [IOUring.Operation.futexWait])
        }
        #expect(board.serveOnce { _, _, _ in -ENOSPC })
        #expect(target.finish(key, result: 0, on: &queue) == .failed(ENOSPC))
        #expect(queue.requests[0].troubled == 0)
    }

    @Test("are not in a file's rings, and a read-only file's have nothing that changes it")
    func unneeded() throws {
        typealias Operation = IOUring.Operation
        let file = try TestFile(bytes: 1 << 20)
        func open(
            _ flags: LaunchMessage.Flags = [], kernel: KernelVersion = KernelVersion(6, 12), canWait: Bool = true
        ) throws -> OpenTarget {
            let launch = LaunchMessage(
                target: .loop, queues: 1, depth: 1, maxIOBytes: 65536, flags: flags.union(.allowOther))
            let client = try ClientFile(checking: file.file.raw, index: 0, launch)
            return try LoopTarget.open(launch, files: [client], kernel: kernel, canWait: canWait)
        }
        let writable = try open()
        #expect(writable.unneeded == [Operation.fallocate])
        #expect(writable.ranges != nil && writable.fileSizeLimit == 1 << 20)
        // Linux 6.6, or an earlier broker's policies.
        for old in [try open(kernel: KernelVersion(6, 6)), try open(canWait: false)] {
            #expect(old.unneeded == [Operation.fallocate, Operation.futexWait])
            #expect(old.ranges == nil && old.geometry.maxDiscardSectors == 0 && old.fileSizeLimit == 1 << 20)
        }
        let readOnly = try open(.readOnly)
        #expect(readOnly.ranges == nil && readOnly.fileSizeLimit == nil)
        for operation in [
            Operation.write, Operation.writeFixed, Operation.fsync, Operation.fallocate, Operation.futexWait,
        ] {
            #expect(readOnly.unneeded.contains(operation))
        }
        #expect(!readOnly.unneeded.contains(Operation.read) && !readOnly.unneeded.contains(Operation.readFixed))
    }
}
