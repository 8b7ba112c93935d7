/// The parameters of Resize.
public struct ResizeRequest: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64?
    public var sizeBytes: Int64?
    public var shrink: Bool?

    /// A request about this device.
    public init(id: UInt32, generation: UInt64? = nil, sizeBytes: Int64? = nil, shrink: Bool? = nil) {
        self.id = id
        self.generation = generation
        self.sizeBytes = sizeBytes
        self.shrink = shrink
    }
}

extension ResizeRequest: Structure {
    public init() { self.init(id: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member(
            "generation", &generation, "Only the device of this generation, not a later one with the same id.")
        try coder.member("sizeBytes", &sizeBytes, "The new size; null: up to the end of the file.")
        try coder.member("shrink", &shrink, "The device may become smaller, if nobody uses it. Default false.")
    }
}

/// The reply to Resize.
public struct ResizeReply: Equatable, Sendable {
    /// The size before the call in bytes.
    public var previousBytes: UInt64
    /// The device after the call.
    public var device: Device

    /// A reply about this device.
    public init(previousBytes: UInt64, device: Device) {
        self.previousBytes = previousBytes
        self.device = device
    }
}

extension ResizeReply: Structure {
    public init() { self.init(previousBytes: 0, device: Device()) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("previousBytes", &previousBytes, "The size before the call.")
        try coder.member("device", &device)
    }
}
