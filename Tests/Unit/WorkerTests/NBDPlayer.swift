import Glibc
import KernelABI
import NBDProtocol
import Synchronization
import SystemCalls
import Targets

@testable import Ring
@testable import Worker

/// Driver, kernel and server of one queue of target nbd. Neither ring is ever entered: what the loop pushes is taken here, and
/// completed here, at random or as a test says.
struct NBDPlayer: ~Copyable {
    static let depth: UInt16 = 16
    static let maxIOBytes: UInt32 = 256 << 10
    static let diskBytes = 1 << 20

    /// A request as the server sees it.
    struct Asked: Equatable {
        var command: UInt16
        var flags: UInt16
        var cookie: UInt64
        var offset: UInt64
        var length: UInt32
        var data: [UInt8]

        var tag: UInt16 { UInt16(truncatingIfNeeded: cookie) }
    }

    /// A request that the loop gave back.
    struct Ended: Equatable {
        var tag: UInt16
        var result: Int32
    }

    var loop: QueueLoop<NBDTarget>
    /// What the loop has under way on its socket.
    private(set) var write: Submission?
    private(set) var read: Submission?
    /// Bytes that the server has got and has not taken for requests yet.
    private var arrived: [UInt8] = []

    static func rules(
        _ flags: NBD.ExportFlags = everything, minimum: UInt32 = 1, maximum: UInt32 = 32 << 20, readOnly: Bool = false,
        writeThrough: Bool = false
    ) -> NBDRules {
        NBDRules(
            flags, bounds: DiskBounds(size: UInt64(diskBytes), maxIOBytes: maxIOBytes), minimumBlock: minimum,
            maximumBlock: maximum, readOnly: readOnly, writeThrough: writeThrough)
    }

    static let everything: NBD.ExportFlags = [.hasFlags, .sendFlush, .sendFUA, .sendTrim, .sendWriteZeroes]

    /// `words`: the counters of workers before it.
    init(_ rules: NBDRules, words: UnsafeMutablePointer<UInt64>? = nil) throws {
        // They stay disabled: the kernel never looks at them.
        let entries = NBDTarget.submissions.ringEntries(depth: NBDPlayer.depth)
        let ring = try Ring(entries: entries, completions: 256, flags: SealedRing.flags)
        let second = try Ring(
            entries: NBDTarget.submissions.socketRingEntries, completions: 256, flags: SealedRing.flags)
        var queue = try Queue<NBDTarget>(
            number: 0, depth: NBDPlayer.depth, maxIOBytes: NBDPlayer.maxIOBytes, ring: ring, words: words,
            socket: SocketRing(second))
        var target = NBDTarget(rules)
        try target.prepare(on: &queue)
        loop = QueueLoop(queue: queue, target: target)
        loop.start()
        _ = takeRing()
        takeSocket()
    }

    // MARK: The driver

    mutating func bring(
        _ tag: UInt16, _ operation: UInt8, offset: UInt64 = 0, bytes: UInt32 = 0, flags: UInt32 = 0, data: [UInt8] = []
    ) {
        loop.queue.ownDescriptors[Int(tag)] = UblkIODescriptor(
            operationAndFlags: UInt32(operation) | flags, sectors: bytes >> 9, startSector: offset >> 9)
        if !data.isEmpty { buffer(tag).copyBytes(from: data) }
        post(
            loop.queue.ring.completionMemory,
            CompletionEntry(userData: RequestKey(tag: tag, .command).rawValue, result: 0, flags: 0))
    }

    func buffer(_ tag: UInt16) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(
            start: loop.queue.bufferPointer(of: tag), count: Int(NBDPlayer.maxIOBytes))
    }

    /// The cookie of the request under way for a tag, whether the server has it yet or not.
    func cookie(_ tag: UInt16) -> UInt64 { loop.queue.requests[Int(tag)].cookie }

    // MARK: The kernel

    private func post(
        _ ring: (
            tail: UnsafeMutablePointer<Atomic<UInt32>>, entries: UnsafeMutablePointer<CompletionEntry>, mask: UInt32
        ), _ completion: CompletionEntry
    ) {
        let tail = ring.tail.pointee.load(ordering: .relaxed)
        ring.entries[Int(tail & ring.mask)] = completion
        ring.tail.pointee.store(tail &+ 1, ordering: .releasing)
    }

    /// Lets the loop handle what was posted. Returns what it gave back; nil when it gave up, and then nothing was given back.
    mutating func turn() -> [Ended]? {
        let status = loop.handleCompletions()
        if status < 0 { return nil }
        loop.target.useSocket(on: &loop.queue)
        takeSocket()
        return takeRing()
    }

    /// A turn in which the socket completes several times, as it does when the bytes of each are there already. `next` posts another
    /// completion of the read. Returns what the loop gives back before it ends the process; nil when it does not end it.
    mutating func endingTurn(_ next: (inout NBDPlayer) -> Void) -> [Ended]? {
        guard handleSocket(&loop.queue, &loop.target) == 0 else { return nil }
        takeSocket()
        next(&self)
        guard handleSocket(&loop.queue, &loop.target) < 0 else { return nil }
        loop.giveBackLast()
        return takeRing()
    }

    private mutating func takeRing() -> [Ended] {
        let addresses = loop.queue.ring.pendingAddresses()
        return zip(loop.queue.ring.takePending(), addresses).compactMap { entry, address in
            let key = RequestKey(rawValue: entry.userData)
            guard key.isCommand else { return nil }
            precondition(
                address == loop.queue.buffer(of: key.tag), "the driver is told of another buffer than the tag's")
            return Ended(tag: key.tag, result: Int32(truncatingIfNeeded: entry.payload >> 32))
        }
    }

    private mutating func takeSocket() {
        for entry in loop.queue.socket.pointee.ring.takePending() {
            precondition(entry.file == 0 && entry.flags == IOUring.EntryFlags.fixedFile && entry.offset == 0)
            switch entry.operation {
            case IOUring.Operation.writev:
                precondition(write == nil, "two writes at once")
                write = entry
            case IOUring.Operation.readv:
                precondition(read == nil, "two reads at once")
                read = entry
            default: preconditionFailure("operation \(entry.operation) on a socket")
            }
        }
    }

    /// The places of what is under way, from its vectors.
    private static func places(_ entry: Submission?) -> [UnsafeMutableRawBufferPointer] {
        guard let entry else { return [] }
        let vectors = UnsafePointer<iovec>(bitPattern: UInt(entry.address))!
        return (0..<Int(entry.length)).map {
            UnsafeMutableRawBufferPointer(start: vectors[$0].iov_base, count: vectors[$0].iov_len)
        }
    }

    /// The bytes of the write under way.
    func leaving() -> [UInt8] { NBDPlayer.places(write).flatMap { [UInt8]($0) } }

    /// Where the read under way puts what comes.
    var coming: [UnsafeMutableRawBufferPointer] { NBDPlayer.places(read) }

    /// The write under way completes with so many bytes, which the server gets.
    mutating func completeWrite(_ bytes: Int) {
        arrived += leaving().prefix(bytes)
        failWrite(Int32(bytes))
    }

    mutating func failWrite(_ result: Int32) {
        post(
            loop.queue.socket.pointee.ring.completionMemory,
            CompletionEntry(userData: write!.userData, result: result, flags: 0))
        write = nil
    }

    /// How many bytes the read under way takes.
    var room: Int { coming.reduce(0) { $0 + $1.count } }

    /// The read under way completes with these.
    mutating func completeRead(_ bytes: [UInt8]) {
        precondition(bytes.count <= room)
        var left = bytes[...]
        for place in coming {
            place.copyBytes(from: left.prefix(place.count))
            left = left.dropFirst(place.count)
        }
        failRead(Int32(bytes.count))
    }

    mutating func failRead(_ result: Int32) {
        post(
            loop.queue.socket.pointee.ring.completionMemory,
            CompletionEntry(userData: read!.userData, result: result, flags: 0))
        read = nil
    }

    // MARK: The server

    /// The requests that have come whole.
    mutating func takeRequests() -> [Asked] {
        var all: [Asked] = []
        while arrived.count >= NBD.requestBytes {
            let bytes = arrived
            func number<T: FixedWidthInteger>(_ at: Int, _: T.Type) -> T {
                bytes.withUnsafeBytes { T(bigEndian: $0.loadUnaligned(fromByteOffset: at, as: T.self)) }
            }
            precondition(number(0, UInt32.self) == NBD.requestMagic, "a request with another magic")
            var asked = Asked(
                command: number(6, UInt16.self), flags: number(4, UInt16.self), cookie: number(8, UInt64.self),
                offset: number(16, UInt64.self), length: number(24, UInt32.self), data: [])
            let data = asked.command == NBD.Command.write.rawValue ? Int(asked.length) : 0
            guard arrived.count >= NBD.requestBytes + data else { break }
            asked.data = Array(arrived[NBD.requestBytes..<NBD.requestBytes + data])
            arrived.removeFirst(NBD.requestBytes + data)
            all.append(asked)
        }
        return all
    }

    /// A simple reply.
    static func reply(
        _ cookie: UInt64, error: UInt32 = 0, magic: UInt32 = NBD.simpleReplyMagic, data: [UInt8] = []
    ) -> [UInt8] {
        var bytes: [UInt8] = []
        withUnsafeBytes(of: magic.bigEndian) { bytes += $0 }
        withUnsafeBytes(of: error.bigEndian) { bytes += $0 }
        withUnsafeBytes(of: cookie.bigEndian) { bytes += $0 }
        return bytes + data
    }

    /// Brings a request, lets it be sent whole, and returns it as the server sees it.
    mutating func ask(
        _ tag: UInt16, _ operation: UInt8, offset: UInt64 = 0, bytes: UInt32 = 0, flags: UInt32 = 0, data: [UInt8] = []
    ) -> [Asked] {
        bring(tag, operation, offset: offset, bytes: bytes, flags: flags, data: data)
        _ = turn()
        return sendAll()
    }

    /// Lets all that is to be sent be sent.
    mutating func sendAll() -> [Asked] {
        var all: [Asked] = []
        while write != nil {
            completeWrite(leaving().count)
            _ = turn()
            all += takeRequests()
        }
        return all
    }

    /// Lets these bytes come, as many at once as the loop takes. Returns what was given back; nil when the loop gave up.
    mutating func answer(_ bytes: [UInt8]) -> [Ended]? {
        var left = bytes[...]
        var ended: [Ended] = []
        while !left.isEmpty {
            guard read != nil else { break }
            let some = left.prefix(room)
            left.removeFirst(some.count)
            completeRead(Array(some))
            guard let now = turn() else { return nil }
            ended += now
        }
        return ended
    }
}
