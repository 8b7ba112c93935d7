import Varlink

/// The parameters of Upgrade.
public struct UpgradeRequest: Equatable, Sendable {
    public var id: UInt32
    /// Only the device of this generation, not a later one with the same id.
    public var generation: UInt64?

    public init(id: UInt32, generation: UInt64? = nil) {
        self.id = id
        self.generation = generation
    }

    /// Decodes the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.integer("id")
        generation = try fields.optionalInteger("generation")
        try fields.finish()
    }

    public var json: JSON {
        .record([("id", .integer(clamping: id)), ("generation", generation.map { .integer(clamping: $0) })])
    }
}

/// The reply to Upgrade.
public struct UpgradeReply: Equatable, Sendable {
    /// False: the worker had the current program already, and serves on.
    public var upgraded: Bool
    /// The device after the call.
    public var device: Device

    public init(upgraded: Bool, device: Device) {
        self.upgraded = upgraded
        self.device = device
    }

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        upgraded = try fields.flag("upgraded")
        guard let value = fields.value("device") else { throw .invalidParameter(parameter: "device") }
        device = try Device(json: value, path: "device", unknown: unknown)
        try fields.finish()
    }

    public var json: JSON { .record([("upgraded", .bool(upgraded)), ("device", device.json)]) }
}

/// The parameters of Recover. Its replies are those of Add (`AddReply`).
public struct RecoverRequest: Equatable, Sendable {
    public var id: UInt32
    /// Only the device of this generation, not a later one with the same id.
    public var generation: UInt64?

    public init(id: UInt32, generation: UInt64? = nil) {
        self.id = id
        self.generation = generation
    }

    /// Decodes the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.integer("id")
        generation = try fields.optionalInteger("generation")
        try fields.finish()
    }

    public var json: JSON {
        .record([("id", .integer(clamping: id)), ("generation", generation.map { .integer(clamping: $0) })])
    }
}
