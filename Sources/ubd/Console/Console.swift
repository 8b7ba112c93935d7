import Glibc
import SystemCalls

/// The output of a command. Each call is one or more whole lines, without the last newline.
protocol Console: AnyObject {
    /// Results, for scripts as well: stdout.
    func out(_ text: String)
    /// Writes to a terminal on stdout as it is, without a newline at the end.
    func draw(_ text: String)
    /// Errors and notes, for people: stderr.
    func error(_ text: String)
    /// Extra information for people: stderr, when it is a terminal.
    func aside(_ text: String)
    /// Replaces the progress line, when stderr is a terminal; nil removes it.
    func progress(_ text: String?)
    /// Sleeps for that many milliseconds. Returns early when the reader of `out` is gone: then output is lost.
    func wait(milliseconds: UInt64)
    /// The end of the output: errors that only a close reports become `lost` now.
    func finish()
    /// Why output of `out` was lost; nil when all of it was written.
    var lost: SystemError? { get }
}

/// Standard output and standard error, unbuffered, so that nothing is lost or out of order when a signal ends the
/// program.
final class StandardConsole: Console {
    private let isWatched = isatty(2) == 1
    private var progressIsShown = false
    private(set) var lost: SystemError?

    func out(_ text: String) { draw(text + "\n") }

    func draw(_ text: String) {
        let error = writeStandard(text, to: STDOUT_FILENO)
        if error != 0, lost == nil { lost = SystemError("write", error) }
    }

    func error(_ text: String) {
        progress(nil)
        _ = writeStandard(text + "\n", to: STDERR_FILENO)
    }

    func wait(milliseconds: UInt64) {
        let end = monotonicNanoseconds() + milliseconds * 1_000_000
        while true {
            let now = monotonicNanoseconds()
            guard now < end else { return }
            // Without events poll reports only that the other end of a pipe, a socket or a terminal is gone.
            var output = pollfd(fd: STDOUT_FILENO, events: 0, revents: 0)
            guard poll(&output, 1, Int32(clamping: (end - now) / 1_000_000 + 1)) > 0 else { continue }
            let error = output.revents & Int16(POLLNVAL) != 0 ? EBADF : EPIPE
            if lost == nil { lost = SystemError("poll", error) }
            return
        }
    }

    func finish() {
        // With network file systems and quotas only close(2) reports a failed write.
        let copy = dup(STDOUT_FILENO)
        if copy >= 0, close(copy) != 0, lost == nil { lost = SystemError("close", errno) }
    }

    func aside(_ text: String) {
        if isWatched { error(text) }
    }

    func progress(_ text: String?) {
        guard isWatched, text != nil || progressIsShown else { return }
        // Carriage return and "erase to the end of the line" (ECMA-48 EL): every terminal since the VT100.
        _ = writeStandard("\r\u{1B}[K" + (text ?? ""), to: STDERR_FILENO)
        progressIsShown = text != nil
    }
}
