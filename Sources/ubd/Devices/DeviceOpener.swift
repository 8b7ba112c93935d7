import Glibc
import SystemCalls

/// Finds a process that has a device open, among those that the caller may inspect. For a message only: processes come
/// and go.
enum DeviceOpener {
    /// "process 17 (bash)"; nil when none has it open. Links in /proc are read and not followed: what is behind one may
    /// hang.
    static func find(_ node: String, proc: String = "/proc") -> String? {
        for pid in listFolder(proc) where Int32(pid) != nil && pid != "\(getpid())" {
            let folder = "\(proc)/\(pid)/fd"
            guard listFolder(folder).contains(where: { linkTarget("\(folder)/\($0)") == node }) else { continue }
            let name = (try? readFile("\(proc)/\(pid)/comm")) ?? []
            let text = String(decoding: name.filter { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
            return "process \(pid) (\(text))"
        }
        return nil
    }
}
