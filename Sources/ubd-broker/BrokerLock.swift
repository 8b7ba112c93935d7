import Glibc
import SystemCalls

/// Prevents a second broker by a lock of fcntl(2) on a byte of /run/ubd/lock. Such a lock ends with the process that
/// took it, not with the last reference to the file.
///
/// A broker that was killed may not end, and keeps its lock, while the kernel works for it: it waits where no signal
/// wakes it, or its control command waits for a disk that does not answer. It will never run its program again
/// (`isProcessPast`). So after a while the next broker takes another byte and goes on as after any death of a broker:
/// the records tell what the old one was about to do. If the kernel completes a command of the old broker later, it
/// affects the device for which it was sent, not a later device with that number.
enum BrokerLock {
    /// Milliseconds that a killed broker has to end.
    static let patience = 5_000
    /// The maximum number of brokers that have not ended.
    private static let bytes: Int64 = 64

    /// Errors: StartupRefusal, with the holder of the lock and a remedy.
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

    /// Returns false when another process was faster.
    private static func takeFreeByte(
        of file: borrowing FileDescriptor, _ path: String, _ held: [HeldLock]
    ) throws -> Bool {
        guard let byte = (0..<bytes).first(where: { byte in !held.contains { $0.covers(byte) } }) else {
            throw refusal(held[0], path)
        }
        guard try lockByte(byte, of: file) else { return false }
        // Another new broker may have taken another free byte. Then both give up, and the service manager tries again.
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
