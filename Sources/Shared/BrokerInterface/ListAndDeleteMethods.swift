import Varlink

/// The parameters of Delete.
public struct DeleteRequest: Equatable, Sendable {
    public var id: UInt32
    /// Delete only the device of this generation, not a later one with the same id.
    public var generation: UInt64?
    /// Kill the worker first and skip all checks; requests in flight fail.
    public var force: Bool?

    public init(id: UInt32, generation: UInt64? = nil, force: Bool? = nil) {
        self.id = id
        self.generation = generation
        self.force = force
    }

    /// Decodes the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.integer("id")
        generation = try fields.optionalInteger("generation")
        force = try fields.optionalFlag("force")
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("id", .integer(clamping: id)), ("generation", generation.map { .integer(clamping: $0) }),
            ("force", force.map(JSON.bool)),
        ])
    }
}

/// The parameters of List.
public struct ListRequest: Equatable, Sendable {
    /// Only this device; nil: all that the caller may see.
    public var id: UInt32?

    public init(id: UInt32? = nil) {
        self.id = id
    }

    /// Decodes the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.optionalInteger("id")
        try fields.finish()
    }

    public var json: JSON { .record([("id", id.map { .integer(clamping: $0) })]) }
}

/// The reply to List: the caller's devices, or all devices for root.
public struct ListReply: Equatable, Sendable {
    public var devices: [Device]

    public init(devices: [Device]) {
        self.devices = devices
    }

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        devices = try fields.array("devices") { (json, path) throws(InterfaceError) in
            try Device(json: json, path: path, unknown: unknown)
        }
        try fields.finish()
    }

    public var json: JSON { .record([("devices", .array(devices.map(\.json)))]) }
}
