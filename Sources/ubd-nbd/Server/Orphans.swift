import Glibc
import SystemCalls

/// Processes that a command has left behind: they become children of this process, whatever sessions they have begun. A server that
/// has gone into the background, where it takes no socket of ubd's, would otherwise serve the user's data at a port, to anybody.
final class Orphans {
    private let ends: SignalReader

    /// From here on, for the whole process: so not in a program that has other children. It takes note of their ends, but not of the
    /// leader's, the command itself. Throws ENOENT where the kernel does not list children (CONFIG_PROC_CHILDREN).
    init(_ attention: Attention, leader: @escaping () -> pid_t?) throws(SystemError) {
        _ = try readFile(Self.list)
        // PR_SET_CHILD_SUBREAPER (linux/prctl.h).
        processControl(36, 1)
        ends = try SignalReader([SIGCHLD])
        attention.add(ends.file.raw) { [unowned self] in
            while ends.next() != nil {}
            for child in Self.children where child != leader() { waitpid(child, nil, WNOHANG) }
            return .goOn
        }
    }

    /// Ends all children of this process, and what these leave behind: politely first. Returns when there is none, or after `seconds`
    /// with each way.
    static func end(within seconds: Int = 10) {
        for signal in [SIGTERM, SIGKILL] {
            let deadline = Deadline(seconds: seconds)
            var told: Set<pid_t> = []
            while !deadline.hasPassed {
                while waitpid(-1, nil, WNOHANG) > 0 {}
                let now = children
                if now.isEmpty { return }
                for child in now where told.insert(child).inserted { kill(child, signal) }
                usleep(20_000)
            }
        }
    }

    private static var list: String { "/proc/self/task/\(getpid())/children" }

    private static var children: [pid_t] {
        guard let bytes = try? readFile(list) else { return [] }
        return bytes.split(separator: UInt8(ascii: " ")).compactMap { pid_t(String(decoding: $0, as: UTF8.self)) }
    }
}
