import Glibc
import SystemCalls

/// The children of this process, and what these leave behind when they end: once `adopt` was called, those become its children, whatever
/// sessions they have begun. So only for a program whose children all are there to be ended with it.
public enum Children {
    /// PR_SET_CHILD_SUBREAPER (linux/prctl.h). Throws ENOENT where the kernel does not list children (CONFIG_PROC_CHILDREN): they could
    /// not be found.
    public static func adopt() throws(SystemError) {
        _ = try readFile(list)
        processControl(36, 1)
    }

    /// Zombies are among them.
    public static var now: [pid_t] {
        guard let bytes = try? readFile(list) else { return [] }
        return bytes.split(separator: UInt8(ascii: " ")).compactMap { pid_t(String(decoding: $0, as: UTF8.self)) }
    }

    /// Ends all children of this process, and what these leave behind: politely first. Returns when there is none, or after `seconds`
    /// with each way.
    public static func end(within seconds: Int = 10) {
        for signal in [SIGTERM, SIGKILL] {
            let deadline = monotonicNanoseconds() + UInt64(seconds) * 1_000_000_000
            var told: Set<pid_t> = []
            while monotonicNanoseconds() < deadline {
                while waitpid(-1, nil, WNOHANG) > 0 {}
                let now = now
                if now.isEmpty { return }
                for child in now where told.insert(child).inserted { kill(child, signal) }
                usleep(20_000)
            }
        }
    }

    private static var list: String { "/proc/self/task/\(getpid())/children" }
}
