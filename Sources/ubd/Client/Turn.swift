import BrokerInterface

/// Waits where a limit passes by itself: the limit on a user's connections, or on the workers that the user may start
/// in a minute. So a script may run many commands at once.
struct Turn {
    private let environment: CommandEnvironment
    /// Monotonic nanoseconds; nil before the first refusal.
    private var end: UInt64?
    /// Milliseconds.
    private var pause: UInt64 = 50

    init(_ environment: CommandEnvironment) {
        self.environment = environment
    }

    /// Repeats `body` while a limit refuses it.
    ///
    /// - Throws: what `body` throws, when waiting would not help or would take too long.
    static func take<Result: ~Copyable>(
        _ environment: CommandEnvironment, _ body: () throws(CommandFailure) -> Result
    ) throws(CommandFailure) -> Result {
        var turn = Turn(environment)
        while true {
            do { return try body() } catch { try turn.wait(after: error) }
        }
    }

    private mutating func wait(after failure: CommandFailure) throws(CommandFailure) {
        guard let seconds = failure.passesAfter, seconds <= environment.turnSeconds else { throw failure }
        let now = environment.now()
        let end = self.end ?? now + UInt64(environment.turnSeconds) * 1_000_000_000
        // Random, so that clients that were refused together do not return together.
        let longest = max(pause, UInt64(clamping: seconds) &* 1000)
        let milliseconds = longest + UInt64.random(in: 0...longest / 2)
        guard now + milliseconds * 1_000_000 < end else { throw failure }
        if self.end == nil {
            environment.console.aside("ubd: waiting up to \(environment.turnSeconds) s: \(failure.message.printable)")
        }
        self.end = end
        environment.pause(milliseconds)
        pause = min(pause * 2, 1000)
    }
}
