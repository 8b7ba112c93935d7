import Glibc

/// Holds back the signals that end a command, from `init` to `end`, so that a command of several steps can undo what it
/// did. A signal that came meanwhile arrives at the end.
struct Interruption: ~Copyable {
    private var before = sigset_t()
    private static let signals = [SIGINT, SIGTERM, SIGHUP]

    init() {
        var held = sigset_t()
        sigemptyset(&held)
        for signal in Self.signals { sigaddset(&held, signal) }
        pthread_sigmask(SIG_BLOCK, &held, &before)
    }

    /// One of them has come. Those that are ignored, as SIGHUP by nohup(1), end nothing: held back, they are pending all the same.
    static var hasCome: Bool {
        var pending = sigset_t()
        return sigpending(&pending) == 0 && signals.contains { sigismember(&pending, $0) == 1 && !isIgnored($0) }
    }

    private static func isIgnored(_ signal: Int32) -> Bool {
        var action = sigaction()
        return sigaction(signal, nil, &action) == 0
            && unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self)
                == unsafeBitCast(SIG_IGN, to: Int.self)
    }

    /// Holds them back until a device that is made has been told of: a signal that ends the command leaves none that nobody knows.
    static func untilTold(
        _ environment: CommandEnvironment, _ body: (CommandEnvironment) throws(CommandFailure) -> Void
    ) throws(CommandFailure) {
        let interruption = Interruption()
        var failure: CommandFailure?
        do throws(CommandFailure) { try body(environment.interruptible) } catch { failure = error }
        interruption.end()
        if let failure { throw failure }
    }

    consuming func end() {
        pthread_sigmask(SIG_SETMASK, &before, nil)
    }

    static var failure: CommandFailure {
        CommandFailure(.failed, "Interrupted", "it was interrupted", remedy: "run it again")
    }
}
