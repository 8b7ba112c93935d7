import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// What the lists of the interface consist of.
protocol VolumeListEntry {
    var name: String { get }
    var json: JSON { get }
}

/// What new volumes are made by.
struct VolumeTemplate: VolumeListEntry, Equatable {
    let name: String
    var json: JSON { .record([("name", .string(name)), ("type", "blk")]) }
}

/// One volume of the list.
struct Volume: VolumeListEntry, Equatable {
    let name: String
    let aliases: [String]
    let readOnly: Bool
    /// nil: not known before the device is there.
    let sizeBytes: UInt64?
    /// Allocated bytes of its file; nil when that is not known.
    let usedBytes: UInt64?

    var json: JSON {
        .record([
            ("name", .string(name)), ("aliases", aliases.isEmpty ? nil : .array(aliases.map(JSON.string))),
            ("type", "blk"), ("readOnly", .bool(readOnly)),
            ("sizeBytes", sizeBytes.map { .integer(Int64(clamping: $0)) }),
            ("usedBytes", usedBytes.map { .integer(Int64(clamping: $0)) }),
        ])
    }
}

/// The volumes of a user: each live device of hers as `ubdbN`, and by its name if it has one; each file NAME.img of her volumes'
/// folder as NAME, attached or not; and each device that comes back by itself by its name, there or not. Where two have one name
/// the file in the folder has it.
struct Volumes {
    /// A sparse file in the folder, as a device of target loop.
    static let template = VolumeTemplate(name: "loop")
    private static let suffix = ".img"

    let environment: CommandEnvironment
    /// Absolute; need not be there.
    let folder: String

    /// What a name stands for.
    enum Found: Equatable {
        case device(Device)
        /// A file of the folder that no device serves.
        case file
        /// A device that comes back by itself, and is not there.
        case enabled
        /// Nothing, but a volume of that name could be made.
        case missing
        /// Nothing, and no volume can have that name.
        case none
    }

    private var client: BrokerClient { BrokerClient(environment: environment) }

    /// The folder in this process's environment: $XDG_STATE_HOME/ubd/volumes, by default ~/.local/state/ubd/volumes (XDG
    /// Base Directory Specification). nil when neither variable has an absolute path.
    static func defaultFolder(_ variable: (String) -> String?) -> String? {
        if let state = variable("XDG_STATE_HOME"), state.hasPrefix("/") { return state + "/ubd/volumes" }
        guard let home = variable("HOME"), home.hasPrefix("/") else { return nil }
        return home + "/.local/state/ubd/volumes"
    }

    // MARK: Names

    /// Letters, digits, "-", "_" and ".", at most 64, beginning with a letter or digit: safe as a file name and in a log.
    static func isName(_ name: String) -> Bool {
        guard (1...64).contains(name.utf8.count), let first = name.utf8.first, isPlain(first) else { return false }
        return name.utf8.allSatisfy {
            isPlain($0) || [UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: ".")].contains($0)
        }
    }

    private static func isPlain(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"):
            true
        default: false
        }
    }

    /// N of "ubdbN"; nil for any other name.
    static func number(_ name: String) -> UInt32? {
        guard name.hasPrefix("ubdb"), let number = UInt32(name.dropFirst(4)), name == "ubdb\(number)" else {
            return nil
        }
        return number
    }

    private func path(_ name: String) -> String { "\(folder)/\(name)\(Self.suffix)" }

    // MARK: Finding

    /// All volumes, devices first. A device that does not serve cannot be handed over, and is not listed.
    func all() throws(StorageProvider.Refusal) -> [Volume] {
        let devices: [Device]
        do { devices = try own(client.list()) } catch { throw .failure(error) }
        let names = fileNames()
        let volumes = devices.map { device in
            let image = names.first { serves(device, $0) }
            let name = image ?? device.name.flatMap { names.contains($0) || Self.number($0) != nil ? nil : $0 }
            return Volume(
                name: name ?? "ubdb\(device.id)", aliases: name == nil ? [] : ["ubdb\(device.id)"],
                readOnly: device.readOnly, sizeBytes: device.sizeBytes, usedBytes: image.flatMap { size($0)?.used })
        }
        let attached = Set(volumes.map(\.name))
        return volumes
            + names.filter { !attached.contains($0) }.compactMap { name in
                size(name).map {
                    Volume(
                        name: name, aliases: [], readOnly: access(path(name), W_OK) != 0, sizeBytes: $0.bytes,
                        usedBytes: $0.used)
                }
            }
            + enabledVolumes(except: attached.union(names))
    }

    /// What `name` stands for.
    func find(_ name: String) throws(CommandFailure) -> Found {
        guard Self.isName(name) else { return .none }
        let devices = try own(client.list())
        if let number = Self.number(name) {
            return devices.first { $0.id == number }.map { .device($0) } ?? .none
        }
        guard let device = devices.first(where: { serves($0, name) }) else {
            if size(name) != nil { return .file }
            if let device = named(name, among: devices) { return .device(device) }
            return enabled(name) == nil ? .missing : .enabled
        }
        // The name may be that of another file by now, or of none: then the device's content is not the volume's.
        guard isLocked(name), !isYounger(name, than: device), !devices.contains(where: { mayBe($0, name, not: device) })
        else {
            throw CommandFailure(
                .busy, "OtherFile",
                "device \(device.id) was made of \(path(name)), which is another file by now or cannot be locked",
                remedy: "'ubd del -n \(device.id)'")
        }
        // One that was added with --size, or before the file grew, is not the volume.
        let block = UInt64(max(device.blockSize, 1))
        if let bytes = size(name)?.bytes, bytes / block != device.sizeBytes / block {
            throw CommandFailure(
                .busy, "OtherSize",
                "device \(device.id) has \(device.sizeBytes) bytes of \(path(name)), which has \(bytes)",
                remedy: "'ubd resize -n \(device.id)' after the file has grown; else 'ubd del -n \(device.id)'")
        }
        return .device(device)
    }

    /// Whether the file of that name was made after the device, by its birth time: false where the file system has none.
    private func isYounger(_ name: String, than device: Device) -> Bool {
        var details = statx()
        guard device.created > 0, statx(AT_FDCWD, path(name), AT_SYMLINK_NOFOLLOW, UInt32(STATX_BTIME), &details) == 0,
            details.stx_mask & UInt32(STATX_BTIME) != 0
        else { return false }
        return details.stx_btime.tv_sec > device.created
    }

    /// Whether another device can be the one that has locked the file of that name: one that was added by a relative name.
    private func mayBe(_ other: Device, _ name: String, not device: Device) -> Bool {
        other.id != device.id
            && other.file?.split(separator: "/").last?.elementsEqual(name + Self.suffix) ?? false
            && !(other.file?.hasPrefix("/") ?? false)
    }

    /// Whether somebody has locked bytes of the file of that name, as whoever adds a device does (FileClaim). A lock of another
    /// program counts, too; where the file system has no locks, none is seen.
    private func isLocked(_ name: String) -> Bool {
        guard let file = try? FileDescriptor.open(path(name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK) else { return false }
        var found = flock()
        found.l_type = Int16(F_WRLCK)
        return fcntl(file.raw, F_OFD_GETLK, &found) == 0 && found.l_type != Int16(F_UNLCK)
    }

    /// Root is told everybody's devices, and hands over its own. Requests to a device that is recovering wait.
    func own(_ devices: [Device]) -> [Device] {
        devices.filter { $0.owner == geteuid() && [.live, .recovering].contains($0.state) }
    }

    /// Whether the device has the whole file of that name.
    private func serves(_ device: Device, _ name: String) -> Bool {
        device.target == "loop" && device.partition == nil && device.offset ?? 0 == 0
            && device.file?.hasSameBytes(as: AddCommand.label(path(name))) ?? false
    }

    private func fileNames() -> [String] {
        listFolder(folder).filter { $0.hasSuffix(Self.suffix) }.map { String($0.dropLast(Self.suffix.count)) }
            .filter { Self.isName($0) && Self.number($0) == nil && size($0) != nil }.sorted()
    }

    /// Size and allocated bytes of the regular file of that name; nil when there is none.
    private func size(_ name: String) -> (bytes: UInt64, used: UInt64)? {
        var status = stat()
        guard lstat(path(name), &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return nil }
        return (UInt64(status.st_size), UInt64(status.st_blocks) * 512)
    }

    // MARK: Making

    /// Makes a sparse file; a name that is taken meanwhile is an error.
    func create(_ name: String, bytes: UInt64) throws(CommandFailure) {
        let remedy = "see 'ls -l \(folder)' and 'df \(folder)'"
        do throws(SystemError) {
            try makeFolder()
            let file = try FileDescriptor.open(path(name), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode: 0o600)
            do throws(SystemError) {
                try call("set the size of \(path(name))") { ftruncate(file.raw, off_t(bytes)) }
            } catch {
                unlink(path(name))
                throw error
            }
        } catch { throw CommandFailure(error, "VolumeNotMade", remedy: remedy) }
    }

    private func makeFolder() throws(SystemError) {
        var made = ""
        for part in folder.split(separator: "/") {
            made += "/" + part
            guard mkdir(made, 0o700) != 0, errno != EEXIST, access(made, F_OK) != 0 else { continue }
            throw SystemError("make the folder \(made)", errno)
        }
    }

    /// Adds a device on the file of that name, writable where the file is. Where somebody else adds it at the same time, theirs is taken.
    func attach(_ name: String) throws(CommandFailure) -> Device {
        guard let command = AddCommand.loop(path(name)) else {
            throw CommandFailure(
                .usage, "BadFolder", "'\(folder)' can not be the folder of volumes",
                remedy: "set XDG_STATE_HOME to another one")
        }
        do {
            return try command.attach(client)
        } catch {
            guard error.status == .busy else { throw error }
            if case .device(let other) = try find(name) { return other }
            var failure = error
            failure.remedy = "end that use first: 'ubd list' shows your devices"
            throw failure
        }
    }

    /// Removes a file that `create` has made, after a failure to attach it. Where the broker may have added the device all the same,
    /// and where somebody uses the file, it stays.
    func remove(_ name: String, after failure: CommandFailure) {
        let isRefused =
            ![.busy, .brokerNotReachable].contains(failure.status)
            && !["NoAnswer", "BrokenReply"].contains(failure.name)
        if isRefused, !isLocked(name) { unlink(path(name)) }
    }

    /// Opens a device's node, and makes sure that it is that device. For writing nobody else may have it for itself: not a mount,
    /// and no other client (O_EXCL, open(2)).
    func open(_ device: Device, readOnly: Bool) throws(CommandFailure) -> FileDescriptor {
        let file = try openNode(device, (readOnly ? O_RDONLY : O_RDWR | O_EXCL) | O_NOCTTY)
        // Now that it is open it stays; it may have been another device of that number.
        guard let now = try own(client.list(id: device.id)).first, now.generation == device.generation else {
            throw CommandFailure(
                .noSuchDevice, "VolumeNotOpened", "\(device.node) is another device by now", remedy: "try again")
        }
        return file
    }

    private func openNode(_ device: Device, _ flags: Int32) throws(CommandFailure) -> FileDescriptor {
        do throws(SystemError) {
            let file = try FileDescriptor.open(device.node, flags)
            let status = try file.status()
            guard let identity = try environment.identity(device.node), status.st_mode & S_IFMT == identity.type,
                status.st_rdev == identity.number
            else { throw SystemError("open \(device.node)", ENODEV) }
            return file
        } catch {
            guard error.errno != EBUSY else {
                throw CommandFailure(
                    .busy, "VolumeInUse", "\(device.node) is mounted, or another program has it for itself",
                    remedy: "end that use first, or ask for it read-only")
            }
            throw CommandFailure(
                error, "VolumeNotOpened", remedy: "see 'ubd list -n \(device.id)' and 'ls -l \(device.node)'")
        }
    }
}
