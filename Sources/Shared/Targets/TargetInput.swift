/// An input that a device's owner opens and passes to the worker as one or more descriptors.
public struct TargetInput: Sendable {
    public enum Role: Sendable {
        /// A regular file or block device with the device's content.
        case data
        /// A file with the device's initial content; it never changes.
        case base
        /// A file that describes the other inputs.
        case header
        /// Connected stream sockets to a server.
        case sockets
        /// A secret, such as a key, in a sealed memfd.
        case secret
        /// A memfd with the device's content. `ubd` makes it, of the device's size and sealed against any other, so it is no
        /// option of the command line.
        case memory
        /// A file in which `ubd` leaves orders for the worker, and the worker its answers. `ubd` makes it, so it is no option of the
        /// command line.
        case control
        /// What was written to a disk whose base never changes: a memfd, or a file of the disk's size. `ubd` makes it.
        case layer
        /// A memfd that tells of each block of the disk whether it is in the layer. `ubd` makes it, sealed against any other size.
        case blockMap

        /// A user does not name it: `ubd` makes it.
        var isMade: Bool {
            switch self {
            case .secret, .memory, .control, .layer, .blockMap: true
            case .data, .base, .header, .sockets: false
            }
        }
    }

    public let role: Role
    /// The name of its command-line option, without dashes.
    public let name: String
    /// The short name of that option.
    public let letter: Character?
    /// The number of descriptors. Only the last input of a target may have a variable number: descriptors arrive in the
    /// order of the inputs, and only their position tells which is which.
    public let count: ClosedRange<Int>
    /// Opened read-only, even when the device is writable.
    public let isReadOnly: Bool
    /// If the file supports direct I/O, the same file opened with O_DIRECT follows it.
    public let hasTwin: Bool
    /// A description for help, without a full stop.
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
