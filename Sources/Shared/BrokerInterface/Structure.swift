import Varlink

/// A structure of the interface: the parameters of a call, those of a reply, or a type that they have inside.
///
/// `members` names each member once, in the order of the wire. Reading, writing, and the description of the interface all
/// follow it, so that a new member is one stored property and one line there.
public protocol Structure: MemberValue {
    /// A structure for a reader to fill: each member is nil, 0 or empty.
    init()

    /// Passes each member to `coder`, with its name on the wire and its explanation in the description.
    mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure)

    /// `members` with a reader. It is a requirement so that the compiler specialises it for each structure in this module.
    mutating func read(_ reader: inout MemberReader) throws(InterfaceError)
    /// `members` with a writer, which changes nothing.
    mutating func write(_ writer: inout MemberWriter)
}

/// The visitor of `Structure.members`: a reader, a writer, or the author of the description.
public protocol MemberCoder {
    associatedtype Failure: Error

    /// One member. `about` is its explanation in the description: lines of at most 116 characters, or no text when the name
    /// says it all.
    mutating func member<Value: MemberValue>(
        _ name: String, _ value: inout Value, _ about: @autoclosure () -> String
    ) throws(Failure)
}

extension MemberCoder {
    /// A member whose name says what it is.
    public mutating func member<Value: MemberValue>(_ name: String, _ value: inout Value) throws(Failure) {
        try member(name, &value, "")
    }
}

extension Structure {
    /// A structure with the members that `set` gives it.
    public init(_ set: (inout Self) -> Void) {
        self.init()
        set(&self)
    }

    /// Decodes a structure.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(json: JSON, path: String = "", unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var reader = try MemberReader(json, path: path, unknown: unknown)
        self.init()
        try read(&reader)
        try reader.finish()
    }

    /// Decodes the parameters of a call or a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        try self.init(json: parameters, unknown: unknown)
    }

    /// The encoded structure.
    public var json: JSON {
        var (copy, writer) = (self, MemberWriter())
        copy.write(&writer)
        return .object(writer.members)
    }

    public mutating func read(_ reader: inout MemberReader) throws(InterfaceError) { try members(&reader) }
    public mutating func write(_ writer: inout MemberWriter) { members(&writer) }

    public static var typeName: String { "\(Self.self)" }
    public var wire: JSON? { json }

    public init(wire: JSON?, at place: MemberPlace, unknown: UnknownFields) throws(InterfaceError) {
        guard let wire else { throw place.error }
        try self.init(json: wire, path: place.text, unknown: unknown)
    }
}

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
public struct MemberReader: MemberCoder {
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

    public mutating func member<Value: MemberValue>(
        _ name: String, _ value: inout Value, _ about: @autoclosure () -> String
    ) throws(InterfaceError) {
        value = try take(name)
    }

    /// The value of one member.
    ///
    /// - Throws: InvalidParameter when it is missing and can not be nil, or has another type.
    mutating func take<Value: MemberValue>(_ name: String, as type: Value.Type = Value.self) throws(InterfaceError)
        -> Value
    {
        try Value(wire: value(of: name), at: MemberPlace(structure: path, name: name), unknown: unknown)
    }

    /// Null and absence are the same for a nullable member.
    private mutating func value(of name: String) -> JSON? {
        guard let index = members.firstIndex(where: { $0.name.hasSameBytes(as: name) }) else { return nil }
        let value = members.remove(at: index).value
        return value == .null ? nil : value
    }

    func finish() throws(InterfaceError) {
        guard unknown == .refuse, let first = members.first else { return }
        throw MemberPlace(structure: path, name: first.name).error
    }
}

/// Collects the members that are there.
public struct MemberWriter: MemberCoder {
    private(set) var members: [JSON.Member] = []

    public mutating func member<Value: MemberValue>(
        _ name: String, _ value: inout Value, _ about: @autoclosure () -> String
    ) {
        if let wire = value.wire { members.append(JSON.Member(name, wire)) }
    }
}

/// Collects what the description says of each member: its comment, one line or more, and its declaration.
struct MemberLister: MemberCoder {
    private var members: [(about: String, declaration: String)] = []

    mutating func member<Value: MemberValue>(
        _ name: String, _ value: inout Value, _ about: @autoclosure () -> String
    ) {
        members.append((about(), "\(name): \(Value.typeName)"))
    }

    /// In Varlink's interface definition language, in parentheses: on a line each when one has a comment.
    var text: String {
        guard members.contains(where: { !$0.about.isEmpty }) else {
            return "(" + members.map(\.declaration).joined(separator: ", ") + ")"
        }
        let lines = members.map { member in
            member.about.split(separator: "\n").map { "  # \($0)\n" }.joined() + "  " + member.declaration
        }
        return "(\n" + lines.joined(separator: ",\n") + "\n)"
    }
}

extension Structure {
    /// The members in Varlink's interface definition language.
    static var declaration: String {
        var (blank, lister) = (Self(), MemberLister())
        blank.members(&lister)
        return lister.text
    }
}
