/// The content of a /proc/PID/stat or /proc/PID/task/TID/stat (proc_pid_stat(5)).
public struct ProcessStat: Sendable {
    /// The name of the process or thread, which it chooses itself: any bytes, parentheses and spaces too.
    public let name: String
    /// Field 3 and the ones after it.
    private let fields: [ArraySlice<UInt8>]

    /// nil for malformed content.
    public init?(_ bytes: [UInt8]) {
        guard let open = bytes.firstIndex(of: UInt8(ascii: "(")), let close = bytes.lastIndex(of: UInt8(ascii: ")")),
            open < close
        else { return nil }
        name = String(decoding: bytes[(open + 1)..<close], as: UTF8.self)
        fields = bytes[(close + 1)...].split { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\n") }
    }

    /// Field 3: R runs, S sleeps, D waits in the kernel and ignores signals, T and t are stopped, Z is dead and not yet
    /// reaped. nil when it is missing.
    public var letter: Character? {
        guard let field = fields.first, field.count == 1, let byte = field.first else { return nil }
        return Character(Unicode.Scalar(byte))
    }

    /// A signal or a tracer has stopped it; nil when the state is missing.
    public var isStopped: Bool? { letter.map { $0 == "T" || $0 == "t" } }

    /// Field 9: PF_EXITING, PF_IO_WORKER (linux/sched.h).
    public var flags: UInt64? { number(9) }
    /// Field 14, in clock ticks.
    public var userTime: UInt64? { number(14) }
    /// Field 15, in clock ticks.
    public var systemTime: UInt64? { number(15) }
    /// Field 22, in clock ticks since boot.
    public var startTime: UInt64? { number(22) }

    private func number(_ field: Int) -> UInt64? {
        guard fields.count > field - 3 else { return nil }
        return UInt64(String(decoding: fields[field - 3], as: UTF8.self))
    }
}
