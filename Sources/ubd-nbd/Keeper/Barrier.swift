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
        var open = sockets.map { Connection(file: $0) }
        try drain(&open, deadline, attention, quiet: quiet)
        for connection in open { shutdown(connection.file, Int32(SHUT_WR)) }
        try drain(&open, deadline, attention, quiet: nil)
        return open.isEmpty
    }

    /// Reads until all are closed, the deadline passes, or nothing has come for `quiet` milliseconds. Those that are closed leave
    /// the list.
    private static func drain(
        _ open: inout [Connection], _ deadline: Deadline, _ attention: Attention, quiet: Int?
    ) throws(SystemError) {
        while true {
            for index in open.indices { open[index].read() }
            open.removeAll { $0.state == .closed }
            if open.isEmpty || deadline.hasPassed { return }
            let silence = quiet.map { Deadline(milliseconds: $0) }
            do throws(SystemError) {
                try attention.wait(forAny: open.map { ($0.file, $0.events) }, silence ?? deadline)
            } catch {
                if error.errno == ETIMEDOUT { return }
                throw error
            }
        }
    }

    /// One connection is read so often before the deadline and the others have their turn.
    static let readsInARow = 16

    /// A connection that is drained.
    struct Connection {
        enum State {
            case open
            /// What the server sends can not be read any more. The server may be at work all the same.
            case unreadable
            case closed
        }

        let file: Int32
        private(set) var state = State.open

        init(file: Int32) { self.file = file }

        /// What to wait for with poll(2): something to read, or the server's end alone.
        var events: Int32 { state == .open ? POLLIN : Int32(POLLRDHUP) }

        /// Reads what is there, but not for ever: a server may send faster than it is read.
        mutating func read() {
            var bytes = [UInt8](repeating: 0, count: 64 << 10)
            for _ in 0..<readsInARow where state == .open {
                var count = recv(file, &bytes, bytes.count, Int32(MSG_DONTWAIT))
                if count == 0 { return state = .closed }
                if count < 0, errno == EIO { count = readTypedRecord(&bytes) }
                if count >= 0 || errno == EINTR { continue }
                if errno == EAGAIN { return }
                state = .unreadable
            }
            if state == .unreadable, hasEnded { state = .closed }
        }

        /// A record of the kernel's TLS that is no data (an alert, a message of the handshake) is given only to a reader with room for
        /// its type (tls.rst); all others get EIO, again and again.
        private func readTypedRecord(_ bytes: inout [UInt8]) -> Int {
            var type = [UInt8](repeating: 0, count: 64)
            return bytes.withUnsafeMutableBytes { bytes in
                type.withUnsafeMutableBytes { type in
                    var part = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
                    return withUnsafeMutablePointer(to: &part) { part in
                        var message = msghdr()
                        message.msg_iov = part
                        message.msg_iovlen = 1
                        message.msg_control = type.baseAddress
                        message.msg_controllen = type.count
                        return recvmsg(file, &message, Int32(MSG_DONTWAIT))
                    }
                }
            }
        }

        /// Whether the connection is gone, or the server has said that nothing more comes. An error of reading says neither: with
        /// the kernel's TLS the next record may be one that it can not decrypt.
        private var hasEnded: Bool {
            // An error that is kept would end every wait at once.
            _ = try? option(file, SO_ERROR)
            var one = pollfd(fd: file, events: Int16(POLLRDHUP), revents: 0)
            return poll(&one, 1, 0) == 1 && Int32(one.revents) & (Int32(POLLRDHUP) | POLLHUP | POLLNVAL) != 0
        }
    }
}
