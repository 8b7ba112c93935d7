import CShims
import Glibc
import SystemCalls

/// Where the control groups of devices are.
enum ControlGroupPlace: Equatable {
    /// In the group of `ubd-workers.service`, if that is a sibling of the broker's group.
    case automatic
    /// In this folder of cgroup v2, which only the broker uses.
    case folder(String)
    case none

    /// The mount point of cgroup v2 on every distribution.
    static let mount = "/sys/fs/cgroup"
    static let unit = "ubd-workers.service"
    /// CGROUP2_SUPER_MAGIC, linux/magic.h.
    private static let magic = 0x6367_7270

    init(option text: String) {
        switch text {
        case "auto": self = .automatic
        case "none": self = .none
        default: self = .folder(text)
        }
    }

    struct Problem: Error {
        let what: String
    }

    /// Opens the folder. It must belong to root, and must contain no process.
    func open(loop: EventLoop) throws(Problem) -> ControlGroupTree {
        let folder: String
        switch self {
        case .none: throw Problem(what: "switched off with --control-group none")
        case .folder(let path): folder = path
        case .automatic: folder = try ControlGroupPlace.besideOwn()
        }
        do throws(SystemError) {
            if self == .automatic { try ControlGroupTree.setKeeperAside(in: folder) }
            if let what = try ControlGroupPlace.problem(of: folder) { throw SystemError(what, 0) }
            let prefix = ControlGroupPlace.mount
            return try ControlGroupTree(
                folder: folder, path: folder.hasPrefix(prefix) ? String(folder.dropFirst(prefix.count)) : folder,
                loop: loop)
        } catch { throw Problem(what: error.errno == 0 ? error.operation : "\(error)") }
    }

    /// Why the folder cannot hold groups; nil when it can.
    private static func problem(of folder: String) throws(SystemError) -> String? {
        let file = try FileDescriptor.open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
        var system = statfs()
        try call("statfs \(folder)") { fstatfs(file.raw, &system) }
        if Int(system.f_type) != magic { return "\(folder) is no folder of cgroup v2" }
        let status = try file.status()
        if status.st_uid != 0 || status.st_mode & 0o022 != 0 { return "\(folder) does not belong to root alone" }
        let inside = try ControlGroupTree.file(file.raw, "cgroup.procs", O_RDONLY).readAll(limit: 1 << 20)
        return inside.isEmpty ? nil : "processes lie in \(folder) itself, not in groups below it"
    }

    /// The folder of the unit's group, which must be in the same slice as the broker's.
    private static func besideOwn() throws(Problem) -> String {
        guard let bytes = try? readFile("/proc/self/cgroup"),
            let parent = ControlGroupPlace.parent(inCgroupFile: String(decoding: bytes, as: UTF8.self))
        else { throw Problem(what: "the broker's own group of cgroup v2 has no parent") }
        let folder = "\(mount)\(parent)/\(unit)"
        do throws(SystemError) { _ = try FileDescriptor.open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW) } catch {
            throw Problem(what: "there is no group \(parent)/\(unit) that the broker could use")
        }
        return folder
    }

    /// The parent of the cgroup v2 path in /proc/PID/cgroup; nil when there is none.
    static func parent(inCgroupFile text: String) -> String? {
        guard let line = text.split(separator: "\n").first(where: { $0.hasPrefix("0::/") }),
            let slash = line.lastIndex(of: "/"), line != "0::/"
        else { return nil }
        return String(line[..<slash].dropFirst("0::".count))
    }
}
