import Glibc
import KernelABI
import Targets

@testable import Ring
@testable import Worker

/// A target that uses all that the engine has and null and loop do without. Each operation of a request is another shape:
/// - read: three submissions, one after another, each for the whole request;
/// - write: four at once, a quarter of the request each;
/// - flush: none of its own; a message that the queue receives ends it;
/// - discard: one, then three at once, then a message;
/// - all else is refused at once.
///
/// The queue's own are a receive of messages and a timer, which ends all requests that wait for a message. A submission that
/// moved a part goes on; one that failed lets those beside it end, then fails the request with the first errno.
struct SeveralStepsTarget: Target {
    struct State: RequestState {
        /// The first errno of this request, or 0.
        var errno: Int32 = 0
        /// The value that a message must have; 0: the request waits for no message.
        var cookie: UInt32 = 0
    }

    /// 8 bytes in the stream of messages.
    struct Message {
        static let bytes = 8
        var tag: UInt16
        /// 0, or why the request fails.
        var errno: UInt16
        var cookie: UInt32
    }

    @inline(__always)
    static var submissions: Submissions { Submissions(perRequest: 4, ofQueue: 2) }

    static let receiveSlot: UInt8 = 0
    static let timerSlot: UInt8 = 1
    /// The memory for messages, and its size.
    let messages: UInt
    static let messageBytes: UInt32 = 64
    /// Bytes of an incomplete message.
    private var partial: UInt32 = 0
    private var lastCookie: UInt32 = 0

    init(messages: UnsafeMutableRawPointer) { self.messages = UInt(bitPattern: messages) }

    // MARK: Requests

    /// The part of the request's buffer for a slot's data, in bytes.
    static func part(_ descriptor: UblkIODescriptor, _ slot: UInt8) -> (start: UInt32, length: UInt32) {
        let length = descriptor.sectors << 9
        switch descriptor.operation {
        case UblkIOOperation.write: return (UInt32(slot) * (length / 4), length / 4)
        case UblkIOOperation.discard where slot > 0: return (UInt32(slot) * (length / 4), length / 4)
        default: return (0, length)
        }
    }

    private func transfer(
        _ tag: UInt16, _ slot: UInt8, moved: UInt32, _ descriptor: UblkIODescriptor, _ queue: inout Queue<Self>
    ) {
        let part = SeveralStepsTarget.part(descriptor, slot)
        queue.push(
            .read(
                file: 1, into: queue.buffer(of: tag) + UInt64(part.start + moved), length: part.length - moved,
                offset: UInt64(slot) << 40 + descriptor.startSector << 9 + UInt64(part.start + moved),
                userData: RequestKey(tag: tag, .data, slot: slot, data: moved).rawValue))
    }

    private mutating func wait(_ tag: UInt16, _ queue: inout Queue<Self>) {
        lastCookie += 1
        queue.requests[Int(tag)].cookie = lastCookie
    }

    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<Self>) -> Outcome {
        switch descriptor.operation {
        case UblkIOOperation.read, UblkIOOperation.discard: transfer(tag, 0, moved: 0, descriptor, &queue)
        case UblkIOOperation.write: for slot: UInt8 in 0..<4 { transfer(tag, slot, moved: 0, descriptor, &queue) }
        case UblkIOOperation.flush: wait(tag, &queue)
        default: return .failed(EOPNOTSUPP)
        }
        return .pending
    }

    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<Self>) -> Outcome {
        let tag = key.tag
        let descriptor = queue.descriptors[Int(tag)]
        let left = SeveralStepsTarget.part(descriptor, key.slot).length - key.data
        var errno: Int32 = 0
        switch result {
        case -EINTR:
            transfer(tag, key.slot, moved: key.data, descriptor, &queue)
            return .pending
        case 1... where UInt32(result) < left:
            transfer(tag, key.slot, moved: key.data + UInt32(result), descriptor, &queue)
            return .pending
        case 1...: break
        case 0: errno = EIO
        default: errno = -result
        }
        if queue.requests[Int(tag)].errno == 0 { queue.requests[Int(tag)].errno = errno }
        if queue.underWay(tag) > 0 { return .pending }
        return next(tag, after: key.slot, descriptor, &queue)
    }

    /// All submissions of a request have completed.
    private mutating func next(
        _ tag: UInt16, after slot: UInt8, _ descriptor: UblkIODescriptor, _ queue: inout Queue<Self>
    ) -> Outcome {
        let failure = queue.requests[Int(tag)].errno
        if failure != 0 {
            queue.requests[Int(tag)] = State()
            return .failed(failure)
        }
        switch (descriptor.operation, slot) {
        case (UblkIOOperation.read, 0), (UblkIOOperation.read, 1):
            transfer(tag, slot + 1, moved: 0, descriptor, &queue)
        case (UblkIOOperation.discard, 0):
            for slot: UInt8 in 1..<4 { transfer(tag, slot, moved: 0, descriptor, &queue) }
        case (UblkIOOperation.discard, _): wait(tag, &queue)
        default: return .done(descriptor.sectors << 9)
        }
        return .pending
    }

    // MARK: The queue's own

    mutating func start(on queue: inout Queue<Self>) {
        receive(&queue)
        arm(&queue)
    }

    private func receive(_ queue: inout Queue<Self>) {
        queue.push(
            .read(
                file: 2, into: UInt64(messages) + UInt64(partial), length: SeveralStepsTarget.messageBytes - partial,
                offset: 0, userData: RequestKey(ownSlot: SeveralStepsTarget.receiveSlot, data: partial).rawValue))
    }

    private func arm(_ queue: inout Queue<Self>) {
        queue.push(
            .waitForWord(
                address: 0, value: 0, userData: RequestKey(ownSlot: SeveralStepsTarget.timerSlot).rawValue))
    }

    mutating func finishOwn(_ key: RequestKey, _ completion: CompletionEntry, on queue: inout Queue<Self>) {
        if key.slot == SeveralStepsTarget.timerSlot {
            failWaiting(&queue)
            if completion.flags & IOUring.CompletionFlags.more == 0 { arm(&queue) }
            return
        }
        switch completion.result {
        case 1...: take(bytes: UInt32(completion.result), &queue)
        case -EINTR, -EAGAIN: break
        default:
            // The other side is gone, and with it all pending answers.
            partial = 0
            failWaiting(&queue)
        }
        receive(&queue)
    }

    /// Handles all complete messages.
    private mutating func take(bytes: UInt32, _ queue: inout Queue<Self>) {
        let memory = UnsafeMutableRawPointer(bitPattern: messages)!
        let total = Int(partial + bytes)
        for start in stride(from: 0, to: total / Message.bytes * Message.bytes, by: Message.bytes) {
            let message = memory.load(fromByteOffset: start, as: Message.self)
            // The timer has ended others.
            guard message.tag < queue.depth, message.cookie != 0,
                queue.requests[Int(message.tag)].cookie == message.cookie
            else { continue }
            end(message.tag, message.errno == 0 ? .done(0) : .failed(Int32(message.errno)), &queue)
        }
        let rest = total % Message.bytes
        memmove(memory, memory + (total - rest), rest)
        partial = UInt32(rest)
    }

    private func failWaiting(_ queue: inout Queue<Self>) {
        for tag in 0..<queue.depth where queue.requests[Int(tag)].cookie != 0 { end(tag, .failed(ETIMEDOUT), &queue) }
    }

    private func end(_ tag: UInt16, _ outcome: Outcome, _ queue: inout Queue<Self>) {
        queue.requests[Int(tag)] = State()
        queue.complete(tag, outcome)
    }
}
