import Glibc
import SystemCalls

/// The broker's log: one line an event on stderr, `<priority>key=value …`, as journald reads it (sd-daemon(3)).
enum Log {
    enum Priority: Int {
        case error = 3
        case warning = 4
        case notice = 5
        case info = 6
    }

    static func event(_ priority: Priority, _ name: String, _ fields: [(String, String)] = []) {
        var line = "<\(priority.rawValue)>event=\(name)"
        for (key, value) in fields { line += " \(key)=\(escaped(value))" }
        line += "\n"
        // A log that can't be written must not stop the broker.
        _ = line.withCString { write(STDERR_FILENO, $0, strlen($0)) }
    }

    static func error(_ name: String, _ fields: (String, String)...) { event(.error, name, fields) }
    static func warning(_ name: String, _ fields: (String, String)...) { event(.warning, name, fields) }
    static func notice(_ name: String, _ fields: (String, String)...) { event(.notice, name, fields) }
    static func info(_ name: String, _ fields: (String, String)...) { event(.info, name, fields) }

    /// Text as a value: a stranger's string can neither end the line nor look like another field. What is not plain is
    /// quoted, everything but printable ASCII becomes \xNN, and it is cut at 512 bytes.
    static func escaped(_ text: String) -> String {
        let bytes = Array(text.utf8.prefix(512))
        let isPlain = !bytes.isEmpty && bytes.allSatisfy { plain.contains($0) } && text.utf8.count <= 512
        if isPlain { return text }
        var result = "\""
        for byte in bytes {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"): result += "\\" + String(UnicodeScalar(byte))
            case 0x20...0x7e: result += String(UnicodeScalar(byte))
            default: result += "\\x" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
            }
        }
        return result + (text.utf8.count > 512 ? "…\"" : "\"")
    }

    private static let plain = Set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/:@+,-%".utf8)
}
