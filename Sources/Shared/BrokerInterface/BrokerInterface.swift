import Varlink

/// The names of the broker's public interface.
public enum BrokerAPI {
    /// The interface that this module describes.
    public static let interface = "io.ubd.Broker"
    /// The interface that every Varlink service implements.
    public static let serviceInterface = "org.varlink.service"
    /// The default path of the broker's socket.
    public static let socketPath = "/run/ubd/io.ubd.Broker"
    /// The environment variable with which a client chooses another socket.
    public static let socketVariable = "UBD_SOCKET"
    /// The holder in a Busy error when some program has the device open. Only the owner's client can find out which.
    public static let openSomewhere = "open somewhere"
    /// The holder in a Busy error when another client's deletion of the device has begun.
    public static let beingDeleted = "being deleted already"
    /// The holder in a Busy error when it is unknown whether the device is in use.
    public static let holderUnknown = "not known"

    /// The text that GetInterfaceDescription returns for this interface.
    ///
    /// - Throws: `InterfaceError.interfaceNotFound` for an unknown interface.
    public static func description(of interface: String) throws(InterfaceError) -> String {
        if interface.hasSameBytes(as: self.interface) { return description }
        if interface.hasSameBytes(as: serviceInterface) { return serviceDescription }
        throw .interfaceNotFound(interface: interface)
    }
}

/// A call to the broker with checked names and types of its parameters. Every `Call` passes through here.
public enum BrokerCall: Equatable, Sendable {
    case add(AddRequest)
    case delete(DeleteRequest)
    case list(ListRequest)
    case upgrade(UpgradeRequest)
    case recover(RecoverRequest)
    case resize(ResizeRequest)
    case stats(StatsRequest)
    case monitor(MonitorRequest)
    case info
    case serviceInfo
    case interfaceDescription(of: String)

    /// Decodes a call.
    ///
    /// - Throws: an error of `org.varlink.service` for the reply: InterfaceNotFound, MethodNotFound, InvalidParameter
    ///   (with the parameter's name), ExpectedMore (Add, Recover or Monitor without `more`), MethodNotImplemented (`upgrade`:
    ///   none of our methods hands the connection over, and a success reply would confirm it).
    public init(_ call: Call) throws(InterfaceError) {
        switch (call.interface, call.methodName) {
        case (BrokerAPI.interface, "Add"):
            guard !call.upgrade else { throw .methodNotImplemented(method: call.method) }
            guard call.more else { throw .expectedMore }
            self = .add(try AddRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Delete"): self = .delete(try DeleteRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "List"): self = .list(try ListRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Upgrade"): self = .upgrade(try UpgradeRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Resize"): self = .resize(try ResizeRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Recover"):
            guard !call.upgrade else { throw .methodNotImplemented(method: call.method) }
            guard call.more else { throw .expectedMore }
            self = .recover(try RecoverRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Stats"): self = .stats(try StatsRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Monitor"):
            guard !call.upgrade else { throw .methodNotImplemented(method: call.method) }
            guard call.more else { throw .expectedMore }
            self = .monitor(try MonitorRequest(parameters: call.parameters))
        case (BrokerAPI.interface, "Info"):
            _ = try NoParameters(parameters: call.parameters)
            self = .info
        case (BrokerAPI.serviceInterface, "GetInfo"):
            _ = try NoParameters(parameters: call.parameters)
            self = .serviceInfo
        case (BrokerAPI.serviceInterface, "GetInterfaceDescription"):
            self = .interfaceDescription(of: try InterfaceDescriptionRequest(parameters: call.parameters).interface)
        case (BrokerAPI.interface, _), (BrokerAPI.serviceInterface, _):
            throw .methodNotFound(method: call.method)
        default:
            throw .interfaceNotFound(interface: call.interface)
        }
        if call.upgrade { throw .methodNotImplemented(method: call.method) }
    }

    /// The call as a message to the broker.
    public var call: Call {
        switch self {
        case .add(let request):
            Call(method: BrokerAPI.interface + ".Add", parameters: request.json, more: true)
        case .delete(let request): Call(method: BrokerAPI.interface + ".Delete", parameters: request.json)
        case .list(let request):
            Call(method: BrokerAPI.interface + ".List", parameters: request.json, more: true)
        case .upgrade(let request): Call(method: BrokerAPI.interface + ".Upgrade", parameters: request.json)
        case .resize(let request): Call(method: BrokerAPI.interface + ".Resize", parameters: request.json)
        case .recover(let request):
            Call(method: BrokerAPI.interface + ".Recover", parameters: request.json, more: true)
        case .stats(let request):
            Call(method: BrokerAPI.interface + ".Stats", parameters: request.json, more: true)
        case .monitor(let request):
            Call(method: BrokerAPI.interface + ".Monitor", parameters: request.json, more: true)
        case .info: Call(method: BrokerAPI.interface + ".Info")
        case .serviceInfo: Call(method: BrokerAPI.serviceInterface + ".GetInfo")
        case .interfaceDescription(let interface):
            Call(
                method: BrokerAPI.serviceInterface + ".GetInterfaceDescription",
                parameters: InterfaceDescriptionRequest(interface: interface).json)
        }
    }
}
