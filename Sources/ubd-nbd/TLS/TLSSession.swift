import CGnuTLS
import Dialing
import Glibc
import SystemCalls

/// TLS 1.3 with a server, by GnuTLS until the kernel takes it over.
struct TLSSession: ~Copyable {
    private let session: gnutls_session_t
    /// The session points into them.
    private let credentials: TLSCredentials
    /// What the server's certificate must be for, to which the session points, too.
    private let demands: CertificateDemands

    /// TLS 1.3 and what the kernels have for it. CHACHA20-POLY1305 first: a server may change the key of AES-GCM after 2^24
    /// records, which a kernel does not follow, and that of CHACHA20-POLY1305 never (RFC 8446, 5.5).
    private static let ciphers =
        "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305:+AES-256-GCM:+AES-128-GCM"
    private static let withSharedKey = ":-KX-ALL:+ECDHE-PSK:+DHE-PSK:+PSK"

    init(_ socket: borrowing StreamSocket, _ wish: NBDAddress.TLSWish, host: String) throws(DialFailure) {
        let credentials = try TLSCredentials(wish)
        var made: gnutls_session_t?
        // Without tickets: nothing of the handshake may arrive later, when the kernel reads.
        var flags = UInt32(GNUTLS_CLIENT.rawValue) | UInt32(GNUTLS_NONBLOCK.rawValue)
        if wish.keyFile == nil { flags |= UInt32(GNUTLS_NO_TICKETS.rawValue) }
        let result = gnutls_init(&made, flags)
        guard result == 0, let session = made else {
            throw DialFailure(.host, "TLS can not begin: \(Self.words(result))", remedy: "see 'ubd doctor'")
        }
        let name = wish.hostname ?? host
        let demands = CertificateDemands(host: name)
        do throws(DialFailure) { try Self.setUp(session, credentials, wish, name, demands) } catch {
            gnutls_deinit(session)
            throw error
        }
        gnutls_transport_set_int2(session, socket.file.raw, socket.file.raw)
        self.session = session
        self.credentials = credentials
        self.demands = demands
    }

    deinit {
        // Says nothing to the server: the connection may go on without GnuTLS.
        gnutls_deinit(session)
    }

    private static func setUp(
        _ session: gnutls_session_t, _ credentials: borrowing TLSCredentials, _ wish: NBDAddress.TLSWish,
        _ name: String, _ demands: borrowing CertificateDemands
    ) throws(DialFailure) {
        let results: [Int32]
        switch credentials.kind {
        case .sharedKey(let key):
            results = [
                gnutls_priority_set_direct(session, ciphers + withSharedKey, nil),
                gnutls_credentials_set(session, GNUTLS_CRD_PSK, UnsafeMutableRawPointer(key)),
            ]
        case .certificates(let certificates):
            results = [
                gnutls_priority_set_direct(session, ciphers, nil),
                gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, UnsafeMutableRawPointer(certificates)),
                // No name of a server is an address (RFC 6066, 3).
                isAddress(name)
                    ? 0 : gnutls_server_name_set(session, GNUTLS_NAME_DNS, name, name.utf8.count),
            ]
            if wish.verifiesPeer {
                gnutls_session_set_verify_cert2(session, demands.list, CertificateDemands.count, 0)
            }
        }
        if let failed = results.first(where: { $0 < 0 }) {
            throw DialFailure(.host, "TLS can not be set up: \(words(failed))", remedy: "use a newer GnuTLS")
        }
    }

    private static func isAddress(_ host: String) -> Bool {
        var (four, six) = (in_addr(), in6_addr())
        return inet_pton(AF_INET, host, &four) == 1 || inet_pton(AF_INET6, host, &six) == 1
    }

    /// The library's words for an error.
    static func words(_ result: Int32) -> String { String(cString: gnutls_strerror(result)) }

    // MARK: Talking

    // The errors of these have no subject: it is the server.

    /// The handshake. The certificate of the server is looked at before anything of ours is sent.
    func handshake(_ socket: borrowing StreamSocket, _ deadline: Deadline) throws(DialFailure) {
        while true {
            let result = gnutls_handshake(session)
            if result == 0 { return }
            try again(result, socket, deadline)
        }
    }

    /// At most so many bytes; none: the server has closed.
    func receive(_ count: Int, _ socket: borrowing StreamSocket, _ deadline: Deadline) throws(DialFailure) -> [UInt8] {
        while true {
            var bytes = [UInt8](repeating: 0, count: count)
            let received = gnutls_record_recv(session, &bytes, count)
            if received >= 0 { return Array(bytes.prefix(received)) }
            try again(Int32(received), socket, deadline)
        }
    }

    func sendAll(_ bytes: [UInt8], _ socket: borrowing StreamSocket, _ deadline: Deadline) throws(DialFailure) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = rest.withUnsafeBytes { gnutls_record_send(session, $0.baseAddress, $0.count) }
            if sent >= 0 { rest = rest.dropFirst(sent) } else { try again(Int32(sent), socket, deadline) }
        }
    }

    private func again(
        _ result: Int32, _ socket: borrowing StreamSocket, _ deadline: Deadline
    ) throws(DialFailure) {
        guard gnutls_error_is_fatal(result) == 0 else { throw failure(result) }
        // A warning comes without anything to wait for, and as many as the server likes.
        guard result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED || deadline.hasPassed else { return }
        try wait(socket, deadline)
    }

    private func wait(_ socket: borrowing StreamSocket, _ deadline: Deadline) throws(DialFailure) {
        let events = gnutls_record_get_direction(session) == 0 ? POLLIN : POLLOUT
        do { try socket.wait(for: events, deadline) } catch {
            throw DialFailure(
                .unreachable, "does not go on with TLS: \(SystemError.message(error.errno))",
                remedy: "see the server's log")
        }
    }

    private func failure(_ result: Int32) -> DialFailure {
        switch result {
        case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR, GNUTLS_E_CERTIFICATE_ERROR:
            return DialFailure(
                .refused, "has a certificate that is not accepted: \(verdict)",
                remedy:
                    "name the authority's folder with --tls-certificates, and the name that the certificate has with "
                    + "--tls-hostname; it must be a server's certificate")
        case GNUTLS_E_FATAL_ALERT_RECEIVED, GNUTLS_E_WARNING_ALERT_RECEIVED:
            let alert = gnutls_alert_get_name(gnutls_alert_get(session)).map { String(cString: $0) } ?? "an alert"
            return DialFailure(
                .refused, "ends TLS with the alert '\(alert)'",
                remedy: "see the server's log: it may not know your certificate or key")
        default:
            return DialFailure(.refused, "does not agree on TLS: \(Self.words(result))", remedy: "see the server's log")
        }
    }

    /// What GnuTLS found of the certificate.
    private var verdict: String {
        var text = gnutls_datum_t()
        let status = gnutls_session_get_verify_cert_status(session)
        guard gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) == 0, let data = text.data
        else { return "status \(status)" }
        defer { gnutls_ubd_free(text.data) }
        let bytes = UnsafeBufferPointer(start: data, count: Int(text.size))
        var words = PercentEncoding.readable(bytes)
        while words.hasSuffix(" ") || words.hasSuffix(".") { words.removeLast() }
        return words
    }

    // MARK: To the kernel

    /// Lets the kernel go on with the session. Nothing of it may be left in GnuTLS.
    ///
    /// - Returns: version and cipher, as in "TLS1.3 CHACHA20-POLY1305".
    func handOver(_ socket: borrowing StreamSocket) throws(DialFailure) -> String {
        guard gnutls_record_check_pending(session) == 0 else {
            throw DialFailure(
                .unsuitable, "the server sent data before it was asked for any",
                remedy: "report it to those who made it")
        }
        let cipher = gnutls_cipher_get(session)
        for receives in [false, true] {
            let direction = try direction(cipher, receives: receives)
            do { try direction.give(socket.file.raw, receives: receives) } catch {
                throw DialFailure(
                    .host, "the kernel can not go on with \(name(of: cipher)): \(SystemError.message(error.errno))",
                    remedy: "let the server offer CHACHA20-POLY1305 or AES-256-GCM with TLS 1.3, or use a newer kernel")
            }
        }
        return name(of: cipher)
    }

    private func direction(
        _ cipher: gnutls_cipher_algorithm_t, receives: Bool
    ) throws(DialFailure) -> KernelTLS.Direction {
        var (mac, nonce, key) = (gnutls_datum_t(), gnutls_datum_t(), gnutls_datum_t())
        var sequence = [UInt8](repeating: 0, count: 8)
        let result = gnutls_record_get_state(session, receives ? 1 : 0, &mac, &nonce, &key, &sequence)
        guard result == 0 else {
            throw DialFailure(
                .host, "GnuTLS does not give its session away: \(Self.words(result))", remedy: "use a newer GnuTLS")
        }
        func bytes(_ datum: gnutls_datum_t) -> [UInt8] {
            Array(UnsafeBufferPointer(start: datum.data, count: Int(datum.size)))
        }
        return KernelTLS.Direction(cipher: cipher, key: bytes(key), nonce: bytes(nonce), sequence: sequence)
    }

    private func name(of cipher: gnutls_cipher_algorithm_t) -> String {
        let version =
            gnutls_protocol_get_name(gnutls_protocol_get_version(session)).map { String(cString: $0) } ?? "TLS"
        let name = gnutls_cipher_get_name(cipher).map { String(cString: $0) } ?? "an unknown cipher"
        return "\(version) \(name)"
    }
}
