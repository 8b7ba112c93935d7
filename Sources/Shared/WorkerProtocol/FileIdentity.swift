/// Which file a worker serves: two are the same when all three numbers are. Zeros: the target has none.
public struct FileIdentity: Equatable, Sendable {
    /// st_dev of the file's file system; st_rdev for a block device.
    public var device: UInt64
    /// st_ino; 0 for a block device.
    public var inode: UInt64
    /// Nanoseconds since 1970 when the file was made (statx(2)); 0 where the file system does not tell. Without it a new
    /// file with a removed one's inode number would pass for that one.
    public var born: UInt64

    public init(device: UInt64 = 0, inode: UInt64 = 0, born: UInt64 = 0) {
        self.device = device
        self.inode = inode
        self.born = born
    }

    public static let none = FileIdentity()
}

/// A version of ubd as three numbers in one word, for messages of fixed layout.
public enum PackedVersion {
    /// "1.2.3" as a number; 0 for anything that is no such text, or has a part above 1023.
    public static func pack(_ text: String) -> UInt32 {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false).map { UInt32($0) }
        guard parts.count == 3, let major = parts[0], let minor = parts[1], let patch = parts[2],
            max(major, minor, patch) < 1024
        else { return 0 }
        return major << 20 | minor << 10 | patch
    }

    /// The text of such a number; nil for 0.
    public static func text(_ packed: UInt32) -> String? {
        packed == 0 ? nil : "\(packed >> 20).\(packed >> 10 & 1023).\(packed & 1023)"
    }
}
