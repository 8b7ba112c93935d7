/// The caller's limits in the access policy. `members` explains each.
public struct Limits: Equatable, Sendable {
    public var maxDevices: Int64 = 0
    public var maxQueues: Int64 = 0
    public var maxDepth: Int64 = 0
    public var maxMemoryBytes: Int64 = 0
    public var memoryDiskBytes: Int64?
    public var maxSizeBytes: Int64?
    public var targets: [String] = []
    public var readOnlyOnly = false
    public var zeroCopy = false
    public var maxStarts: Int64?
    public var penalty: Int64?
    public var ids: String?
    public var cpus: String?
    public var groups: GroupLimits?
    public var connections: Int64?
    public var anyServer: Bool?

    public init() {}
}

extension Limits: Structure {
    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("maxDevices", &maxDevices)
        try coder.member("maxQueues", &maxQueues)
        try coder.member("maxDepth", &maxDepth)
        try coder.member(
            "maxMemoryBytes", &maxMemoryBytes,
            "Bytes of I/O buffers of all devices: the sum of queues times depth times maxIOBytes, and the targets' spare buffers."
        )
        try coder.member("memoryDiskBytes", &memoryDiskBytes, "Bytes of all memory disks. Null: none is permitted.")
        try coder.member("maxSizeBytes", &maxSizeBytes, "Null: no limit.")
        try coder.member("targets", &targets)
        try coder.member("readOnlyOnly", &readOnlyOnly)
        try coder.member("zeroCopy", &zeroCopy)
        try coder.member(
            "maxStarts", &maxStarts,
            "Adds, upgrades and recoveries: this many at once, and this many a minute. Null: no limit.")
        try coder.member(
            "penalty", &penalty,
            """
            Seconds without starts after a worker of the caller broke its sandbox for the first time within a day. Null:
            none.
            """)
        try coder.member(
            "ids", &ids,
            "Device numbers that a request may name, as in 0-15,20. Null: any that no line reserves.")
        try coder.member("cpus", &cpus, "The processors on which the caller's workers run, as in 0-1,3. Null: all.")
        try coder.member("groups", &groups, "The limits of the control groups of the caller's devices. Null: none.")
        try coder.member(
            "connections", &connections,
            "Connections of one device to its server. Null: no target with connections is permitted.")
        try coder.member("anyServer", &anyServer, "These may lead to other hosts. Null as above.")
    }
}

/// The reply to Info: the broker, the host, and the caller's rights. `members` explains each.
public struct InfoReply: Equatable, Sendable {
    public var version = ""
    public var kernel = ""
    public var featureBits: UInt64 = 0
    public var features: [String] = []
    public var ignoredFeatures: [String] = []
    public var targets: [String] = []
    public var devices: Int64 = 0
    public var devicesOfCaller: Int64 = 0
    public var workerUidsFree: Int64 = 0
    public var workerGroup = ""
    public var socket = ""
    public var controlGroup: String?
    public var controllers: [String] = []
    public var descriptorStore: Int64?
    public var descriptorStoreProblem: String?
    public var started: Int64 = 0
    public var permitted = false
    public var rule: String?
    public var limits: Limits?

    public init() {}
}

extension InfoReply: Structure {
    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("version", &version, "The broker's version.")
        try coder.member("kernel", &kernel, "The kernel's release, as uname -r prints it.")
        // As a bit pattern: clamping would lose a feature in bit 63.
        var bits = Int64(bitPattern: featureBits)
        try coder.member("featureBits", &bits, "The driver's answer to GET_FEATURES; 0 without a driver.")
        featureBits = UInt64(bitPattern: bits)
        try coder.member("features", &features, "The names of these features, as far as ubd knows them.")
        try coder.member(
            "ignoredFeatures", &ignoredFeatures, "The names of the features that this broker does not use.")
        try coder.member("targets", &targets, "The names of the targets that this broker serves.")
        try coder.member("devices", &devices, "Devices of all users.")
        try coder.member("devicesOfCaller", &devicesOfCaller)
        try coder.member(
            "workerUidsFree", &workerUidsFree,
            "Free uids for workers: the number of further devices that the host can have.")
        try coder.member(
            "workerGroup", &workerGroup,
            "The workers' group, which kernel.io_uring_group must name when kernel.io_uring_disabled is 1.")
        try coder.member("socket", &socket, "The path of the broker's socket.")
        try coder.member(
            "controlGroup", &controlGroup,
            "The parent of the devices' control groups, as in /proc/PID/cgroup. Null: there are none.")
        var there = controllers.isEmpty ? nil : controllers
        try coder.member("controllers", &there, "The controllers of these groups, out of cpu, io, memory and pids.")
        controllers = there ?? []
        try coder.member(
            "descriptorStore", &descriptorStore,
            "The most devices whose files systemd keeps, too: such a device comes back by itself when broker and worker die together. Null: none; then such a device waits for Recover."
        )
        try coder.member(
            "descriptorStoreProblem", &descriptorStoreProblem, "Why systemd keeps no files; null when it does.")
        try coder.member("started", &started, "The broker's start, in seconds since 1970.")
        try coder.member("permitted", &permitted, "The caller may add devices.")
        try coder.member(
            "rule", &rule, "The text of the access rule that decided for the caller; null when none matched.")
        try coder.member("limits", &limits, "The caller's limits; null when it may add no device.")
    }
}
