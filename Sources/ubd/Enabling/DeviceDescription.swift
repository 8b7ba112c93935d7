import BrokerInterface

/// What a file of a device that comes back says (ubd.device(5)): the variables that its unit reads.
struct DeviceDescription: Equatable {
    /// N of /dev/ubdbN, `any` for the first free one, or whatever somebody has written there.
    var number: String
    /// The options of `ubd add`, as words.
    var options: [String]

    static let anyNumber = "any"

    /// The file. systemd takes it apart twice: the file (EnvironmentFile, systemd.exec(5)), then the options (systemd.service(5),
    /// "Command lines").
    ///
    /// - Throws: when there is a word that systemd cannot read.
    func text(name: String, _ manager: ServiceManager) throws(CommandFailure) -> String {
        var words: [String] = []
        for word in options { words.append(try Self.quoted(word)) }
        // In the file a backslash stands for itself only when it is doubled.
        let line = words.joined(separator: " ").replacing("\\", with: "\\\\")
        return """
            # Device \(name), which \(manager.unit(name)) brings back: see ubd.device(5). Stop the unit before you change this.
            # NUMBER: N of /dev/ubdbN, or any. OPTIONS: those of 'ubd add' but for the number; names of files are absolute.
            NUMBER=\(number)
            OPTIONS=\(line)

            """
    }

    /// A word as systemd reads it in a command line.
    static func quoted(_ word: String) throws(CommandFailure) -> String {
        guard !word.unicodeScalars.contains(where: { $0.isControl || TypedText.byte(of: $0) != nil }) else {
            throw CommandFailure(
                .usage, "Usage", "'\(word)' has characters that systemd cannot read in the file of a device",
                remedy: "give the file a name of UTF-8 without control characters, perhaps by a link")
        }
        let isPlain = !word.isEmpty && !word.contains { " \t\"'\\".contains($0) }
        return isPlain ? word : "\"" + word.replacing("\\", with: "\\\\").replacing("\"", with: "\\\"") + "\""
    }

    init(number: String, options: [String]) {
        (self.number, self.options) = (number, options)
    }

    /// Reads a file as systemd does; a variable that is missing is empty.
    init(file text: String) {
        let variables = EnvironmentText.variables(text)
        number = variables["NUMBER"] ?? ""
        options = EnvironmentText.words(variables["OPTIONS"] ?? "")
    }

    /// What the options are for `ubd add`; nil when it would refuse them.
    var command: AddCommand? {
        let line = ["add"] + options
        if let plain = PlainLine.command(line) { return plain as? AddCommand }
        return ((try? UBD.parseAsRoot(line)) as? AddArguments)?.command
    }
}

/// The text of an EnvironmentFile and of a variable on a unit's command line, as systemd takes them apart (parse_env_file_internal
/// and extract_first_word of systemd 252 to 257).
enum EnvironmentText {
    /// The variables; of several with one name the last counts.
    static func variables(_ text: String) -> [String: String] {
        var reader = Reader(Array(text.unicodeScalars))
        var result: [String: String] = [:]
        while let (name, value) = reader.variable() { result[name] = value }
        return result
    }

    /// The words: blanks part them; quotes hold blanks, and a backslash takes any meaning from the character behind it.
    static func words(_ text: String) -> [String] {
        var words: [String] = []
        var word: String?
        var (quote, isEscaped) = (Unicode.Scalar?.none, false)
        for scalar in text.unicodeScalars {
            if isEscaped {
                word = (word ?? "") + String(scalar)
                isEscaped = false
            } else if scalar == "\\" {
                isEscaped = true
                word = word ?? ""
            } else if scalar == quote {
                quote = nil
            } else if quote != nil {
                word? += String(scalar)
            } else if scalar == "'" || scalar == "\"" {
                quote = scalar
                word = word ?? ""
            } else if " \t\n\r".unicodeScalars.contains(scalar) {
                if let done = word { words.append(done) }
                word = nil
            } else {
                word = (word ?? "") + String(scalar)
            }
        }
        if let word { words.append(word) }
        return words
    }

    private struct Reader {
        private let scalars: [Unicode.Scalar]
        private var place = 0

        init(_ scalars: [Unicode.Scalar]) { self.scalars = scalars }

        private mutating func next() -> Unicode.Scalar? {
            guard place < scalars.count else { return nil }
            place += 1
            return scalars[place - 1]
        }

        /// nil at the end.
        mutating func variable() -> (String, String)? {
            while place < scalars.count {
                let first = scalars[place]
                if first == "#" || first == ";" {
                    while let scalar = next(), scalar != "\n" {}
                } else if " \t\r\n".unicodeScalars.contains(first) {
                    place += 1
                } else if let name = name() {
                    return (name, value())
                }
            }
            return nil
        }

        /// Up to the "="; nil when the line has none.
        private mutating func name() -> String? {
            var name = ""
            while let scalar = next() {
                if scalar == "=" { return name.trimmed }
                if scalar == "\n" { return nil }
                name.unicodeScalars.append(scalar)
            }
            return nil
        }

        /// Up to the end of the line. Quotes count at the beginning of a value, or behind a quoted part.
        private mutating func value() -> String {
            var (value, blanks) = ("", "")
            var isUnquoted = false
            while let scalar = next() {
                if scalar == "\n" { break }
                if scalar == "\\" {
                    value += blanks
                    blanks = ""
                    isUnquoted = true
                    if let escaped = next(), escaped != "\n" { value.unicodeScalars.append(escaped) }
                } else if !isUnquoted, scalar == "'" || scalar == "\"" {
                    value += quoted(by: scalar)
                } else if " \t\r".unicodeScalars.contains(scalar) {
                    if isUnquoted { blanks.unicodeScalars.append(scalar) }
                } else {
                    isUnquoted = true
                    value += blanks
                    blanks = ""
                    value.unicodeScalars.append(scalar)
                }
            }
            return value
        }

        /// Up to the quote that ends it. In double quotes a backslash stands for itself, but before the characters that have a meaning.
        private mutating func quoted(by quote: Unicode.Scalar) -> String {
            var text = ""
            while let scalar = next(), scalar != quote {
                guard scalar == "\\", quote == "\"", let escaped = next() else {
                    text.unicodeScalars.append(scalar)
                    continue
                }
                if escaped == "\n" { continue }
                if !"\"\\`$".unicodeScalars.contains(escaped) { text.unicodeScalars.append(scalar) }
                text.unicodeScalars.append(escaped)
            }
            return text
        }
    }
}

extension String {
    /// Without blanks at both ends.
    fileprivate var trimmed: String {
        let isBlank = { (character: Character) in " \t\r".contains(character) }
        return String(String(drop(while: isBlank).reversed()).drop(while: isBlank).reversed())
    }
}
