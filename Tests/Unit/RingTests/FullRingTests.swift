import Forked
import KernelABI
import SystemCalls
import Testing

@testable import Ring

@Suite("A ring that fills up")
struct FullRingTests {
    private static func nop(_ userData: UInt64) -> SubmissionEntry {
        SubmissionEntry(operation: IOUring.Operation.nop, flags: 0, file: -1, userData: userData)
    }

    /// The user_data of the entries that were pushed and not taken.
    private static func waiting(_ ring: borrowing Ring) -> [UInt64] {
        (0..<ring.untaken).map { index in
            let entry = ring.submissionEntries + Int((ring.taken &+ index) % (ring.capacity + 1)) * 64
            return entry.load(as: SubmissionEntry.self).userData
        }
    }

    @Test("keeps every submission until the kernel has taken it, however few it takes at a time")
    func keeps() throws {
        var ring = try Ring(entries: 7, completions: 16, flags: RingTests.flags | IOUring.Setup.disabled)
        var random = SystemRandomNumberGenerator()
        var pushed: UInt64 = 0
        var expected: [UInt64] = []
        for _ in 0..<20_000 {
            for _ in 0..<Int.random(in: 0...(7 - expected.count), using: &random) {
                ring.push(FullRingTests.nop(pushed))
                expected.append(pushed)
                pushed += 1
            }
            #expect(FullRingTests.waiting(ring) == expected)
            #expect(ring.tail == UInt32(truncatingIfNeeded: pushed))
            let taken = Int.random(in: 0...expected.count, using: &random)
            ring.taken &+= UInt32(taken)
            expected.removeFirst(taken)
        }
        #expect(pushed > 10_000)
    }

    @Test("takes as many as it says that fit, and ends the process at one more, before it would write over the first")
    func full() throws {
        var ring = try Ring(entries: 7, completions: 16, flags: RingTests.flags | IOUring.Setup.disabled)
        #expect(ring.capacity == 7)
        for index in 0..<7 as Range<UInt64> { ring.push(FullRingTests.nop(index)) }
        #expect(FullRingTests.waiting(ring) == Array(0..<7))
        #expect(forked { ring.push(FullRingTests.nop(7)) } == trapSignal)
        #expect(forked {} == 0)
    }

    @Test("in the middle of its entries ends the process as well")
    func fullInTheMiddle() throws {
        var ring = try Ring(entries: 7, completions: 16, flags: RingTests.flags | IOUring.Setup.disabled)
        for index in 0..<5 as Range<UInt64> { ring.push(FullRingTests.nop(index)) }
        ring.taken = 5
        for index in 0..<7 as Range<UInt64> { ring.push(FullRingTests.nop(index)) }
        #expect(FullRingTests.waiting(ring) == Array(0..<7))
        #expect(forked { ring.push(FullRingTests.nop(9)) } == trapSignal)
    }

    @Test("counts on across 2^32 submissions")
    func wraps() throws {
        var ring = try Ring(entries: 7, completions: 16, flags: RingTests.flags | IOUring.Setup.disabled)
        // A multiple of its entries, as if that many had been submitted already.
        ring.bias &+= UInt32.max - 7
        ring.taken = UInt32.max - 7
        for round in 0..<100 as Range<UInt64> {
            for index in 0..<5 as Range<UInt64> { ring.push(FullRingTests.nop(round * 5 + index)) }
            #expect(FullRingTests.waiting(ring) == (0..<5).map { round * 5 + $0 })
            ring.taken &+= 5
        }
    }
}
