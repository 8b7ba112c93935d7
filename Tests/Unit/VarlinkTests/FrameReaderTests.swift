import Testing
import Varlink

@Suite("The frame reader")
struct FrameReaderTests {
    @Test("finds the same messages however the bytes are cut", arguments: 1...40)
    func anyPieces(seed: UInt64) throws {
        var random = Random(seed: seed)
        let messages: [[UInt8]] = (0..<8).map { _ in Array(random.json(depth: 3).bytes.prefix(100)) }
        let stream: [UInt8] = Array(messages.map { $0 + [0] }.joined())
        var reader = FrameReader(limit: 100)
        var found: [[UInt8]] = []
        var position = 0
        while position < stream.count {
            let count = min(1 + random.number(below: 30), reader.room, stream.count - position)
            try reader.append(stream[position..<position + count])
            position += count
            while let message = reader.next() { found.append(message) }
        }
        #expect(found == messages)
        #expect(!reader.hasUnread)
    }

    @Test("takes a message of exactly the limit")
    func exactLimit() throws {
        var reader = FrameReader(limit: 4)
        #expect(reader.room == 5)
        try reader.append([1, 2, 3, 4])
        #expect(reader.next() == nil)
        #expect(reader.room == 1)
        try reader.append([0])
        #expect(reader.room == 0)
        #expect(reader.next() == [1, 2, 3, 4])
        #expect(reader.room == 5)
    }

    @Test("gives up with the first byte beyond the limit, not at the end of the message")
    func tooLong() throws {
        var reader = FrameReader(limit: 4)
        try reader.append([1, 2, 3, 4])
        #expect(throws: FrameReader.Failure.tooLong(limit: 4)) { try reader.append([5]) }
        var other = FrameReader(limit: 4)
        #expect(throws: FrameReader.Failure.noRoom) { try other.append([1, 2, 3, 4, 5, 0]) }
    }

    @Test("tells of bytes behind a message, complete or not")
    func unread() throws {
        var reader = FrameReader(limit: 100)
        #expect(!reader.hasUnread)
        try reader.append([1, 0, 2])
        #expect(reader.next() == [1])
        #expect(reader.hasUnread)
        #expect(reader.next() == nil)
        try reader.append([0])
        #expect(reader.next() == [2])
        #expect(!reader.hasUnread)
    }

    @Test("yields an empty message for a lone NUL, which no parser accepts")
    func empty() throws {
        var reader = FrameReader()
        try reader.append([0])
        let next = reader.next()
        let message = try #require(next)
        #expect(throws: MalformedMessage.notJSON(JSONError(.endOfText, at: 0))) { try Call(message: message) }
    }
}
