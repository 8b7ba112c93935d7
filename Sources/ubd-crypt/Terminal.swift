import CShims
import Dialing
import Glibc
import SystemCalls

/// Standard input, when it is a terminal.
enum Terminal {
    /// What would end this process while the terminal is without an echo. SIGKILL can not be held back.
    private static let ending = [SIGHUP, SIGINT, SIGQUIT, SIGTERM]
    /// Milliseconds between two looks for them.
    private static let look: Int32 = 200

    static func say(_ text: String) { _ = writeStandard(text, to: STDERR_FILENO) }

    /// Without an echo, and without signals of the keys. Whatever ends this, also the end of `ubd`, the terminal gets its echo back.
    static func ask(_ prompt: String) throws(DialFailure) -> Secret {
        var (held, allowed) = (sigset_t(), sigset_t())
        sigemptyset(&held)
        for signal in ending { sigaddset(&held, signal) }
        pthread_sigmask(SIG_BLOCK, &held, &allowed)
        processControl(PR_SET_PDEATHSIG, 0)
        defer {
            processControl(PR_SET_PDEATHSIG, UInt(SIGKILL))
            pthread_sigmask(SIG_SETMASK, &allowed, nil)
        }
        var before = termios()
        guard tcgetattr(STDIN_FILENO, &before) == 0 else { throw given("the terminal can not be used") }
        var silent = before
        silent.c_lflag &= ~tcflag_t(ECHO | ECHONL | ICANON | ISIG)
        say(prompt)
        guard tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent) == 0 else { throw given("the terminal can not be used") }
        defer {
            tcsetattr(STDIN_FILENO, TCSANOW, &before)
            say("\n")
        }
        return try readLine()
    }

    private static func readLine() throws(DialFailure) -> Secret {
        var secret = try Secret(capacity: PassphraseSource.longestLine)
        while true {
            // Ctrl-C, Ctrl-D, or a terminal that is gone.
            guard let byte = next(), byte != 3, byte != 4 else { throw given("no passphrase was given") }
            switch byte {
            case 10, 13: return secret
            case 8, 127: secret.count = max(0, secret.count - 1)
            // Ctrl-U.
            case 21: secret.count = 0
            default:
                guard secret.count < secret.memory.count else { throw given("the passphrase is too long") }
                secret.memory[secret.count] = byte
                secret.count += 1
            }
        }
    }

    /// nil when none comes any more, or a signal, or `ubd` has ended.
    private static func next() -> UInt8? {
        while true {
            var waiting = [STDIN_FILENO, dialDescriptor].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            _ = poll(&waiting, 2, look)
            if waiting[1].revents != 0 || isToEnd { return nil }
            if waiting[0].revents == 0 { continue }
            var byte: UInt8 = 0
            let got = read(STDIN_FILENO, &byte, 1)
            if got < 0, errno == EINTR || errno == EAGAIN { continue }
            return got == 1 ? byte : nil
        }
    }

    private static var isToEnd: Bool {
        var pending = sigset_t()
        sigpending(&pending)
        return ending.contains { sigismember(&pending, $0) == 1 }
    }

    private static func given(_ message: String) -> DialFailure {
        DialFailure(.usage, message, remedy: "try again, or use --key-file")
    }
}
