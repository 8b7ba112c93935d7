/// Something that a device's owner opens, and gives to the worker as one or more descriptors.
public struct TargetInput: Sendable {
    public enum Role: Sendable {
        /// A regular file or block device with the device's own content.
        case data
        /// A file with content that the device begins with, and never changes.
        case base
        /// A file that says how the others are to be understood.
        case header
        /// Connected stream sockets to a server.
        case sockets
        /// A secret, such as a key, in a sealed memfd.
        case secret
    }

    public let role: Role
    /// Its option on the command line, without the dashes.
    public let name: String
    /// The short form of that option.
    public let letter: Character?
    /// How many the device takes. Of all inputs of a target only the last may leave that open: descriptors arrive in the order
    /// of the inputs, and nothing else says which one is which.
    public let count: ClosedRange<Int>
    /// It is opened for reading only, even when the device can be written.
    public let isReadOnly: Bool
    /// Where it takes direct I/O, the same file opened with O_DIRECT follows it.
    public let hasTwin: Bool
    /// What it is, without a full stop.
    public let help: String

    public init(
        _ role: Role, name: String, letter: Character? = nil, count: ClosedRange<Int> = 1...1, isReadOnly: Bool = false,
        hasTwin: Bool = false, help: String
    ) {
        self.role = role
        self.name = name
        self.letter = letter
        self.count = count
        self.isReadOnly = isReadOnly
        self.hasTwin = hasTwin
        self.help = help
    }
}
