import Glibc
import SystemCalls

/// A program for workers: opened and checked once, and kept open, so that a worker of this very file can be started for
/// as long as it is needed, whatever has become of its name since.
final class WorkerProgram {
    /// Which file it is, and which state of it.
    struct Identity: Equatable {
        let device: UInt64
        let inode: UInt64
        let bytes: Int64
        /// Nanoseconds since 1970 of its last change.
        let changed: Int64

        init(_ status: stat) {
            device = UInt64(status.st_dev)
            inode = UInt64(status.st_ino)
            bytes = Int64(status.st_size)
            changed = Int64(status.st_mtim.tv_sec) &* 1_000_000_000 &+ Int64(status.st_mtim.tv_nsec)
        }

        /// Of what has that name now; nil when nothing has.
        init?(of path: String) {
            var status = stat()
            guard stat(path, &status) == 0 else { return nil }
            self.init(status)
        }
    }

    let file: FileDescriptor
    let identity: Identity
    /// As a worker of it said; nil until one has.
    var version: String?

    init(_ file: consuming FileDescriptor, _ status: stat) {
        identity = Identity(status)
        self.file = file
    }

    /// Opens the program of that name: root's, writable by nobody else, executable by all.
    convenience init(path: String) throws(TrustedFile.Distrust) {
        let file = try TrustedFile.open(path)
        guard let status = try? file.status(), status.st_mode & 0o111 == 0o111 else {
            throw TrustedFile.Distrust(description: "\(path): not executable for all; chmod 0711 \(path)")
        }
        self.init(file, status)
    }

    /// The program that a worker runs, whose file may have lost its name. The caller has checked that it is a worker, and
    /// holds its pidfd; a sealed worker can't execute another.
    convenience init?(of worker: any Worker) {
        guard let file = try? FileDescriptor.open("/proc/\(worker.pid)/exe", O_RDONLY | O_NONBLOCK),
            let status = try? file.status(), TrustedFile.problem(status) == nil, worker.isAlive
        else { return nil }
        self.init(file, status)
    }
}
