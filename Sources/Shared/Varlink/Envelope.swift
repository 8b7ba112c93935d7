/// The members around `parameters`, taken one by one. The remaining ones must be vendor extensions.
struct Envelope {
    private var members: [JSON.Member]

    init(_ message: [UInt8], limits: JSONLimits) throws(MalformedMessage) {
        let value: JSON
        do { value = try JSON(parsing: message, limits: limits) } catch { throw .notJSON(error) }
        guard case .object(let members) = value else { throw .notAnObject(kind: value.kind) }
        self.members = members
    }

    /// For a nullable field, absent and null mean the same (UAPI.20, Nullable Fields).
    private mutating func take(_ name: String) -> JSON? {
        guard let index = members.firstIndex(where: { $0.name.hasSameBytes(as: name) }) else { return nil }
        let value = members.remove(at: index).value
        return value == .null ? nil : value
    }

    mutating func takeString(_ name: String) throws(MalformedMessage) -> String? {
        switch take(name) {
        case nil: return nil
        case .string(let text): return text
        case .some(let other): throw .badMember(name: name, kind: other.kind)
        }
    }

    mutating func takeFlag(_ name: String) throws(MalformedMessage) -> Bool {
        switch take(name) {
        case nil: return false
        case .bool(let flag): return flag
        case .some(let other): throw .badMember(name: name, kind: other.kind)
        }
    }

    mutating func takeParameters() throws(MalformedMessage) -> JSON {
        switch take("parameters") {
        case nil: return .empty
        case .some(let value):
            guard case .object = value else { throw .badMember(name: "parameters", kind: value.kind) }
            return value
        }
    }

    /// UAPI.20, Vendor Extensions: a member with a dot in its name has an object as value, and is ignored.
    func finish() throws(MalformedMessage) {
        for member in members {
            guard member.name.utf8.contains(UInt8(ascii: ".")) else { throw .unknownMember(member.name) }
            guard case .object = member.value else { throw .badMember(name: member.name, kind: member.value.kind) }
        }
    }
}
