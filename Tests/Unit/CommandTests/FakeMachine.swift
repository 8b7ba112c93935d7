@testable import ubd

/// A machine that a test describes.
struct FakeMachine: Machine {
    var kernelRelease = "6.12.95"
    var uid: UInt32 = 1000
    var userName = "alice"
    var groups: [UInt32] = [1000, 500]
    var openFileLimit: UInt64 = 1024
    var groupsByName = ["ubd": Group(gid: 500, members: ["alice"]), "ubd-worker": Group(gid: 501, members: [])]
    var users: [UInt32: String] = [0: "root", 1000: "alice"]
    var texts: [String: String] = [:]
    var directories: [String: [String]] = [:]
    var kinds: [String: PathKind] = [:]
    var lockIDs: [String: String] = [:]

    func group(named name: String) -> Group? { groupsByName[name] }
    func userNames(of uids: Set<UInt32>) -> [UInt32: String] { users.filter { uids.contains($0.key) } }
    func text(of path: String) -> String? { texts[path] }
    func entries(of path: String) -> [String] { directories[path] ?? [] }
    func kind(of path: String, followsLinks: Bool) -> PathKind? { kinds[path] }
    func lockID(of path: String) -> String? { lockIDs[path] }

    /// A Debian with everything in place.
    static let healthy = FakeMachine(
        texts: [
            "/proc/sys/kernel/io_uring_disabled": "0\n", "/proc/sys/kernel/io_uring_group": "-1\n",
            "/proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    4000000 kB\n",
        ],
        directories: ["/dev": ["null", "ublk-control", "ubdb0", "ublkb0"]],
        kinds: [
            "/sys/module/ublk_drv": .directory, "/dev/ublk-control": .characterDevice, "/run/udev/control": .socket,
            "/usr/lib/udev/rules.d/59-ubd.rules": .file, "/dev/ubdb0": .link("ublkb0"),
            "/dev/ublkb0": .blockDevice(major: 259, minor: 0), "/dev/ublkb7": .blockDevice(major: 259, minor: 7),
            "/run/systemd/system": .directory,
            "/usr/libexec/ubd/ubd-broker": .file, "/usr/libexec/ubd/ubd-worker": .file,
            "/usr/share/ubd/policy/seccomp/worker-loop.policy": .file, "/etc/ubd/access.policy": .file,
        ])
}
