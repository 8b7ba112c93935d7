extension TargetManifest {
    public static let crypt = TargetManifest(
        name: "crypt", number: 5, summary: "Serves the plaintext of a LUKS volume in a regular file",
        inputs: [
            TargetInput(.data, name: "file", letter: "f", help: "The file with the volume"),
            TargetInput(.secret, name: "volume-key", help: "The volume key"),
        ],
        options: [
            TargetOption(
                TargetOption.Common.offset, name: "offset",
                kind: .bytes(0...TargetOption.largestSize, multipleOf: 512, powerOfTwo: false), initial: .number(0),
                help: "Where in the file the encrypted data begins"
            ).agreed,
            .size(otherwise: "up to the end of the file").agreed,
            .blockSize(initial: 512).agreed,
            TargetOption(
                TargetOption.Crypt.firstSector, name: "first-sector",
                // More sectors than this no file has.
                kind: .count(0...TargetOption.largestSize >> 9), initial: .number(0),
                help: "Number of the first 512-byte sector, from which its tweak is made"
            ).agreed,
            TargetOption(
                TargetOption.Crypt.keyMark, name: "key-mark", kind: .count(0...UInt64(Int64.max)),
                otherwise: "none: any key is taken", help: "By what a worker knows the volume's key from another one"
            ).agreed,
        ],
        // The worker encrypts and decrypts in its own memory, so a mode without copies is of no use.
        modes: [.copy], submissions: .crypt, spareBuffers: cryptSpareBuffers,
        workerData: WorkerData(reads: true, writes: true), survival: .inputs)
}

extension TargetManifest {
    /// One for each request at any depth: the writer's own pages, and so the request's buffer, keep the plaintext.
    @inlinable @inline(__always)
    public static var cryptSpareBuffers: UInt32 { 4096 }
}

extension Submissions {
    @inlinable @inline(__always)
    public static var crypt: Submissions { Submissions(perRequest: 1) }
}

extension TargetOption {
    /// Numbers of target crypt's own options.
    public enum Crypt {
        public static let firstSector: Number = 16
        public static let keyMark: Number = 17
    }
}

extension DeviceOptions {
    /// The tweak of the device's first 512-byte sector (`iv_tweak` of a LUKS2 segment; 0 for LUKS1).
    public var firstSector: UInt64 { self[TargetOption.Crypt.firstSector]?.number ?? 0 }
    /// 63 bits of the SHA-256 of the volume key. The device's record has them, so that no worker ever encrypts with another
    /// volume's key. They tell nothing of a key, which is random; the volume's own header has a digest of it, too.
    public var keyMark: UInt64? { self[TargetOption.Crypt.keyMark]?.number }
}
