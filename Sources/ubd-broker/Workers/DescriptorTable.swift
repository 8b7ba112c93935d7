import Glibc
import SystemCalls
import WorkerProtocol

/// The descriptors that a worker must have (`WorkerDescriptor`), compared with /proc/PID/fd while the worker is
/// stopped.
///
/// The broker reads only the links: readlink(2) and lstat(2) of /proc/PID/fd/N neither open nor access the file, whose
/// file system's server may not answer. The kernel takes the link's text from its own tables, and its permission bits
/// from the file's open mode (proc_pid_fd(5)). The broker does not read fdinfo, which lists a file's locks: a client
/// can make millions of them.
///
/// The text of a path is whatever a user named a file. So sockets are compared by their inodes, which nobody can
/// choose. A client's file in the place of /dev/zero would give a worker nothing that it does not have anyway.
struct DescriptorTable {
    /// The device's number.
    let number: UInt32
    /// How many of the client's files it may have.
    let files: ClosedRange<Int>
    /// They are connections, not files.
    var areSockets = false
    /// Inodes of the sockets; nil when an earlier broker did not record them.
    var workerEnd: UInt64?
    var parking: UInt64?
    var brokerEnd: UInt64?

    /// A descriptor, according to its link.
    struct Entry: Equatable {
        /// nil when the text is too long for the kernel to return, which happens only for a path.
        var link: String?
        var isReadable: Bool
        var isWritable: Bool
    }

    /// nil when all are as required; otherwise what is wrong.
    func problem(inProcess pid: Int32) -> String? {
        let folder = "/proc/\(pid)/fd"
        var found: [Int32: Entry] = [:]
        for name in listFolder(folder) {
            var status = stat()
            guard let number = Int32(name), lstat("\(folder)/\(name)", &status) == 0 else {
                return "descriptor \(name) can't be looked at"
            }
            errno = 0
            let link = linkTarget("\(folder)/\(name)")
            // Unlike a path that is too long, this error says nothing about the descriptor, so the check must fail.
            if link == nil, errno != 0, errno != ENAMETOOLONG {
                return
                    "the broker may not look at its descriptors (\(SystemError.message(errno))): it needs CAP_SYS_PTRACE, and "
                    + "no security module that forbids it"
            }
            found[number] = Entry(
                link: link, isReadable: status.st_mode & S_IRUSR != 0,
                isWritable: status.st_mode & S_IWUSR != 0)
        }
        return found.isEmpty ? "its descriptors can't be read" : problem(in: found)
    }

    func problem(in found: [Int32: Entry]) -> String? {
        let fixed: [(number: Int32, isRight: (Entry) -> Bool, what: String)] = [
            (WorkerDescriptor.zeroes, { isDevice($0, "zero") && !$0.isWritable }, "/dev/zero"),
            (1, { isDevice($0, "null") }, "/dev/null"),
            (2, { isDevice($0, "null") }, "/dev/null"),
            (WorkerDescriptor.control, { isSocket($0, workerEnd) }, "its control socket"),
            (WorkerDescriptor.device, { isDevice($0, "ublkc\(number)") }, "/dev/ublkc\(number)"),
            (WorkerDescriptor.parking, { isSocket($0, parking) }, "the parking socket"),
            (WorkerDescriptor.brokerEnd, { isSocket($0, brokerEnd) }, "the broker's end"),
            (
                WorkerDescriptor.statistics, { $0.link == "/memfd:ubd-statistics (deleted)" && $0.isReadable },
                "the statistics page"
            ),
        ]
        for (number, isRight, what) in fixed {
            guard let entry = found[number] else { return "descriptor \(number) is missing" }
            if !isRight(entry) { return "descriptor \(number) is not \(what)" }
        }
        let others = found.keys.filter { $0 < 0 || $0 >= Int32(fixed.count) }.sorted()
        guard files.contains(others.count) else {
            return "\(others.count) descriptors from \(WorkerDescriptor.firstFile) on instead of "
                + "\(files.lowerBound) to \(files.upperBound)"
        }
        for (index, number) in others.enumerated() {
            guard number == WorkerDescriptor.firstFile + Int32(index), let entry = found[number], entry.isReadable,
                areSockets ? isConnection(entry) : entry.link.map(isPath) ?? true
            else { return "descriptor \(number) is no \(areSockets ? "socket" : "file") of its client" }
        }
        return nil
    }

    /// A socket other than the broker's. Which socket the client sent only the worker knows.
    private func isConnection(_ entry: Entry) -> Bool {
        isSocket(entry, nil) && entry.isWritable
            && ![workerEnd, parking, brokerEnd].contains { inode in inode.map { isSocket(entry, $0) } ?? false }
    }

    /// Files without a path have another text: "socket:[7]", "anon_inode:[io_uring]".
    private func isPath(_ link: String) -> Bool { link.utf8.first == UInt8(ascii: "/") }

    /// Compares only the last part: the folder depends on how the host or container mounts /dev. A node that is mounted
    /// by itself, as in some containers, has the path "/".
    private func isDevice(_ entry: Entry, _ name: String) -> Bool {
        entry.isReadable && (entry.link == "/" || entry.link?.hasSuffix("/" + name) == true)
    }

    private func isSocket(_ entry: Entry, _ inode: UInt64?) -> Bool {
        guard let link = entry.link else { return false }
        return inode.map { link == "socket:[\($0)]" } ?? link.hasPrefix("socket:[")
    }
}
