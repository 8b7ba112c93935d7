import NBDProtocol

/// The client's side of fixed newstyle negotiation, from the greeting to the transmission phase. It does no I/O: it says how
/// many bytes it wants next, is given them, and says what to send. So no byte behind the last reply is ever read: it belongs to
/// the worker, or to nobody.
///
/// Structured replies are not asked for, so the server sends simple ones ("Transmission phase").
public struct Negotiation: Sendable {
    /// What is to happen next.
    public enum Step: Equatable, Sendable {
        /// So many bytes are wanted, 1 or more.
        case receive(Int)
        /// The handshake of TLS begins; then call `secured`.
        case startTLS
        case finished(ExportFacts)
    }

    private enum Phase: Sendable {
        case greeting
        case replyHeader
        case replyBody(type: UInt32, length: Int)
        case waitsForTLS
        case finished
    }

    private let export: [UInt8]
    private let wantsTLS: Bool
    private var phase = Phase.greeting
    private var option = NBDOption.Kind.go
    private var buffer: [UInt8] = []
    /// What is to be sent, in order; the owner takes it.
    private var output: [UInt8] = []
    private var size: UInt64?
    private var facts: ExportFacts?
    private var blocks: (minimum: UInt32, preferred: UInt32, maximum: UInt32)?
    private var replies = 0
    /// What the server has, once the export that is wanted was not among it.
    private var names: [[UInt8]] = []
    private var hasMoreNames = false
    private var unknownExport: NegotiationError?

    /// More replies to one option than any server has: a list ends here, everything else is a violation.
    static let mostReplies = 256
    /// The largest body of a reply that the protocol knows is a name of a server with its details.
    static let longestReply = 4 + 2 * NBDOption.longestString
    /// So many names are told.
    static let namesTold = 16

    /// - Parameter export: its name, at most `NBDOption.longestString` bytes.
    public init(export: [UInt8], wantsTLS: Bool) {
        self.export = export
        self.wantsTLS = wantsTLS
    }

    /// What to do now. What `takeOutput` returns goes first.
    public var step: Step {
        switch phase {
        case .greeting: .receive(18 - buffer.count)
        case .replyHeader: .receive(20 - buffer.count)
        case .replyBody(_, let length): .receive(length - buffer.count)
        case .waitsForTLS: .startTLS
        case .finished: .finished(facts!)
        }
    }

    /// What has to be sent before anything is received.
    public mutating func takeOutput() -> [UInt8] {
        defer { output = [] }
        return output
    }

    /// Takes bytes that came, at most as many as `step` wants.
    ///
    /// - Throws: why there will be no agreement. What `takeOutput` returns then is a farewell that may be sent.
    public mutating func receive(_ bytes: some Collection<UInt8>) throws(NegotiationError) {
        guard case .receive(let wanted) = step else { throw .violation("it sends more than it was asked for") }
        precondition(bytes.count <= wanted, "more than was wanted")
        buffer.append(contentsOf: bytes)
        guard bytes.count == wanted else { return }
        let whole = buffer
        buffer = []
        switch phase {
        case .greeting: try greet(whole)
        case .replyHeader: try takeHeader(whole)
        case .replyBody(let type, _): try takeReply(type, whole)
        case .waitsForTLS, .finished: break
        }
    }

    /// The handshake of TLS is done; everything goes through it from here on.
    public mutating func secured() {
        guard case .waitsForTLS = phase else { return }
        askForExport()
    }

    // MARK: Greeting

    private mutating func greet(_ bytes: [UInt8]) throws(NegotiationError) {
        guard Self.number(bytes[0..<8], UInt64.self) == NBDOption.greeting else {
            throw .violation("its first bytes are \(Self.hex(bytes.prefix(8)))")
        }
        let second = Self.number(bytes[8..<16], UInt64.self)
        guard second != NBDOption.oldstyleMagic else {
            throw NegotiationError(
                kind: .unsupported, message: "speaks the old style of NBD, without negotiation, which ubd does not",
                remedy: "use a newer server, or let it serve a named export")
        }
        guard second == NBDOption.magic else { throw .violation("its second word is \(Self.hex(bytes[8..<16]))") }
        let flags = Self.number(bytes[16..<18], UInt16.self)
        guard flags & NBDOption.Handshake.fixedNewstyle != 0 else {
            throw NegotiationError(
                kind: .unsupported, message: "speaks NBD as before 2013, without 'fixed newstyle'",
                remedy: "use a newer server")
        }
        // The same bits mean the same in the client's answer (NBD_FLAG_C_*).
        let known = NBDOption.Handshake.fixedNewstyle | NBDOption.Handshake.noZeroes
        put(UInt32(flags & known))
        if wantsTLS { send(.startTLS, []) } else { askForExport() }
    }

    private mutating func askForExport() {
        var body: [UInt8] = []
        body += Self.bytes(UInt32(export.count)) + export
        body += Self.bytes(UInt16(1)) + Self.bytes(NBDOption.Info.blockSize)
        send(.go, body)
    }

    private mutating func send(_ kind: NBDOption.Kind, _ body: [UInt8]) {
        option = kind
        replies = 0
        phase = .replyHeader
        put(NBDOption.magic)
        put(kind.rawValue)
        put(UInt32(body.count))
        output += body
    }

    // MARK: Replies

    private mutating func takeHeader(_ bytes: [UInt8]) throws(NegotiationError) {
        guard Self.number(bytes[0..<8], UInt64.self) == NBDOption.replyMagic else {
            throw .violation("a reply begins with \(Self.hex(bytes[0..<8]))")
        }
        let about = Self.number(bytes[8..<12], UInt32.self)
        guard about == option.rawValue else {
            throw .violation("it answers option \(about), and was asked option \(option.rawValue)")
        }
        let type = Self.number(bytes[12..<16], UInt32.self)
        let length = Self.number(bytes[16..<20], UInt32.self)
        guard length <= UInt32(Self.longestReply) else { throw .violation("a reply of \(length) bytes") }
        replies += 1
        guard replies <= Self.mostReplies || option == .list else {
            throw .violation("more than \(Self.mostReplies) replies to one option")
        }
        if length == 0 { return try takeReply(type, []) }
        phase = .replyBody(type: type, length: Int(length))
    }

    private mutating func takeReply(_ type: UInt32, _ body: [UInt8]) throws(NegotiationError) {
        phase = .replyHeader
        if type & NBDOption.Reply.error != 0 { return try refused(type & ~NBDOption.Reply.error, body) }
        switch (option, type) {
        case (.startTLS, NBDOption.Reply.ack):
            try expectEmpty(body)
            phase = .waitsForTLS
        case (.go, NBDOption.Reply.ack):
            try expectEmpty(body)
            try finish()
        case (.go, NBDOption.Reply.info): try takeInfo(body)
        case (.list, NBDOption.Reply.ack): try farewell(unknownExport!)
        case (.list, NBDOption.Reply.server): try takeName(body)
        default: throw .violation("a reply of type \(type) to option \(option.rawValue)")
        }
    }

    private func expectEmpty(_ body: [UInt8]) throws(NegotiationError) {
        guard body.isEmpty else { throw .violation("an acknowledgement with \(body.count) bytes") }
    }

    private mutating func takeInfo(_ body: [UInt8]) throws(NegotiationError) {
        guard body.count >= 2 else { throw .violation("a piece of information without its kind") }
        let kind = Self.number(body[0..<2], UInt16.self)
        switch kind {
        case NBDOption.Info.export:
            guard body.count == 12 else { throw .violation("size and flags in \(body.count) bytes instead of 12") }
            let new = ExportFacts(
                size: Self.number(body[2..<10], UInt64.self), flags: Self.number(body[10..<12], UInt16.self))
            guard facts == nil || facts == new else { throw .violation("two sizes, or two sets of flags") }
            facts = new
        case NBDOption.Info.blockSize:
            guard body.count == 14 else { throw .violation("block sizes in \(body.count) bytes instead of 14") }
            guard blocks == nil else { throw .violation("block sizes twice") }
            blocks = (
                Self.number(body[2..<6], UInt32.self), Self.number(body[6..<10], UInt32.self),
                Self.number(body[10..<14], UInt32.self)
            )
        // A server may tell what nobody asked for.
        default: break
        }
    }

    private mutating func finish() throws(NegotiationError) {
        guard var result = facts else { throw .violation("it agreed without telling size and flags") }
        if let blocks {
            result.minimumBlock = blocks.minimum
            result.preferredBlock = blocks.preferred
            result.maximumBlock = blocks.maximum
            result.hasBlocks = true
        }
        if let what = result.contradiction { throw .violation(what) }
        facts = result
        phase = .finished
    }

    private mutating func takeName(_ body: [UInt8]) throws(NegotiationError) {
        guard body.count >= 4 else { throw .violation("a name without its length") }
        let length = Self.number(body[0..<4], UInt32.self)
        guard length <= UInt32(body.count - 4) else { throw .violation("a name longer than its reply") }
        if names.count < Self.namesTold {
            names.append(Array(body[4..<4 + Int(length)]))
        } else {
            hasMoreNames = true
        }
        // Which ones there are beyond that is not worth reading for ever.
        if replies >= Self.mostReplies { try farewell(unknownExport!) }
    }

    // MARK: Refusals

    private mutating func refused(_ code: UInt32, _ body: [UInt8]) throws(NegotiationError) {
        if option == .list { try farewell(unknownExport!) }
        let error = RefusedOption(option: option, code: code, text: body, export: export).error
        if error.kind == .unknownExport {
            unknownExport = error
            return send(.list, [])
        }
        try farewell(error)
    }

    private mutating func farewell(_ error: NegotiationError) throws(NegotiationError) -> Never {
        send(.abort, [])
        guard error.kind == .unknownExport else { throw error }
        throw NegotiationError(
            kind: error.kind, message: error.message + RefusedOption.list(names, hasMore: hasMoreNames),
            remedy: error.remedy)
    }

    // MARK: Numbers

    private mutating func put(_ number: some FixedWidthInteger) { output += Self.bytes(number) }

    private static func bytes(_ number: some FixedWidthInteger) -> [UInt8] {
        withUnsafeBytes(of: number.bigEndian) { Array($0) }
    }

    private static func number<Number: FixedWidthInteger>(_ bytes: ArraySlice<UInt8>, _: Number.Type) -> Number {
        bytes.reduce(0) { $0 << 8 | Number(truncatingIfNeeded: $1) }
    }

    private static func hex(_ bytes: some Sequence<UInt8>) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
    }
}
