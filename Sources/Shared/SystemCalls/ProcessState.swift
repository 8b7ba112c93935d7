import Glibc

/// The state in /proc of a process or thread that may hang (proc_pid_stat(5), proc_pid_status(5)). Reading it never
/// blocks: these files need none of the locks that a waiting process holds.
public struct ProcessState: Equatable, Sendable {
    public let name: String
    /// R runs, S sleeps, D waits in the kernel and ignores signals, T is stopped, Z is dead and not yet reaped.
    public let letter: Character
    /// It is exiting (PF_EXITING).
    public let isExiting: Bool
    /// An io_uring helper thread (PF_IO_WORKER), which runs only kernel code.
    public let isKernelHelper: Bool
    /// SIGKILL is pending.
    public let hasPendingKill: Bool
    /// Its start, in clock ticks since boot.
    public let startTime: UInt64

    /// It will never run its program again (docs/kernel-facts.md#pending-kill).
    public var isPast: Bool { isExiting || hasPendingKill || letter == "Z" }

    /// `stat`, `status`: the contents of the two files; nil when they are malformed.
    public init?(stat: [UInt8], status: [UInt8]) {
        guard let stat = ProcessStat(stat), let letter = stat.letter, let flags = stat.flags,
            let startTime = stat.startTime
        else { return nil }
        name = stat.name
        self.letter = letter
        isExiting = flags & 0x4 != 0
        isKernelHelper = flags & 0x10 != 0
        self.startTime = startTime
        let pending = String(decoding: status, as: UTF8.self).split(separator: "\n").compactMap { line -> UInt64? in
            guard line.hasPrefix("SigPnd:") || line.hasPrefix("ShdPnd:") else { return nil }
            return line.split(whereSeparator: \.isWhitespace).last.flatMap { UInt64($0, radix: 16) }
        }
        hasPendingKill = pending.contains { $0 & 1 << UInt64(SIGKILL - 1) != 0 }
    }

    /// `task`: a process, "17", or a thread, "17/task/18".
    public init?(of task: String) {
        guard let stat = try? readFile("/proc/\(task)/stat"), let status = try? readFile("/proc/\(task)/status") else {
            return nil
        }
        self.init(stat: stat, status: status)
    }

    /// The kernel function in which a task waits; nil when the kernel does not tell.
    public static func place(of task: String) -> String? {
        guard let bytes = try? readFile("/proc/\(task)/wchan") else { return nil }
        let text = String(decoding: bytes.filter { $0 > 0x20 && $0 < 0x7F }, as: UTF8.self)
        return text.isEmpty || text == "0" ? nil : text
    }

    /// For messages: "waits in the kernel, where no signal wakes it (state D, in request_wait_answer); it was killed
    /// and has not ended yet".
    public func words(place: String? = nil) -> String {
        let what =
            switch letter {
            case "D": "waits in the kernel, where no signal wakes it"
            case "T", "t": "is stopped"
            case "Z", "X": "is dead and not reaped"
            default: "runs"
            }
        let state = "\(what) (state \(letter)\(place.map { ", in \($0)" } ?? ""))"
        return isPast && letter != "Z" ? state + "; it was killed and has not ended yet" : state
    }
}

/// Whether every thread of a process is past (`ProcessState.isPast`): its program never runs again, even if the kernel
/// still works for it. False when this is unknown.
public func isProcessPast(_ pid: Int32) -> Bool {
    guard let leader = ProcessState(of: "\(pid)"), leader.isPast,
        let tasks = try? namesInFolder("/proc/\(pid)/task"), !tasks.isEmpty
    else { return false }
    return tasks.allSatisfy { task in
        guard let state = ProcessState(of: "\(pid)/task/\(task)") else {
            // It ended between listing and reading.
            return access("/proc/\(pid)/task/\(task)", F_OK) != 0 && errno == ENOENT
        }
        return state.isPast || state.isKernelHelper
    }
}

/// A lock of fcntl(2) that another process holds on a range of bytes.
public struct HeldLock: Equatable, Sendable {
    /// 0 when the process is in another pid namespace.
    public let pid: Int32
    public let first: Int64
    /// 0 means: to the end of the file.
    public let count: Int64
}

/// The locks that other processes hold on a file, in order of their offsets.
public func locks(on file: borrowing FileDescriptor) throws(SystemError) -> [HeldLock] {
    var found: [HeldLock] = []
    var start: Int64 = 0
    while true {
        var lock = flock()
        lock.l_type = Int16(F_WRLCK)
        lock.l_whence = Int16(SEEK_SET)
        lock.l_start = off_t(start)
        let raw = file.raw
        try call("look for a lock") { fcntl(raw, F_GETLK, &lock) }
        if lock.l_type == Int16(F_UNLCK) { return found }
        found.append(HeldLock(pid: lock.l_pid, first: Int64(lock.l_start), count: Int64(lock.l_len)))
        if lock.l_len == 0 { return found }
        start = Int64(lock.l_start) + Int64(lock.l_len)
    }
}

/// Locks one byte by fcntl(2) until the process ends. Returns false when another process holds the lock.
public func lockByte(_ byte: Int64, of file: borrowing FileDescriptor) throws(SystemError) -> Bool {
    try setLock(Int16(F_WRLCK), byte, file)
}

/// Releases the lock of `lockByte`.
public func unlockByte(_ byte: Int64, of file: borrowing FileDescriptor) {
    _ = try? setLock(Int16(F_UNLCK), byte, file)
}

private func setLock(_ type: Int16, _ byte: Int64, _ file: borrowing FileDescriptor) throws(SystemError) -> Bool {
    var lock = flock()
    lock.l_type = type
    lock.l_whence = Int16(SEEK_SET)
    lock.l_start = off_t(byte)
    lock.l_len = 1
    let raw = file.raw
    do throws(SystemError) { try call("lock") { fcntl(raw, F_SETLK, &lock) } } catch {
        if error.errno == EAGAIN || error.errno == EACCES { return false }
        throw error
    }
    return true
}
