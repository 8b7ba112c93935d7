import Glibc
import KernelABI
import NBDProtocol
import Targets
import Testing

@testable import Worker

/// A server that answers at random, and knows what the device must get from it.
private struct NBDModel: ~Copyable {
    /// A request that the loop has.
    private struct Held {
        var operation: UInt8
        var offset: UInt64
        var bytes: UInt32
        var forced: Bool
        var keeps: Bool
        /// Of a write: what the writer wrote. Of a read: what the server has answered so far.
        var data: [UInt8]
        /// Bytes that the server has done.
        var done: UInt32 = 0
        /// The server has been asked to flush after it.
        var result: Int32?
    }

    private var player: NBDPlayer
    private let rules: NBDRules
    private var random: SplitMix
    private var disk: [UInt8]
    private var held = [Held?](repeating: nil, count: Int(NBDPlayer.depth))
    private var asked: [NBDPlayer.Asked] = []
    /// On its way to the loop.
    private var replies: [UInt8] = []
    private var cookies: Set<UInt64> = []
    private var brought = 0
    private(set) var ended: [Int32: Int] = [:]
    private(set) var commands: [UInt16: Int] = [:]
    private(set) var failure: String?

    init(seed: UInt64, _ rules: NBDRules) throws {
        player = try NBDPlayer(rules)
        self.rules = rules
        var random = SplitMix(state: seed)
        disk = (0..<NBDPlayer.diskBytes).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        self.random = random
    }

    private mutating func fail(_ text: String) {
        if failure == nil { failure = "request \(brought): \(text)" }
    }

    private mutating func chance(_ many: UInt64) -> Bool { random.next() % many == 0 }

    mutating func run(requests: Int) {
        while brought < requests, failure == nil {
            bring()
            step()
        }
        for _ in 0..<100_000 where failure == nil && held.contains(where: { $0 != nil }) { step() }
        if failure == nil, held.contains(where: { $0 != nil }) { fail("requests were never given back") }
        if !asked.isEmpty || !replies.isEmpty { fail("the server still has something") }
    }

    /// The driver brings some requests.
    private mutating func bring() {
        for tag in 0..<NBDPlayer.depth where held[Int(tag)] == nil && chance(4) {
            let operations = [
                UblkIOOperation.read, UblkIOOperation.read, UblkIOOperation.write, UblkIOOperation.write,
                UblkIOOperation.flush, UblkIOOperation.discard, UblkIOOperation.writeZeroes,
            ]
            let operation = operations[Int(random.next() % 7)]
            let sectors = UInt32(1 + random.next() % (chance(8) ? 512 : 16))
            let start = random.next() % UInt64(NBDPlayer.diskBytes / 512 - Int(sectors) + 1)
            let forced = operation == UblkIOOperation.write && chance(4)
            let keeps = operation == UblkIOOperation.writeZeroes && chance(2)
            let isFlush = operation == UblkIOOperation.flush
            let bytes = isFlush ? 0 : sectors << 9
            var data: [UInt8] = []
            if operation == UblkIOOperation.write {
                let word = UInt8(truncatingIfNeeded: random.next())
                data = (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 5 &+ $0 >> 8) ^ word }
            }
            held[Int(tag)] = Held(
                operation: operation, offset: isFlush ? 0 : start << 9, bytes: bytes, forced: forced, keeps: keeps,
                data: data)
            brought += 1
            player.bring(
                tag, operation, offset: isFlush ? 0 : start << 9, bytes: bytes,
                flags: (forced ? 1 << 13 : 0) | (keeps ? 1 << 15 : 0), data: data)
        }
    }

    private mutating func step() {
        if player.write != nil, !chance(3) {
            let all = player.leaving().count
            player.completeWrite(chance(2) ? all : 1 + Int(random.next() % UInt64(all)))
            take(player.takeRequests())
        }
        if !asked.isEmpty, !chance(3) { answer(asked.remove(at: Int(random.next() % UInt64(asked.count)))) }
        if player.read != nil, !replies.isEmpty, !chance(3) {
            let most = min(player.room, replies.count)
            let bytes = chance(2) ? most : 1 + Int(random.next() % UInt64(most))
            player.completeRead(Array(replies.prefix(bytes)))
            replies.removeFirst(bytes)
        }
        if player.read != nil, chance(64) { player.failRead([-EINTR, -EAGAIN][Int(random.next() % 2)]) }
        guard let ended = player.turn() else { return fail("the loop gave up: \(player.loop.queue.exitStatus)") }
        for one in ended { takeBack(one) }
    }

    // MARK: The server

    private mutating func take(_ requests: [NBDPlayer.Asked]) {
        for request in requests {
            commands[request.command, default: 0] += 1
            guard cookies.insert(request.cookie).inserted else { return fail("cookie \(request.cookie) came twice") }
            guard Int(request.tag) < held.count, let holder = held[Int(request.tag)] else {
                return fail("\(request.command) for a request that is not there")
            }
            check(request, holder)
            asked.append(request)
        }
    }

    private mutating func check(_ request: NBDPlayer.Asked, _ holder: Held) {
        let forces = holder.forced || rules.writeThrough
        let isFlush = request.command == NBD.Command.flush.rawValue
        var flags: UInt16 = 0
        if !isFlush, holder.operation != UblkIOOperation.read, forces, rules.forces { flags |= 1 }
        if !isFlush, holder.keeps { flags |= 2 }
        if request.flags != flags { fail("\(request) has other flags than \(flags)") }
        if isFlush {
            if request.offset != 0 || request.length != 0 { fail("a flush of a range: \(request)") }
            let follows = holder.operation != UblkIOOperation.flush
            if follows, !forces || rules.forces || holder.done != holder.bytes { fail("a flush that nobody needs") }
            return
        }
        if request.offset != holder.offset + UInt64(holder.done) { fail("\(request) begins elsewhere") }
        let left = holder.bytes - holder.done
        let isTrim = request.command == NBD.Command.trim.rawValue
        if request.length != (isTrim ? left : min(left, rules.maximum)) { fail("\(request) has another length") }
        if request.command == NBD.Command.write.rawValue,
            request.data != Array(holder.data[Int(holder.done)..<Int(holder.done + request.length)])
        {
            fail("other data arrived than was written")
        }
        let wanted: NBD.Command? =
            switch holder.operation {
            case UblkIOOperation.read: .read
            case UblkIOOperation.write: .write
            case UblkIOOperation.discard: .trim
            case UblkIOOperation.writeZeroes: .writeZeroes
            default: nil
            }
        if request.command != wanted?.rawValue { fail("\(request) for operation \(holder.operation)") }
    }

    private mutating func answer(_ request: NBDPlayer.Asked) {
        let tag = Int(request.tag)
        let movesData = [UblkIOOperation.read, UblkIOOperation.write].contains(held[tag]!.operation)
        if chance(24) {
            let (error, errno) =
                [
                    (NBD.ErrorCode.io, EIO), (NBD.ErrorCode.noSpace, ENOSPC), (NBD.ErrorCode.notSupported, EOPNOTSUPP),
                    (9999, EIO),
                ][Int(random.next() % 4)]
            held[tag]!.result = -errno
            replies += NBDPlayer.reply(request.cookie, error: error)
            return
        }
        let range = Int(request.offset)..<Int(request.offset) + Int(request.length)
        var data: [UInt8] = []
        switch NBD.Command(rawValue: request.command) {
        case .read:
            data = Array(disk[range])
            held[tag]!.data += data
        case .write: disk.replaceSubrange(range, with: request.data)
        case .trim, .writeZeroes: disk.replaceSubrange(range, with: repeatElement(0, count: range.count))
        default: break
        }
        let isFlush = request.command == NBD.Command.flush.rawValue
        if !isFlush { held[tag]!.done += request.length }
        let holder = held[tag]!
        let flushFollows =
            !isFlush && holder.operation != UblkIOOperation.read && (holder.forced || rules.writeThrough)
            && !rules.forces && rules.flushes
        if holder.done == holder.bytes, !flushFollows { held[tag]!.result = movesData ? Int32(holder.bytes) : 0 }
        replies += NBDPlayer.reply(request.cookie, data: data)
    }

    private mutating func takeBack(_ one: NBDPlayer.Ended) {
        guard let holder = held[Int(one.tag)] else { return fail("tag \(one.tag) is given back twice") }
        guard holder.result == one.result else {
            return fail("tag \(one.tag) is given back with \(one.result), not \(String(describing: holder.result))")
        }
        if holder.operation == UblkIOOperation.read, one.result > 0,
            !player.buffer(one.tag).prefix(Int(holder.bytes)).elementsEqual(holder.data)
        {
            fail("a reader gets other data than the server sent")
        }
        ended[min(one.result, 1), default: 0] += 1
        held[Int(one.tag)] = nil
    }
}

@Suite("A queue of target nbd and a server that answers at random")
struct NBDModelTests {
    /// 1,000 by default. `make soak`: a hundred times as many, as in SeveralStepsTests.
    static let requests = max(1000, SeveralStepsTests.requests / 100)

    static let rules: [(String, NBDRules)] = [
        ("everything", NBDPlayer.rules()),
        ("small parts", NBDPlayer.rules(maximum: 4096)),
        ("parts of odd size", NBDPlayer.rules(maximum: 5000)),
        ("no FUA", NBDPlayer.rules([.hasFlags, .sendFlush, .sendTrim, .sendWriteZeroes], maximum: 65536)),
        ("write-through", NBDPlayer.rules(writeThrough: true)),
        (
            "write-through by flushes",
            NBDPlayer.rules([.hasFlags, .sendFlush, .sendTrim, .sendWriteZeroes], maximum: 8192, writeThrough: true)
        ),
    ]

    @Test(
        "give each request its end once, its data and its error, however the stream is cut and in whatever order replies come",
        arguments: rules.indices)
    func model(index: Int) throws {
        let (name, rules) = NBDModelTests.rules[index]
        let seed = UInt64.random(in: .min ... .max)
        var model = try NBDModel(seed: seed, rules)
        model.run(requests: NBDModelTests.requests)
        #expect(model.failure == nil, "\(name), seed \(seed)")
        for result in [1, 0, -EIO, -ENOSPC, -EOPNOTSUPP] {
            #expect(model.ended[result, default: 0] > 0, "\(name): no request ended with \(result): \(model.ended)")
        }
        for command: UInt16 in [0, 1, 3, 4, 6] {
            #expect(model.commands[command, default: 0] > 0, "\(name): command \(command) was never sent")
        }
    }
}
