import Varlink

/// What the access policy lets a caller have.
public struct Limits: Equatable, Sendable {
    /// Devices at once.
    public var maxDevices: Int64
    /// Hardware queues of one device.
    public var maxQueues: Int64
    /// Requests at once in each queue.
    public var maxDepth: Int64
    /// Bytes of I/O buffers of all devices together: the sum of queues × depth × maxIOBytes.
    public var maxMemoryBytes: Int64
    /// Most bytes of one device; nil: no limit.
    public var maxSizeBytes: Int64?
    /// Names of the targets that may be used.
    public var targets: [String]
    public var readOnlyOnly: Bool
    public var zeroCopy: Bool
    /// The caller's adds, upgrades and recoveries: so many at once, and then so many a minute; nil: no limit.
    public var maxStarts: Int64?
    /// Seconds without a new worker after one of the caller's broke its sandbox for the first time within a day; nil: none.
    public var penalty: Int64?
    /// Device numbers that may be asked for; nil: any that is not kept for others.
    public var ids: String?
    /// CPUs on which the caller's workers run; nil: all.
    public var cpus: String?
    /// What the control groups of the caller's devices keep; nil: nothing.
    public var groups: GroupLimits?

    /// Limits of these numbers.
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

    /// Reads limits.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the member, below `path`.
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

    /// The limits on the wire.
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

/// What Info replies: the broker, the host, and what the caller may do.
public struct InfoReply: Equatable, Sendable {
    /// The broker's version.
    public var version: String
    /// The kernel's release, as `uname -r` prints it.
    public var kernel: String
    /// What the driver said to GET_FEATURES; 0 when the driver is not there.
    public var featureBits: UInt64
    /// Names of the kernel's features, those known to us (`KernelFeature`).
    public var features: [String]
    /// Names of those features that this broker does not use.
    public var ignoredFeatures: [String]
    /// Names of the targets that this broker serves.
    public var targets: [String]
    /// Devices of all users.
    public var devices: Int64
    /// Devices of the caller.
    public var devicesOfCaller: Int64
    /// Uids for workers that are free now: how many more devices the host can have.
    public var workerUidsFree: Int64
    /// The group of the workers; `kernel.io_uring_group` must name it when `kernel.io_uring_disabled` is 1.
    public var workerGroup: String
    /// The socket on which the broker listens.
    public var socket: String
    /// Where the control groups of devices are made, as in /proc/PID/cgroup; nil: there are none.
    public var controlGroup: String?
    /// The controllers of these groups: of cpu, io, memory, pids.
    public var controllers: [String]
    /// When the broker was started, in seconds since 1970.
    public var started: Int64
    /// The caller may add devices.
    public var permitted: Bool
    /// The text of the access rule that decided about the caller; nil when none did.
    public var rule: String?
    /// The caller's limits; nil when not permitted.
    public var limits: Limits?

    /// Information of these parts.
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

    /// Reads the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the parameter.
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

    /// The parameters on the wire.
    public var json: JSON {
        .record([
            ("version", .string(version)), ("kernel", .string(kernel)),
            // Bit for bit: a feature in bit 63 must not be lost to clamping.
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
