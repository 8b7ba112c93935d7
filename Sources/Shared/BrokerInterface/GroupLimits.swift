/// The limits of the control groups of a device and its owner; nil: no limit. `members` explains each.
public struct GroupLimits: Equatable, Sendable {
    public var deviceMemory: Int64?
    public var deviceTasks: Int64?
    public var userMemory: Int64?
    public var cpuWeight: Int64?
    public var cpuQuota: Int64?
    public var ioBandwidth: Int64?
    public var ioOperations: Int64?

    public init() {}
}

extension GroupLimits: Structure {
    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member(
            "deviceMemory", &deviceMemory,
            "Bytes of one device: buffers, program, page cache, and what the kernel needs for it.")
        try coder.member("deviceTasks", &deviceTasks)
        try coder.member("userMemory", &userMemory)
        try coder.member(
            "cpuWeight", &cpuWeight, "The processor weight relative to other users, 1 to 10000; 100 is the default.")
        try coder.member("cpuQuota", &cpuQuota, "Percent of one processor.")
        try coder.member(
            "ioBandwidth", &ioBandwidth, "Bytes per second on each disk, for reads and for writes separately.")
        try coder.member("ioOperations", &ioOperations, "The same for operations per second.")
    }
}
