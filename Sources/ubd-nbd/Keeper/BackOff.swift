/// Pauses between tries: none, then 100 ms, doubled. A server that is back is to be found within a second; after some minutes
/// without it, looking is rarer.
struct BackOff {
    private var tries = 0
    private var spent = 0
    private let first: Int
    /// Milliseconds.
    static let longestAtFirst = 500
    static let longest = 5000
    private static let patience = 300_000

    /// `unanswered`: how many times in a row connections were made over which the server answered nothing. The first pause doubles
    /// with each, up to the longest: such a server is there, so nothing is gained by asking it again at once. `atLeast`: milliseconds
    /// of the first pause (`Losses`).
    init(unanswered: Int64 = 0, atLeast: Int = 0) {
        first = max(atLeast, unanswered > 0 ? min(100 << Int(min(unanswered - 1, 10)), Self.longest) : 0)
    }

    /// Milliseconds of the next pause.
    mutating func next() -> Int {
        defer { tries += 1 }
        guard tries > 0 else { return first }
        let most = spent < Self.patience ? Self.longestAtFirst : Self.longest
        let pause = min(100 << min(tries - 1, 10), most)
        spent += pause
        return pause
    }
}

/// How often lost connections are made again at once. For each loss the broker starts a new worker, as root. Without a limit a server
/// that answers one request over each connection would have that done as fast as this host can.
struct Losses {
    /// So many in a row; then one in each `interval`, in nanoseconds.
    static let atOnce: UInt64 = 20
    static let interval: UInt64 = 1_000_000_000
    /// The moment when as many as `atOnce` are free again, in nanoseconds of the monotonic clock.
    private var free: UInt64 = 0

    /// The connections are lost. Returns how many milliseconds to wait before they are made again.
    mutating func pause(now: UInt64) -> Int {
        free = max(free, now) + Self.interval
        let spent = free - now
        return spent > Self.atOnce * Self.interval ? Int((spent - Self.atOnce * Self.interval) / 1_000_000) : 0
    }
}
