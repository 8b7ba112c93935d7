import CShims
import Glibc
import SystemCalls

/// The nodes and links of devices in /dev, and their owners. The broker opens nodes only with O_PATH: opening a block
/// device whose worker hangs would block the broker.
struct Nodes {
    /// "/dev"; unit tests use another folder.
    let folder: String
    /// Makes a user the only one who may open a node. EPERM without CAP_CHOWN: then udev does it (59-ubd.rules).
    var give: (_ node: Int32, _ uid: UInt32) throws(SystemError) -> Void = Nodes.give

    func block(_ id: UInt32) -> String { "\(folder)/ublkb\(id)" }
    /// Takes the device's place in a rehearsal; it never has requests.
    var null: String { "/dev/null" }
    func char(_ id: UInt32) -> String { "\(folder)/ublkc\(id)" }
    func link(_ id: UInt32) -> String { "\(folder)/\(Nodes.linkName(id))" }
    static func linkName(_ id: UInt32) -> String { "ubdb\(id)" }

    /// Gives the block node to its owner, so that nobody else may open it. The node must have the kernel's numbers
    /// `major` and `minor`. Returns whether its owner or mode was different before.
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
        // The mode first: after chown it would need CAP_FOWNER.
        try call("chmod a device node") { chmod("/proc/self/fd/\(node)", 0o600) }
        try call("chown a device node") { fchownat(node, "", uid, gid_t.max, AT_EMPTY_PATH) }
    }

    /// Whether the link's name is free or is our link.
    func mayLink(_ id: UInt32) -> Bool {
        var status = stat()
        return lstat(link(id), &status) != 0 && errno == ENOENT || linkTarget(link(id)) == "ublkb\(id)"
    }

    /// Creates the link /dev/ubdbN to /dev/ublkbN. Returns false, and changes nothing, when another file has the name
    /// (user-mode Linux has such nodes).
    func makeLink(_ id: UInt32) throws(SystemError) -> Bool {
        let target = "ublkb\(id)"
        if symlink(target, link(id)) == 0 { return true }
        guard errno == EEXIST else { throw SystemError("symlink \(link(id))", errno) }
        return linkTarget(link(id)) == target
    }

    /// Whether the link is ours and its device does not exist. (If the device exists, its record may only be damaged.)
    func isStrayLink(_ id: UInt32) -> Bool {
        var status = stat()
        return linkTarget(link(id)) == "ublkb\(id)" && lstat(block(id), &status) != 0 && errno == ENOENT
    }

    /// Removes /dev/ubdbN if it is our link.
    func removeLink(_ id: UInt32) {
        if linkTarget(link(id)) == "ublkb\(id)" { unlink(link(id)) }
    }
}
