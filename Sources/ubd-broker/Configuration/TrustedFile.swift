import Glibc
import SystemCalls

/// Files that decide what root does: only root may have written them.
enum TrustedFile {
    /// Why a file is not trusted, in one line with the remedy.
    struct Distrust: Error, Equatable, CustomStringConvertible {
        let description: String
    }

    /// Opens a regular file that belongs to root and that nobody else can write. The last part of the path must be no
    /// symbolic link.
    static func open(_ path: String) throws(Distrust) -> FileDescriptor {
        let file: FileDescriptor
        let status: stat
        do throws(SystemError) {
            file = try FileDescriptor.open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
        } catch { throw unreadable(path, error) }
        do throws(SystemError) { status = try file.status() } catch { throw unreadable(path, error) }
        try check(status, path)
        return file
    }

    /// The bytes of such a file.
    static func read(_ path: String, limit: Int = 64 * 1024) throws(Distrust) -> [UInt8] {
        let file = try open(path)
        do throws(SystemError) { return try file.readAll(limit: limit) } catch { throw unreadable(path, error) }
    }

    private static func unreadable(_ path: String, _ error: SystemError) -> Distrust {
        Distrust(description: "\(path): \(SystemError.message(error.errno)); reinstall it, or name another")
    }

    private static func check(_ status: stat, _ path: String) throws(Distrust) {
        guard status.st_mode & S_IFMT == S_IFREG else {
            throw Distrust(description: "\(path): not a regular file; put one there")
        }
        guard status.st_uid == 0 else {
            throw Distrust(description: "\(path): belongs to uid \(status.st_uid); chown root \(path)")
        }
        guard status.st_mode & 0o022 == 0 else {
            let mode = String(status.st_mode & 0o7777, radix: 8)
            throw Distrust(description: "\(path): others can write it (mode \(mode)); chmod go-w \(path)")
        }
    }
}
