import Forked
import KernelABI
import Targets
import Testing

@testable import Ring
@testable import Worker

/// Errors of a target that would give the next reader wrong data: each ends the process.
@Suite("A target that loses count of its submissions is stopped")
struct LedgerTests {
    private static let submissions = Submissions(perRequest: 2, ofQueue: 1)

    private static func key(_ tag: UInt16, slot: UInt8) -> RequestKey { RequestKey(tag: tag, .data, slot: slot) }

    private func empty() -> SubmissionLedger { SubmissionLedger(LedgerTests.submissions, depth: 2) }

    /// One that has request 1.
    private func opened() -> SubmissionLedger {
        var ledger = empty()
        _ = ledger.open(1)
        return ledger
    }

    @Test("not while it keeps to its slots")
    func allowed() {
        var ledger = empty()
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
    func slotTwice() {
        var ledger = opened()
        defer { ledger.deallocate() }
        ledger.begin(LedgerTests.key(1, slot: 1))
        #expect(forked { ledger.begin(LedgerTests.key(1, slot: 1)) } == trapSignal)
    }

    @Test("when it uses a slot that it has not declared")
    func undeclaredSlot() {
        var ledger = opened()
        defer { ledger.deallocate() }
        #expect(forked { ledger.begin(LedgerTests.key(1, slot: 2)) } == trapSignal)
        #expect(forked { ledger.begin(RequestKey(ownSlot: 1)) } == trapSignal)
    }

    @Test("when it submits for a request that it does not have")
    func noRequest() {
        var ledger = empty()
        defer { ledger.deallocate() }
        #expect(forked { ledger.begin(LedgerTests.key(1, slot: 0)) } == trapSignal)
    }

    @Test("when it ends a request while a submission of it is under way")
    func endsEarly() {
        var ledger = opened()
        defer { ledger.deallocate() }
        ledger.begin(LedgerTests.key(1, slot: 0))
        #expect(forked { ledger.close(1) } == trapSignal)
    }

    @Test("when it ends a request twice, or one that never came")
    func endsTwice() {
        var ledger = opened()
        defer { ledger.deallocate() }
        #expect(forked { ledger.end(0, .done(0)) } == trapSignal)
        ledger.end(1, .done(0))
        #expect(forked { ledger.end(1, .done(0)) } == trapSignal)
    }

    @Test("when it declared single submissions and ends another request all the same")
    func singleCompletes() throws {
        let ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags)
        var queue = try Queue<NullTarget>(number: 0, depth: 1, maxIOBytes: 4096, ring: ring)
        #expect(forked { queue.complete(0, .done(0)) } == trapSignal)
    }
}
