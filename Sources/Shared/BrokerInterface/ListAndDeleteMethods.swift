/// The parameters of Delete.
public struct DeleteRequest: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64?
    public var force: Bool?

    /// A request to delete this device.
    public init(id: UInt32, generation: UInt64? = nil, force: Bool? = nil) {
        self.id = id
        self.generation = generation
        self.force = force
    }
}

extension DeleteRequest: Structure {
    public init() { self.init(id: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member(
            "generation", &generation, "Delete only the device of this generation, not a later one with the same id.")
        try coder.member("force", &force, "Kill the worker first and skip all checks; requests in flight fail.")
    }
}

/// The parameters of List.
public struct ListRequest: Equatable, Sendable {
    public var id: UInt32?

    /// A request for this device, or for all.
    public init(id: UInt32?) {
        self.id = id
    }
}

extension ListRequest: Structure {
    public init() { self.init(id: nil) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id, "Only this device.")
    }
}

/// The reply to List: the caller's devices, or all devices for root.
public struct ListReply: Equatable, Sendable {
    public var devices: [Device]

    /// A reply with these devices.
    public init(devices: [Device]) {
        self.devices = devices
    }
}

extension ListReply: Structure {
    public init() { self.init(devices: []) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("devices", &devices)
    }
}
