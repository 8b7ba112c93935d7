/// One reply from a service to a client (UAPI.20, Reply).
public struct Reply: Equatable, Sendable {
    /// Always an object; an absent or null member becomes `{}`. With an error these are the error's parameters.
    public var parameters: JSON
    /// More replies to the same call follow; allowed only when the call had `more`.
    public var continues: Bool
    /// The full name of the error; nil on success.
    public var error: String?

    /// A success reply.
    public init(parameters: JSON = .empty, continues: Bool = false) {
        self.parameters = parameters
        self.continues = continues
    }

    /// An error reply; it always ends the call.
    public init(error: String, parameters: JSON = .empty) {
        self.parameters = parameters
        self.continues = false
        self.error = error
    }

    /// Decodes one message without its NUL.
    ///
    /// - Throws: `MalformedMessage`; the connection must then be closed.
    public init(message: [UInt8], limits: JSONLimits = .reply) throws(MalformedMessage) {
        var envelope = try Envelope(message, limits: limits)
        parameters = try envelope.takeParameters()
        continues = try envelope.takeFlag("continues")
        error = try envelope.takeString("error")
        try envelope.finish()
        if error != nil, continues { throw .continuesWithError }
    }

    /// The encoded message with its terminating NUL. Members with default values are omitted.
    public var message: [UInt8] {
        let empty = parameters == JSON.empty
        let envelope = JSON.record([
            ("error", error.map(JSON.string)), ("parameters", empty ? nil : parameters),
            ("continues", continues ? true : nil),
        ])
        return envelope.bytes + [0]
    }
}
