import CShims
import Glibc
import SystemCalls

/// A compiled seccomp program (classic BPF).
public struct SystemCallFilter: Equatable, Sendable {
    /// struct sock_filter, eight bytes each.
    public var instructions: [UInt64]

    public init(instructions: [UInt64]) {
        self.instructions = instructions
    }

    /// Puts the program in force on every thread of the process, for good. Filters add up: a call is judged by all of
    /// them. Errors: EACCES without no_new_privs, EINVAL for a program that the kernel does not take, ESRCH when a
    /// thread has a filter that the caller has not.
    public func installOnAllThreads() throws(SystemError) {
        let result = instructions.withUnsafeBytes { code in
            var program = sock_fprog(
                len: UInt16(instructions.count),
                filter: UnsafeMutablePointer(
                    mutating: code.baseAddress?.assumingMemoryBound(to: sock_filter.self)))
            return seccomp(UInt32(SECCOMP_SET_MODE_FILTER), flags: UInt32(SECCOMP_FILTER_FLAG_TSYNC), &program)
        }
        if result < 0 { throw SystemError("seccomp", Int32(-result)) }
        // With TSYNC a positive result is the id of the thread that could not follow; none has it then.
        if result > 0 { throw SystemError("seccomp on thread \(result)", ESRCH) }
    }
}
