/// The constants of the handshake and of the option phase, from the NBD project's protocol document ("Newstyle negotiation",
/// "Values"). All numbers on the wire are big-endian.
public enum NBDOption {
    /// The server's first eight bytes, "NBDMAGIC".
    public static let greeting: UInt64 = 0x4E42_444D_4147_4943
    /// Follows it where the server negotiates, and begins every option of the client: "IHAVEOPT".
    public static let magic: UInt64 = 0x4948_4156_454F_5054
    /// Follows it where the server does not negotiate (oldstyle).
    public static let oldstyleMagic: UInt64 = 0x0000_4202_8186_1253
    /// Begins every reply to an option.
    public static let replyMagic: UInt64 = 0x0003_E889_0455_65A9

    /// What the server says of itself in 16 bits, and the client answers in 32.
    public enum Handshake {
        public static let fixedNewstyle: UInt16 = 1 << 0
        public static let noZeroes: UInt16 = 1 << 1
    }

    /// NBD_OPT_*.
    public enum Kind: UInt32, Sendable {
        case abort = 2
        case list = 3
        case startTLS = 5
        case go = 7
    }

    /// NBD_REP_*. Errors have the highest bit set.
    public enum Reply {
        public static let ack: UInt32 = 1
        public static let server: UInt32 = 2
        public static let info: UInt32 = 3
        public static let error: UInt32 = 1 << 31
    }

    /// NBD_REP_ERR_*, without the bit that makes it an error.
    public enum Failure: UInt32, Sendable {
        case unsupported = 1
        case policy = 2
        case invalid = 3
        case platform = 4
        case tlsRequired = 5
        case unknown = 6
        case shutdown = 7
        case blockSizeRequired = 8
        case tooBig = 9
        case extendedHeadersRequired = 10
    }

    /// NBD_INFO_*.
    public enum Info {
        public static let export: UInt16 = 0
        public static let name: UInt16 = 1
        public static let description: UInt16 = 2
        public static let blockSize: UInt16 = 3
    }

    /// The longest string of the protocol, in bytes ("Strings").
    public static let longestString = 4096
    /// The port of a server whose URI names none, as the IANA has it.
    public static let port: UInt16 = 10809
}
