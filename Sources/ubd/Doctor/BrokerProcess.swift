import SystemCalls

/// The process that holds the broker's lock while no broker answers: it may hang, or have been killed and be unable to
/// end.
struct BrokerProcess: Equatable {
    var pid: Int32
    var state: ProcessState
    /// The kernel function in which it waits; only root can read it.
    var place: String?

    /// `lock`: the lock file. /proc/locks (proc_locks(5)), which everybody may read, has its lock: "1: POSIX  ADVISORY
    /// WRITE 17 00:1a:4711 0 0". Of several holders the one that lives.
    static func find(_ host: any Machine, lock: String) -> BrokerProcess? {
        guard let file = host.lockID(of: lock), let table = host.text(of: "/proc/locks") else { return nil }
        let found = table.split(whereSeparator: \.isNewline).compactMap { line -> BrokerProcess? in
            let fields = line.split(separator: " ")
            guard fields.count > 5, fields[1] == "POSIX", fields[5] == file, let pid = Int32(fields[4]) else {
                return nil
            }
            return BrokerProcess(pid, host)
        }
        return found.first { !$0.state.isPast } ?? found.first
    }

    private init?(_ pid: Int32, _ host: any Machine) {
        guard let stat = host.text(of: "/proc/\(pid)/stat"), let status = host.text(of: "/proc/\(pid)/status"),
            let state = ProcessState(stat: Array(stat.utf8), status: Array(status.utf8))
        else { return nil }
        self.pid = pid
        self.state = state
        let text = host.text(of: "/proc/\(pid)/wchan") ?? ""
        place = text.isEmpty || text == "0" ? nil : text
    }

    /// A failure to reach the broker, with the state of its process and the remedy.
    static func explain(_ failure: CommandFailure, _ environment: CommandEnvironment) -> CommandFailure {
        guard failure.status == .brokerNotReachable || failure.name == "NoAnswer" else { return failure }
        let folder = environment.socketPath.split(separator: "/", omittingEmptySubsequences: false).dropLast()
        guard let process = find(environment.host, lock: folder.joined(separator: "/") + "/lock") else {
            return failure
        }
        var explained = failure
        explained.message +=
            ": its process \(process.pid) (\(process.state.name)) \(process.state.words(place: process.place))"
        if let remedy = process.remedy { explained.remedy = remedy }
        return explained
    }

    private var remedy: String? {
        if state.isPast { return "start another broker, as root: it takes over, although that one cannot end" }
        switch state.letter {
        case "T", "t":
            return "continue it ('kill -CONT \(pid)'), or end it ('kill -9 \(pid)') and start another, as root"
        case "D":
            return
                "end it ('kill -9 \(pid)') and start another, as root: that takes over, even if this one cannot end"
        default: return nil
        }
    }
}
