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
