import Glibc

/// Whether somebody uses a block device so that it must not go. What is not known is never free.
public enum Holding: Equatable, Sendable {
    case free
    /// By whom, in words that go behind "the device is": "mounted on /mnt".
    case held(String)
    /// Why that can't be told.
    case unknown(String)
}

/// Where DeviceHolders looks; a test describes another host. Both throw when something is there and can't be read.
public protocol HolderSources {
    /// The bytes of a file of /proc or /sys; nil when there is none.
    func bytes(of path: String) throws(SystemError) -> [UInt8]?
    /// The names in a folder; nil when there is none.
    func names(in folder: String) throws(SystemError) -> [String]?
    /// Where a symbolic link leads, not followed; nil when it is none.
    func target(of link: String) -> String?
}

/// The host itself.
public struct HostHolderSources: HolderSources {
    public init() {}

    /// A disk that goes away meanwhile is one that is not there.
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

    public func target(of link: String) -> String? { linkTarget(link) }
}

/// Who uses a disk: said to the user instead of a bare "busy".
///
/// Everything is compared by number, or by the name that the kernel itself gave a disk. No name that somebody else chose is
/// ever resolved: a mount's source or a swap's path may lead anywhere, also to a file system whose server does not answer.
/// Not to be seen this way are: a file system that uses the disk only as its second device (XFS's log or realtime device,
/// F2FS), a pool of ZFS, a driver that claims it without telling sysfs (an iSCSI target), a mount in another mount namespace,
/// and a program that has it open. The kernel knows all of them: by O_EXCL, and from 7.0 on by TRY_STOP_DEV.
public struct DeviceHolders {
    /// A disk or a partition.
    struct Part: Equatable {
        /// The kernel's own: "ublkb0p1".
        let name: String
        /// "MAJOR:MINOR".
        let number: String
    }

    /// What has been found without the table of mounts, and what to look for in it.
    public struct Look: Sendable {
        /// `free`: as far as these tables tell.
        public let holding: Holding
        public let numbers: [String]

        /// The whole answer. `points`: where the numbers are mounted; nil when that is not known, `why`.
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

    /// Looks everywhere but into the table of mounts, whose reading may take long. `disk`: the kernel's name for it.
    public func look(at disk: String) -> Look {
        do throws(SystemError) {
            let parts = try parts(of: disk)
            return Look(holding: holding(of: parts), numbers: parts.map(\.number))
        } catch { return Look(holding: .unknown("\(error)"), numbers: []) }
    }

    /// Looks everywhere, the table of mounts included: for a process of its own, since that may take long.
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
                points: table.isWhole ? table.points : nil, why: "\(MountTable.path) is not as it should be")
        } catch { return look.answer(points: nil, why: "\(error)") }
    }

    /// The disk itself and its partitions, whose users hold the whole disk as well; none when the kernel has no such disk.
    private func parts(of disk: String) throws(SystemError) -> [Part] {
        let folder = "/sys/class/block/\(disk)"
        guard let number = try line(of: "\(folder)/dev") else { return [] }
        var parts = [Part(name: disk, number: number)]
        for name in try host.names(in: folder) ?? [] where name.hasPrefix(disk) {
            if let number = try line(of: "\(folder)/\(name)/dev") { parts.append(Part(name: name, number: number)) }
        }
        return parts
    }

    /// What one table can't tell another may.
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

    /// Device-mapper devices have a name that people gave them.
    private func driverName(_ disk: String) throws(SystemError) -> String {
        guard let name = try line(of: "/sys/class/block/\(disk)/dm/name") else { return disk }
        return "device-mapper device \(name) (\(disk))"
    }

    /// /proc/swaps (proc_swaps(5)): a heading, then lines "PATH TYPE …", blanks of the path escaped. The path of a disk is
    /// that of a node in the reader's /dev; only its last part is compared, with names of the kernel's.
    private func swap(on names: Set<String>) throws(SystemError) -> String? {
        let text = String(decoding: try host.bytes(of: "/proc/swaps") ?? [], as: UTF8.self)
        var strange: String?
        for line in text.split(whereSeparator: \.isNewline).dropFirst() {
            let fields = line.split(whereSeparator: \.isWhitespace)
            guard fields.count >= 2, fields[1] == "partition" else { continue }
            let path = fields[0]
            let name = String(path.dropFirst("/dev/".count))
            if path.hasPrefix("/dev/"), names.contains(name) { return "in use as swap (/dev/\(name))" }
            // A node that somebody made under a name of his own may be any disk.
            if !path.hasPrefix("/dev/mapper/"), !(try isDisk(name, path)) { strange = String(path) }
        }
        if let strange { throw SystemError("find the disk of swap \(strange)", ENODEV) }
        return nil
    }

    private func isDisk(_ name: String, _ path: Substring) throws(SystemError) -> Bool {
        guard path.hasPrefix("/dev/") else { return false }
        return try host.names(in: "/sys/class/block")?.contains(name) == true
    }

    /// File systems of several disks have a number of their own among the mounts; they tell sysfs their members.
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
                let target = host.target(of: "/sys/fs/bcachefs/\(id)/\(member)/block")
                if let name = target?.split(separator: "/").last, names.contains(String(name)) {
                    return "in use by the mounted bcachefs file system \(id)"
                }
            }
        }
        return nil
    }

    /// An external journal of ext4 or OCFS2: jbd2 has a folder for each, called after its disk.
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
