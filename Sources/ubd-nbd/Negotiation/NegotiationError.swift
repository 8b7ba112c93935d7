/// Why a server and we did not agree: a sentence without a subject, to be put behind "the server at HOST", and what to do.
public struct NegotiationError: Error, Equatable, Sendable {
    public enum Kind: Equatable, Sendable {
        /// It has no export of that name.
        case unknownExport
        /// It refused, for a reason of its own.
        case refused
        /// What it sends is not the protocol.
        case violation
        /// It speaks an older protocol, or lacks something.
        case unsupported
    }

    public let kind: Kind
    public let message: String
    public let remedy: String

    static func violation(_ what: String) -> NegotiationError {
        NegotiationError(
            kind: .violation, message: "does not speak NBD as it should: \(what)",
            remedy: "check that host, port or socket are those of an NBD server")
    }
}
