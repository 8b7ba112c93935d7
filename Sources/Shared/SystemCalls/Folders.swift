import Glibc

/// The names in a folder without "." and "..", unordered; empty when it cannot be read.
public func listFolder(_ path: String) -> [String] { (try? namesInFolder(path)) ?? [] }

/// The names in a folder without "." and "..", unordered.
public func namesInFolder(_ path: String) throws(SystemError) -> [String] {
    guard let folder = opendir(path) else { throw SystemError("read \(path)", errno) }
    defer { closedir(folder) }
    var names: [String] = []
    while true {
        // readdir(3) reports the end and an error alike; only errno tells them apart.
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

/// The text of a symbolic link, not followed; nil when `path` is no link, cannot be read, or has a text of 4096 bytes
/// or more.
public func linkTarget(_ path: String) -> String? { try? readLink(path) }

/// The text of a symbolic link, not followed.
///
/// - Throws: the errno of readlink(2), ENOENT when nothing has that name; ENAMETOOLONG for a text of 4096 bytes or more.
public func readLink(_ path: String) throws(SystemError) -> String {
    var buffer = [UInt8](repeating: 0, count: 4096)
    let count = try call("read the link \(path)") { readlink(path, &buffer, buffer.count) }
    guard count < buffer.count else { throw SystemError("read the link \(path)", ENAMETOOLONG) }
    return String(decoding: buffer[0..<count], as: UTF8.self)
}
