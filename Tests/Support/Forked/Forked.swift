import CForked
import Glibc

/// How a copy of this process ends that runs `body`: what waitpid(2) says. Prepare outside of it what takes locks or memory: the
/// copy has none of the other threads, which may have held them.
public func forked(_ body: () -> Void) -> Int32 {
    withoutActuallyEscaping(body) { body in
        var body = body
        return withUnsafeMutablePointer(to: &body) { pointer in
            forked_status({ $0!.assumingMemoryBound(to: (() -> Void).self).pointee() }, pointer)
        }
    }
}

/// What a failed precondition ends a process with.
public var trapSignal: Int32 {
    #if arch(x86_64)
        SIGILL
    #else
        SIGTRAP
    #endif
}
