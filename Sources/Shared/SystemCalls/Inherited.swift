import CShims
import Glibc

// Descriptors 0 to 2 are seen to before main: CShims/standard_files.c.

/// Sets the signals that a program inherits (execve(2) keeps the mask, and what is ignored) as ours need them. Whether
/// SIGHUP, SIGINT, SIGQUIT and SIGTERM are ignored stays the starter's decision (nohup(1), a shell's background jobs).
public func resetInheritedSignals() {
    // With SIGCHLD ignored the kernel takes a child's exit status away before anybody can wait for it (waitpid(2)).
    signal(SIGCHLD, SIG_DFL)
    // A reader that is gone, and a file that may not become larger, are errors of the write and not a death.
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
    var none = sigset_t()
    sigemptyset(&none)
    pthread_sigmask(SIG_SETMASK, &none, nil)
}

/// Closes what the starter left open by oversight, from that number on: a daemon would keep a lock, a pipe whose end somebody
/// waits for, or a file system that is to be unmounted, for as long as it runs.
public func closeInherited(from first: Int32) {
    // Not all container runtimes let it through: then they stay.
    _ = close_range(UInt32(first), .max, 0)
}

/// Takes away the inherited limits that break a daemon and the processes it starts: files end where RLIMIT_FSIZE says,
/// RLIMIT_CPU kills, RLIMIT_STACK gives every thread its stack, RLIMIT_AS and RLIMIT_DATA leave no memory for buffers. Needs
/// CAP_SYS_RESOURCE where the hard limit is lower; otherwise the hard limit is what it gets.
public func resetInheritedLimits(openFiles: UInt64) {
    for resource in [RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_AS, RLIMIT_DATA] { raise(resource, to: UInt64(bitPattern: -1)) }
    raise(RLIMIT_STACK, to: 8 << 20)
    raise(RLIMIT_NOFILE, to: openFiles)
}

private func raise(_ resource: __rlimit_resource, to wanted: UInt64) {
    var limit = rlimit()
    let number = __rlimit_resource_t(resource.rawValue)
    guard getrlimit(number, &limit) == 0 else { return }
    let before = limit
    limit.rlim_max = max(limit.rlim_max, rlim_t(wanted))
    limit.rlim_cur = rlim_t(wanted)
    if setrlimit(number, &limit) == 0 { return }
    limit = before
    limit.rlim_cur = min(rlim_t(wanted), before.rlim_max)
    setrlimit(number, &limit)
}
