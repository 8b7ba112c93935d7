import Glibc
import SystemCalls

/// Lets a server finish what a dead worker had sent, before anybody else writes: what lies in a socket is still carried out,
/// seconds later where the server is slow, and would land on top of what a new worker wrote.
enum Barrier {
    /// A server that has said nothing for so many milliseconds has answered all that it had received whole, or is slow.
    private static let quiet = 100

    /// Reads what the server still answers, says on each connection that nothing more comes, and reads until the server has
    /// closed it, too. nbdkit and nbd-server answer everything first. qemu-nbd closes at once, with writes still under way.
    ///
    /// The end comes only after the answers, because a worker that was killed may have left half a request. nbdkit 1.32 (Debian 12)
    /// aborts when it finds one while it answers others ("raw_send_socket: Assertion `sock >= 0' failed").
    ///
    /// - Returns: false when a server did not close in time.
    static func run(_ sockets: [Int32], _ deadline: Deadline, _ attention: Attention) throws(SystemError) -> Bool {
        var open = sockets
        try drain(&open, deadline, attention, quiet: quiet)
        for socket in open { shutdown(socket, Int32(SHUT_WR)) }
        try drain(&open, deadline, attention, quiet: nil)
        return open.isEmpty
    }

    /// Reads until all are closed, the deadline passes, or nothing has come for `quiet` milliseconds. Those that are closed leave
    /// the list.
    private static func drain(
        _ open: inout [Int32], _ deadline: Deadline, _ attention: Attention, quiet: Int?
    ) throws(SystemError) {
        while true {
            open.removeAll(where: isClosed)
            if open.isEmpty || deadline.hasPassed { return }
            let silence = quiet.map { Deadline(milliseconds: $0) }
            do throws(SystemError) { try attention.wait(forAny: open, POLLIN, silence ?? deadline) } catch {
                if error.errno == ETIMEDOUT { return }
                throw error
            }
        }
    }

    /// One connection is read so often before the deadline and the others have their turn.
    static let readsInARow = 16

    /// Reads what is there, but not for ever: a server may send faster than it is read.
    static func isClosed(_ socket: Int32) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        for _ in 0..<readsInARow {
            let count = recv(socket, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            if count == 0 { return true }
            if count > 0 || errno == EINTR { continue }
            // A connection that is broken brings nothing more. What the server had received of it, nobody can know.
            return errno != EAGAIN
        }
        return false
    }
}
