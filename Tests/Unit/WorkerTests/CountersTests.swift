import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import Ring
@testable import Worker

@Suite("What a queue counts")
struct CountersTests {
    private typealias Word = StatisticsPage.Word
    private typealias Operation = StatisticsPage.Operation

    private func queue(readOnly: Bool = false) throws -> TestQueue<NullTarget> {
        try TestQueue(NullTarget(bounds: DiskBounds(size: 1 << 20, maxIOBytes: 65536), readOnly: readOnly))
    }

    /// Requests, bytes and errors of an operation.
    private func counted(_ queue: borrowing TestQueue<NullTarget>, _ operation: Operation) -> [UInt64] {
        let words = queue.loop.queue.counters.words
        return [Word.requests, Word.bytes, Word.errors].map { words[$0 + operation.rawValue] }
    }

    @Test("every operation by itself, with the bytes of those that succeeded")
    func operations() throws {
        var queue = try queue()
        for sectors: UInt32 in [1, 8, 16] { _ = try queue.perform(UblkIOOperation.read, sectors: sectors) }
        _ = try queue.perform(UblkIOOperation.write, sectors: 128)
        _ = try queue.perform(UblkIOOperation.flush)
        _ = try queue.perform(UblkIOOperation.discard, sectors: 2048)
        _ = try queue.perform(UblkIOOperation.writeZeroes, sectors: 3)
        let seen = Operation.allCases.map { counted(queue, $0) }
        #expect(
            seen == [
                [3, 25 * 512, 0], [1, 65536, 0], [1, 0, 0], [1, 1 << 20, 0], [1, 3 * 512, 0], [0, 0, 0],
            ])
        let (taken, committed) = (queue.loop.queue.counters.taken, queue.loop.queue.counters.committed)
        #expect(taken == 7 && committed == 7)
    }

    @Test("goes on from what a dead worker counted, and begins anew where that one counted in another layout")
    func layouts() throws {
        let queue = try queue()
        let words = queue.loop.queue.counters.words
        for (layout, kept) in [(StatisticsPage.layout, 9), (0, 9), (StatisticsPage.layout + 1, 0)] as [(UInt64, UInt64)]
        {
            words[Word.layout] = layout
            words[Word.requests + 1] = 9
            let counters = Counters(words: words, clock: .none)
            #expect(counters.committed == kept && counters.taken == kept)
            #expect(words[Word.layout] == StatisticsPage.layout)
        }
    }

    @Test("zeroes and discards that the file can't do as requests and as no errors: the kernel does without")
    func notSupported() throws {
        let queue = try queue()
        var counters = queue.loop.queue.counters
        for operation in [UblkIOOperation.discard, UblkIOOperation.writeZeroes, UblkIOOperation.flush] {
            let descriptor = UblkIODescriptor(operationAndFlags: UInt32(operation), sectors: 8, startSector: 0)
            counters.settle(0, descriptor, .failed(EOPNOTSUPP))
        }
        let seen = [Operation.discard, .writeZeroes, .flush].map { counted(queue, $0) }
        #expect(seen == [[1, 0, 0], [1, 0, 0], [1, 0, 1]])
    }

    @Test("what failed as a request and as an error, without its bytes")
    func errors() throws {
        var queue = try queue(readOnly: true)
        _ = try queue.perform(UblkIOOperation.write, sectors: 8)
        _ = try queue.perform(UblkIOOperation.discard, sectors: 8)
        _ = try queue.perform(UblkIOOperation.read, sector: 2048, sectors: 8)
        _ = try queue.perform(UblkIOOperation.read, sectors: 8)
        _ = try queue.perform(200, sectors: 8)
        let seen = Operation.allCases.map { counted(queue, $0) }
        #expect(seen == [[2, 4096, 1], [1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1]])
    }

    @Test("the driver's number for an operation can not lead it out of its page")
    func strangeOperation() throws {
        let queue = try queue()
        var counters = queue.loop.queue.counters
        for operation: UInt32 in [2, 7, 255] {
            counters.complete(
                0, UblkIODescriptor(operationAndFlags: operation, sectors: 8, startSector: 0), bytes: 4096)
        }
        let committed = queue.loop.queue.counters.committed
        #expect(committed == 3)
    }

    @Test("how many requests a wake-up brought, and wake-ups that brought none only as such")
    func batchSizes() throws {
        let queue = try queue()
        var counters = queue.loop.queue.counters
        let words = counters.words
        for came: UInt64 in [1, 1, 2, 3, 4, 7, 8, 4096, 0] {
            counters.take(came)
            counters.endTurn()
        }
        let sizes = (0..<StatisticsPage.batchSizes).map { words[Word.batchSizes + $0] }
        #expect(sizes == [2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        #expect(words[Word.turns] == 9)
    }

    @Test("the time of one request in 64, where there is a clock, and of none where there is not")
    func samples() throws {
        for (clock, expected) in [(TickClock(scale: 1 << 32), 4), (.none, 0)] as [(TickClock, UInt64)] {
            let ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags & ~IOUring.Setup.disabled)
            let nop = SubmissionEntry.head(operation: IOUring.Operation.nop, flags: 0, file: -1)
            let queue = try Queue<NullTarget>(
                number: 0, depth: 1, maxIOBytes: 4096, ring: ring, commandHead: nop, clock: clock)
            queue.ownDescriptors[0] = UblkIODescriptor(operationAndFlags: 0, sectors: 8, startSector: 0)
            var loop = QueueLoop(
                queue: queue,
                target: NullTarget(bounds: DiskBounds(size: 1 << 20, maxIOBytes: 4096), readOnly: false))
            try loop.queue.fetchAll()
            while loop.queue.counters.taken < 64 * 4 + 32 { try #require(loop.turn() == 0) }
            let words = loop.queue.counters.words
            let measured = (0..<StatisticsPage.Latency.classes).reduce(UInt64(0)) { $0 + words[Word.latencies + $1] }
            #expect(measured == expected)
            #expect(words[Word.latencies] == 0, "a tick is a unit here, and no request takes less than one")
        }
    }

    @Test("on from where a dead worker stopped, whose requests are brought again")
    func resumes() throws {
        let words = UnsafeMutablePointer<UInt64>.allocate(capacity: Word.count)
        defer { words.deallocate() }
        words.initialize(repeating: 0, count: Word.count)
        words[Word.requests] = 100
        words[Word.requests + 2] = 1
        words[Word.taken] = 109
        let counters = Counters(words: words, clock: TickClock(scale: 1))
        let due = counters.isSampleDue
        #expect(counters.taken == 101 && counters.committed == 101 && !due)
        // Untrusted claims.
        words.update(repeating: .max, count: Word.count)
        words[Word.layout] = StatisticsPage.layout
        let after = Counters(words: words, clock: TickClock(scale: 1))
        #expect(after.taken == UInt64.max &- 7)
    }
}

@Suite("The processor's clock")
struct TickClockTests {
    private func clock(ticks: UInt64, nanoseconds: UInt64) -> TickClock {
        TickClock(
            TickClock.Reading(ticks: 1 << 63, nanoseconds: 77),
            TickClock.Reading(ticks: 1 << 63 &+ ticks, nanoseconds: 77 + nanoseconds))
    }

    @Test(
        "is told by two readings of it and of the kernel's",
        arguments: [1_000_000, 24_000_000, 2_900_000_000, 6_000_000_000] as [UInt64])
    func scale(frequency: UInt64) {
        let clock = clock(ticks: frequency / 200, nanoseconds: 5_000_000)
        #expect(clock.isSteady)
        // A second is four million units of 250 ns.
        let units = clock.units(frequency)
        #expect(units >= 3_999_000 && units <= 4_001_000, "\(units)")
        #expect(clock.units(0) == 0)
        #expect(clock.units(.max) > 1 << 30)
    }

    @Test("is none when the readings are no use")
    func useless() {
        #expect(!clock(ticks: 0, nanoseconds: 5_000_000).isSteady)
        #expect(!clock(ticks: 1000, nanoseconds: TickClock.shortest - 1).isSteady)
        #expect(!clock(ticks: .max, nanoseconds: 5_000_000).isSteady)
        #expect(!clock(ticks: 1 << 61, nanoseconds: 5_000_000).isSteady)
    }

    @Test("of this host agrees with the kernel's")
    func here() throws {
        let first = TickClock.Reading.now()
        usleep(20_000)
        let second = TickClock.Reading.now()
        let clock = TickClock(first, second)
        try #require(clock.isSteady)
        let units = clock.units(second.ticks - first.ticks)
        let expected = (second.nanoseconds - first.nanoseconds) / StatisticsPage.Latency.unit
        #expect(units <= expected && units + 100 >= expected)
    }

    @Test("puts times into classes whose bounds are those that are told")
    func classes() {
        let bounds = StatisticsPage.Latency.bounds
        for nanoseconds: UInt64 in [0, 249, 250, 499, 500, 999, 1000, 16_000, 15_999, 1 << 40, 1 << 60] {
            let index = StatisticsPage.Latency.index(units: nanoseconds / StatisticsPage.Latency.unit)
            #expect(index == bounds.firstIndex { nanoseconds < $0 } ?? bounds.count, "\(nanoseconds)")
        }
        #expect(bounds.count + 1 == StatisticsPage.Latency.classes)
    }
}
