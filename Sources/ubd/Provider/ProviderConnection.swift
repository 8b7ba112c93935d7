import Glibc
import SystemCalls
import Varlink

/// The client's connection: systemd accepts it and starts a `ubd provide` for it (`Accept=yes`, systemd.socket(5)).
struct ProviderConnection: ~Copyable {
    private let socket: FileDescriptor
    private var reader = FrameReader()

    /// Takes a connected socket. It waits in reads and writes: this process serves nobody else.
    init(_ socket: consuming FileDescriptor) {
        self.socket = socket
        let flags = fcntl(self.socket.raw, F_GETFL)
        if flags >= 0 { _ = fcntl(self.socket.raw, F_SETFL, flags & ~O_NONBLOCK) }
    }

    /// The connection that systemd passes (sd_listen_fds(3)): descriptor 3, and no other.
    static func inherited(_ variable: (String) -> String?) throws(CommandFailure) -> ProviderConnection {
        guard variable("LISTEN_PID") == "\(getpid())", variable("LISTEN_FDS") == "1", fcntl(3, F_GETFD) >= 0 else {
            throw CommandFailure(
                .usage, "NoConnection", "nobody has passed a connection to 'ubd provide'",
                remedy: "let systemd start it: 'systemctl --user enable --now ubd-provide.socket'")
        }
        _ = fcntl(3, F_SETFD, FD_CLOEXEC)
        let socket = FileDescriptor(owning: 3)
        guard let listening = try? option(socket.raw, SO_ACCEPTCONN), listening == 0 else {
            throw CommandFailure(
                .usage, "NoConnection", "what was passed to 'ubd provide' is no connected socket",
                remedy: "set Accept=yes in the socket's unit, as ubd-provide.socket has it")
        }
        // A volume is handed to the user herself, or to root.
        let peer = try? PeerCredentials(withoutGroupsOf: socket.raw).uid
        guard let peer, peer == 0 || peer == geteuid() else {
            throw CommandFailure(
                .notPermitted, "NotPermitted",
                "the client of this connection is \(peer.map { "user \($0)" } ?? "unknown"), who is not you",
                remedy: "give the socket mode 0600, as ubd-provide.socket does")
        }
        return ProviderConnection(socket)
    }

    /// Answers calls until the client closes the connection, or breaks the protocol.
    mutating func serve(_ provider: StorageProvider) {
        while let message = next() {
            guard let call = try? Call(message: message) else { return }
            do throws(SystemError) { try answer(call, provider) } catch { return }
        }
    }

    private func answer(_ call: Call, _ provider: StorageProvider) throws(SystemError) {
        guard !call.upgrade else {
            return try send(
                StorageProvider.Answer(
                    StorageProvider.Refusal.service(.methodNotImplemented(method: call.method)).reply))
        }
        try provider.answer(call) { (answer) throws(SystemError) in
            if !call.oneway { try send(answer) }
        }
    }

    /// The next message; nil at the end, and after what is no message. Files that come with it are refused, unseen.
    private mutating func next() -> [UInt8]? {
        while true {
            if let message = reader.next() { return message }
            var waiting = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
            if poll(&waiting, 1, -1) < 0, errno != EINTR { return nil }
            var bytes = [UInt8](repeating: 0, count: reader.room)
            let received = bytes.withUnsafeMutableBytes { try? receiveWithoutFiles(socket.raw, into: $0) }
            switch received {
            case .bytes(let count): do { try reader.append(bytes[..<count]) } catch { return nil }
            case .wouldBlock: continue
            default: return nil
            }
        }
    }

    /// Sends a reply; its file goes with the first byte.
    private func send(_ answer: consuming StorageProvider.Answer) throws(SystemError) {
        let bytes = answer.reply.message
        var done = 0
        while done < bytes.count {
            done += try SystemCalls.send(socket.raw, Array(bytes[done...]), files: done == 0 ? answer.files : [])
        }
    }
}
