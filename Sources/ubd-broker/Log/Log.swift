import Glibc
import Synchronization
import SystemCalls

/// The broker's log. Under systemd each event is a journal entry with fields. Otherwise, and when journald does not
/// take the entry, it is a line on stderr, `<priority>event=name key=value …` (sd-daemon(3)). docs/log.md lists the
/// events.
enum Log {
    enum Priority: Int {
        case alert = 1
        case error = 3
        case warning = 4
        case notice = 5
        case info = 6
    }

    typealias Field = (key: String, value: String)

    /// The log's state, shared by all threads (the unit tests have several).
    private struct State {
        /// Set when stderr is connected to the journal.
        let journal = JournalSocket.forStderr()
        let output = LogOutput(STDERR_FILENO)
        var limits = LogLimits()
        var accounts = Accounts()
        /// Lines lost since the last one that was written.
        var lost = 0

        /// Writes an event, preceded by the number of lost lines, if any.
        mutating func write(_ priority: Priority, _ name: String, _ fields: [Field]) {
            tellLost()
            if lost > 0 || !put(priority, name, fields) { lost += 1 }
        }

        mutating func tellLost() {
            if lost > 0, put(.warning, "log-lost", [("lines", "\(lost)")]) { lost = 0 }
        }

        mutating func tellLeftOut(all: Bool) {
            for some in limits.takeLeftOut(now: monotonicNanoseconds(), all: all) {
                let seconds = (some.duration + 999_999_999) / 1_000_000_000
                write(
                    .notice, "left-out",
                    [
                        ("uid", some.account.map { "\($0)" } ?? "several"), ("lines", "\(some.count)"),
                        ("seconds", "\(seconds)"),
                    ])
            }
        }

        private func put(_ priority: Priority, _ name: String, _ fields: [Field]) -> Bool {
            if let journal, journal.send(JournalEntry(priority, name, fields).bytes) { return true }
            return output.write(Array("<\(priority.rawValue)>\(message(name, fields))\n".utf8))
        }
    }

    private static let state = Mutex(State())

    /// An event about a device, a worker or the broker itself, which is never suppressed. A log that cannot be written,
    /// or whose reader stopped, must not stop the broker.
    static func event(_ priority: Priority, _ name: String, _ fields: [Field] = []) {
        state.withLock { $0.write(priority, name, fields) }
    }

    /// An event that a client causes: limited per account (`LogLimits`), except for root. `uid`: nil when unknown.
    static func client(
        _ kind: LogLimits.Kind, _ uid: UInt32?, _ priority: Priority, _ name: String,
        _ fields: @autoclosure () -> [Field]
    ) {
        let isAdmitted = state.withLock { state in
            let account = uid.map { state.accounts.account(of: $0) }
            return account == 0 || state.limits.admits(kind, of: account, now: monotonicNanoseconds())
        }
        if isAdmitted { event(priority, name, fields()) }
    }

    /// Counts clients' events by these accounts from now on.
    static func count(by accounts: Accounts) {
        state.withLock { $0.accounts = accounts }
    }

    /// To be called regularly: logs how many lines were suppressed or lost. `all`: at the broker's end.
    static func catchUp(all: Bool = false) {
        state.withLock { state in
            state.tellLost()
            state.tellLeftOut(all: all)
        }
    }

    static func error(_ name: String, _ fields: Field...) { event(.error, name, fields) }
    static func warning(_ name: String, _ fields: Field...) { event(.warning, name, fields) }
    static func notice(_ name: String, _ fields: Field...) { event(.notice, name, fields) }
    static func info(_ name: String, _ fields: Field...) { event(.info, name, fields) }

    /// The event as one line.
    static func message(_ name: String, _ fields: [Field]) -> String {
        fields.reduce("event=\(name)") { $0 + " \($1.key)=\(escaped($1.value))" }
    }

    /// The maximum length of a value in bytes.
    static let longestValue = 512

    /// Escapes a value, so that a client's string can neither end the line nor imitate another field. A value that is
    /// not plain is quoted and made `printable`.
    static func escaped(_ text: String) -> String {
        let isPlain = !text.isEmpty && text.utf8.count <= longestValue && text.utf8.allSatisfy { plain.contains($0) }
        if isPlain { return text }
        return "\"" + printable(text).replacing("\"", with: "\\\"") + "\""
    }

    /// Converts text to printable ASCII: doubles backslashes, writes all other bytes as \xNN, and truncates at 512
    /// bytes.
    static func printable(_ text: String) -> String {
        var result = ""
        for byte in text.utf8.prefix(longestValue) {
            switch byte {
            case UInt8(ascii: "\\"): result += "\\\\"
            case 0x20...0x7e: result += String(UnicodeScalar(byte))
            default: result += "\\x" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
            }
        }
        return result + (text.utf8.count > longestValue ? "…" : "")
    }

    private static let plain = Set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/:@+,%-".utf8)
}
