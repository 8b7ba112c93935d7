import CShims
import Glibc
import SystemCalls

/// The kernel's log (/dev/kmsg) about killed processes, from the broker's start on. Reading it needs CAP_SYSLOG when
/// kernel.dmesg_restrict is set. When an audit daemon runs, seccomp's records are in its log instead.
final class KernelLog {
    enum Finding: Equatable {
        /// Killed by seccomp for this system call and architecture (AUDIT_ARCH).
        case systemCall(Int32, architecture: UInt32)
        case outOfMemory(inControlGroup: Bool)
    }

    /// A record about a process, by pid and uid. The pid alone does not identify the process: anybody can create one
    /// that gets the pid of a dead worker and provoke the kernel to kill it. Nobody else has a worker's uid.
    struct Record: Equatable {
        let pid: Int32
        let uid: UInt32
        let finding: Finding
    }

    /// The number of records to keep; those of other programs are never asked for.
    private static let most = 64
    /// The maximum number of records per call, more than the kernel's buffer holds.
    private static let mostReads = 20_000

    private let file: FileDescriptor
    /// Oldest first.
    private var records: [Record] = []

    /// The log that the unit passes as standard input, so that the broker needs no permission to open it; otherwise the
    /// host's. nil when it cannot be read.
    static func ofHost() -> KernelLog? {
        var status = stat()
        let isLog =
            fstat(STDIN_FILENO, &status) == 0 && status.st_mode & S_IFMT == S_IFCHR
            && UInt64(status.st_rdev) == ubd_makedev(1, 11)
        if isLog, let file = try? takeStandardInput() { return KernelLog(file) }
        return KernelLog(path: "/dev/kmsg")
    }

    /// Moves standard input to another descriptor and replaces it by /dev/null, since children inherit standard input.
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

    /// Starts at the log's present end.
    private init(_ file: consuming FileDescriptor) {
        lseek(file.raw, 0, Int32(SEEK_END))
        self.file = file
    }

    /// Why the kernel killed this process; nil when it did not, or has not logged it yet. Returns each record once.
    func finding(for pid: Int32, uid: UInt32) -> Finding? {
        readNews()
        let isTheirs = { (record: Record) in record.pid == pid && record.uid == uid }
        let finding = records.last(where: isTheirs)?.finding
        records.removeAll(where: isTheirs)
        return finding
    }

    /// Each read returns one record: "6,339,5140900,-;text", then lines of properties.
    private func readNews() {
        var buffer = [UInt8](repeating: 0, count: 8192)
        for _ in 0..<KernelLog.mostReads {
            let count = buffer.withUnsafeMutableBytes { Glibc.read(file.raw, $0.baseAddress, $0.count) }
            // EPIPE: records were overwritten; the next read continues with the oldest one left.
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
        // __oom_kill_process in mm/oom_kill.c: "… Killed process 8 (NAME) total-vm:…, UID:1000 pgtables:…". The process
        // chose NAME, which may contain a UID; the kernel's UID comes after it.
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

    /// audit_seccomp in kernel/auditsc.c: "… uid=1000 … pid=8 comm="ubd-q0" … sig=31 arch=c000003e syscall=62 …". The
    /// process chose its name, but the kernel encodes a name with a blank or quote in hexadecimal.
    private static func seccomp(_ text: Substring) -> Record? {
        var values: [Substring: Substring] = [:]
        for word in text.split(separator: " ") {
            guard let equals = word.firstIndex(of: "=") else { continue }
            let key = word[..<equals]
            if values[key] == nil { values[key] = word[word.index(after: equals)...] }
        }
        // sig=0 marks an action that only logs.
        guard values["sig"] == "31", let pid = values["pid"].flatMap({ Int32($0) }),
            let uid = values["uid"].flatMap({ UInt32($0) }), let number = values["syscall"].flatMap({ Int32($0) }),
            let architecture = values["arch"].flatMap({ UInt32($0, radix: 16) })
        else { return nil }
        return Record(pid: pid, uid: uid, finding: .systemCall(number, architecture: architecture))
    }
}
