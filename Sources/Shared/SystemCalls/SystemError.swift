import CShims
import Glibc

/// A system call that failed: which one, and why.
public struct SystemError: Error, Equatable, CustomStringConvertible {
    /// What was tried, as a reader of the log would name it: "open /dev/ublk-control".
    public let operation: String
    /// The kernel's errno, positive.
    public let errno: Int32

    public init(_ operation: String, _ errno: Int32) {
        self.operation = operation
        self.errno = errno
    }

    public var description: String { "\(operation): \(SystemError.message(errno))" }

    /// The text of an errno ("Permission denied").
    public static func message(_ errno: Int32) -> String {
        // glibc's strerrordesc_np returns constant text and is safe on any thread, unlike strerror.
        guard let text = strerrordesc_np(errno) else { return "error \(errno)" }
        return String(cString: text)
    }

    /// The short name of an errno ("EACCES").
    public static func name(_ errno: Int32) -> String {
        guard let text = strerrorname_np(errno) else { return "\(errno)" }
        return String(cString: text)
    }
}

/// Runs a libc call that reports failure as -1, again when a signal interrupted it.
@discardableResult
public func call<Result: FixedWidthInteger & SignedInteger>(
    _ operation: @autoclosure () -> String, _ body: () -> Result
) throws(SystemError) -> Result {
    while true {
        let result = body()
        if result != -1 { return result }
        if errno != EINTR { throw SystemError(operation(), errno) }
    }
}

/// Runs a raw call of CShims, which reports failure as a negated errno.
@discardableResult
public func rawCall(_ operation: @autoclosure () -> String, _ body: () -> Int) throws(SystemError) -> Int {
    while true {
        let result = body()
        if result >= 0 { return result }
        if result != -Int(EINTR) { throw SystemError(operation(), Int32(-result)) }
    }
}
