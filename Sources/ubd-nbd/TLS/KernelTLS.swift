import CGnuTLS
import Dialing
import Glibc
import SystemCalls

/// The kernel's TLS (Documentation/networking/tls.rst): a socket whose reads and writes are plain bytes.
enum KernelTLS {
    /// One direction of a TLS 1.3 session.
    struct Direction {
        let cipher: gnutls_cipher_algorithm_t
        let key: [UInt8]
        /// 12 bytes, which GnuTLS calls the IV.
        let nonce: [UInt8]
        /// The number of the next record, 8 bytes.
        let sequence: [UInt8]

        /// As the structures tls12_crypto_info_* of linux/tls.h have it; nil when the kernel has no such cipher.
        var bytes: [UInt8]? {
            let kind: Int32
            let keyBytes: Int
            // AES-GCM's nonce has two parts; the first one is called salt and stands behind the key.
            var salt = 4
            switch cipher {
            case GNUTLS_CIPHER_CHACHA20_POLY1305: (kind, keyBytes, salt) = (TLS_CIPHER_CHACHA20_POLY1305, 32, 0)
            case GNUTLS_CIPHER_AES_256_GCM: (kind, keyBytes) = (TLS_CIPHER_AES_GCM_256, 32)
            case GNUTLS_CIPHER_AES_128_GCM: (kind, keyBytes) = (TLS_CIPHER_AES_GCM_128, 16)
            default: return nil
            }
            guard key.count == keyBytes, nonce.count == 12, sequence.count == 8 else { return nil }
            // TLS_1_3_VERSION is a macro that Swift does not import.
            let head = [UInt16(0x0304), UInt16(kind)].flatMap { number in withUnsafeBytes(of: number) { Array($0) } }
            return head + nonce[salt...] + key + nonce[..<salt] + sequence
        }

        /// Hands it to the kernel.
        func give(_ socket: Int32, receives: Bool) throws(SystemError) {
            guard var bytes else { throw SystemError("TLS in the kernel", EOPNOTSUPP) }
            // SOL_TLS, from linux/socket.h, which no user program can include.
            let level: Int32 = 282
            let result = setsockopt(socket, level, receives ? TLS_RX : TLS_TX, bytes, socklen_t(bytes.count))
            let error = errno
            explicit_bzero(&bytes, bytes.count)
            guard result == 0 else { throw SystemError("TLS in the kernel", error) }
        }
    }

    /// Gives a connected TCP socket the kernel's TLS layer, which does nothing yet.
    static func attach(_ socket: Int32) throws(SystemError) {
        try call("TCP_ULP") { setsockopt(socket, Int32(IPPROTO_TCP), TCP_ULP, "tls", 4) }
    }
}

extension StreamSocket {
    /// Whether the kernel can take TLS over is asked before a word is said: then nobody has to undo anything.
    func attachKernelTLS() throws(DialFailure) {
        guard isNetwork else {
            throw DialFailure(
                .unsuitable, "the kernel has no TLS for Unix sockets", remedy: "use nbd+unix, or nbds over TCP")
        }
        do { try KernelTLS.attach(file.raw) } catch {
            throw DialFailure(
                .host,
                "the kernel's TLS can not be used (\(SystemError.message(error.errno))), and ubd's workers have no other",
                // Without the module, and the right to load it.
                remedy: error.errno == ENOENT
                    ? "let the administrator load it: 'modprobe tls'; what ubd installs in modules-load.d does so at boot"
                    : "see the kernel's log")
        }
    }
}
