import CGnuTLS
import Glibc

/// What a server's certificate must be for, as GnuTLS compares it during the handshake: this host, and being a server. Without the
/// second, whoever has a client's certificate with that host's name could play the server. A certificate that names no purpose is
/// for all of them (RFC 5280, 4.2.1.12).
struct CertificateDemands: ~Copyable {
    /// A session points to it.
    let list: UnsafeMutablePointer<gnutls_typed_vdata_st>
    static let count: UInt32 = 2

    init(host: String) {
        list = .allocate(capacity: Int(Self.count))
        // A size of 0: up to the NUL.
        list[0] = Self.demand(GNUTLS_DT_DNS_HOSTNAME, host)
        list[1] = Self.demand(GNUTLS_DT_KEY_PURPOSE_OID, GNUTLS_KP_TLS_WWW_SERVER)
    }

    deinit {
        for index in 0..<Int(Self.count) { free(list[index].data) }
        list.deallocate()
    }

    private static func demand(_ type: gnutls_vdata_types_t, _ text: String) -> gnutls_typed_vdata_st {
        let copy = UnsafeMutableRawPointer(strdup(text)!).assumingMemoryBound(to: UInt8.self)
        return gnutls_typed_vdata_st(type: type, data: copy, size: 0)
    }
}
