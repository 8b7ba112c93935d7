import Varlink

/// What Upgrade is called with.
public struct UpgradeRequest: Equatable, Sendable {
    public var id: UInt32
    /// When given, only the device of this generation, not a later one with the same id.
    public var generation: UInt64?

    /// A request to upgrade that device's worker.
    public init(id: UInt32, generation: UInt64? = nil) {
        self.id = id
        self.generation = generation
    }

    /// Reads the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the parameter.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.integer("id")
        generation = try fields.optionalInteger("generation")
        try fields.finish()
    }

    /// The parameters on the wire.
    public var json: JSON {
        .record([("id", .integer(clamping: id)), ("generation", generation.map { .integer(clamping: $0) })])
    }
}

/// What Upgrade replies.
public struct UpgradeReply: Equatable, Sendable {
    /// False: its worker was of the present program already, and serves on.
    public var upgraded: Bool
    /// As it is now.
    public var device: Device

    /// A reply about that device.
    public init(upgraded: Bool, device: Device) {
        self.upgraded = upgraded
        self.device = device
    }

    /// Reads the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the parameter.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        upgraded = try fields.flag("upgraded")
        guard let value = fields.value("device") else { throw .invalidParameter(parameter: "device") }
        device = try Device(json: value, path: "device", unknown: unknown)
        try fields.finish()
    }

    /// The parameters on the wire.
    public var json: JSON { .record([("upgraded", .bool(upgraded)), ("device", device.json)]) }
}

/// What Recover is called with. Its replies are those of Add (`AddReply`).
public struct RecoverRequest: Equatable, Sendable {
    public var id: UInt32
    /// When given, only the device of this generation, not a later one with the same id.
    public var generation: UInt64?

    /// A request to bring that device's file again.
    public init(id: UInt32, generation: UInt64? = nil) {
        self.id = id
        self.generation = generation
    }

    /// Reads the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the parameter.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.integer("id")
        generation = try fields.optionalInteger("generation")
        try fields.finish()
    }

    /// The parameters on the wire.
    public var json: JSON {
        .record([("id", .integer(clamping: id)), ("generation", generation.map { .integer(clamping: $0) })])
    }
}
