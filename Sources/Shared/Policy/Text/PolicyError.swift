/// A position in a policy file, in the format that editors understand.
public struct PolicyLocation: Sendable, Hashable, CustomStringConvertible {
    /// The name by which the file was opened.
    public let file: String
    /// Counted from 1.
    public let line: Int
    /// Counted from 1, in bytes.
    public let column: Int

    public init(file: String, line: Int, column: Int) {
        self.file = file
        self.line = line
        self.column = column
    }

    public var description: String { "\(file):\(line):\(column)" }
}

/// Why a policy file is invalid, or as a warning, why a part of it never takes effect.
public struct PolicyError: Error, Sendable, Equatable, CustomStringConvertible {
    public let location: PolicyLocation
    /// What was found and what was expected. It contains no control characters.
    public let message: String

    public init(_ location: PolicyLocation, _ message: String) {
        self.location = location
        self.message = message
    }

    public var description: String { "\(location): \(message)" }
}
