import Varlink

/// An error of `io.ubd.Broker` or `org.varlink.service` on the wire.
///
/// The broker's own errors say what is wrong, with which value (`message`), and what to do next (`remedy`).
public enum InterfaceError: Error, Equatable, Sendable {
    /// The access policy refuses. `rule` is the rule that decided, if any.
    case notPermitted(message: String, remedy: String, rule: String?)
    /// A limit of the policy or the host is reached; `limit` is its name, `value` its value. `again`: seconds until the
    /// same call may succeed, when only time is needed.
    case quotaReached(message: String, remedy: String, limit: String, value: Int64, again: Int64? = nil)
    /// A temporary limit of the broker itself is reached; the same call succeeds later. `limit` is its name
    /// ("connections", "user-connections", "descriptors"), `value` its value. It may come before the broker reads the
    /// call, as the reply to the first call of a connection that it closes.
    case limitReached(message: String, remedy: String, limit: String, value: Int64)
    /// A parameter or option has an invalid value.
    case invalidOption(message: String, remedy: String, option: String, value: String)
    /// The file at this index of the client's message cannot back a device.
    case badFile(message: String, remedy: String, index: Int64)
    /// Another device has this number.
    case idInUse(message: String, remedy: String, id: Int64)
    /// The device does not exist or is not the caller's.
    case noSuchDevice(message: String, remedy: String, id: Int64)
    /// The device is in use by `holder`.
    case busy(message: String, remedy: String, id: Int64, holder: String)
    /// The host's kernel lacks `feature`.
    case kernelUnsupported(message: String, remedy: String, feature: String)
    /// A step failed unexpectedly; `errno` is the kernel's, if any.
    case failed(message: String, remedy: String, step: String, errno: Int64?)

    case interfaceNotFound(interface: String)
    case methodNotFound(method: String)
    case methodNotImplemented(method: String)
    case invalidParameter(parameter: String)
    case permissionDenied
    case expectedMore
    case expectedUpgrade
}

extension InterfaceError {
    /// The error's full name on the wire.
    public var name: String {
        switch self {
        case .notPermitted: BrokerAPI.interface + ".NotPermitted"
        case .quotaReached: BrokerAPI.interface + ".QuotaReached"
        case .limitReached: BrokerAPI.interface + ".LimitReached"
        case .invalidOption: BrokerAPI.interface + ".InvalidOption"
        case .badFile: BrokerAPI.interface + ".BadFile"
        case .idInUse: BrokerAPI.interface + ".IdInUse"
        case .noSuchDevice: BrokerAPI.interface + ".NoSuchDevice"
        case .busy: BrokerAPI.interface + ".Busy"
        case .kernelUnsupported: BrokerAPI.interface + ".KernelUnsupported"
        case .failed: BrokerAPI.interface + ".Failed"
        case .interfaceNotFound: BrokerAPI.serviceInterface + ".InterfaceNotFound"
        case .methodNotFound: BrokerAPI.serviceInterface + ".MethodNotFound"
        case .methodNotImplemented: BrokerAPI.serviceInterface + ".MethodNotImplemented"
        case .invalidParameter: BrokerAPI.serviceInterface + ".InvalidParameter"
        case .permissionDenied: BrokerAPI.serviceInterface + ".PermissionDenied"
        case .expectedMore: BrokerAPI.serviceInterface + ".ExpectedMore"
        case .expectedUpgrade: BrokerAPI.serviceInterface + ".ExpectedUpgrade"
        }
    }

    /// What is wrong, for people.
    public var message: String {
        switch self {
        case .notPermitted(let message, _, _), .quotaReached(let message, _, _, _, _),
            .limitReached(let message, _, _, _), .invalidOption(let message, _, _, _), .badFile(let message, _, _),
            .idInUse(let message, _, _),
            .noSuchDevice(let message, _, _), .busy(let message, _, _, _), .kernelUnsupported(let message, _, _),
            .failed(let message, _, _, _):
            message
        case .interfaceNotFound(let interface): "the broker has no interface \(interface)"
        case .methodNotFound(let method): "the broker has no method \(method)"
        case .methodNotImplemented(let method): "the broker does not implement \(method) as it was called"
        case .invalidParameter(let parameter): "parameter \(parameter) is missing, unknown or of the wrong type"
        case .permissionDenied: "the broker refused"
        case .expectedMore: "the method must be called with more set"
        case .expectedUpgrade: "the method must be called with upgrade set"
        }
    }

    /// What to do next, for people.
    public var remedy: String {
        switch self {
        case .notPermitted(_, let remedy, _), .quotaReached(_, let remedy, _, _, _), .limitReached(_, let remedy, _, _),
            .invalidOption(_, let remedy, _, _), .badFile(_, let remedy, _), .idInUse(_, let remedy, _),
            .noSuchDevice(_, let remedy, _),
            .busy(_, let remedy, _, _), .kernelUnsupported(_, let remedy, _), .failed(_, let remedy, _, _):
            remedy
        case .permissionDenied: "ask the administrator, or see 'ubd info'"
        default: "use the ubd and ubd-broker of one version ('ubd --version', 'ubd info')"
        }
    }

    /// The encoded parameters.
    public var parameters: JSON {
        var members: [(String, JSON?)] = []
        switch self {
        case .notPermitted(_, _, let rule): members = [("rule", rule.map(JSON.string))]
        case .quotaReached(_, _, let limit, let value, let again):
            members = [("limit", .string(limit)), ("value", .integer(value)), ("again", again.map(JSON.integer))]
        case .limitReached(_, _, let limit, let value):
            members = [("limit", .string(limit)), ("value", .integer(value))]
        case .invalidOption(_, _, let option, let value):
            members = [("option", .string(option)), ("value", .string(value))]
        case .badFile(_, _, let index): members = [("index", .integer(index))]
        case .idInUse(_, _, let id), .noSuchDevice(_, _, let id): members = [("id", .integer(id))]
        case .busy(_, _, let id, let holder): members = [("id", .integer(id)), ("holder", .string(holder))]
        case .kernelUnsupported(_, _, let feature): members = [("feature", .string(feature))]
        case .failed(_, _, let step, let errno):
            members = [("step", .string(step)), ("errno", errno.map(JSON.integer))]
        case .interfaceNotFound(let interface): return .record([("interface", .string(interface))])
        case .methodNotFound(let method), .methodNotImplemented(let method):
            return .record([("method", .string(method))])
        case .invalidParameter(let parameter): return .record([("parameter", .string(parameter))])
        case .permissionDenied, .expectedMore, .expectedUpgrade: return .empty
        }
        return .record([("message", .string(message)), ("remedy", .string(remedy))] + members)
    }

    /// The reply that ends a call with this error.
    public var reply: Reply { Reply(error: name, parameters: parameters) }

    /// Decodes an error reply; nil when neither interface declares an error of this name.
    ///
    /// - Throws: `invalidParameter` when the parameters do not match the error's declaration.
    public init?(
        name: String, parameters: JSON, unknown: UnknownFields = .refuse
    ) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        guard let dot = name.lastIndex(of: ".") else { return nil }
        let short = String(name[name.index(after: dot)...])
        switch String(name[..<dot]) {
        case BrokerAPI.interface:
            guard let error = try Self.readBrokerError(short, &fields) else { return nil }
            self = error
        case BrokerAPI.serviceInterface:
            guard let error = try Self.readServiceError(short, &fields) else { return nil }
            self = error
        default: return nil
        }
        try fields.finish()
    }

    private static func readBrokerError(
        _ name: String, _ fields: inout FieldReader
    ) throws(InterfaceError) -> InterfaceError? {
        let known = [
            "NotPermitted", "QuotaReached", "LimitReached", "InvalidOption", "BadFile", "IdInUse", "NoSuchDevice",
            "Busy", "KernelUnsupported", "Failed",
        ]
        guard known.contains(name) else { return nil }
        let message = try fields.string("message")
        let remedy = try fields.string("remedy")
        switch name {
        case "NotPermitted":
            return .notPermitted(message: message, remedy: remedy, rule: try fields.optionalString("rule"))
        case "QuotaReached":
            return .quotaReached(
                message: message, remedy: remedy, limit: try fields.string("limit"), value: try fields.integer("value"),
                again: try fields.optionalInteger("again"))
        case "LimitReached":
            return .limitReached(
                message: message, remedy: remedy, limit: try fields.string("limit"), value: try fields.integer("value"))
        case "InvalidOption":
            return .invalidOption(
                message: message, remedy: remedy, option: try fields.string("option"), value: try fields.string("value")
            )
        case "BadFile": return .badFile(message: message, remedy: remedy, index: try fields.integer("index"))
        case "IdInUse": return .idInUse(message: message, remedy: remedy, id: try fields.integer("id"))
        case "NoSuchDevice": return .noSuchDevice(message: message, remedy: remedy, id: try fields.integer("id"))
        case "Busy":
            return .busy(
                message: message, remedy: remedy, id: try fields.integer("id"), holder: try fields.string("holder"))
        case "KernelUnsupported":
            return .kernelUnsupported(message: message, remedy: remedy, feature: try fields.string("feature"))
        default:
            return .failed(
                message: message, remedy: remedy, step: try fields.string("step"),
                errno: try fields.optionalInteger("errno"))
        }
    }

    private static func readServiceError(
        _ name: String, _ fields: inout FieldReader
    ) throws(InterfaceError) -> InterfaceError? {
        switch name {
        case "InterfaceNotFound": .interfaceNotFound(interface: try fields.string("interface"))
        case "MethodNotFound": .methodNotFound(method: try fields.string("method"))
        case "MethodNotImplemented": .methodNotImplemented(method: try fields.string("method"))
        case "InvalidParameter": .invalidParameter(parameter: try fields.string("parameter"))
        case "PermissionDenied": .permissionDenied
        case "ExpectedMore": .expectedMore
        case "ExpectedUpgrade": .expectedUpgrade
        default: nil
        }
    }
}
