import Targets
import Varlink

/// The type of a member of a structure.
public protocol MemberValue {
    /// Its type in Varlink's interface definition language, as in "?int".
    static var typeName: String { get }
    /// The encoded value; nil leaves the member out.
    var wire: JSON? { get }

    /// Decodes a member; `wire` is nil when it is absent or null.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the place, or one inside it.
    init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError)
}

/// The place of a member: the path of its structure, empty for the outermost one, and its name.
public struct MemberPlace {
    let structure: String
    let name: String

    /// As an error names it: "options.size".
    var text: String { structure.isEmpty ? name : structure + "." + name }
    var error: InterfaceError { .invalidParameter(parameter: text) }
}

extension Optional: MemberValue where Wrapped: MemberValue {
    public static var typeName: String { "?" + Wrapped.typeName }
    public var wire: JSON? { self?.wire }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        self = wire == nil ? nil : try Wrapped(wire: wire, at: place, unknown: unknown)
    }
}

extension Array: MemberValue where Element: MemberValue {
    public static var typeName: String { "[]" + Element.typeName }
    public var wire: JSON? { .array(compactMap(\.wire)) }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard case .array(let elements)? = wire else { throw place.error }
        self = []
        for (index, element) in elements.enumerated() {
            let place = MemberPlace(structure: place.structure, name: "\(place.name)[\(index)]")
            append(try Element(wire: element, at: place, unknown: unknown))
        }
    }
}

extension String: MemberValue {
    public static var typeName: String { "string" }
    public var wire: JSON? { .string(self) }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard case .string(let text)? = wire else { throw place.error }
        self = text
    }
}

extension Bool: MemberValue {
    public static var typeName: String { "bool" }
    public var wire: JSON? { .bool(self) }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard case .bool(let flag)? = wire else { throw place.error }
        self = flag
    }
}

/// An integer is decoded when it is within the range of the type. A number outside Int64 is encoded as the nearest Int64.
extension MemberValue where Self: FixedWidthInteger {
    public static var typeName: String { "int" }
    public var wire: JSON? { .integer(Int64(clamping: self)) }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard case .integer(let number)? = wire, let exact = Self(exactly: number) else { throw place.error }
        self = exact
    }
}

extension Int: MemberValue {}
extension Int32: MemberValue {}
extension Int64: MemberValue {}
extension UInt16: MemberValue {}
extension UInt32: MemberValue {}
extension UInt64: MemberValue {}

/// An enumeration is encoded by its raw value.
extension MemberValue where Self: RawRepresentable, RawValue == String {
    public static var typeName: String { "string" }
    public var wire: JSON? { .string(rawValue) }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard let value = Self(rawValue: try String(wire: wire, at: place, unknown: unknown)) else { throw place.error }
        self = value
    }
}

extension DeviceState: MemberValue {}
extension DataMode: MemberValue {}
extension RecoveryMode: MemberValue {}

extension CPUList: MemberValue {
    public static var typeName: String { "string" }
    public var wire: JSON? { .string(text) }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard let cpus = CPUList(try String(wire: wire, at: place, unknown: unknown)) else { throw place.error }
        self = cpus
    }
}
