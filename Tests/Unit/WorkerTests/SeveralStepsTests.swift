import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing

@testable import Ring
@testable import Worker

/// The engine's guarantees for targets with more than one submission for a request.
@Suite("Several submissions for a request")
struct SeveralStepsTests {
    /// By default a hundredth of the count of `make soak` (UBD_ENGINE_REQUESTS=10000000).
    static let requests = getenv("UBD_ENGINE_REQUESTS").flatMap { Int(String(cString: $0)) } ?? 100_000

    private static func ring(_ entries: UInt32) throws(SystemError) -> Ring {
        // It stays disabled: the kernel never reads it.
        try Ring(entries: entries, completions: 1024, flags: SealedRing.flags)
    }

    private static func queue(entries: UInt32) throws(SystemError) -> Queue<SeveralStepsTarget> {
        try Queue(
            number: 0, depth: SeveralStepsKernel.depth, maxIOBytes: SeveralStepsKernel.maxIOBytes, ring: ring(entries))
    }

    private static func run<Loop: PlayedLoop & ~Copyable>(_ loop: inout Loop, _ messages: UnsafeMutableRawPointer) {
        let seed = UInt64.random(in: .min ... .max)
        var kernel = SeveralStepsKernel(seed: seed, messages: messages)
        kernel.run(&loop, requests: requests / 2)
        #expect(kernel.failure == nil, "seed \(seed)")
        // Every kind of result occurred: data, none, and each errno.
        for result in [1, 0, -EIO, -ENOSPC, -EOPNOTSUPP, -EREMOTEIO, -ETIMEDOUT] {
            #expect(kernel.ended[result, default: 0] > 0, "no request ended with \(result): \(kernel.ended)")
        }
        // More than one for each tag, so the ring is needed as large as it is made.
        #expect(kernel.mostPushed > Int(SeveralStepsKernel.depth), "\(kernel.mostPushed)")
        #expect(kernel.mostPushed <= Int(SeveralStepsTarget.submissions.entries(depth: SeveralStepsKernel.depth)))
    }

    private static func withMessages(_ body: (UnsafeMutableRawPointer) throws -> Void) rethrows {
        let messages = UnsafeMutableRawPointer.allocate(
            byteCount: Int(SeveralStepsTarget.messageBytes), alignment: 8)
        defer { messages.deallocate() }
        try body(messages)
    }

    @Test("one after another, side by side, or ended by a message: each of many random requests ends once, as it must")
    func model() throws {
        try Self.withMessages { messages in
            let queue = try Self.queue(
                entries: SeveralStepsTarget.submissions.entries(depth: SeveralStepsKernel.depth))
            var loop = QueueLoop(queue: queue, target: SeveralStepsTarget(messages: messages))
            Self.run(&loop, messages)
        }
    }

    @Test("in batch mode are the same: each of many random requests ends once, as it must")
    func batchModel() throws {
        try Self.withMessages { messages in
            let queue = try Self.queue(
                entries: SeveralStepsTarget.submissions.entries(depth: SeveralStepsKernel.depth, batch: true))
            let batch = try Batch(queue: 0, depth: SeveralStepsKernel.depth, zeroCopy: false)
            var loop = BatchLoop(queue: queue, target: SeveralStepsTarget(messages: messages), batch: batch)
            Self.run(&loop, messages)
        }
    }

    @Test("need a ring with an entry for each, and for the queue's own: a queue is not made on a smaller one")
    func tooSmall() throws {
        // 16 tags with 4 submissions, and 2 of the queue's own; a ring has one less than a power of two.
        #expect(SeveralStepsTarget.submissions.entries(depth: 16) == 66)
        #expect(SeveralStepsTarget.submissions.entries(depth: 16, batch: true) == 68)
        var thrown: SystemError?
        do { _ = try Self.queue(entries: 63) } catch { thrown = error }
        #expect(thrown?.errno == ENOBUFS)
        _ = try Self.queue(entries: 66)
        // Targets with one each are content with one for each tag.
        _ = try Queue<NullTarget>(number: 0, depth: 63, maxIOBytes: 4096, ring: Self.ring(63))
        #expect(throws: SystemError.self) {
            _ = try Queue<NullTarget>(number: 0, depth: 64, maxIOBytes: 4096, ring: Self.ring(63))
        }
    }

    @Test("the ring of a queue has a page of entries at least, and all that the target's submissions need")
    func ringEntries() {
        // A ring keeps one of its entries free.
        #expect(NullTarget.submissions.ringEntries(depth: 1) == 63)
        #expect(NullTarget.submissions.ringEntries(depth: 128) == 128)
        #expect(NullTarget.submissions.ringEntries(depth: 128, batch: true) == 130)
        #expect(SeveralStepsTarget.submissions.ringEntries(depth: 128) == 514)
    }

    @Test("a completion of a slot in which nothing is under way ends the loop: the kernel and the worker disagree")
    func unknownCompletion() throws {
        try Self.withMessages { messages in
            for key in [RequestKey(tag: 3, .data, slot: 1), RequestKey(ownSlot: 1)] {
                var loop = QueueLoop(
                    queue: try Self.queue(entries: 66), target: SeveralStepsTarget(messages: messages))
                let memory = loop.queue.ring.completionMemory
                memory.entries[0] = CompletionEntry(userData: key.rawValue, result: 1, flags: 0)
                memory.tail.pointee.store(1, ordering: .releasing)
                #expect(loop.handleCompletions() == -Int(EPROTO))
            }
        }
    }

    @Test("the queue begins its own when it serves, and pushes nothing before")
    func start() throws {
        try Self.withMessages { messages in
            var loop = QueueLoop(queue: try Self.queue(entries: 66), target: SeveralStepsTarget(messages: messages))
            #expect(loop.queue.ring.pendingEntries().isEmpty)
            loop.start()
            let keys = loop.queue.ring.pendingEntries().map { RequestKey(rawValue: $0.userData) }
            #expect(keys == [RequestKey(ownSlot: 0), RequestKey(ownSlot: 1)])
        }
    }
}
