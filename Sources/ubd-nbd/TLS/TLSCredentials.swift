import CGnuTLS
import Dialing
import Glibc
import SystemCalls

/// What a client shows and trusts: certificates, or a key that it shares with the server.
struct TLSCredentials: ~Copyable {
    enum Kind {
        case certificates(gnutls_certificate_credentials_t)
        case sharedKey(gnutls_psk_client_credentials_t)
    }

    let kind: Kind

    deinit {
        switch kind {
        case .certificates(let credentials): gnutls_certificate_free_credentials(credentials)
        case .sharedKey(let credentials): gnutls_psk_free_client_credentials(credentials)
        }
    }

    init(_ wish: NBDAddress.TLSWish) throws(DialFailure) {
        if let file = wish.keyFile {
            kind = .sharedKey(try Self.sharedKey(file, wish.username))
        } else {
            kind = .certificates(try Self.certificates(wish))
        }
    }

    // MARK: Certificates

    /// Names of files in the folder, as libnbd, nbdkit and QEMU have them.
    private static let trusted = "ca-cert.pem"
    private static let revoked = "ca-crl.pem"
    private static let certificate = "client-cert.pem"
    private static let key = "client-key.pem"

    private static func certificates(
        _ wish: NBDAddress.TLSWish
    ) throws(DialFailure) -> gnutls_certificate_credentials_t {
        var made: gnutls_certificate_credentials_t?
        try check(gnutls_certificate_allocate_credentials(&made), "no certificates can be used")
        let credentials = made!
        do throws(DialFailure) {
            if let folder = wish.certificates {
                try load(folder, credentials)
            } else {
                // What the host trusts.
                let count = gnutls_certificate_set_x509_system_trust(credentials)
                if count < 0 { try check(count, "the certificates that this host trusts can not be read") }
            }
            return credentials
        } catch {
            gnutls_certificate_free_credentials(credentials)
            throw error
        }
    }

    private static func load(_ folder: [UInt8], _ credentials: gnutls_certificate_credentials_t) throws(DialFailure) {
        func path(_ name: String) -> [CChar] { (folder + Array("/\(name)".utf8) + [0]).map(CChar.init(bitPattern:)) }
        func shown(_ name: String) -> String { PercentEncoding.readable(folder) + "/" + name }
        let count = gnutls_certificate_set_x509_trust_file(credentials, path(trusted), GNUTLS_X509_FMT_PEM)
        if count < 0 { try check(count, "\(shown(trusted)) can not be read") }
        guard count > 0 else {
            throw DialFailure(.usage, "\(shown(trusted)) has no certificate", remedy: "put the authority's there")
        }
        // Whoever put a list there relies on it: one that can not be read is no reason to trust all certificates.
        var found = stat()
        if lstat(path(revoked), &found) == 0 || errno != ENOENT {
            let count = gnutls_certificate_set_x509_crl_file(credentials, path(revoked), GNUTLS_X509_FMT_PEM)
            if count < 0 { try check(count, "\(shown(revoked)) can not be read") }
            guard count > 0 else {
                throw DialFailure(
                    .usage, "\(shown(revoked)) has no list of revoked certificates",
                    remedy: "put the authority's there, or remove the file")
            }
        }
        guard access(path(certificate), F_OK) == 0 || access(path(key), F_OK) == 0 else { return }
        try check(
            gnutls_certificate_set_x509_key_file(credentials, path(certificate), path(key), GNUTLS_X509_FMT_PEM),
            "\(shown(certificate)) and \(key) can not be used")
    }

    // MARK: A shared key

    private static func sharedKey(
        _ file: [UInt8], _ username: String?
    ) throws(DialFailure) -> gnutls_psk_client_credentials_t {
        let name: String
        if let username { name = username } else { name = try ownName() }
        let key = try KeyFile.key(of: name, in: file)
        var made: gnutls_psk_client_credentials_t?
        try check(gnutls_psk_allocate_client_credentials(&made), "no shared key can be used")
        let credentials = made!
        var hexadecimal = key
        let result = hexadecimal.withUnsafeMutableBufferPointer { buffer in
            var datum = gnutls_datum_t(data: buffer.baseAddress, size: UInt32(buffer.count))
            return gnutls_psk_set_client_credentials(credentials, name, &datum, GNUTLS_PSK_KEY_HEX)
        }
        guard result == 0 else {
            gnutls_psk_free_client_credentials(credentials)
            throw failure(result, "the key of '\(name)' can not be used")
        }
        return credentials
    }

    private static func ownName() throws(DialFailure) -> String {
        if let entry = getpwuid(getuid()), let name = String(validatingCString: entry.pointee.pw_name) { return name }
        throw DialFailure(
            .usage, "user \(getuid()) has no name, so it can not be looked for in the file of keys",
            remedy: "name one with --tls-username")
    }

    // MARK: Errors

    private static func check(_ result: Int32, _ what: String) throws(DialFailure) {
        if result < 0 { throw failure(result, what) }
    }

    private static func failure(_ result: Int32, _ what: String) -> DialFailure {
        DialFailure(
            .usage, "\(what): \(TLSSession.words(result))",
            remedy: "see the files that --tls-certificates or --tls-psk-file names")
    }
}

/// A file of shared keys: lines USERNAME:HEXADECIMAL, as psktool(1) writes them and GnuTLS servers read them.
enum KeyFile {
    private static let longest = 64 << 10

    static func key(of name: String, in path: [UInt8]) throws(DialFailure) -> [UInt8] {
        let shown = PercentEncoding.readable(path)
        let bytes: [UInt8]
        do throws(SystemError) {
            let file = try FileDescriptor.open(
                bytes: path.map(CChar.init(bitPattern:)) + [0], name: shown, O_RDONLY | O_NOCTTY)
            bytes = try file.readAll(limit: longest)
        } catch {
            throw DialFailure(
                .usage, "the file of keys can not be read (\(error))",
                remedy: "name one that you may read, with lines USERNAME:KEY")
        }
        guard let key = key(of: name, text: bytes) else {
            throw DialFailure(
                .usage, "\(shown) has no key of '\(PercentEncoding.readable(name.utf8))'",
                remedy: "name another user with --tls-username, or add a line USERNAME:KEY (psktool makes keys)")
        }
        return key
    }

    /// nil when there is no line of that name with a key in hexadecimal digits.
    static func key(of name: String, text: [UInt8]) -> [UInt8]? {
        for line in text.split(separator: UInt8(ascii: "\n")) where line.first != UInt8(ascii: "#") {
            guard let colon = line.lastIndex(of: UInt8(ascii: ":")), line[..<colon].elementsEqual(name.utf8) else {
                continue
            }
            let key = line[line.index(after: colon)...].filter { $0 != UInt8(ascii: "\r") }
            let digits = key.allSatisfy { byte in
                Unicode.Scalar(byte).properties.isASCIIHexDigit
            }
            if digits, !key.isEmpty, key.count.isMultiple(of: 2) { return Array(key) }
        }
        return nil
    }
}
