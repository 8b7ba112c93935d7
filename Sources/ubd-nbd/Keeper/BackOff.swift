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
    /// with each, up to the longest: such a server is there, so nothing is gained by asking it again at once.
    init(unanswered: Int64 = 0) {
        first = unanswered > 0 ? min(100 << Int(min(unanswered - 1, 10)), Self.longest) : 0
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
