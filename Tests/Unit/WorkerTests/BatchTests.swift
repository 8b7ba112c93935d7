import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Ring
@testable import Worker

/// The loop of batch mode, with completions made by the tests: only a driver can make real ones.
@Suite("Batch mode")
struct BatchTests {
    private static let more = IOUring.CompletionFlags.more

    private func loop(depth: UInt16 = 8, zeroCopy: Bool = false) throws -> BatchLoop<NullTarget> {
        let ring = try Ring(
            entries: UInt32(depth) + 2, completions: UInt32(depth) * 4,
            flags: SealedRing.flags & ~IOUring.Setup.disabled)
        let queue = try Queue<NullTarget>(
            number: 3, depth: depth, maxIOBytes: 4096, ring: ring, buffers: zeroCopy ? .registered() : .own)
        let batch = try Batch(queue: 3, depth: depth, zeroCopy: zeroCopy)
        let target = NullTarget(bounds: DiskBounds(size: 1 << 20, maxIOBytes: 4096), readOnly: false)
        for tag in 0..<Int(depth) {
            queue.ownDescriptors[tag] = UblkIODescriptor(
                operationAndFlags: UInt32(UblkIOOperation.write), sectors: UInt32(tag % 8) + 1, startSector: 0)
        }
        return BatchLoop(queue: queue, target: target, batch: batch)
    }

    /// Plays the driver: tags in a buffer, and the completion that brings it.
    private func bring(
        _ tags: [UInt16], buffer: UInt32, flags: UInt32 = more, to loop: inout BatchLoop<NullTarget>
    ) -> Int {
        let memory = UnsafeMutablePointer(mutating: loop.batch.tags(inBuffer: buffer))
        for (index, tag) in tags.enumerated() { memory[index] = tag }
        return loop.begin(
            CompletionEntry(
                userData: 0, result: Int32(tags.count * 2),
                flags: flags | IOUring.CompletionFlags.buffer | buffer << 16))
    }

    /// The elements of a list, as the driver would read them.
    private func elements(_ entry: Submission, bytes: Int) throws -> [[UInt64]] {
        let count = Int(entry.payload >> 32 & 0xffff)
        let memory = try #require(UnsafeRawPointer(bitPattern: UInt(entry.address)))
        return (0..<count).map { element in
            (0..<bytes / 8).map { memory.load(fromByteOffset: element * bytes + $0 * 8, as: UInt64.self) }
        }
    }

    private func tags(_ entry: Submission) throws -> [UInt16] {
        try elements(entry, bytes: 16).map { UInt16(truncatingIfNeeded: $0[0]) }
    }

    @Test("prepares every tag with one command and then fetches with another, both in one submission")
    func preparation() throws {
        var loop = try loop()
        loop.pushPreparation()
        let pending = loop.queue.ring.pendingEntries()
        try #require(pending.count == 2)
        #expect(pending[0].offset == UInt64(UblkIOCommand.prepareMany))
        #expect(pending[0].payload == 3 | 2 << 16 | 8 << 32 | 16 << 48)
        let list = try elements(pending[0], bytes: 16)
        #expect(list.map { $0[0] } == (0..<8).map { UInt64($0) | UInt64($0) << 16 })
        let addresses = (0..<8).map { loop.queue.buffer(of: $0) }
        #expect(list.map { $0[1] } == addresses)
        #expect(pending[1].offset == UInt64(UblkIOCommand.fetchMany))
        #expect(pending[1].payload == 3 | 2 << 48)
        // The driver refuses each of the two alone.
        #expect(pending[1].flags == IOUring.EntryFlags.fixedFile | IOUring.EntryFlags.bufferSelect)
        #expect(pending[1].operationFlags == IOUring.multishotCommand)
        let live = loop.queue.live
        #expect(live == 1)
    }

    @Test("without a copy the elements name the slots of the buffer table, and have no address")
    func zeroCopyElements() throws {
        var loop = try loop(zeroCopy: true)
        loop.pushPreparation()
        let pending = loop.queue.ring.pendingEntries()
        try #require(pending.count == 2)
        #expect(pending[0].payload == 3 | 8 << 32 | 8 << 48)
        #expect(try elements(pending[0], bytes: 8).map { $0[0] } == (0..<8).map { UInt64($0) | UInt64($0) << 16 })
    }

    @Test("all requests of a wake-up are given back in one list, each with its own result")
    func lists() throws {
        var loop = try loop()
        let statuses = [bring([5, 0, 7], buffer: 2, to: &loop), bring([1], buffer: 3, to: &loop)]
        #expect(statuses == [0, 0])
        loop.pushList()
        // A wake-up without requests sends no list.
        loop.pushList()
        let pending = loop.queue.ring.pendingEntries()
        try #require(pending.count == 1)
        #expect(pending[0].offset == UInt64(UblkIOCommand.commitMany))
        let list = try elements(pending[0], bytes: 16)
        #expect(try tags(pending[0]) == [5, 0, 7, 1])
        let results = list.map { Int32(truncatingIfNeeded: $0[0] >> 32) }
        #expect(results == [3072, 512, 4096, 1024])
        let (address, committed) = (loop.queue.buffer(of: 5), loop.queue.counters.committed)
        #expect(list[0][1] == address)
        #expect(committed == 4)
    }

    @Test("a list that the kernel has not taken yet stays as it is when the next one is made")
    func untaken() throws {
        var loop = try loop()
        var statuses = [bring([1, 2], buffer: 0, to: &loop)]
        loop.pushList()
        statuses.append(bring([3], buffer: 1, to: &loop))
        loop.pushList()
        let pending = loop.queue.ring.pendingEntries()
        // A wake-up for the completions of the lists would be useless.
        let lists = loop.batch.lists
        #expect(lists == 2)
        try #require(pending.count == 2)
        #expect(try tags(pending[0]) == [1, 2])
        #expect(try tags(pending[1]) == [3])
        loop.batch.rewind()
        statuses.append(bring([4], buffer: 2, to: &loop))
        loop.pushList()
        let last = loop.queue.ring.pendingEntries().last
        #expect(last?.address == pending[0].address)
        #expect(statuses == [0, 0, 0])
    }

    @Test("completions wait while the kernel has taken only a part, so that the list never grows beyond its memory")
    func partlyTaken() throws {
        var loop = try loop()
        // Plays the driver with a NOP that has the key of a zero-copy read.
        let nop = SubmissionEntry(
            operation: IOUring.Operation.nop, flags: 0, file: -1, userData: RequestKey(tag: 1, .data).rawValue)
        loop.queue.ring.push(nop)
        #expect(loop.queue.ring.submit(waitingFor: 1) == 0)
        var statuses = [bring([5, 6], buffer: 0, to: &loop)]
        loop.pushList()
        statuses.append(loop.handleCompletions())
        let (waiting, lists, committed) = (
            loop.queue.ring.completions().count, loop.batch.lists, loop.queue.counters.committed
        )
        #expect((waiting, lists, committed) == (1, 1, 2))
        // Then it takes the rest.
        loop.queue.ring.discardPending()
        statuses.append(loop.handleCompletions())
        let (left, next) = (loop.queue.ring.completions().count, loop.queue.ring.pendingEntries())
        #expect(left == 0)
        #expect(try next.map { try tags($0) } == [[1]])
        #expect(statuses == [0, 0, 0])
    }

    @Test("a fetch that ran out of buffers or ended without saying why is begun again")
    func again() throws {
        var loop = try loop()
        let fetch = UInt64(UblkIOCommand.fetchMany)
        let outOfBuffers = loop.begin(CompletionEntry(userData: 0, result: -ENOBUFS, flags: 0))
        let first = loop.queue.ring.pendingEntries().map(\.offset)
        #expect(outOfBuffers == 0)
        #expect(first == [fetch])
        let ended = bring([0], buffer: 0, flags: 0, to: &loop)
        let (all, committed) = (loop.queue.ring.pendingEntries().map(\.offset), loop.queue.counters.committed)
        #expect(ended == 0)
        #expect(all == [fetch, fetch])
        #expect(committed == 1)
    }

    @Test("the driver's taking back the fetch is the end of the queue; any other refusal is an error")
    func ends() throws {
        var loop = try loop()
        let wrong = [
            loop.begin(CompletionEntry(userData: 0, result: -EINVAL, flags: 0)),
            loop.begin(CompletionEntry(userData: 0, result: 0, flags: Self.more)),
            bring([8], buffer: 0, to: &loop),
        ]
        #expect(wrong == [-Int(EINVAL), -Int(EPROTO), -Int(EPROTO)])
        let before = loop.queue.live
        let status = loop.begin(CompletionEntry(userData: 0, result: UblkIOCommand.abortedResult, flags: 0))
        let after = loop.queue.live
        #expect((before, status, after) == (1, 0, 0))
        let pending = loop.queue.ring.pendingEntries()
        #expect(pending.isEmpty)
    }

    @Test("a list is handled as a whole, or the worker ends: the rest of it would be lost silently")
    func partOfList() throws {
        let loop = try loop()
        let key = RequestKey(tag: 4, .list)
        let statuses = [loop.listEnded(key, 64), loop.listEnded(key, 48), loop.listEnded(key, -EBUSY)]
        let preparation = loop.listEnded(RequestKey(tag: 0, .list), 0)
        #expect(statuses == [0, -Int(EPROTO), -Int(EBUSY)])
        #expect(preparation == 0)
    }

    @Test("buffers go back to the kernel in the order in which they came, whatever their numbers")
    func buffers() throws {
        var loop = try loop(depth: 4)
        let ring = loop.batch.bufferRing
        func number(_ slot: Int) -> UInt16 { ring.load(fromByteOffset: slot * 16 + 12, as: UInt16.self) }
        loop.pushPreparation()
        #expect((0..<4).map(number) == [0, 1, 2, 3])
        #expect(ring.load(fromByteOffset: 14, as: UInt16.self) == 4)
        let statuses = [bring([0], buffer: 2, to: &loop), bring([1], buffer: 0, to: &loop)]
        loop.pushList()
        #expect(statuses == [0, 0])
        #expect((0..<4).map(number) == [2, 0, 2, 3])
        #expect(ring.load(fromByteOffset: 14, as: UInt16.self) == 6)
        let address = UInt64(UInt(bitPattern: loop.batch.tags(inBuffer: 0)))
        #expect(ring.load(fromByteOffset: 16, as: UInt64.self) == address)
        #expect(ring.load(fromByteOffset: 16 + 8, as: UInt32.self) == Batch.bytesPerBuffer)
    }

    @Test(
        "a ring takes a table of empty buffers and a ring of provided ones, and then the seal",
        arguments: [true, false])
    func sealed(allowed: Bool) throws {
        let batch = try Batch(queue: 0, depth: 8, zeroCopy: true)
        let null = try FileDescriptor.open("/dev/null", O_RDWR)
        var tables = SealedRing.Tables(files: [null.raw, -1, -1, null.raw])
        tables.bufferSlots = 8
        tables.bufferRing = (batch.bufferRing, batch.buffers)
        let seal = RingSeal(
            operations: [IOUring.Operation.uringCommand, IOUring.Operation.readFixed],
            registerOperations: [UInt8(IOUring.Register.enableRings)],
            flagsAllowed: allowed ? IOUring.EntryFlags.bufferSelect : 0, flagsRequired: IOUring.EntryFlags.fixedFile)
        var ring = try SealedRing.make(queue: 0, entries: 10, tables: tables, seal: seal)
        #expect(throws: SystemError.self) { try ring.registerBufferTable(slots: 4) }
        // Without its flag the kernel refuses the operation, after the seal has allowed it.
        ring.push(
            .command(
                head: BatchLoop<NullTarget>.fetchHead, UblkIOCommand.fetchMany, payload: 0, address: 0, userData: 1))
        #expect(ring.submit(waitingFor: 1) == 0)
        var completions = ring.completions()
        let result = completions.take()?.result
        ring.finish(completions)
        // Only the seal returns EACCES.
        #expect((result == -EACCES) == !allowed, "\(result ?? 0)")
    }
}
