import CShims
import Glibc
import SystemCalls

/// A compiled seccomp program (classic BPF).
public struct SystemCallFilter: Equatable, Sendable {
    /// One struct sock_filter each, eight bytes.
    public var instructions: [UInt64]

    public init(instructions: [UInt64]) {
        self.instructions = instructions
    }

    /// Installs the program on all threads of the process, irrevocably. All installed filters judge each call. Errors:
    /// EACCES without no_new_privs, EINVAL for an invalid program, ESRCH when a thread has a filter that the caller
    /// lacks.
    public func installOnAllThreads() throws(SystemError) {
        let result = instructions.withUnsafeBytes { code in
            var program = sock_fprog(
                len: UInt16(instructions.count),
                filter: UnsafeMutablePointer(
                    mutating: code.baseAddress?.assumingMemoryBound(to: sock_filter.self)))
            return seccomp(UInt32(SECCOMP_SET_MODE_FILTER), flags: UInt32(SECCOMP_FILTER_FLAG_TSYNC), &program)
        }
        if result < 0 { throw SystemError("seccomp", Int32(-result)) }
        // With TSYNC a positive result is the id of a thread that cannot take over the filter. No thread has it then.
        if result > 0 { throw SystemError("seccomp on thread \(result)", ESRCH) }
    }
}
