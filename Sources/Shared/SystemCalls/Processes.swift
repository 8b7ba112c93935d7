import CShims
import Glibc

/// How a process ended or stopped.
public enum ProcessChange: Equatable, Sendable, CustomStringConvertible {
    case exited(Int32)
    case killed(signal: Int32)
    case stopped(signal: Int32)
    /// It ended, but only its parent, another process, could learn how.
    case gone

    /// A predicate for messages: "was killed by SIGSYS".
    public var description: String {
        switch self {
        case .exited(let code): "exited with status \(code)"
        case .killed(let signal): "was killed by \(signalName(signal))"
        case .stopped(let signal): "was stopped by \(signalName(signal))"
        case .gone: "ended"
        }
    }
}

/// "SIGSYS" for 31.
public func signalName(_ signal: Int32) -> String {
    guard let text = sigabbrev_np(signal) else { return "signal \(signal)" }
    return "SIG" + String(cString: text)
}

/// A process by its pidfd: the kernel reuses the pid for no other process while this exists.
public struct ProcessHandle: ~Copyable {
    public let pid: Int32
    public let file: FileDescriptor

    public init(pid: Int32, owning file: consuming FileDescriptor) {
        self.pid = pid
        self.file = file
    }

    /// Opens a process that is not our child. Throws ESRCH when no process has that pid.
    public init(pid: Int32) throws(SystemError) {
        self.pid = pid
        do throws(SystemError) {
            file = FileDescriptor(owning: try call("pidfd_open \(pid)") { pidfd_open(pid, 0) })
        } catch {
            // EINVAL, or ENOENT since Linux 6.16: a thread of another process has the number.
            throw [EINVAL, ENOENT].contains(error.errno) ? SystemError(error.operation, ESRCH) : error
        }
    }

    /// Sends a signal; ESRCH when the process is gone.
    public func send(_ signal: Int32) throws(SystemError) {
        try call("signal process \(pid)") { pidfd_send_signal(file.raw, signal, nil, 0) }
    }

    /// Sends a signal to the processes of the group that this one leads; 0 only looks for them. False when there are none.
    /// It can be called when the leader has ended, too: a handle can't meet a later group with the same number.
    public func sendToGroup(_ signal: Int32) -> Bool {
        // PIDFD_SIGNAL_PROCESS_GROUP (linux/pidfd.h, 6.9).
        if pidfd_send_signal(file.raw, signal, nil, 1 << 2) == 0 { return true }
        // EPERM: they are there, and are another user's.
        return errno == EINVAL ? kill(-pid, signal) == 0 || errno == EPERM : errno == EPERM
    }

    /// Duplicates a descriptor of the process (pidfd_getfd(2)). Errors: EPERM without CAP_SYS_PTRACE or when a security
    /// module refuses; EBADF when the process has no such descriptor.
    public func duplicate(descriptor: Int32) throws(SystemError) -> FileDescriptor {
        FileDescriptor(
            owning: try call("pidfd_getfd \(descriptor) of process \(pid)") { pidfd_getfd(file.raw, descriptor, 0) })
    }

    /// Reports a child's end once, without waiting; nil while it runs. Throws ECHILD after the end was reported.
    public func poll() throws(SystemError) -> ProcessChange? { try change(WEXITED) }

    /// Reports once that a child was stopped; nil otherwise. Leaves its end for `poll`.
    public func pollStop() throws(SystemError) -> ProcessChange? {
        do throws(SystemError) { return try change(WSTOPPED) } catch {
            // Without WEXITED the kernel reports a child that has ended as ECHILD.
            if error.errno == ECHILD { return nil }
            throw error
        }
    }

    private func change(_ kind: Int32) throws(SystemError) -> ProcessChange? {
        var info = siginfo_t()
        let options = kind | WNOHANG
        try call("waitid") { waitid(P_PIDFD, id_t(file.raw), &info, options) }
        return ProcessHandle.change(info)
    }

    private static func change(_ info: siginfo_t) -> ProcessChange? {
        // si_pid 0 means that there is nothing to report. The union starts with pid, uid and status (sigaction(2)).
        guard info._sifields._sigchld.si_pid != 0 else { return nil }
        let status = info._sifields._sigchld.si_status
        switch Int(info.si_code) {
        case Int(CLD_EXITED): return .exited(status)
        case Int(CLD_KILLED), Int(CLD_DUMPED): return .killed(signal: status)
        case Int(CLD_STOPPED): return .stopped(signal: status)
        default: return nil
        }
    }
}
