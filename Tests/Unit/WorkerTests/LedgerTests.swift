import Glibc
import KernelABI
import Targets
import Testing

@testable import Ring
@testable import Worker

/// What a target must not do, because the next reader would be given wrong data: each ends the process.
@Suite("A target that loses count of its submissions is stopped")
struct LedgerTests {
    private static let submissions = Submissions(perRequest: 2, ofQueue: 1)

    private static func key(_ tag: UInt16, slot: UInt8) -> RequestKey { RequestKey(tag: tag, .data, slot: slot) }

    @Test("not while it keeps to its slots")
    func allowed() {
        var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
        defer { ledger.deallocate() }
        for _ in 0..<3 {
            let opened = [ledger.open(1), ledger.open(1)]
            #expect(opened == [true, false])
            ledger.begin(LedgerTests.key(1, slot: 0))
            ledger.begin(LedgerTests.key(1, slot: 1))
            #expect(ledger.count(1) == 2)
            let finished = [
                ledger.finish(LedgerTests.key(1, slot: 0)), ledger.finish(LedgerTests.key(1, slot: 0)),
            ]
            #expect(finished == [true, false])
            ledger.begin(LedgerTests.key(1, slot: 0))
            let both = [ledger.finish(LedgerTests.key(1, slot: 0)), ledger.finish(LedgerTests.key(1, slot: 1))]
            #expect(both == [true, true])
            #expect(ledger.count(1) == 0)
            ledger.end(1, .done(0))
            #expect(ledger.endedCount == 1 && ledger.ended(0).tag == 1 && ledger.ended(0).outcome == .done(0))
            ledger.forgetEnded()
        }
        ledger.begin(RequestKey(ownSlot: 0))
        #expect(ledger.isUnderWay(RequestKey(ownSlot: 0)))
        let finished = ledger.finish(RequestKey(ownSlot: 0))
        #expect(finished && !ledger.isUnderWay(RequestKey(ownSlot: 0)))
    }

    @Test("when it uses a slot twice at once")
    func slotTwice() throws {
        let end = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            _ = ledger.open(1)
            ledger.begin(LedgerTests.key(1, slot: 1))
            ledger.begin(LedgerTests.key(1, slot: 1))
        }
        #expect(end == .trap)
    }

    @Test("when it uses a slot that it has not declared")
    func undeclaredSlot() throws {
        let end = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            _ = ledger.open(1)
            ledger.begin(LedgerTests.key(1, slot: 2))
        }
        #expect(end == .trap)
        let other = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            ledger.begin(RequestKey(ownSlot: 1))
        }
        #expect(other == .trap)
    }

    @Test("when it submits for a request that it does not have")
    func noRequest() throws {
        let end = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            ledger.begin(LedgerTests.key(1, slot: 0))
        }
        #expect(end == .trap)
    }

    @Test("when it ends a request while a submission of it is under way")
    func endsEarly() throws {
        let end = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            _ = ledger.open(1)
            ledger.begin(LedgerTests.key(1, slot: 0))
            ledger.close(1)
        }
        #expect(end == .trap)
    }

    @Test("when it ends a request twice, or one that never came")
    func endsTwice() throws {
        let end = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            _ = ledger.open(1)
            ledger.end(1, .done(0))
            ledger.end(1, .done(0))
        }
        #expect(end == .trap)
        let other = try ForkedChild.end {
            var ledger = SubmissionLedger(LedgerTests.submissions, depth: 2)
            ledger.end(0, .done(0))
        }
        #expect(other == .trap)
    }

    @Test("when it declared single submissions and ends another request all the same")
    func singleCompletes() throws {
        let end = try ForkedChild.end {
            let ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags)
            var queue = try Queue<NullTarget>(number: 0, depth: 1, maxIOBytes: 4096, ring: ring)
            queue.complete(0, .done(0))
        }
        #expect(end == .trap)
    }
}
