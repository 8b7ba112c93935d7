import NBDProtocol

/// A server's refusal in words.
struct RefusedOption {
    let option: NBDOption.Kind
    /// NBD_REP_ERR_*, without its highest bit.
    let code: UInt32
    /// What the server says to people.
    let text: [UInt8]
    let export: [UInt8]

    var error: NegotiationError {
        let said = text.isEmpty ? "" : ": '\(PercentEncoding.readable(text.prefix(Self.longestText)))'"
        let (kind, message, remedy) = words
        return NegotiationError(kind: kind, message: message + said, remedy: remedy)
    }

    /// Bytes of the server's own words that are told.
    private static let longestText = 400

    private var words: (NegotiationError.Kind, String, String) {
        let name = export.isEmpty ? "the default export" : "export '\(PercentEncoding.readable(export))'"
        switch (NBDOption.Failure(rawValue: code), option) {
        case (.unsupported, .startTLS):
            return (.refused, "has no TLS", "use nbd:// if that may be, or set up TLS on the server")
        case (.policy, .startTLS):
            return (.refused, "does not let this client use TLS", "let its administrator change that")
        case (.shutdown, _): return (.refused, "is shutting down", "try again when it is back")
        // The others are about an export, which it has not been told yet.
        case (_, .startTLS): return (.refused, "refused TLS with error \(code)", "see the server's log")
        case (.unsupported, _):
            return (
                .unsupported, "does not know NBD_OPT_GO, so it is older than the protocol of 2017", "use a newer server"
            )
        case (.policy, _):
            return (.refused, "does not give \(name) to this client", "let its administrator allow it")
        case (.invalid, _):
            return (.refused, "says that the request for \(name) was malformed", "try a newer version of the server")
        case (.platform, _): return (.refused, "can not serve \(name) on its platform", "see the server's log")
        case (.tlsRequired, _): return (.refused, "wants TLS", "use nbds:// instead of nbd://")
        case (.unknown, .go):
            return (.unknownExport, "does not have \(name)", "name one of its exports in the URI's path")
        case (.blockSizeRequired, _):
            return (.refused, "wants block sizes to be agreed on, and then refused", "see the server's log")
        case (.tooBig, _): return (.refused, "finds the request for \(name) too large", "use a shorter name")
        case (.extendedHeadersRequired, _):
            return (.unsupported, "wants extended headers, which ubd does not speak", "let it accept others")
        case (.unknown, _), (nil, _):
            return (.refused, "refused \(name) with error \(code)", "see the server's log")
        }
    }

    /// What to add to the message about an unknown export.
    static func list(_ names: [[UInt8]], hasMore: Bool) -> String {
        guard !names.isEmpty else { return "" }
        let shown = names.map { $0.isEmpty ? "'' (its default)" : "'\(PercentEncoding.readable($0.prefix(100)))'" }
        return "; it has \(shown.joined(separator: ", "))\(hasMore ? ", …" : "")"
    }
}
