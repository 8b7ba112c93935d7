import Glibc
import SystemCalls

/// A forked copy of the test process, in which a body may end the process.
///
/// Not Swift Testing's exit tests: those wait for any child of the process, and never hear of theirs while another test leaves
/// an ended child unreaped.
enum ForkedChild {
    enum End: Equatable {
        case exited(Int32)
        case killed(signal: Int32)

        /// What a failed precondition ends a process with.
        static var trap: End {
            #if arch(x86_64)
                .killed(signal: SIGILL)
            #else
                .killed(signal: SIGTRAP)
            #endif
        }
    }

    /// Seconds after which a child that hangs is killed with SIGALRM.
    private static let patience: UInt32 = 60

    /// How a child ends that runs `body` and exits with 0, or with 99 when `body` throws.
    static func end(_ body: () throws -> Void) throws -> End {
        // Swift does not import fork(2), because it is no way to start programs from threads. This child starts none.
        typealias Fork = @convention(c) () -> pid_t
        let fork = unsafeBitCast(dlsym(nil, "fork")!, to: Fork.self)
        let child = fork()
        if child == 0 {
            alarm(patience)
            var none = rlimit()
            setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
            // No backtrace, and no message among those of the tests.
            signal(SIGILL, SIG_DFL)
            signal(SIGTRAP, SIG_DFL)
            dup2(open("/dev/null", O_WRONLY), 2)
            do { try body() } catch { _exit(99) }
            _exit(0)
        }
        guard child > 0 else { throw SystemError("fork", errno) }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 {
            guard errno == EINTR else { throw SystemError("waitpid", errno) }
        }
        let signal = status & 0x7f
        return signal == 0 ? .exited(status >> 8 & 0xff) : .killed(signal: signal)
    }
}
