/// A feature flag of the kernel's ublk driver, as in the answer to GET_FEATURES.
public struct KernelFeature: Sendable {
    /// The flag's name without "UBLK_F_", in lower case with dashes.
    public let name: String
    /// The bit of the flag (include/uapi/linux/ublk_cmd.h).
    public let bit: Int
    /// The first kernel release with this feature.
    public let since: String
    /// One sentence without a full stop.
    public let meaning: String
    /// Whether ubd uses the feature where the kernel has it.
    public let used: Bool

    public var mask: UInt64 { 1 << UInt64(bit) }

    private init(_ bit: Int, _ name: String, since: String, used: Bool, _ meaning: String) {
        self.name = name
        self.bit = bit
        self.since = since
        self.meaning = meaning
        self.used = used
    }

    /// All flags of Linux 7.3. Releases: docs/kernel-facts.md#feature-releases.
    public static let all = [
        KernelFeature(
            0, "support-zero-copy", since: "6.15", used: true, "The server may register a request's pages as a buffer"),
        KernelFeature(
            1, "uring-cmd-comp-in-task", since: "6.0", used: false, "Completions run in the server's task; always on"),
        KernelFeature(2, "need-get-data", since: "6.0", used: false, "The server asks for the data of a write"),
        KernelFeature(3, "user-recovery", since: "6.1", used: true, "The device outlives its server"),
        KernelFeature(
            4, "user-recovery-reissue", since: "6.1", used: true, "Requests under way are repeated after recovery"),
        KernelFeature(
            5, "unprivileged-dev", since: "6.3", used: false, "A user drives the control device; ubd's broker does it"),
        KernelFeature(6, "cmd-ioctl-encode", since: "6.4", used: true, "Commands are encoded as ioctl numbers"),
        KernelFeature(7, "user-copy", since: "6.5", used: false, "The server copies data with pread and pwrite"),
        KernelFeature(8, "zoned", since: "6.6", used: false, "Zoned block devices"),
        KernelFeature(
            9, "user-recovery-fail-io", since: "6.13", used: true, "I/O fails while there is no server"),
        KernelFeature(10, "update-size", since: "6.16", used: true, "The size of a live device can change"),
        KernelFeature(
            11, "auto-buf-reg", since: "6.16", used: true, "The driver registers a request's pages by itself"),
        KernelFeature(12, "quiesce", since: "6.16", used: true, "A live device can be quiesced for an upgrade"),
        KernelFeature(
            13, "per-io-daemon", since: "6.16", used: true,
            "Each request may have its own task; recovery can be repeated"),
        KernelFeature(
            14, "buf-reg-off-daemon", since: "6.17", used: false, "Any task may register a request's pages"),
        KernelFeature(15, "batch-io", since: "7.0", used: true, "One command fetches and commits many requests"),
        KernelFeature(16, "integrity", since: "7.0", used: false, "Protection information beside the data"),
        KernelFeature(17, "safe-stop-dev", since: "7.0", used: true, "TRY_STOP_DEV leaves a device in use alone"),
        KernelFeature(
            18, "no-auto-part-scan", since: "7.0", used: false,
            "No partition scan at start; ubd's workers get none anyway"),
        KernelFeature(19, "shmem-zc", since: "7.1", used: false, "Zero copy from memory shared with the server"),
        KernelFeature(20, "io-desc-size", since: "7.3", used: false, "The server chooses the size of a descriptor"),
    ]

    /// The names of the features in these bits, in the order of the bits, without unknown bits.
    public static func names(in bits: UInt64) -> [String] {
        all.filter { bits & $0.mask != 0 }.map(\.name)
    }

    /// The names of the features in these bits that ubd does not use.
    public static func ignoredNames(in bits: UInt64) -> [String] {
        all.filter { bits & $0.mask != 0 && !$0.used }.map(\.name)
    }

    /// The bits without a known name.
    public static func unknownBits(in bits: UInt64) -> UInt64 {
        all.reduce(bits) { $0 & ~$1.mask }
    }
}
