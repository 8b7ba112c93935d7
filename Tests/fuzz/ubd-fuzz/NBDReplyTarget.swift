import Glibc
import KernelABI
import NBDProtocol
import SystemCalls
import WorkerProtocol

@testable import Ring
@testable import Worker

/// What an NBD server sends, in any cuts, to a queue that asks it for something: the input says what is asked, how much of that is
/// sent, what the server says, and how much of it comes with each read. Beside the queue a second reader takes the same bytes, one
/// after another. Both agree on what is no reply, and then nothing is given back; each request is given back once, with the data
/// that came for it; nothing is written outside of its buffer.
func testReplies(_ input: [UInt8]) {
    do {
        var play = try ReplyPlay(Script(input))
        play.run()
    } catch {
        // An io_uring is needed for its memory, though nothing is ever submitted to it.
        fatalError("ubd-fuzz: no ring: \(error)")
    }
}

private struct ReplyPlay: ~Copyable {
    static let depth: UInt16 = 8
    /// Not a whole number of pages, so that there is room behind each buffer in which nobody may write.
    static let maxIOBytes: UInt32 = 4608
    static let guardBytes = 512

    private struct Held {
        var operation: UInt8
        var bytes: UInt32
        /// Of the request that was made for it; 0: none is open.
        var cookie: UInt64 = 0
        /// Where that ends in what is sent.
        var end: UInt64 = 0
        var data: [UInt8] = []
        /// What it is to be given back with.
        var result: Int32?
    }

    private var script: Script
    private var loop: QueueLoop<NBDTarget>
    private var held = [Held?](repeating: nil, count: Int(depth))
    private var write: (key: UInt64, bytes: [UInt8])?
    private var read: (key: UInt64, places: [UnsafeMutableRawBufferPointer])?
    /// All that was made to be sent, for its headers; and how far it is.
    private var made: [UInt8] = []
    private var seen = 0
    private var sent: UInt64 = 0
    /// On its way to the queue; and what the second reader has of it.
    private var stream: [UInt8] = []
    private var heard: [UInt8] = []
    private var isViolated = false
    /// The server said that it goes.
    private var isLost = false
    /// The driver has brought a request.
    private var hasAsked = false

    init(_ script: Script) throws(SystemError) {
        self.script = script
        let bounds = DiskBounds(size: 1 << 20, maxIOBytes: ReplyPlay.maxIOBytes)
        let rules = NBDRules(
            [.hasFlags, .sendFlush, .sendFUA, .sendTrim], bounds: bounds, minimumBlock: 1, maximumBlock: 32 << 20,
            readOnly: false, writeThrough: false)
        let entries = NBDTarget.submissions.ringEntries(depth: ReplyPlay.depth)
        let ring = try Ring(entries: entries, completions: 64, flags: SealedRing.flags)
        let second = try Ring(
            entries: NBDTarget.submissions.socketRingEntries, completions: 64, flags: SealedRing.flags)
        var queue = try Queue<NBDTarget>(
            number: 0, depth: ReplyPlay.depth, maxIOBytes: ReplyPlay.maxIOBytes, ring: ring,
            socket: SocketRing(second))
        for buffer in (0..<ReplyPlay.depth).map({ queue.buffer(of: $0) }) + queue.spareBuffers {
            let end = UnsafeMutableRawPointer(bitPattern: UInt(buffer))! + Int(ReplyPlay.maxIOBytes)
            memset(end, 0xa5, ReplyPlay.guardBytes)
        }
        var target = NBDTarget(rules)
        try target.prepare(on: &queue)
        loop = QueueLoop(queue: queue, target: target)
        loop.start()
        take()
    }

    mutating func run() {
        var steps = 0
        while !script.isAtEnd, steps < 200 {
            steps += 1
            step(script.next(UInt8.self))
            let status = loop.handleCompletions()
            if isLost { return }
            let isGivenUp = loop.queue.exitStatus != 0
            require((status < 0) == (isGivenUp && hasAsked), "ended with \(status), given up: \(isGivenUp)")
            if status < 0 {
                require(isViolated, "gave up a server that did nothing wrong")
                require(loop.queue.exitStatus == WorkerExit.serverViolation, "\(loop.queue.exitStatus)")
                let left = loop.queue.ring.untaken
                require(left == 0, "gave \(left) requests back to a server's nonsense")
                return
            }
            // Before the first request it is only remembered.
            require(isViolated == isGivenUp, "given up: \(isGivenUp); no reply came: \(isViolated)")
            loop.target.useSocket(on: &loop.queue)
            take()
            for tag in 0..<ReplyPlay.depth {
                let end = loop.queue.bufferPointer(of: tag) + Int(ReplyPlay.maxIOBytes)
                for at in 0..<ReplyPlay.guardBytes {
                    require(end.load(fromByteOffset: at, as: UInt8.self) == 0xa5, "wrote behind the buffer of \(tag)")
                }
            }
        }
    }

    private mutating func step(_ word: UInt8) {
        let tag = UInt16(word >> 4) % ReplyPlay.depth
        switch word & 7 {
        case 0, 1: bring(tag)
        case 2: completeWrite(write?.bytes.count ?? 0)
        case 3: completeWrite(Int(script.next(UInt8.self)))
        case 4: stream += script.next(bytes: Int(script.next(UInt8.self)) % 64)
        case 5, 6: answer(tag, wrong: word & 8 != 0)
        default: deliver(word & 8 != 0 ? Int(script.next(UInt16.self)) : stream.count)
        }
    }

    private mutating func postSocket(_ key: UInt64, _ result: Int) {
        loop.queue.socket.pointee.ring.post(CompletionEntry(userData: key, result: Int32(result), flags: 0))
    }

    private mutating func bring(_ tag: UInt16) {
        let shape = script.next(UInt8.self)
        guard held[Int(tag)] == nil else { return }
        hasAsked = true
        let operations = [
            UblkIOOperation.read, UblkIOOperation.write, UblkIOOperation.flush, UblkIOOperation.discard,
        ]
        let operation = operations[Int(shape >> 6)]
        let sectors = operation == UblkIOOperation.flush ? 0 : 1 + UInt32(shape) % 9
        held[Int(tag)] = Held(operation: operation, bytes: sectors << 9)
        loop.queue.ownDescriptors[Int(tag)] = UblkIODescriptor(
            operationAndFlags: UInt32(operation), sectors: sectors, startSector: UInt64(tag) * 16)
        loop.queue.ring.post(
            CompletionEntry(userData: RequestKey(tag: tag, .command).rawValue, result: 0, flags: 0))
    }

    private mutating func completeWrite(_ bytes: Int) {
        guard let (key, all) = write, bytes > 0 else { return }
        write = nil
        let bytes = min(bytes, all.count)
        sent += UInt64(bytes)
        postSocket(key, bytes)
        hear(writeEnded: true)
    }

    /// A reply to the request of that tag, or one that is nearly right.
    private mutating func answer(_ tag: UInt16, wrong: Bool) {
        let shape = script.next(UInt8.self)
        guard let holder = held[Int(tag)], holder.cookie != 0 else { return }
        // Not the error by which the connection counts as lost.
        let error: UInt32 = shape & 3 == 0 ? UInt32(shape >> 2) : 0
        var cookie = holder.cookie
        if wrong { cookie ^= 1 << UInt64(shape & 63) }
        withUnsafeBytes(of: NBD.simpleReplyMagic.bigEndian) { stream += $0 }
        withUnsafeBytes(of: error.bigEndian) { stream += $0 }
        withUnsafeBytes(of: cookie.bigEndian) { stream += $0 }
        if error == 0, holder.operation == UblkIOOperation.read {
            stream += (0..<Int(holder.bytes)).map { UInt8(truncatingIfNeeded: $0 &* 7) ^ shape }
        }
    }

    private mutating func deliver(_ wanted: Int) {
        guard let (key, places) = read, wanted > 0, !stream.isEmpty else { return }
        read = nil
        let some = Array(stream.prefix(min(wanted, places.reduce(0) { $0 + $1.count })))
        stream.removeFirst(some.count)
        var left = some[...]
        for place in places {
            place.copyBytes(from: left.prefix(place.count))
            left = left.dropFirst(place.count)
        }
        heard += some
        postSocket(key, some.count)
        hear(writeEnded: false)
    }

    /// The second reader.
    private mutating func hear(writeEnded: Bool) {
        while heard.count >= 16, !isViolated {
            func number(_ range: Range<Int>) -> UInt64 { heard[range].reduce(0) { $0 << 8 | UInt64($1) } }
            let cookie = number(8..<16)
            let index = held.firstIndex { $0 != nil && $0!.cookie == cookie && $0!.result == nil }
            guard number(0..<4) == UInt64(NBD.simpleReplyMagic), cookie != 0, let index else {
                isViolated = true
                return
            }
            let holder = held[index]!
            if holder.end > sent {
                // It may be that the write under way sends it.
                if !writeEnded, let write, holder.end <= sent + UInt64(write.bytes.count) { return }
                isViolated = true
                return
            }
            let error = UInt32(truncatingIfNeeded: number(4..<8))
            if error == NBD.ErrorCode.shutdown {
                // The same for the queue, but not a violation: such an input has nothing to say.
                isLost = true
                return
            }
            let data = error == 0 && holder.operation == UblkIOOperation.read ? Int(holder.bytes) : 0
            guard heard.count >= 16 + data else { return }
            held[index]!.data = Array(heard[16..<16 + data])
            let movesData = holder.operation == UblkIOOperation.read || holder.operation == UblkIOOperation.write
            let isRange = holder.operation == UblkIOOperation.discard
            held[index]!.result =
                error == 0 ? (movesData ? Int32(holder.bytes) : 0) : -NBDTarget.errno(error, isRange: isRange)
            heard.removeFirst(16 + data)
        }
    }

    /// Takes what the loop pushed: what it gives back, and what it wants of its socket.
    private mutating func take() {
        for entry in loop.queue.ring.pendingEntries() {
            let key = RequestKey(rawValue: entry.userData)
            guard key.isCommand else { continue }
            let result = Int32(truncatingIfNeeded: entry.payload >> 32)
            guard let holder = held[Int(key.tag)] else {
                require(false, "tag \(key.tag) is given back twice")
                return
            }
            require(holder.result == result, "given back with \(result), not \(String(describing: holder.result))")
            if holder.operation == UblkIOOperation.read, result > 0 {
                let data = UnsafeRawBufferPointer(
                    start: loop.queue.bufferPointer(of: key.tag), count: Int(holder.bytes))
                require(data.elementsEqual(holder.data), "a reader gets other data than came for it")
            }
            held[Int(key.tag)] = nil
        }
        loop.queue.ring.taken = loop.queue.ring.tail
        for entry in loop.queue.socket.pointee.ring.pendingEntries() {
            require(entry.file == 0 && entry.flags == IOUring.EntryFlags.fixedFile && entry.offset == 0, "\(entry)")
            let vectors = UnsafePointer<iovec>(bitPattern: UInt(entry.address))!
            if entry.operation == IOUring.Operation.readv {
                require(read == nil, "two reads at once")
                let places = (0..<Int(entry.length)).map {
                    UnsafeMutableRawBufferPointer(start: vectors[$0].iov_base, count: vectors[$0].iov_len)
                }
                read = (entry.userData, places)
            } else {
                require(entry.operation == IOUring.Operation.writev && write == nil, "\(entry)")
                let bytes = (0..<Int(entry.length)).flatMap { index in
                    [UInt8](UnsafeRawBufferPointer(start: vectors[index].iov_base, count: vectors[index].iov_len))
                }
                write = (entry.userData, bytes)
                // What is sent again after a part is known already.
                let known = made.count - Int(sent)
                made += bytes.dropFirst(known)
            }
        }
        loop.queue.socket.pointee.ring.taken = loop.queue.socket.pointee.ring.tail
        readRequests()
    }

    /// The requests among what was made to be sent.
    private mutating func readRequests() {
        while made.count - seen >= NBD.requestBytes {
            func number(_ at: Int, _ count: Int) -> UInt64 {
                made[seen + at..<seen + at + count].reduce(0) { $0 << 8 | UInt64($1) }
            }
            let data = number(6, 2) == UInt64(NBD.Command.write.rawValue) ? Int(number(24, 4)) : 0
            guard made.count - seen >= NBD.requestBytes + data else { return }
            require(number(0, 4) == UInt64(NBD.requestMagic), "a request without its magic")
            let (cookie, length) = (number(8, 8), number(24, 4))
            let tag = Int(cookie & 0xffff)
            seen += NBD.requestBytes + data
            require(tag < held.count && held[tag]?.cookie == 0, "a request that nobody made")
            require(length == UInt64(held[tag]!.bytes), "another length")
            held[tag]!.cookie = cookie
            held[tag]!.end = UInt64(seen)
        }
    }
}

extension Ring {
    /// Plays the kernel: something has completed.
    fileprivate mutating func post(_ completion: CompletionEntry) {
        let memory = completionMemory
        let tail = memory.tail.pointee.load(ordering: .relaxed)
        memory.entries[Int(tail & memory.mask)] = completion
        memory.tail.pointee.store(tail &+ 1, ordering: .releasing)
    }
}
