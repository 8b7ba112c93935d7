import Glibc
import SystemCalls

/// Who has a device open, among the processes that the caller may look at: for a message, since processes come and go.
enum DeviceOpener {
    /// "process 17 (bash)"; nil when none of them has. Links in /proc are read and not followed: what is behind one may hang.
    static func find(_ node: String, proc: String = "/proc") -> String? {
        for pid in entries(of: proc) where Int32(pid) != nil && pid != "\(getpid())" {
            let folder = "\(proc)/\(pid)/fd"
            guard entries(of: folder).contains(where: { linkTarget("\(folder)/\($0)") == node }) else { continue }
            let name = (try? readFile("\(proc)/\(pid)/comm")) ?? []
            let text = String(decoding: name.filter { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
            return "process \(pid) (\(text))"
        }
        return nil
    }

    private static func entries(of path: String) -> [String] {
        guard let folder = opendir(path) else { return [] }
        defer { closedir(folder) }
        var names: [String] = []
        while let entry = readdir(folder) {
            names.append(
                withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                })
        }
        return names
    }

    private static func linkTarget(_ path: String) -> String? {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = bytes.withUnsafeMutableBytes { readlink(path, $0.baseAddress!, $0.count) }
        return count > 0 ? String(decoding: bytes.prefix(count), as: UTF8.self) : nil
    }
}
