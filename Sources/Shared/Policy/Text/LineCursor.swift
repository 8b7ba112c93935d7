/// Reads the code of one line from left to right. Its errors name the column.
struct LineCursor {
    private let line: SourceLine
    private(set) var index = 0

    init(_ line: SourceLine) { self.line = line }

    /// The position of the next character.
    var location: PolicyLocation { location(at: index) }

    func location(at index: Int) -> PolicyLocation {
        PolicyLocation(file: line.file, line: line.number, column: index + 1)
    }

    var isAtEnd: Bool { index >= line.code.count }

    var isAtBlank: Bool { next.map(isBlank) ?? false }

    /// The code from an earlier cursor to this one, without trailing blanks.
    func text(from start: LineCursor) -> String {
        var bytes = line.code[start.index..<index]
        while let last = bytes.last, isBlank(last) { bytes.removeLast() }
        return String(decoding: bytes, as: UTF8.self)
    }

    private var next: UInt8? { isAtEnd ? nil : line.code[index] }

    mutating func skipBlanks() {
        while let byte = next, isBlank(byte) { index += 1 }
    }

    /// Skips blanks, then takes `token` if it is next.
    mutating func take(_ token: StaticString) -> Bool {
        skipBlanks()
        return token.withUTF8Buffer { token in
            guard line.code[index...].starts(with: token) else { return false }
            index += token.count
            return true
        }
    }

    /// Skips blanks, then takes `keyword` if it is the whole next word.
    mutating func takeKeyword(_ keyword: StaticString) -> Bool {
        skipBlanks()
        let before = self
        if take(keyword), next.map({ !isWordByte($0) }) ?? true { return true }
        self = before
        return false
    }

    /// Skips blanks, then takes the longest run of characters for which `belongs` is true; nil when it is empty.
    mutating func word(_ belongs: (UInt8) -> Bool) -> (text: String, location: PolicyLocation)? {
        skipBlanks()
        let start = index
        while let byte = next, belongs(byte) { index += 1 }
        guard index > start else { return nil }
        return (String(decoding: line.code[start..<index], as: UTF8.self), location(at: start))
    }

    /// A run of non-blank characters.
    mutating func blankSeparated() -> (text: String, location: PolicyLocation)? { word { !isBlank($0) } }

    /// A run of letters, digits and `_`.
    mutating func identifier() -> (text: String, location: PolicyLocation)? { word(isWordByte) }

    mutating func expectEnd(after what: String) throws(PolicyError) {
        skipBlanks()
        if !isAtEnd { throw expected("the end of the line after \(what)") }
    }

    /// "found X; expected Y" at the next character.
    func expected(_ what: String) -> PolicyError {
        let rest = String(decoding: line.code[min(index, line.code.count)...].prefix(20), as: UTF8.self)
        let found = rest.allSatisfy { $0 == " " || $0 == "\t" } ? "the end of the line" : "'\(printable(rest))'"
        return PolicyError(location, "found \(found); expected \(what)")
    }
}

func isWordByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"):
        true
    default: false
    }
}
