extension JSON {
    /// The value as JSON in UTF-8, without white space outside strings and without a terminating NUL.
    public var bytes: [UInt8] {
        var writer = JSONWriter(indented: false)
        writer.write(self, level: 0)
        return writer.output
    }

    /// The value as one line of JSON text.
    public var text: String { String(decoding: bytes, as: UTF8.self) }

    /// The value as indented JSON text: one member or element per line, two spaces per level.
    public var indentedText: String {
        var writer = JSONWriter(indented: true)
        writer.write(self, level: 0)
        return String(decoding: writer.output, as: UTF8.self)
    }
}

/// Writes JSON that is safe to print: control characters, DEL and C1 become `\u` escapes.
private struct JSONWriter {
    let indented: Bool
    var output: [UInt8] = []

    init(indented: Bool) { self.indented = indented }

    mutating func write(_ value: JSON, level: Int) {
        switch value {
        case .null: append("null")
        case .bool(let flag): append(flag ? "true" : "false")
        case .integer(let number): append(String(number))
        case .string(let text): write(text)
        case .array(let elements):
            writeList(elements, between: "[", and: "]", level: level) { writer, element in
                writer.write(element, level: level + 1)
            }
        case .object(let members):
            writeList(members, between: "{", and: "}", level: level) { writer, member in
                writer.write(member.name)
                writer.append(writer.indented ? ": " : ":")
                writer.write(member.value, level: level + 1)
            }
        }
    }

    private mutating func writeList<Element>(
        _ list: [Element], between start: String, and end: String, level: Int,
        _ writeElement: (inout JSONWriter, Element) -> Void
    ) {
        append(start)
        for (index, element) in list.enumerated() {
            if index > 0 { append(",") }
            newLine(level: level + 1)
            writeElement(&self, element)
        }
        if !list.isEmpty { newLine(level: level) }
        append(end)
    }

    private mutating func newLine(level: Int) {
        guard indented else { return }
        append("\n")
        append(String(repeating: "  ", count: level))
    }

    private mutating func write(_ text: String) {
        append("\"")
        defer { append("\"") }
        // The common case: text without escapes is copied at once.
        if text.utf8.allSatisfy({ (0x20..<0x7F).contains($0) && $0 != 0x22 && $0 != 0x5C }) { return append(text) }
        for scalar in text.unicodeScalars {
            switch scalar.value {
            case 0x22: append("\\\"")
            case 0x5C: append("\\\\")
            case 0x0A: append("\\n")
            case 0x0D: append("\\r")
            case 0x09: append("\\t")
            case 0..<0x20, 0x7F...0x9F: append("\\u00" + Self.twoHexDigits(UInt8(scalar.value)))
            default: output.append(contentsOf: UTF8.encode(scalar)!)
            }
        }
    }

    private mutating func append(_ text: String) { output.append(contentsOf: text.utf8) }

    private static func twoHexDigits(_ byte: UInt8) -> String {
        let digits = String(byte, radix: 16)
        return digits.count == 1 ? "0" + digits : digits
    }
}
