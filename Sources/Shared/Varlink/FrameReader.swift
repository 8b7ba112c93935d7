/// Cuts a stream of bytes into Varlink messages: each ends with one NUL byte (UAPI.20, Wire Protocol).
///
/// The owner reads at most `room` bytes at a time, appends them, and takes complete messages with `next()`. Bytes behind
/// a complete message stay here; `hasUnread` tells of them, so that a service can refuse a client that sends more while
/// files are under way (a stream socket joins what was sent in two pieces).
public struct FrameReader: Sendable {
    /// Why the stream is given up. The only answer is to close the connection.
    public enum Failure: Error, Equatable, Sendable, CustomStringConvertible {
        /// A message has more bytes than the limit; its end was not waited for.
        case tooLong(limit: Int)
        /// More was appended than `room` said: a mistake of the owner, not of the peer.
        case noRoom

        public var description: String {
            switch self {
            case .tooLong(let limit): "a message is longer than \(limit) bytes"
            case .noRoom: "more bytes were appended than there is room for"
            }
        }
    }

    /// Most bytes that one message may have, without its NUL.
    public let limit: Int
    private var buffer: [UInt8] = []
    /// Bytes of `buffer` that are known to hold no NUL, so that a message that arrives byte by byte is searched once.
    private var searched = 0

    /// A reader of messages of at most `limit` bytes.
    public init(limit: Int = JSONLimits.call.bytes) {
        self.limit = limit
    }

    /// How many bytes may be appended now. Zero only while a complete message waits to be taken.
    public var room: Int { limit + 1 - buffer.count }

    /// True when bytes are here that belong to no message taken so far.
    public var hasUnread: Bool { !buffer.isEmpty }

    /// Takes over bytes in the order in which they came.
    ///
    /// - Throws: `Failure.tooLong` as soon as it is certain that the message at hand exceeds the limit.
    public mutating func append(_ bytes: some Collection<UInt8>) throws(Failure) {
        guard bytes.count <= room else { throw .noRoom }
        buffer.append(contentsOf: bytes)
        if room == 0, endOfFirstMessage() == nil { throw .tooLong(limit: limit) }
    }

    /// Takes the next complete message, without its NUL; nil when more bytes are needed.
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
