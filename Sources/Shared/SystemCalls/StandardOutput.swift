import Glibc

/// Writes text to standard output or standard error: all of it, and without a buffer, whose loss nobody would notice.
/// A pipe without room is waited for also where somebody made it non-blocking (O_NONBLOCK belongs to the open file, which the
/// starter shares).
///
/// - Returns: 0, or the errno of the write that failed.
public func writeStandard(_ text: String, to fd: Int32) -> Int32 {
    let bytes = Array(text.utf8)
    var done = 0
    while done < bytes.count {
        let count = bytes.withUnsafeBytes { write(fd, $0.baseAddress! + done, $0.count - done) }
        if count > 0 {
            done += count
        } else if errno == EAGAIN {
            var room = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
            poll(&room, 1, -1)
        } else if errno != EINTR {
            return errno
        }
    }
    return 0
}

/// What a program says whose output is lost; its status is 1.
public func outputLost(_ errno: Int32) -> String {
    "what was to be printed could not be written: \(SystemError.message(errno))"
}
