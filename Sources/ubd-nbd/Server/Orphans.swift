import Glibc
import Programs
import SystemCalls

/// Processes that a command has left behind: they become children of this process. A server that has gone into the background, where it
/// takes no socket of ubd's, would otherwise serve the user's data at a port, to anybody.
final class Orphans {
    private let ends: SignalReader

    /// From here on, for the whole process: so not in a program that has other children. It takes note of their ends, but not of the
    /// leader's, the command itself. Throws ENOENT where the kernel does not list children (CONFIG_PROC_CHILDREN).
    init(_ attention: Attention, leader: @escaping () -> pid_t?) throws(SystemError) {
        try Children.adopt()
        ends = try SignalReader([SIGCHLD])
        attention.add(ends.file.raw) { [unowned self] in
            while ends.next() != nil {}
            for child in Children.now where child != leader() { waitpid(child, nil, WNOHANG) }
            return .goOn
        }
    }
}
