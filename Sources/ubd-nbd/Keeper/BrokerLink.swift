import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// One connection to the broker, as a keeper has it.
struct BrokerLink: ~Copyable {
    /// Why the broker could not be asked, or what it answered.
    enum Failure: Error {
        /// It is not there, or went away: it may come back.
        case noBroker
        case refused(InterfaceError)
        /// What it says can not be read: it is of another version.
        case broken
        /// The wait was given up (Attention).
        case givenUp
    }

    struct Incoming: ~Copyable {
        var reply: Reply
        var file: FileDescriptor?
    }

    let socket: FileDescriptor
    private var reader = FrameReader(limit: JSONLimits.reply.bytes)
    private let attention: Attention

    init(_ path: String, _ attention: Attention) throws(Failure) {
        self.attention = attention
        socket = try Self.connect(path)
    }

    private static func connect(_ path: String) throws(Failure) -> FileDescriptor {
        guard var address = unixAddress(path) else { throw .broken }
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let raw = Glibc.socket(AF_UNIX, type, 0)
        guard raw > STDERR_FILENO else { throw .noBroker }
        let socket = FileDescriptor(owning: raw)
        let result = withUnsafePointer(to: &address) {
            Glibc.connect(raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), socklen_t(MemoryLayout<sockaddr_un>.size))
        }
        // It gets the connections: nobody but root, or this user, may be it.
        guard result == 0, let listener = try? Listener(of: raw), listener.isTrusted else { throw .noBroker }
        return socket
    }

    func send(_ call: BrokerCall) throws(Failure) {
        // A call is small, and the socket is new: there is room for it.
        guard (try? SystemCalls.send(socket.raw, call.call.message)) != nil else { throw .noBroker }
    }

    /// The next reply; nil when the deadline passes first.
    mutating func receive(_ deadline: Deadline) throws(Failure) -> Incoming? {
        var file: FileDescriptor?
        while true {
            if let message = reader.next() {
                guard let reply = try? Reply(message: message) else { throw .broken }
                try Self.check(reply)
                return Incoming(reply: reply, file: file)
            }
            do throws(SystemError) { try attention.wait(for: socket.raw, POLLIN, deadline) } catch {
                if error.errno == ETIMEDOUT { return nil }
                throw .givenUp
            }
            if let new = try receiveBytes() { file = consume new }
        }
    }

    /// The file that came with them, if one did.
    private mutating func receiveBytes() throws(Failure) -> FileDescriptor? {
        var buffer = [UInt8](repeating: 0, count: min(reader.room, 64 << 10))
        let received: (bytes: Int, files: [Int32])
        do throws(SystemError) {
            let file = socket.raw
            received = try Self.receive(file, &buffer)
        } catch {
            if error.errno == EAGAIN { return nil }
            throw .noBroker
        }
        let file = received.files.first.map { FileDescriptor(owning: $0) }
        guard received.bytes > 0 else { throw .noBroker }
        do { try reader.append(buffer.prefix(received.bytes)) } catch { throw .broken }
        return file
    }

    private static func receive(
        _ file: Int32, _ buffer: inout [UInt8]
    ) throws(SystemError) -> (bytes: Int, files: [Int32]) {
        let result = buffer.withUnsafeMutableBytes { bytes in
            Result { () throws(SystemError) in
                try receiveWithFiles(file, into: bytes, maximum: 1, peek: false, wait: false)
            }
        }
        return try result.get()
    }

    private static func check(_ reply: Reply) throws(Failure) {
        guard let name = reply.error else { return }
        guard let error = try? InterfaceError(name: name, parameters: reply.parameters, unknown: .ignore) else {
            throw .broken
        }
        throw .refused(error)
    }
}
