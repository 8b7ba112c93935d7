/// Limits of the parser, which it checks before it allocates.
public struct JSONLimits: Sendable, Equatable {
    /// Size of a document in bytes, without Varlink's terminating NUL.
    public var bytes: Int
    /// Nesting depth of objects and arrays; 1 allows `{}` with nothing nested.
    public var depth: Int

    public init(bytes: Int, depth: Int) {
        self.bytes = bytes
        self.depth = depth
    }

    /// The broker's limits for a client's call: 16 KiB, 8 levels.
    public static let call = JSONLimits(bytes: 16 * 1024, depth: 8)
    /// The client's limits for a broker's reply: 4 MiB hold all devices of a host.
    public static let reply = JSONLimits(bytes: 4 * 1024 * 1024, depth: 8)
}

/// Why and where a text is not an acceptable JSON document.
public struct JSONError: Error, Equatable, Sendable, CustomStringConvertible {
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

    public var reason: Reason
    /// Offset in bytes where the error was found.
    public var offset: Int

    public init(_ reason: Reason, at offset: Int) {
        self.reason = reason
        self.offset = offset
    }

    public var description: String { "byte \(offset): \(reason.rawValue)" }
}
