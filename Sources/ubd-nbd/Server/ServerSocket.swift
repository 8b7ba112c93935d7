import Glibc
import SystemCalls

/// The listening socket of a server that ubd starts, in a folder that only the user can enter. Both go with this.
struct ServerSocket: ~Copyable {
    let listener: FileDescriptor
    /// Bytes without a NUL.
    private let folder: [UInt8]
    private static let name = Array("/socket".utf8)

    var path: [UInt8] { folder + Self.name }

    /// In the first of these places that has room.
    init(in places: [String]) throws(SystemError) {
        var failure = SystemError("make a folder", ENOENT)
        for place in places {
            var template = Array("\(place)/ubd-nbd.XXXXXX".utf8CString)
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

    /// Where the folder can be, the best place first.
    static var usualPlaces: [String] {
        let named = ["XDG_RUNTIME_DIR", "TMPDIR"].compactMap { (name: String) in
            getenv(name).flatMap { safePlace(String(cString: $0)) }
        }
        return named.filter { (path: String) in access(path, W_OK) == 0 } + ["/tmp"]
    }

    /// The folder of that name without symbolic links, where nobody but this user and root can rename or remove what this user puts
    /// there; nil: somebody can. `su` and `sudo` may leave another user's XDG_RUNTIME_DIR in the environment: that user could put
    /// another server in the place of this one. With a link of that user's in its name, the link could lead elsewhere a moment later.
    static func safePlace(_ path: String) -> String? {
        guard path.hasPrefix("/"), let found = realpath(path, nil) else { return nil }
        defer { free(found) }
        let whole = String(cString: found)
        var place = whole
        while true {
            var status = stat()
            guard lstat(place, &status) == 0, status.st_uid == geteuid() || status.st_uid == 0 else { return nil }
            let isShared = status.st_mode & (S_IWGRP | S_IWOTH) != 0 && status.st_mode & S_ISVTX == 0
            if isShared { return nil }
            if place == "/" { return whole }
            place = String(place[..<(place.lastIndex(of: "/") ?? place.startIndex)])
            if place.isEmpty { place = "/" }
        }
    }
}
