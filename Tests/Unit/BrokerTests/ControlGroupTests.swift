import BrokerInterface
import CShims
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

/// A folder for groups that records the operations on it.
final class FakeGroups: DeviceGroups {
    let path = "/ubd"
    let controllers: [String]
    /// The error with which making a group fails.
    var problem: Int32?
    private(set) var entered: [DeviceGroup] = []
    private(set) var removed: [DeviceGroup] = []
    private(set) var kept: [[DeviceGroup]] = []
    private let folder: String

    init(_ controllers: [String] = ["cpu", "io", "memory", "pids"], folder: String = "/nowhere") {
        self.controllers = controllers
        self.folder = folder
    }

    func folder(of group: DeviceGroup) -> String { folder }
    func enter(_ group: DeviceGroup) throws(SystemError) -> FileDescriptor {
        if let problem { throw SystemError("mkdir", problem) }
        entered.append(group)
        return try FileDescriptor.open("/dev/null", O_WRONLY)
    }
    func remove(_ group: DeviceGroup) { removed.append(group) }
    func removeOthers(than groups: [DeviceGroup]) { kept.append(groups) }
}

@Suite("Control groups")
struct ControlGroupTests {
    private let policy = """
        allow group=50 target=null device-memory=192M user-memory=1G cpu-weight=50 max-devices=3
        allow group=50 target=loop device-memory=256M user-memory=2G cpu-quota=150 io-bandwidth=1M
        """

    @Test("a device's workers all go into its group, which is named in its record and removed at its end")
    func life() throws {
        let groups = FakeGroups()
        let host = try Host(policy: policy, groups: groups)
        host.kernel.features = [.perIODaemon]
        let (device, _) = try host.add().get()
        let group = host.broker.group(of: try #require(host.broker.devices[0]))
        #expect(group.name == "user-1000/device-0-\(String(device.generation, radix: 16))")
        #expect(device.controlGroup == "/ubd/\(group.name)")
        #expect(host.workers[0].group != nil)
        #expect(try host.broker.store.load().records.first?.device.controlGroup == device.controlGroup)
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(groups.entered == [group, group] && groups.removed == [])
        #expect(try host.delete(0) == nil)
        #expect(groups.removed == [group])
    }

    @Test("a device has the limits of its line, and its user the widest of all lines, as far as there are controllers")
    func limits() throws {
        let groups = FakeGroups(["cpu", "memory", "pids"])
        let host = try Host(policy: policy, groups: groups)
        let limits = try #require(try host.add(AddRequest(target: "null", queues: 2)).get().0.groupLimits)
        // One line has no weight, the other no quota: the user has neither limit.
        #expect(limits.deviceFiles.map(\.name) == ["memory.high", "memory.max", "memory.oom.group", "pids.max"])
        // An eighth less than 192 MiB, and 32 MiB less than 2 GiB.
        #expect(limits.deviceFiles.map(\.text) == ["176160768", "201326592", "1", "192"])
        let user = limits.userFiles.map { "\($0.name) \($0.text)" }
        #expect(user == ["memory.high 2113929216", "memory.max 2147483648"])
        let info = host.broker.info(for: Host.alice)
        #expect(info.controlGroup == "/ubd" && info.controllers == ["cpu", "memory", "pids"])
        #expect(info.limits?.groups?.deviceMemory == 256 << 20 && info.limits?.groups?.ioBandwidth == nil)
    }

    @Test("a device that its limits would never let start is refused with what it needs")
    func tooSmall() throws {
        let host = try Host(policy: policy, groups: FakeGroups())
        guard
            case .failure(.quotaReached(let message, _, "device-memory", let value, _)) =
                try host.add(AddRequest(target: "null", queues: 4))
        else {
            Issue.record("it was added")
            return
        }
        // 256 MiB of buffers and 64 MiB more.
        #expect(message.hasPrefix("335544320 exceeds device-memory=201326592") && value == 192 << 20)
    }

    @Test("an add fails whose group can not be made; a replacement of a device that is there does without")
    func failures() throws {
        let groups = FakeGroups()
        let host = try Host(policy: policy, groups: groups)
        host.kernel.features = [.perIODaemon]
        groups.problem = ENOSPC
        #expect(throws: InterfaceError.self) { try host.add().get() }
        try host.run { host.leftovers == [] }
        groups.problem = nil
        _ = try host.add().get()
        groups.problem = ENODEV
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(host.workers.last?.group == nil && host.broker.devices[0]?.info.controlGroup == nil)
    }

    @Test("the uids of one account share its group, and a device of an earlier broker stays in the group that it has")
    func accounts() throws {
        let groups = FakeGroups()
        let text = "alice:100000:65536\n"
        let accounts = Accounts(parsing: Array(text.utf8)) { $0 == "alice" ? 1000 : nil }
        let host = try Host(policy: "allow uid=* target=*", accounts: accounts, groups: groups)
        _ = try host.add(as: PeerCredentials(pid: 1, uid: 100_005, gid: 100_005, groups: [])).get()
        #expect(groups.entered.map(\.userName) == ["user-1000"])
        let device = try #require(host.broker.devices[0])
        device.info.controlGroup = "/elsewhere/user-77/device-0-1"
        #expect(host.broker.group(of: device).userName == "user-77")
        device.info.controlGroup = "/elsewhere/user-x/device-0-1"
        #expect(host.broker.group(of: device).userName == "user-1000")
    }

    @Test("without a place for groups there are none, and devices serve")
    func without() throws {
        let host = try Host(policy: policy)
        let (device, _) = try host.add().get()
        #expect(device.controlGroup == nil && device.groupLimits == nil && host.workers[0].group == nil)
        #expect(host.broker.info(for: Host.alice).limits?.groups == nil)
    }

    @Test("the limit of I/O is written for the whole disk below a partition, before the worker is told to serve")
    func ioLimit() throws {
        let folder = "/tmp/ubd-io-max-\(getpid())"
        mkdir(folder, 0o700)
        defer { for name in ["io.max", ""] { remove("\(folder)/\(name)") } }
        try replaceFile("\(folder)/io.max", with: [], mode: 0o600)
        let host = try Host(
            policy: "allow group=50 target=* io-bandwidth=1M io-operations=50", groups: FakeGroups(folder: folder))
        try makeDisk(host)
        host.geometry = geometry(file: 8 << 8 | 1)
        let device = try addLoop(host).get().0
        let text = String(decoding: try readFile("\(folder)/io.max"), as: UTF8.self)
        #expect(text == "8:0 rbps=1048576 wbps=1048576 riops=50 wiops=50")
        #expect(device.groupLimits?.ioOperations == 50)
    }

    @Test("where the file system has no disk of its own there is no limit of I/O, and none is shown")
    func noDisk() throws {
        let host = try Host(policy: "allow group=50 target=* io-bandwidth=1M device-memory=1G", groups: FakeGroups())
        try makeDisk(host)
        host.geometry = geometry(file: 0 << 8 | 42)
        let limits = try addLoop(host).get().0.groupLimits
        #expect(limits?.ioBandwidth == nil && limits?.deviceMemory == 1 << 30)
    }

    @Test("a limit of I/O that can not be written fails the add")
    func ioFails() throws {
        let host = try Host(policy: "allow group=50 target=* io-bandwidth=1M", groups: FakeGroups(folder: "/nowhere"))
        try makeDisk(host)
        host.geometry = geometry(file: 8 << 8 | 1)
        guard case .failure(.failed(let message, _, "io.max", _)) = try addLoop(host) else {
            Issue.record("it was added")
            return
        }
        #expect(message.contains("can not be set for disk 8:0"))
        try host.run { host.leftovers == [] }
    }

    private func geometry(file device: UInt64) -> Geometry {
        var geometry = Geometry(size: 1 << 20, logicalBlock: 512, physicalBlock: 4096)
        geometry.file = FileIdentity(device: device, inode: 1, born: 1)
        return geometry
    }

    /// 8:0, with a partition 8:1.
    private func makeDisk(_ host: Host) throws {
        let root = host.folder + "/sys"
        for folder in ["", "/dev", "/dev/block", "/devices", "/devices/sda", "/devices/sda/sda1"] {
            mkdir(root + folder, 0o700)
        }
        try replaceFile("\(root)/devices/sda/dev", with: Array("8:0\n".utf8), mode: 0o600)
        try replaceFile("\(root)/devices/sda/sda1/partition", with: Array("1\n".utf8), mode: 0o600)
        #expect(symlink("../../devices/sda", "\(root)/dev/block/8:0") == 0)
        #expect(symlink("../../devices/sda/sda1", "\(root)/dev/block/8:1") == 0)
    }

    @Test("a disk that sysfs does not tell is not taken for none: the add fails, and its I/O limit is not left out")
    func unknownDisk() throws {
        let host = try Host()
        try makeDisk(host)
        let sysfs = host.folder + "/sys"
        let first = geometry(file: UInt64(ubd_makedev(8, 1)))
        #expect(try BackingDisk.name(first, sysfs: sysfs) == "8:0")
        #expect(try BackingDisk.name(geometry(file: UInt64(ubd_makedev(8, 9))), sysfs: sysfs) == nil)
        // An overlay's base is a disk; what is written goes to its layer.
        var layered = first
        (layered.backingMajor, layered.backingMinor) = (8, 9)
        #expect(try BackingDisk.name(layered, writesToFile: true, sysfs: sysfs) == "8:0")
        #expect(try BackingDisk.name(layered, sysfs: sysfs) == nil)
        // ENOTDIR, as any error but ENOENT.
        #expect(throws: SystemError.self) { try BackingDisk.name(first, sysfs: sysfs + "/devices/sda/dev") }
        unlink(sysfs + "/devices/sda/sda1/partition")
        #expect(mkdir(sysfs + "/devices/sda/sda1/partition", 0o700) == 0)
        #expect(throws: SystemError.self) { try BackingDisk.name(first, sysfs: sysfs) }
    }

    private func addLoop(_ host: Host) throws -> Result<(Device, [Notice]), InterfaceError> {
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        defer { for end in ends { close(end) } }
        return try host.add(AddRequest(target: "loop", fileName: "my.img")) { parking in
            _ = try? send(parking, [0], files: [ends[0]])
        }
    }

    @Test("the unit's group is looked for beside the broker's own")
    func place() {
        #expect(ControlGroupPlace.parent(inCgroupFile: "0::/system.slice/ubd-broker.service\n") == "/system.slice")
        #expect(ControlGroupPlace.parent(inCgroupFile: "1:name=systemd:/x\n0::/a\n") == "")
        for text in ["0::/\n", "", "1:cpu:/a\n", "0::a/b\n"] {
            #expect(ControlGroupPlace.parent(inCgroupFile: text) == nil, "\(text)")
        }
        #expect(ControlGroupPlace(option: "auto") == .automatic && ControlGroupPlace(option: "none") == .none)
        #expect(ControlGroupPlace(option: "/sys/fs/cgroup/x") == .folder("/sys/fs/cgroup/x"))
    }

    @Test("what is no control group is not taken for one")
    func refusesFolders() throws {
        let loop = try EventLoop()
        for (folder, part) in [("/tmp", "is no folder of cgroup v2"), ("/nowhere", "No such file")] {
            let error = #expect(throws: ControlGroupPlace.Problem.self) {
                _ = try ControlGroupPlace.folder(folder).open(loop: loop)
            }
            #expect(error?.what.contains(part) == true, "\(String(describing: error))")
        }
    }
}
