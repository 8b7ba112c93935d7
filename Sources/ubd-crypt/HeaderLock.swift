import Dialing
import Glibc

/// libcryptsetup reads a header under a lock (flock(2)), for which it waits without end, and everybody who may read the file can
/// hold such a lock. So this program takes one first, and waits for a moment only.
enum HeaderLock {
    private static let attempts = 50
    /// Microseconds between two of them.
    private static let pause: UInt32 = 100_000

    /// A lock that others may share.
    static func take(_ file: Int32, _ name: String) throws(DialFailure) {
        for _ in 0..<attempts {
            // A file system without such locks gives libcryptsetup none either.
            if flock(file, LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK { return }
            usleep(pause)
        }
        throw DialFailure(
            .unreachable, "the header of \(name) is locked by another program",
            remedy: "wait until no cryptsetup changes the volume; 'lslocks' shows who has a FLOCK of the file")
    }

    static func release(_ file: Int32) { _ = flock(file, LOCK_UN) }
}
