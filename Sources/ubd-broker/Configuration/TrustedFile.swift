import Glibc
import SystemCalls

/// Reads files that control what root does; only root may be able to write them.
enum TrustedFile {
    /// Why a file is not trusted, in one line with the remedy.
    struct Distrust: Error, Equatable, CustomStringConvertible {
        let description: String
    }

    /// Opens a regular file that belongs to root and that nobody else can write or replace: all folders on its path are
    /// writable only by root (TrustedFolder). The last part of the path must not be a symbolic link.
    static func open(_ path: String) throws(Distrust) -> FileDescriptor {
        let folder = try TrustedFolder(of: path)
        let file: FileDescriptor
        let status: stat
        do throws(SystemError) {
            let flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC
            file = FileDescriptor(owning: try call("open \(path)") { openat(folder.raw, folder.name, flags) })
        } catch { throw unreadable(path, error) }
        do throws(SystemError) { status = try file.status() } catch { throw unreadable(path, error) }
        if let problem = problem(status) {
            throw Distrust(description: "\(path): \(problem.what); \(problem.remedy) \(path)")
        }
        return file
    }

    /// Reads such a file.
    static func read(_ path: String, limit: Int = 64 * 1024) throws(Distrust) -> [UInt8] {
        let file = try open(path)
        do throws(SystemError) { return try file.readAll(limit: limit) } catch { throw unreadable(path, error) }
    }

    static func unreadable(_ path: String, _ error: SystemError) -> Distrust {
        Distrust(description: "\(path): \(SystemError.message(error.errno)); reinstall it, or name another")
    }

    /// Why a file with this status is not trusted, and the remedy; nil when it is.
    static func problem(_ status: stat) -> (what: String, remedy: String)? {
        if status.st_mode & S_IFMT != S_IFREG { return ("not a regular file", "put one there:") }
        return ownership(status)
    }

    /// The checks that also apply to folders.
    static func ownership(_ status: stat) -> (what: String, remedy: String)? {
        if status.st_uid != 0 { return ("belongs to uid \(status.st_uid)", "chown root") }
        if status.st_mode & 0o022 != 0 {
            let mode = String(status.st_mode & 0o7777, radix: 8)
            return ("others can write it (mode \(mode))", "chmod go-w")
        }
        return nil
    }
}
