import Dialing
import Glibc
import SystemCalls

/// A connection in the transmission phase, ready for a worker: it blocks, and TLS, where there is some, is the kernel's.
struct DialedConnection: ~Copyable {
    let file: FileDescriptor
    let facts: ExportFacts

    /// The number, which the caller closes.
    consuming func takeFile() -> Int32 { file.release() }
}

/// Connects to a server and negotiates with it.
struct Dialer {
    let address: NBDAddress
    var attention = Attention()
    /// How long connecting and negotiating may take together.
    var seconds = 30

    /// Makes one connection.
    func dial() throws(DialFailure) -> DialedConnection {
        let deadline = Deadline(seconds: seconds)
        var wire = Wire(socket: try StreamSocket(address, deadline, attention), deadline: deadline)
        if address.tls != nil { try wire.socket.attachKernelTLS() }
        try wire.prepareTLS(address)
        var facts = try negotiate(&wire)
        facts.cipher = try wire.handOver()
        do throws(SystemError) {
            try wire.socket.prepare()
            try wire.socket.setBlocking()
        } catch {
            throw DialFailure(.host, "the connection can not be set up: \(error)", remedy: "see 'ubd doctor'")
        }
        return DialedConnection(file: wire.file(), facts: facts)
    }

    /// Asks the server what it has, and leaves it.
    func ask() throws(DialFailure) -> ExportFacts {
        let deadline = Deadline(seconds: seconds)
        var wire = Wire(socket: try StreamSocket(address, deadline, attention), deadline: deadline)
        try wire.prepareTLS(address)
        return try negotiate(&wire)
    }

    private func negotiate(_ wire: inout Wire) throws(DialFailure) -> ExportFacts {
        var negotiation = Negotiation(export: address.export, wantsTLS: address.tls != nil)
        do throws(DialFailure) {
            while true {
                try wire.send(negotiation.takeOutput())
                switch negotiation.step {
                case .finished(var facts):
                    // TLS says better who it is.
                    if address.tls?.verifiesPeer != true {
                        facts.serverUser = ServerUser.of(wire.socket.file.raw, isNetwork: wire.socket.isNetwork)
                    }
                    return facts
                case .startTLS:
                    try wire.secure()
                    negotiation.secured()
                case .receive(let count):
                    let bytes = try wire.receive(count)
                    do { try negotiation.receive(bytes) } catch {
                        // A farewell out of politeness: what becomes of it does not matter.
                        try? wire.send(negotiation.takeOutput())
                        throw DialFailure(error)
                    }
                }
            }
        } catch {
            throw DialFailure(error.kind, "the server at \(address.placeText) \(error.message)", remedy: error.remedy)
        }
    }
}

extension DialFailure {
    fileprivate init(_ error: NegotiationError) {
        let kind: Kind =
            switch error.kind {
            case .unknownExport: .usage
            case .refused: .refused
            case .violation, .unsupported: .unsuitable
            }
        self.init(kind, error.message, remedy: error.remedy)
    }
}

/// A connection while it is negotiated: plain at first, then perhaps through TLS. Its errors, but those of `prepareTLS`, have no
/// subject: it is the server.
private struct Wire: ~Copyable {
    let socket: StreamSocket
    let deadline: Deadline
    private var tls: TLSSession?
    /// The same before the handshake.
    private var prepared: TLSSession?

    init(socket: consuming StreamSocket, deadline: Deadline) {
        self.socket = socket
        self.deadline = deadline
        tls = nil
        prepared = nil
    }

    /// Reads what TLS needs of this host's files, before the server is spoken with: what is wrong with those is not its doing.
    mutating func prepareTLS(_ address: NBDAddress) throws(DialFailure) {
        guard let wish = address.tls, case .network(let host, _) = address.place else { return }
        prepared = try TLSSession(socket, wish, host: host)
    }

    /// At most so many bytes, and at least one.
    func receive(_ count: Int) throws(DialFailure) -> [UInt8] {
        let bytes: [UInt8]
        switch tls {
        case .some(let tls): bytes = try tls.receive(count, socket, deadline)
        case .none:
            do { bytes = try socket.receive(count, deadline) } catch { throw Self.broken(error) }
        }
        guard !bytes.isEmpty else {
            throw DialFailure(
                .unreachable, "closes the connection during the negotiation",
                remedy: "see its log; it may serve others only, or so many clients and no more")
        }
        return bytes
    }

    func send(_ bytes: [UInt8]) throws(DialFailure) {
        if bytes.isEmpty { return }
        switch tls {
        case .some(let tls): try tls.sendAll(bytes, socket, deadline)
        case .none:
            do { try socket.sendAll(bytes, deadline) } catch { throw Self.broken(error) }
        }
    }

    private static func broken(_ error: SystemError) -> DialFailure {
        guard error.errno == ETIMEDOUT else {
            return DialFailure(
                .unreachable, "breaks the connection off: \(SystemError.message(error.errno))",
                remedy: "see the server's log")
        }
        return DialFailure(
            .unreachable, "does not answer in time",
            remedy: "check that it is an NBD server, and that it does not wait for the end of another client")
    }

    /// From here on through TLS.
    mutating func secure() throws(DialFailure) {
        guard let session = prepared.take() else {
            throw DialFailure(
                .unsuitable, "is at a Unix socket, for which there is no TLS", remedy: "use nbd+unix, or nbds over TCP")
        }
        try session.handshake(socket, deadline)
        tls = consume session
    }

    /// Gives TLS to the kernel.
    func handOver() throws(DialFailure) -> String {
        switch tls {
        case .some(let tls): return try tls.handOver(socket)
        case .none: return ""
        }
    }

    consuming func file() -> FileDescriptor { socket.file }
}
