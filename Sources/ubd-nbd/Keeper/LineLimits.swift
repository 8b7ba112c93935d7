import Dialing

/// Which lines a keeper tells the system's log. It tries twice a second, and a server, or a device that is lost again and again, may
/// give it something to say each time, in other words each time. So each subject has its own limit, whatever the words are: some
/// lines at once, then one a minute.
struct LineLimits {
    /// What a line is about.
    enum Subject: Hashable {
        /// The broker does not tell of the device; the name of its error.
        case refusal(String)
        case unreadableBroker
        /// There are no connections.
        case failure(DialFailure.Kind)
        /// There are connections again.
        case restored
        /// The server did not end a connection.
        case drain
        /// A server that ubd started has ended.
        case serverEnd
    }

    /// Lines of one subject at once; then one in each `interval` of nanoseconds.
    static let atOnce: UInt64 = 5
    static let interval: UInt64 = 60_000_000_000

    private struct Past {
        var text: String
        /// When as many as `atOnce` are free again, in nanoseconds.
        var free: UInt64 = 0
        /// Lines that were left out since the last one.
        var leftOut = 0
    }

    private var pasts: [Subject: Past] = [:]

    /// The line to tell; nil when it is left out: it says what the last one of its subject said, or there were too many.
    ///
    /// - Parameters:
    ///   - again: also when it says what the last one of its subject said.
    ///   - now: nanoseconds of a monotonic clock.
    mutating func line(_ subject: Subject, _ text: String, again: Bool = false, now: UInt64) -> String? {
        var past = pasts[subject] ?? Past(text: "")
        defer { pasts[subject] = past }
        guard again || text != past.text else { return nil }
        let free = max(past.free, now) + Self.interval
        guard free - now <= Self.atOnce * Self.interval else {
            past.leftOut += 1
            return nil
        }
        let leftOut = past.leftOut
        past = Past(text: text, free: free)
        return leftOut == 0 ? text : "\(text) (\(leftOut) lines about the like were left out)"
    }

    /// What was told of it is settled: the same words are news the next time.
    mutating func forget(_ subjects: (Subject) -> Bool) {
        for subject in pasts.keys where subjects(subject) { pasts[subject]?.text = "" }
    }
}
