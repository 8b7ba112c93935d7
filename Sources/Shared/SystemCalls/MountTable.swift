import Glibc

/// Finds in a table of mounts where devices are mounted. It looks at their numbers alone and resolves no name: the source of
/// a mount is any text that whoever mounted it chose, and so is what a FUSE server says of itself.
///
/// A line of /proc/PID/mountinfo (proc_pid_mountinfo(5)): "ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS …". The number stands
/// before all text. In that text the kernel writes space, tab, newline and backslash as octal digits, so it can neither begin
/// a line nor move a field.
public struct MountTable {
    public static let path = "/proc/self/mountinfo"
    /// What people are told of a mount point, in bytes.
    private static let longest = 1024
    /// The field of a line that has the number, and the last one that is looked at.
    private static let (numberField, pointField) = (2, 4)

    private let numbers: [[UInt8]]
    private var field = 0
    private var text: [UInt8] = []
    /// Of the line that is being read: which of the numbers it has.
    private var match: Int?
    private var lines = 0
    private var isMalformed = false
    /// By "MAJOR:MINOR": the first mount point, with its escapes undone.
    public private(set) var points: [String: String] = [:]

    /// `numbers`: "MAJOR:MINOR" of the devices to be looked for.
    public init(lookingFor numbers: some Sequence<String>) {
        self.numbers = numbers.map { Array($0.utf8) }
    }

    /// All that came was whole lines of a table; one without any line is none, since every process has a root.
    public var isWhole: Bool { lines > 0 && field == 0 && text.isEmpty && !isMalformed }

    /// Reads on. The table may come in pieces of any length.
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
            if points[number] == nil { points[number] = Self.unescaped(text) }
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

    /// The kernel writes space, tab, newline and backslash as three octal digits behind a backslash.
    static func unescaped(_ field: [UInt8]) -> String {
        var bytes: [UInt8] = []
        var rest = field[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3,
                let value = UInt8(String(decoding: digits, as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                rest.removeFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// How many mounts a process can reach, as far as that matters: 1 when it has its root and no other. Not by reading its table
/// of mounts: who reads any such table waits for whoever changes mounts anywhere on the host, which every user can do for long
/// in a namespace of their own. The namespace's own number says enough when it is the least that it can be. Otherwise, and
/// before Linux 6.12, which has no such number, the table is read.
public struct MountCount: Sendable {
    /// The mounts of a namespace in which nothing is mounted but a root. From Linux 7.0 on an empty file system (nullfs) may lie
    /// below every root, out of everybody's reach.
    private let least: Int

    /// Reads the caller's own table: for a program's start.
    public init() {
        guard KernelVersion.running() >= KernelVersion(7, 0), let all = try? MountCount.namespace(of: getpid()),
            let reached = try? MountCount.table(of: getpid())
        else {
            least = 1
            return
        }
        least = all > reached ? 2 : 1
    }

    public func mounts(ofProcess pid: Int32) throws(SystemError) -> Int {
        if let all = try MountCount.namespace(of: pid), all <= least { return 1 }
        return try MountCount.table(of: pid)
    }

    /// What the namespace counts, with mounts that nobody can reach. nil before Linux 6.12: NS_MNT_GET_INFO (linux/nsfs.h).
    static func namespace(of pid: Int32) throws(SystemError) -> Int? {
        let namespace = try FileDescriptor.open("/proc/\(pid)/ns/mnt", O_RDONLY)
        // struct mnt_ns_info: its size and the number of mounts, 32 bits each; a number of 64 bits that names the namespace.
        var info: [UInt32] = [16, 0, 0, 0]
        if ioctl(namespace.raw, 0x8010_B70A, &info) == 0 { return Int(info[1]) }
        guard errno == ENOTTY else { throw SystemError("count the mounts of process \(pid)", errno) }
        return nil
    }

    static func table(of pid: Int32) throws(SystemError) -> Int {
        try readFile("/proc/\(pid)/mountinfo").split(separator: UInt8(ascii: "\n")).count
    }
}
