import Testing

@testable import NBDClient

@Suite("What a keeper tells the system's log")
struct LineLimitsTests {
    @Test(
        "tells a subject five times at once and then once a minute, however its words differ, and the same words once")
    func lines() {
        var limits = LineLimits()
        let second: UInt64 = 1_000_000_000
        // Two tries a second, for ten minutes, each with other words.
        let told = (0..<1200 as Range<UInt64>).compactMap {
            limits.line(.failure(.refused), "refused \($0)", now: $0 * second / 2)
        }
        #expect(told.count == 5 + 9, "\(told.count)")
        #expect(told[4] == "refused 4" && told[5].hasSuffix("lines about the like were left out)"), "\(told[5])")
        // Another subject has its own.
        #expect(limits.line(.failure(.unreachable), "gone", now: 600 * second) == "gone")
        #expect(limits.line(.failure(.unreachable), "gone", now: 6000 * second) == nil, "the same words")
        limits.forget { $0 == .failure(.unreachable) }
        #expect(limits.line(.failure(.unreachable), "gone", now: 6001 * second) == "gone")
        let again = (0..<100 as Range<UInt64>).compactMap {
            limits.line(.restored, "back", again: true, now: $0 * second)
        }
        #expect(again.count == 6)
        #expect(again.first == "back")
    }
}
