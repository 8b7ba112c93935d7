import Glibc

/// Whether something uses a block device, so that the device must stay. Unknown never counts as free.
public enum Holding: Equatable, Sendable {
    case free
    /// Completes "the device is", for example "mounted on /mnt".
    case held(String)
    /// The reason why nobody can tell.
    case unknown(String)
}

/// The tables that DeviceHolders reads. A test describes another host. All throw when an entry exists but cannot be
/// read.
public protocol HolderSources {
    /// The content of a file in /proc or /sys; nil when it does not exist.
    func bytes(of path: String) throws(SystemError) -> [UInt8]?
    /// The names in a folder; nil when it does not exist.
    func names(in folder: String) throws(SystemError) -> [String]?
    /// The text of a symbolic link, not followed; nil when it does not exist.
    func target(of link: String) throws(SystemError) -> String?
}

/// The host itself.
public struct HostHolderSources: HolderSources {
    public init() {}

    /// A disk that disappears during the read counts as absent.
    private static let absent = [ENOENT, ENODEV, ENXIO]

    public func bytes(of path: String) throws(SystemError) -> [UInt8]? {
        // A namespace may have 100,000 mounts (fs.mount-max); all else is small.
        do { return try readFile(path, limit: path == MountTable.path ? 1 << 26 : 1 << 20) } catch {
            if Self.absent.contains(error.errno) { return nil }
            throw error
        }
    }

    public func names(in folder: String) throws(SystemError) -> [String]? {
        do { return try namesInFolder(folder) } catch {
            if Self.absent.contains(error.errno) { return nil }
            throw error
        }
    }

    public func target(of link: String) throws(SystemError) -> String? {
        do { return try readLink(link) } catch {
            if Self.absent.contains(error.errno) { return nil }
            throw error
        }
    }
}

/// Finds who uses a disk, so that the user reads more than "busy".
///
/// It compares numbers and the kernel's own disk names only. It never resolves a name that somebody else chose: a
/// mount's source or a swap's path may lead to a file system whose server does not answer.
/// These users are in none of the tables: a file system that uses the disk as a second device (XFS's log or realtime
/// device, F2FS), a ZFS pool, a driver that claims the disk without telling sysfs (an iSCSI target), a mount in another
/// mount namespace, and a program that has the disk open. The kernel knows them all: O_EXCL fails, and so does
/// TRY_STOP_DEV (7.0).
public struct DeviceHolders {
    /// A disk or a partition.
    struct Part: Equatable {
        /// The kernel's name: "ublkb0p1".
        let name: String
        /// "MAJOR:MINOR".
        let number: String
    }

    /// The result of all tables but the table of mounts, and the device numbers to find in that table.
    public struct Look: Sendable {
        /// `free` means: free according to these tables.
        public let holding: Holding
        public let numbers: [String]

        /// The final result. `points`: mount points by device number; nil when they are unknown, for the reason `why`.
        public func answer(points: [String: String]?, why: String = "") -> Holding {
            if case .held = holding { return holding }
            if let point = numbers.lazy.compactMap({ points?[$0] }).first { return .held("mounted on \(point)") }
            if points == nil { return .unknown(why) }
            return holding
        }
    }

    private let host: any HolderSources

    public init(host: any HolderSources = HostHolderSources()) {
        self.host = host
    }

    /// Reads all tables but the table of mounts, which may block. `disk`: the kernel's name.
    public func look(at disk: String) -> Look {
        do throws(SystemError) {
            let parts = try parts(of: disk)
            return Look(holding: holding(of: parts), numbers: parts.map(\.number))
        } catch { return Look(holding: .unknown("\(error)"), numbers: []) }
    }

    /// Reads all tables, including the table of mounts. It may block, so call it in a process that may wait.
    public func holding(of disk: String) -> Holding {
        let look = look(at: disk)
        if case .held = look.holding { return look.holding }
        if look.numbers.isEmpty { return look.holding }
        do throws(SystemError) {
            var table = MountTable(lookingFor: look.numbers)
            guard let bytes = try host.bytes(of: MountTable.path) else {
                return look.answer(points: nil, why: "/proc is not mounted")
            }
            bytes.withUnsafeBytes { table.read($0) }
            return look.answer(
                points: table.isWhole ? table.points : nil, why: "\(MountTable.path) is malformed")
        } catch { return look.answer(points: nil, why: "\(error)") }
    }

    /// The disk and its partitions, since a user of a partition also holds the disk. Empty when the kernel has no such
    /// disk; without sysfs nobody can tell that.
    private func parts(of disk: String) throws(SystemError) -> [Part] {
        let disks = "/sys/class/block"
        let folder = "\(disks)/\(disk)"
        guard let number = try line(of: "\(folder)/dev") else {
            if try host.names(in: disks) == nil { throw SystemError("read \(disks)", ENOENT) }
            return []
        }
        var parts = [Part(name: disk, number: number)]
        for name in try host.names(in: folder) ?? [] where name.hasPrefix(disk) {
            if let number = try line(of: "\(folder)/\(name)/dev") { parts.append(Part(name: name, number: number)) }
        }
        return parts
    }

    /// An unreadable table does not hide a holder that another table names.
    private func holding(of parts: [Part]) -> Holding {
        if parts.isEmpty { return .free }
        var result = Holding.free
        for table in Table.allCases {
            do throws(SystemError) {
                if let holder = try holder(of: parts, in: table) { return .held(holder) }
            } catch { result = .unknown("\(error)") }
        }
        return result
    }

    private enum Table: CaseIterable { case drivers, swaps, btrfs, bcachefs, journals }

    private func holder(of parts: [Part], in table: Table) throws(SystemError) -> String? {
        let names = Set(parts.map(\.name))
        switch table {
        case .drivers: return try driver(above: parts)
        case .swaps: return try swap(on: names)
        case .btrfs: return try btrfs(on: names)
        case .bcachefs: return try bcachefs(on: names)
        case .journals: return try journal(on: names)
        }
    }

    private func driver(above parts: [Part]) throws(SystemError) -> String? {
        for part in parts {
            let holders = try host.names(in: "/sys/class/block/\(part.name)/holders") ?? []
            if holders.isEmpty { continue }
            var words: [String] = []
            for holder in holders { words.append(try driverName(holder)) }
            return "held by \(words.joined(separator: ", "))"
        }
        return nil
    }

    /// A device-mapper device has a name that its administrator chose.
    private func driverName(_ disk: String) throws(SystemError) -> String {
        guard let name = try line(of: "/sys/class/block/\(disk)/dm/name") else { return disk }
        return "device-mapper device \(name) (\(disk))"
    }

    /// /proc/swaps (proc_swaps(5)) has a heading, then lines "PATH TYPE …" with escaped blanks in the path. A disk's
    /// path is that of its node in the reader's /dev. Only the last part is compared, with the kernel's names.
    private func swap(on names: Set<String>) throws(SystemError) -> String? {
        let text = String(decoding: try host.bytes(of: "/proc/swaps") ?? [], as: UTF8.self)
        var strange: String?
        for line in text.split(whereSeparator: \.isNewline).dropFirst() {
            let fields = line.split(whereSeparator: \.isWhitespace)
            guard fields.count >= 2, fields[1] == "partition" else { continue }
            let path = fields[0]
            let name = String(path.dropFirst("/dev/".count))
            if path.hasPrefix("/dev/"), names.contains(name) { return "in use as swap (/dev/\(name))" }
            // A node with a name that root chose may be any disk.
            if !path.hasPrefix("/dev/mapper/"), !(try isDisk(name, path)) { strange = String(path) }
        }
        if let strange { throw SystemError("find the disk of swap \(strange)", ENODEV) }
        return nil
    }

    private func isDisk(_ name: String, _ path: Substring) throws(SystemError) -> Bool {
        guard path.hasPrefix("/dev/") else { return false }
        return try host.names(in: "/sys/class/block")?.contains(name) == true
    }

    /// A btrfs file system is mounted under a device number that belongs to no disk; its members are in sysfs.
    private func btrfs(on names: Set<String>) throws(SystemError) -> String? {
        for id in try host.names(in: "/sys/fs/btrfs") ?? [] {
            for member in try host.names(in: "/sys/fs/btrfs/\(id)/devices") ?? [] where names.contains(member) {
                return "in use by the mounted btrfs file system \(id)"
            }
        }
        return nil
    }

    private func bcachefs(on names: Set<String>) throws(SystemError) -> String? {
        for id in try host.names(in: "/sys/fs/bcachefs") ?? [] {
            for member in try host.names(in: "/sys/fs/bcachefs/\(id)") ?? [] where member.hasPrefix("dev-") {
                let target = try host.target(of: "/sys/fs/bcachefs/\(id)/\(member)/block")
                if let name = target?.split(separator: "/").last, names.contains(String(name)) {
                    return "in use by the mounted bcachefs file system \(id)"
                }
            }
        }
        return nil
    }

    /// An external journal of ext4 or OCFS2: jbd2 has a folder for each, named after its disk.
    private func journal(on names: Set<String>) throws(SystemError) -> String? {
        let found = try host.names(in: "/proc/fs/jbd2")?.first { names.contains($0) }
        return found.map { "in use as the journal of a file system (/dev/\($0))" }
    }

    /// The first line of a small file.
    private func line(of path: String) throws(SystemError) -> String? {
        guard let bytes = try host.bytes(of: path) else { return nil }
        return String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isNewline).first.map(String.init)
    }
}
