import Glibc
import PolicyCompiler
import SystemCalls

/// Says how a worker died, in words that follow "it" or "its worker". The kernel tells a parent only the signal; which
/// system call, or that memory ran out, is in its log, a moment later.
final class DeathCauses {
    /// Milliseconds after the death at which the log is looked at. Audit records go through a thread of the kernel's.
    private static let looks = [0, 10, 40, 150, 400]
    /// So many of them for SIGKILL, which mostly is not the kernel's: it tells of that before the process can be gone.
    private static let looksForMemory = 3

    /// Nanoseconds: sooner no worker has that uid again.
    private static let recently: UInt64 = 2_000_000_000

    private let loop: EventLoop
    private let log: KernelLog?
    /// The log tells once; two may ask about one death.
    private var last: (record: KernelLog.Record, time: UInt64)?

    init(loop: EventLoop, log: KernelLog?) {
        self.loop = loop
        self.log = log
    }

    /// What is known without the log.
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

    /// Calls `told` once: at once, when the log has nothing to add, otherwise within half a second.
    func ask(_ change: ProcessChange, of worker: (any Worker)?, told: @escaping (String) -> Void) {
        find(change, of: worker) { finding in
            told(finding.map { DeathCauses.words(change, $0) } ?? DeathCauses.plain(change))
        }
    }

    /// What the log has about that end, if anything.
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
