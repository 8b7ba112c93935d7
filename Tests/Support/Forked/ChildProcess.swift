import Glibc

/// A program in a process of its own, in place of Foundation's: that one hears the end of a process by a descriptor, of which
/// every process that another test forks meanwhile keeps a copy, so it may wait for ever.
public final class ChildProcess {
    private let pid: pid_t
    /// What waitpid(2) said.
    private var status: Int32?

    /// Looks the program up in PATH. Its standard streams are /dev/null. Throws posix_spawnp's errno as a text.
    public init(_ command: [String]) throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        for number in Int32(0)...2 {
            posix_spawn_file_actions_addopen(&actions, number, "/dev/null", O_RDWR, 0)
        }
        // One that is not open is no error there.
        for number in Int32(3)..<1024 { posix_spawn_file_actions_addclose(&actions, number) }
        // The threads of the tests block signals, and a program that inherits that does not hear SIGTERM.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        var arguments = command.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var pid = pid_t()
        let error = posix_spawnp(&pid, command[0], &actions, &attributes, &arguments, environ)
        guard error == 0 else { throw NotStarted(reason: "\(command[0]): \(String(cString: strerror(error)))") }
        self.pid = pid
    }

    public struct NotStarted: Error {
        public let reason: String
    }

    /// Waits for its end: its exit status, or 128 and the signal.
    @discardableResult
    public func wait() -> Int32 {
        while status == nil { look(0) }
        let status = status ?? 0
        return status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + status & 0x7f
    }

    /// SIGTERM, and SIGKILL when it has not ended five seconds later.
    public func end() {
        look(WNOHANG)
        if status == nil { kill(pid, SIGTERM) }
        for _ in 0..<100 where status == nil {
            usleep(50_000)
            look(WNOHANG)
        }
        if status == nil { kill(pid, SIGKILL) }
        wait()
    }

    private func look(_ options: Int32) {
        guard status == nil else { return }
        var found: Int32 = 0
        let ended = waitpid(pid, &found, options)
        // Somebody else has waited for it (ECHILD): it has ended, nobody knows how.
        if ended == pid || ended < 0 && errno == ECHILD { status = found }
    }
}
