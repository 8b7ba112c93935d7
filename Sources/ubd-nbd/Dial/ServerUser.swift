import Dialing
import Glibc
import SystemCalls

/// Whose process serves a connection, where this host can tell. Without TLS it is all by which a server on this host is known: when
/// it has ended, any user can take its port, or its name in a folder that all may write to.
enum ServerUser {
    /// The uid; nil for a server on another host. `isNetwork`: the socket is one by TCP.
    static func of(_ socket: Int32, isNetwork: Bool) -> UInt32? {
        isNetwork ? ofLocalPeer(socket) : (try? PeerCredentials(withoutGroupsOf: socket))?.uid
    }

    /// Why a server is not taken that was found by a name on record: nobody knows whose it was when that was written. nil: it is.
    static func distrust(_ facts: ExportFacts, at place: String, of user: UInt32 = getuid()) -> DialFailure? {
        guard let found = facts.serverUser, found != user, found != 0 else { return nil }
        return DialFailure(
            .unsuitable,
            "the server at \(place) is a process of uid \(found), who may have taken the place of the one before",
            remedy: "if it is the right one, name it with --uri")
    }

    /// By the kernel's table of connections, in which the server's end is on this host, too.
    private static func ofLocalPeer(_ socket: Int32) -> UInt32? {
        guard let ours = ends(socket, getsockname), let theirs = ends(socket, getpeername), isHere(theirs, ours) else {
            return nil
        }
        for table in ["tcp", "tcp6"] {
            guard let bytes = try? readFile("/proc/net/\(table)", limit: 64 << 20) else { continue }
            if let uid = search(bytes, local: theirs, remote: ours) { return uid }
        }
        return nil
    }

    /// Whether the other end's address is this host's own, or one of 127.0.0.0/8. The tables of a busy host are long.
    private static func isHere(_ theirs: [String], _ ours: [String]) -> Bool {
        func address(_ end: String) -> Substring { end.prefix { $0 != ":" } }
        guard address(theirs[0]) != address(ours[0]) else { return true }
        guard address(theirs[0]).utf8.count == 8, let number = UInt32(address(theirs[0]), radix: 16) else {
            return false
        }
        return UInt32(bigEndian: number) >> 24 == 127
    }

    /// In the text of /proc/net/tcp or tcp6 (proc(5)): the uid of the connection with these ends, each written in any of these ways.
    static func search(_ table: [UInt8], local: [String], remote: [String]) -> UInt32? {
        for line in table.split(separator: UInt8(ascii: "\n")) {
            let words = line.split(separator: UInt8(ascii: " "), maxSplits: 8)
            guard words.count > 7, local.contains(where: { words[1].elementsEqual($0.utf8) }),
                remote.contains(where: { words[2].elementsEqual($0.utf8) })
            else { continue }
            return UInt32(String(decoding: words[7], as: UTF8.self))
        }
        return nil
    }

    /// One end as the tables write it: 32-bit words of the address as this machine reads them, and the port. An IPv4 address stands in
    /// the table of IPv6, too, when the other side's socket is one of IPv6.
    private static func ends(
        _ socket: Int32, _ ask: (Int32, __SOCKADDR_ARG, UnsafeMutablePointer<socklen_t>) -> Int32
    ) -> [String]? {
        var address = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                ask(socket, __SOCKADDR_ARG(__sockaddr__: $0), &size)
            }
        }
        guard status == 0 else { return nil }
        return withUnsafeBytes(of: &address) { text($0) }
    }

    /// `bytes`: a struct sockaddr.
    static func text(_ bytes: UnsafeRawBufferPointer) -> [String]? {
        func word(_ at: Int) -> String { hexadecimal(bytes.loadUnaligned(fromByteOffset: at, as: UInt32.self), 8) }
        let port =
            ":" + hexadecimal(UInt32(UInt16(bigEndian: bytes.loadUnaligned(fromByteOffset: 2, as: UInt16.self))), 4)
        let mapped = hexadecimal(0, 8) + hexadecimal(0, 8) + hexadecimal(UInt32(bigEndian: 0xffff), 8)
        switch Int32(bytes.loadUnaligned(as: sa_family_t.self)) {
        case AF_INET: return [word(4) + port, mapped + word(4) + port]
        case AF_INET6:
            let whole = word(8) + word(12) + word(16) + word(20)
            return whole.hasPrefix(mapped) ? [word(20) + port, whole + port] : [whole + port]
        default: return nil
        }
    }

    private static func hexadecimal(_ number: UInt32, _ digits: Int) -> String {
        let text = String(number, radix: 16, uppercase: true)
        return String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
    }
}
