/// One line of a policy file, split at `#`.
struct SourceLine {
    let file: String
    /// Counted from 1.
    let number: Int
    /// The text before `#`: printable ASCII, spaces and tabs.
    let code: [UInt8]
    /// The text after `#` without surrounding blanks; nil when the line has no `#`.
    let comment: String?

    /// Only blanks before `#` or the end of the line.
    var hasNoCode: Bool { code.allSatisfy(isBlank) }
}

/// The limits and the character set of all policy files, and how they split into lines.
enum PolicySource {
    /// The maximum size of a file.
    static let maximumBytes = 64 * 1024
    /// The maximum number of rules in a policy, including its included file.
    static let maximumRules = 400

    /// Splits a file into lines. It refuses control characters, which an editor would hide, text outside ASCII except
    /// in comments, and comments that are not UTF-8.
    static func lines(of bytes: [UInt8], file: String) throws(PolicyError) -> [SourceLine] {
        guard bytes.count <= maximumBytes else {
            throw PolicyError(
                PolicyLocation(file: file, line: 1, column: 1),
                "the file has \(bytes.count) bytes; a policy has at most \(maximumBytes)")
        }
        var lines: [SourceLine] = []
        for text in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
            lines.append(try line(text, file: file, number: lines.count + 1))
        }
        return lines
    }

    private static func line(
        _ text: ArraySlice<UInt8>, file: String, number: Int
    ) throws(PolicyError) -> SourceLine {
        let hash = text.firstIndex(of: UInt8(ascii: "#")) ?? text.endIndex
        for (index, byte) in zip(text.indices, text) {
            let isControl = (byte < 0x20 && byte != UInt8(ascii: "\t")) || byte == 0x7F
            guard isControl || (byte >= 0x80 && index < hash) else { continue }
            throw PolicyError(
                PolicyLocation(file: file, line: number, column: index - text.startIndex + 1),
                "byte \(hexadecimal(UInt64(byte))); expected printable ASCII (any UTF-8 in a comment)")
        }
        guard hash < text.endIndex else {
            return SourceLine(file: file, number: number, code: Array(text), comment: nil)
        }
        guard let comment = String(validating: text[(hash + 1)...], as: UTF8.self) else {
            throw PolicyError(
                PolicyLocation(file: file, line: number, column: hash - text.startIndex + 1),
                "the comment is not valid UTF-8")
        }
        return SourceLine(file: file, number: number, code: Array(text[..<hash]), comment: trimmed(comment))
    }

    private static func trimmed(_ text: String) -> String {
        let isBlank: (Character) -> Bool = { $0 == " " || $0 == "\t" || $0 == "#" }
        let start = text.drop(while: isBlank)
        guard let last = start.lastIndex(where: { !isBlank($0) }) else { return "" }
        return String(start[...last])
    }
}

/// Returns the content of a policy or included file; the caller knows the folder and checks its access rights.
public typealias PolicyReader = (_ name: String) throws -> [UInt8]

/// A policy file, read and split into lines.
struct PolicyFile {
    let name: String
    let lines: [SourceLine]

    /// Reads `name` with `read`. `from` is the position of the `@include`, if any.
    init(_ name: String, from: PolicyLocation? = nil, read: PolicyReader) throws(PolicyError) {
        let bytes: [UInt8]
        do {
            bytes = try read(name)
        } catch {
            throw PolicyError(
                from ?? PolicyLocation(file: name, line: 1, column: 1),
                "cannot read '\(printable(name))': \(printable("\(error)"))")
        }
        self.name = name
        lines = try PolicySource.lines(of: bytes, file: name)
    }
}

func isBlank(_ byte: UInt8) -> Bool { byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") }

/// `0x` and lower-case digits.
func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

/// Makes quoted text safe for logs: printable ASCII of limited length.
func printable(_ text: String, limit: Int = 120) -> String {
    var result = ""
    for scalar in text.unicodeScalars.prefix(limit) {
        result += scalar.isASCII && scalar.value >= 0x20 && scalar.value < 0x7F ? String(scalar) : "?"
    }
    return text.unicodeScalars.count > limit ? result + "..." : result
}
