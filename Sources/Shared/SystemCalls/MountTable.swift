import Glibc

/// Finds the mount points of devices in a table of mounts. It compares device numbers only and resolves no name: the
/// source of a mount is any text that the mounting user or a FUSE server chose.
///
/// A line of /proc/PID/mountinfo (proc_pid_mountinfo(5)) is "ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS …". The
/// number precedes all text. The kernel writes space, tab, newline and backslash in that text as octal digits, so the
/// text can neither begin a line nor shift a field.
public struct MountTable {
    public static let path = "/proc/self/mountinfo"
    /// The longest mount point in a message, in bytes.
    private static let longest = 1024
    /// The index of the field with the device number, and of the last field that is read.
    private static let (numberField, pointField) = (2, 4)

    private let numbers: [[UInt8]]
    private var field = 0
    private var text: [UInt8] = []
    /// The index in `numbers` that the current line matches.
    private var match: Int?
    private var lines = 0
    private var isMalformed = false
    /// The first mount point by "MAJOR:MINOR", unescaped.
    public private(set) var points: [String: String] = [:]

    /// `numbers`: "MAJOR:MINOR" of the devices to find.
    public init(lookingFor numbers: some Sequence<String>) {
        self.numbers = numbers.map { Array($0.utf8) }
    }

    /// The input consisted of whole lines. An empty table is not whole, since every process has a root mount.
    public var isWhole: Bool { lines > 0 && field == 0 && text.isEmpty && !isMalformed }

    /// Reads the next piece of the table, of any length.
    public mutating func read(_ bytes: UnsafeRawBufferPointer) {
        var index = 0
        while index < bytes.count {
            if field > Self.pointField {
                guard let end = bytes[index...].firstIndex(of: UInt8(ascii: "\n")) else { return }
                endLine()
                index = end + 1
                continue
            }
            let byte = bytes[index]
            index += 1
            switch byte {
            case UInt8(ascii: " "): endField()
            case UInt8(ascii: "\n"):
                isMalformed = true
                endLine()
            default:
                let isWanted = field == Self.numberField || field == Self.pointField && match != nil
                if isWanted || field == 0, text.count < Self.longest { text.append(byte) }
            }
        }
    }

    private mutating func endField() {
        if field == Self.numberField { match = numbers.firstIndex(of: text) }
        if field == Self.pointField, let match {
            let number = String(decoding: numbers[match], as: UTF8.self)
            if points[number] == nil { points[number] = String(decoding: Self.unescaped(text), as: UTF8.self) }
        }
        text.removeAll(keepingCapacity: true)
        field += 1
    }

    private mutating func endLine() {
        lines += 1
        field = 0
        match = nil
        text.removeAll(keepingCapacity: true)
    }

    /// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
    public static func unescaped(_ field: some Sequence<UInt8>) -> [UInt8] {
        var bytes: [UInt8] = []
        var rest = Array(field)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3, digits.allSatisfy({ (0x30...0x37).contains($0) }),
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest.removeFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return bytes
    }
}

/// Counts the mounts that a process can reach: 1 when it has its root and no other. Reading any process's table of
/// mounts waits for whoever changes mounts anywhere on the host, and every user can do that for long in a user
/// namespace. So the namespace's own count is read first; the minimum is proof enough. The table is read only when the
/// count is higher, and before Linux 6.12, which has no such count.
public struct MountCount: Sendable {
    /// The count of a namespace with only a root mount. From Linux 7.0 on an empty file system (nullfs) may lie
    /// unreachable below every root, so that the count is 2.
    private let least: Int

    /// Reads the caller's own mounts; call it at a program's start.
    public init() {
        let own = KernelVersion.running() >= KernelVersion(7, 0) ? MountCount.settled(MountCount.look) : nil
        // Not known: then the table of a worker decides.
        least = own.map { $0.all > $0.reached ? 2 : 1 } ?? 1
    }

    /// What the caller's namespace counts and what its table has, and whether both are of one moment.
    struct Look {
        var all: Int
        var reached: Int
        var isOfOneMoment: Bool
    }

    /// The first look that is of one moment. Mounts that change between the two readings would make them differ for another
    /// reason than an unreachable mount.
    static func settled(_ look: () -> Look?) -> Look? {
        for _ in 0..<16 {
            guard let look = look() else { return nil }
            if look.isOfOneMoment { return look }
        }
        return nil
    }

    private static func look() -> Look? {
        guard let table = try? FileDescriptor.open("/proc/self/mountinfo", O_RDONLY),
            let all = try? namespace(of: getpid()), let bytes = try? table.readAll(limit: 1 << 20)
        else { return nil }
        // POLLPRI: the mounts have changed since the table was opened (proc_pid_mounts(5)).
        var change = pollfd(fd: table.raw, events: Int16(POLLPRI), revents: 0)
        return Look(all: all, reached: lines(bytes), isOfOneMoment: poll(&change, 1, 0) == 0)
    }

    public func mounts(ofProcess pid: Int32) throws(SystemError) -> Int {
        if let all = try MountCount.namespace(of: pid), all <= least { return 1 }
        return try MountCount.table(of: pid)
    }

    /// The namespace's own count, unreachable mounts included: NS_MNT_GET_INFO (linux/nsfs.h). nil before Linux 6.12.
    static func namespace(of pid: Int32) throws(SystemError) -> Int? {
        let namespace = try FileDescriptor.open("/proc/\(pid)/ns/mnt", O_RDONLY)
        // struct mnt_ns_info: its size and the number of mounts, 32 bits each; the namespace's id, 64 bits.
        var info: [UInt32] = [16, 0, 0, 0]
        if ioctl(namespace.raw, 0x8010_B70A, &info) == 0 { return Int(info[1]) }
        guard errno == ENOTTY else { throw SystemError("count the mounts of process \(pid)", errno) }
        return nil
    }

    static func table(of pid: Int32) throws(SystemError) -> Int {
        lines(try readFile("/proc/\(pid)/mountinfo"))
    }

    private static func lines(_ table: [UInt8]) -> Int { table.count { $0 == UInt8(ascii: "\n") } }
}
