import BrokerInterface

// The protocols by which devices and the broker refer to operations. An operation refers to its device and its broker;
// neither of them refers to an operation's type (docs/design.md, "Who may name whom").

/// Gives a device another worker.
protocol Replacement: AnyObject {
    /// The operation, and not only the worker, controls the device.
    var hasDevice: Bool { get }
    /// The device is being taken down. `next` is called when the kernel has completed the current command.
    func abandon(then next: @escaping () -> Void)
}

/// Receives a client's files.
protocol FileTaking: AnyObject {
    /// The socket with the client's files, until the device owns it.
    var parkingEnd: Int32? { get }
}

/// Reopens a device's file.
protocol Reopening: FileTaking {
    /// The device is being taken down.
    func abandon()
}

/// An add that a client has requested.
protocol PendingAdd: FileTaking {
    var ownerUID: UInt32 { get }
    /// Bytes of I/O buffers that its device will have.
    var memoryBytes: UInt64 { get }
    /// Bytes of memory that its content will have; 0 unless it is a memory disk.
    var diskBytes: UInt64 { get }
    /// The broker's list does not contain the device yet.
    var hasNoDevice: Bool { get }
}

/// Takes a device down.
protocol TakingDown: AnyObject {
    /// Stops waiting for what the worker still serves.
    func hurry()
    /// Adds a caller that waits for the end.
    func join(_ completion: @escaping (InterfaceError?) -> Void)
}
