import Glibc
import KernelABI
import NBDProtocol
import Ring
import SystemCalls
import Targets
import WorkerProtocol

/// A disk that an NBD server exports. Each queue has one connection, in transmission phase, with simple replies.
///
/// Requests are pipelined: what waits is sent by one gathered write, and no second one is under way on a socket, since two would
/// interleave. One read is under way, as a rule into memory for replies (NBDReceiver.swift). Replies may come in any order.
///
/// A server is hostile input. A reply is believed only when it names a request that is under way and was sent whole; anything else
/// ends the process, and nothing of that turn is given back. The end of the connection ends it, too, when what was answered before is
/// given back. A new worker repeats all other requests on new connections.
struct NBDTarget: Target {
    /// What is remembered of a request: what was checked when it came. The kernel's descriptor is not looked at again.
    struct State: RequestState {
        /// What the reply must name; 0: nothing is under way. Tag and generation, so that no reply fits a later request, also when
        /// another worker made the earlier one on the same connection.
        var cookie: UInt64 = 0
        /// Where what was sent last ends, in bytes from the start of the connection.
        var end: UInt64 = 0
        /// Counts what was sent for this tag, from a random number on (`prepare`).
        var generation: UInt64 = 0
        /// Bytes from the start of the export.
        var offset: UInt64 = 0
        /// Bytes of the request.
        var length: UInt32 = 0
        /// Bytes of it that are done.
        var moved: UInt32 = 0
        /// Bytes of the part that is under way: as a rule all of it.
        var part: UInt32 = 0
        var command: NBD.Command = .read
        var flags: UInt16 = 0
        /// What its reply is expected to be.
        var kind = NBDReceiver.Kind.other
        /// What was written is still to be flushed.
        var mustFlush = false
    }

    @inline(__always)
    static var submissions: Submissions { .nbd }

    /// For the data of replies that are under way.
    @inline(__always)
    static var spareBuffers: UInt32 { TargetManifest.nbdSpareBuffers }

    /// Slots of the queue's own submissions, after the one that is the engine's.
    static let writeSlot: UInt8 = 1
    static let readSlot: UInt8 = 2
    /// So often a read or write that was interrupted, or found no memory, is made again with nothing in between.
    static let mostRetries = 16

    let rules: NBDRules
    /// The last operation that is common: write, or read when it is read-only.
    let lastCommon: UInt8
    var sender = NBDSender()
    var receiver = NBDReceiver()
    var retries = 0

    init(_ rules: NBDRules) {
        self.rules = rules
        lastCommon = rules.readOnly ? UblkIOOperation.read : UblkIOOperation.write
    }

    mutating func prepare(on queue: inout Queue<NBDTarget>) throws(SystemError) {
        let spare = queue.spareBuffers
        let received = NBDReceiver.memoryBytes(lanes: spare.count)
        let memory = try queue.hold(bytes: received + 2 * NBDSender.Batch.bytes(depth: Int(queue.depth)))
        receiver.place(UInt(bitPattern: memory), spare: spare)
        sender.place(UInt(bitPattern: memory) + UInt(received), depth: Int(queue.depth))
        // A cookie has 48 bits of it: 2^47 requests of a tag until it comes to 0, which no cookie may be.
        let start = UInt64.random(in: 0..<1 << 47)
        for tag in 0..<Int(queue.depth) { queue.requests[tag].generation = start }
    }

    // MARK: Requests

    @inline(__always)
    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<NBDTarget>) -> Outcome {
        let operation = descriptor.operation
        guard operation <= lastCommon, rules.bounds.containsData(descriptor), rules.areBlocks(descriptor) else {
            return beginRare(tag, on: &queue)
        }
        let state = queue.requests + Int(tag)
        state.pointee.offset = descriptor.startSector &<< 9
        state.pointee.length = descriptor.sectors &<< 9
        if operation == UblkIOOperation.write {
            state.pointee.command = .write
            state.pointee.flags = rules.flags(forced: descriptor.forceUnitAccess)
            state.pointee.mustFlush = rules.mustFlush(forced: descriptor.forceUnitAccess)
        } else {
            state.pointee.command = .read
            state.pointee.flags = 0
            state.pointee.mustFlush = false
        }
        send(tag, &queue)
        return .pending
    }

    /// Flush, discard, write-zeroes, and what can't be done.
    @inline(never)
    private mutating func beginRare(_ tag: UInt16, on queue: inout Queue<NBDTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        let state = queue.requests + Int(tag)
        state.pointee.flags = 0
        state.pointee.mustFlush = false
        switch descriptor.operation {
        case UblkIOOperation.read: return .failed(EIO)
        case UblkIOOperation.write: return .failed(rules.readOnly ? EROFS : EIO)
        case UblkIOOperation.flush:
            // Without it the disk has no write cache, so none comes; if one does there is nothing to do.
            guard rules.flushes else { return .done(0) }
            state.pointee.command = .flush
            state.pointee.offset = 0
            state.pointee.length = 0
        case UblkIOOperation.discard, UblkIOOperation.writeZeroes:
            if rules.readOnly { return .failed(EROFS) }
            let isTrim = descriptor.operation == UblkIOOperation.discard
            guard isTrim ? rules.trims : rules.zeroes else { return .failed(EOPNOTSUPP) }
            guard rules.bounds.contains(descriptor), rules.areBlocks(descriptor),
                descriptor.sectors <= UInt32.max >> 9
            else { return .failed(EIO) }
            state.pointee.command = isTrim ? .trim : .writeZeroes
            state.pointee.offset = descriptor.startSector << 9
            state.pointee.length = descriptor.sectors << 9
            state.pointee.flags = rules.flags(forced: descriptor.forceUnitAccess)
            if !isTrim, descriptor.mustNotUnmap { state.pointee.flags |= NBD.CommandFlags.noHole }
            state.pointee.mustFlush = rules.mustFlush(forced: descriptor.forceUnitAccess)
        default:
            return .failed(EOPNOTSUPP)
        }
        send(tag, &queue)
        return .pending
    }

    /// Puts the next part of a request, as a rule all of it, among what waits to be sent.
    @inline(__always)
    mutating func send(_ tag: UInt16, _ queue: inout Queue<NBDTarget>) {
        let state = queue.requests + Int(tag)
        let left = state.pointee.length &- state.pointee.moved
        // A range that is given back has no data, so the server's maximum is not about it.
        let part = state.pointee.command == .trim ? left : min(left, rules.maximum)
        state.pointee.part = part
        state.pointee.generation &+= 1
        let cookie = state.pointee.generation &<< 16 | UInt64(tag)
        state.pointee.cookie = cookie
        let request = NBDRequest(
            state.pointee.command, flags: state.pointee.flags, cookie: cookie,
            offset: state.pointee.offset &+ UInt64(state.pointee.moved), length: part)
        let isWrite = state.pointee.command == .write
        state.pointee.end = sender.add(
            request, data: isWrite ? queue.buffer(of: tag) &+ UInt64(state.pointee.moved) : 0,
            bytes: isWrite ? part : 0)
        receiver.expects(state)
    }

    /// The part of a request that was under way is done.
    @inline(__always)
    mutating func partDone(_ tag: UInt16, _ queue: inout Queue<NBDTarget>) {
        let state = queue.requests + Int(tag)
        receiver.hasGot(state.pointee.kind)
        let moved = state.pointee.moved &+ state.pointee.part
        if moved != state.pointee.length || state.pointee.mustFlush { return goOn(tag, moved, &queue) }
        state.pointee.cookie = 0
        state.pointee.moved = 0
        let movesData = state.pointee.command == .read || state.pointee.command == .write
        queue.complete(tag, .done(movesData ? moved : 0))
    }

    /// A request with more parts than one, or with a flush after what it wrote.
    @inline(never)
    private mutating func goOn(_ tag: UInt16, _ moved: UInt32, _ queue: inout Queue<NBDTarget>) {
        let state = queue.requests + Int(tag)
        if state.pointee.command == .flush {
            // The write before it had all of the request's bytes.
            state.pointee.cookie = 0
            state.pointee.mustFlush = false
            let bytes = UInt32(truncatingIfNeeded: state.pointee.offset)
            return queue.complete(tag, .done(bytes))
        }
        if moved != state.pointee.length {
            state.pointee.moved = moved
            return send(tag, &queue)
        }
        // A flush has no range: the place of the offset keeps what the request is answered with.
        let answer = state.pointee.command == .write ? moved : 0
        state.pointee.command = .flush
        state.pointee.flags = 0
        state.pointee.length = 0
        state.pointee.moved = 0
        state.pointee.offset = 0
        send(tag, &queue)
        state.pointee.offset = UInt64(answer)
    }

    /// The server could not do a request.
    @inline(never)
    mutating func failed(_ tag: UInt16, _ error: UInt32, _ queue: inout Queue<NBDTarget>) {
        let state = queue.requests + Int(tag)
        // It is about to end: as good as gone, and no reader hears of it.
        if error == NBD.ErrorCode.shutdown { return queue.giveUp(WorkerExit.connectionLost) }
        receiver.hasGot(state.pointee.kind)
        let isRange = state.pointee.command == .trim || state.pointee.command == .writeZeroes
        state.pointee.cookie = 0
        state.pointee.moved = 0
        state.pointee.mustFlush = false
        queue.complete(tag, .failed(NBDTarget.errno(error, isRange: isRange)))
    }

    /// The errno for an error of the server's. The block layer knows few and makes EIO of all others; it would take two of these
    /// for something else: EOVERFLOW (zones) and EINVAL (the reader's own mistake).
    static func errno(_ error: UInt32, isRange: Bool) -> Int32 {
        switch error {
        case NBD.ErrorCode.noSpace: ENOSPC
        case NBD.ErrorCode.noMemory: ENOMEM
        case NBD.ErrorCode.notSupported: EOPNOTSUPP
        // The block layer writes zeros itself then, or stops discarding.
        case NBD.ErrorCode.invalid where isRange, NBD.ErrorCode.overflow where isRange: EOPNOTSUPP
        default: EIO
        }
    }

    /// No submission is a request's own.
    @inline(__always)
    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<NBDTarget>) -> Outcome {
        queue.giveUp(WorkerExit.ringFailed)
        return .pending
    }

    // MARK: The socket

    mutating func start(on queue: inout Queue<NBDTarget>) {
        receiver.read(&queue)
    }

    @inline(__always)
    mutating func useSocket(on queue: inout Queue<NBDTarget>) {
        sender.write(&queue)
    }

    @inline(__always)
    mutating func finishOnSocket(_ key: RequestKey, result: Int32, on queue: inout Queue<NBDTarget>) {
        guard result > 0 else { return stopped(key.slot, result, &queue) }
        retries = 0
        if key.slot == NBDTarget.writeSlot {
            sender.written(UInt64(UInt32(bitPattern: result)))
            if !receiver.isStalled { return }
            // The reply to something that this write has sent was there first.
            receiver.isStalled = false
            parse(&queue)
        } else {
            received(UInt32(bitPattern: result), &queue)
        }
        if !receiver.isStalled, queue.exitStatus == 0 { receiver.read(&queue) }
    }

    /// A read or write on the socket that moved nothing.
    @inline(never)
    private mutating func stopped(_ slot: UInt8, _ result: Int32, _ queue: inout Queue<NBDTarget>) {
        retries += 1
        switch result {
        case -EINTR, -EAGAIN, -ENOMEM, -ENOBUFS:
            guard retries <= NBDTarget.mostRetries else { break }
            if slot == NBDTarget.writeSlot { return sender.written(0) }
            return receiver.read(&queue)
        default: break
        }
        queue.giveUp(WorkerExit.connectionLost)
    }
}
