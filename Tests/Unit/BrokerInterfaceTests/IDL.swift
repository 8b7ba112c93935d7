/// A small parser of Varlink's interface definition language, after the grammar of UAPI.20; it accepts nothing else.
struct IDL {
    indirect enum Kind: Equatable {
        case bool, int, string, float, object, any
        case named(String)
        case structure([Field])
        case enumeration([String])
        case array(Kind)
        case map(Kind)
        case nullable(Kind)
    }

    struct Field: Equatable {
        var name: String
        var kind: Kind
    }

    struct Mistake: Error, CustomStringConvertible {
        var description: String
    }

    private(set) var interface = ""
    private(set) var types: [String: Kind] = [:]
    private(set) var methods: [String: (input: [Field], output: [Field])] = [:]
    private(set) var errors: [String: [Field]] = [:]
    private var text: Substring

    init(_ text: String) throws {
        self.text = text[...]
        skip()
        try expect("interface")
        interface = try word { $0.isLetter || $0.isNumber || $0 == "." || $0 == "-" }
        guard interface.split(separator: ".").count >= 2 else { throw mistake("interface name") }
        try endOfLine()
        skip()
        while !self.text.isEmpty {
            try member()
            try endOfLine()
            skip()
        }
    }

    private mutating func member() throws {
        let keyword = try word(\.isLowercase)
        skip()
        let name = try word { $0.isASCII && ($0.isLetter || $0.isNumber) }
        guard name.first?.isUppercase == true else { throw mistake("'\(name)' must begin with a capital") }
        guard types[name] == nil, methods[name] == nil, errors[name] == nil else { throw mistake("'\(name)' twice") }
        skip()
        switch keyword {
        case "type": types[name] = try parenthesis()
        case "error": errors[name] = try structure()
        case "method":
            let input = try structure()
            skip()
            try expect("->")
            skip()
            methods[name] = (input, try structure())
        default: throw mistake("keyword '\(keyword)'")
        }
    }

    private mutating func structure() throws -> [Field] {
        guard case .structure(let fields) = try parenthesis() else { throw mistake("a structure must be here") }
        return fields
    }

    /// A structure or an enumeration.
    private mutating func parenthesis() throws -> Kind {
        try expect("(")
        var fields: [Field] = []
        var names: [String] = []
        skip()
        while !text.hasPrefix(")") {
            let name = try fieldName()
            guard !names.contains(name) else { throw mistake("field '\(name)' twice") }
            names.append(name)
            skip()
            if text.hasPrefix(":") {
                try expect(":")
                skip()
                fields.append(Field(name: name, kind: try kind()))
                skip()
            }
            guard text.hasPrefix(",") else { break }
            try expect(",")
            skip()
            if text.hasPrefix(")") { throw mistake("a comma before the end") }
        }
        try expect(")")
        if fields.isEmpty, !names.isEmpty { return .enumeration(names) }
        guard fields.count == names.count else { throw mistake("fields with and without a type") }
        return .structure(fields)
    }

    private mutating func kind() throws -> Kind {
        if take("?") {
            if text.hasPrefix("?") { throw mistake("nullable twice") }
            return .nullable(try kind())
        }
        if take("[]") { return .array(try kind()) }
        if take("[string]") { return .map(try kind()) }
        if text.hasPrefix("(") { return try parenthesis() }
        let name = try word { $0.isASCII && ($0.isLetter || $0.isNumber) }
        switch name {
        case "bool": return .bool
        case "int": return .int
        case "string": return .string
        case "float": return .float
        case "object": return .object
        case "any": return .any
        default:
            guard name.first?.isUppercase == true else { throw mistake("type '\(name)'") }
            return .named(name)
        }
    }

    private mutating func fieldName() throws -> String {
        let name = try word { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_") }
        guard name.first?.isLetter == true, name.last != "_", !name.contains("__") else {
            throw mistake("field name '\(name)'")
        }
        return name
    }

    // MARK: Text

    private mutating func take(_ prefix: String) -> Bool {
        guard text.hasPrefix(prefix) else { return false }
        text.removeFirst(prefix.count)
        return true
    }

    private mutating func expect(_ prefix: String) throws {
        guard take(prefix) else { throw mistake("'\(prefix)' expected") }
        if prefix == "interface" { skip() }
    }

    private mutating func word(_ belongs: (Character) -> Bool) throws -> String {
        let word = text.prefix(while: belongs)
        guard !word.isEmpty else { throw mistake("a name expected") }
        text.removeFirst(word.count)
        return String(word)
    }

    /// After a member only blanks and a comment may stand on its line.
    private mutating func endOfLine() throws {
        text = text.drop { $0 == " " || $0 == "\t" }
        if text.hasPrefix("#") { text = text.drop { $0 != "\n" } }
        guard take("\n") else { throw mistake("a line break must follow") }
    }

    private mutating func skip() {
        while let first = text.first, first.isWhitespace || first == "#" {
            text = first == "#" ? text.drop { $0 != "\n" } : text.dropFirst()
        }
    }

    private func mistake(_ what: String) -> Mistake { Mistake(description: "\(what), before '\(text.prefix(40))'") }
}
