import Glibc
import KernelABI
import NBDProtocol
import Targets
import Testing
import WorkerProtocol

@testable import Worker

@Suite("A queue of target nbd")
struct NBDTargetTests {
    private static let read = UblkIOOperation.read
    private static let write = UblkIOOperation.write

    @Test("sends all requests that wait in one write, and begins no second one while it is under way")
    func gathers() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        player.bring(0, Self.read, offset: 4096, bytes: 4096)
        _ = player.turn()
        #expect(player.leaving().count == 28)
        // While that is under way.
        player.bring(1, Self.read, bytes: 4096)
        player.bring(2, Self.write, bytes: 4096, data: [UInt8](repeating: 7, count: 4096))
        player.bring(3, Self.read, bytes: 512)
        player.bring(4, Self.read, bytes: 512)
        _ = player.turn()
        #expect(player.leaving().count == 28)
        player.completeWrite(28)
        _ = player.turn()
        // Headers follow each other in one element: two of them with the write's, its data, two more.
        #expect(player.write?.length == 3 && player.leaving().count == 4 * 28 + 4096)
        player.completeWrite(4 * 28 + 4096)
        _ = player.turn()
        #expect(player.write == nil)
        #expect(player.takeRequests().map(\.tag) == [0, 1, 2, 3, 4])
    }

    @Test("goes on with a write where the socket stopped, be it in a header or in data")
    func shortWrites() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let data = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 3) }
        player.bring(0, Self.read, bytes: 4096)
        player.bring(1, Self.write, offset: 8192, bytes: 8192, data: data)
        player.bring(2, Self.read, bytes: 4096)
        _ = player.turn()
        for bytes in [1, 27, 5, 30, 8000, 100] {
            player.completeWrite(min(bytes, player.leaving().count))
            _ = player.turn()
        }
        let asked = player.sendAll()
        #expect(asked.map(\.tag) == [0, 1, 2] && asked.map(\.length) == [4096, 8192, 4096])
        #expect(asked[1].data == data)
    }

    @Test("reads the rest of much data straight into the request's buffer, and copies no more than came with the reply")
    func straight() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let asked = player.ask(3, Self.read, bytes: 128 << 10)
        #expect(asked.map(\.length) == [128 << 10])
        let data = (0..<128 << 10).map { UInt8(truncatingIfNeeded: $0 &* 11 &+ $0 >> 10) }
        let reply = NBDPlayer.reply(asked[0].cookie, data: data)
        player.completeRead(Array(reply.prefix(1000)))
        #expect(player.turn() == [])
        // The rest of it, and then whatever comes.
        #expect(player.coming[0].baseAddress == player.buffer(3).baseAddress! + 1000 - 16)
        #expect(player.coming[0].count == (128 << 10) - 984 && player.coming.count == 2)
        #expect(player.answer(Array(reply.dropFirst(1000))) == [NBDPlayer.Ended(tag: 3, result: 128 << 10)])
        #expect(player.buffer(3).prefix(128 << 10).elementsEqual(data))
        // With two of them asked for, the second one's header is read alone, and nothing of its data is copied.
        let two = player.ask(4, Self.read, bytes: 128 << 10) + player.ask(5, Self.read, bytes: 128 << 10)
        let first = player.answer(NBDPlayer.reply(two[0].cookie, data: data))
        #expect(first == [NBDPlayer.Ended(tag: 4, result: 128 << 10)])
        #expect(player.room == NBD.simpleReplyBytes)
        player.completeRead(NBDPlayer.reply(two[1].cookie))
        #expect(player.turn() == [])
        #expect(player.coming[0].baseAddress == player.buffer(5).baseAddress)
        #expect(player.answer(data) == [NBDPlayer.Ended(tag: 5, result: 128 << 10)])
        #expect(player.buffer(5).prefix(128 << 10).elementsEqual(data))
    }

    @Test(
        "reads the data of replies of one size where it belongs, in whatever order they come: the buffers change places"
    )
    func lanes() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let tags: [UInt16] = [0, 1, 2, 3]
        let own = tags.map { player.buffer($0).baseAddress! }
        // The first read was begun before anything was asked for.
        let first = player.ask(9, Self.read, bytes: 4096)
        #expect(player.answer(NBDPlayer.reply(first[0].cookie, data: [UInt8](repeating: 9, count: 4096)))?.count == 1)
        for tag in tags { player.bring(tag, Self.read, offset: UInt64(tag) << 12, bytes: 4096) }
        _ = player.turn()
        let asked = player.sendAll()
        func data(_ tag: UInt16) -> [UInt8] { (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ Int(tag) &* 31) } }
        // It has room for one, since nothing was expected when it was begun; the next one has for three.
        #expect(player.coming.map(\.count) == [16, 4096])
        let lane = player.coming[1].baseAddress!
        #expect(
            player.answer(NBDPlayer.reply(asked[2].cookie, data: data(2))) == [NBDPlayer.Ended(tag: 2, result: 4096)])
        #expect(player.buffer(2).baseAddress == lane)
        #expect(player.coming.map(\.count) == [16, 4096, 16, 4096, 16, 4096])
        // What was the request's own is a lane now.
        #expect(player.coming[1].baseAddress == own[2])
        let rest = [UInt16(3), 0, 1]
        let stream = rest.flatMap { NBDPlayer.reply(asked[Int($0)].cookie, data: data($0)) }
        // Cut in the middle of the last one's data.
        player.completeRead(Array(stream.prefix(stream.count - 1000)))
        #expect(player.turn() == [NBDPlayer.Ended(tag: 3, result: 4096), NBDPlayer.Ended(tag: 0, result: 4096)])
        #expect(player.coming[0].count == 1000)
        #expect(player.answer(Array(stream.suffix(1000))) == [NBDPlayer.Ended(tag: 1, result: 4096)])
        for tag in tags { #expect(player.buffer(tag).prefix(4096).elementsEqual(data(tag)), "tag \(tag)") }
        #expect(Set(tags.map { player.buffer($0).baseAddress! }).count == 4)
    }

    @Test("finds each reply where it is when others come than were guessed")
    func wrongGuess() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let data = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 13) }
        let first = player.ask(0, Self.read, bytes: 4096) + player.ask(1, Self.read, bytes: 4096)
        _ = player.answer(NBDPlayer.reply(first[0].cookie, data: Array(data.prefix(4096))))
        #expect(player.coming.map(\.count) == [16, 4096])
        // Asked for since that read was begun, and answered before what it was begun for.
        let asked =
            player.ask(2, Self.write, bytes: 512) + player.ask(3, Self.read, bytes: 1024)
            + player.ask(4, Self.read, bytes: 512)
        var stream = NBDPlayer.reply(asked[0].cookie) + NBDPlayer.reply(asked[2].cookie, error: NBD.ErrorCode.io)
        stream += NBDPlayer.reply(asked[1].cookie, data: Array(data.prefix(1024)))
        stream += NBDPlayer.reply(first[1].cookie, data: Array(data.suffix(4096)))
        let ended = player.answer(stream)
        #expect(
            ended == [
                NBDPlayer.Ended(tag: 2, result: 512), NBDPlayer.Ended(tag: 4, result: -EIO),
                NBDPlayer.Ended(tag: 3, result: 1024), NBDPlayer.Ended(tag: 1, result: 4096),
            ])
        #expect(player.buffer(3).prefix(1024).elementsEqual(data.prefix(1024)))
        #expect(player.buffer(1).prefix(4096).elementsEqual(data.suffix(4096)))
    }

    @Test("gives back a request only when its reply has come whole, byte by byte")
    func byteByByte() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let asked = player.ask(0, Self.read, bytes: 512) + player.ask(1, Self.write, bytes: 512)
        let data = [UInt8](repeating: 0x5a, count: 512)
        let stream = NBDPlayer.reply(asked[1].cookie) + NBDPlayer.reply(asked[0].cookie, data: data)
        for (index, byte) in stream.enumerated() {
            player.completeRead([byte])
            let ended = player.turn()
            switch index {
            case 15: #expect(ended == [NBDPlayer.Ended(tag: 1, result: 512)])
            case stream.count - 1: #expect(ended == [NBDPlayer.Ended(tag: 0, result: 512)])
            default: #expect(ended == [])
            }
        }
        #expect(player.buffer(0).prefix(512).elementsEqual(data))
    }

    @Test("waits for its own write when the reply is there first, and then believes it")
    func replyFirst() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        player.bring(0, Self.write, bytes: 512, data: [UInt8](repeating: 1, count: 512))
        _ = player.turn()
        player.completeRead(NBDPlayer.reply(player.cookie(0)))
        #expect(player.turn() == [] && player.read == nil)
        player.completeWrite(28 + 512)
        #expect(player.turn() == [NBDPlayer.Ended(tag: 0, result: 512)])
        #expect(player.read != nil)
    }

    /// What a server must not send. Tag 0 waits for a read of 512 bytes that was sent, tag 1 is being sent, tag 2 waits to be sent,
    /// tag 3 has ended.
    enum Wrong: String, CaseIterable {
        case magic, structuredReply, oldMagic, noCookie, unknownTag, farTag, otherGeneration, laterGeneration
        case endedRequest, endedTwice, waitingRequest, halfSentRequest, tooMuchData, textAfterReply, zeros
    }

    private static func stream(_ wrong: Wrong, _ cookies: [UInt64]) -> [UInt8] {
        let good = NBDPlayer.reply(cookies[0], data: [UInt8](repeating: 9, count: 512))
        return switch wrong {
        case .magic: NBDPlayer.reply(cookies[0], magic: 0x6744_6699)
        case .structuredReply: NBDPlayer.reply(cookies[0], magic: 0x668e_33ef)
        case .oldMagic: NBDPlayer.reply(cookies[0], magic: NBD.requestMagic)
        case .noCookie: NBDPlayer.reply(0)
        case .unknownTag: NBDPlayer.reply(cookies[0] | 9)
        case .farTag: NBDPlayer.reply(cookies[0] | 0xffff)
        case .otherGeneration: NBDPlayer.reply(cookies[0] - 1 << 16)
        case .laterGeneration: NBDPlayer.reply(cookies[0] + 1 << 16)
        case .endedRequest: NBDPlayer.reply(cookies[3])
        case .endedTwice: good + good
        case .waitingRequest: NBDPlayer.reply(cookies[2])
        case .halfSentRequest: NBDPlayer.reply(cookies[1])
        case .tooMuchData: good + [UInt8](repeating: 9, count: 512)
        case .textAfterReply: good + Array("HTTP/1.1 400 Bad Request\r\n".utf8)
        case .zeros: [UInt8](repeating: 0, count: 64)
        }
    }

    @Test(
        "gives up a server that sends what is no reply to a request that it has whole, and passes nothing on",
        arguments: Wrong.allCases, [1, 7, 65536])
    func violations(wrong: Wrong, cut: Int) throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let done = player.ask(3, Self.read, bytes: 512)
        _ = player.answer(NBDPlayer.reply(done[0].cookie, error: NBD.ErrorCode.io))
        let first = player.ask(0, Self.read, bytes: 512)
        player.bring(1, Self.write, bytes: 4096, data: [UInt8](repeating: 1, count: 4096))
        _ = player.turn()
        // The socket takes a part of it, and what is left does not go on.
        player.completeWrite(100)
        _ = player.turn()
        player.bring(2, Self.read, bytes: 512)
        _ = player.turn()
        // Half of a request is not believed even when the rest of it is on its way; the write has to be done first.
        if wrong == .halfSentRequest {
            player.failWrite(-EINTR)
            _ = player.turn()
        }
        let cookies = [first[0].cookie, player.cookie(1), player.cookie(2), done[0].cookie]
        #expect(!cookies.contains(0))
        let stream = Self.stream(wrong, cookies)
        var ended: [NBDPlayer.Ended]? = []
        for start in Swift.stride(from: 0, to: stream.count, by: cut) where ended != nil {
            let last = ended
            ended = player.answer(Array(stream[start..<min(start + cut, stream.count)]))
            // Only what was answered rightly before.
            #expect(last == [] || last == [NBDPlayer.Ended(tag: 0, result: 512)])
        }
        if wrong == .halfSentRequest {
            // It waits for the write, which then sends only a part.
            #expect(ended == [] && player.read == nil)
            player.completeWrite(50)
            ended = player.turn()
        }
        #expect(ended == nil)
        #expect(player.loop.queue.exitStatus == WorkerExit.serverViolation)
    }

    @Test(
        "takes no reply to a request of the worker that had the connection before, though each of both was the tag's first",
        arguments: [Self.read, Self.write, UblkIOOperation.flush], [512, 64 << 10])
    func otherWorker(operation: UInt8, bytes: UInt32) throws {
        var before = try NBDPlayer(NBDPlayer.rules())
        var player = try NBDPlayer(NBDPlayer.rules())
        let length = operation == UblkIOOperation.flush ? 0 : bytes
        let old = before.ask(3, operation, bytes: length)
        let new = player.ask(3, operation, bytes: length)
        #expect(old.count == 1 && new.count == 1 && old[0].tag == new[0].tag && old[0].length == new[0].length)
        let data = [UInt8](repeating: 7, count: operation == Self.read ? Int(bytes) : 0)
        #expect(player.answer(NBDPlayer.reply(old[0].cookie, data: data)) == nil)
        #expect(player.loop.queue.exitStatus == WorkerExit.serverViolation)
        #expect(!player.buffer(3).contains(7))
    }

    /// How a server can be lost before it was asked for anything, and the status with which the worker then ends.
    private static let losses: [(lose: @Sendable (inout NBDPlayer) -> Void, status: Int32)] = [
        ({ $0.failRead(0) }, WorkerExit.connectionLost), ({ $0.failRead(-ECONNRESET) }, WorkerExit.connectionLost),
        ({ $0.completeRead(NBDPlayer.reply(1 << 16)) }, WorkerExit.serverViolation),
    ]

    @Test(
        "remembers a server that is gone, or sends anything unasked, before the first request, and ends when that comes",
        arguments: 0..<losses.count)
    func early(index: Int) throws {
        let (lose, status) = Self.losses[index]
        var player = try NBDPlayer(NBDPlayer.rules())
        lose(&player)
        // Other queues may still be fetching: this one sleeps, with nothing under way on its socket.
        for _ in 0..<3 { #expect(player.turn() == []) }
        #expect(player.loop.queue.exitStatus == status && player.read == nil && player.write == nil)
        player.bring(0, Self.write, bytes: 512, data: [UInt8](repeating: 1, count: 512))
        #expect(player.turn() == nil)
        #expect(player.loop.queue.exitStatus == status)
    }

    @Test("ends at once when its server is gone after its first request, also with nothing to do")
    func later() throws {
        let words = UnsafeMutablePointer<UInt64>.allocate(capacity: StatisticsPage.Word.count)
        defer { words.deallocate() }
        words.initialize(repeating: 0, count: StatisticsPage.Word.count)
        words[StatisticsPage.Word.layout] = StatisticsPage.layout
        words[StatisticsPage.Word.requests] = 1000
        var player = try NBDPlayer(NBDPlayer.rules(), words: words)
        let asked = player.ask(0, Self.write, bytes: 512)
        #expect(player.answer(NBDPlayer.reply(asked[0].cookie)) == [NBDPlayer.Ended(tag: 0, result: 512)])
        player.failRead(0)
        #expect(player.turn() == nil)
        // The counters are those of all workers of the device.
        var replacement = try NBDPlayer(NBDPlayer.rules(), words: words)
        replacement.failRead(0)
        #expect(replacement.turn() == [])
    }

    @Test(
        "gives back what its server answered before it ended the connection, and nothing when that sent nonsense in the same turn"
    )
    func lastAnswer() throws {
        let data = [UInt8](repeating: 7, count: 512)
        let garbage = [UInt8](repeating: 0xFF, count: 16)
        for (next, expected) in [
            ({ $0.failRead(0) }, [NBDPlayer.Ended(tag: 0, result: 512)]),
            ({ $0.failRead(-ECONNRESET) }, [NBDPlayer.Ended(tag: 0, result: 512)]),
            ({ $0.completeRead(garbage) }, []),
        ] as [((inout NBDPlayer) -> Void, [NBDPlayer.Ended])] {
            var player = try NBDPlayer(NBDPlayer.rules())
            let asked = player.ask(0, Self.read, bytes: 512)
            // Nobody has answered this one.
            _ = player.ask(1, Self.read, bytes: 512)
            player.completeRead(NBDPlayer.reply(asked[0].cookie, data: data))
            let given: [NBDPlayer.Ended]? = player.endingTurn(next)
            #expect(given.map { $0 == expected } == true)
            if !expected.isEmpty { #expect(player.buffer(0).prefix(512).elementsEqual(data)) }
        }
    }

    @Test(
        "ends with its own status when the connection is lost, and gives no request back",
        arguments: [0, -ECONNRESET, -EPIPE, -ETIMEDOUT, -EIO, -EBADMSG, -EHOSTUNREACH], [true, false])
    func lost(result: Int32, whileReading: Bool) throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        _ = player.ask(0, Self.read, bytes: 512)
        player.bring(1, Self.write, bytes: 512, data: [UInt8](repeating: 1, count: 512))
        _ = player.turn()
        if whileReading { player.failRead(result) } else { player.failWrite(result) }
        #expect(player.turn() == nil)
        #expect(player.loop.queue.exitStatus == WorkerExit.connectionLost)
    }

    @Test("takes a server that says that it shuts down for one that is gone")
    func shutdown() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        let asked = player.ask(0, Self.read, bytes: 512)
        #expect(player.answer(NBDPlayer.reply(asked[0].cookie, error: NBD.ErrorCode.shutdown)) == nil)
        #expect(player.loop.queue.exitStatus == WorkerExit.connectionLost)
    }

    @Test("does not try for ever what is interrupted for ever")
    func interrupted() throws {
        var player = try NBDPlayer(NBDPlayer.rules())
        _ = player.ask(0, Self.read, bytes: 512)
        for _ in 0..<NBDTarget.mostRetries {
            player.failRead(-EAGAIN)
            #expect(player.turn() == [])
        }
        player.failRead(-EAGAIN)
        #expect(player.turn() == nil)
        #expect(player.loop.queue.exitStatus == WorkerExit.connectionLost)
    }

    private struct ErrorCase: Sendable {
        var error: UInt32
        var ofData: Int32
        var ofRange: Int32
    }

    private static let errors = [
        ErrorCase(error: NBD.ErrorCode.notPermitted, ofData: EIO, ofRange: EIO),
        ErrorCase(error: NBD.ErrorCode.io, ofData: EIO, ofRange: EIO),
        ErrorCase(error: NBD.ErrorCode.noMemory, ofData: ENOMEM, ofRange: ENOMEM),
        ErrorCase(error: NBD.ErrorCode.invalid, ofData: EIO, ofRange: EOPNOTSUPP),
        ErrorCase(error: NBD.ErrorCode.noSpace, ofData: ENOSPC, ofRange: ENOSPC),
        ErrorCase(error: NBD.ErrorCode.overflow, ofData: EIO, ofRange: EOPNOTSUPP),
        ErrorCase(error: NBD.ErrorCode.notSupported, ofData: EOPNOTSUPP, ofRange: EOPNOTSUPP),
        ErrorCase(error: 2, ofData: EIO, ofRange: EIO),
        ErrorCase(error: .max, ofData: EIO, ofRange: EIO),
    ]

    @Test("makes the right errno of every error of a server's")
    func errors() throws {
        for one in Self.errors {
            var player = try NBDPlayer(NBDPlayer.rules())
            for operation in [
                Self.read, Self.write, UblkIOOperation.flush, UblkIOOperation.discard, UblkIOOperation.writeZeroes,
            ] {
                let isRange = operation == UblkIOOperation.discard || operation == UblkIOOperation.writeZeroes
                let asked = player.ask(0, operation, bytes: operation == UblkIOOperation.flush ? 0 : 4096)
                // An error has no data, also of a read.
                let ended = player.answer(NBDPlayer.reply(asked[0].cookie, error: one.error))
                let errno = isRange ? one.ofRange : one.ofData
                #expect(ended == [NBDPlayer.Ended(tag: 0, result: -errno)], "\(one), operation \(operation)")
            }
        }
    }

    @Test("refuses what the export does not offer, and what does not lie on it, without asking the server")
    func refused() throws {
        var player = try NBDPlayer(NBDPlayer.rules([.hasFlags], minimum: 4096, readOnly: true))
        let end = UInt64(NBDPlayer.diskBytes)
        let cases: [(UInt8, UInt64, UInt32, Int32)] = [
            (Self.write, 0, 4096, -EROFS), (UblkIOOperation.discard, 0, 4096, -EROFS),
            (UblkIOOperation.writeZeroes, 0, 4096, -EROFS), (UblkIOOperation.flush, 0, 0, 0), (9, 0, 512, -EOPNOTSUPP),
            (Self.read, end, 4096, -EIO), (Self.read, end - 4096, 8192, -EIO), (Self.read, 512, 4096, -EIO),
            (Self.read, 0, 512, -EIO), (Self.read, 0, 0, -EIO), (Self.read, 0, NBDPlayer.maxIOBytes + 4096, -EIO),
            (Self.read, 1 << 62, 4096, -EIO),
        ]
        for (operation, offset, bytes, result) in cases {
            player.bring(0, operation, offset: offset, bytes: bytes)
            #expect(player.turn() == [NBDPlayer.Ended(tag: 0, result: result)], "\(operation) \(offset) \(bytes)")
            #expect(player.write == nil)
        }
        var plain = try NBDPlayer(NBDPlayer.rules([.hasFlags]))
        for operation in [UblkIOOperation.discard, UblkIOOperation.writeZeroes] {
            plain.bring(0, operation, bytes: 4096)
            #expect(plain.turn() == [NBDPlayer.Ended(tag: 0, result: -EOPNOTSUPP)])
        }
    }
}
