import Glibc
import SystemCalls

/// Where a keeper, which has no terminal any more, tells what it does: the system's log (syslog(3)), where the user finds it with
/// 'journalctl -t ubd-nbd'. Where nobody listens, it is lost.
struct Journal {
    /// The device, as every line names it.
    let device: String
    /// The socket of the system's log.
    var path = "/dev/log"
    private static let longestLine = 900

    /// LOG_USER, with LOG_NOTICE.
    private static let priority = 1 << 3 | 5

    func tell(_ text: String) {
        let line = "<\(Self.priority)>ubd-nbd[\(getpid())]: \(device): \(text)"
        let bytes = Array(PercentEncoding.readable(line.utf8).utf8.prefix(Self.longestLine))
        guard var address = unixAddress(path) else { return }
        let file = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard file >= 0 else { return }
        defer { close(file) }
        _ = withUnsafePointer(to: &address) {
            // Never waits: a log that does not read is no reason to leave the device alone.
            sendto(
                file, bytes, bytes.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL), __CONST_SOCKADDR_ARG(__sockaddr_un__: $0),
                socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }

    /// What a server prints: line by line.
    func tell(output bytes: ArraySlice<UInt8>) {
        for line in bytes.split(separator: UInt8(ascii: "\n")) { tell(PercentEncoding.readable(line)) }
    }
}
