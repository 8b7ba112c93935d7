import Glibc

/// Cleans the environment: it may name a program that the Swift runtime starts after a crash, or folders where the C
/// library looks for libraries. The broker executes itself again with only the known variables.
enum CleanEnvironment {
    /// The variables that systemd sets for services (sd_listen_fds(3), sd_notify(3), systemd.exec(5)).
    private static let kept: Set<String> = [
        "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID",
        "WATCHDOG_USEC", "FDSTORE", "JOURNAL_STREAM", "INVOCATION_ID",
    ]
    /// The Swift runtime starts no program after a crash: the process dies by the signal, and the kernel logs it.
    private static let always = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SWIFT_BACKTRACE=enable=no"]

    /// The broker's environment, made from the given one.
    static func cleaned(_ given: [String]) -> [String] {
        always
            + given.filter { entry in
                guard let end = entry.firstIndex(of: "=") else { return false }
                return kept.contains(String(entry[..<end]))
            }.sorted()
    }

    /// Returns when the environment is clean; otherwise executes the program again. `arguments`: all, including the
    /// program's name.
    static func enforce(_ arguments: [String]) throws {
        let given = variables()
        let clean = cleaned(given)
        guard Set(given) != Set(clean) else { return }
        // By its path if possible, since the process gets its name from the executed path.
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
