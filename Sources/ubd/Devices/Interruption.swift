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

    /// One of them has come.
    static var hasCome: Bool {
        var pending = sigset_t()
        return sigpending(&pending) == 0 && signals.contains { sigismember(&pending, $0) == 1 }
    }

    consuming func end() {
        pthread_sigmask(SIG_SETMASK, &before, nil)
    }

    static var failure: CommandFailure {
        CommandFailure(.failed, "Interrupted", "it was interrupted", remedy: "run it again")
    }
}
