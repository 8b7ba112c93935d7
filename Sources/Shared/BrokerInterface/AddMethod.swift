import Targets
import Varlink

/// One option of a target on the wire: name and value are text.
public struct OptionValue: Equatable, Sendable {
    public var name: String
    public var value: String

    /// An option with this name and value.
    public init(_ name: String, _ value: String) {
        self.name = name
        self.value = value
    }
}

/// The options of a target on the wire: a map, which is left out when it is empty.
struct OptionMap: MemberValue {
    var options: [OptionValue]

    static var typeName: String { "[string]string" }
    var wire: JSON? { .object(options.map { JSON.Member($0.name, .string($0.value)) }) }

    init?(_ options: [OptionValue]) {
        guard !options.isEmpty else { return nil }
        self.options = options
    }

    init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard case .object(let members)? = wire else { throw place.error }
        options = []
        for member in members {
            let place = MemberPlace(structure: place.text, name: member.name)
            options.append(OptionValue(member.name, try String(wire: member.value, at: place, unknown: unknown)))
        }
    }
}

/// The parameters of Add. Names and types are checked, values are not; `AddPlan` checks them. `members` explains each.
public struct AddRequest: Equatable, Sendable {
    public var target: String
    public var id: Int64?
    public var queues: Int64?
    public var depth: Int64?
    public var maxIOBytes: Int64?
    public var readOnly: Bool?
    /// The name of a `DataMode`, or `DataMode.automatic`; nil: automatic.
    public var mode: String?
    /// The name of a `RecoveryMode`; nil: reissue.
    public var recovery: String?
    public var ioTimeout: Int64?
    /// A `CPUList` on which the queues' threads shall run.
    public var cpus: String?
    public var fileName: String?
    public var shared: Bool?
    public var name: String?
    /// The number of the partition that the device is, for its description.
    public var partition: Int64?
    /// The same number in all devices that are added together.
    public var set: Int64?
    public var options: [OptionValue]

    /// A request for a device of this target.
    public init(
        target: String = "", id: Int64? = nil, queues: Int64? = nil, depth: Int64? = nil, maxIOBytes: Int64? = nil,
        readOnly: Bool? = nil, mode: String? = nil, recovery: String? = nil, ioTimeout: Int64? = nil,
        cpus: String? = nil, fileName: String? = nil, shared: Bool? = nil, name: String? = nil, partition: Int64? = nil,
        set: Int64? = nil,
        options: [OptionValue] = []
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
        self.shared = shared
        self.name = name
        self.partition = partition
        self.set = set
        self.options = options
    }
}

extension AddRequest: Structure {
    public init() { self.init(target: "") }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("target", &target, "Name of the target.")
        try coder.member("id", &id, "The requested N of /dev/ublkbN; null: the broker chooses.")
        try coder.member("queues", &queues, "Hardware queues. Default \(AddPlan.defaultQueues).")
        try coder.member(
            "depth", &depth,
            "Tags per queue. Default \(AddPlan.defaultDepth); of nbd and crypt \(AddPlan.defaultDepthInAll) divided among "
                + "the queues, at least \(AddPlan.leastDefaultDepth) each.")
        try coder.member(
            "maxIOBytes", &maxIOBytes, "Maximum bytes of one request. Default \(AddPlan.defaultMaxIOBytes).")
        try coder.member("readOnly", &readOnly, "Default false.")
        try coder.member(
            "mode", &mode,
            """
            How data and requests move: copy, zero-copy, batch, batch-zero-copy, or auto for the best of these that the
            kernel has and the access policy allows. Default auto.
            """)
        try coder.member(
            "recovery", &recovery,
            "What happens when the worker dies: reissue, queue, fail or none. Default reissue.")
        try coder.member(
            "ioTimeout", &ioTimeout,
            """
            Seconds, 2 to 3600: a worker that has work and does nothing for this time is replaced. Default: the broker's.
            """)
        try coder.member(
            "cpus", &cpus,
            """
            The processors on which the queues' threads run, as in 0-1,3. Default: for each queue those from which the kernel
            sends it requests.
            """)
        try coder.member(
            "fileName", &fileName,
            "The client's name for its file: a label of at most 1024 bytes, without control characters.")
        try coder.member(
            "shared", &shared,
            "Use the file although another user's device that waits for its file seems to have it. Default false.")
        try coder.member(
            "name", &name,
            "The device's name, which no other device of its owner has:\n\(DeviceName.rule).")
        try coder.member(
            "partition", &partition,
            "The client's number for a part of its file, 1 to \(AddPlan.partitions.upperBound): a label.")
        try coder.member(
            "set", &set, "The client's number for devices that it adds together, from 1 on: a label, which List shows.")
        var map = OptionMap(options)
        try coder.member(
            "options", &map,
            "The options of the target; bytes and milliseconds are decimal numbers.\n" + TargetList.optionHelp)
        options = map?.options ?? []
    }
}

extension TargetList {
    /// The options of each target, a line each.
    fileprivate static var optionHelp: String {
        all.flatMap { target in
            target.options.map { option in
                "\(target.name), \(option.name): \(option.help): \(option.range). Default: \(option.defaultText)."
            }
        }.joined(separator: "\n")
    }
}

/// Information for the user about a call that succeeded.
public struct Notice: Equatable, Sendable {
    /// For programs: "read-only", "queues", "link", …
    public var code: String
    /// For people, one sentence without a full stop.
    public var message: String

    /// A notice with this code and message.
    public init(code: String, message: String) {
        self.code = code
        self.message = message
    }
}

extension Notice: Structure {
    public init() { self.init(code: "", message: "") }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("code", &code, "For programs, as in read-only.")
        try coder.member("message", &message, "For people.")
    }
}

/// The members of both replies to Add and Recover; `AddReply` says which reply has which.
struct AddReplyMembers: Structure {
    var files: Int?
    var parking: Int?
    var device: Device?
    var notices: [Notice]?

    mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("files", &files, "In the first reply: the most files that the client may send.")
        try coder.member("parking", &parking, "In the first reply: the index of the descriptor to send them on.")
        try coder.member("device", &device, "In the last reply.")
        try coder.member("notices", &notices)
    }
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
        let reply = try AddReplyMembers(parameters: parameters, unknown: unknown)
        if let device = reply.device {
            guard reply.files == nil, reply.parking == nil else { throw .invalidParameter(parameter: "files") }
            self = .added(device, notices: reply.notices ?? [])
        } else {
            guard let count = reply.files, (1...TargetManifest.mostDescriptors).contains(count) else {
                throw .invalidParameter(parameter: "files")
            }
            guard let parking = reply.parking, parking == 0 else { throw .invalidParameter(parameter: "parking") }
            guard reply.notices == nil else { throw .invalidParameter(parameter: "notices") }
            self = .files(count: count, parking: parking)
        }
    }

    /// The encoded parameters.
    public var json: JSON {
        var reply = AddReplyMembers()
        switch self {
        case .files(let count, let parking): (reply.files, reply.parking) = (count, parking)
        case .added(let device, let notices):
            reply.device = device
            reply.notices = notices.isEmpty ? nil : notices
        }
        return reply.json
    }

    /// The whole reply. The reply that asks for files announces another one.
    public var reply: Reply {
        switch self {
        case .files: Reply(parameters: json, continues: true)
        case .added: Reply(parameters: json)
        }
    }
}
