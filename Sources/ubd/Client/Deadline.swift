import SystemCalls

/// A point in time at which a wait ends.
struct Deadline {
    private let end: UInt64
    /// The whole time, for messages.
    let seconds: Int

    init(seconds: Int) {
        self.seconds = seconds
        end = monotonicNanoseconds() + UInt64(seconds) * 1_000_000_000
    }

    var hasPassed: Bool { monotonicNanoseconds() >= end }

    /// Milliseconds for poll(2): at most `limit`, at least 1 as long as the deadline has not passed.
    func milliseconds(atMost limit: Int32 = 1000) -> Int32 {
        let now = monotonicNanoseconds()
        guard now < end else { return 0 }
        return Int32(clamping: min((end - now) / 1_000_000 + 1, UInt64(limit)))
    }
}
