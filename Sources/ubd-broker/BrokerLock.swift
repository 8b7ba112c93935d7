import Glibc
import SystemCalls

/// Keeps a second broker away, by a lock of fcntl(2) on a byte of /run/ubd/lock. It goes with the process that took it, not
/// with the last reference to the file.
///
/// A broker that was killed may still not end, and keep its lock, for as long as the kernel works for it: when it waits where
/// no signal wakes it, or when a control command waits for a disk that does not answer. Such a broker does nothing any more
/// (`isProcessPast`), so after a while the next one takes another byte and goes on as after any death of a broker: what the
/// old one was about to do stands in the records. A command of the old one that the kernel ends later is for the device that it
/// was sent for, and for no later one of that number.
enum BrokerLock {
    /// Milliseconds that one who is killed has for its end.
    static let patience = 5_000
    /// Brokers that may be on their way out at once.
    private static let bytes: Int64 = 64

    /// Errors: StartupRefusal, with who has the lock and what to do.
    static func take(_ path: String, patience: Int = patience) throws -> FileDescriptor {
        let file = try FileDescriptor.open(path, O_RDWR | O_CREAT | O_NOFOLLOW, mode: 0o600)
        let deadline = monotonicNanoseconds() + UInt64(patience) * 1_000_000
        while true {
            let held = try locks(on: file)
            if let living = held.first(where: { !isProcessPast($0.pid) }) { throw refusal(living, path) }
            if held.isEmpty || monotonicNanoseconds() >= deadline {
                if try takeFreeByte(of: file, path, held) { return file }
            }
            usleep(20_000)
        }
    }

    /// False when somebody was quicker.
    private static func takeFreeByte(
        of file: borrowing FileDescriptor, _ path: String, _ held: [HeldLock]
    ) throws -> Bool {
        guard let byte = (0..<bytes).first(where: { byte in !held.contains { $0.covers(byte) } }) else {
            throw refusal(held[0], path)
        }
        guard try lockByte(byte, of: file) else { return false }
        // Another new broker may have found another byte free. Both give way then, and the service manager tries again.
        for other in try locks(on: file) {
            guard isProcessPast(other.pid) else {
                unlockByte(byte, of: file)
                throw refusal(other, path)
            }
            let place = ProcessState.place(of: "\(other.pid)")
            Log.error(
                "lock-abandoned", ("broker", "\(other.pid)"),
                ("why", ProcessState(of: "\(other.pid)")?.words(place: place) ?? "ended"))
        }
        return true
    }

    private static func refusal(_ lock: HeldLock, _ path: String) -> StartupRefusal {
        let process = "\(lock.pid)"
        guard lock.pid > 0, let state = ProcessState(of: process) else {
            return StartupRefusal(
                message: "another ubd-broker runs already: a process of another pid namespace holds \(path)", status: 1)
        }
        let who = "process \(process) (\(state.name))"
        if ["R", "S"].contains(state.letter), !state.isPast {
            return StartupRefusal(message: "another ubd-broker runs already: \(who) holds \(path)", status: 1)
        }
        let words = state.words(place: ProcessState.place(of: process))
        return StartupRefusal(
            message:
                "\(who) holds \(path) and \(words); if it does not answer, kill -9 \(process): a new broker takes over "
                + "\(patience / 1000) s later, even when that one can not end", status: 1)
    }
}

extension HeldLock {
    fileprivate func covers(_ byte: Int64) -> Bool { first <= byte && (count == 0 || byte < first + count) }
}
