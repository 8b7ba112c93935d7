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
    /// The names of these users, as far as they have one.
    func userNames(of uids: Set<UInt32>) -> [UInt32: String]
    /// The kind of the path; links are followed unless `followsLinks` is false. nil when nothing has that name.
    func kind(of path: String, followsLinks: Bool) -> PathKind?
    /// The name of a file in /proc/locks: "MAJOR:MINOR:INODE", the first two in hexadecimal; nil when there is no such
    /// file.
    func lockID(of path: String) -> String?
}

extension Machine {
    func userName(of uid: UInt32) -> String? { userNames(of: [uid])[uid] }

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
    /// The program that asks the host's name service.
    var getent = "/usr/bin/getent"
    /// Seconds that it may take.
    var nameSeconds = 10
    /// Where the host's own tables are.
    var tables = "/etc"
    private let names = NameService()

    /// Whether the name service is worth asking.
    private final class NameService {
        /// It did not answer in time. It is not waited for again.
        var isSilent = false
    }

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

    func userNames(of uids: Set<UInt32>) -> [UInt32: String] {
        let table = lines("passwd", uids.sorted().map { String($0) })
        return uids.reduce(into: [:]) { names, uid in
            names[uid] = Self.entry(in: table, String(uid))?.first.map(String.init)
        }
    }

    private func entry(_ table: String, _ key: String) -> [Substring]? { Self.entry(in: lines(table, [key]), key) }

    /// The lines of the host's name service for these names or numbers. getent(1) asks it: its modules cannot be loaded into this
    /// program, whose libc is linked statically. Where getent is missing, fails or does not answer, nothing is known, which is not
    /// the same as that there is no such name: then the host's own file answers.
    private func lines(_ table: String, _ keys: [String]) -> String {
        if !names.isSilent, let helper = try? HelperProcess(getent, ["getent", table] + keys) {
            let deadline = Deadline(seconds: nameSeconds)
            // 2: not all were found.
            if let answer = try? helper.output(most: 1 << 20, deadline), [0, 2].contains(answer.status) {
                return answer.text
            }
            names.isSilent = deadline.hasPassed
        }
        return text(of: "\(tables)/\(table)") ?? ""
    }

    /// The fields of the first line of passwd(5) or group(5) with that name, or with that number: no name has only digits.
    static func entry(in table: String, _ key: String) -> [Substring]? {
        let column = key.allSatisfy(\.isNumber) ? 2 : 0
        return table.split(whereSeparator: \.isNewline).lazy
            .map { $0.split(separator: ":", omittingEmptySubsequences: false) }
            .first { $0.count > 2 && $0[column] == key }
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
