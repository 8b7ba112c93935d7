import Varlink

/// One option of a target on the wire: name and value are text.
public struct OptionValue: Equatable, Sendable {
    public var name: String
    public var value: String

    public init(_ name: String, _ value: String) {
        self.name = name
        self.value = value
    }
}

/// The parameters of Add. Names and types are checked, values are not; `AddPlan` checks them.
public struct AddRequest: Equatable, Sendable {
    /// The name of a target in `TargetList`.
    public var target: String
    /// The requested N of /dev/ublkbN; nil: the broker chooses.
    public var id: Int64?
    /// Hardware queues; nil: 1.
    public var queues: Int64?
    /// Tags per queue; nil: 128.
    public var depth: Int64?
    /// Maximum bytes of one request; nil: 512 KiB.
    public var maxIOBytes: Int64?
    public var readOnly: Bool?
    /// The name of a `DataMode`, or `DataMode.automatic`; nil: automatic.
    public var mode: String?
    /// The name of a `RecoveryMode`; nil: reissue.
    public var recovery: String?
    /// Seconds without progress after which the worker counts as hung; nil: the broker's default.
    public var ioTimeout: Int64?
    /// A `CPUList` on which the queues' threads shall run.
    public var cpus: String?
    /// The client's name for its file, a label for people.
    public var fileName: String?
    /// The target's own options.
    public var options: [OptionValue]

    public init(
        target: String, id: Int64? = nil, queues: Int64? = nil, depth: Int64? = nil, maxIOBytes: Int64? = nil,
        readOnly: Bool? = nil, mode: String? = nil, recovery: String? = nil, ioTimeout: Int64? = nil,
        cpus: String? = nil,
        fileName: String? = nil, options: [OptionValue] = []
    ) {
        self.target = target
        self.id = id
        self.queues = queues
        self.depth = depth
        self.maxIOBytes = maxIOBytes
        self.readOnly = readOnly
        self.mode = mode
        self.recovery = recovery
        self.ioTimeout = ioTimeout
        self.cpus = cpus
        self.fileName = fileName
        self.options = options
    }

    /// Decodes the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        target = try fields.string("target")
        id = try fields.optionalInteger("id")
        queues = try fields.optionalInteger("queues")
        depth = try fields.optionalInteger("depth")
        maxIOBytes = try fields.optionalInteger("maxIOBytes")
        readOnly = try fields.optionalFlag("readOnly")
        mode = try fields.optionalString("mode")
        recovery = try fields.optionalString("recovery")
        ioTimeout = try fields.optionalInteger("ioTimeout")
        cpus = try fields.optionalString("cpus")
        fileName = try fields.optionalString("fileName")
        options = []
        if let value = fields.value("options") {
            guard case .object(let members) = value else { throw .invalidParameter(parameter: "options") }
            for member in members {
                guard case .string(let text) = member.value else {
                    throw .invalidParameter(parameter: "options." + member.name)
                }
                options.append(OptionValue(member.name, text))
            }
        }
        try fields.finish()
    }

    public var json: JSON {
        let map = JSON.object(options.map { JSON.Member($0.name, .string($0.value)) })
        return .record([
            ("target", .string(target)), ("id", id.map(JSON.integer)), ("queues", queues.map(JSON.integer)),
            ("depth", depth.map(JSON.integer)), ("maxIOBytes", maxIOBytes.map(JSON.integer)),
            ("readOnly", readOnly.map(JSON.bool)), ("mode", mode.map(JSON.string)),
            ("recovery", recovery.map(JSON.string)), ("ioTimeout", ioTimeout.map(JSON.integer)),
            ("cpus", cpus.map(JSON.string)),
            ("fileName", fileName.map(JSON.string)),
            ("options", options.isEmpty ? nil : map),
        ])
    }
}

/// Information for the user about a call that succeeded.
public struct Notice: Equatable, Sendable {
    /// For programs: "read-only", "queues", "link", …
    public var code: String
    /// For people, one sentence without a full stop.
    public var message: String

    public init(code: String, message: String) {
        self.code = code
        self.message = message
    }

    /// Decodes a notice.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(
        json: JSON, path: String = "", unknown: UnknownFields = .refuse
    ) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        code = try fields.string("code")
        message = try fields.string("message")
        try fields.finish()
    }

    public var json: JSON { .record([("code", .string(code)), ("message", .string(message))]) }
}

/// A reply to Add.
public enum AddReply: Equatable, Sendable {
    /// The first reply for a target with inputs. The client sends at most `count` files, in one message, on the socket
    /// that comes with this reply as file `parking`.
    case files(count: Int, parking: Int)
    /// The last reply.
    case added(Device, notices: [Notice])

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        let count: Int? = try fields.optionalInteger("files")
        let parking: Int? = try fields.optionalInteger("parking")
        let device = fields.value("device")
        let notices = try fields.optionalArray("notices") { (json, path) throws(InterfaceError) in
            try Notice(json: json, path: path, unknown: unknown)
        }
        try fields.finish()
        if let device {
            guard count == nil, parking == nil else { throw .invalidParameter(parameter: "files") }
            self = .added(try Device(json: device, path: "device", unknown: unknown), notices: notices ?? [])
        } else {
            guard let count, (1...8).contains(count) else { throw .invalidParameter(parameter: "files") }
            guard let parking, parking == 0 else { throw .invalidParameter(parameter: "parking") }
            guard notices == nil else { throw .invalidParameter(parameter: "notices") }
            self = .files(count: count, parking: parking)
        }
    }

    public var json: JSON {
        switch self {
        case .files(let count, let parking):
            .record([("files", .integer(clamping: count)), ("parking", .integer(clamping: parking))])
        case .added(let device, let notices):
            .record([("device", device.json), ("notices", notices.isEmpty ? nil : .array(notices.map(\.json)))])
        }
    }

    /// The whole reply. The reply that asks for files announces another one.
    public var reply: Reply {
        switch self {
        case .files: Reply(parameters: json, continues: true)
        case .added: Reply(parameters: json)
        }
    }
}
