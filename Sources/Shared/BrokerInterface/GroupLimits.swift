import Varlink

/// The limits of the control groups of a device and its owner; nil: no limit.
public struct GroupLimits: Equatable, Sendable {
    /// Bytes of one device.
    public var deviceMemory: Int64?
    /// Tasks of one device.
    public var deviceTasks: Int64?
    /// Bytes of all devices of the user.
    public var userMemory: Int64?
    /// The processor weight relative to other users, 1 to 10000; 100 is the default.
    public var cpuWeight: Int64?
    /// Percent of one processor, for all devices of the user together.
    public var cpuQuota: Int64?
    /// Bytes per second on each disk for all devices of the user together, for reads and for writes separately.
    public var ioBandwidth: Int64?
    /// The same for operations per second.
    public var ioOperations: Int64?

    public init() {}

    /// Decodes limits.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(
        json: JSON, path: String = "", unknown: UnknownFields = .refuse
    ) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        deviceMemory = try fields.optionalInteger("deviceMemory")
        deviceTasks = try fields.optionalInteger("deviceTasks")
        userMemory = try fields.optionalInteger("userMemory")
        cpuWeight = try fields.optionalInteger("cpuWeight")
        cpuQuota = try fields.optionalInteger("cpuQuota")
        ioBandwidth = try fields.optionalInteger("ioBandwidth")
        ioOperations = try fields.optionalInteger("ioOperations")
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("deviceMemory", deviceMemory.map(JSON.integer)), ("deviceTasks", deviceTasks.map(JSON.integer)),
            ("userMemory", userMemory.map(JSON.integer)), ("cpuWeight", cpuWeight.map(JSON.integer)),
            ("cpuQuota", cpuQuota.map(JSON.integer)), ("ioBandwidth", ioBandwidth.map(JSON.integer)),
            ("ioOperations", ioOperations.map(JSON.integer)),
        ])
    }
}
