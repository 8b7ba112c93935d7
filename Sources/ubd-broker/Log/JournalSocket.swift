import Glibc
import SystemCalls

/// Sends entries to journald without waiting. The caller writes entries that journald does not take elsewhere.
final class JournalSocket: Sendable {
    private let socket: Int32
    private let address: sockaddr_un

    /// The socket is not connected, so that it still reaches a journald that was restarted.
    init?(path: String) {
        guard let address = unixAddress(path) else { return nil }
        let type = Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue)
        socket = Glibc.socket(AF_UNIX, type, 0)
        self.address = address
        if socket < 0 { return nil }
    }

    deinit { close(socket) }

    /// The socket of journald if this process' stderr is connected to it.
    static func forStderr() -> JournalSocket? {
        guard let stream = getenv("JOURNAL_STREAM"), isStream(STDERR_FILENO, String(cString: stream)) else {
            return nil
        }
        return JournalSocket(path: "/run/systemd/journal/socket")
    }

    /// Whether a descriptor is the one that JOURNAL_STREAM names, "DEVICE:INODE" (systemd.exec(5)). A process with
    /// another stderr may have inherited the variable.
    static func isStream(_ fd: Int32, _ stream: String) -> Bool {
        var status = stat()
        return fstat(fd, &status) == 0 && stream == "\(status.st_dev):\(status.st_ino)"
    }

    /// Returns false when journald is absent or has no room.
    func send(_ entry: [UInt8]) -> Bool {
        let sent = withUnsafePointer(to: address) { address in
            sendto(
                socket, entry, entry.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL),
                __CONST_SOCKADDR_ARG(__sockaddr_un__: address), socklen_t(MemoryLayout<sockaddr_un>.size))
        }
        return sent == entry.count
    }
}
