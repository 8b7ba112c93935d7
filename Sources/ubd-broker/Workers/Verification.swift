import Glibc
import SystemCalls

/// The state of one task in /proc (proc_pid_status(5)).
struct ProcessStatus: Equatable {
    var uids: [UInt32] = []
    var gids: [UInt32] = []
    var groups: [UInt32] = []
    /// CapInh, CapPrm, CapEff, CapBnd, CapAmb.
    var capabilities: [String: UInt64] = [:]
    var noNewPrivileges = false
    var seccompMode = 0
    var seccompFilters = 0
    var state: Character = "?"
    var name = ""

    /// It has exactly the ids of a worker of this group.
    func isWorker(uid: UInt32, gid: UInt32) -> Bool {
        uids == [UInt32](repeating: uid, count: 4) && gids == [UInt32](repeating: gid, count: 4) && groups.isEmpty
    }

    /// Reads /proc/`path`/status.
    init(of path: String, proc: String = "/proc") throws(SystemError) {
        self.init(parsing: try readFile("\(proc)/\(path)/status"))
    }

    /// Parses bytes, and only the fields that are needed: splitting the status of a worker's two threads as text took
    /// four fifths of the broker's work for an add.
    init(parsing bytes: [UInt8]) {
        for line in bytes.split(separator: UInt8(ascii: "\n")) {
            guard let colon = line.firstIndex(of: UInt8(ascii: ":")) else { continue }
            let key = String(decoding: line[..<colon], as: UTF8.self)
            let rest = line[(colon + 1)...]
            switch key {
            case "Name": name = ProcessStatus.words(rest).joined(separator: " ")
            case "Uid": uids = ProcessStatus.words(rest).compactMap { UInt32($0) }
            case "Gid": gids = ProcessStatus.words(rest).compactMap { UInt32($0) }
            case "Groups": groups = ProcessStatus.words(rest).compactMap { UInt32($0) }
            case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
                capabilities[key] = ProcessStatus.words(rest).first.flatMap { UInt64($0, radix: 16) } ?? .max
            case "NoNewPrivs": noNewPrivileges = ProcessStatus.words(rest).first == "1"
            case "Seccomp": seccompMode = ProcessStatus.words(rest).first.flatMap { Int($0) } ?? -1
            case "Seccomp_filters": seccompFilters = ProcessStatus.words(rest).first.flatMap { Int($0) } ?? -1
            case "State": state = ProcessStatus.words(rest).first?.first ?? "?"
            default: break
            }
        }
    }

    /// Splits at tabs and spaces.
    private static func words(_ bytes: ArraySlice<UInt8>) -> [String] {
        bytes.split { $0 == UInt8(ascii: "\t") || $0 == UInt8(ascii: " ") }.map { String(decoding: $0, as: UTF8.self) }
    }
}

/// Checks a stopped worker by what the kernel says about it; nothing that the worker says counts.
struct SandboxVerification {
    let uid: UInt32
    let gid: UInt32
    /// The broker's own filters plus two. Filters are inherited, so the mode alone would prove nothing.
    let seccompFilters: Int
    /// The descriptors that it may hold; nil in tests of one task.
    var descriptors: DescriptorTable?
    let mountCount: MountCount
    /// The minimum number of its own threads: one for each queue, and the main one. The kernel takes back a queue's
    /// fetches when its thread ends.
    var threads = 1

    /// nil when every task of the process is confined as required; otherwise what is wrong.
    func problem(inProcess pid: Int32, proc: String = "/proc") -> String? {
        let tasks = listFolder("\(proc)/\(pid)/task")
        if tasks.isEmpty { return "the process is gone" }
        var own = 0
        for task in tasks {
            let status: ProcessStatus
            do { status = try ProcessStatus(of: "\(pid)/task/\(task)", proc: proc) } catch {
                // A helper thread of the kernel may end between listing and reading. The worker's own threads are
                // counted. A thread that cannot be looked at may have any right.
                if error.saysProcessIsGone { continue }
                return "task \(task) can't be looked at (\(error))"
            }
            if let problem = problem(in: status) { return "task \(task): \(problem)" }
            if !status.name.hasPrefix("iou-"), !"ZX".contains(status.state) { own += 1 }
        }
        if own < threads { return "\(own) threads instead of \(threads)" }
        // Before the mounts: without CAP_SYS_PTRACE both checks fail, and only this one names the capability.
        if let problem = descriptors?.problem(inProcess: pid) { return problem }
        guard let mounts = try? mountCount.mounts(ofProcess: pid) else { return "its mounts can't be counted" }
        if mounts != 1 { return "\(mounts) mounts instead of one empty root" }
        return nil
    }

    func problem(in status: ProcessStatus) -> String? {
        if status.uids != [UInt32](repeating: uid, count: 4) { return "uids \(status.uids)" }
        if status.gids != [UInt32](repeating: gid, count: 4) { return "gids \(status.gids)" }
        if !status.groups.isEmpty { return "supplementary groups \(status.groups)" }
        if status.capabilities.count != 5 { return "capability sets missing" }
        if let held = status.capabilities.first(where: { $0.value != 0 }) {
            return "\(held.key) \(String(held.value, radix: 16))"
        }
        if !status.noNewPrivileges { return "NoNewPrivs 0" }
        if status.seccompMode != 2 { return "Seccomp \(status.seccompMode)" }
        if status.seccompFilters != seccompFilters {
            return "\(status.seccompFilters) seccomp filters instead of \(seccompFilters)"
        }
        return nil
    }
}
