import CShims
import Glibc
import SystemCalls

/// /run/ubd: the socket, the lock against a second broker, and the records.
enum RunFolder {
    /// Creates the folder if necessary. It must belong to root and be writable by nobody else.
    static func prepare(_ path: String) throws {
        if mkdir(path, 0o755) != 0, errno != EEXIST { throw SystemError("mkdir \(path)", errno) }
        let folder = try FileDescriptor.open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
        let status = try folder.status()
        guard status.st_uid == 0, status.st_mode & 0o022 == 0 else {
            throw StartupRefusal(
                message: "\(path): others can write it; chown root \(path) && chmod go-w \(path)", status: 1)
        }
        try call("chmod \(path)") { fchmod(folder.raw, 0o755) }
    }

    /// The listening socket: systemd's if it passed one (sd_listen_fds(3)), otherwise our own. The lock is held, so an
    /// existing socket file belongs to a dead broker.
    static func listener(_ path: String, passed: Int32?) throws -> FileDescriptor {
        if let passed { return try checked(passed) }
        if unlink(path) != 0, errno != ENOENT { throw SystemError("unlink \(path)", errno) }
        // The kernel serves the queue in order of arrival, so it is short: a flood by one user must not delay
        // everybody.
        let socket = try listen(at: path, backlog: 128)
        try call("chmod \(path)") { chmod(path, 0o666) }
        return socket
    }

    /// The number of descriptors that systemd passed, from descriptor 3 on (sd_listen_fds(3)).
    static var passedSockets: Int32 {
        guard let pid = getenv("LISTEN_PID"), Int32(String(cString: pid)) == getpid(),
            let count = getenv("LISTEN_FDS")
        else { return 0 }
        return min(max(Int32(String(cString: count)) ?? 0, 0), 1 << 16)
    }

    private static func checked(_ descriptor: Int32) throws -> FileDescriptor {
        let socket = FileDescriptor(owning: descriptor)
        guard listens(descriptor) else {
            throw StartupRefusal(message: "the descriptor that systemd passed is not a listening socket", status: 1)
        }
        try socket.setNonBlocking()
        return socket
    }

    static func listens(_ descriptor: Int32) -> Bool {
        var listening: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        return getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening == 1
    }
}
