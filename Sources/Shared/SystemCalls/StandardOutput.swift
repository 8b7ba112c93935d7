import Glibc

/// Writes all of a text to standard output or standard error, unbuffered, so that no failed write goes unnoticed. It
/// waits for room in a pipe also when the pipe is non-blocking: O_NONBLOCK belongs to the open file, which the starter
/// shares and may have set.
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

/// The message of a program whose output could not be written; its exit status is 1.
public func outputLost(_ errno: Int32) -> String {
    "the output could not be written: \(SystemError.message(errno))"
}
