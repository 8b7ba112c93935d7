/// Identifies a worker's backing file: two files are the same if all three numbers match. All zero: the target has
/// none.
public struct FileIdentity: Equatable, Sendable {
    /// st_dev of the file's file system; st_rdev for a block device.
    public var device: UInt64
    /// st_ino; 0 for a block device.
    public var inode: UInt64
    /// Birth time in nanoseconds since 1970 (statx(2)); 0 if the file system has none. It tells a new file from a
    /// removed one whose inode number was reused.
    public var born: UInt64

    public init(device: UInt64 = 0, inode: UInt64 = 0, born: UInt64 = 0) {
        self.device = device
        self.inode = inode
        self.born = born
    }

    public static let none = FileIdentity()
}
