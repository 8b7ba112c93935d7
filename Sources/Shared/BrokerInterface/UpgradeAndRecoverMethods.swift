/// The parameters of Upgrade.
public struct UpgradeRequest: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64?

    /// A request about this device.
    public init(id: UInt32, generation: UInt64? = nil) {
        self.id = id
        self.generation = generation
    }
}

extension UpgradeRequest: Structure {
    public init() { self.init(id: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member(
            "generation", &generation, "Only the device of this generation, not a later one with the same id.")
    }
}

/// The parameters of Recover. The replies are those of Add (`AddReply`).
public struct RecoverRequest: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64?
    public var options: [OptionValue]

    /// A request to bring this device's inputs.
    public init(id: UInt32, generation: UInt64? = nil, options: [OptionValue] = []) {
        self.id = id
        self.generation = generation
        self.options = options
    }
}

extension RecoverRequest: Structure {
    public init() { self.init(id: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member(
            "generation", &generation, "Only the device of this generation, not a later one with the same id.")
        var map = OptionMap(options)
        try coder.member(
            "options", &map,
            "For a device of connections: what its server agrees to now. It must be what the device was added with.")
        options = map?.options ?? []
    }
}

/// The reply to Upgrade.
public struct UpgradeReply: Equatable, Sendable {
    /// False: the worker had the current program already, and serves on.
    public var upgraded: Bool
    /// The device after the call.
    public var device: Device

    /// A reply about this device.
    public init(upgraded: Bool, device: Device) {
        self.upgraded = upgraded
        self.device = device
    }
}

extension UpgradeReply: Structure {
    public init() { self.init(upgraded: false, device: Device()) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("upgraded", &upgraded)
        try coder.member("device", &device)
    }
}
