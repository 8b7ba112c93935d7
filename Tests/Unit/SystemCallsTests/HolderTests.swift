import Glibc
import Testing

@testable import SystemCalls

/// A host that a test describes.
private struct FakeHost: HolderSources {
    var files: [String: String] = [:]
    var folders: [String: [String]] = [:]
    var links: [String: String] = [:]
    var failures: [String: Int32] = [:]

    func bytes(of path: String) throws(SystemError) -> [UInt8]? {
        if let errno = failures[path] { throw SystemError("read \(path)", errno) }
        return files[path].map { Array($0.utf8) }
    }

    func names(in folder: String) throws(SystemError) -> [String]? {
        if let errno = failures[folder] { throw SystemError("read \(folder)", errno) }
        return folders[folder]
    }

    func target(of link: String) throws(SystemError) -> String? {
        if let errno = failures[link] { throw SystemError("read the link \(link)", errno) }
        return links[link]
    }

    /// With a disk of one partition that nobody uses.
    static let free = FakeHost(
        files: [
            "/sys/class/block/ublkb0/dev": "259:0\n", "/sys/class/block/ublkb0/ublkb0p1/dev": "259:7\n",
            "/proc/self/mountinfo":
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / /proc rw shared:3 master:1 - proc proc rw\n",
            "/proc/swaps": "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n/var/swap file 1 0 -3\n",
        ],
        folders: [
            "/sys/class/block": ["sda", "sda1", "ublkb0", "ublkb0p1"],
            "/sys/class/block/ublkb0": ["holders", "queue", "ublkb0p1"], "/sys/class/block/ublkb0/holders": [],
            "/sys/class/block/ublkb0p1/holders": [], "/sys/fs/btrfs": ["features"], "/proc/fs/jbd2": ["sda1-8"],
        ])
}

private func holding(_ change: (inout FakeHost) -> Void) -> Holding {
    var host = FakeHost.free
    change(&host)
    return DeviceHolders(host: host).holding(of: "ublkb0")
}

@Suite("Who holds a device")
struct HolderTests {
    @Test("is nobody when all tables say so, or there is no such disk")
    func nobody() {
        #expect(holding { _ in } == .free)
        #expect(DeviceHolders(host: FakeHost.free).holding(of: "ublkb7") == .free)
    }

    @Test("is not known without sysfs")
    func withoutSysfs() {
        let found = DeviceHolders(host: FakeHost()).look(at: "ublkb0")
        #expect(found.numbers == [])
        #expect(found.holding == .unknown("read /sys/class/block: No such file or directory"))
        #expect(DeviceHolders(host: FakeHost()).holding(of: "ublkb0") == found.holding)
    }

    @Test(
        "is a mount of it or of a partition, found by number and named with its spaces", arguments: ["259:0", "259:7"])
    func mount(_ number: String) {
        let found = holding {
            $0.files["/proc/self/mountinfo"]! += "40 22 \(number) / /mnt/my\\040disk rw - ext4 x rw\n"
        }
        #expect(found == .held("mounted on /mnt/my disk"))
    }

    @Test(
        "is no mount that only says so: its source is any text that somebody chose",
        arguments: [
            "/dev/ublkb0", "/dev/../proc/17/root/mnt/x", "259:0", "a\\0122:0\\040259:0\\040/\\040/mnt",
            "259:0 / /mnt rw -",
        ])
    func source(_ text: String) {
        for type in ["fuse", "btrfs"] {
            #expect(
                holding { $0.files["/proc/self/mountinfo"]! += "40 22 0:52 / /mnt rw - \(type) \(text) rw\n" } == .free)
        }
    }

    @Test("is a btrfs or bcachefs file system that names it among its disks, the second one too")
    func severalDisks() {
        let btrfs = holding {
            $0.folders["/sys/fs/btrfs"] = ["features", "ab-cd"]
            $0.folders["/sys/fs/btrfs/ab-cd/devices"] = ["sda", "ublkb0"]
        }
        #expect(btrfs == .held("in use by the mounted btrfs file system ab-cd"))
        let bcachefs = holding {
            $0.folders["/sys/fs/bcachefs"] = ["ef"]
            $0.folders["/sys/fs/bcachefs/ef"] = ["options", "dev-0", "dev-1"]
            $0.links["/sys/fs/bcachefs/ef/dev-0/block"] = "../../../../devices/sda"
            $0.links["/sys/fs/bcachefs/ef/dev-1/block"] = "../../../../devices/virtual/block/ublkb0/ublkb0p1"
        }
        #expect(bcachefs == .held("in use by the mounted bcachefs file system ef"))
        let unreadable = holding {
            $0.folders["/sys/fs/bcachefs"] = ["ef"]
            $0.folders["/sys/fs/bcachefs/ef"] = ["dev-0"]
            $0.failures["/sys/fs/bcachefs/ef/dev-0/block"] = ENOMEM
        }
        #expect(
            unreadable == .unknown("read the link /sys/fs/bcachefs/ef/dev-0/block: \(SystemError.message(ENOMEM))"))
    }

    @Test("is swap on it, by the kernel's own name; a swap whose disk can't be told makes the answer unknown")
    func swap() {
        func swaps(_ path: String) -> Holding {
            holding { $0.files["/proc/swaps"] = "Filename\tType\n\(path)   partition\t1048572\t0\t-2\n" }
        }
        #expect(swaps("/dev/ublkb0") == .held("in use as swap (/dev/ublkb0)"))
        #expect(swaps("/dev/ublkb0p1") == .held("in use as swap (/dev/ublkb0p1)"))
        #expect(swaps("/dev/sda1") == .free && swaps("/dev/mapper/vg-swap") == .free)
        #expect(swaps("/tmp/alias") == .unknown("find the disk of swap /tmp/alias: No such device"))
        #expect(swaps("/dev/alias") == .unknown("find the disk of swap /dev/alias: No such device"))
    }

    @Test("is a driver above it or above a partition, by the name that people know")
    func drivers() {
        #expect(
            holding { $0.folders["/sys/class/block/ublkb0/holders"] = ["dm-0", "md1"] } == .held("held by dm-0, md1"))
        let named = holding {
            $0.folders["/sys/class/block/ublkb0p1/holders"] = ["dm-0"]
            $0.files["/sys/class/block/dm-0/dm/name"] = "my vault\n"
        }
        #expect(named == .held("held by device-mapper device my vault (dm-0)"))
    }

    @Test("is a file system that has its journal there")
    func journal() {
        #expect(
            holding { $0.folders["/proc/fs/jbd2"] = ["sda1-8", "ublkb0"] }
                == .held("in use as the journal of a file system (/dev/ublkb0)"))
    }

    @Test(
        "is not known when one of the tables can't be read",
        arguments: [
            "/sys/class/block/ublkb0/dev", "/sys/class/block/ublkb0", "/sys/class/block/ublkb0/holders", "/proc/swaps",
            "/sys/fs/btrfs", "/proc/fs/jbd2", "/proc/self/mountinfo",
        ], [EMFILE, ENOMEM, EACCES, EFBIG])
    func unreadable(_ path: String, _ errno: Int32) {
        let found = holding { $0.failures[path] = errno }
        #expect(found == .unknown("read \(path): \(SystemError.message(errno))"))
    }

    @Test("is told, when another table knows it, although one can't be read")
    func heldAllTheSame() {
        let found = holding {
            $0.failures["/proc/swaps"] = EMFILE
            $0.files["/proc/self/mountinfo"]! += "40 22 259:0 / /mnt rw - ext4 x rw\n"
        }
        #expect(found == .held("mounted on /mnt"))
    }
}

@Suite("The table of mounts")
struct MountTableTests {
    private func table(_ text: String, _ numbers: [String] = ["259:0"], piece: Int = .max) -> MountTable {
        var table = MountTable(lookingFor: numbers)
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let some = rest.prefix(piece)
            rest = rest.dropFirst(some.count)
            some.withUnsafeBytes { table.read($0) }
        }
        return table
    }

    private let text =
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 259:0 / /a\\040b rw x:1 - ext4 y rw\n41 22 259:0 / /c rw - ext4 y rw\n"

    @Test("is read the same in pieces of any length, and tells the first mount of a number")
    func pieces() {
        for piece in [1, 2, 3, 7, 40, 1000] {
            let table = table(text, piece: piece)
            #expect(table.points == ["259:0": "/a b"] && table.isWhole, "pieces of \(piece)")
        }
    }

    @Test("is not whole when it is empty, cut off, or has a line that is none")
    func incomplete() {
        #expect(!table("").isWhole)
        for cut in 1..<text.utf8.count where !text.utf8.prefix(cut).last!.isNewline {
            #expect(!table(String(text.prefix(cut))).isWhole, "cut after \(cut) bytes")
        }
        for line in ["\n", "x\n", "22 1 8:1 /\n"] { #expect(!table(text + line).isWhole, "\(line)") }
    }

    @Test("of ten thousand lines is searched to its last line")
    func many() {
        let line =
            "22 1 0:41 / /home/somebody/a/place/that/has/a/long/name rw,nosuid,nodev,relatime shared:1 - tmpfs tmpfs rw\n"
        let text = String(repeating: line, count: 10_000) + "40 22 259:0 / /last rw - ext4 y rw\n"
        let started = monotonicNanoseconds()
        let table = table(text)
        #expect(table.points == ["259:0": "/last"] && table.isWhole)
        // A debug build under load; the broker's release build takes a few milliseconds.
        #expect(monotonicNanoseconds() - started < 5_000_000_000)
    }

    @Test("has the octal escapes of a mount point undone")
    func escapes() {
        func unescaped(_ text: String) -> String { String(decoding: MountTable.unescaped(text.utf8), as: UTF8.self) }
        #expect(unescaped(#"/a\040b\134c\011\012"#) == "/a b\\c\t\n")
        #expect(unescaped(#"/a\0"#) == #"/a\0"#)
        #expect(unescaped(#"/\777"#) == #"/\777"#)
        #expect(unescaped(#"/\+12"#) == #"/\+12"#)
    }
}

extension UInt8 {
    fileprivate var isNewline: Bool { self == UInt8(ascii: "\n") }
}
