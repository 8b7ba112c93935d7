/// The parameters of Upgrade and of Recover. The replies to Recover are those of Add (`AddReply`).
public struct DeviceRequest: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64?

    /// A request about this device.
    public init(id: UInt32, generation: UInt64? = nil) {
        self.id = id
        self.generation = generation
    }
}

extension DeviceRequest: Structure {
    public init() { self.init(id: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member(
            "generation", &generation, "Only the device of this generation, not a later one with the same id.")
    }
}

public typealias UpgradeRequest = DeviceRequest
public typealias RecoverRequest = DeviceRequest

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
