/// What a server says of its export, and how it encrypts: what the worker is told, and what must be the same at every other connection.
public struct ExportFacts: Equatable, Sendable {
    /// Bytes.
    public var size: UInt64
    /// The 16 transmission flags.
    public var flags: UInt16
    /// Bytes; what the protocol says to take where the server says nothing of blocks ("Block size constraints").
    public var minimumBlock: UInt32 = 1
    public var preferredBlock: UInt32 = 4096
    public var maximumBlock: UInt32 = 32 << 20
    /// The server told its blocks.
    public var hasBlocks = false
    /// What the connection is encrypted with: "TLS1.3 CHACHA20-POLY1305"; "" without TLS.
    public var cipher = ""
    /// The uid of the server's process; nil where this host can't tell (`ServerUser`).
    public var serverUser: UInt32?

    public init(size: UInt64, flags: UInt16) {
        self.size = size
        self.flags = flags
    }

    /// NBD_FLAG_*, as far as they matter here ("Transmission flags").
    public static let hasFlags: UInt16 = 1 << 0
    public static let readOnly: UInt16 = 1 << 1
    public static let multipleConnections: UInt16 = 1 << 8

    public var isReadOnly: Bool { flags & Self.readOnly != 0 }
    /// A flush on one connection is one of all.
    public var takesMultipleConnections: Bool { flags & Self.multipleConnections != 0 }

    /// Whether these facts can be true at all; nil: they can.
    var contradiction: String? {
        if flags & Self.hasFlags == 0 { return "it says that it has no flags, which every server has" }
        if size > UInt64(Int64.max) { return "it says that the export has \(size) bytes" }
        guard hasBlocks else { return nil }
        let blocks = "blocks of \(minimumBlock), \(preferredBlock) and at most \(maximumBlock) bytes"
        guard minimumBlock.nonzeroBitCount == 1, minimumBlock <= 1 << 16, preferredBlock.nonzeroBitCount == 1,
            preferredBlock >= max(minimumBlock, 512), maximumBlock >= preferredBlock,
            maximumBlock == .max || maximumBlock.isMultiple(of: minimumBlock)
        else { return "it says that it has " + blocks + ", which can not be" }
        return nil
    }

    /// What differs from what was agreed before; nil: it is the same export, as far as a client can see.
    public func difference(from before: ExportFacts) -> String? {
        if size != before.size { return "its size was \(before.size) bytes and is \(size)" }
        if flags != before.flags {
            return "its flags were 0x\(String(before.flags, radix: 16)) and are 0x\(String(flags, radix: 16))"
        }
        for (name, was, now) in [
            ("smallest block", before.minimumBlock, minimumBlock),
            ("best block", before.preferredBlock, preferredBlock),
            ("largest request", before.maximumBlock, maximumBlock),
        ] where was != now { return "its \(name) was \(was) bytes and is \(now)" }
        if cipher != before.cipher { return "its cipher was '\(before.cipher)' and is '\(cipher)'" }
        // When a server on this host has ended, another user may have taken its place.
        guard let user = before.serverUser, user != serverUser else { return nil }
        let now = serverUser.map { "a process of uid \($0)" } ?? "no process of this host"
        return now + " serves it, and one of uid \(user) did"
    }
}
