/// Pauses between tries: none, then 100 ms, doubled. A server that is back is to be found within a second; after some minutes
/// without it, looking is rarer.
struct BackOff {
    private var tries = 0
    private var spent = 0
    /// Milliseconds.
    static let longestAtFirst = 500
    static let longest = 5000
    private static let patience = 300_000

    /// Milliseconds of the next pause.
    mutating func next() -> Int {
        defer { tries += 1 }
        guard tries > 0 else { return 0 }
        let most = spent < Self.patience ? Self.longestAtFirst : Self.longest
        let pause = min(100 << min(tries - 1, 10), most)
        spent += pause
        return pause
    }
}
