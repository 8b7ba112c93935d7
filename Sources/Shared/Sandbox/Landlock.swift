import CShims
import Glibc
import SystemCalls

/// Landlock as a wall: a ruleset that handles every right and has no rule, so it denies everything.
public enum Landlock {
    /// The rights that the kernel's Landlock version can deny. Source: linux/landlock.h of Linux 7.3, which names the
    /// version of each right.
    public struct Rights: Equatable, Sendable {
        public var files: UInt64
        public var network: UInt64 = 0
        public var scopes: UInt64 = 0
        /// The size of struct landlock_ruleset_attr in this version, in bytes.
        public var attributeBytes: Int

        public init(version: Int) {
            switch version {
            case ...1: files = (1 << 13) - 1
            case 2: files = (1 << 14) - 1
            case 3, 4: files = (1 << 15) - 1
            case 5...8: files = (1 << 16) - 1
            default: files = (1 << 17) - 1
            }
            if version >= 4 { network = 0b11 }
            if version >= 10 { network = 0b1111 }
            if version >= 6 { scopes = 0b11 }
            attributeBytes = version >= 6 ? 24 : version >= 4 ? 16 : 8
        }
    }

    /// The kernel's Landlock version; 0 when Landlock is absent or disabled.
    public static var version: Int {
        max(0, createLandlockRuleset(nil, bytes: 0, flags: 1))
    }

    /// Denies the calling thread, and the threads and processes that it starts later, every file, network and
    /// signalling right that Landlock knows. Open files stay usable. Returns false when the kernel has no Landlock.
    /// Errors: EPERM without no_new_privs, E2BIG when 16 rulesets are in force.
    public static func denyEverything() throws(SystemError) -> Bool {
        let version = version
        guard version > 0 else { return false }
        let rights = Rights(version: version)
        let attribute = [rights.files, rights.network, rights.scopes]
        let ruleset = FileDescriptor(
            owning: Int32(
                try rawCall("landlock_create_ruleset") {
                    attribute.withUnsafeBytes {
                        createLandlockRuleset($0.baseAddress, bytes: rights.attributeBytes, flags: 0)
                    }
                }))
        try rawCall("landlock_restrict_self") { restrictByLandlock(ruleset.raw) }
        return true
    }
}
