import CShims
import Glibc

/// prctl(2), whose wrapper is variadic. Returns a value or a negative errno.
@discardableResult
public func processControl(_ option: Int32, _ a: UInt = 0, _ b: UInt = 0) -> Int {
    ubd_call(Int(SYS_prctl), UInt(option), a, b, 0, 0)
}

/// seccomp(2), which has no wrapper. Returns a value or a negative errno.
public func seccomp(_ operation: UInt32, flags: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int {
    ubd_call(Int(SYS_seccomp), UInt(operation), UInt(flags), UInt(bitPattern: argument), 0, 0)
}

/// landlock_create_ruleset(2), which has no wrapper. Returns a descriptor, a version, or a negative errno.
public func createLandlockRuleset(_ attribute: UnsafeRawPointer?, bytes: Int, flags: UInt32) -> Int {
    ubd_call(Int(SYS_landlock_create_ruleset), UInt(bitPattern: attribute), UInt(bytes), UInt(flags), 0, 0)
}

/// landlock_restrict_self(2), which has no wrapper. Returns 0 or a negative errno.
public func restrictByLandlock(_ ruleset: Int32) -> Int {
    ubd_call(Int(SYS_landlock_restrict_self), UInt(ruleset), 0, 0, 0, 0)
}

/// futex(2), which has no wrapper: sleeps until another thread wakes this word, unless its value differs from `value`.
/// It has no timeout, so that the kernel restarts the wait after SIGSTOP and SIGCONT. The operation is FUTEX_WAIT with
/// FUTEX_PRIVATE_FLAG (linux/futex.h). Returns 0 or a negative errno.
@discardableResult
public func sleepOnWord(_ word: UnsafeRawPointer, while value: UInt32) -> Int {
    ubd_call(Int(SYS_futex), UInt(bitPattern: word), 0 | 128, UInt(value), 0, 0)
}

/// Wakes one thread or ring that waits for the word: FUTEX_WAKE with FUTEX_PRIVATE_FLAG. Returns the number of waiters
/// woken, or a negative errno. Never inlined: Tests/checks/engine-symbols looks for its name.
@discardableResult
@inline(never)
public func wakeWord(_ word: UnsafeRawPointer) -> Int {
    ubd_call(Int(SYS_futex), UInt(bitPattern: word), 1 | 128, 1, 0, 0)
}
