import CShims
import Glibc

/// The result of a receive.
public enum Received: Equatable {
    /// The number of bytes stored; 0 for an empty message (message sockets only).
    case bytes(Int)
    /// No data has arrived yet.
    case wouldBlock
    /// The other side closed.
    case closed
    /// Files arrived where none are allowed, or the other side tampered with the check for them. Nothing was taken. The
    /// connection must be given up without reading it: the last close of a stranger's file can block forever.
    case filesAttached
    /// The message is longer than the buffer (message sockets only). It was not taken.
    case tooLong
}

/// Receives bytes and refuses files without ever holding one. It first peeks without room for control data: for files
/// the kernel then sets MSG_CTRUNC. Then it takes exactly the bytes that it peeked.
///
/// `isShared`: the other side also has this socket, as a worker has the broker's end. It can move the offset of peeks
/// (SO_PEEK_OFF), so that the peek sees another message than the receive. So the offset is checked before and after. To
/// deceive the check, the other side must move it and move it back within a few instructions; a failed attempt ends the
/// worker.
public func receiveWithoutFiles(
    _ fd: Int32, into buffer: UnsafeMutableRawBufferPointer, isShared: Bool = false
) throws(SystemError) -> Received {
    while true {
        if isShared, try option(fd, SO_PEEK_OFF) >= 0 { return .filesAttached }
        var part = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
        var message = msghdr()
        let peeked = withUnsafeMutablePointer(to: &part) { part in
            message.msg_iov = part
            message.msg_iovlen = 1
            return recvmsg(fd, &message, Int32(MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC))
        }
        if peeked < 0 {
            if errno == EINTR { continue }
            if errno == EAGAIN { return .wouldBlock }
            if errno == ECONNRESET { return .closed }
            throw SystemError("recvmsg", errno)
        }
        if message.msg_flags & Int32(MSG_CTRUNC) != 0 { return .filesAttached }
        if isShared, try option(fd, SO_PEEK_OFF) >= 0 { return .filesAttached }
        if peeked > buffer.count { return .tooLong }
        if peeked == 0, try !isEmptyMessage(fd) { return .closed }
        return .bytes(try call("recv") { recv(fd, buffer.baseAddress, peeked, Int32(MSG_DONTWAIT)) })
    }
}

/// Whether the other side of a stream socket closed it or shut down sending, and all data has been read.
public func hasEnded(_ fd: Int32) -> Bool {
    var byte: UInt8 = 0
    return recv(fd, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) == 0
}

/// Tells an empty message from the other side's close; a peek returns 0 for both, and more messages may follow an empty
/// one. With SO_PASSCRED set the kernel reports missing room for the credentials (MSG_CTRUNC), but only when there is a
/// message (unix(7)).
private func isEmptyMessage(_ fd: Int32) throws(SystemError) -> Bool {
    guard try option(fd, SO_TYPE) == Int32(SOCK_SEQPACKET.rawValue) else { return false }
    try setOption(fd, SO_PASSCRED, 1)
    var message = msghdr()
    let result = recvmsg(fd, &message, Int32(MSG_PEEK | MSG_DONTWAIT))
    try setOption(fd, SO_PASSCRED, 0)
    return result == 0 && message.msg_flags & Int32(MSG_CTRUNC) != 0
}

/// A socket option with an integer value (socket(7)).
public func option(_ fd: Int32, _ name: Int32) throws(SystemError) -> Int32 {
    var value: Int32 = 0
    var size = socklen_t(MemoryLayout<Int32>.size)
    try call("getsockopt") { getsockopt(fd, SOL_SOCKET, name, &value, &size) }
    return value
}

public func setOption(_ fd: Int32, _ name: Int32, _ value: Int32) throws(SystemError) {
    var value = value
    try call("setsockopt") { setsockopt(fd, SOL_SOCKET, name, &value, socklen_t(MemoryLayout<Int32>.size)) }
}

/// Receives one message with at most `maximum` files, close-on-exec. `peek` leaves the message and its files in the
/// queue and returns duplicates. More files than `maximum` throw EMSGSIZE, and those that arrived are closed. Without
/// `wait` it never blocks (EAGAIN), even if the socket does.
public func receiveWithFiles(
    _ fd: Int32, into buffer: UnsafeMutableRawBufferPointer, maximum: Int, peek: Bool, wait: Bool = true
) throws(SystemError) -> (bytes: Int, files: [Int32]) {
    var control = [UInt8](repeating: 0, count: ubd_rights_space(maximum))
    var files = [Int32](repeating: -1, count: maximum)
    var part = iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
    var message = msghdr()
    let flags = Int32(MSG_CMSG_CLOEXEC) | (peek ? Int32(MSG_PEEK) : 0) | (wait ? 0 : Int32(MSG_DONTWAIT))
    let (count, found): (Int, Int) = try call2("recvmsg") {
        control.withUnsafeMutableBytes { control in
            withUnsafeMutablePointer(to: &part) { part in
                message.msg_iov = part
                message.msg_iovlen = 1
                message.msg_control = control.baseAddress
                message.msg_controllen = control.count
                let count = recvmsg(fd, &message, flags)
                return (count, count < 0 ? 0 : ubd_rights_read(&message, &files, files.count))
            }
        }
    }
    files.removeLast(files.count - min(found, files.count))
    if message.msg_flags & Int32(MSG_CTRUNC | MSG_TRUNC) != 0 {
        for file in files { close(file) }
        throw SystemError("recvmsg", EMSGSIZE)
    }
    return (count, files)
}

private func call2(_ operation: String, _ body: () -> (Int, Int)) throws(SystemError) -> (Int, Int) {
    while true {
        let result = body()
        if result.0 >= 0 { return result }
        if errno != EINTR { throw SystemError(operation, errno) }
    }
}

/// Sends bytes and files; the caller still owns the files. Never raises SIGPIPE. Returns the number of bytes sent;
/// EAGAIN is thrown like any other error. Without `wait` it never blocks, even if the socket does: the other side may
/// have filled it on purpose.
@discardableResult
public func send(
    _ fd: Int32, _ bytes: [UInt8], files: [Int32] = [], wait: Bool = true
) throws(SystemError) -> Int {
    var control = [UInt8](repeating: 0, count: files.isEmpty ? 0 : ubd_rights_space(files.count))
    return try call("sendmsg") {
        bytes.withUnsafeBytes { bytes in
            control.withUnsafeMutableBytes { control in
                var part = iovec(iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                return withUnsafeMutablePointer(to: &part) { part in
                    var message = msghdr()
                    message.msg_iov = part
                    message.msg_iovlen = 1
                    if !files.isEmpty {
                        ubd_rights_write(control.baseAddress, files, files.count)
                        message.msg_control = control.baseAddress
                        message.msg_controllen = control.count
                    }
                    return sendmsg(fd, &message, Int32(MSG_NOSIGNAL) | (wait ? 0 : Int32(MSG_DONTWAIT)))
                }
            }
        }
    }
}

/// A connected pair of message sockets (SOCK_SEQPACKET), close-on-exec.
public func makeMessagePair() throws(SystemError) -> DescriptorPair {
    var ends: [Int32] = [0, 0]
    let type = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
    try call("socketpair") { socketpair(AF_UNIX, type, 0, &ends) }
    return DescriptorPair(first: FileDescriptor(owning: ends[0]), second: FileDescriptor(owning: ends[1]))
}

/// A Unix socket address; nil when the path is too long.
public func unixAddress(_ path: String) -> sockaddr_un? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path), !bytes.contains(0) else { return nil }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    return address
}

/// A non-blocking, listening stream socket at `path`. The caller must have removed an old socket file there.
public func listen(at path: String, backlog: Int32) throws(SystemError) -> FileDescriptor {
    guard var address = unixAddress(path) else { throw SystemError("listen at \(path)", ENAMETOOLONG) }
    let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let socket = FileDescriptor(owning: try call("socket") { Glibc.socket(AF_UNIX, type, 0) })
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    try call("bind \(path)") {
        withUnsafePointer(to: &address) {
            Glibc.bind(socket.raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), size)
        }
    }
    try call("listen at \(path)") { Glibc.listen(socket.raw, backlog) }
    return socket
}

/// Connects a blocking stream socket to `path`.
public func connect(to path: String) throws(SystemError) -> FileDescriptor {
    guard var address = unixAddress(path) else { throw SystemError("connect to \(path)", ENAMETOOLONG) }
    let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
    let socket = FileDescriptor(owning: try call("socket") { Glibc.socket(AF_UNIX, type, 0) })
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    try call("connect to \(path)") {
        withUnsafePointer(to: &address) {
            Glibc.connect(socket.raw, __CONST_SOCKADDR_ARG(__sockaddr_un__: $0), size)
        }
    }
    return socket
}

/// Accepts one connection, non-blocking and close-on-exec; nil when none waits.
public func accept(_ listener: Int32) throws(SystemError) -> FileDescriptor? {
    while true {
        let flags = Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let fd = accept4(listener, __SOCKADDR_ARG(), nil, flags)
        if fd >= 0 { return FileDescriptor(owning: fd) }
        switch errno {
        case EINTR, ECONNABORTED: continue
        case EAGAIN: return nil
        default: throw SystemError("accept", errno)
        }
    }
}

/// The peer of a connected socket, as the kernel recorded it at connect(2).
public struct PeerCredentials: Equatable, Sendable {
    public var pid: Int32
    public var uid: UInt32
    public var gid: UInt32
    /// Supplementary groups.
    public var groups: [UInt32]

    public init(pid: Int32, uid: UInt32, gid: UInt32, groups: [UInt32]) {
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.groups = groups
    }

    /// SO_PEERCRED of a connected Unix socket (unix(7)) without supplementary groups: one fast call.
    public init(withoutGroupsOf socket: Int32) throws(SystemError) {
        var credentials = ucred()
        var size = socklen_t(MemoryLayout<ucred>.size)
        try call("SO_PEERCRED") { getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) }
        self.init(pid: credentials.pid, uid: credentials.uid, gid: credentials.gid, groups: [])
    }

    /// The number of supplementary groups (SO_PEERGROUPS). Given no room for the groups, the kernel returns at once
    /// with their number.
    public static func groupCount(of socket: Int32) throws(SystemError) -> Int {
        var size: socklen_t = 0
        if getsockopt(socket, SOL_SOCKET, ubd_SO_PEERGROUPS, nil, &size) != 0, errno != ERANGE {
            throw SystemError("SO_PEERGROUPS", errno)
        }
        return Int(size) / MemoryLayout<UInt32>.size
    }

    /// SO_PEERCRED and SO_PEERGROUPS, with only the supplementary groups that are wanted. A user with group ids from
    /// /etc/subgid can be in 65,536 groups, and the kernel copies them one by one.
    public init(of socket: Int32, groups isWanted: (UInt32) -> Bool = { _ in true }) throws(SystemError) {
        try self.init(withoutGroupsOf: socket)
        let count = try PeerCredentials.groupCount(of: socket)
        if count == 0 { return }
        var groups = [UInt32](repeating: 0, count: count)
        var size = socklen_t(count * MemoryLayout<UInt32>.size)
        try call("SO_PEERGROUPS") { getsockopt(socket, SOL_SOCKET, ubd_SO_PEERGROUPS, &groups, &size) }
        self.groups = groups.filter(isWanted)
    }
}

/// The kind of the first message in a socket, found without taking it and without holding its files.
public enum Parked: Equatable {
    case files
    case bytesOnly
    case nothing
}

/// Peeks at the first message of a socket to which nobody can add.
public func peekParked(_ fd: Int32) throws(SystemError) -> Parked {
    var byte: UInt8 = 0
    // When the client closed with unread data the first peek returns ECONNRESET; the second one works.
    for attempt in 0..<2 {
        var message = msghdr()
        var part = iovec()
        let count = withUnsafeMutableBytes(of: &byte) { raw in
            part = iovec(iov_base: raw.baseAddress, iov_len: 1)
            return withUnsafeMutablePointer(to: &part) { part in
                message.msg_iov = part
                message.msg_iovlen = 1
                return recvmsg(fd, &message, Int32(MSG_PEEK | MSG_DONTWAIT))
            }
        }
        if count < 0 {
            if errno == ECONNRESET, attempt == 0 { continue }
            if errno == EAGAIN { return .nothing }
            throw SystemError("recvmsg", errno)
        }
        if message.msg_flags & Int32(MSG_CTRUNC) != 0 { return .files }
        return count == 0 ? .nothing : .bytesOnly
    }
    return .nothing
}
