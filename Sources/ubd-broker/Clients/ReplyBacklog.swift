import Glibc
import SystemCalls
import Varlink

/// The replies that a client has not read yet, as bytes.
struct ReplyBacklog {
    /// Maximum bytes.
    static let longest = 256 * 1024
    /// A call with several replies is continued only while there are fewer bytes than this.
    private static let full = 32 * 1024

    private var bytes: [UInt8] = []

    var count: Int { bytes.count }
    var isEmpty: Bool { bytes.isEmpty }
    var isFull: Bool { bytes.count >= Self.full }
    var isTooLong: Bool { bytes.count > Self.longest }

    mutating func append(_ reply: Reply) { bytes += reply.message }

    /// Sends what the client's socket has room for. True when it had room for some.
    mutating func send(to fd: Int32) throws(SystemError) -> Bool {
        let before = bytes.count
        while !bytes.isEmpty {
            do {
                bytes.removeFirst(try SystemCalls.send(fd, bytes))
            } catch {
                if error.errno == EAGAIN { break }
                throw error
            }
        }
        return bytes.count < before
    }
}
