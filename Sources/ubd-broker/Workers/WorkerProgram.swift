import Glibc
import SystemCalls

/// A program for workers. It is opened and checked once and kept open, so that workers of this very file can be started
/// even after its name is gone or names another file.
final class WorkerProgram {
    /// Identifies a file and its content.
    struct Identity: Equatable {
        let device: UInt64
        let inode: UInt64
        let bytes: Int64
        /// Time of the last modification, in nanoseconds since 1970.
        let changed: Int64

        init(_ status: stat) {
            device = UInt64(status.st_dev)
            inode = UInt64(status.st_ino)
            bytes = Int64(status.st_size)
            changed = Int64(status.st_mtim.tv_sec) &* 1_000_000_000 &+ Int64(status.st_mtim.tv_nsec)
        }

        /// The file that has this name now; nil when there is none.
        init?(of path: String) {
            var status = stat()
            guard stat(path, &status) == 0 else { return nil }
            self.init(status)
        }
    }

    let file: FileDescriptor
    let identity: Identity
    /// The version that its workers report; nil until one has.
    var version: String?

    init(_ file: consuming FileDescriptor, _ status: stat) {
        identity = Identity(status)
        self.file = file
    }

    /// Opens a program by its path. It must belong to root, be writable by nobody else, and be executable by all.
    convenience init(path: String) throws(TrustedFile.Distrust) {
        let file = try TrustedFile.open(path)
        guard let status = try? file.status(), status.st_mode & 0o111 == 0o111 else {
            throw TrustedFile.Distrust(description: "\(path): not executable for all; chmod 0711 \(path)")
        }
        self.init(file, status)
    }

    /// The program that a worker runs, whose file may have lost its name. The caller has verified that it is a worker
    /// and holds its pidfd; a sealed worker cannot execute another program.
    convenience init?(of worker: any Worker) {
        guard let file = try? FileDescriptor.open("/proc/\(worker.pid)/exe", O_RDONLY | O_NONBLOCK),
            let status = try? file.status(), TrustedFile.problem(status) == nil, worker.isAlive
        else { return nil }
        self.init(file, status)
    }
}
