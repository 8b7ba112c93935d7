/// An event in journald's format (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/): a datagram of fields. Values are
/// truncated (`Log.longestValue`) and events have few of them, so it stays far below the size limit of a datagram.
struct JournalEntry {
    private(set) var bytes: [UInt8] = []

    /// The event's keys become UBD_KEY, in addition to the fields that journalctl(1) knows.
    init(_ priority: Log.Priority, _ name: String, _ fields: [Log.Field]) {
        add("MESSAGE", Log.message(name, fields))
        add("PRIORITY", String(priority.rawValue))
        add("SYSLOG_IDENTIFIER", "ubd-broker")
        if let id = EventIDs.all[name] { add("MESSAGE_ID", id) }
        add("UBD_EVENT", name)
        for (key, value) in fields { add(JournalEntry.fieldName(key), Log.printable(value)) }
    }

    /// `why` becomes REASON, as other services name it.
    static func fieldName(_ key: String) -> String {
        "UBD_" + (key == "why" ? "REASON" : key.uppercased().replacing("-", with: "_"))
    }

    /// A value with a newline has its length (64 bits, little endian) before it instead of an equals sign.
    mutating func add(_ name: String, _ value: String) {
        bytes += Array(name.utf8)
        if value.utf8.contains(UInt8(ascii: "\n")) {
            bytes.append(UInt8(ascii: "\n"))
            withUnsafeBytes(of: UInt64(value.utf8.count).littleEndian) { bytes += $0 }
        } else {
            bytes.append(UInt8(ascii: "="))
        }
        bytes += Array(value.utf8)
        bytes.append(UInt8(ascii: "\n"))
    }
}
