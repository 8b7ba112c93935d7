import Varlink

/// The caller's limits in the access policy.
public struct Limits: Equatable, Sendable {
    /// Devices at a time.
    public var maxDevices: Int64
    /// Hardware queues of one device.
    public var maxQueues: Int64
    /// Tags per queue.
    public var maxDepth: Int64
    /// Bytes of I/O buffers of all devices: the sum of queues × depth × maxIOBytes.
    public var maxMemoryBytes: Int64
    /// Maximum size of one device in bytes; nil: no limit.
    public var maxSizeBytes: Int64?
    /// The names of the allowed targets.
    public var targets: [String]
    public var readOnlyOnly: Bool
    public var zeroCopy: Bool
    /// Adds, upgrades and recoveries: this many at once, and this many a minute; nil: no limit.
    public var maxStarts: Int64?
    /// Seconds without starts after a worker of the caller broke its sandbox for the first time within a day; nil:
    /// none.
    public var penalty: Int64?
    /// Device numbers that a request may name; nil: any that no line reserves.
    public var ids: String?
    /// The processors on which the caller's workers run; nil: all.
    public var cpus: String?
    /// The limits of the control groups of the caller's devices; nil: none.
    public var groups: GroupLimits?

    public init(
        maxDevices: Int64, maxQueues: Int64, maxDepth: Int64, maxMemoryBytes: Int64, maxSizeBytes: Int64?,
        targets: [String], readOnlyOnly: Bool, zeroCopy: Bool, maxStarts: Int64? = nil, penalty: Int64? = nil,
        ids: String? = nil, cpus: String? = nil, groups: GroupLimits? = nil
    ) {
        self.maxDevices = maxDevices
        self.maxQueues = maxQueues
        self.maxDepth = maxDepth
        self.maxMemoryBytes = maxMemoryBytes
        self.maxSizeBytes = maxSizeBytes
        self.targets = targets
        self.readOnlyOnly = readOnlyOnly
        self.zeroCopy = zeroCopy
        self.maxStarts = maxStarts
        self.penalty = penalty
        self.ids = ids
        self.cpus = cpus
        self.groups = groups
    }

    /// Decodes limits.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(
        json: JSON, path: String = "", unknown: UnknownFields = .refuse
    ) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        maxDevices = try fields.integer("maxDevices")
        maxQueues = try fields.integer("maxQueues")
        maxDepth = try fields.integer("maxDepth")
        maxMemoryBytes = try fields.integer("maxMemoryBytes")
        maxSizeBytes = try fields.optionalInteger("maxSizeBytes")
        targets = try fields.strings("targets")
        readOnlyOnly = try fields.flag("readOnlyOnly")
        zeroCopy = try fields.flag("zeroCopy")
        maxStarts = try fields.optionalInteger("maxStarts")
        penalty = try fields.optionalInteger("penalty")
        ids = try fields.optionalString("ids")
        cpus = try fields.optionalString("cpus")
        groups = nil
        if let value = fields.value("groups") {
            groups = try GroupLimits(json: value, path: fields.fullName("groups"), unknown: unknown)
        }
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("maxDevices", .integer(maxDevices)), ("maxQueues", .integer(maxQueues)), ("maxDepth", .integer(maxDepth)),
            ("maxMemoryBytes", .integer(maxMemoryBytes)), ("maxSizeBytes", maxSizeBytes.map(JSON.integer)),
            ("targets", .array(targets.map(JSON.string))), ("readOnlyOnly", .bool(readOnlyOnly)),
            ("zeroCopy", .bool(zeroCopy)), ("maxStarts", maxStarts.map(JSON.integer)),
            ("penalty", penalty.map(JSON.integer)), ("ids", ids.map(JSON.string)), ("cpus", cpus.map(JSON.string)),
            ("groups", groups?.json),
        ])
    }
}

/// The reply to Info: the broker, the host, and the caller's rights.
public struct InfoReply: Equatable, Sendable {
    /// The broker's version.
    public var version: String
    /// The kernel's release, as `uname -r` prints it.
    public var kernel: String
    /// The driver's answer to GET_FEATURES; 0 without a driver.
    public var featureBits: UInt64
    /// The names of these features, as far as ubd knows them (`KernelFeature`).
    public var features: [String]
    /// The names of the features that this broker does not use.
    public var ignoredFeatures: [String]
    /// The names of the targets that this broker serves.
    public var targets: [String]
    /// Devices of all users.
    public var devices: Int64
    /// Devices of the caller.
    public var devicesOfCaller: Int64
    /// Free uids for workers: the number of further devices that the host can have.
    public var workerUidsFree: Int64
    /// The group of the workers; `kernel.io_uring_group` must name it when `kernel.io_uring_disabled` is 1.
    public var workerGroup: String
    /// The path of the broker's socket.
    public var socket: String
    /// The parent of the devices' control groups, as in /proc/PID/cgroup; nil: there are none.
    public var controlGroup: String?
    /// The controllers of these groups, out of cpu, io, memory and pids.
    public var controllers: [String]
    /// The broker's start, in seconds since 1970.
    public var started: Int64
    /// The caller may add devices.
    public var permitted: Bool
    /// The text of the access rule that decided for the caller; nil when none matched.
    public var rule: String?
    /// The caller's limits; nil when it may add no device.
    public var limits: Limits?

    public init(
        version: String, kernel: String, featureBits: UInt64, features: [String], ignoredFeatures: [String],
        targets: [String], devices: Int64, devicesOfCaller: Int64, workerUidsFree: Int64, workerGroup: String,
        socket: String, controlGroup: String?, controllers: [String], started: Int64, permitted: Bool, rule: String?,
        limits: Limits?
    ) {
        self.version = version
        self.kernel = kernel
        self.featureBits = featureBits
        self.features = features
        self.ignoredFeatures = ignoredFeatures
        self.targets = targets
        self.devices = devices
        self.devicesOfCaller = devicesOfCaller
        self.workerUidsFree = workerUidsFree
        self.workerGroup = workerGroup
        self.socket = socket
        self.controlGroup = controlGroup
        self.controllers = controllers
        self.started = started
        self.permitted = permitted
        self.rule = rule
        self.limits = limits
    }

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        version = try fields.string("version")
        kernel = try fields.string("kernel")
        featureBits = UInt64(bitPattern: try fields.integer("featureBits", as: Int64.self))
        features = try fields.strings("features")
        ignoredFeatures = try fields.strings("ignoredFeatures")
        targets = try fields.strings("targets")
        devices = try fields.integer("devices")
        devicesOfCaller = try fields.integer("devicesOfCaller")
        workerUidsFree = try fields.integer("workerUidsFree")
        workerGroup = try fields.string("workerGroup")
        socket = try fields.string("socket")
        controlGroup = try fields.optionalString("controlGroup")
        controllers =
            try fields.optionalArray("controllers") { (json, path) throws(InterfaceError) in
                guard case .string(let name) = json else { throw .invalidParameter(parameter: path) }
                return name
            } ?? []
        started = try fields.integer("started")
        permitted = try fields.flag("permitted")
        rule = try fields.optionalString("rule")
        limits = nil
        if let value = fields.value("limits") {
            limits = try Limits(json: value, path: "limits", unknown: unknown)
        }
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("version", .string(version)), ("kernel", .string(kernel)),
            // As a bit pattern: clamping would lose a feature in bit 63.
            ("featureBits", .integer(Int64(bitPattern: featureBits))),
            ("features", .array(features.map(JSON.string))),
            ("ignoredFeatures", .array(ignoredFeatures.map(JSON.string))),
            ("targets", .array(targets.map(JSON.string))), ("devices", .integer(devices)),
            ("devicesOfCaller", .integer(devicesOfCaller)), ("workerUidsFree", .integer(workerUidsFree)),
            ("workerGroup", .string(workerGroup)), ("socket", .string(socket)),
            ("controlGroup", controlGroup.map(JSON.string)),
            ("controllers", controllers.isEmpty ? nil : .array(controllers.map(JSON.string))),
            ("started", .integer(started)),
            ("permitted", .bool(permitted)), ("rule", rule.map(JSON.string)), ("limits", limits?.json),
        ])
    }
}
