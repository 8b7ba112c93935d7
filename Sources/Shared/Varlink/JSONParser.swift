/// A strict parser of one JSON document (RFC 8259) in a byte array.
///
/// It is stricter than the RFC: no duplicate names, only integers within Int64, no lone surrogates, bounded size and
/// depth. It makes one pass without backtracking; `JSONLimits.depth` bounds the recursion.
struct JSONParser {
    private let bytes: [UInt8]
    private let limits: JSONLimits
    private(set) var position = 0

    init(_ bytes: [UInt8], limits: JSONLimits) {
        self.bytes = bytes
        self.limits = limits
    }

    mutating func parseDocument() throws(JSONError) -> JSON {
        guard bytes.count <= limits.bytes else { throw JSONError(.tooLong, at: limits.bytes) }
        skipSpace()
        let value = try parseValue(level: 0)
        skipSpace()
        guard position == bytes.count else { throw JSONError(.trailingBytes, at: position) }
        return value
    }

    // MARK: Values

    private mutating func parseValue(level: Int) throws(JSONError) -> JSON {
        switch try peek() {
        case UInt8(ascii: "{"): return try parseObject(level: level + 1)
        case UInt8(ascii: "["): return try parseArray(level: level + 1)
        case UInt8(ascii: "\""): return .string(try parseString())
        case UInt8(ascii: "t"): return try parseWord("true", .bool(true))
        case UInt8(ascii: "f"): return try parseWord("false", .bool(false))
        case UInt8(ascii: "n"): return try parseWord("null", .null)
        case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return .integer(try parseInteger())
        default: throw JSONError(.expectedValue, at: position)
        }
    }

    /// Compares a few names one by one, since the first use of a set costs a program 400,000 instructions. Many names
    /// go into the set `names`, so that a document full of them does not take quadratic time. Names are compared as
    /// bytes (see `JSON`).
    private static func isNew(_ name: String, among members: [JSON.Member], _ names: inout Set<[UInt8]>) -> Bool {
        if members.count < 48 { return !members.contains { $0.name.hasSameBytes(as: name) } }
        if names.isEmpty { names = Set(members.map { Array($0.name.utf8) }) }
        return names.insert(Array(name.utf8)).inserted
    }

    private mutating func parseObject(level: Int) throws(JSONError) -> JSON {
        guard level <= limits.depth else { throw JSONError(.tooDeep, at: position) }
        position += 1
        var members: [JSON.Member] = []
        var names = Set<[UInt8]>()
        skipSpace()
        if try peek() == UInt8(ascii: "}") {
            position += 1
            return .object([])
        }
        while true {
            guard try peek() == UInt8(ascii: "\"") else { throw JSONError(.expectedName, at: position) }
            let start = position
            let name = try parseString()
            guard Self.isNew(name, among: members, &names) else { throw JSONError(.duplicateName, at: start) }
            skipSpace()
            guard try peek() == UInt8(ascii: ":") else { throw JSONError(.expectedColon, at: position) }
            position += 1
            skipSpace()
            members.append(JSON.Member(name, try parseValue(level: level)))
            if try endsAfterElement(with: UInt8(ascii: "}")) { return .object(members) }
        }
    }

    private mutating func parseArray(level: Int) throws(JSONError) -> JSON {
        guard level <= limits.depth else { throw JSONError(.tooDeep, at: position) }
        position += 1
        var elements: [JSON] = []
        skipSpace()
        if try peek() == UInt8(ascii: "]") {
            position += 1
            return .array([])
        }
        while true {
            elements.append(try parseValue(level: level))
            if try endsAfterElement(with: UInt8(ascii: "]")) { return .array(elements) }
        }
    }

    /// After an element: true at the closing bracket, false at a comma, after which the next element follows.
    private mutating func endsAfterElement(with end: UInt8) throws(JSONError) -> Bool {
        skipSpace()
        switch try peek() {
        case end:
            position += 1
            return true
        case UInt8(ascii: ","):
            position += 1
            skipSpace()
            return false
        default:
            throw JSONError(.expectedCommaOrEnd, at: position)
        }
    }

    private mutating func parseWord(_ word: StaticString, _ value: JSON) throws(JSONError) -> JSON {
        let start = position
        for offset in 0..<word.utf8CodeUnitCount {
            guard start + offset < bytes.count else { throw JSONError(.endOfText, at: bytes.count) }
            let expected = word.withUTF8Buffer { $0[offset] }
            guard bytes[start + offset] == expected else { throw JSONError(.expectedValue, at: start) }
        }
        position += word.utf8CodeUnitCount
        return value
    }

    private mutating func parseInteger() throws(JSONError) -> Int64 {
        let start = position
        let negative = bytes[position] == UInt8(ascii: "-")
        if negative { position += 1 }
        guard Self.isDigit(try peek()) else { throw JSONError(.expectedValue, at: start) }
        if bytes[position] == UInt8(ascii: "0"), position + 1 < bytes.count, Self.isDigit(bytes[position + 1]) {
            throw JSONError(.leadingZero, at: start)
        }
        // Accumulated as a negative number, since Int64.min has no positive counterpart.
        var value: Int64 = 0
        while position < bytes.count, Self.isDigit(bytes[position]) {
            let (tenfold, tooBig) = value.multipliedReportingOverflow(by: 10)
            let (next, tooBigNow) = tenfold.subtractingReportingOverflow(Int64(bytes[position] - UInt8(ascii: "0")))
            guard !tooBig, !tooBigNow else { throw JSONError(.outOfRange, at: start) }
            value = next
            position += 1
        }
        if position < bytes.count {
            switch bytes[position] {
            case UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"): throw JSONError(.notAnInteger, at: start)
            default: break
            }
        }
        if negative { return value }
        guard value != Int64.min else { throw JSONError(.outOfRange, at: start) }
        return -value
    }

    // MARK: Strings

    private mutating func parseString() throws(JSONError) -> String {
        let start = position
        position += 1
        var text: [UInt8] = []
        while true {
            let byte = try peek()
            switch byte {
            case UInt8(ascii: "\""):
                position += 1
                // The only check of UTF-8. It refuses overlong forms, surrogates and values above U+10FFFF.
                guard let string = String(validating: text, as: UTF8.self) else { throw JSONError(.notUTF8, at: start) }
                return string
            case UInt8(ascii: "\\"):
                try parseEscape(into: &text)
            case 0..<0x20:
                throw JSONError(.controlCharacter, at: position)
            default:
                text.append(byte)
                position += 1
            }
        }
    }

    private mutating func parseEscape(into text: inout [UInt8]) throws(JSONError) {
        let start = position
        position += 1
        let byte = try peek()
        position += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "f"): text.append(0x0C)
        case UInt8(ascii: "n"): text.append(0x0A)
        case UInt8(ascii: "r"): text.append(0x0D)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "u"): text.append(contentsOf: String(try parseUnicodeEscape(from: start)).utf8)
        default: throw JSONError(.badEscape, at: start)
        }
    }

    /// Parses one scalar after `\u`; above U+FFFF it consists of two escapes.
    private mutating func parseUnicodeEscape(from start: Int) throws(JSONError) -> Character {
        let first = try parseFourHexDigits(from: start)
        var value = UInt32(first)
        if (0xD800...0xDBFF).contains(first) {
            guard try peek() == UInt8(ascii: "\\") else { throw JSONError(.loneSurrogate, at: start) }
            position += 1
            guard try peek() == UInt8(ascii: "u") else { throw JSONError(.loneSurrogate, at: start) }
            position += 1
            let second = try parseFourHexDigits(from: start)
            guard (0xDC00...0xDFFF).contains(second) else { throw JSONError(.loneSurrogate, at: start) }
            value = 0x10000 + (UInt32(first - 0xD800) << 10) + UInt32(second - 0xDC00)
        }
        guard let scalar = Unicode.Scalar(value) else { throw JSONError(.loneSurrogate, at: start) }
        return Character(scalar)
    }

    private mutating func parseFourHexDigits(from start: Int) throws(JSONError) -> UInt16 {
        var value: UInt16 = 0
        for _ in 0..<4 {
            let digit: UInt8
            switch try peek() {
            case let byte where Self.isDigit(byte): digit = byte - UInt8(ascii: "0")
            case let byte where (UInt8(ascii: "a")...UInt8(ascii: "f")).contains(byte):
                digit = byte - UInt8(ascii: "a") + 10
            case let byte where (UInt8(ascii: "A")...UInt8(ascii: "F")).contains(byte):
                digit = byte - UInt8(ascii: "A") + 10
            default: throw JSONError(.badEscape, at: start)
            }
            value = value << 4 | UInt16(digit)
            position += 1
        }
        return value
    }

    // MARK: Bytes

    private func peek() throws(JSONError) -> UInt8 {
        guard position < bytes.count else { throw JSONError(.endOfText, at: bytes.count) }
        return bytes[position]
    }

    private mutating func skipSpace() {
        while position < bytes.count {
            switch bytes[position] {
            case 0x20, 0x09, 0x0A, 0x0D: position += 1
            default: return
            }
        }
    }

    private static func isDigit(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }
}

extension JSON {
    /// Parses one JSON document with optional white space around it.
    ///
    /// - Throws: `JSONError` with the reason and the byte offset.
    public init(parsing bytes: [UInt8], limits: JSONLimits = .call) throws(JSONError) {
        var parser = JSONParser(bytes, limits: limits)
        self = try parser.parseDocument()
    }

    /// Parses one JSON document from text.
    ///
    /// - Throws: `JSONError` with the reason and the byte offset.
    public init(parsing text: String, limits: JSONLimits = .call) throws(JSONError) {
        try self.init(parsing: Array(text.utf8), limits: limits)
    }
}
