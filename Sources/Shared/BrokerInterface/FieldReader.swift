import Varlink

/// The treatment of members that a structure does not declare.
public enum UnknownFields: Sendable {
    /// A service refuses them, so that a client does not believe that the service understood an option.
    case refuse
    /// A client ignores them, so that a newer service can return more (UAPI.20, Unknown Fields).
    case ignore
}

/// Takes the declared members out of an object one by one; `finish()` refuses the others.
///
/// Every error is `org.varlink.service.InvalidParameter` with the path of the member, for example "options.size".
struct FieldReader {
    private var members: [JSON.Member]
    private let path: String
    private let unknown: UnknownFields

    init(_ value: JSON, path: String = "", unknown: UnknownFields = .refuse) throws(InterfaceError) {
        guard case .object(let members) = value else {
            throw .invalidParameter(parameter: path.isEmpty ? "parameters" : path)
        }
        self.members = members
        self.path = path
        self.unknown = unknown
    }

    /// The path of a member, for an error or a nested structure.
    func fullName(_ name: String) -> String { path.isEmpty ? name : path + "." + name }

    /// Takes a nullable field: nil when it is absent or null.
    mutating func value(_ name: String) -> JSON? {
        guard let index = members.firstIndex(where: { $0.name.hasSameBytes(as: name) }) else { return nil }
        let value = members.remove(at: index).value
        return value == .null ? nil : value
    }

    func finish() throws(InterfaceError) {
        guard unknown == .refuse, let first = members.first else { return }
        throw .invalidParameter(parameter: fullName(first.name))
    }

    // MARK: Nullable fields

    mutating func optionalString(_ name: String) throws(InterfaceError) -> String? {
        switch value(name) {
        case nil: return nil
        case .string(let text): return text
        default: throw invalid(name)
        }
    }

    mutating func optionalFlag(_ name: String) throws(InterfaceError) -> Bool? {
        switch value(name) {
        case nil: return nil
        case .bool(let flag): return flag
        default: throw invalid(name)
        }
    }

    /// An integer within the range of `Value`.
    mutating func optionalInteger<Value: FixedWidthInteger>(
        _ name: String, as type: Value.Type = Value.self
    ) throws(InterfaceError) -> Value? {
        switch value(name) {
        case nil: return nil
        case .integer(let number):
            guard let exact = Value(exactly: number) else { throw invalid(name) }
            return exact
        default: throw invalid(name)
        }
    }

    mutating func optionalArray<Element>(
        _ name: String, _ read: (JSON, String) throws(InterfaceError) -> Element
    ) throws(InterfaceError) -> [Element]? {
        switch value(name) {
        case nil: return nil
        case .array(let elements):
            var result: [Element] = []
            for (index, element) in elements.enumerated() {
                result.append(try read(element, fullName(name) + "[\(index)]"))
            }
            return result
        default: throw invalid(name)
        }
    }

    // MARK: Required fields

    mutating func string(_ name: String) throws(InterfaceError) -> String {
        try required(name, try optionalString(name))
    }

    mutating func flag(_ name: String) throws(InterfaceError) -> Bool {
        try required(name, try optionalFlag(name))
    }

    mutating func integer<Value: FixedWidthInteger>(
        _ name: String, as type: Value.Type = Value.self
    ) throws(InterfaceError) -> Value {
        try required(name, try optionalInteger(name, as: type))
    }

    mutating func array<Element>(
        _ name: String, _ read: (JSON, String) throws(InterfaceError) -> Element
    ) throws(InterfaceError) -> [Element] {
        try required(name, try optionalArray(name, read))
    }

    mutating func strings(_ name: String) throws(InterfaceError) -> [String] {
        try array(name) { (element, path) throws(InterfaceError) in
            guard case .string(let text) = element else { throw .invalidParameter(parameter: path) }
            return text
        }
    }

    mutating func integers<Value: FixedWidthInteger>(
        _ name: String, as type: Value.Type = Value.self
    ) throws(InterfaceError) -> [Value] {
        try array(name) { (element, path) throws(InterfaceError) in
            guard case .integer(let number) = element, let exact = Value(exactly: number) else {
                throw .invalidParameter(parameter: path)
            }
            return exact
        }
    }

    private func required<Value>(_ name: String, _ value: Value?) throws(InterfaceError) -> Value {
        guard let value else { throw invalid(name) }
        return value
    }

    private func invalid(_ name: String) -> InterfaceError { .invalidParameter(parameter: fullName(name)) }
}

extension JSON {
    /// An integer for the wire. A number outside Int64 becomes the nearest Int64.
    static func integer(clamping number: some BinaryInteger) -> JSON { .integer(Int64(clamping: number)) }
}
