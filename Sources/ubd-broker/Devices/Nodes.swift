import CShims
import Glibc
import SystemCalls

/// The names of a device under /dev, and who may open them. The broker never opens the block device itself: an open of
/// a device whose worker hangs would hang the broker, so it only ever holds O_PATH.
struct Nodes {
    /// "/dev"; the unit tests have one of their own.
    let folder: String

    func block(_ id: UInt32) -> String { "\(folder)/ublkb\(id)" }
    func char(_ id: UInt32) -> String { "\(folder)/ublkc\(id)" }
    func link(_ id: UInt32) -> String { "\(folder)/ubdb\(id)" }

    /// Gives the block node to its owner, nobody else may open it. `major` and `minor` are the kernel's own word: the
    /// node must be that very device.
    func own(_ id: UInt32, uid: UInt32, major: UInt32, minor: UInt32) throws(SystemError) {
        let path = block(id)
        let node = try FileDescriptor.open(path, O_PATH | O_NOFOLLOW)
        let status = try node.status()
        guard status.st_mode & S_IFMT == S_IFBLK, UInt64(status.st_rdev) == ubd_makedev(major, minor) else {
            throw SystemError("\(path) is not the device that was started", ENODEV)
        }
        // The mode first: after chown it would take CAP_FOWNER.
        try call("chmod \(path)") { chmod("/proc/self/fd/\(node.raw)", 0o600) }
        try call("chown \(path)") { fchownat(node.raw, "", uid, gid_t.max, AT_EMPTY_PATH) }
    }

    /// Makes /dev/ubdbN point to /dev/ublkbN. Returns false when something that is not ours has the name (user-mode
    /// Linux has such nodes): it is left alone.
    func makeLink(_ id: UInt32) throws(SystemError) -> Bool {
        let target = "ublkb\(id)"
        if symlink(target, link(id)) == 0 { return true }
        guard errno == EEXIST else { throw SystemError("symlink \(link(id))", errno) }
        return Nodes.linkTarget(link(id)) == target
    }

    /// Removes /dev/ubdbN if it is the link that we made.
    func removeLink(_ id: UInt32) {
        if Nodes.linkTarget(link(id)) == "ublkb\(id)" { unlink(link(id)) }
    }

    static func linkTarget(_ path: String) -> String? {
        var buffer = [UInt8](repeating: 0, count: 256)
        let count = readlink(path, &buffer, buffer.count)
        return count > 0 && count < buffer.count ? String(decoding: buffer[0..<count], as: UTF8.self) : nil
    }
}
