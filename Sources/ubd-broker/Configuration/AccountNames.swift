import Glibc
import SystemCalls

/// Looks up names in the host's user and group databases. "There is no such name" and "nobody knows" are different
/// answers: without memory or descriptors, or while a directory service is away, a name is unknown, not free.
enum AccountNames {
    /// The uid of a user; nil when there is none of this name.
    ///
    /// - Throws: the errno of getpwnam_r(3) when the database could not be asked.
    static func user(_ name: String) throws(SystemError) -> uid_t? {
        var entry = passwd()
        return try look("getpwnam", name) { buffer, size, isFound in
            var found: UnsafeMutablePointer<passwd>?
            let errno = getpwnam_r(name, &entry, buffer, size, &found)
            isFound = found != nil
            return errno
        } ? entry.pw_uid : nil
    }

    /// The gid of a group; nil when there is none of this name.
    ///
    /// - Throws: the errno of getgrnam_r(3) when the database could not be asked.
    static func group(_ name: String) throws(SystemError) -> gid_t? {
        var entry = Glibc.group()
        return try look("getgrnam", name) { buffer, size, isFound in
            var found: UnsafeMutablePointer<Glibc.group>?
            let errno = getgrnam_r(name, &entry, buffer, size, &found)
            isFound = found != nil
            return errno
        } ? entry.gr_gid : nil
    }

    /// Bytes for one entry. A group with many members is long.
    private static let sizes = [4 << 10, 64 << 10, 1 << 20, 16 << 20]

    private static func look(
        _ call: String, _ name: String, _ ask: (UnsafeMutablePointer<CChar>, Int, inout Bool) -> Int32
    ) throws(SystemError) -> Bool {
        var errno = ERANGE
        for size in sizes where errno == ERANGE {
            let buffer = UnsafeMutablePointer<CChar>.allocate(capacity: size)
            defer { buffer.deallocate() }
            var isFound = false
            errno = ask(buffer, size, &isFound)
            if isFound { return true }
        }
        // What the manual page lists for "not found", apart from EBADF and EPERM, which also mean something else.
        if [0, ENOENT, ESRCH].contains(errno) { return false }
        throw SystemError("\(call) \(name)", errno)
    }
}
