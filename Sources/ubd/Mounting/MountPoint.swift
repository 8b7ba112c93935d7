import Glibc
import SystemCalls

/// The directory of a mount.
enum MountPoint {
    /// The absolute path without symbolic links, byte by byte; nil with errno set.
    static func resolved(_ path: String) -> [UInt8]? { resolved(path.systemPath) }

    private static func resolved(_ path: [CChar]) -> [UInt8]? {
        guard let result = realpath(path, nil) else { return nil }
        defer { free(result) }
        return Array(UnsafeRawBufferPointer(start: result, count: strlen(result)))
    }

    /// The path under which `path` can be in the mount table: without looking into what is mounted there, as its server may be
    /// dead; then with a last component that is a symbolic link.
    static func mounted(_ path: String) throws(SystemError) -> (path: [UInt8], mount: MountedPlace?)? {
        var bytes = path.systemPath.dropLast().map(UInt8.init(bitPattern:))
        while bytes.count > 1, bytes.last == UInt8(ascii: "/") { bytes.removeLast() }
        let slash = bytes.lastIndex(of: UInt8(ascii: "/"))
        let last = Array(bytes[(slash.map { $0 + 1 } ?? 0)...])
        let folder = slash.map { $0 == 0 ? [UInt8(ascii: "/")] : Array(bytes[..<$0]) } ?? [UInt8(ascii: ".")]
        if !last.isEmpty, last != Array(".".utf8), last != Array("..".utf8),
            let parent = resolved(folder.map(CChar.init(bitPattern:)) + [0])
        {
            let place = (parent == [UInt8(ascii: "/")] ? [] : parent) + [UInt8(ascii: "/")] + last
            if let mount = try MountedPlace.at(place) { return (place, mount) }
        }
        guard let place = resolved(path) else { return nil }
        return (place, try MountedPlace.at(place))
    }

    /// Refuses a directory on which the user's FUSE server could not mount, or whose content a mount would hide.
    static func check(_ path: String) throws(CommandFailure) -> [UInt8] {
        guard let place = resolved(path) else {
            let number = errno
            throw CommandFailure(
                .usage, "BadDirectory", "\(path): \(SystemError.message(number))",
                remedy: number == ENOENT
                    ? "make it first with 'mkdir'"
                    : number == ENOTCONN
                        ? "a server has died there: 'ubd umount' takes its mount away" : "give a directory of yours")
        }
        let name = place.map(CChar.init(bitPattern:)) + [0]
        let mount: MountedPlace?
        do { mount = try MountedPlace.at(place) } catch {
            throw MountedPlace.unread(error)
        }
        if let mount {
            throw CommandFailure(
                .busy, "BadDirectory", "\(mount.source) is mounted on \(path) already",
                remedy: "give another directory" + (mount.type.hasPrefix("fuse") ? ", or 'ubd umount' that first" : ""))
        }
        var status = stat()
        guard stat(name, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
            throw CommandFailure(
                .usage, "BadDirectory", "\(path) is not a directory", remedy: "give an empty directory of yours")
        }
        // fusermount3 refuses the others: it asks for the right to write, and in a sticky directory for the owner.
        let isSticky = status.st_mode & S_ISVTX != 0
        guard geteuid() == 0 || !isSticky || status.st_uid == geteuid(), access(name, W_OK | X_OK) == 0 else {
            throw CommandFailure(
                .notPermitted, "BadDirectory", "\(path) is not yours to mount on",
                remedy: "give an empty directory that you may write")
        }
        do {
            guard try hasEntry(name) else { return place }
        } catch {
            throw CommandFailure(
                .notPermitted, "BadDirectory", "\(path) cannot be read: \(SystemError.message(error.errno))",
                remedy: "give an empty directory of yours")
        }
        throw CommandFailure(
            .usage, "BadDirectory", "\(path) is not empty, and a mount would hide what is in it",
            remedy: "give an empty directory, as 'mkdir' makes it")
    }

    /// Whether the directory has an entry.
    private static func hasEntry(_ path: [CChar]) throws(SystemError) -> Bool {
        guard let folder = opendir(path) else { throw SystemError("opendir", errno) }
        defer { closedir(folder) }
        while let entry = readdir(folder) {
            let isOther = withUnsafePointer(to: &entry.pointee.d_name) { name in
                name.withMemoryRebound(to: CChar.self, capacity: 256) { strcmp($0, ".") != 0 && strcmp($0, "..") != 0 }
            }
            if isOther { return true }
        }
        return false
    }
}
