import Varlink

/// The parameters of Monitor.
public struct MonitorRequest: Equatable, Sendable {
    public var ids: [UInt32]?
    public var keep: Bool?

    /// A request about these devices, or about all.
    public init(ids: [UInt32]? = nil, keep: Bool? = nil) {
        self.ids = ids
        self.keep = keep
    }

    /// The most devices that one call can name.
    public static let mostIDs = 64
}

extension MonitorRequest: Structure {
    public init() { self.init(ids: nil) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member(
            "ids", &ids, "Only these devices, at most \(MonitorRequest.mostIDs). Default: all, later ones included.")
        try coder.member(
            "keep", &keep,
            """
            The caller brings these devices fresh inputs when they wait for some (waits, Recover). Only with ids; only for
            devices of connections, and only their owner. A device has one keeper at a time. Default false.
            """)
    }

    public mutating func read(_ reader: inout MemberReader) throws(InterfaceError) {
        try members(&reader)
        if let ids {
            guard (1...MonitorRequest.mostIDs).contains(ids.count), Set(ids).count == ids.count else {
                throw .invalidParameter(parameter: "ids")
            }
        } else if keep == true {
            throw .invalidParameter(parameter: "keep")
        }
    }
}

/// A change of a device. `members` explains each of its properties.
public struct DeviceChange: Equatable, Sendable {
    public var id: UInt32 = 0
    public var generation: UInt64 = 0
    /// nil: the device is gone.
    public var state: DeviceState?
    public var reason: String?
    public var since: Int64 = 0
    public var waits = false
    public var unanswered: Int64?

    public init() {}

    /// The state of a device that is gone, on the wire.
    public static let gone = "gone"
}

/// A state on the wire, where a device that is gone has one, too.
private struct ChangedState: MemberValue {
    var state: DeviceState?

    static var typeName: String { "string" }
    var wire: JSON? { .string(state?.rawValue ?? DeviceChange.gone) }

    init(_ state: DeviceState?) { self.state = state }

    init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        if case .string(let name)? = wire, name.hasSameBytes(as: DeviceChange.gone) { return }
        state = try DeviceState(wire: wire, at: place, unknown: unknown)
    }
}

extension DeviceChange: Structure {
    public static var typeName: String { "Change" }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member("generation", &generation)
        var changed = ChangedState(state)
        try coder.member("state", &changed, "As in Device, or gone when the device does not exist any more.")
        state = changed.state
        try coder.member("reason", &reason, "Why it is not live, or does not answer.")
        try coder.member("since", &since, "The beginning of its state, in seconds since 1970.")
        try coder.member("waits", &waits, "Its requests wait until its owner brings its inputs (Recover).")
        try coder.member(
            "unanswered", &unanswered,
            "While it waits: how many times in a row new inputs were lost before a request was completed; null: none.")
    }
}

/// A reply to Monitor. There is no last reply: the call ends with its connection.
public struct MonitorReply: Equatable, Sendable {
    public var change: DeviceChange?

    /// A reply about this change.
    public init(change: DeviceChange?) {
        self.change = change
    }

    /// The whole reply.
    public var reply: Reply { Reply(parameters: json, continues: true) }
}

extension MonitorReply: Structure {
    public init() { self.init(change: nil) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member(
            "change", &change, "Null once: the present states have been told, and the following replies are changes.")
    }
}
