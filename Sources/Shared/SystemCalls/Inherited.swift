import CShims
import Glibc

// CShims/start.c handles descriptors 0 to 2 before main.

/// Resets inherited signals: execve(2) keeps the signal mask and ignored signals. SIGHUP, SIGINT, SIGQUIT and SIGTERM
/// stay as the starter set them (nohup(1), a shell's background jobs).
public func resetInheritedSignals() {
    // While SIGCHLD is ignored the kernel discards a child's exit status, so that nobody can wait for it (waitpid(2)).
    signal(SIGCHLD, SIG_DFL)
    // A closed reader and RLIMIT_FSIZE must fail the write instead of ending the process.
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
    var none = sigset_t()
    sigemptyset(&none)
    pthread_sigmask(SIG_SETMASK, &none, nil)
}

/// Closes the descriptors from `first` on that the starter left open by mistake. Otherwise a daemon keeps a lock, a
/// pipe whose end somebody waits for, or a file system that is to be unmounted, for as long as it runs.
public func closeInherited(from first: Int32) {
    // Some container runtimes forbid this call: then the descriptors stay open.
    _ = close_range(UInt32(first), .max, 0)
}

/// Raises inherited limits that break a daemon and its children: RLIMIT_FSIZE truncates files, RLIMIT_CPU kills,
/// RLIMIT_STACK sets every thread's stack, RLIMIT_AS and RLIMIT_DATA leave no memory for buffers. Raising a hard limit
/// needs CAP_SYS_RESOURCE; without it the limit becomes the hard limit.
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
