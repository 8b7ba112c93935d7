import BrokerInterface

/// The protocols by which a device and the broker hold operations. An operation names its device and its broker; neither names
/// an operation's type (docs/design.md, "Who may name whom").

/// Gives a device another worker.
protocol Replacement: AnyObject {
    /// It is no longer the worker alone that decides about the device.
    var hasDevice: Bool { get }
    /// Somebody takes the device down: `next` runs when the kernel has finished the command that it is at.
    func abandon(then next: @escaping () -> Void)
}

/// Takes the files that a client brings.
protocol FileTaking: AnyObject {
    /// Where the client's files lie as long as the device has not got them.
    var parkingEnd: Int32? { get }
}

/// Brings a device's file again.
protocol Reopening: FileTaking {
    /// Somebody takes the device down.
    func abandon()
}

/// An add that a client has asked for.
protocol PendingAdd: FileTaking {
    var ownerUID: UInt32 { get }
    /// Bytes of I/O buffers that its device will have.
    var memoryBytes: UInt64 { get }
    /// Not yet a device of the broker's list.
    var hasNoDevice: Bool { get }
}

/// Takes a device down.
protocol TakingDown: AnyObject {
    /// Waits no longer for what the worker still serves.
    func hurry()
    /// One more waits for the end.
    func join(_ completion: @escaping (InterfaceError?) -> Void)
}
