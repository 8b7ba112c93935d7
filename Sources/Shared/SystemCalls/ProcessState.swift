import Glibc

/// What /proc tells of a process, or of one of its threads, that may hang (proc_pid_stat(5), proc_pid_status(5)). Reading
/// that waits for nothing: these files need none of the locks that a process holds while it waits.
public struct ProcessState: Equatable, Sendable {
    public let name: String
    /// R runs, S sleeps, D waits in the kernel and no signal wakes it, T is stopped, Z is dead and not yet reaped.
    public let letter: Character
    /// It is on its way out of the kernel (PF_EXITING).
    public let isExiting: Bool
    /// A helper thread that io_uring made (PF_IO_WORKER), which runs the kernel's code alone.
    public let isKernelHelper: Bool
    /// SIGKILL waits for it.
    public let hasPendingKill: Bool
    /// Clock ticks from boot to its start.
    public let startTime: UInt64

    /// It will never again run anything of its own program (docs/kernel-facts.md#pending-kill).
    public var isPast: Bool { isExiting || hasPendingKill || letter == "Z" }

    /// `stat`, `status`: the bytes of the two files; nil when they are not as they should be.
    public init?(stat: [UInt8], status: [UInt8]) {
        // The name is in brackets, and may have brackets in it.
        guard let open = stat.firstIndex(of: UInt8(ascii: "(")), let close = stat.lastIndex(of: UInt8(ascii: ")")),
            open < close
        else { return nil }
        let fields = String(decoding: stat[(close + 1)...], as: UTF8.self).split(separator: " ")
        // From field 3 on: state is the first, flags are field 9, the start field 22.
        guard fields.count > 19, let letter = fields[0].first, let flags = UInt64(fields[6]),
            let startTime = UInt64(fields[19])
        else { return nil }
        name = String(decoding: stat[(open + 1)..<close], as: UTF8.self)
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

    /// Of a process, "17", or of a thread, "17/task/18".
    public init?(of task: String) {
        guard let stat = try? readFile("/proc/\(task)/stat"), let status = try? readFile("/proc/\(task)/status") else {
            return nil
        }
        self.init(stat: stat, status: status)
    }

    /// In which function of the kernel a task waits, where that may be known.
    public static func place(of task: String) -> String? {
        guard let bytes = try? readFile("/proc/\(task)/wchan") else { return nil }
        let text = String(decoding: bytes.filter { $0 > 0x20 && $0 < 0x7F }, as: UTF8.self)
        return text.isEmpty || text == "0" ? nil : text
    }

    /// "waits in the kernel and can not be woken (state D, in request_wait_answer); SIGKILL is pending".
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

/// All threads of a process are past (`ProcessState.isPast`): nothing of its program runs any more, however long the kernel
/// still works for it. False when that can't be told.
public func isProcessPast(_ pid: Int32) -> Bool {
    guard let leader = ProcessState(of: "\(pid)"), leader.isPast,
        let tasks = try? namesInFolder("/proc/\(pid)/task"), !tasks.isEmpty
    else { return false }
    return tasks.allSatisfy { task in
        guard let state = ProcessState(of: "\(pid)/task/\(task)") else {
            // It ended between the two looks.
            return access("/proc/\(pid)/task/\(task)", F_OK) != 0 && errno == ENOENT
        }
        return state.isPast || state.isKernelHelper
    }
}

/// One lock of fcntl(2) that another process holds: on a byte, or on several.
public struct HeldLock: Equatable, Sendable {
    /// 0 when it is a process of another pid namespace.
    public let pid: Int32
    public let first: Int64
    /// 0: to the end of the file.
    public let count: Int64
}

/// The locks that other processes hold on a file, in their order.
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

/// Takes a lock of fcntl(2) on one byte, until the process ends; false when another process has it.
public func lockByte(_ byte: Int64, of file: borrowing FileDescriptor) throws(SystemError) -> Bool {
    try setLock(Int16(F_WRLCK), byte, file)
}

/// Lets go of it.
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
