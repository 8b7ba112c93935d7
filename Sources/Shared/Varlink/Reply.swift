/// One reply from a service to a client (UAPI.20, Reply).
public struct Reply: Equatable, Sendable {
    /// Always an object; absent and null arrive as `{}`. Belongs to the error when there is one.
    public var parameters: JSON
    /// Further replies to the same call follow; allowed only when the call had `more`.
    public var continues: Bool
    /// The full name of the error, or nil when the call succeeded.
    public var error: String?

    /// A reply of success.
    public init(parameters: JSON = .empty, continues: Bool = false) {
        self.parameters = parameters
        self.continues = continues
    }

    /// A reply of failure; it always ends the call.
    public init(error: String, parameters: JSON = .empty) {
        self.parameters = parameters
        self.continues = false
        self.error = error
    }

    /// Reads one message without its NUL.
    ///
    /// - Throws: `MalformedMessage`; then the connection must be closed.
    public init(message: [UInt8], limits: JSONLimits = .reply) throws(MalformedMessage) {
        var envelope = try Envelope(message, limits: limits)
        parameters = try envelope.takeParameters()
        continues = try envelope.takeFlag("continues")
        error = try envelope.takeString("error")
        try envelope.finish()
        if error != nil, continues { throw .continuesWithError }
    }

    /// The message with its terminating NUL, ready to be sent. Members that say nothing are left out.
    public var message: [UInt8] {
        let empty = parameters == JSON.empty
        let envelope = JSON.record([
            ("error", error.map(JSON.string)), ("parameters", empty ? nil : parameters),
            ("continues", continues ? true : nil),
        ])
        return envelope.bytes + [0]
    }
}
