import Glibc
import KernelABI
import NBDProtocol
import Ring
import WorkerProtocol

/// How replies are read: where the one read goes that is under way, and what has come so far. A value without references; its
/// memory belongs to the queue.
///
/// A read is guessed to bring replies of the kind that is expected. When all of them are reads of one size, it is spread over
/// *lanes*: of each reply the header comes into the lane's place for it, and the data into a spare buffer, which then changes places
/// with the request's own. So data is not copied, whatever the order of the replies. A guess may be wrong; then what has come is put
/// together, and each reply's data is copied. Otherwise a read goes into one memory, where many small replies have room.
struct NBDReceiver {
    /// Bytes of the one memory, and the most of all lanes together.
    static let bytes = 64 << 10
    /// A read's data from so many bytes on never shares a read with other replies: the header before it is read alone.
    static let large: UInt32 = 32 << 10

    /// What the reply to a request is expected to be.
    enum Kind: UInt8, BitwiseCopyable {
        /// Of the size for which there are lanes.
        case similar
        case large
        /// No data, or data of another size.
        case other
    }

    /// Where a lane has its header, and its two vectors: of the header and of the data.
    struct Lane {
        fileprivate(set) var header: UInt = 0
        fileprivate(set) var vector: UInt = 0

        @inline(__always)
        var head: UnsafeMutablePointer<iovec> { UnsafeMutablePointer(bitPattern: vector)! }

        // Not head from data: Swift 6.3.1 takes a place before a pointer for the pointer's own, and drops what was stored there.
        @inline(__always)
        var data: UnsafeMutablePointer<iovec> { head + 1 }

        @inline(__always)
        mutating func next() {
            header &+= UInt(NBD.simpleReplyBytes)
            vector &+= 2 &* UInt(MemoryLayout<iovec>.stride)
        }
    }

    /// Address of the memory for replies.
    private(set) var memory: UInt = 0
    /// Bytes that have come and are not done with: from `done` on in that memory, or from the lane `lane` on.
    private(set) var have = 0
    private var done = 0
    /// The tag whose data is being read into its own buffer, when `missing` is not 0.
    private(set) var tag: UInt16 = 0
    /// Bytes of that data that have not come yet.
    private(set) var missing: UInt32 = 0
    /// The next reply is to something that the write under way is sending: its completion comes first.
    var isStalled = false

    /// What has come lies in lanes.
    private(set) var isInLanes = false
    private(set) var lane = Lane()
    /// Lanes for data of that size, and spare buffers.
    private var lanes = 0
    private var spares = 0
    /// Bytes of data of each lane, as the vectors say; and of the next read's.
    private(set) var laneBytes: UInt32 = 0
    private var wanted: UInt32 = 0
    /// Addresses of the lanes' headers and of struct iovec: one for what is missing, then two for each lane; or for what is missing,
    /// and the one memory.
    private var headers: UInt = 0
    private var laneVectors: UInt = 0
    private var plainVectors: UInt = 0

    /// Replies that are expected.
    private var similar = 0
    private var large = 0
    private var others = 0

    /// Bytes of memory for so many lanes.
    static func memoryBytes(lanes: Int) -> Int {
        bytes + (3 + 2 * lanes) * MemoryLayout<iovec>.stride + lanes * NBD.simpleReplyBytes
    }

    /// `spare`: addresses of buffers, one for each lane.
    mutating func place(_ address: UInt, spare: [UInt64]) {
        memory = address
        plainVectors = address + UInt(NBDReceiver.bytes)
        laneVectors = plainVectors + 2 * UInt(MemoryLayout<iovec>.stride)
        headers = laneVectors + UInt((1 + 2 * spare.count) * MemoryLayout<iovec>.stride)
        spares = spare.count
        lanes = spare.count
        var lane = first
        for (index, buffer) in spare.enumerated() {
            let header = UnsafeMutableRawPointer(bitPattern: headers + UInt(index * NBD.simpleReplyBytes))
            lane.head.initialize(to: iovec(iov_base: header, iov_len: NBD.simpleReplyBytes))
            lane.data.initialize(to: iovec(iov_base: UnsafeMutableRawPointer(bitPattern: UInt(buffer)), iov_len: 0))
            lane.next()
        }
    }

    @inline(__always)
    private var first: Lane {
        Lane(header: headers, vector: laneVectors &+ UInt(MemoryLayout<iovec>.stride))
    }

    // MARK: What is expected

    @inline(__always)
    mutating func expects(_ state: UnsafeMutablePointer<NBDTarget.State>) {
        let part = state.pointee.part
        if state.pointee.command == .read {
            if similar == 0 { wanted = part }
            if part >= NBDReceiver.large {
                large &+= 1
                state.pointee.kind = .large
                return
            }
            if part == wanted {
                similar &+= 1
                state.pointee.kind = .similar
                return
            }
        }
        others &+= 1
        state.pointee.kind = .other
    }

    @inline(__always)
    mutating func hasGot(_ kind: Kind) {
        switch kind {
        case .similar: similar &-= 1
        case .large: large &-= 1
        case .other: others &-= 1
        }
    }

    // MARK: Reading

    /// Begins the next read. None is under way.
    @inline(__always)
    mutating func read(_ queue: inout Queue<NBDTarget>) {
        var vectors: UInt
        var count: Int
        if others == 0, large == 0, wanted &- 1 < NBDReceiver.large &- 1, lanes != 0 {
            if laneBytes != wanted { setLanes() }
            lane = first
            isInLanes = true
            // The beginning of a header may be there.
            let header = UnsafeMutableRawPointer(bitPattern: headers)!
            if have != 0 { memcpy(header, UnsafeRawPointer(bitPattern: memory)! + done, have) }
            lane.head.pointee = iovec(iov_base: header + have, iov_len: NBD.simpleReplyBytes &- have)
            vectors = lane.vector
            count = 2 &* min(max(similar, 1), lanes)
        } else {
            if done != 0 { moveRest() }
            isInLanes = false
            let isHeader = similar | others == 0 && wanted >= NBDReceiver.large
            let room = isHeader ? NBD.simpleReplyBytes : NBDReceiver.bytes
            vectors = plainVectors &+ UInt(MemoryLayout<iovec>.stride)
            count = 1
            vector(vectors).pointee = iovec(
                iov_base: UnsafeMutableRawPointer(bitPattern: memory)! + have, iov_len: room &- have)
        }
        if missing != 0 {
            let state = queue.requests + Int(tag)
            let end = Int(state.pointee.moved &+ state.pointee.part &- missing)
            vectors &-= UInt(MemoryLayout<iovec>.stride)
            count &+= 1
            vector(vectors).pointee = iovec(iov_base: queue.bufferPointer(of: tag) + end, iov_len: Int(missing))
        }
        queue.pushToSocket(
            .transfer(
                head: NBDReceiver.readHead, address: UInt64(vectors), length: UInt32(truncatingIfNeeded: count),
                offset: 0,
                operationFlags: 0, userData: RequestKey(ownSlot: NBDTarget.readSlot).rawValue))
    }

    private static var readHead: UInt64 {
        SubmissionEntry.head(
            operation: IOUring.Operation.readv, flags: IOUring.EntryFlags.fixedFile, file: SocketRing.socketFile)
    }

    @inline(__always)
    private func vector(_ address: UInt) -> UnsafeMutablePointer<iovec> { UnsafeMutablePointer(bitPattern: address)! }

    @inline(never)
    private mutating func setLanes() {
        laneBytes = wanted
        lanes = min(spares, NBDReceiver.bytes / (NBD.simpleReplyBytes + Int(laneBytes)))
        var lane = first
        for _ in 0..<lanes {
            lane.data.pointee.iov_len = Int(laneBytes)
            lane.next()
        }
    }

    /// What has come and is not done with, less than a header, begins the memory again.
    @inline(__always)
    private mutating func moveRest() {
        if have != 0 {
            let start = UnsafeMutableRawPointer(bitPattern: memory)!
            memmove(start, start + done, have)
        }
        done = 0
    }

    // MARK: What has come

    /// So many bytes have come. Returns how many of them are not data that was missing.
    @inline(__always)
    mutating func takeMissing(_ bytes: UInt32) -> UInt32 {
        let taken = min(bytes, missing)
        missing &-= taken
        return bytes &- taken
    }

    @inline(__always)
    mutating func add(_ bytes: UInt32) { have &+= Int(bytes) }

    /// The header that is next in the one memory.
    @inline(__always)
    var nextHeader: UnsafeRawPointer { UnsafeRawPointer(bitPattern: memory)! + done }

    /// The next reply is done with, as far as it has come, without data.
    @inline(__always)
    mutating func takeHeader() {
        have &-= NBD.simpleReplyBytes
        done &+= NBD.simpleReplyBytes
    }

    /// The data of the next reply, whose header was taken, as far as it has come: copied.
    @inline(__always)
    mutating func copyData(_ tag: UInt16, _ state: NBDTarget.State, _ queue: inout Queue<NBDTarget>) {
        let there = min(have, Int(state.part))
        memcpy(
            queue.bufferPointer(of: tag) + Int(state.moved), UnsafeRawPointer(bitPattern: memory)! + done, there)
        have &-= there
        done &+= there
        misses(state.part &- UInt32(truncatingIfNeeded: there), tag)
    }

    /// What is left in lanes, from this one on.
    @inline(__always)
    mutating func stays(_ bytes: Int, in lane: Lane) {
        have = bytes
        self.lane = lane
    }

    /// The lanes are done with; what is left of them, if anything, is put together in the one memory.
    @inline(__always)
    mutating func leaveLanes(_ bytes: Int, in lane: Lane) {
        have = bytes
        if bytes != 0 { gather(lane) }
        done = 0
        isInLanes = false
    }

    @inline(never)
    private func gather(_ lane: Lane) {
        var lane = lane
        var at = 0
        let to = UnsafeMutableRawPointer(bitPattern: memory)!
        while at < have {
            let header = min(NBD.simpleReplyBytes, have - at)
            memcpy(to + at, UnsafeRawPointer(bitPattern: lane.header)!, header)
            at += header
            let data = min(Int(laneBytes), have - at)
            memcpy(to + at, lane.data.pointee.iov_base, data)
            at += data
            lane.next()
        }
    }

    /// So many bytes of the data for this tag have not come yet.
    @inline(__always)
    mutating func misses(_ bytes: UInt32, _ tag: UInt16) {
        self.tag = tag
        missing = bytes
    }
}

extension NBDTarget {
    /// So many bytes have come where the read under way put them.
    @inline(__always)
    mutating func received(_ bytes: UInt32, _ queue: inout Queue<NBDTarget>) {
        var bytes = bytes
        if receiver.missing != 0 {
            bytes = receiver.takeMissing(bytes)
            if receiver.missing != 0 { return }
            partDone(receiver.tag, &queue)
        }
        receiver.add(bytes)
        parse(&queue)
    }

    /// Handles all replies that are whole, and the beginning of one whose data has not come whole.
    @inline(__always)
    mutating func parse(_ queue: inout Queue<NBDTarget>) {
        if receiver.isInLanes, !parseLanes(&queue) { return }
        while receiver.have >= NBD.simpleReplyBytes {
            guard let (tag, error) = reply(receiver.nextHeader, &queue) else { return }
            let state = queue.requests + Int(tag)
            receiver.takeHeader()
            if error != NBD.ErrorCode.none {
                failed(tag, error, &queue)
                if queue.exitStatus != 0 { return }
                continue
            }
            if state.pointee.command == .read {
                receiver.copyData(tag, state.pointee, &queue)
                if receiver.missing != 0 { return }
            }
            partDone(tag, &queue)
        }
    }

    /// The same for what lies in lanes. True: a reply is not of the kind for which there are lanes, so what follows it lies wrong,
    /// and was put together in the one memory.
    @inline(__always)
    private mutating func parseLanes(_ queue: inout Queue<NBDTarget>) -> Bool {
        var lane = receiver.lane
        var have = receiver.have
        let part = receiver.laneBytes
        while have >= NBD.simpleReplyBytes {
            guard let (tag, error) = reply(UnsafeRawPointer(bitPattern: lane.header)!, &queue) else {
                receiver.stays(have, in: lane)
                return false
            }
            let state = queue.requests + Int(tag)
            guard error == NBD.ErrorCode.none, state.pointee.command == .read, state.pointee.part == part else {
                receiver.leaveLanes(have, in: lane)
                return true
            }
            let there = min(have &- NBD.simpleReplyBytes, Int(part))
            let data = lane.data
            if state.pointee.moved == 0 {
                let old = queue.exchangeBuffer(of: tag, for: UInt64(UInt(bitPattern: data.pointee.iov_base)))
                data.pointee.iov_base = UnsafeMutableRawPointer(bitPattern: UInt(old))
            } else {
                // A part of a request that is longer than the server's maximum.
                memcpy(queue.bufferPointer(of: tag) + Int(state.pointee.moved), data.pointee.iov_base, there)
            }
            have &-= NBD.simpleReplyBytes &+ there
            lane.next()
            if there != Int(part) {
                receiver.misses(part &- UInt32(truncatingIfNeeded: there), tag)
                break
            }
            partDone(tag, &queue)
        }
        receiver.leaveLanes(have, in: lane)
        return false
    }

    /// The tag of the request that a reply is to, and its error. nil: it is no reply to anything that the server has, or the write
    /// that sends the request has not completed yet (`isStalled`).
    @inline(__always)
    private mutating func reply(
        _ bytes: UnsafeRawPointer, _ queue: inout Queue<NBDTarget>
    ) -> (tag: UInt16, error: UInt32)? {
        guard let reply = NBDSimpleReply(decoding: bytes) else { return violated(&queue) }
        let tag = UInt16(truncatingIfNeeded: reply.cookie)
        guard tag < queue.depth else { return violated(&queue) }
        let state = queue.requests + Int(tag)
        guard reply.cookie != 0, state.pointee.cookie == reply.cookie else { return violated(&queue) }
        if state.pointee.end > sender.sent {
            guard state.pointee.end <= sender.promised else { return violated(&queue) }
            receiver.isStalled = true
            return nil
        }
        return (tag, reply.error)
    }

    /// What the server sent is no reply to anything that is under way.
    @inline(never)
    func violated(_ queue: inout Queue<NBDTarget>) -> (tag: UInt16, error: UInt32)? {
        queue.giveUp(WorkerExit.serverViolation)
        return nil
    }
}
