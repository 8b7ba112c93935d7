import CShims
import Glibc
import SystemCalls

/// What the broker keeps of root's power, also where no systemd unit takes the rest away. The unit
/// (CapabilityBoundingSet= in policy/systemd/ubd-broker.service) leaves it all but those for a host without udev, and SYSLOG,
/// since systemd opens the log there; a unit test compares them.
enum Capabilities {
    /// Numbers of linux/capability.h, and what for.
    static let kept: [(number: Int, name: String, purpose: String)] = [
        (0, "CHOWN", "give a disk's node to its owner where there is no udev"),
        (3, "FOWNER", "set that node's mode afterwards"),
        (5, "KILL", "stop and end workers, which have uids of their own"),
        (6, "SETGID", "a worker's own group"),
        (7, "SETUID", "a worker's own uid"),
        (8, "SETPCAP", "empty a worker's bounding set"),
        (19, "SYS_PTRACE", "look at a worker's descriptors, and take its sockets back"),
        (21, "SYS_ADMIN", "ublk's control device, the namespaces of workers"),
        (24, "SYS_RESOURCE", "a worker's limits, its place in memory reclaim"),
        (34, "SYSLOG", "the kernel's log, which knows why it killed a worker"),
    ]

    static var mask: UInt64 { kept.reduce(0) { $0 | 1 << UInt64($1.number) } }

    /// Gives up all others for good, and the right to ever have more: no_new_privs. What is missing already stays so.
    static func dropOthers() throws(SystemError) {
        try rawCall("prctl(PR_SET_NO_NEW_PRIVS)") { ubd_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }
        try rawCall("prctl(PR_CAP_AMBIENT)") {
            ubd_prctl(PR_CAP_AMBIENT, UInt(PR_CAP_AMBIENT_CLEAR_ALL), 0, 0, 0)
        }
        for number in UInt(0)..<64 where mask & 1 << UInt64(number) == 0 {
            // EINVAL: past the kernel's last one.
            if ubd_prctl(PR_CAPBSET_READ, number, 0, 0, 0) != 1 { continue }
            try rawCall("drop capability \(number)") { ubd_prctl(PR_CAPBSET_DROP, number, 0, 0, 0) }
        }
        try keepPermitted(mask)
    }

    /// Leaves those of the permitted capabilities that are in `mask`, all of them effective, none inheritable.
    /// Source: capset(2), linux/capability.h: a header of version and pid, and for each half of the 64 bits a struct of three
    /// words: effective, permitted, inheritable.
    private static func keepPermitted(_ mask: UInt64) throws(SystemError) {
        var header: [UInt32] = [0x2008_0522, 0]
        var sets = [UInt32](repeating: 0, count: 6)
        try rawCall("capget") { ubd_capget(&header, &sets) }
        for half in 0..<2 {
            let permitted = sets[3 * half + 1] & UInt32(truncatingIfNeeded: mask >> UInt64(32 * half))
            sets.replaceSubrange(3 * half..<3 * half + 3, with: [permitted, permitted, 0])
        }
        try rawCall("capset") { ubd_capset(&header, &sets) }
    }
}
