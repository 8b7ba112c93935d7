import Glibc
import SystemCalls

/// Finds processes that have a device open, among those that the caller may inspect: processes come and go, and nobody
/// sees those of others. Links in /proc are read and not followed: what is behind one may hang.
enum DeviceOpener {
    /// "process 17 (bash)"; nil when none has it open. For a message only.
    static func find(_ node: String, proc: String = "/proc") -> String? {
        pids(proc).first { has($0, node, proc: proc) }.map { name(of: $0, proc: proc) }
    }

    /// The pids of the FUSE servers that have it open.
    static func servers(of node: String, proc: String = "/proc") -> [String] {
        pids(proc).filter { pid in
            let files = files(of: pid, proc)
            return files.contains(node) && files.contains("/dev/fuse")
        }
    }

    static func has(_ pid: String, _ node: String, proc: String = "/proc") -> Bool {
        files(of: pid, proc).contains(node)
    }

    static func name(of pid: String, proc: String = "/proc") -> String {
        let name = (try? readFile("\(proc)/\(pid)/comm")) ?? []
        let text = String(decoding: name.filter { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        return "process \(pid) (\(text))"
    }

    private static func pids(_ proc: String) -> [String] {
        listFolder(proc).filter { Int32($0) != nil && $0 != "\(getpid())" }
    }

    private static func files(of pid: String, _ proc: String) -> some Collection<String> {
        let folder = "\(proc)/\(pid)/fd"
        return listFolder(folder).lazy.compactMap { linkTarget("\(folder)/\($0)") }
    }
}
