import CShims
import Glibc
import SystemCalls
import WorkerProtocol

/// One of the client's sockets. It must be a connected stream by TCP or AF_UNIX, with its options locked: in a ring a socket that is
/// not connected yet, or one of another kind, could be led somewhere else.
struct ClientSocket {
    let descriptor: Int32

    init(_ descriptor: Int32) { self.descriptor = descriptor }

    /// Refuses all that no device may be served from. `index`: its place in the client's message.
    func check(index: Int, onlyLocal: Bool) throws(WorkerFailure) {
        let detail = UInt64(index)
        let family = try option(SOL_SOCKET, SO_DOMAIN, detail)
        guard [AF_UNIX, AF_INET, AF_INET6].contains(family) else { throw WorkerFailure(.socketFamily, detail: detail) }
        guard try option(SOL_SOCKET, SO_TYPE, detail) == Int32(SOCK_STREAM.rawValue) else {
            throw WorkerFailure(.socketProtocol, detail: detail)
        }
        if family != AF_UNIX {
            guard try option(SOL_SOCKET, SO_PROTOCOL, detail) == Int32(IPPROTO_TCP) else {
                throw WorkerFailure(.socketProtocol, detail: detail)
            }
            guard try isPlainOrTLS(detail) else { throw WorkerFailure(.socketLayer, detail: detail) }
        }
        guard try option(SOL_SOCKET, SO_ACCEPTCONN, detail) == 0 else {
            throw WorkerFailure(.socketNotConnected, detail: detail)
        }
        let isLocal = try peerIsLocal(detail)
        guard try option(SOL_SOCKET, SO_LOCK_FILTER, detail) == 1 else {
            throw WorkerFailure(.socketNotLocked, detail: detail)
        }
        if onlyLocal, !isLocal { throw WorkerFailure(.socketNotLocal, detail: detail) }
    }

    private func option(_ level: Int32, _ name: Int32, _ detail: UInt64) throws(WorkerFailure) -> Int32 {
        var value: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(descriptor, level, name, &value, &size) == 0 else {
            throw WorkerFailure(errno == ENOTSOCK ? .fileIsNoSocket : .fileStatus, errno: errno, detail: detail)
        }
        return value
    }

    /// Nothing lies between the socket and TCP (TCP_ULP, tcp(7)), or the kernel's TLS.
    private func isPlainOrTLS(_ detail: UInt64) throws(WorkerFailure) -> Bool {
        // TCP_ULP_NAME_MAX, net/tcp.h.
        var name = [UInt8](repeating: 0, count: 16)
        var size = socklen_t(name.count)
        guard getsockopt(descriptor, Int32(IPPROTO_TCP), TCP_ULP, &name, &size) == 0 else {
            throw WorkerFailure(.fileStatus, errno: errno, detail: detail)
        }
        let text = name.prefix(Int(size)).prefix { $0 != 0 }
        return text.isEmpty || text.elementsEqual("tls".utf8)
    }

    /// Who the other side is: a process here, or one behind a loopback address. Throws when there is none.
    private func peerIsLocal(_ detail: UInt64) throws(WorkerFailure) -> Bool {
        var address = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                getpeername(descriptor, __SOCKADDR_ARG(__sockaddr__: $0), &size)
            }
        }
        guard status == 0 else { throw WorkerFailure(.socketNotConnected, errno: errno, detail: detail) }
        return withUnsafeBytes(of: &address) { ClientSocket.isLocal($0) }
    }

    /// `bytes`: a struct sockaddr.
    static func isLocal(_ bytes: UnsafeRawBufferPointer) -> Bool {
        switch Int32(bytes.loadUnaligned(as: sa_family_t.self)) {
        case AF_UNIX: return true
        // Port, then the address: 127.0.0.0/8.
        case AF_INET: return bytes[4] == 127
        // Port, flow, then the address: ::1, or 127.0.0.0/8 as IPv6 writes it.
        case AF_INET6:
            let address = bytes[8..<24]
            let mapped = address.prefix(10).allSatisfy { $0 == 0 } && address[18] == 0xff && address[19] == 0xff
            return mapped ? address[20] == 127 : address.prefix(15).allSatisfy { $0 == 0 } && address[23] == 1
        default: return false
        }
    }
}
