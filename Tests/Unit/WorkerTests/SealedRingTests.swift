import Glibc
import KernelABI
import Ring
import Sandbox
import SystemCalls
import Testing
import WorkerProtocol

@testable import Worker

/// Against the host's kernel.
@Suite("A worker's ring")
struct SealedRingTests {
    static let seal = RingSeal(
        operations: [IOUring.Operation.uringCommand, IOUring.Operation.read, IOUring.Operation.write],
        registerOperations: [UInt8(IOUring.Register.enableRings)], flagsAllowed: 0,
        flagsRequired: IOUring.EntryFlags.fixedFile)

    @Test("is sealed when it is handed out, has no descriptor, and still serves")
    func sealed() throws {
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        try file.writeAll([1, 2, 3, 4])
        var ring = try SealedRing.make(
            queue: 0, entries: 4, tables: SealedRing.Tables(files: [file.raw]), seal: Self.seal)
        #expect(ring.descriptor == -1)
        #expect(try SealedRing.probe(&ring, Self.seal) == nil)
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 8, alignment: 8)
        defer { memory.deallocate() }
        ring.push(
            .read(file: 0, into: UInt64(UInt(bitPattern: memory)), length: 8, offset: 0, userData: 1))
        #expect(ring.submit(waitingFor: 1) == 0)
        var batch = ring.completions()
        #expect(batch.take()?.result == 4)
        ring.finish(batch)
    }

    @Test("whose wall is missing is found out by the probe")
    func unsealed() throws {
        var ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        let hole = try SealedRing.probe(&ring, Self.seal)
        #expect(hole != nil)
    }

    @Test("whose wall forgets the required flag is found out by the probe")
    func withoutFlag() throws {
        var ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags)
        var weaker = Self.seal
        weaker.flagsRequired = 0
        weaker.flagsAllowed = IOUring.EntryFlags.fixedFile
        try ring.registerIndex()
        try ring.restrict(to: weaker)
        try ring.enable()
        let hole = try SealedRing.probe(&ring, Self.seal)
        guard case .operation(IOUring.Operation.uringCommand, _) = hole else {
            Issue.record("the probe found \(String(describing: hole))")
            return
        }
    }

    @Test("whose wall allows one operation more is found out by the probe")
    func oneMore() throws {
        var ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags)
        var weaker = Self.seal
        weaker.operations.append(IOUring.Operation.nop)
        try ring.registerIndex()
        try ring.restrict(to: weaker)
        try ring.enable()
        #expect(try SealedRing.probe(&ring, Self.seal) == .operation(IOUring.Operation.nop, result: 0))
    }

    @Test("of the main thread can do nothing at all")
    func idle() throws {
        let nothing = RingSeal(
            operations: [], registerOperations: [UInt8(IOUring.Register.enableRings)], flagsAllowed: 0,
            flagsRequired: 0)
        var ring = try SealedRing.make(queue: .max, entries: 1, tables: SealedRing.Tables(files: []), seal: nothing)
        for operation: UInt8 in 0...60 {
            ring.push(SubmissionEntry(operation: operation, flags: 0, file: -1, userData: 1))
            #expect(ring.submit(waitingFor: 1) == 0)
            var batch = ring.completions()
            let result = batch.take()?.result
            // EINVAL: an operation that this kernel does not have.
            #expect(result == -EACCES || result == -EINVAL)
            ring.finish(batch)
        }
    }

    @Test("that can't be made says which queue it was for")
    func failure() {
        #expect(throws: WorkerFailure(.ring, errno: EBADF, detail: 3)) {
            _ = try SealedRing.make(queue: 3, entries: 4, tables: SealedRing.Tables(files: [-77]), seal: Self.seal)
                .capacity
        }
    }
}

@Suite("A queue")
struct QueueTests {
    @Test("whose fetches the driver refuses says so, with the driver's reason")
    func refusedFetch() throws {
        // A memory file does not support URING_CMD.
        let file = FileDescriptor(owning: try call("memfd_create") { memfd_create("x", 0) })
        let ring = try SealedRing.make(
            queue: 0, entries: 4, tables: SealedRing.Tables(files: [file.raw]), seal: SealedRingTests.seal)
        var queue = try Queue<NullTarget>(number: 2, depth: 4, maxIOBytes: 4096, ring: ring)
        var thrown: SystemError?
        do { try queue.fetchAll() } catch { thrown = error }
        #expect(thrown == SystemError("fetch on queue 2", EOPNOTSUPP))
    }

    @Test("gives every tag page-aligned memory of its own")
    func buffers() throws {
        let ring = try Ring(entries: 8, completions: 16, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        let queue = try Queue<NullTarget>(number: 0, depth: 8, maxIOBytes: 5000, ring: ring)
        let stride = queue.bufferStride
        #expect(stride == 8192)
        for tag in 0..<UInt16(8) {
            let address = queue.buffer(of: tag)
            #expect(address % 4096 == 0)
            #expect(address == queue.bufferBase + UInt64(tag) * 8192)
            memset(queue.bufferPointer(of: tag), 0xff, 8192)
        }
    }

    @Test("counts the tags that the driver takes back, and stops at any other answer")
    func aborts() throws {
        let ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        let head = SubmissionEntry.head(operation: IOUring.Operation.nop, flags: 0, file: -1)
        let queue = try Queue<NullTarget>(number: 0, depth: 2, maxIOBytes: 4096, ring: ring, commandHead: head)
        let bounds = DiskBounds(size: 4096, maxIOBytes: 4096)
        var loop = QueueLoop(queue: queue, target: NullTarget(bounds: bounds, readOnly: false))
        // A NOP with bit 0 of its flags completes with the number in its length field (IORING_NOP_INJECT_RESULT).
        func complete(with result: Int32) -> Int {
            loop.queue.ring.push(
                SubmissionEntry(
                    operation: IOUring.Operation.nop, flags: 0, file: -1, length: UInt32(bitPattern: result),
                    operationFlags: 1, userData: RequestKey(tag: 0, .command).rawValue))
            return loop.turn()
        }
        #expect(complete(with: -ENODEV) == 0)
        #expect(loop.queue.live == 1)
        #expect(complete(with: -ENODEV) == 0)
        #expect(loop.queue.live == 0)
        #expect(complete(with: -EINVAL) == -Int(EINVAL))
    }

    @Test("after a command that made no sense stops too")
    func nonsense() throws {
        let ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags & ~IOUring.Setup.disabled)
        let queue = try Queue<NullTarget>(number: 0, depth: 1, maxIOBytes: 4096, ring: ring)
        let bounds = DiskBounds(size: 4096, maxIOBytes: 4096)
        var loop = QueueLoop(queue: queue, target: NullTarget(bounds: bounds, readOnly: false))
        loop.queue.ring.push(
            SubmissionEntry(
                operation: IOUring.Operation.nop, flags: 0, file: -1, length: 1, operationFlags: 1, userData: 0))
        #expect(loop.turn() == -Int(EPROTO))
    }
}

@Suite("Landlock")
struct LandlockTests {
    @Test("denies each right from the version that has it on")
    func rights() {
        #expect(Landlock.Rights(version: 1).files == 0x1fff)
        #expect(Landlock.Rights(version: 2).files == 0x3fff)
        #expect(Landlock.Rights(version: 3).files == 0x7fff)
        #expect(Landlock.Rights(version: 3).network == 0)
        #expect(Landlock.Rights(version: 4).files == 0x7fff)
        #expect(Landlock.Rights(version: 4).network == 0b11)
        #expect(Landlock.Rights(version: 4).attributeBytes == 16)
        #expect(Landlock.Rights(version: 5).files == 0xffff)
        #expect(Landlock.Rights(version: 5).scopes == 0)
        #expect(Landlock.Rights(version: 6).scopes == 0b11)
        #expect(Landlock.Rights(version: 6).attributeBytes == 24)
        #expect(Landlock.Rights(version: 8).files == 0xffff)
        #expect(Landlock.Rights(version: 9).files == 0x1ffff)
        #expect(Landlock.Rights(version: 10).network == 0b1111)
        // A future kernel: the known rights.
        #expect(Landlock.Rights(version: 99) == Landlock.Rights(version: 10))
    }
}

@Suite("The threads of a starting worker")
struct RendezvousTests {
    @Test("are waited for, and the first failure is the one that is reported")
    func failure() {
        let rendezvous = Rendezvous(queues: 2)
        rendezvous.reportPrepared(canMakeRings: true)
        rendezvous.report(WorkerFailure(.memory, errno: ENOMEM, detail: 1))
        rendezvous.report(WorkerFailure(.fetch, errno: EIO, detail: 0))
        #expect(throws: WorkerFailure(.memory, errno: ENOMEM, detail: 1)) { try rendezvous.waitUntilPrepared() }
        #expect(throws: WorkerFailure(.memory, errno: ENOMEM, detail: 1)) { try rendezvous.waitUntilServing() }
    }

    @Test("that all did their part let the main thread go on")
    func success() throws {
        let rendezvous = Rendezvous(queues: 2)
        rendezvous.reportPrepared(canMakeRings: false)
        rendezvous.reportPrepared(canMakeRings: false)
        try rendezvous.waitUntilPrepared()
        #expect(!rendezvous.someQueueCanMakeRings)
        rendezvous.letFetch()
        rendezvous.waitUntilMayFetch()
        rendezvous.reportServing()
        rendezvous.reportServing()
        try rendezvous.waitUntilServing()
        #expect(!rendezvous.reportFinished())
        #expect(rendezvous.reportFinished())
    }
}
