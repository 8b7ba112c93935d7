import BrokerInterface
import Policy
import SystemCalls
import Targets

/// The control group of a device, inside its owner's group.
struct DeviceGroup: Equatable {
    /// The owner's account.
    var user: UInt32
    var device: UInt32
    /// Part of the name: the next device with this number may come before the last task of this one has ended.
    var generation: UInt64
    /// Written when the group is created.
    var limits: GroupLimits
    /// It is a memory disk's, whose memory its user can keep when the disk is gone.
    var isOfMemory = false

    var userName: String { DeviceGroup.userName(user) }
    /// Relative to the folder of all groups.
    var name: String { "\(userName)/\(DeviceGroup.devicePrefix)\(device)-\(String(generation, radix: 16))" }

    static let userPrefix = "user-"
    static let devicePrefix = "device-"
    static func userName(_ uid: UInt32) -> String { userPrefix + "\(uid)" }
    /// The user in the path of a device's group.
    static func user(inPath path: String) -> UInt32? {
        let parts = path.split(separator: "/").dropLast()
        guard let name = parts.last, name.hasPrefix(userPrefix) else { return nil }
        return UInt32(name.dropFirst(userPrefix.count))
    }
}

/// The control groups of workers, which account the resources of devices to their users. Unit tests replace this seam.
protocol DeviceGroups: AnyObject {
    /// The path as in /proc/PID/cgroup.
    var path: String { get }
    /// The available controllers, out of cpu, io, memory and pids.
    var controllers: [String] { get }
    /// The folder of the user's group; its io.max applies to all devices of the user.
    func folder(of group: DeviceGroup) -> String
    /// Creates the group and its user's group if necessary. Returns the group's cgroup.procs: a process that writes 0
    /// to it moves itself into the group.
    func enter(_ group: DeviceGroup) throws(SystemError) -> FileDescriptor
    /// Removes the group of a worker that has ended, and the user's group if it was the last one: at once, or when its
    /// last task has ended. The group of a user who has had memory disks stays as long as their memory does.
    func remove(_ group: DeviceGroup)
    /// Removes the groups that belong to no device.
    func removeOthers(than groups: [DeviceGroup])
}

extension GroupLimits {
    /// The limits of the deciding line, and those of all lines of its user for the user's group.
    init(_ line: AccessLimits, ofUser user: AccessLimits) {
        func number(_ value: UInt64?) -> Int64? { value.map { Int64(clamping: $0) } }
        self.init()
        deviceMemory = number(line.deviceMemory)
        deviceTasks = number(line.deviceTasks)
        userMemory = number(user.userMemory)
        cpuWeight = number(user.cpuWeight)
        cpuQuota = number(user.cpuQuota)
        ioBandwidth = number(user.ioBandwidth)
        ioOperations = number(user.ioOperations)
    }

    /// The limits that these controllers can enforce.
    func kept(by controllers: [String]) -> GroupLimits {
        var result = self
        if !controllers.contains("memory") { (result.deviceMemory, result.userMemory) = (nil, nil) }
        if !controllers.contains("pids") { result.deviceTasks = nil }
        if !controllers.contains("cpu") { (result.cpuWeight, result.cpuQuota) = (nil, nil) }
        if !controllers.contains("io") { (result.ioBandwidth, result.ioOperations) = (nil, nil) }
        return result
    }

    /// Most bytes of memory, and a little less from which on the kernel slows the group down: the reclaim of io_uring's
    /// threads never waits for pages to be written back, so they would reach memory.max while these could still be freed.
    /// The part between the two is at most half of the 64 MiB that each device has beside its locked buffers.
    private static func memoryFiles(_ bytes: Int64) -> [(name: String, text: String)] {
        [("memory.high", "\(bytes - min(bytes / 8, 32 << 20))"), ("memory.max", "\(bytes)")]
    }

    /// The limit files of a user's group with their content.
    var userFiles: [(name: String, text: String)] {
        var files: [(name: String, text: String)] = []
        if let userMemory { files += GroupLimits.memoryFiles(userMemory) }
        if let cpuWeight { files.append(("cpu.weight", "\(cpuWeight)")) }
        // Microseconds of processor time per 100 ms.
        if let cpuQuota { files.append(("cpu.max", "\(cpuQuota * 1000) 100000")) }
        return files
    }

    /// The limit files of a device's group. Out of memory, the kernel kills the whole group and nothing else.
    var deviceFiles: [(name: String, text: String)] {
        var files: [(name: String, text: String)] = []
        if let deviceMemory {
            files += GroupLimits.memoryFiles(deviceMemory)
            files.append(("memory.oom.group", "1"))
        }
        if let deviceTasks { files.append(("pids.max", "\(deviceTasks)")) }
        return files
    }

    /// A line of io.max for this disk; nil without a limit.
    func ioText(disk: String) -> String? {
        guard ioBandwidth != nil || ioOperations != nil else { return nil }
        let bytes = ioBandwidth.map { "\($0)" } ?? "max"
        let operations = ioOperations.map { "\($0)" } ?? "max"
        return "\(disk) rbps=\(bytes) wbps=\(bytes) riops=\(operations) wiops=\(operations)"
    }
}
