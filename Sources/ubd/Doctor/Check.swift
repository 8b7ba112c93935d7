import Varlink

/// The result of one check.
struct Check: Equatable {
    enum Status: String {
        case ok
        /// ubd cannot work without it.
        case missing
        /// It may work, but the user should know.
        case warning
    }

    /// One word for scripts and for the first column.
    var name: String
    var status: Status
    /// The finding.
    var message: String
    /// The command or action that fixes it; nil when nothing is wrong.
    var remedy: String?

    static func ok(_ name: String, _ message: String) -> Check {
        Check(name: name, status: .ok, message: message)
    }

    static func missing(_ name: String, _ message: String, remedy: String) -> Check {
        Check(name: name, status: .missing, message: message, remedy: remedy)
    }

    static func warning(_ name: String, _ message: String, remedy: String) -> Check {
        Check(name: name, status: .warning, message: message, remedy: remedy)
    }

    /// One line for people.
    var line: String {
        func padded(_ text: String, _ width: Int) -> String {
            text + String(repeating: " ", count: max(width - text.count, 0) + 1)
        }
        let start = padded(status.rawValue, 7) + padded(name, 8) + message
        return (remedy.map { "\(start); \($0)" } ?? start).printable
    }

    var json: JSON {
        .record([
            ("check", .string(name)), ("status", .string(status.rawValue)), ("message", .string(message)),
            ("remedy", remedy.map(JSON.string)),
        ])
    }
}
