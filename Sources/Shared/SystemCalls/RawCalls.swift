import CShims
import Glibc

/// prctl(2), whose wrapper is variadic. Returns a value or a negated errno.
@discardableResult
public func processControl(_ option: Int32, _ a: UInt = 0, _ b: UInt = 0) -> Int {
    ubd_call(Int(SYS_prctl), UInt(option), a, b, 0, 0)
}

/// seccomp(2), which has no wrapper. Returns a value or a negated errno.
public func seccomp(_ operation: UInt32, flags: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int {
    ubd_call(Int(SYS_seccomp), UInt(operation), UInt(flags), UInt(bitPattern: argument), 0, 0)
}

/// landlock_create_ruleset(2), which has no wrapper. Returns a descriptor, a version, or a negated errno.
public func createLandlockRuleset(_ attribute: UnsafeRawPointer?, bytes: Int, flags: UInt32) -> Int {
    ubd_call(Int(SYS_landlock_create_ruleset), UInt(bitPattern: attribute), UInt(bytes), UInt(flags), 0, 0)
}

/// landlock_restrict_self(2), which has no wrapper. Returns 0 or a negated errno.
public func restrictByLandlock(_ ruleset: Int32) -> Int {
    ubd_call(Int(SYS_landlock_restrict_self), UInt(ruleset), 0, 0, 0, 0)
}
