import Glibc
import SystemCalls

/// Lines on stderr, without ever waiting for whoever reads them. O_NONBLOCK is a property of the open file, which is shared
/// with others (a shell, a service manager), so it is never set on an inherited one.
final class LogOutput {
    private enum Way {
        /// send(2) has a flag for it.
        case socket
        /// A pipe or a terminal, opened once more: that open file is ours, O_NONBLOCK and all.
        case reopened
        /// One that can't be opened again: asked for room before each write. A pipe that has any takes PIPE_BUF bytes (pipe(7)),
        /// unless another writer takes the room in between.
        case polled
        /// A regular file waits for its disk, which root chose, and for no reader.
        case file
    }

    /// A line has at most so many bytes, its end included: what a pipe takes as a whole.
    static let longestLine = 4096

    private let inherited: Int32
    private var own: FileDescriptor?
    private let way: Way
    /// The end of a line that went only in part: it comes before the next one.
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

    /// False when the line could not be written.
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

    /// How many bytes went; -1 when none could.
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
