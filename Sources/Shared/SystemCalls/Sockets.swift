import CShims
import Glibc

/// What a receive brought.
public enum Received: Equatable {
    /// This many bytes were stored; 0 for an empty message (message sockets only).
    case bytes(Int)
    /// Nothing is there yet.
    case wouldBlock
    /// The other side closed.
    case closed
    /// Files came where none belong. Nothing was taken: the connection must be let go without reading it
    /// (the last close of a stranger's file can block for ever).
    case filesAttached
    /// The message is longer than the buffer (message sockets only). Nothing was taken.
    case tooLong
}

/// Receives bytes and refuses files without ever holding one: it peeks without room for control data, in which case the
/// kernel reports MSG_CTRUNC for files, and only then takes exactly the bytes that it peeked.
public func receiveWithoutFiles(_ fd: Int32, into buffer: UnsafeMutableRawBufferPointer) throws(SystemError) -> Received
{
    while true {
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
        if peeked > buffer.count { return .tooLong }
        if peeked == 0, try !isEmptyMessage(fd) { return .closed }
        return .bytes(try call("recv") { recv(fd, buffer.baseAddress, peeked, Int32(MSG_DONTWAIT)) })
    }
}

/// The other side of a stream socket has closed it, or said that it sends no more, and nothing is left to be read.
public func hasEnded(_ fd: Int32) -> Bool {
    var byte: UInt8 = 0
    return recv(fd, &byte, 1, Int32(MSG_PEEK | MSG_DONTWAIT)) == 0
}

/// A peek found nothing to read and no end of data behind it: on a message socket that is the other side's end, or an
/// empty message, behind which others may wait. Asked for the sender's credentials, the kernel reports with MSG_CTRUNC
/// that there is no room for them, but only if there is a message (unix(7), SO_PASSCRED).
private func isEmptyMessage(_ fd: Int32) throws(SystemError) -> Bool {
    guard try option(fd, SO_TYPE) == Int32(SOCK_SEQPACKET.rawValue) else { return false }
    try setOption(fd, SO_PASSCRED, 1)
    var message = msghdr()
    let result = recvmsg(fd, &message, Int32(MSG_PEEK | MSG_DONTWAIT))
    try setOption(fd, SO_PASSCRED, 0)
    return result == 0 && message.msg_flags & Int32(MSG_CTRUNC) != 0
}

/// An option of a socket that is one number (socket(7)).
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

/// Receives one message and the files with it; at most `maximum` of them, close-on-exec. `peek` leaves the message and
/// its files in the queue and returns duplicates. More files than `maximum` is EMSGSIZE, and those that came are closed.
/// Without `wait` it never waits for a message, whatever the socket's own flags (EAGAIN).
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

/// Sends bytes, with files when there are some; the files stay the caller's. Never raises SIGPIPE.
/// Returns how many bytes went; EAGAIN is thrown like any other error. Without `wait` it never waits for room, whatever
/// the socket's own flags: the other side may have filled it on purpose.
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

/// Fills a Unix socket address; nil when the path does not fit.
public func unixAddress(_ path: String) -> sockaddr_un? {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path), !bytes.contains(0) else { return nil }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    return address
}

/// A listening stream socket at `path`, non-blocking. An old socket file there must have been removed.
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

/// Connects to the stream socket at `path` (blocking).
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

/// Accepts one connection, non-blocking and close-on-exec; nil when none is waiting.
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

/// Who is at the other end, as the kernel recorded it at connect(2).
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

    /// SO_PEERCRED of a connected Unix socket (unix(7)), without any supplementary group: one quick call.
    public init(withoutGroupsOf socket: Int32) throws(SystemError) {
        var credentials = ucred()
        var size = socklen_t(MemoryLayout<ucred>.size)
        try call("SO_PEERCRED") { getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) }
        self.init(pid: credentials.pid, uid: credentials.uid, gid: credentials.gid, groups: [])
    }

    /// How many supplementary groups it has (SO_PEERGROUPS): without room for them the kernel tells no more than that, at once.
    public static func groupCount(of socket: Int32) throws(SystemError) -> Int {
        var size: socklen_t = 0
        if getsockopt(socket, SOL_SOCKET, ubd_SO_PEERGROUPS, nil, &size) != 0, errno != ERANGE {
            throw SystemError("SO_PEERGROUPS", errno)
        }
        return Int(size) / MemoryLayout<UInt32>.size
    }

    /// SO_PEERCRED and SO_PEERGROUPS; of the supplementary groups those that are wanted. A user to whom /etc/subgid gives group
    /// ids can be in 65,536 of them, which the kernel hands over one by one.
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

/// What lies first in a message socket, without taking it and without ever holding a file.
public enum Parked: Equatable {
    case files
    case bytesOnly
    case nothing
}

/// Looks at the first message of a socket that nobody may add to any more.
public func peekParked(_ fd: Int32) throws(SystemError) -> Parked {
    var byte: UInt8 = 0
    // A client that closes with unread data of its own gives the first peek ECONNRESET; the second works.
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
