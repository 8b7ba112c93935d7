import SystemCalls
import Varlink

/// The messages of a client, read one by one, each within a deadline.
struct CallReader {
    /// Milliseconds from the first byte of a message to its last.
    static let deadline = 5_000

    /// What a read brought.
    enum Received: Equatable {
        /// Bytes, or nothing yet.
        case goOn
        case closed
        /// The client breaks the protocol: why.
        case refused(String)
    }

    private var reader = FrameReader()
    /// A complete message that waits for its turn.
    private var message: [UInt8]?
    /// Deadline for the end of the message that has begun, in monotonic nanoseconds. It keeps running while the
    /// connection waits for its turn.
    private var end: UInt64?

    /// Reads once, unless a message waits.
    mutating func receive(_ fd: Int32) -> Received {
        if message != nil { return .goOn }
        var chunk = [UInt8](repeating: 0, count: min(max(reader.room, 1), 4096))
        let received = chunk.withUnsafeMutableBytes { buffer in
            (try? receiveWithoutFiles(fd, into: buffer)) ?? .closed
        }
        switch received {
        case .wouldBlock: return .goOn
        case .closed: return .closed
        case .filesAttached, .tooLong: return .refused("files where none belong")
        case .bytes(let count):
            do { try reader.append(chunk[0..<count]) } catch { return .refused("\(error)") }
            message = reader.next()
            return .goOn
        }
    }

    /// Takes the message that is complete.
    mutating func take() -> [UInt8]? {
        guard let taken = message.take() else { return nil }
        end = nil
        return taken
    }

    /// A message is complete.
    mutating func hasMessage() -> Bool {
        if message == nil { message = reader.next() }
        return message != nil
    }

    /// Milliseconds until the message that has begun must be complete; nil when none has begun.
    mutating func millisecondsLeft() -> Int? {
        guard reader.hasUnread else {
            end = nil
            return nil
        }
        // Further bytes do not extend the deadline: otherwise a client could hold a connection with a byte now and
        // then.
        let now = monotonicNanoseconds()
        let end = end ?? now + UInt64(Self.deadline) * 1_000_000
        self.end = end
        return end > now ? Int((end - now) / 1_000_000) : 0
    }
}
