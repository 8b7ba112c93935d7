import Varlink

/// The reply to org.varlink.service.GetInfo.
public struct ServiceInfoReply: Equatable, Sendable {
    public var vendor: String
    public var product: String
    public var version: String
    public var url: String
    /// The names of all interfaces of the service.
    public var interfaces: [String]

    public init(version: String) {
        vendor = "ubd"
        product = "ubd-broker"
        self.version = version
        url = "https://docs.kernel.org/block/ublk.html"
        interfaces = [BrokerAPI.serviceInterface, BrokerAPI.interface]
    }

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        vendor = try fields.string("vendor")
        product = try fields.string("product")
        version = try fields.string("version")
        url = try fields.string("url")
        interfaces = try fields.strings("interfaces")
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("vendor", .string(vendor)), ("product", .string(product)), ("version", .string(version)),
            ("url", .string(url)), ("interfaces", .array(interfaces.map(JSON.string))),
        ])
    }
}

/// The reply to org.varlink.service.GetInterfaceDescription.
public struct InterfaceDescriptionReply: Equatable, Sendable {
    /// The interface in Varlink's definition language.
    public var description: String

    public init(description: String) {
        self.description = description
    }

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        description = try fields.string("description")
        try fields.finish()
    }

    public var json: JSON { .record([("description", .string(description))]) }
}
