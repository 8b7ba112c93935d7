import Glibc
import SystemCalls

/// Writes lines to stderr without waiting for their reader. It never sets O_NONBLOCK on the inherited descriptor, since
/// its open file is shared with others (a shell, a service manager).
final class LogOutput {
    private enum Way {
        /// send(2) has a flag for it.
        case socket
        /// A pipe or terminal that was opened again, so that O_NONBLOCK affects only the broker.
        case reopened
        /// A pipe or terminal that cannot be opened again: polled before each write. A pipe that polls as writable
        /// takes PIPE_BUF bytes (pipe(7)), unless another writer is faster.
        case polled
        /// A regular file may wait for its disk, which root chose, but not for a reader.
        case file
    }

    /// The maximum length of a line with its newline: PIPE_BUF, which a pipe takes as a whole.
    static let longestLine = 4096

    private let inherited: Int32
    private var own: FileDescriptor?
    private let way: Way
    /// The rest of a line that was written in part; written before the next line.
    private var rest: [UInt8] = []

    init(_ fd: Int32) {
        inherited = fd
        var status = stat()
        guard fstat(fd, &status) == 0 else {
            way = .file
            return
        }
        switch status.st_mode & S_IFMT {
        case S_IFSOCK: way = .socket
        case S_IFIFO, S_IFCHR:
            own = LogOutput.reopen(fd, status)
            way = own == nil ? .polled : .reopened
        default: way = .file
        }
    }

    private static func reopen(_ fd: Int32, _ status: stat) -> FileDescriptor? {
        let flags = O_WRONLY | O_NONBLOCK | O_NOCTTY
        guard let file = try? FileDescriptor.open("/proc/self/fd/\(fd)", flags), let now = try? file.status(),
            now.st_dev == status.st_dev, now.st_ino == status.st_ino
        else { return nil }
        return file
    }

    /// Returns false when the line could not be written.
    func write(_ line: [UInt8]) -> Bool {
        if !rest.isEmpty {
            rest.removeFirst(max(push(rest), 0))
            if !rest.isEmpty { return false }
        }
        let line = line.count <= LogOutput.longestLine ? line : LogOutput.cut(line)
        let count = push(line)
        if count <= 0 { return false }
        rest = Array(line[count...])
        return true
    }

    private static func cut(_ line: [UInt8]) -> [UInt8] { line.prefix(longestLine - 4) + Array("...\n".utf8) }

    /// Returns the number of bytes written; -1 when none could be.
    private func push(_ bytes: [UInt8]) -> Int {
        switch way {
        case .socket: return send(inherited, bytes, bytes.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
        case .reopened: return Glibc.write(own?.raw ?? -1, bytes, bytes.count)
        case .polled:
            var room = pollfd(fd: inherited, events: Int16(POLLOUT), revents: 0)
            guard poll(&room, 1, 0) > 0, room.revents & Int16(POLLOUT) != 0 else { return -1 }
            return Glibc.write(inherited, bytes, bytes.count)
        case .file: return Glibc.write(inherited, bytes, bytes.count)
        }
    }
}
