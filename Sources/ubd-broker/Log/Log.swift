import Glibc
import SystemCalls

/// The broker's log. Under systemd each event is an entry of the journal with fields; otherwise, and whenever journald
/// does not take it, one line on stderr, `<priority>event=name key=value …` (sd-daemon(3)). docs/log.md lists the events.
enum Log {
    enum Priority: Int {
        case alert = 1
        case error = 3
        case warning = 4
        case notice = 5
        case info = 6
    }

    typealias Field = (key: String, value: String)

    /// Where stderr is the journal's already.
    private static let journal = JournalSocket.forStderr()

    static func event(_ priority: Priority, _ name: String, _ fields: [Field] = []) {
        if let journal, journal.send(JournalEntry(priority, name, fields).bytes) { return }
        let line = Array("<\(priority.rawValue)>\(message(name, fields))\n".utf8)
        // A log that can't be written must not stop the broker, nor one that nobody reads: journald's end may be full.
        if journal != nil {
            _ = Glibc.send(STDERR_FILENO, line, line.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
        } else {
            _ = write(STDERR_FILENO, line, line.count)
        }
    }

    static func error(_ name: String, _ fields: Field...) { event(.error, name, fields) }
    static func warning(_ name: String, _ fields: Field...) { event(.warning, name, fields) }
    static func notice(_ name: String, _ fields: Field...) { event(.notice, name, fields) }
    static func info(_ name: String, _ fields: Field...) { event(.info, name, fields) }

    /// The event in one line.
    static func message(_ name: String, _ fields: [Field]) -> String {
        fields.reduce("event=\(name)") { $0 + " \($1.key)=\(escaped($1.value))" }
    }

    /// Bytes of a stranger's text that are kept.
    static let longestValue = 512

    /// Text as a value: a stranger's string can neither end the line nor look like another field. What is not plain is
    /// quoted, everything but printable ASCII becomes \xNN, and it is cut at 512 bytes.
    static func escaped(_ text: String) -> String {
        let isPlain = !text.isEmpty && text.utf8.count <= longestValue && text.utf8.allSatisfy { plain.contains($0) }
        if isPlain { return text }
        return "\"" + printable(text).replacing("\"", with: "\\\"") + "\""
    }

    /// Text in printable ASCII: a backslash is doubled, everything else becomes \xNN, and it is cut at 512 bytes.
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
