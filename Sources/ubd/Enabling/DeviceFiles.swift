import Glibc
import SystemCalls

/// The files of the caller's devices that come back.
struct DeviceFiles {
    let manager: ServiceManager

    /// The names of all devices that have a file, in order; those that cannot be a unit's name too, which `problem` tells.
    func names() throws(CommandFailure) -> [String] {
        let names: [String]
        do { names = try namesInFolder(manager.folder) } catch {
            if error.errno == ENOENT { return [] }
            throw CommandFailure(error, remedy: "read it as its owner")
        }
        return names.filter { $0.hasSuffix(".conf") && !$0.hasPrefix(".") }.map { String($0.dropLast(5)) }.sorted()
    }

    func exists(_ name: String) -> Bool { access(manager.file(name).systemPath, F_OK) == 0 }

    func read(_ name: String) throws(CommandFailure) -> DeviceDescription {
        let path = manager.file(name)
        do throws(SystemError) {
            let file = try FileDescriptor.open(bytes: path.systemPath, name: path, O_RDONLY | O_NOCTTY | O_NONBLOCK)
            return DeviceDescription(file: String(decoding: try file.readAll(limit: 1 << 20), as: UTF8.self))
        } catch {
            throw CommandFailure(
                .failed, "BadFile", "\(path): \(SystemError.message(error.errno))",
                remedy: error.errno == ENOENT ? "'ubd list --enabled' shows which there are" : "read it as its owner")
        }
    }

    /// Writes a new file: all of it or nothing, also when the host dies meanwhile. A user's is for her alone, since it tells of
    /// her files and servers; root's is as readable as the rest of /etc.
    func create(_ name: String, _ text: String) throws(CommandFailure) {
        let path = manager.file(name)
        guard !exists(name) else { throw isThere(name) }
        do throws(SystemError) {
            try makeFolders()
            let temporary = "\(manager.folder)/.\(name).conf.\(getpid())"
            unlink(temporary.systemPath)
            defer { unlink(temporary.systemPath) }
            try write(temporary, text)
            // Not rename(2): that would replace a file which somebody has made since.
            try SystemCalls.call("create \(path)") { link(temporary.systemPath, path.systemPath) }
            try sync(manager.folder)
        } catch {
            if error.errno == EEXIST { throw isThere(name) }
            throw CommandFailure(
                .failed, "NotWritten", "\(path): \(SystemError.message(error.errno))",
                remedy: "make room or get the right to write there; no device was enabled")
        }
    }

    func remove(_ name: String) { unlink(manager.file(name).systemPath) }

    func isThere(_ name: String) -> CommandFailure {
        CommandFailure(
            .usage, "NameInUse", "\(manager.file(name)) is there already",
            remedy: "give another name, or remove that file first")
    }

    private func write(_ path: String, _ text: String) throws(SystemError) {
        let mode: mode_t = manager.isSystem ? 0o644 : 0o600
        let number = try SystemCalls.call("open \(path)") {
            open(path.systemPath, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode)
        }
        let file = FileDescriptor(owning: number)
        // The umask may have taken rights away that others need.
        try SystemCalls.call("chmod \(path)") { fchmod(file.raw, mode) }
        try file.writeAll(Array(text.utf8))
        try SystemCalls.call("fsync \(path)") { fsync(file.raw) }
    }

    private func sync(_ folder: String) throws(SystemError) {
        let file = try FileDescriptor.open(bytes: folder.systemPath, name: folder, O_RDONLY | O_DIRECTORY)
        try SystemCalls.call("fsync \(folder)") { fsync(file.raw) }
    }

    /// The folder and all above it. Those of a user are for her alone (XDG Base Directory Specification).
    private func makeFolders() throws(SystemError) {
        var path = ""
        for part in manager.folder.split(separator: "/") {
            path += "/" + part
            if mkdir(path.systemPath, manager.isSystem ? 0o755 : 0o700) != 0, errno != EEXIST {
                let error = errno
                // One above may be of a kind that says something else, as read-only file systems do.
                if access(path.systemPath, F_OK) != 0 { throw SystemError("mkdir \(path)", error) }
            }
        }
    }
}
