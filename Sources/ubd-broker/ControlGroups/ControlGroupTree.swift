import CShims
import Glibc
import SystemCalls

/// The part of the host's cgroup v2 tree that the broker uses: a group for each user, and in it one for each device.
///
/// Nothing here waits for a device or its file. Memory limits are written while a group has no task and no page, since
/// the kernel reclaims pages before it lowers a limit. io.max waits for a disk's requests, so a child writes it
/// (`AddOperation.limitIO`). A worker moves itself in. A group is removed only when the kernel reports that it has no
/// task: some kernels let a removal wait for exiting tasks. The group of a user who has had memory disks stays while
/// shared memory is charged to it. An empty group in it, `memory-disks`, tells the next broker of these disks.
final class ControlGroupTree: DeviceGroups {
    static let wanted = ["cpu", "io", "memory", "pids"]

    let path: String
    let controllers: [String]
    /// The path of `base`.
    private let folder: String
    private let base: FileDescriptor
    private let loop: EventLoop
    /// Groups with tasks that have not ended yet, by name.
    private var leaving: [String: Leaving] = [:]
    /// Groups of users who have had memory disks and have no device; they stay because of their memory.
    private var charged: Set<String> = []
    /// A timer runs that tries again to remove these.
    private var isTrying = false

    private final class Leaving {
        let events: FileDescriptor
        var watch: EventLoop.Watch?
        init(_ events: consuming FileDescriptor) { self.events = events }
    }

    /// Uses `folder` for groups of devices, and enables the wanted controllers that it offers.
    init(folder: String, path: String, loop: EventLoop) throws(SystemError) {
        let base = try FileDescriptor.open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
        let offered = try ControlGroupTree.words(base.raw, "cgroup.controllers")
        var taken: [String] = []
        for controller in ControlGroupTree.wanted where offered.contains(controller) {
            do throws(SystemError) {
                try ControlGroupTree.write(base.raw, "cgroup.subtree_control", "+\(controller)")
                taken.append(controller)
            } catch {
                // EBUSY: a process is in the folder itself.
                guard error.errno != EBUSY else { throw error }
            }
        }
        self.folder = folder
        self.path = path
        self.loop = loop
        self.base = base
        controllers = taken
    }

    /// Moves the process that keeps the unit's group alive into a child group: a group that enables controllers for its
    /// children must contain no process.
    static func setKeeperAside(in folder: String) throws(SystemError) {
        let base = try FileDescriptor.open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
        let inside = try words(base.raw, "cgroup.procs")
        if inside.isEmpty { return }
        if mkdirat(base.raw, "keeper", 0o755) != 0, errno != EEXIST { throw SystemError("mkdir keeper", errno) }
        for pid in inside { try write(base.raw, "keeper/cgroup.procs", pid) }
    }

    func folder(of group: DeviceGroup) -> String { "\(folder)/\(group.userName)" }

    func enter(_ group: DeviceGroup) throws(SystemError) -> FileDescriptor {
        if try make(group.userName) {
            do throws(SystemError) {
                for file in group.limits.userFiles {
                    try ControlGroupTree.write(base.raw, "\(group.userName)/\(file.name)", file.text)
                }
                for controller in controllers {
                    try ControlGroupTree.write(base.raw, "\(group.userName)/cgroup.subtree_control", "+\(controller)")
                }
            } catch { throw discard(group.userName, error) }
        }
        if group.isOfMemory { _ = try make(ControlGroupTree.mark(of: group.userName)) }
        if try make(group.name) {
            do throws(SystemError) {
                for file in group.limits.deviceFiles {
                    try ControlGroupTree.write(base.raw, "\(group.name)/\(file.name)", file.text)
                }
            } catch { throw discard(group.name, error) }
        }
        return try ControlGroupTree.file(base.raw, "\(group.name)/cgroup.procs", O_WRONLY)
    }

    /// The group that says that this user has had a memory disk. It outlives the broker, and not the user's group.
    private static func mark(of user: String) -> String { "\(user)/\(memoryMark)" }
    private static let memoryMark = "memory-disks"

    /// Returns whether it created the group.
    private func make(_ name: String) throws(SystemError) -> Bool {
        if mkdirat(base.raw, name, 0o755) == 0 { return true }
        guard errno == EEXIST else { throw SystemError("mkdir \(folder)/\(name)", errno) }
        return false
    }

    /// Removes a new group whose limits could not be written, so that nobody uses it without them.
    private func discard(_ name: String, _ error: SystemError) -> SystemError {
        unlinkat(base.raw, name, AT_REMOVEDIR)
        return error
    }

    // MARK: Removal of a group

    func remove(_ group: DeviceGroup) { letGo(of: group.name, user: group.userName) }

    func removeOthers(than groups: [DeviceGroup]) {
        let kept = Set(groups.map(\.name))
        // Brokers of earlier versions made no mark.
        for group in groups where group.isOfMemory { _ = try? make(ControlGroupTree.mark(of: group.userName)) }
        for user in listFolder(folder) where user.hasPrefix(DeviceGroup.userPrefix) {
            let devices = listFolder("\(folder)/\(user)").filter { $0.hasPrefix(DeviceGroup.devicePrefix) }
            for device in devices where !kept.contains("\(user)/\(device)") {
                letGo(of: "\(user)/\(device)", user: user)
            }
            if devices.isEmpty { removeUser(user) }
        }
    }

    private func letGo(of name: String, user: String) {
        guard leaving[name] == nil, let events = try? ControlGroupTree.file(base.raw, "\(name)/cgroup.events", O_RDONLY)
        else { return }
        let entry = Leaving(events)
        if isRemoved(name, entry, user) { return }
        leaving[name] = entry
        // The kernel reports a change only after a read (cgroup.events, Documentation/admin-guide/cgroup-v2.rst).
        let change = Poller.Interest(rawValue: EPOLLPRI.rawValue)
        entry.watch = try? loop.watch(entry.events.raw, change) { [unowned self] _ in
            guard isRemoved(name, entry, user) else { return }
            if let watch = entry.watch { loop.unwatch(watch) }
            leaving[name] = nil
        }
    }

    /// Returns whether nothing is left to do for the group.
    private func isRemoved(_ name: String, _ entry: Leaving, _ user: String) -> Bool {
        guard let text = try? entry.events.readWhole(limit: 4096) else { return true }
        guard String(decoding: text, as: UTF8.self).contains("populated 0") else { return false }
        if unlinkat(base.raw, name, AT_REMOVEDIR) != 0, errno != ENOENT {
            Log.warning("control-group", ("group", name), ("why", "it can not be removed: \(SystemError.name(errno))"))
            return true
        }
        removeUser(user)
        return true
    }

    /// Removes a user's group when it contains no device's group and no shared memory; as long as it has such memory, that is
    /// tried again. Nothing tells when a user lets go of memory.
    private func removeUser(_ user: String) {
        if isRemoved(user: user) { return }
        charged.insert(user)
        if !isTrying { tryAgain(after: 1) }
    }

    /// After 1, 2, 4, ... up to 64 seconds.
    private func tryAgain(after seconds: Int) {
        isTrying = true
        loop.after(milliseconds: 1000 * seconds) { [weak self] in
            guard let self else { return }
            isTrying = false
            charged = charged.filter { !isRemoved(user: $0) }
            if !charged.isEmpty { tryAgain(after: min(2 * seconds, 64)) }
        }
    }

    /// Returns false when only memory is left of it that may be a memory disk's. A user can keep the memory of a deleted disk open.
    /// With the group gone that would count against none of the user's limits, and the next disk would bring as much again.
    private func isRemoved(user: String) -> Bool {
        let rest = listFolder("\(folder)/\(user)")
        if rest.contains(where: { $0.hasPrefix(DeviceGroup.devicePrefix) }) { return true }
        if rest.contains(ControlGroupTree.memoryMark) {
            if hasSharedMemory(user) { return false }
            unlinkat(base.raw, ControlGroupTree.mark(of: user), AT_REMOVEDIR)
        }
        unlinkat(base.raw, user, AT_REMOVEDIR)
        return true
    }

    /// Whether shared memory is charged to a group, or to groups in it that are removed (the kernel counts both). Not exact: the
    /// kernel adds up its numbers every two seconds, or when there are 64 pages for each processor.
    private func hasSharedMemory(_ name: String) -> Bool {
        guard controllers.contains("memory") else { return false }
        do throws(SystemError) {
            let words = try ControlGroupTree.words(base.raw, "\(name)/memory.stat")
            guard let key = words.firstIndex(of: "shmem"), key + 1 < words.count, let bytes = UInt64(words[key + 1])
            else { return true }
            return bytes > 64 * 4096
        } catch { return error.errno != ENOENT }
    }

    // MARK: Files of groups

    static func file(_ base: Int32, _ name: String, _ flags: Int32) throws(SystemError) -> FileDescriptor {
        FileDescriptor(owning: try call("open \(name)") { openat(base, name, flags | O_CLOEXEC | O_NOFOLLOW) })
    }

    private static func write(_ base: Int32, _ name: String, _ text: String) throws(SystemError) {
        do throws(SystemError) { try file(base, name, O_WRONLY).writeAll(Array(text.utf8)) } catch {
            throw SystemError("write \(text) to \(name)", error.errno)
        }
    }

    private static func words(_ base: Int32, _ name: String) throws(SystemError) -> [String] {
        let bytes = try file(base, name, O_RDONLY).readAll(limit: 65536)
        return String(decoding: bytes, as: UTF8.self).split { $0 == " " || $0 == "\n" }.map(String.init)
    }
}
