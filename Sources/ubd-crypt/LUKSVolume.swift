import CCryptsetup
import CGcrypt
import Dialing
import Glibc
import SystemCalls
import Varlink

/// The key of a volume.
struct VolumeKey: ~Copyable {
    /// A sealed memfd.
    let file: FileDescriptor
    /// Tells it from other keys.
    let mark: UInt64
}

/// A LUKS volume, as libcryptsetup reads its header. Nothing is activated: only its key is taken.
struct LUKSVolume: ~Copyable {
    private let device: OpaquePointer
    /// The file's name, for people.
    let name: String
    /// The header is in the file itself, before the data.
    private let isHeaderInFile: Bool
    private let headerFile: Int32

    /// Reads and checks the header of the open file `unlockFileDescriptor`, or its detached header in
    /// `unlockHeaderDescriptor`. `name`: the file's.
    init(name: String, hasHeader: Bool) throws(DialFailure) {
        let (file, header) = (Self.path(unlockFileDescriptor), Self.path(unlockHeaderDescriptor))
        // Its words would go to standard output and error; what it means is said by this program.
        crypt_set_log_callback(nil, { _, _, _ in }, nil)
        var made: OpaquePointer?
        let status = hasHeader ? crypt_init_data_device(&made, header, file) : crypt_init(&made, file)
        guard status == 0, let made else {
            throw DialFailure(
                .usage, "\(name), or its header, can not be opened: \(SystemError.message(-status))",
                remedy: "give files that you may read, where /proc is mounted")
        }
        crypt_set_log_callback(made, { _, _, _ in }, nil)
        let headerFile = hasHeader ? unlockHeaderDescriptor : unlockFileDescriptor
        do throws(DialFailure) { try HeaderLock.take(headerFile, name) } catch {
            crypt_free(made)
            throw error
        }
        // To mend a damaged copy of the header libcryptsetup locks it alone.
        HeaderLock.release(headerFile)
        let loaded = crypt_load(made, nil, nil)
        guard loaded == 0 else {
            crypt_free(made)
            throw DialFailure(
                .unsuitable, "\(name) has no LUKS header that can be read (\(SystemError.message(-loaded)))",
                remedy:
                    "give a LUKS volume, or its detached header with --header; 'cryptsetup repair FILE' may mend a damaged one"
            )
        }
        device = made
        self.name = name
        self.headerFile = headerFile
        isHeaderInFile = !hasHeader || Self.isSameFile(unlockHeaderDescriptor, unlockFileDescriptor)
    }

    /// libcryptsetup takes paths alone, and this one can not lead to another file than the open one.
    private static func path(_ file: Int32) -> String { "/proc/self/fd/\(file)" }

    /// Unknown is yes: then the data must lie behind the header.
    private static func isSameFile(_ first: Int32, _ second: Int32) -> Bool {
        var (one, other) = (stat(), stat())
        guard fstat(first, &one) == 0, fstat(second, &other) == 0 else { return true }
        return one.st_dev == other.st_dev && one.st_ino == other.st_ino
    }

    deinit { crypt_free(device) }

    /// Refuses what the worker can not do.
    func facts() throws(DialFailure) -> UnlockedVolume {
        let type = text(crypt_get_type(device))
        guard type == "LUKS1" || type == "LUKS2" else {
            throw unsuitable("is of type \(type)", "give a LUKS1 or LUKS2 volume")
        }
        let cipher = text(crypt_get_cipher(device)) + "-" + text(crypt_get_cipher_mode(device))
        // Whoever wrote the header wrote this number.
        let keyBytes = Int(crypt_get_volume_key_size(device))
        guard cipher == "aes-xts-plain64", keyBytes == 32 || keyBytes == 64 else {
            throw unsuitable(
                "is encrypted with \(cipher) and a key of \(keyBytes * 8) bits",
                "use cryptsetup, or a volume with aes-xts-plain64 and a key of 256 or 512 bits")
        }
        var integrity = crypt_params_integrity()
        if crypt_get_integrity_info(device, &integrity) == 0, integrity.integrity != nil || integrity.tag_size != 0 {
            throw unsuitable("has integrity tags (dm-integrity)", "use cryptsetup, or a volume without --integrity")
        }
        guard type == "LUKS1" || crypt_reencrypt_status(device, nil) == CRYPT_REENCRYPT_NONE else {
            throw unsuitable("is being reencrypted", "finish that first with 'cryptsetup reencrypt'")
        }
        try refuseDetached(type)
        let (offset, sectorSize) = (crypt_get_data_offset(device) << 9, UInt32(crypt_get_sector_size(device)))
        return UnlockedVolume(
            offset: offset, size: type == "LUKS1" ? nil : try segmentSize(), sectorSize: sectorSize,
            firstSector: crypt_get_iv_offset(device))
    }

    /// A detached header says that its data begins at byte 0, or wherever: served as the volume's own file, the disk would
    /// begin with the header, and the first write destroy the key slots. cryptsetup refuses that, its library does not.
    private func refuseDetached(_ type: String) throws(DialFailure) {
        var (metadata, slots) = (UInt64(0), UInt64(0))
        let status = crypt_get_metadata_size(device, &metadata, &slots)
        // LUKS2 has two copies of its metadata.
        let end = metadata &* (type == "LUKS2" ? 2 : 1) &+ slots
        guard isHeaderInFile, status != 0 || end < 4096 || crypt_get_data_offset(device) << 9 < end else { return }
        throw unsuitable(
            "has a detached header: its data lies in another file",
            "give that file with --file, and \(name) with --header")
    }

    /// Bytes of a LUKS2 volume's one segment; nil: up to the end of the file.
    private func segmentSize() throws(DialFailure) -> UInt64? {
        var dumped: UnsafePointer<CChar>?
        guard crypt_dump_json(device, &dumped, 0) == 0, let dumped,
            let json = try? JSON(
                parsing: Array(UnsafeRawBufferPointer(start: dumped, count: strlen(dumped))),
                limits: JSONLimits(bytes: 4 << 20, depth: 16)),
            case .object(let segments)? = json["segments"], let segment = json["segments"]?["0"],
            case .string(let size)? = segment["size"], case .string(let first)? = segment["iv_tweak"]
        else { throw unsuitable("has no first segment that can be read", "see 'cryptsetup luksDump'") }
        // The first one alone would be another disk.
        guard segments.count == 1 else {
            throw unsuitable("has \(segments.count) segments, and only a volume of one is served", "use cryptsetup")
        }
        // The format means that number; libcryptsetup opens such a volume with 0 (2.6.1). So there are two disks in it.
        guard first == "0" else {
            throw unsuitable("numbers its sectors from \(first) on, and not from 0", "use cryptsetup")
        }
        if size == "dynamic" { return nil }
        guard let bytes = UInt64(size) else { throw unsuitable("has a segment of size \(size)", "use cryptsetup") }
        return bytes
    }

    /// The volume key in a sealed memfd, and its mark. The passphrase is wiped at the end.
    func key(_ passphrase: consuming Secret) throws(DialFailure) -> VolumeKey {
        var key = try Secret(capacity: 64)
        var size = key.memory.count
        try HeaderLock.take(headerFile, name)
        defer { HeaderLock.release(headerFile) }
        let status = crypt_volume_key_get(
            device, CRYPT_ANY_SLOT, key.memory.baseAddress!.assumingMemoryBound(to: CChar.self), &size,
            passphrase.bytes, passphrase.count)
        guard status >= 0 else {
            switch status {
            case -EPERM:
                throw DialFailure(
                    .refused, "no key slot of \(name) opens with this passphrase or key", remedy: "give another one")
            case -ENOMEM:
                throw DialFailure(
                    .host, "there is not enough memory to open a key slot of \(name)",
                    remedy: "'cryptsetup luksDump' says how much Argon2 needs: free it, or raise 'ulimit -v'")
            default:
                throw DialFailure(
                    .unsuitable, "no key slot of \(name) can be opened: \(SystemError.message(-status))",
                    remedy: "'cryptsetup luksDump' shows the key slots")
            }
        }
        key.count = size
        guard size == 32 || size == 64 else {
            throw unsuitable("has a key of \(size) bytes", "use cryptsetup")
        }
        return VolumeKey(file: try key.sealed(), mark: Self.mark(key))
    }

    /// As the worker computes it (`DeviceOptions.keyMark`).
    private static func mark(_ key: borrowing Secret) -> UInt64 {
        gcry_check_version(nil)
        var digest = [UInt8](repeating: 0, count: 32)
        gcry_md_hash_buffer(Int32(GCRY_MD_SHA256.rawValue), &digest, key.bytes, key.count)
        return digest.prefix(8).reduce(0) { $0 << 8 | UInt64($1) } >> 1
    }

    private func text(_ pointer: UnsafePointer<CChar>?) -> String { pointer.map { String(cString: $0) } ?? "" }

    private func unsuitable(_ what: String, _ remedy: String) -> DialFailure {
        DialFailure(.unsuitable, "\(name) \(what)", remedy: remedy)
    }
}
