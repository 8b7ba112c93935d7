import Glibc
import SystemCalls

/// Where a command writes. Each call is one or more whole lines, without the last newline.
protocol Console: AnyObject {
    /// Results, for scripts as well: stdout.
    func out(_ text: String)
    /// Errors and notes, for people: stderr.
    func error(_ text: String)
    /// What a person may like to know and a script does not: stderr, when somebody is looking at it.
    func aside(_ text: String)
    /// Replaces the line of progress, when somebody is looking at stderr; nil takes it away.
    func progress(_ text: String?)
    /// Does nothing for so many milliseconds, and ends early when nobody reads any more what `out` writes: then that is lost.
    func wait(milliseconds: UInt64)
    /// Nothing will follow: errors that only the close of a file tells of are `lost` now.
    func finish()
    /// Why something of what `out` was given is not where it should be; nil when all of it is.
    var lost: SystemError? { get }
}

/// The real one: writes without buffering, so that nothing is lost or out of order when a signal ends the program.
final class StandardConsole: Console {
    private let isWatched = isatty(2) == 1
    private var progressIsShown = false
    private(set) var lost: SystemError?

    func out(_ text: String) {
        let error = writeStandard(text + "\n", to: STDOUT_FILENO)
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
            // Without events it tells of a pipe, a socket or a terminal whose other end is gone, and of nothing else.
            var output = pollfd(fd: STDOUT_FILENO, events: 0, revents: 0)
            guard poll(&output, 1, Int32(clamping: (end - now) / 1_000_000 + 1)) > 0 else { continue }
            let error = output.revents & Int16(POLLNVAL) != 0 ? EBADF : EPIPE
            if lost == nil { lost = SystemError("poll", error) }
            return
        }
    }

    func finish() {
        // Network file systems and quotas tell of a failed write only there (close(2)).
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
