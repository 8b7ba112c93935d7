/// The reply to org.varlink.service.GetInfo.
public struct ServiceInfoReply: Equatable, Sendable {
    public var vendor: String
    public var product: String
    public var version: String
    public var url: String
    /// The names of all interfaces of the service.
    public var interfaces: [String]

    /// The reply of a broker of this version.
    public init(version: String) {
        vendor = "ubd"
        product = "ubd-broker"
        self.version = version
        url = "https://docs.kernel.org/block/ublk.html"
        interfaces = [BrokerAPI.serviceInterface, BrokerAPI.interface]
    }
}

extension ServiceInfoReply: Structure {
    public init() { self.init(version: "") }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("vendor", &vendor)
        try coder.member("product", &product)
        try coder.member("version", &version)
        try coder.member("url", &url)
        try coder.member("interfaces", &interfaces)
    }
}

/// The parameters of org.varlink.service.GetInterfaceDescription.
struct InterfaceDescriptionRequest: Structure {
    var interface = ""

    mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("interface", &interface)
    }
}

/// The parameters of a method that has none.
struct NoParameters: Structure {
    mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {}
}

/// The reply to org.varlink.service.GetInterfaceDescription.
public struct InterfaceDescriptionReply: Equatable, Sendable {
    /// The interface in Varlink's definition language.
    public var description: String

    /// A reply with this text.
    public init(description: String) {
        self.description = description
    }
}

extension InterfaceDescriptionReply: Structure {
    public init() { self.init(description: "") }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("description", &description)
    }
}
