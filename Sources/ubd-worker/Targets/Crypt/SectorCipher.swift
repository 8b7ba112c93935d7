import CGcrypt
import Glibc

/// AES-XTS with plain64 tweaks, as dm-crypt's aes-xts-plain64: one expanded key, for one thread.
///
/// libgcrypt allocates and makes system calls when a key is expanded, and none for a sector.
struct SectorCipher: @unchecked Sendable {
    // Unchecked: it goes once from the thread that expands the key to the one queue that uses it.
    private let handle: gcry_cipher_hd_t

    /// Bytes of a key: two keys of AES-128 or of AES-256.
    static let keyLengths = [32, 64]

    /// Makes the library ready. It looks for /etc/gcrypt and /proc/sys/crypto, so before the first filter.
    static func loadLibrary() { gcry_check_version(nil) }

    /// 63 bits of the key's SHA-256, by which a key is known from others (`DeviceOptions.keyMark`).
    static func mark(_ key: UnsafeRawBufferPointer) -> UInt64 {
        var digest = [UInt8](repeating: 0, count: 32)
        gcry_md_hash_buffer(Int32(GCRY_MD_SHA256.rawValue), &digest, key.baseAddress, key.count)
        return digest.prefix(8).reduce(0) { $0 << 8 | UInt64($1) } >> 1
    }

    /// nil when the library refuses the key. `key`: one of `keyLengths`.
    init?(key: UnsafeRawBufferPointer) {
        guard SectorCipher.keyLengths.contains(key.count) else { return nil }
        let algorithm = key.count == 32 ? GCRY_CIPHER_AES : GCRY_CIPHER_AES256
        var opened: gcry_cipher_hd_t?
        guard gcry_cipher_open(&opened, Int32(algorithm.rawValue), Int32(GCRY_CIPHER_MODE_XTS.rawValue), 0) == 0,
            let opened
        else { return nil }
        guard gcry_cipher_setkey(opened, key.baseAddress, key.count) == 0 else {
            gcry_cipher_close(opened)
            return nil
        }
        handle = opened
    }

    /// Ends it and wipes its key. For tests: a worker's cipher ends with the process.
    func close() { gcry_cipher_close(handle) }

    /// Decrypts `length` bytes in place, sectors of `1 << shift` bytes. `first`: number of the first 512-byte sector.
    @inline(__always)
    func decrypt(_ memory: UnsafeMutableRawPointer, length: Int, first: UInt64, shift: Int) -> Bool {
        each(length: length, first: first, shift: shift) { offset, bytes in
            gcry_cipher_decrypt(handle, memory + offset, bytes, nil, 0)
        }
    }

    /// Encrypts `length` bytes from `source` to `memory`, which do not overlap.
    @inline(__always)
    func encrypt(
        _ source: UnsafeRawPointer, to memory: UnsafeMutableRawPointer, length: Int, first: UInt64, shift: Int
    ) -> Bool {
        each(length: length, first: first, shift: shift) { offset, bytes in
            gcry_cipher_encrypt(handle, memory + offset, bytes, source + offset, bytes)
        }
    }

    /// False when the library refuses a sector.
    @inline(__always)
    private func each(
        length: Int, first: UInt64, shift: Int, _ work: (_ offset: Int, _ bytes: Int) -> gcry_error_t
    ) -> Bool {
        let bytes = 1 << shift
        var offset = 0
        var sector = first
        while offset < length {
            // plain64: the number of the sector in units of 512 bytes, little-endian, whatever the sector's size.
            var tweak = (sector.littleEndian, UInt64(0))
            guard gcry_cipher_setiv(handle, &tweak, 16) == 0, work(offset, bytes) == 0 else { return false }
            offset &+= bytes
            sector &+= UInt64(bytes >> 9)
        }
        return true
    }
}
