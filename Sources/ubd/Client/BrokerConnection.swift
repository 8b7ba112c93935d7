import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// A reply, and the file that came with it.
struct IncomingReply: ~Copyable {
    var reply: Reply
    var file: FileDescriptor?
}

/// One connection to the broker: sends a call, receives its replies, and never waits longer than its deadline.
struct BrokerConnection: ~Copyable {
    private let socket: FileDescriptor
    private let path: String
    /// How messages name the broker's log.
    private let log: String
    private let isInterrupted: () -> Bool
    private var reader = FrameReader(limit: JSONLimits.reply.bytes)
    private var deadline: Deadline
    /// Called about once a second while waiting.
    var tick: () -> Void = {}

    init(_ environment: CommandEnvironment, deadline: Deadline) throws(CommandFailure) {
        path = environment.socketPath
        log = Installation.log(environment.host)
        isInterrupted = environment.isInterrupted
        socket = try Self.connect(to: path, deadline, environment)
        self.deadline = deadline
    }

    private static func connect(
        to path: String, _ deadline: Deadline, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> FileDescriptor {
        guard var address = unixAddress(path) else {
            throw CommandFailure(
                .usage, "Usage", "'\(path)' can not be the path of a socket (107 bytes at most)",
                remedy: "set \(BrokerAPI.socketVariable) to a shorter path, or unset it")
        }
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let raw = Glibc.socket(AF_UNIX, type, 0)
        guard raw >= 0 else { throw noSocket(errno) }
        let socket = FileDescriptor(owning: raw)
        // A non-blocking connect(2) to a Unix socket whose backlog is full says EAGAIN at once, and poll can't wait for it.
        while true {
            let result = withUnsafePointer(to: &address) {
                Glibc.connect(
                    raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
            }
            if result == 0 {
                try checkListener(raw, path)
                return socket
            }
            guard errno == EAGAIN || errno == EINTR, !deadline.hasPassed else {
                throw unreachable(path, errno, environment.host)
            }
            if environment.isInterrupted() { throw Interruption.failure }
            usleep(20_000)
        }
    }

    /// The broker gets open files: nobody but root, or the caller, may be it.
    private static func checkListener(_ socket: Int32, _ path: String) throws(CommandFailure) {
        let listener = try? Listener(of: socket)
        if listener?.isTrusted == true { return }
        let who = listener.map { "a process of uid \($0.uid)" } ?? "an unknown process"
        throw CommandFailure(
            .brokerNotReachable, "NotTheBroker",
            "no broker at \(path): \(who) listens there, which is neither root's nor yours",
            remedy: "unset \(BrokerAPI.socketVariable), or name the socket of root's broker")
    }

    /// The failure is this process's own and says nothing about the broker.
    private static func noSocket(_ error: Int32) -> CommandFailure {
        CommandFailure(
            SystemError("make a socket", error), remedy: CommandFailure.limitRemedy(error) ?? "see 'ubd doctor'")
    }

    private static func unreachable(_ path: String, _ error: Int32, _ host: any Machine) -> CommandFailure {
        let remedy =
            switch error {
            case ENOENT, ECONNREFUSED, ENOTDIR:
                "start it ('\(Installation.startCommand(host))' as root), or see 'ubd doctor'"
            case EACCES, EPERM:
                "let the administrator make the socket writable for you (it is installed with mode 0666)"
            case EAGAIN: "it has too many connections: try again later"
            default: "see 'ubd doctor'"
            }
        return CommandFailure(
            .brokerNotReachable, "BrokerNotReachable",
            "no broker at \(path): \(SystemError.message(error))", remedy: remedy)
    }

    /// Sends one call. A broker without room for the connection sends an error and closes it, perhaps before this call.
    /// The error can still be received.
    func send(_ call: Call) throws(CommandFailure) {
        let message = call.message
        var done = 0
        while done < message.count {
            let count = message.withUnsafeBytes {
                Glibc.send(socket.raw, $0.baseAddress! + done, $0.count - done, Int32(MSG_NOSIGNAL))
            }
            if count >= 0 {
                done += count
            } else if errno == EAGAIN {
                try wait(for: Int16(POLLOUT))
            } else if errno == EPIPE || errno == ECONNRESET {
                return
            } else if errno != EINTR {
                throw lost(errno)
            }
        }
    }

    /// Gives the next reply of a call with many replies as much time as a single one.
    mutating func extend(bySeconds seconds: Int) { deadline = Deadline(seconds: seconds) }

    /// Receives the next reply to the call. A file is taken only when `acceptsFile`, and only with a reply's first byte
    /// (UAPI.20, Passing File Descriptors).
    mutating func receive(acceptsFile: Bool = false) throws(CommandFailure) -> IncomingReply {
        var file: FileDescriptor?
        while true {
            if let message = reader.next() {
                return IncomingReply(reply: try Self.parse(message), file: file)
            }
            try wait(for: Int16(POLLIN))
            let mayBringFile = acceptsFile && !reader.hasUnread
            if let new = try receiveBytes(mayBringFile: mayBringFile) {
                guard file == nil else { throw broken("the broker sent more than one file") }
                file = consume new
            }
        }
    }

    /// Receives the next reply, however long it takes to come; nil when `isWanted`, which is asked every second, says no.
    mutating func receive(whileWanted isWanted: () -> Bool) throws(CommandFailure) -> IncomingReply? {
        while true {
            if let message = reader.next() { return IncomingReply(reply: try Self.parse(message), file: nil) }
            var waiting = pollfd(fd: socket.raw, events: Int16(POLLIN), revents: 0)
            if poll(&waiting, 1, 1000) > 0 {
                _ = try receiveBytes(mayBringFile: false)
            } else if !isWanted() {
                return nil
            }
        }
    }

    /// Receives the bytes that have arrived and returns the file that came with them, if one is allowed.
    private mutating func receiveBytes(mayBringFile: Bool) throws(CommandFailure) -> FileDescriptor? {
        let result = withUnsafeTemporaryAllocation(byteCount: min(reader.room, 16 * 1024), alignment: 1) { buffer in
            Result { () throws(SystemError) in
                let received = try Self.receive(socket.raw, into: buffer, mayBringFile: mayBringFile)
                return (bytes: Array(buffer[..<received.bytes]), file: received.file)
            }
        }
        let bytes: [UInt8]
        let file: FileDescriptor?
        switch result {
        case .success(let received):
            bytes = received.bytes
            file = received.file.map(FileDescriptor.init(owning:))
        case .failure(let error):
            switch error.errno {
            case EAGAIN: return nil
            case EMSGSIZE where mayBringFile && Self.hasNoRoom(socket): throw Self.noSocket(EMFILE)
            case EMSGSIZE: throw broken("the broker sent files where none belong")
            default: throw lost(error.errno)
            }
        }
        guard !bytes.isEmpty else { throw lost(0) }
        do { try reader.append(bytes[...]) } catch { throw broken("the broker's reply: \(error)") }
        return file
    }

    /// The kernel drops a received file when this process may have no more descriptors, and reports only truncation.
    private static func hasNoRoom(_ socket: borrowing FileDescriptor) -> Bool {
        do throws(SystemError) { _ = try socket.duplicate() } catch { return error.errno == EMFILE }
        return false
    }

    /// Zero bytes: the broker closed. EMSGSIZE: it sent more files than allowed.
    private static func receive(
        _ socket: Int32, into bytes: UnsafeMutableRawBufferPointer, mayBringFile: Bool
    ) throws(SystemError) -> (bytes: Int, file: Int32?) {
        if mayBringFile {
            let received = try receiveWithFiles(socket, into: bytes, maximum: 1, peek: false)
            return (received.bytes, received.files.first)
        }
        switch try receiveWithoutFiles(socket, into: bytes) {
        case .bytes(let count): return (count, nil)
        case .closed, .tooLong: return (0, nil)
        case .wouldBlock: throw SystemError("recvmsg", EAGAIN)
        case .filesAttached: throw SystemError("recvmsg", EMSGSIZE)
        }
    }

    private static func parse(_ message: [UInt8]) throws(CommandFailure) -> Reply {
        do { return try Reply(message: message) } catch {
            throw CommandFailure(
                .failed, "BrokenReply", "the broker's reply is malformed: \(error)",
                remedy: "use the ubd and ubd-broker of one version")
        }
    }

    private func broken(_ what: String) -> CommandFailure {
        CommandFailure(.failed, "BrokenReply", what, remedy: "use the ubd and ubd-broker of one version")
    }

    private func lost(_ error: Int32) -> CommandFailure {
        CommandFailure(
            .brokerNotReachable, "BrokerNotReachable",
            "the broker at \(path) closed the connection"
                + (error == 0 || error == EPIPE ? "" : ": \(SystemError.message(error))"),
            remedy: "look for the reason in \(log), then try again")
    }

    private func wait(for events: Int16) throws(CommandFailure) {
        while true {
            let isOver = isInterrupted()
            if deadline.hasPassed {
                throw CommandFailure(
                    .failed, "NoAnswer", "the broker did not answer within \(deadline.seconds) s",
                    remedy: "see 'ubd list' and \(log)")
            }
            var waiting = pollfd(fd: socket.raw, events: events, revents: 0)
            // A hang-up counts as readable: bytes that were sent before it must still be read.
            // What has arrived is read all the same: it may be a device.
            if poll(&waiting, 1, isOver ? 0 : deadline.milliseconds()) > 0 { return }
            if isOver { throw Interruption.failure }
            tick()
        }
    }
}
