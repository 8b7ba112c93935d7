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
        var (copy, writer) = (self, MemberWriter())
        copy.members(&writer)
        return .object(writer.members)
    }

    /// The reply that ends a call with this error.
    public var reply: Reply { Reply(error: name, parameters: parameters) }

    /// Decodes an error reply; nil when neither interface declares an error of this name.
    ///
    /// - Throws: `invalidParameter` when the parameters do not match the error's declaration.
    public init?(
        name: String, parameters: JSON, unknown: UnknownFields = .refuse
    ) throws(InterfaceError) {
        guard var error = Self.blanks.first(where: { $0.name.hasSameBytes(as: name) }) else { return nil }
        var reader = try MemberReader(parameters, unknown: unknown)
        try error.members(&reader)
        try reader.finish()
        self = error
    }

    /// The error of io.ubd.Broker of that name in Varlink's interface definition language, but for the comment.
    static func declaration(_ name: String) -> String {
        guard var error = blanks.first(where: { $0.name == BrokerAPI.interface + "." + name }) else { return "" }
        var lister = MemberLister()
        error.members(&lister)
        return "error \(name)\(lister.text)"
    }

    /// One of each, which says nothing: what a reader fills.
    private static var blanks: [InterfaceError] {
        [
            .notPermitted(message: "", remedy: "", rule: nil),
            .quotaReached(message: "", remedy: "", limit: "", value: 0),
            .limitReached(message: "", remedy: "", limit: "", value: 0),
            .invalidOption(message: "", remedy: "", option: "", value: ""),
            .badFile(message: "", remedy: "", index: 0), .idInUse(message: "", remedy: "", id: 0),
            .noSuchDevice(message: "", remedy: "", id: 0), .busy(message: "", remedy: "", id: 0, holder: ""),
            .kernelUnsupported(message: "", remedy: "", feature: ""),
            .failed(message: "", remedy: "", step: "", errno: nil), .interfaceNotFound(interface: ""),
            .methodNotFound(method: ""), .methodNotImplemented(method: ""), .invalidParameter(parameter: ""),
            .permissionDenied, .expectedMore, .expectedUpgrade,
        ]
    }

    /// Gives each parameter to `coder`, as `Structure.members` does.
    private mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        switch self {
        case .notPermitted, .quotaReached, .limitReached, .invalidOption, .badFile, .idInUse, .noSuchDevice, .busy,
            .kernelUnsupported, .failed:
            try brokerMembers(&coder)
        case .interfaceNotFound(var interface):
            try coder.member("interface", &interface)
            self = .interfaceNotFound(interface: interface)
        case .methodNotFound(var method):
            try coder.member("method", &method)
            self = .methodNotFound(method: method)
        case .methodNotImplemented(var method):
            try coder.member("method", &method)
            self = .methodNotImplemented(method: method)
        case .invalidParameter(var parameter):
            try coder.member("parameter", &parameter)
            self = .invalidParameter(parameter: parameter)
        case .permissionDenied, .expectedMore, .expectedUpgrade: break
        }
    }

    /// Those of the broker's own errors: what was wrong and what to do next come first.
    private mutating func brokerMembers<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        var (message, remedy) = (message, remedy)
        try coder.member("message", &message)
        try coder.member("remedy", &remedy)
        switch self {
        case .notPermitted(_, _, var rule):
            try coder.member("rule", &rule)
            self = .notPermitted(message: message, remedy: remedy, rule: rule)
        case .quotaReached(_, _, var limit, var value, var again):
            try coder.member("limit", &limit)
            try coder.member("value", &value)
            try coder.member("again", &again)
            self = .quotaReached(message: message, remedy: remedy, limit: limit, value: value, again: again)
        case .limitReached(_, _, var limit, var value):
            try coder.member("limit", &limit)
            try coder.member("value", &value)
            self = .limitReached(message: message, remedy: remedy, limit: limit, value: value)
        case .invalidOption(_, _, var option, var value):
            try coder.member("option", &option)
            try coder.member("value", &value)
            self = .invalidOption(message: message, remedy: remedy, option: option, value: value)
        case .badFile(_, _, var index):
            try coder.member("index", &index)
            self = .badFile(message: message, remedy: remedy, index: index)
        case .idInUse(_, _, var id):
            try coder.member("id", &id)
            self = .idInUse(message: message, remedy: remedy, id: id)
        case .noSuchDevice(_, _, var id):
            try coder.member("id", &id)
            self = .noSuchDevice(message: message, remedy: remedy, id: id)
        case .busy(_, _, var id, var holder):
            try coder.member("id", &id)
            try coder.member("holder", &holder)
            self = .busy(message: message, remedy: remedy, id: id, holder: holder)
        case .kernelUnsupported(_, _, var feature):
            try coder.member("feature", &feature)
            self = .kernelUnsupported(message: message, remedy: remedy, feature: feature)
        case .failed(_, _, var step, var errno):
            try coder.member("step", &step)
            try coder.member("errno", &errno)
            self = .failed(message: message, remedy: remedy, step: step, errno: errno)
        case .interfaceNotFound, .methodNotFound, .methodNotImplemented, .invalidParameter, .permissionDenied,
            .expectedMore, .expectedUpgrade:
            break
        }
    }
}
