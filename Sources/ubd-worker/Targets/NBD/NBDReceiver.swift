import Glibc
import KernelABI
import NBDProtocol
import Ring
import WorkerProtocol

/// How replies are read: where the one read goes that is under way, and what has come so far. A value without references; its
/// memory belongs to the queue.
struct NBDReceiver {
    /// Bytes of the memory for replies: many small ones come with one read.
    static let bytes = 64 << 10
    /// A read's data from so many bytes on is not worth a copy: its header is read alone.
    static let large: UInt32 = 32 << 10

    /// Address of the memory for replies.
    var memory: UInt = 0
    /// Bytes there that have come, and those of them that are done with.
    var have = 0
    var done = 0
    /// The tag whose data is being read into its own buffer, when `missing` is not 0.
    var tag: UInt16 = 0
    /// Bytes of that data that have not come yet.
    var missing: UInt32 = 0
    /// The next reply is to something that the write under way is sending: its completion comes first.
    var isStalled = false
    /// Replies that are expected, by whether they have much data.
    private var smallReplies = 0
    private var largeReplies = 0

    @inline(__always)
    private static func isLarge(_ state: NBDTarget.State) -> Bool { state.command == .read && state.part >= large }

    @inline(__always)
    mutating func expects(_ state: NBDTarget.State) {
        if NBDReceiver.isLarge(state) { largeReplies &+= 1 } else { smallReplies &+= 1 }
    }

    @inline(__always)
    mutating func hasGot(_ state: NBDTarget.State) {
        if NBDReceiver.isLarge(state) { largeReplies &-= 1 } else { smallReplies &-= 1 }
    }

    /// Begins the next read. None is under way.
    @inline(__always)
    mutating func read(_ queue: inout Queue<NBDTarget>) {
        let address: UInt64
        let length: UInt32
        if missing != 0 {
            let state = queue.requests + Int(tag)
            let end = state.pointee.moved &+ state.pointee.part
            address = queue.buffer(of: tag) &+ UInt64(end &- missing)
            length = missing
        } else {
            if done != 0 { moveRest() }
            let room = smallReplies == 0 && largeReplies != 0 ? NBD.simpleReplyBytes : NBDReceiver.bytes
            address = UInt64(memory) &+ UInt64(have)
            length = UInt32(truncatingIfNeeded: room &- have)
        }
        queue.pushToSocket(
            .transfer(
                head: NBDReceiver.readHead, address: address, length: length, offset: 0, operationFlags: 0,
                userData: RequestKey(ownSlot: NBDTarget.readSlot).rawValue))
    }

    private static var readHead: UInt64 {
        SubmissionEntry.head(
            operation: IOUring.Operation.read, flags: IOUring.EntryFlags.fixedFile, file: SocketRing.socketFile)
    }

    /// What has come and is not done with, less than a header, begins the memory again.
    @inline(__always)
    private mutating func moveRest() {
        let rest = have &- done
        if rest != 0 {
            let start = UnsafeMutableRawPointer(bitPattern: memory)!
            memmove(start, start + done, rest)
        }
        have = rest
        done = 0
    }
}

extension NBDTarget {
    /// So many bytes have come where the read under way put them.
    @inline(__always)
    mutating func received(_ bytes: UInt32, _ queue: inout Queue<NBDTarget>) {
        if receiver.missing != 0 {
            receiver.missing &-= bytes
            if receiver.missing == 0 { partDone(receiver.tag, &queue) }
        } else {
            receiver.have &+= Int(bytes)
            parse(&queue)
        }
    }

    /// Handles all replies that are whole, and the beginning of one whose data has not come whole.
    @inline(__always)
    mutating func parse(_ queue: inout Queue<NBDTarget>) {
        let memory = UnsafeRawPointer(bitPattern: receiver.memory)!
        while receiver.have &- receiver.done >= NBD.simpleReplyBytes {
            guard let reply = NBDSimpleReply(decoding: memory + receiver.done) else { return violated(&queue) }
            let tag = UInt16(truncatingIfNeeded: reply.cookie)
            guard tag < queue.depth else { return violated(&queue) }
            let state = queue.requests + Int(tag)
            guard reply.cookie != 0, state.pointee.cookie == reply.cookie else { return violated(&queue) }
            if state.pointee.end > sender.sent {
                guard state.pointee.end <= sender.promised else { return violated(&queue) }
                receiver.isStalled = true
                return
            }
            receiver.done &+= NBD.simpleReplyBytes
            if reply.error != NBD.ErrorCode.none {
                failed(tag, reply.error, &queue)
                if queue.exitStatus != 0 { return }
                continue
            }
            if state.pointee.command == .read {
                let part = state.pointee.part
                let there = min(receiver.have &- receiver.done, Int(part))
                memcpy(
                    queue.bufferPointer(of: tag) + Int(state.pointee.moved), memory + receiver.done, there)
                receiver.done &+= there
                if there != Int(part) {
                    receiver.tag = tag
                    receiver.missing = part &- UInt32(truncatingIfNeeded: there)
                    return
                }
            }
            partDone(tag, &queue)
        }
    }

    /// What the server sent is no reply to anything that is under way.
    @inline(never)
    func violated(_ queue: inout Queue<NBDTarget>) {
        queue.giveUp(WorkerExit.serverViolation)
    }
}
