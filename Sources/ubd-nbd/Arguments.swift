import Dialing
import Glibc
import NBDProtocol

/// The arguments of `ubd-nbd`, as `ubd` gives them.
struct Arguments {
    /// Exactly one of both is there.
    var uri: String?
    /// As bytes, without a NUL.
    var command: [[UInt8]] = []
    var connections = 1
    var restartsCommand = false
    /// The URI is the one on record, and not one that the user has just named.
    var isRecorded = false
    /// Where the broker listens.
    var broker: String?
    private var certificates: [UInt8]?
    private var keyFile: [UInt8]?
    private var username: String?
    private var hostname: String?
    private var trustsAnybody = false

    /// What the sockets of one device may be.
    static let connectionCounts = 1...16

    init(_ words: [[UInt8]]) throws(DialFailure) {
        var rest = words[...]
        while let word = rest.popFirst() {
            let name = String(decoding: word, as: UTF8.self)
            switch name {
            case "--":
                command = Array(rest)
                rest = []
                guard !command.isEmpty else {
                    throw Self.wrong("behind '--' no command is named", "give one, as in '-- nbdkit memory 1G'")
                }
            case "--restart-command": restartsCommand = true
            case "--recorded": isRecorded = true
            case "--tls-trust-anybody": trustsAnybody = true
            default:
                guard let value = rest.popFirst() else {
                    throw Self.wrong(
                        "the argument '\(PercentEncoding.readable(word))' is unknown, or lacks a value",
                        "let ubd start this program")
                }
                try take(name, value)
            }
        }
        try check()
    }

    private mutating func take(_ name: String, _ bytes: [UInt8]) throws(DialFailure) {
        let text = String(decoding: bytes, as: UTF8.self)
        switch name {
        case "--uri": uri = text
        case "--broker": broker = try Self.brokersSocket(bytes)
        case "--tls-certificates": certificates = bytes
        case "--tls-psk-file": keyFile = bytes
        case "--tls-username": username = text
        case "--tls-hostname": hostname = text
        case "--connections":
            guard let count = Int(text), Self.connectionCounts.contains(count) else {
                throw Self.wrong("--connections can not be '\(text)'", "give a number from 1 to 16")
            }
            connections = count
        default:
            throw Self.wrong(
                "the argument '\(PercentEncoding.readable(name.utf8))' is unknown", "let ubd start this program")
        }
    }

    /// Absolute, since who keeps the device leaves this folder.
    private static func brokersSocket(_ path: [UInt8]) throws(DialFailure) -> String {
        let whole = absolute(path)
        guard whole.count < 108 else {
            throw wrong(
                "the whole path of the broker's socket has more than 107 bytes", "set UBD_SOCKET to a shorter one")
        }
        return String(decoding: whole, as: UTF8.self)
    }

    private func check() throws(DialFailure) {
        guard (uri == nil) != command.isEmpty else {
            throw uri == nil
                ? Self.wrong("neither --uri nor a command says where the server is", "give one of them")
                : Self.wrong("both --uri and a command say where the server is", "give one of them")
        }
        guard command.isEmpty || !hasTLS else {
            throw Self.wrong(
                "a server that ubd starts is reached by a Unix socket, where there is no TLS", "leave --tls-… out")
        }
        guard !restartsCommand || !command.isEmpty else {
            throw Self.wrong("--restart-command is for a server that ubd starts", "leave it out")
        }
        guard certificates == nil || keyFile == nil else {
            throw Self.wrong("both certificates and a file of keys are named", "give the one that the server wants")
        }
    }

    private static func wrong(_ message: String, _ remedy: String) -> DialFailure {
        DialFailure(.usage, message, remedy: remedy)
    }

    private var hasTLS: Bool {
        certificates != nil || keyFile != nil || username != nil || hostname != nil || trustsAnybody
    }

    /// Where the URI leads, with what the options add to it. Names of files become absolute: who keeps the device leaves this
    /// folder.
    func address(_ uri: String) throws(DialFailure) -> NBDAddress {
        var address: NBDAddress
        do { address = try NBDAddress(uri) } catch { throw DialFailure(.usage, error.message, remedy: error.remedy) }
        if case .local(let path) = address.place {
            let whole = Self.absolute(path)
            guard whole.count < 108 else {
                throw Self.wrong("the socket's whole path has more than 107 bytes", "use a shorter one")
            }
            address.place = .local(path: whole)
        }
        guard hasTLS || address.tls != nil else { return address }
        guard var tls = address.tls else {
            throw Self.wrong("--tls-… means nothing without TLS", "use nbds:// in the URI, or leave it out")
        }
        if certificates != nil || keyFile != nil { (tls.certificates, tls.keyFile) = (certificates, keyFile) }
        tls.certificates = tls.certificates.map(Self.absolute)
        tls.keyFile = tls.keyFile.map(Self.absolute)
        tls.username = username ?? tls.username
        tls.hostname = hostname ?? tls.hostname
        if trustsAnybody { tls.verifiesPeer = false }
        address.tls = tls
        return address
    }

    private static func absolute(_ path: [UInt8]) -> [UInt8] {
        guard path.first != UInt8(ascii: "/"), let here = getcwd(nil, 0) else { return path }
        defer { free(here) }
        return UnsafeRawBufferPointer(start: here, count: strlen(here)) + [UInt8(ascii: "/")] + path
    }
}
