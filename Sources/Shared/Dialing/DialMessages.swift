import Varlink

// What `ubd` and `ubd-nbd` say to each other, over a SEQPACKET pair: one JSON object a message. `ubd-nbd` dials with what its
// arguments say and sends a `DialReply`, with the connected sockets when there are some. `ubd` answers `KeepOrder` when the
// device is there, and hears `KeepOrder.done` when nothing of the terminal is held any more; or closes, and the sockets go.

/// The descriptor on which a `ubd-nbd` finds its end of the pair.
public let dialDescriptor: Int32 = 3

/// Something that the user should know though all went well.
public struct DialNotice: Equatable, Sendable {
    public var code: String
    public var message: String

    public init(_ code: String, _ message: String) {
        self.code = code
        self.message = message
    }
}

/// What was agreed with the server. As many sockets as `connections` come with it.
public struct DialedExport: Equatable, Sendable {
    /// The URI without names of keys: by it the export is dialled again.
    public var label: String
    public var connections: Int
    /// Bytes.
    public var size: UInt64
    /// The 16 transmission flags.
    public var flags: UInt16
    /// Bytes.
    public var minimumBlock: UInt32
    public var preferredBlock: UInt32
    public var maximumBlock: UInt32
    /// "TLS1.3 CHACHA20-POLY1305"; "" without TLS.
    public var cipher: String
    public var notices: [DialNotice]

    public init(
        label: String, connections: Int, size: UInt64, flags: UInt16, minimumBlock: UInt32, preferredBlock: UInt32,
        maximumBlock: UInt32, cipher: String, notices: [DialNotice] = []
    ) {
        self.label = label
        self.connections = connections
        self.size = size
        self.flags = flags
        self.minimumBlock = minimumBlock
        self.preferredBlock = preferredBlock
        self.maximumBlock = maximumBlock
        self.cipher = cipher
        self.notices = notices
    }
}

// The device that is made of it.
extension DialedExport {
    /// Bytes of a logical block: the block layer knows none below 512.
    public var blockSize: UInt64 { max(UInt64(minimumBlock), 512) }

    /// Bytes: as many blocks as the export has whole.
    public var deviceSize: UInt64 { size - size % blockSize }

    /// What was agreed, under the names that the options of target nbd have.
    public var options: [(name: String, value: String)] {
        [
            ("size", String(deviceSize)), ("block-size", String(blockSize)), ("export-flags", String(flags)),
            ("minimum-block", String(minimumBlock)), ("preferred-block", String(preferredBlock)),
            ("maximum-block", String(maximumBlock)), ("cipher", cipher),
        ]
    }
}

/// Why there is no connection.
public struct DialFailure: Error, Equatable, Sendable {
    public enum Kind: String, Sendable, CaseIterable {
        /// A word of the command line can not be.
        case usage
        /// Nobody answers there, or not in time.
        case unreachable
        /// Who answers does not give us the export.
        case refused
        /// Who answers is no server that ubd can use.
        case unsuitable
        /// This host lacks something.
        case host
        /// The server that was to be started did not.
        case command
    }

    public var kind: Kind
    public var message: String
    public var remedy: String

    public init(_ kind: Kind, _ message: String, remedy: String) {
        self.kind = kind
        self.message = message
        self.remedy = remedy
    }
}

public enum DialReply: Equatable, Sendable {
    case agreed(DialedExport)
    case failed(DialFailure)
}

/// The device that was made of the sockets.
public struct KeepOrder: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64

    public init(id: UInt32, generation: UInt64) {
        self.id = id
        self.generation = generation
    }

    /// What the keeper answers.
    public static let done: [UInt8] = JSON.record([("kept", .bool(true))]).bytes
}

/// A message of the pair that can not be read.
public struct BrokenDialMessage: Error, Equatable, Sendable {}

/// More than any message of the pair.
public let longestDialMessage = 16 * 1024
