import CShims
import Glibc
import SystemCalls

/// The kind of file that a path names.
enum PathKind: Equatable {
    case file, directory, characterDevice, socket, other
    /// A block device with its number.
    case blockDevice(major: UInt32, minor: UInt32)
    /// A symbolic link, not followed, with its text.
    case link(String)
}

/// A group of the host's name service.
struct Group: Equatable {
    var gid: UInt32
    /// Names of the members that the group itself lists.
    var members: [String]
}

/// The machine as `ubd doctor` sees it; tests describe others.
protocol Machine {
    /// The text of a small file of /proc or /sys; nil when it can't be read.
    func text(of path: String) -> String?
    /// The names in a directory; empty when it can't be read.
    func entries(of path: String) -> [String]
    /// `uname -r`.
    var kernelRelease: String { get }
    var uid: UInt32 { get }
    var userName: String { get }
    /// The groups of this process, the primary one too.
    var groups: [UInt32] { get }
    /// The soft limit of open files.
    var openFileLimit: UInt64 { get }
    func group(named name: String) -> Group?
    func userName(of uid: UInt32) -> String?
    /// The kind of the path; links are followed unless `followsLinks` is false. nil when nothing has that name.
    func kind(of path: String, followsLinks: Bool) -> PathKind?
    /// The name of a file in /proc/locks: "MAJOR:MINOR:INODE", the first two in hexadecimal; nil when there is no such
    /// file.
    func lockID(of path: String) -> String?
}

extension Machine {
    /// /dev is not the kernel's own (devtmpfs), as in most containers: no node appears there by itself.
    var hasPrivateDev: Bool {
        guard let table = text(of: "/proc/self/mountinfo") else { return false }
        // The last mount on a path is the visible one. Its type comes behind the dash (proc(5)).
        let mount = table.split(whereSeparator: \.isNewline).map { $0.split(separator: " ") }
            .last { $0.count > 4 && $0[4] == "/dev" }
        guard let mount, let dash = mount.firstIndex(of: "-"), dash + 1 < mount.count else { return true }
        return mount[dash + 1] != "devtmpfs"
    }
}

/// The machine that this program runs on.
struct LiveMachine: Machine {
    var kernelRelease: String {
        text(of: "/proc/sys/kernel/osrelease")?.split(whereSeparator: \.isNewline).first.map(String.init) ?? "unknown"
    }

    var uid: UInt32 { getuid() }
    var userName: String { userName(of: uid) ?? String(uid) }

    var groups: [UInt32] {
        var list = [gid_t](repeating: 0, count: Int(max(getgroups(0, nil), 0)))
        let count = getgroups(Int32(list.count), &list)
        return list.prefix(Int(max(count, 0))) + [getgid()]
    }

    var openFileLimit: UInt64 {
        var limit = rlimit()
        return getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 ? UInt64(limit.rlim_cur) : 0
    }

    func group(named name: String) -> Group? {
        guard let fields = entry("group", name), fields.count > 3, let gid = UInt32(fields[2]) else { return nil }
        return Group(gid: gid, members: fields[3].split(separator: ",").map(String.init))
    }

    func userName(of uid: UInt32) -> String? { entry("passwd", String(uid))?.first.map(String.init) }

    /// The fields of an entry of the host's name service, by name or number. getent(1) asks it: its modules cannot be
    /// loaded into this program, whose libc is linked statically. Without getent the host's own file answers.
    private func entry(_ table: String, _ key: String) -> [Substring]? {
        guard let helper = try? HelperProcess("/usr/bin/getent", ["getent", table, key]) else {
            return text(of: "/etc/\(table)").flatMap { Self.entry(in: $0, key) }
        }
        return (try? helper.output(most: 1 << 20, Deadline(seconds: 10))).flatMap { Self.entry(in: $0.text, key) }
    }

    /// The fields of the first line of passwd(5) or group(5) with that name or number.
    static func entry(in table: String, _ key: String) -> [Substring]? {
        table.split(whereSeparator: \.isNewline).lazy
            .map { $0.split(separator: ":", omittingEmptySubsequences: false) }
            .first { $0.count > 2 && ($0[0] == key || $0[2] == key) }
    }

    func text(of path: String) -> String? {
        guard let bytes = try? readFile(path, limit: 8 << 20) else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }

    func entries(of path: String) -> [String] { listFolder(path).sorted() }

    func lockID(of path: String) -> String? {
        var status = stat()
        guard stat(path, &status) == 0 else { return nil }
        let device = UInt64(status.st_dev)
        let numbers = [ubd_major(device), ubd_minor(device)].map { number in
            (number < 16 ? "0" : "") + String(number, radix: 16)
        }
        return "\(numbers[0]):\(numbers[1]):\(status.st_ino)"
    }

    func kind(of path: String, followsLinks: Bool) -> PathKind? {
        var status = stat()
        guard (followsLinks ? stat(path, &status) : lstat(path, &status)) == 0 else { return nil }
        switch status.st_mode & S_IFMT {
        case S_IFREG: return .file
        case S_IFDIR: return .directory
        case S_IFCHR: return .characterDevice
        case S_IFSOCK: return .socket
        case S_IFBLK:
            return .blockDevice(major: ubd_major(UInt64(status.st_rdev)), minor: ubd_minor(UInt64(status.st_rdev)))
        case S_IFLNK:
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = buffer.withUnsafeMutableBytes { readlink(path, $0.baseAddress!, $0.count) }
            return .link(String(decoding: buffer.prefix(max(count, 0)), as: UTF8.self))
        default: return .other
        }
    }
}
