import BrokerInterface
import Policy
import SystemCalls

/// The control group of one device, below its owner's.
struct DeviceGroup: Equatable {
    /// Its owner's account.
    var user: UInt32
    var device: UInt32
    /// Part of its name: the next device of that number may come while a task of this one still ends.
    var generation: UInt64
    /// What is written when it is made.
    var limits: GroupLimits

    var userName: String { DeviceGroup.userName(user) }
    /// Below the folder of all groups.
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

/// Where workers are put, so that what their devices use counts for their users: the seam at which the unit tests put groups
/// of their own.
protocol DeviceGroups: AnyObject {
    /// As in /proc/PID/cgroup.
    var path: String { get }
    /// Those that can be had: of cpu, io, memory, pids.
    var controllers: [String] { get }
    /// The user's folder, whose io.max is for all its devices.
    func folder(of group: DeviceGroup) -> String
    /// Makes the group, and its user's, where they are not there yet, and opens it for the worker: whoever writes 0 there
    /// moves itself into it.
    func enter(_ group: DeviceGroup) throws(SystemError) -> FileDescriptor
    /// Removes a group whose worker has ended, and its user's when it was the last: at once, or when the last task has left.
    func remove(_ group: DeviceGroup)
    /// Removes what no device has any more.
    func removeOthers(than groups: [DeviceGroup])
}

extension GroupLimits {
    /// Of a line, and of all lines of its user.
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

    /// The limits that these controllers keep.
    func kept(by controllers: [String]) -> GroupLimits {
        var result = self
        if !controllers.contains("memory") { (result.deviceMemory, result.userMemory) = (nil, nil) }
        if !controllers.contains("pids") { result.deviceTasks = nil }
        if !controllers.contains("cpu") { (result.cpuWeight, result.cpuQuota) = (nil, nil) }
        if !controllers.contains("io") { (result.ioBandwidth, result.ioOperations) = (nil, nil) }
        return result
    }

    /// What a user's group is told, file by file.
    var userFiles: [(name: String, text: String)] {
        var files: [(name: String, text: String)] = []
        if let userMemory { files.append(("memory.max", "\(userMemory)")) }
        if let cpuWeight { files.append(("cpu.weight", "\(cpuWeight)")) }
        // Microseconds of processor time in each tenth of a second.
        if let cpuQuota { files.append(("cpu.max", "\(cpuQuota * 1000) 100000")) }
        return files
    }

    /// What a device's group is told. One that is out of memory ends as a whole, and nobody else with it.
    var deviceFiles: [(name: String, text: String)] {
        var files: [(name: String, text: String)] = []
        if let deviceMemory {
            files.append(("memory.max", "\(deviceMemory)"))
            files.append(("memory.oom.group", "1"))
        }
        if let deviceTasks { files.append(("pids.max", "\(deviceTasks)")) }
        return files
    }

    /// A line of io.max for the disk of that number; nil when there is nothing to limit.
    func ioText(disk: String) -> String? {
        guard ioBandwidth != nil || ioOperations != nil else { return nil }
        let bytes = ioBandwidth.map { "\($0)" } ?? "max"
        let operations = ioOperations.map { "\($0)" } ?? "max"
        return "\(disk) rbps=\(bytes) wbps=\(bytes) riops=\(operations) wiops=\(operations)"
    }
}
