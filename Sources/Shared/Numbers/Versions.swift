/// The version of ubd, which broker, worker and client share.
public enum UBDVersion {
    /// Printed by `--version`.
    public static let text = "0.1.0"
}

/// A version of ubd as one word of three numbers, for messages of fixed layout.
public enum PackedVersion {
    /// Packs "1.2.3"; 0 when the text is no such version or has a part above 1023.
    public static func pack(_ text: String) -> UInt32 {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false).map { UInt32($0) }
        guard parts.count == 3, let major = parts[0], let minor = parts[1], let patch = parts[2],
            max(major, minor, patch) < 1024
        else { return 0 }
        return major << 20 | minor << 10 | patch
    }

    /// The text of a packed version; nil for 0.
    public static func text(_ packed: UInt32) -> String? {
        packed == 0 ? nil : "\(packed >> 20).\(packed >> 10 & 1023).\(packed & 1023)"
    }
}
