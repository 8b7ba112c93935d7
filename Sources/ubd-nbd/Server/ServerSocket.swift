import Dialing
import Glibc
import SystemCalls

/// The listening socket of a server that ubd starts, in a folder that only the user can enter. Both go with this.
struct ServerSocket: ~Copyable {
    let listener: FileDescriptor
    /// Bytes without a NUL.
    private let folder: [UInt8]
    private static let name = Array("/\(ServerFolder.socket)".utf8)

    var path: [UInt8] { folder + Self.name }

    /// In the first of these places that has room.
    init(in places: [String]) throws(SystemError) {
        var failure = SystemError("make a folder", ENOENT)
        for place in places {
            var template = Array(ServerFolder.template(in: place).utf8CString)
            guard mkdtemp(&template) != nil else {
                failure = SystemError("make a folder in \(place)", errno)
                continue
            }
            let folder = template.dropLast().map { UInt8(bitPattern: $0) }
            do throws(SystemError) {
                let path = String(decoding: folder + Self.name, as: UTF8.self)
                listener = try SystemCalls.listen(at: path, backlog: 64)
                self.folder = folder
                // Blocking, as a server expects it.
                _ = fcntl(listener.raw, F_SETFL, 0)
                return
            } catch {
                Self.remove(folder)
                failure = error
            }
        }
        throw failure
    }

    deinit { Self.remove(folder) }

    private static func remove(_ folder: [UInt8]) {
        unlink((folder + name + [0]).map(CChar.init(bitPattern:)))
        rmdir((folder + [0]).map(CChar.init(bitPattern:)))
    }
}
