/// What a parser accepts at most. Everything beyond is refused before it costs anything.
public struct JSONLimits: Sendable, Equatable {
    /// Bytes of one document, without Varlink's terminating NUL.
    public var bytes: Int
    /// Objects and arrays inside each other; 1 allows `{}` and nothing inside it.
    public var depth: Int

    /// Limits of that many bytes and levels.
    public init(bytes: Int, depth: Int) {
        self.bytes = bytes
        self.depth = depth
    }

    /// What the broker accepts from a client: 16 KiB, 8 levels.
    public static let call = JSONLimits(bytes: 16 * 1024, depth: 8)
    /// What a client accepts from the broker: a list of all devices of a host fits into 4 MiB.
    public static let reply = JSONLimits(bytes: 4 * 1024 * 1024, depth: 8)
}

/// Why a text is not a JSON document that we accept, and where.
public struct JSONError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What was wrong.
    public enum Reason: String, Equatable, Sendable {
        case tooLong = "longer than the limit"
        case tooDeep = "nested deeper than the limit"
        case endOfText = "ends in the middle of a value"
        case trailingBytes = "something follows the value"
        case expectedValue = "no value where one must be"
        case expectedName = "no member name where one must be"
        case expectedColon = "no colon after a member name"
        case expectedCommaOrEnd = "neither a comma nor the closing bracket"
        case duplicateName = "a member name appears twice"
        case notAnInteger = "a number with a fraction or an exponent"
        case leadingZero = "a number with a leading zero"
        case outOfRange = "an integer beyond 64 bits with sign"
        case controlCharacter = "an unescaped control character in a string"
        case badEscape = "an unknown escape sequence"
        case loneSurrogate = "half of a surrogate pair"
        case notUTF8 = "bytes that are not UTF-8"
    }

    /// What was wrong.
    public var reason: Reason
    /// Byte offset from the start of the document where it was noticed.
    public var offset: Int

    /// An error of that reason, noticed at that byte.
    public init(_ reason: Reason, at offset: Int) {
        self.reason = reason
        self.offset = offset
    }

    public var description: String { "byte \(offset): \(reason.rawValue)" }
}
