/// The operations that a sealed ring allows. All others fail with EACCES.
public struct RingSeal: Equatable, Sendable {
    /// Operations of submission entries (IORING_OP_*).
    public var operations: [UInt8]
    /// Operations of io_uring_register(2). At least one: Linux 7.x reads an empty list as no restriction.
    public var registerOperations: [UInt8]
    public var flagsAllowed: UInt8
    public var flagsRequired: UInt8

    public init(operations: [UInt8], registerOperations: [UInt8], flagsAllowed: UInt8, flagsRequired: UInt8) {
        self.operations = operations
        self.registerOperations = registerOperations
        self.flagsAllowed = flagsAllowed
        self.flagsRequired = flagsRequired
    }
}
