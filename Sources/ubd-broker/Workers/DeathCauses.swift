import Glibc
import PolicyCompiler
import SystemCalls

/// Describes how a worker died, as a predicate of "it" or "its worker". The kernel tells a parent only the signal. Its
/// log has the system call, or that memory ran out, a moment later.
final class DeathCauses {
    /// Milliseconds after the death at which the log is read. Audit records pass through a kernel thread.
    private static let looks = [0, 10, 40, 150, 400]
    /// The number of these reads after SIGKILL, which the kernel seldom sends, and logs before the process is gone.
    private static let looksForMemory = 3

    /// In nanoseconds. No uid is reused sooner.
    private static let recently: UInt64 = 2_000_000_000

    private let loop: EventLoop
    private let log: KernelLog?
    /// A second query about the same death needs it, since the log returns each record once.
    private var last: (record: KernelLog.Record, time: UInt64)?

    init(loop: EventLoop, log: KernelLog?) {
        self.loop = loop
        self.log = log
    }

    /// The description without the log.
    static func plain(_ change: ProcessChange) -> String {
        guard change == .killed(signal: SIGSYS) else { return "\(change)" }
        return "\(change): its sandbox forbids a system call, which the kernel's log names (dmesg | grep type=1326), "
            + "or that of auditd (ausearch -m SECCOMP)"
    }

    static func words(_ change: ProcessChange, _ finding: KernelLog.Finding) -> String {
        switch finding {
        case .systemCall(let number, let architecture):
            let name = systemCallName(number, auditArchitecture: architecture) ?? "unknown"
            return "\(change): its sandbox forbids the system call \(name) (\(number))"
        case .outOfMemory(inControlGroup: true):
            return "\(change): its control group has reached its memory limit (the kernel's log has the details)"
        case .outOfMemory: return "\(change): the host ran out of memory (the kernel's log has the details)"
        }
    }

    /// Calls `told` once: at once if the log cannot add anything, otherwise within half a second.
    func ask(_ change: ProcessChange, of worker: (any Worker)?, told: @escaping (String) -> Void) {
        find(change, of: worker) { finding in
            told(finding.map { DeathCauses.words(change, $0) } ?? DeathCauses.plain(change))
        }
    }

    /// The log's record of this end, if any.
    func find(_ change: ProcessChange, of worker: (any Worker)?, told: @escaping (KernelLog.Finding?) -> Void) {
        guard let worker else { return told(nil) }
        look(change, worker.pid, worker.uid, 0, told)
    }

    private func look(
        _ change: ProcessChange, _ pid: Int32, _ uid: UInt32, _ turn: Int,
        _ told: @escaping (KernelLog.Finding?) -> Void
    ) {
        guard let log, [.killed(signal: SIGSYS), .killed(signal: SIGKILL), .gone].contains(change) else {
            return told(nil)
        }
        let now = monotonicNanoseconds()
        if let (record, time) = last, record.pid == pid, record.uid == uid, now - time < DeathCauses.recently {
            return told(record.finding)
        }
        if let finding = log.finding(for: pid, uid: uid), DeathCauses.fits(finding, change) {
            last = (KernelLog.Record(pid: pid, uid: uid, finding: finding), now)
            return told(finding)
        }
        let most = change == .killed(signal: SIGKILL) ? DeathCauses.looksForMemory : DeathCauses.looks.count
        guard turn + 1 < most else { return told(nil) }
        let pause = DeathCauses.looks[turn + 1] - DeathCauses.looks[turn]
        loop.after(milliseconds: pause) { [self] in look(change, pid, uid, turn + 1, told) }
    }

    private static func fits(_ finding: KernelLog.Finding, _ change: ProcessChange) -> Bool {
        switch finding {
        case .systemCall: change == .killed(signal: SIGSYS) || change == .gone
        case .outOfMemory: change == .killed(signal: SIGKILL) || change == .gone
        }
    }
}
