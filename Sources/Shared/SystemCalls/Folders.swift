import Glibc

/// The names in a folder, "." and ".." left out, in no order; empty when it can't be read.
public func listFolder(_ path: String) -> [String] { (try? namesInFolder(path)) ?? [] }

/// The names in a folder, "." and ".." left out, in no order.
public func namesInFolder(_ path: String) throws(SystemError) -> [String] {
    guard let folder = opendir(path) else { throw SystemError("read \(path)", errno) }
    defer { closedir(folder) }
    var names: [String] = []
    while true {
        // Its end and an error look the same but for errno (readdir(3)).
        errno = 0
        guard let entry = readdir(folder) else { break }
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != "." && name != ".." { names.append(name) }
    }
    if errno != 0 { throw SystemError("read \(path)", errno) }
    return names
}

/// Where a symbolic link leads, not followed; nil when it is none, can't be read, or has 4096 bytes or more.
public func linkTarget(_ path: String) -> String? {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = readlink(path, &buffer, buffer.count)
    return count > 0 && count < buffer.count ? String(decoding: buffer[0..<count], as: UTF8.self) : nil
}
