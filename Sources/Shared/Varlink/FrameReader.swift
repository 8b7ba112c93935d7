/// Splits a byte stream into Varlink messages; each ends with one NUL byte (UAPI.20, Wire Protocol).
///
/// The owner reads at most `room` bytes at a time, appends them, and takes complete messages with `next()`. Bytes after
/// a complete message stay buffered. `hasUnread` reports them, so that a service can refuse a client that sends more
/// while it passes files (a stream socket joins separate sends).
public struct FrameReader: Sendable {
    /// Why the stream is unusable. The only answer is to close the connection.
    public enum Failure: Error, Equatable, Sendable, CustomStringConvertible {
        /// A message exceeds the limit; the reader does not wait for its end.
        case tooLong(limit: Int)
        /// The owner, not the peer, appended more than `room` bytes.
        case noRoom

        public var description: String {
            switch self {
            case .tooLong(let limit): "a message is longer than \(limit) bytes"
            case .noRoom: "more bytes were appended than there is room for"
            }
        }
    }

    /// The maximum size of a message in bytes, without its NUL.
    public let limit: Int
    private var buffer: [UInt8] = []
    /// The prefix of `buffer` that holds no NUL, so that no byte is searched twice.
    private var searched = 0

    public init(limit: Int = JSONLimits.call.bytes) {
        self.limit = limit
    }

    /// How many bytes may be appended now; zero only while a complete message waits for `next()`.
    public var room: Int { limit + 1 - buffer.count }

    /// Whether bytes are buffered that no message has consumed.
    public var hasUnread: Bool { !buffer.isEmpty }

    /// Appends received bytes in order.
    ///
    /// - Throws: `Failure.tooLong` as soon as the first message is known to exceed the limit.
    public mutating func append(_ bytes: ArraySlice<UInt8>) throws(Failure) {
        guard bytes.count <= room else { throw .noRoom }
        buffer.append(contentsOf: bytes)
        if room == 0, endOfFirstMessage() == nil { throw .tooLong(limit: limit) }
    }

    /// Returns the next complete message without its NUL; nil when it needs more bytes.
    public mutating func next() -> [UInt8]? {
        guard let end = endOfFirstMessage() else { return nil }
        let message = Array(buffer[..<end])
        buffer.removeFirst(end + 1)
        searched = 0
        return message
    }

    private mutating func endOfFirstMessage() -> Int? {
        if let end = buffer[searched...].firstIndex(of: 0) {
            searched = end
            return end
        }
        searched = buffer.count
        return nil
    }
}
