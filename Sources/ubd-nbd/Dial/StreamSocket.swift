import Dialing
import Glibc
import NBDProtocol
import SystemCalls

/// A connected stream socket to a server. It does not block until it is handed over.
struct StreamSocket: ~Copyable {
    let file: FileDescriptor
    /// TCP; else a Unix socket.
    let isNetwork: Bool
    private let attention: Attention

    /// How long one address may take to answer, in seconds: there may be others.
    private static let secondsPerAddress = 10

    /// Connects to the first address that answers.
    init(_ address: NBDAddress, _ deadline: Deadline, _ attention: Attention) throws(DialFailure) {
        self.attention = attention
        switch address.place {
        case .local(let path):
            isNetwork = false
            file = try Self.connect(path, address, deadline, attention)
        case .network(let host, let port):
            isNetwork = true
            file = try Self.connect(host, port, address, deadline, attention)
        }
    }

    // MARK: Unix

    private static func connect(
        _ path: [UInt8], _ place: NBDAddress, _ deadline: Deadline, _ attention: Attention
    ) throws(DialFailure) -> FileDescriptor {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path) }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        do throws(SystemError) {
            let file = try make(AF_UNIX)
            try forbidFiles(file.raw)
            while true {
                let result = withUnsafePointer(to: &address) {
                    Glibc.connect(file.raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), size)
                }
                if result == 0 { return file }
                // The server's queue is full: others connect, too. poll(2) can't wait for room in it.
                guard errno == EAGAIN || errno == EINTR, !deadline.hasPassed else {
                    throw SystemError("connect", errno)
                }
                try attention.pause(Deadline(milliseconds: 20))
            }
        } catch {
            // Until the deadline there was no room: that is a server that does not answer.
            throw unreachable(place, error.errno == EAGAIN ? ETIMEDOUT : error.errno)
        }
    }

    /// No server can send a file over this socket, where the kernel can forbid it (6.16): whoever reads closes what comes, and closing
    /// a file of a hung file system may never end.
    private static func forbidFiles(_ file: Int32) throws(SystemError) {
        // SO_PASSRIGHTS (asm-generic/socket.h), which Debian 12's headers lack.
        do { try setOption(file, 83, 0) } catch {
            if error.errno != ENOPROTOOPT { throw error }
        }
    }

    private static func make(_ family: Int32) throws(SystemError) -> FileDescriptor {
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        return FileDescriptor(owning: try call("socket") { socket(family, type, 0) })
    }

    // MARK: TCP

    private static func connect(
        _ host: String, _ port: UInt16, _ place: NBDAddress, _ deadline: Deadline, _ attention: Attention
    ) throws(DialFailure) -> FileDescriptor {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        hints.ai_flags = AI_NUMERICSERV
        var list: UnsafeMutablePointer<addrinfo>?
        // Names are resolved with the user's own rights and settings. How long that takes is the resolver's matter
        // (resolv.conf(5), timeout); `ubd` waits no longer than for all else.
        let result = getaddrinfo(host, String(port), &hints, &list)
        guard result == 0 else {
            let why = result == EAI_SYSTEM ? SystemError.message(errno) : String(cString: gai_strerror(result))
            throw DialFailure(
                .unreachable, "the host '\(PercentEncoding.readable(host.utf8))' can not be found: \(why)",
                remedy: "check its name, as with 'getent hosts \(PercentEncoding.readable(host.utf8))'")
        }
        defer { freeaddrinfo(list) }
        var last = ETIMEDOUT
        var next = list
        while let one = next, !deadline.hasPassed {
            do throws(SystemError) { return try connect(one.pointee, deadline, attention) } catch {
                last = error.errno
                if last == ECANCELED { break }
            }
            next = one.pointee.ai_next
        }
        throw unreachable(place, last)
    }

    private static func connect(
        _ address: addrinfo, _ deadline: Deadline, _ attention: Attention
    ) throws(SystemError) -> FileDescriptor {
        let file = try make(address.ai_family)
        let result = Glibc.connect(file.raw, __CONST_SOCKADDR_ARG(__sockaddr__: address.ai_addr), address.ai_addrlen)
        if result == 0 { return file }
        guard errno == EINPROGRESS || errno == EINTR else { throw SystemError("connect", errno) }
        let mine = Deadline(seconds: secondsPerAddress)
        try attention.wait(for: file.raw, POLLOUT, mine.milliseconds() < deadline.milliseconds() ? mine : deadline)
        let error = try option(file.raw, SO_ERROR)
        guard error == 0 else { throw SystemError("connect", error) }
        return file
    }

    private static func unreachable(_ place: NBDAddress, _ errno: Int32) -> DialFailure {
        let remedy: String
        switch (place.place, errno) {
        case (_, EACCES), (_, EPERM): remedy = "let its owner allow you to connect to it"
        case (.local, ENOENT): remedy = "start the server first; the path of its socket stands behind 'socket='"
        case (_, ECONNREFUSED): remedy = "start the server, or check host, port or socket"
        default: remedy = "check that the server runs, and that nothing on the way keeps you from it"
        }
        return DialFailure(
            .unreachable, "no server at \(place.placeText): \(SystemError.message(errno))", remedy: remedy)
    }

    // MARK: Before it is handed over

    /// A connection that gets no answer is noticed after so many seconds: what was sent and is not acknowledged counts
    /// (TCP_USER_TIMEOUT), and when there is nothing to send the kernel asks (keepalive).
    static let lostAfterSeconds: Int32 = 30
    private static let quietSeconds: Int32 = 15
    private static let probeSeconds: Int32 = 5

    /// What a served socket must have. Its filter is locked, so that nobody who gets it can put one on it.
    func prepare() throws(SystemError) {
        if isNetwork {
            try set(IPPROTO_TCP, TCP_NODELAY, 1)
            try setOption(file.raw, SO_KEEPALIVE, 1)
            try set(IPPROTO_TCP, TCP_KEEPIDLE, Self.quietSeconds)
            try set(IPPROTO_TCP, TCP_KEEPINTVL, Self.probeSeconds)
            try set(IPPROTO_TCP, TCP_KEEPCNT, (Self.lostAfterSeconds - Self.quietSeconds) / Self.probeSeconds)
            try set(IPPROTO_TCP, TCP_USER_TIMEOUT, Self.lostAfterSeconds * 1000)
        }
        try setOption(file.raw, SO_LOCK_FILTER, 1)
    }

    /// A ring's read waits by itself only where the file blocks.
    func setBlocking() throws(SystemError) {
        let flags = try call("fcntl") { fcntl(file.raw, F_GETFL) }
        try call("fcntl") { fcntl(file.raw, F_SETFL, flags & ~O_NONBLOCK) }
    }

    private func set(_ level: Int, _ name: Int32, _ value: Int32) throws(SystemError) {
        var value = value
        try call("setsockopt \(name)") {
            setsockopt(file.raw, Int32(level), name, &value, socklen_t(MemoryLayout<Int32>.size))
        }
    }

    // MARK: Bytes

    /// Waits until it can be read or written. Not beyond the deadline, whatever is there: a server may send without end what brings
    /// nobody forward, as tickets of TLS.
    func wait(for events: Int32, _ deadline: Deadline) throws(SystemError) {
        if deadline.hasPassed { throw SystemError("wait", ETIMEDOUT) }
        try attention.wait(for: file.raw, events, deadline)
    }

    /// Receives at most so many bytes; 0: the server has closed.
    func receive(_ count: Int, _ deadline: Deadline) throws(SystemError) -> [UInt8] {
        while true {
            var bytes = [UInt8](repeating: 0, count: count)
            let received = recv(file.raw, &bytes, count, 0)
            if received >= 0 { return Array(bytes.prefix(received)) }
            guard errno == EAGAIN || errno == EINTR else { throw SystemError("receive", errno) }
            try wait(for: POLLIN, deadline)
        }
    }

    func sendAll(_ bytes: [UInt8], _ deadline: Deadline) throws(SystemError) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = rest.withUnsafeBytes { Glibc.send(file.raw, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            if sent >= 0 {
                rest = rest.dropFirst(sent)
            } else {
                guard errno == EAGAIN || errno == EINTR else { throw SystemError("send", errno) }
                try wait(for: POLLOUT, deadline)
            }
        }
    }
}
