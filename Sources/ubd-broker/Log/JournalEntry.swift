/// One event as journald takes it (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/): a datagram of fields. Values are cut
/// (`Log.longestValue`) and events have few, so it stays far below what a datagram may hold.
struct JournalEntry {
    private(set) var bytes: [UInt8] = []

    /// The event's own keys become UBD_KEY, beside what journalctl(1) itself knows.
    init(_ priority: Log.Priority, _ name: String, _ fields: [Log.Field]) {
        add("MESSAGE", Log.message(name, fields))
        add("PRIORITY", String(priority.rawValue))
        add("SYSLOG_IDENTIFIER", "ubd-broker")
        if let id = EventIDs.all[name] { add("MESSAGE_ID", id) }
        add("UBD_EVENT", name)
        for (key, value) in fields { add(JournalEntry.fieldName(key), Log.printable(value)) }
    }

    /// `why` is called REASON there, as other services call it.
    static func fieldName(_ key: String) -> String {
        "UBD_" + (key == "why" ? "REASON" : key.uppercased().replacing("-", with: "_"))
    }

    /// A value with a newline is preceded by its length (64 bits, little endian) instead of an equals sign.
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
