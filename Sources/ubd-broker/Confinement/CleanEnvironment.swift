import Glibc

/// The environment of the process that starts the broker is not the broker's: one variable tells the Swift runtime which
/// program to start when it crashes, others tell the C library where libraries are. What is not known is left behind, by
/// executing the same program once more.
enum CleanEnvironment {
    /// What systemd tells its services (sd_listen_fds(3), sd_notify(3), systemd.exec(5)).
    private static let kept: Set<String> = [
        "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID",
        "WATCHDOG_USEC", "JOURNAL_STREAM", "INVOCATION_ID",
    ]
    /// A crash is a line of the kernel's and an exit by signal; nothing is started by it.
    private static let always = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SWIFT_BACKTRACE=enable=no"]

    /// The environment that the broker runs with, of the one that it was given.
    static func cleaned(_ given: [String]) -> [String] {
        always
            + given.filter { entry in
                guard let end = entry.firstIndex(of: "=") else { return false }
                return kept.contains(String(entry[..<end]))
            }.sorted()
    }

    /// Returns when the environment is clean already; otherwise the program starts again. `arguments`: all, with the
    /// program's name.
    static func enforce(_ arguments: [String]) throws {
        let given = variables()
        let clean = cleaned(given)
        guard Set(given) != Set(clean) else { return }
        // By its name, where that still is the program: a process is called after what was executed.
        var path = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
        let length = readlink("/proc/self/exe", &path, Int(PATH_MAX))
        guard length > 0 else { throw StartupRefusal(message: "/proc is not mounted", status: 1) }
        var argv = arguments.map { strdup($0) } + [nil]
        var envp = clean.map { strdup($0) } + [nil]
        execve(path, &argv, &envp)
        execve("/proc/self/exe", &argv, &envp)
        throw StartupRefusal(
            message: "can not start again with a clean environment: \(String(cString: strerror(errno)))", status: 1)
    }

    private static func variables() -> [String] {
        var found: [String] = []
        var next = environ
        while let entry = next.pointee {
            found.append(String(cString: entry))
            next += 1
        }
        return found
    }
}
