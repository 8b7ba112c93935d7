/// Why a message is malformed. UAPI.20 defines no reply to it: the connection is closed.
public enum MalformedMessage: Error, Equatable, Sendable, CustomStringConvertible {
    case notJSON(JSONError)
    case notAnObject(kind: String)
    case missingMethod
    case badMember(name: String, kind: String)
    case unknownMember(String)
    case badMethodName(String)
    case conflictingFlags(String, String)
    case continuesWithError

    public var description: String {
        switch self {
        case .notJSON(let error): "not JSON: \(error)"
        case .notAnObject(let kind): "the message is \(kind), not an object"
        case .missingMethod: "no method is named"
        case .badMember(let name, let kind): "member \(name) is \(kind)"
        case .unknownMember(let name): "unknown member \(name)"
        case .badMethodName(let name): "'\(name)' is not the full name of a method"
        case .conflictingFlags(let one, let other): "both \(one) and \(other) are set"
        case .continuesWithError: "an error reply that says that it continues"
        }
    }
}

/// One call from a client to a service (UAPI.20, Call).
public struct Call: Equatable, Sendable {
    /// The full name: interface, dot, method.
    public var method: String
    /// Always an object; an absent or null member becomes `{}`.
    public var parameters: JSON
    /// The client accepts several replies.
    public var more: Bool
    /// The client wants no reply, and no error either.
    public var oneway: Bool
    /// The client wants to use another protocol on the connection afterwards.
    public var upgrade: Bool

    public init(
        method: String, parameters: JSON = .empty, more: Bool = false, oneway: Bool = false,
        upgrade: Bool = false
    ) {
        self.method = method
        self.parameters = parameters
        self.more = more
        self.oneway = oneway
        self.upgrade = upgrade
    }

    /// The method's name without its interface.
    public var methodName: String { String(method[(lastDot.map(method.index(after:)) ?? method.startIndex)...]) }
    /// The interface's name; empty when `method` has no dot.
    public var interface: String { String(method[..<(lastDot ?? method.startIndex)]) }

    private var lastDot: String.Index? { method.lastIndex(of: ".") }
}

extension Call {
    /// Decodes one message without its NUL.
    ///
    /// - Throws: `MalformedMessage`; the connection must then be closed.
    public init(message: [UInt8], limits: JSONLimits = .call) throws(MalformedMessage) {
        var envelope = try Envelope(message, limits: limits)
        guard let method = try envelope.takeString("method") else { throw .missingMethod }
        guard Self.isMethodName(method) else { throw .badMethodName(method) }
        self.init(
            method: method, parameters: try envelope.takeParameters(), more: try envelope.takeFlag("more"),
            oneway: try envelope.takeFlag("oneway"), upgrade: try envelope.takeFlag("upgrade"))
        try envelope.finish()
        let flags = [("more", more), ("oneway", oneway), ("upgrade", upgrade)].filter(\.1).map(\.0)
        if flags.count > 1 { throw .conflictingFlags(flags[0], flags[1]) }
    }

    /// The encoded message with its terminating NUL. Members with default values are omitted.
    public var message: [UInt8] {
        let empty = parameters == JSON.empty
        let envelope = JSON.record([
            ("method", .string(method)), ("parameters", empty ? nil : parameters), ("more", more ? true : nil),
            ("oneway", oneway ? true : nil), ("upgrade", upgrade ? true : nil),
        ])
        return envelope.bytes + [0]
    }

    /// Interface name, dot, method name, by UAPI.20's grammar. Checked so that the name is safe to log.
    static func isMethodName(_ name: String) -> Bool {
        let parts = name.utf8.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        guard parts.count >= 3, name.utf8.count <= 255, let method = parts.last else { return false }
        guard let initial = method.first, isUpper(initial), method.allSatisfy(isAlphanumeric) else { return false }
        return parts.dropLast().allSatisfy { part in
            guard let first = part.first, let last = part.last else { return false }
            return isAlphanumeric(first) && isAlphanumeric(last)
                && part.allSatisfy { isAlphanumeric($0) || $0 == UInt8(ascii: "-") }
        }
    }

    private static func isUpper(_ byte: UInt8) -> Bool { (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) }
    private static func isAlphanumeric(_ byte: UInt8) -> Bool {
        isUpper(byte) || (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
            || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }
}
