import CShims
import Glibc
import SystemCalls

/// The names of a device under /dev, and who may open them. The broker never opens the block device itself: an open of
/// a device whose worker hangs would hang the broker, so it only ever holds O_PATH.
struct Nodes {
    /// "/dev"; the unit tests have one of their own.
    let folder: String
    /// Gives an open node to a user alone. EPERM where the broker lacks CAP_CHOWN: there udev does it (59-ubd.rules).
    var give: (_ node: Int32, _ uid: UInt32) throws(SystemError) -> Void = Nodes.give

    func block(_ id: UInt32) -> String { "\(folder)/ublkb\(id)" }
    /// What has no requests and takes the place of a device in a rehearsal.
    var null: String { "/dev/null" }
    func char(_ id: UInt32) -> String { "\(folder)/ublkc\(id)" }
    func link(_ id: UInt32) -> String { "\(folder)/\(Nodes.linkName(id))" }
    static func linkName(_ id: UInt32) -> String { "ubdb\(id)" }

    /// Gives the block node to its owner, nobody else may open it. `major` and `minor` are the kernel's own word: the
    /// node must be that very device. Returns whether it was another's.
    @discardableResult
    func own(_ id: UInt32, uid: UInt32, major: UInt32, minor: UInt32) throws(SystemError) -> Bool {
        let path = block(id)
        let node = try FileDescriptor.open(path, O_PATH | O_NOFOLLOW)
        let status = try node.status()
        guard status.st_mode & S_IFMT == S_IFBLK, UInt64(status.st_rdev) == ubd_makedev(major, minor) else {
            throw SystemError("\(path) is not the device that was started", ENODEV)
        }
        if status.st_uid == uid, status.st_mode & 0o7777 == 0o600 { return false }
        try give(node.raw, uid)
        return true
    }

    private static func give(_ node: Int32, _ uid: UInt32) throws(SystemError) {
        // The mode first: after chown it would take CAP_FOWNER.
        try call("chmod a device node") { chmod("/proc/self/fd/\(node)", 0o600) }
        try call("chown a device node") { fchownat(node, "", uid, gid_t.max, AT_EMPTY_PATH) }
    }

    /// Nothing that is not ours has the name of the link.
    func mayLink(_ id: UInt32) -> Bool {
        var status = stat()
        return lstat(link(id), &status) != 0 || linkTarget(link(id)) == "ublkb\(id)"
    }

    /// Makes /dev/ubdbN point to /dev/ublkbN. Returns false when something that is not ours has the name (user-mode
    /// Linux has such nodes): it is left alone.
    func makeLink(_ id: UInt32) throws(SystemError) -> Bool {
        let target = "ublkb\(id)"
        if symlink(target, link(id)) == 0 { return true }
        guard errno == EEXIST else { throw SystemError("symlink \(link(id))", errno) }
        return linkTarget(link(id)) == target
    }

    /// The link is one of ours, and there is no device behind it. (With one it may be that of a device whose record is
    /// damaged.)
    func isStrayLink(_ id: UInt32) -> Bool {
        var status = stat()
        return linkTarget(link(id)) == "ublkb\(id)" && lstat(block(id), &status) != 0
    }

    /// Removes /dev/ubdbN if it is the link that we made.
    func removeLink(_ id: UInt32) {
        if linkTarget(link(id)) == "ublkb\(id)" { unlink(link(id)) }
    }
}
