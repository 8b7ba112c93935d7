import CShims
import Glibc

/// A failed system call and its errno.
public struct SystemError: Error, Equatable, CustomStringConvertible {
    /// The operation, as a log's reader would name it: "open /dev/ublk-control".
    public let operation: String
    /// The kernel's errno, positive.
    public let errno: Int32

    public init(_ operation: String, _ errno: Int32) {
        self.operation = operation
        self.errno = errno
    }

    public var description: String { "\(operation): \(SystemError.message(errno))" }

    /// Opening a process, or reading its files in /proc, failed because there is no such process (any more). No other error
    /// says that.
    public var saysProcessIsGone: Bool { errno == ESRCH || errno == ENOENT }

    /// The caller lacked memory or descriptors, so the error says nothing about what it asked for.
    public var isShortage: Bool { [EMFILE, ENFILE, ENOMEM, ENOBUFS, EAGAIN].contains(errno) }

    /// The text of an errno ("Permission denied").
    public static func message(_ errno: Int32) -> String {
        // strerrordesc_np of glibc returns constant text and is thread-safe, unlike strerror.
        guard let text = strerrordesc_np(errno) else { return "error \(errno)" }
        return String(cString: text)
    }

    /// The short name of an errno ("EACCES").
    public static func name(_ errno: Int32) -> String {
        guard let text = strerrorname_np(errno) else { return "\(errno)" }
        return String(cString: text)
    }
}

/// Runs a libc call that reports failure as -1; repeats it after EINTR.
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

/// Runs a raw call of CShims, which reports failure as a negative errno; repeats it after EINTR.
@discardableResult
public func rawCall(_ operation: @autoclosure () -> String, _ body: () -> Int) throws(SystemError) -> Int {
    while true {
        let result = body()
        if result >= 0 { return result }
        if result != -Int(EINTR) { throw SystemError(operation(), Int32(-result)) }
    }
}
