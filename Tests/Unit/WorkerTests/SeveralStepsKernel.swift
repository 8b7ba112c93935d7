import Glibc
import KernelABI
import Synchronization

@testable import Ring
@testable import Worker

/// A loop whose kernel is played by a test: how it gets requests, and how it commits them.
protocol PlayedLoop: RequestLoop, ~Copyable where Served == SeveralStepsTarget {
    /// The completions that bring requests.
    func completions(bringing tags: [UInt16], _ buffer: UInt32) -> [CompletionEntry]
    /// The results in a command that commits requests, and the completion that the command gets at once.
    func results(_ command: Submission) -> (results: [(tag: UInt16, result: Int32)], completion: CompletionEntry?)
    /// The buffers in which the driver delivers tags.
    var tagBuffers: UInt32 { get }
    mutating func pushFirstCommands()
}

extension QueueLoop: PlayedLoop where T == SeveralStepsTarget {
    func completions(bringing tags: [UInt16], _ buffer: UInt32) -> [CompletionEntry] {
        tags.map { CompletionEntry(userData: RequestKey(tag: $0, .command).rawValue, result: 0, flags: 0) }
    }

    func results(_ command: Submission) -> (results: [(tag: UInt16, result: Int32)], completion: CompletionEntry?) {
        ([(UInt16(command.payload >> 16 & 0xffff), Int32(truncatingIfNeeded: command.payload >> 32))], nil)
    }

    var tagBuffers: UInt32 { 1 }
    // The fetches of this loop leave with a submission of their own, before anything else is pushed.
    mutating func pushFirstCommands() {}
}

extension BatchLoop: PlayedLoop where T == SeveralStepsTarget {
    func completions(bringing tags: [UInt16], _ buffer: UInt32) -> [CompletionEntry] {
        if tags.isEmpty { return [] }
        let memory = UnsafeMutablePointer(mutating: batch.tags(inBuffer: buffer))
        for (index, tag) in tags.enumerated() { memory[index] = tag }
        let flags = IOUring.CompletionFlags.more | IOUring.CompletionFlags.buffer | buffer << 16
        return [CompletionEntry(userData: 0, result: Int32(tags.count * 2), flags: flags)]
    }

    func results(_ command: Submission) -> (results: [(tag: UInt16, result: Int32)], completion: CompletionEntry?) {
        let count = Int(command.payload >> 32 & 0xffff)
        let memory = UnsafeRawPointer(bitPattern: UInt(command.address))!
        let results = (0..<count).map { index in
            let word = memory.load(fromByteOffset: index * batch.elementBytes, as: UInt64.self)
            return (UInt16(truncatingIfNeeded: word), Int32(truncatingIfNeeded: word >> 32))
        }
        let bytes = Int32(count * batch.elementBytes)
        return (results, CompletionEntry(userData: command.userData, result: bytes, flags: 0))
    }

    var tagBuffers: UInt32 { batch.buffers }
    mutating func pushFirstCommands() { pushPreparation() }
}

/// Driver, kernel and the other side of a socket, at random; and a model of SeveralStepsTarget that knows, from what it let
/// complete and in which order, what the loop must submit and give back in each turn, and that it does nothing else.
struct SeveralStepsKernel {
    static let depth: UInt16 = 16
    static let maxIOBytes: UInt32 = 16384

    /// A request that the loop has.
    private struct Held {
        var operation: UInt8
        var bytes: UInt32
        /// The slots that are under way now or after this turn.
        var slots: Set<UInt8> = []
        var firstErrno: Int32 = 0
        /// The message that ends it must have this value; 0: no message ends it yet.
        var cookie: UInt32 = 0
    }

    /// A submission that the loop must make.
    private struct Wanted: Equatable {
        var offset: UInt64
        var address: UInt64
        var length: UInt32
    }

    private var random: SplitMix
    private let messages: UnsafeMutableRawPointer
    private var held = [Held?](repeating: nil, count: Int(depth))
    private var underWay: [Submission] = []
    /// The submissions that this turn must make, by user_data.
    private var wanted: [UInt64: Wanted] = [:]
    /// The results that this turn must commit, by tag.
    private var results: [UInt16: Int32] = [:]
    private var cookies: UInt32 = 0
    /// Bytes on their way to the queue, the part of a message that the target has, and the requests that they answer.
    private var stream: [UInt8] = []
    private var partial: [UInt8] = []
    private var answered: Set<UInt32> = []
    private var nextBuffer: UInt32 = 0
    /// The most submissions that one turn made.
    private(set) var mostPushed = 0
    private(set) var brought = 0
    private(set) var ended: [Int32: Int] = [:]
    /// The first difference from the model.
    private(set) var failure: String?

    init(seed: UInt64, messages: UnsafeMutableRawPointer) {
        random = SplitMix(state: seed)
        self.messages = messages
    }

    private mutating func fail(_ text: String) {
        if failure == nil { failure = "request \(brought): \(text)" }
    }

    /// Runs that many requests.
    mutating func run<Loop: PlayedLoop & ~Copyable>(_ loop: inout Loop, requests: Int) {
        loop.pushFirstCommands()
        loop.queue.ring.taken = loop.queue.ring.tail
        want(0, RequestKey(ownSlot: SeveralStepsTarget.receiveSlot), receiveAt(0))
        want(0, RequestKey(ownSlot: SeveralStepsTarget.timerSlot), Wanted(offset: 0, address: 0, length: 0))
        loop.start()
        turn(&loop)
        while brought < requests, failure == nil {
            bring(&loop, mostly: requests - brought)
            for _ in 0..<Int(random.next() % 8) { completeAny(&loop) }
            if random.next() % 4 != 0 { turn(&loop) }
        }
        // The remaining requests.
        for _ in 0..<10_000 where failure == nil && held.contains(where: { $0 != nil }) {
            for _ in 0..<8 { completeAny(&loop) }
            turn(&loop)
        }
        if held.contains(where: { $0 != nil }) { fail("requests were never given back: \(held)") }
        let (taken, committed) = (loop.queue.counters.taken, loop.queue.counters.committed)
        if taken != UInt64(brought) || committed != taken {
            fail("\(brought) came, \(taken) and \(committed) were counted")
        }
        let pending = loop.queue.pending
        if pending != 0 { fail("\(pending) requests are waited for") }
        for tag in 0..<Int(SeveralStepsKernel.depth) {
            let state = loop.queue.requests[tag]
            if state.errno != 0 || state.cookie != 0 { fail("\(state) is left") }
        }
    }

    // MARK: The kernel's side

    private func post<Loop: PlayedLoop & ~Copyable>(_ loop: inout Loop, _ completion: CompletionEntry) {
        let ring = loop.queue.ring.completionMemory
        let tail = ring.tail.pointee.load(ordering: .relaxed)
        ring.entries[Int(tail & ring.mask)] = completion
        ring.tail.pointee.store(tail &+ 1, ordering: .releasing)
    }

    private mutating func bring<Loop: PlayedLoop & ~Copyable>(_ loop: inout Loop, mostly most: Int) {
        let count = min(Int(random.next() % 4), most)
        // The driver does not have a tag whose result is not committed yet.
        let free = (0..<SeveralStepsKernel.depth).filter { held[Int($0)] == nil }
        let tags = Array(free.shuffled(using: &random).prefix(count))
        for tag in tags {
            let operations = [
                UblkIOOperation.read, UblkIOOperation.read, UblkIOOperation.write, UblkIOOperation.flush,
                UblkIOOperation.discard, UblkIOOperation.writeZeroes,
            ]
            let operation = operations[Int(random.next() % 6)]
            let descriptor = UblkIODescriptor(
                operationAndFlags: UInt32(operation), sectors: 4 * UInt32(1 + random.next() % 8),
                startSector: random.next() % (1 << 20))
            loop.queue.ownDescriptors[Int(tag)] = descriptor
            held[Int(tag)] = Held(operation: operation, bytes: descriptor.sectors << 9)
            brought += 1
            switch operation {
            case UblkIOOperation.read, UblkIOOperation.discard: wantPart(&loop, tag, 0, moved: 0)
            case UblkIOOperation.write: for slot: UInt8 in 0..<4 { wantPart(&loop, tag, slot, moved: 0) }
            case UblkIOOperation.flush: wait(tag)
            default: results[tag] = -EOPNOTSUPP
            }
        }
        for completion in loop.completions(bringing: tags, nextBuffer) {
            post(&loop, completion)
            nextBuffer = (nextBuffer + 1) % loop.tagBuffers
        }
    }

    private mutating func wait(_ tag: UInt16) {
        cookies += 1
        held[Int(tag)]!.cookie = cookies
    }

    /// Completes a submission that is under way.
    private mutating func completeAny<Loop: PlayedLoop & ~Copyable>(_ loop: inout Loop) {
        guard !underWay.isEmpty else { return }
        let index = Int(random.next() % UInt64(underWay.count))
        let key = RequestKey(rawValue: underWay[index].userData)
        if key.isKind(.own) { return completeOwn(&loop, index, key) }
        let submission = underWay.remove(at: index)
        let result: Int32
        switch random.next() % 64 {
        case 0: result = -EINTR
        case 1: result = -EIO
        case 2: result = -ENOSPC
        case 3: result = 0
        case 4..<16: result = Int32(1 + random.next() % UInt64(submission.length))
        default: result = Int32(submission.length)
        }
        post(&loop, CompletionEntry(userData: submission.userData, result: result, flags: 0))
        completed(&loop, key, submission, result)
    }

    /// The consequences of a request's submission that completed with `result`.
    private mutating func completed<Loop: PlayedLoop & ~Copyable>(
        _ loop: inout Loop, _ key: RequestKey, _ submission: Submission, _ result: Int32
    ) {
        let tag = key.tag
        if result == -EINTR { return wantPart(&loop, tag, key.slot, moved: key.data) }
        if result > 0, UInt32(result) < submission.length {
            return wantPart(&loop, tag, key.slot, moved: key.data + UInt32(result))
        }
        held[Int(tag)]!.slots.remove(key.slot)
        if result <= 0, held[Int(tag)]!.firstErrno == 0 { held[Int(tag)]!.firstErrno = result == 0 ? EIO : -result }
        let request = held[Int(tag)]!
        guard request.slots.isEmpty else { return }
        if request.firstErrno != 0 {
            results[tag] = -request.firstErrno
        } else if request.operation == UblkIOOperation.read, key.slot < 2 {
            wantPart(&loop, tag, key.slot + 1, moved: 0)
        } else if request.operation == UblkIOOperation.discard, key.slot == 0 {
            for slot: UInt8 in 1..<4 { wantPart(&loop, tag, slot, moved: 0) }
        } else if request.operation == UblkIOOperation.discard {
            wait(tag)
        } else {
            results[tag] = Int32(request.bytes)
        }
    }

    // MARK: The other side of the socket, and the timer

    private mutating func completeOwn<Loop: PlayedLoop & ~Copyable>(
        _ loop: inout Loop, _ index: Int, _ key: RequestKey
    ) {
        if key.slot == SeveralStepsTarget.timerSlot {
            guard random.next() % 256 == 0 else { return }
            let goesOn = random.next() % 2 == 0
            let flags = goesOn ? IOUring.CompletionFlags.more : 0
            post(&loop, CompletionEntry(userData: key.rawValue, result: -ETIME, flags: flags))
            failWaiting()
            if !goesOn {
                underWay.remove(at: index)
                want(0, key, Wanted(offset: 0, address: 0, length: 0))
            }
            return
        }
        answerSome()
        let submission = underWay[index]
        let kind = random.next() % 256
        guard kind < 4 || !stream.isEmpty else { return }
        underWay.remove(at: index)
        let result: Int32
        switch kind {
        case 0: result = -EINTR
        case 1: result = -EAGAIN
        case 2, 3:
            result = kind == 2 ? 0 : -EPIPE
            // Bytes on their way to the queue are lost, too.
            stream = []
            partial = []
            failWaiting()
        default:
            let bytes = min(stream.count, Int(submission.length), 1 + Int(random.next() % 48))
            result = Int32(bytes)
            UnsafeMutableRawPointer(bitPattern: UInt(submission.address))!.copyMemory(
                from: Array(stream.prefix(bytes)), byteCount: bytes)
            partial += stream.prefix(bytes)
            stream.removeFirst(bytes)
            hear()
        }
        post(&loop, CompletionEntry(userData: submission.userData, result: result, flags: 0))
        let have = UInt32(partial.count)
        want(0, RequestKey(ownSlot: key.slot, data: have), receiveAt(have))
    }

    /// Sends answers, in another order than the requests.
    private mutating func answerSome() {
        let waiting = (0..<SeveralStepsKernel.depth).filter {
            let cookie = held[Int($0)]?.cookie ?? 0
            return cookie != 0 && results[$0] == nil && !answered.contains(cookie)
        }
        for tag in waiting.shuffled(using: &random).prefix(Int(random.next() % 4)) {
            let cookie = held[Int(tag)]!.cookie
            answered.insert(cookie)
            let errno = random.next() % 16 == 0 ? UInt16(EREMOTEIO) : 0
            let message = SeveralStepsTarget.Message(tag: tag, errno: errno, cookie: cookie)
            withUnsafeBytes(of: message) { stream += $0 }
        }
    }

    /// The target has received the bytes in `partial`.
    private mutating func hear() {
        while partial.count >= SeveralStepsTarget.Message.bytes {
            let message = partial.withUnsafeBytes { $0.loadUnaligned(as: SeveralStepsTarget.Message.self) }
            partial.removeFirst(SeveralStepsTarget.Message.bytes)
            // Otherwise the timer was first, and another request may have the tag.
            guard let request = held[Int(message.tag)], request.cookie == message.cookie, results[message.tag] == nil
            else { continue }
            results[message.tag] = -Int32(message.errno)
        }
    }

    private mutating func failWaiting() {
        for tag in 0..<SeveralStepsKernel.depth where results[tag] == nil && (held[Int(tag)]?.cookie ?? 0) != 0 {
            results[tag] = -ETIMEDOUT
        }
    }

    // MARK: What the loop must do

    private func receiveAt(_ have: UInt32) -> Wanted {
        Wanted(
            offset: 0, address: UInt64(UInt(bitPattern: messages)) + UInt64(have),
            length: SeveralStepsTarget.messageBytes - have)
    }

    private mutating func want(_ tag: UInt16, _ key: RequestKey, _ entry: Wanted) {
        if wanted[key.rawValue] != nil { fail("the model itself wants \(key) twice") }
        wanted[key.rawValue] = entry
    }

    private mutating func wantPart<Loop: PlayedLoop & ~Copyable>(
        _ loop: inout Loop, _ tag: UInt16, _ slot: UInt8, moved: UInt32
    ) {
        let request = held[Int(tag)]!
        held[Int(tag)]!.slots.insert(slot)
        let quarter =
            request.operation == UblkIOOperation.write || slot > 0 && request.operation != UblkIOOperation.read
        let start = (quarter ? UInt32(slot) * (request.bytes / 4) : 0) + moved
        let sector = loop.queue.ownDescriptors[Int(tag)].startSector
        want(
            tag, RequestKey(tag: tag, .data, slot: slot, data: moved),
            Wanted(
                offset: UInt64(slot) << 40 + sector * 512 + UInt64(start),
                address: loop.queue.buffer(of: tag) + UInt64(start),
                length: (quarter ? request.bytes / 4 : request.bytes) - moved))
    }

    private mutating func turn<Loop: PlayedLoop & ~Copyable>(_ loop: inout Loop) {
        let status = loop.handleCompletions()
        if status != 0 { fail("the loop gives up: \(status)") }
        let entries = loop.queue.ring.takePending()
        mostPushed = max(mostPushed, entries.count)
        for entry in entries {
            if entry.operation == IOUring.Operation.uringCommand {
                let (results, completion) = loop.results(entry)
                for (tag, result) in results { takeBack(tag, result) }
                if let completion { post(&loop, completion) }
                continue
            }
            let got = Wanted(offset: entry.offset, address: entry.address, length: entry.length)
            let must = wanted.removeValue(forKey: entry.userData)
            if got != must { fail("submitted \(entry), and not \(String(describing: must))") }
            underWay.append(entry)
        }
        if !wanted.isEmpty { fail("not submitted: \(wanted)") }
        if !results.isEmpty { fail("not given back: \(results)") }
    }

    private mutating func takeBack(_ tag: UInt16, _ result: Int32) {
        let must = results.removeValue(forKey: tag)
        if result != must { fail("tag \(tag) is given back with \(result), and not \(String(describing: must))") }
        guard let request = held[Int(tag)] else { return fail("tag \(tag) is given back twice") }
        answered.remove(request.cookie)
        held[Int(tag)] = nil
        ended[min(result, 1), default: 0] += 1
    }
}

struct SplitMix: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
        return value ^ value >> 31
    }
}
