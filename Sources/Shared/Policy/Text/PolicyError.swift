/// A place in a policy file; what a log line or an editor needs to find it.
public struct PolicyLocation: Sendable, Hashable, CustomStringConvertible {
    /// The name under which the file was read.
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

/// Why a policy file was refused, or (as a warning) why a part of it will never take effect.
public struct PolicyError: Error, Sendable, Equatable, CustomStringConvertible {
    public let location: PolicyLocation
    /// What was found and what was expected instead. Contains no control characters.
    public let message: String

    public init(_ location: PolicyLocation, _ message: String) {
        self.location = location
        self.message = message
    }

    public var description: String { "\(location): \(message)" }
}
