import CShims
import Glibc
import SystemCalls

/// What the kernel's log (/dev/kmsg) says, from the broker's start on, about processes that the kernel killed. Reading it
/// takes CAP_SYSLOG where kernel.dmesg_restrict is set. With an audit daemon the records of seccomp are in its log instead.
final class KernelLog {
    enum Finding: Equatable {
        /// Seccomp, for this system call of this architecture (AUDIT_ARCH).
        case systemCall(Int32, architecture: UInt32)
        case outOfMemory(inControlGroup: Bool)
    }

    /// What the kernel says of a process, by its number and its user. The number alone does not tell which process it was:
    /// anybody can make one that gets the number of a worker that has just died, and let the kernel kill it. A worker's uid
    /// is nobody else's.
    struct Record: Equatable {
        let pid: Int32
        let uid: UInt32
        let finding: Finding
    }

    /// Records that are kept: nobody asks for those of other programs.
    private static let most = 64
    /// Records read at once: more than the kernel's buffer holds.
    private static let mostReads = 20_000

    private let file: FileDescriptor
    /// The oldest first.
    private var records: [Record] = []

    /// The log that the unit hands over as standard input, so that the broker needs no right to open it; otherwise the
    /// host's. nil where it can't be read.
    static func ofHost() -> KernelLog? {
        var status = stat()
        let isLog =
            fstat(STDIN_FILENO, &status) == 0 && status.st_mode & S_IFMT == S_IFCHR
            && UInt64(status.st_rdev) == ubd_makedev(1, 11)
        if isLog, let file = try? takeStandardInput() { return KernelLog(file) }
        return KernelLog(path: "/dev/kmsg")
    }

    /// Under a number of its own, with /dev/null in its place: whoever is started inherits standard input.
    private static func takeStandardInput() throws(SystemError) -> FileDescriptor {
        let file = FileDescriptor(owning: try call("dup") { fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3) })
        try file.setNonBlocking()
        let null = try FileDescriptor.open("/dev/null", O_RDONLY)
        try call("dup2") { dup2(null.raw, STDIN_FILENO) }
        return file
    }

    convenience init?(path: String) {
        guard let file = try? FileDescriptor.open(path, O_RDONLY | O_NONBLOCK) else { return nil }
        self.init(file)
    }

    /// From its present end on.
    private init(_ file: consuming FileDescriptor) {
        lseek(file.raw, 0, Int32(SEEK_END))
        self.file = file
    }

    /// Why the kernel killed the process of that user; nil when it did not, or has not said so yet. Told once.
    func finding(for pid: Int32, uid: UInt32) -> Finding? {
        readNews()
        let isTheirs = { (record: Record) in record.pid == pid && record.uid == uid }
        let finding = records.last(where: isTheirs)?.finding
        records.removeAll(where: isTheirs)
        return finding
    }

    /// Each read gives one record: "6,339,5140900,-;text", then lines of properties.
    private func readNews() {
        var buffer = [UInt8](repeating: 0, count: 8192)
        for _ in 0..<KernelLog.mostReads {
            let count = buffer.withUnsafeMutableBytes { Glibc.read(file.raw, $0.baseAddress, $0.count) }
            // EPIPE: records were overwritten before we came; the next read goes on with the oldest that is left.
            if count < 0, errno == EPIPE || errno == EINTR { continue }
            guard count > 0 else { return }
            for line in buffer[..<count].split(separator: UInt8(ascii: "\n")) {
                guard let found = KernelLog.parse(String(decoding: line, as: UTF8.self)) else { continue }
                records.append(found)
                if records.count > KernelLog.most { records.removeFirst() }
            }
        }
    }

    static func parse(_ line: String) -> Record? {
        guard let semicolon = line.utf8.firstIndex(of: UInt8(ascii: ";")) else { return nil }
        let text = line[line.index(after: semicolon)...]
        if text.hasPrefix("audit: type=1326 ") { return seccomp(text) }
        // mm/oom_kill.c, __oom_kill_process: "… Killed process 8 (NAME) total-vm:…, UID:1000 pgtables:…". The process chose
        // its name, which may have a UID in it; the kernel's comes behind.
        for (start, inControlGroup) in [
            ("Out of memory: Killed process ", false), ("Memory cgroup out of memory: Killed process ", true),
        ] where text.hasPrefix(start) {
            let digits = text.dropFirst(start.count).prefix { $0.isASCII && $0.isNumber }
            let words = text.split(separator: " ")
            guard let pid = Int32(digits), let word = words.last(where: { $0.hasPrefix("UID:") }),
                let uid = UInt32(word.dropFirst("UID:".count))
            else { return nil }
            return Record(pid: pid, uid: uid, finding: .outOfMemory(inControlGroup: inControlGroup))
        }
        return nil
    }

    /// kernel/auditsc.c, audit_seccomp: "… uid=1000 … pid=8 comm="ubd-q0" … sig=31 arch=c000003e syscall=62 …". The process
    /// chose its name, but the kernel writes one with a blank or a quote in it as hexadecimal digits.
    private static func seccomp(_ text: Substring) -> Record? {
        var values: [Substring: Substring] = [:]
        for word in text.split(separator: " ") {
            guard let equals = word.firstIndex(of: "=") else { continue }
            let key = word[..<equals]
            if values[key] == nil { values[key] = word[word.index(after: equals)...] }
        }
        // sig=0: an action that only logs.
        guard values["sig"] == "31", let pid = values["pid"].flatMap({ Int32($0) }),
            let uid = values["uid"].flatMap({ UInt32($0) }), let number = values["syscall"].flatMap({ Int32($0) }),
            let architecture = values["arch"].flatMap({ UInt32($0, radix: 16) })
        else { return nil }
        return Record(pid: pid, uid: uid, finding: .systemCall(number, architecture: architecture))
    }
}
