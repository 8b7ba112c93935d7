import CLibcap
import CShims
import Glibc
import SystemCalls

/// The capabilities that the broker keeps, even when no systemd unit takes the others away. The unit
/// (CapabilityBoundingSet= in policy/systemd/ubd-broker.service) keeps the same ones except CHOWN and FOWNER, which
/// only a host without udev needs, and SYSLOG, since systemd opens the log there. A unit test compares them.
enum Capabilities {
    /// Numbers of linux/capability.h, and the purpose of each.
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

    /// Drops all other capabilities for good and sets no_new_privs. Capabilities that are already missing stay missing.
    static func dropOthers() throws(SystemError) {
        try rawCall("prctl(PR_SET_NO_NEW_PRIVS)") { processControl(PR_SET_NO_NEW_PRIVS, 1) }
        try call("clear the ambient capabilities") { cap_reset_ambient() }
        for number in 0..<cap_max_bits() where mask & 1 << UInt64(number) == 0 && cap_get_bound(number) == 1 {
            try call("drop capability \(name(of: number))") { cap_drop_bound(number) }
        }
        try keepPermitted()
    }

    /// Keeps the permitted capabilities that are in `mask`, makes them all effective, and makes none inheritable.
    private static func keepPermitted() throws(SystemError) {
        guard let sets = cap_get_proc() else { throw SystemError("cap_get_proc", errno) }
        defer { cap_free(UnsafeMutableRawPointer(sets)) }
        for number in 0..<cap_max_bits() {
            var value = number
            var isPermitted = CAP_CLEAR
            try call("cap_get_flag") { cap_get_flag(sets, value, CAP_PERMITTED, &isPermitted) }
            let left = mask & 1 << UInt64(number) == 0 ? CAP_CLEAR : isPermitted
            for (set, wanted) in [(CAP_PERMITTED, left), (CAP_EFFECTIVE, left), (CAP_INHERITABLE, CAP_CLEAR)] {
                try call("cap_set_flag") { cap_set_flag(sets, set, 1, &value, wanted) }
            }
        }
        try call("cap_set_proc") { cap_set_proc(sets) }
    }

    /// "cap_sys_admin"; the number when libcap is older than the kernel.
    private static func name(of number: cap_value_t) -> String {
        guard let text = cap_to_name(number) else { return "\(number)" }
        defer { cap_free(text) }
        return String(cString: text)
    }
}
