import Varlink

/// What org.varlink.service.GetInfo replies.
public struct ServiceInfoReply: Equatable, Sendable {
    public var vendor: String
    public var product: String
    public var version: String
    public var url: String
    /// Names of all interfaces that the service has.
    public var interfaces: [String]

    /// The broker of that version.
    public init(version: String) {
        vendor = "ubd"
        product = "ubd-broker"
        self.version = version
        url = "https://docs.kernel.org/block/ublk.html"
        interfaces = [BrokerAPI.serviceInterface, BrokerAPI.interface]
    }

    /// Reads the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the parameter.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        vendor = try fields.string("vendor")
        product = try fields.string("product")
        version = try fields.string("version")
        url = try fields.string("url")
        interfaces = try fields.strings("interfaces")
        try fields.finish()
    }

    /// The parameters on the wire.
    public var json: JSON {
        .record([
            ("vendor", .string(vendor)), ("product", .string(product)), ("version", .string(version)),
            ("url", .string(url)), ("interfaces", .array(interfaces.map(JSON.string))),
        ])
    }
}

/// What org.varlink.service.GetInterfaceDescription replies.
public struct InterfaceDescriptionReply: Equatable, Sendable {
    /// The interface in Varlink's definition language.
    public var description: String

    /// A reply with that text.
    public init(description: String) {
        self.description = description
    }

    /// Reads the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the parameter.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        description = try fields.string("description")
        try fields.finish()
    }

    /// The parameters on the wire.
    public var json: JSON { .record([("description", .string(description))]) }
}
