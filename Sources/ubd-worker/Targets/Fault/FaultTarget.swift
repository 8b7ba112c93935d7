import Glibc
import KernelABI
import Ring
import SystemCalls
import Targets

/// What target fault knows of a request.
struct FaultRequest: RequestState {
    enum Phase: UInt8, BitwiseCopyable {
        /// On its way to the file or back.
        case going
        /// A timer runs.
        case delayed
        /// It is not answered.
        case stuck
        /// It has waited for the cache to be in the file.
        case drained
    }

    var phase: Phase = .going
    /// What a rule does with it; nil: nothing.
    var action: FaultRule.Action?
    var failure: FaultRule.Failure = .io
    var acknowledged = false
    var retries: UInt16 = 0
    /// `FaultRule.low` of that rule.
    var low: UInt32 = 0
    /// That rule, and which of its requests this is.
    var rule: UInt64 = 0
    var match: UInt64 = 0
    /// Bytes moved so far, and those that are to be moved.
    var moved: UInt32 = 0
    var length: UInt32 = 0
}

/// A disk in a file that fails as its rules say (docs/fault.md). It has one queue, so one thread has the order of requests, the
/// counts, the cache and the control file.
///
/// The parts: here what becomes of a request; FaultRules.swift: which rule strikes; FaultDrain.swift: the cache's way to the file
/// and power cuts; FaultTurn.swift: the control file.
struct FaultTarget: Target {
    typealias State = FaultRequest
    @inline(__always)
    static var submissions: Submissions { .fault }

    /// Bytes into the file where the disk starts.
    let start: UInt64
    let bounds: DiskBounds
    let readOnly: Bool
    /// IOUring.ReadWrite flags of every write.
    let writeFlags: UInt32
    let cacheBlocks: Int
    /// A power cut leaves some sectors of the cache.
    let keepsSome: Bool
    private let beginning: Beginning

    // Set by `prepare`.
    var memory: FaultMemory!
    var cache: FaultCache!

    // The plan in force.
    var ruleCount = 0
    var seed: UInt64 = 0

    /// Requests that the file has, but for the cache's own.
    var active: UInt32 = 0
    var drain = Drain()
    var turn = ControlTurn()

    /// Indexes into the ring's file table.
    static let dataFile: Int32 = 1
    static let controlFile: Int32 = 2
    static let readHead = SubmissionEntry.head(
        operation: IOUring.Operation.read, flags: IOUring.EntryFlags.fixedFile, file: dataFile)
    static let writeHead = SubmissionEntry.head(
        operation: IOUring.Operation.write, flags: IOUring.EntryFlags.fixedFile, file: dataFile)

    init(
        start: UInt64, bounds: DiskBounds, readOnly: Bool, writeFlags: UInt32, cacheBlocks: Int, keepsSome: Bool,
        beginning: Beginning
    ) {
        self.start = start
        self.bounds = bounds
        self.readOnly = readOnly
        self.writeFlags = writeFlags
        self.cacheBlocks = cacheBlocks
        self.keepsSome = keepsSome
        self.beginning = beginning
    }

    mutating func prepare(on queue: inout Queue<FaultTarget>) throws(SystemError) {
        let own = FaultMemory.bytes(depth: Int(queue.depth))
        let base = try queue.hold(bytes: own + FaultCache.bytes(blocks: cacheBlocks))
        memory = FaultMemory(base, depth: Int(queue.depth))
        cache = FaultCache(base + own, blocks: cacheBlocks)
        for word in 0..<FaultControl.words {
            memory.plan[word] = beginning.plan[word]
            memory.state[word] = beginning.state[word]
        }
        FaultControl.markState(memory.state)
        if let head = FaultControl.decode(memory.plan, rules: memory.rules) {
            ruleCount = head.count
            seed = head.seed
        }
        // What is not on record was in the memory of a worker that is gone: that is a power cut.
        if memory.state[FaultControl.State.starts] > 0, cacheBlocks > 0 || isOff {
            memory.state[FaultControl.State.off] = 1
        }
        memory.state[FaultControl.State.stuck] = 0
        memory.state[FaultControl.State.cached] = 0
        turn.logged = memory.state[FaultControl.State.logged]
    }

    /// The power is off.
    var isOff: Bool { memory.state[FaultControl.State.off] != 0 }

    func count(_ word: Int) {
        memory.state[word] &+= 1
    }

    // MARK: A request

    mutating func begin(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<FaultTarget>) -> Outcome {
        guard let kind = FaultTarget.kind(descriptor) else { return .failed(EOPNOTSUPP) }
        if let refusal = refusal(kind, descriptor, hasBoard: queue.board != nil) { return .failed(refusal) }
        turn.isChanged = true
        let threshold = memory.state[FaultControl.State.threshold]
        if threshold != 0, memory.state[FaultControl.State.writes] >= threshold { cut(on: &queue) }
        count(FaultControl.State.requests)
        if kind == .write { count(FaultControl.State.writes) }
        if isOff {
            count(FaultControl.State.refused)
            return .failed(EIO)
        }
        let delay = ruleCount == 0 ? 0 : choose(tag, kind, descriptor, on: &queue)
        if queue.requests[Int(tag)].action == .stuck {
            queue.requests[Int(tag)].phase = .stuck
            count(FaultControl.State.stuck)
            return .pending
        }
        if delay > 0 {
            queue.requests[Int(tag)].phase = .delayed
            queue.push(
                .timeout(
                    address: memory.time(Int(tag), microseconds: delay),
                    userData: RequestKey(tag: tag, .control).rawValue))
            return .pending
        }
        return execute(tag, on: &queue)
    }

    static func kind(_ descriptor: UblkIODescriptor) -> FaultRule.Operations? {
        switch descriptor.operation {
        case UblkIOOperation.read: .read
        case UblkIOOperation.write: .write
        case UblkIOOperation.flush: .flush
        case UblkIOOperation.discard: .discard
        default: nil
        }
    }

    /// The errno of a request that no disk of this kind takes.
    private func refusal(_ kind: FaultRule.Operations, _ descriptor: UblkIODescriptor, hasBoard: Bool) -> Int32? {
        switch kind {
        case .read: bounds.containsData(descriptor) ? nil : EIO
        case .write: readOnly ? EROFS : bounds.containsData(descriptor) ? nil : EIO
        case .discard:
            readOnly ? EROFS : !bounds.contains(descriptor) ? EIO : hasBoard ? nil : EOPNOTSUPP
        default: nil
        }
    }

    /// Does what is left of a request after its delay, or after it has waited for the cache.
    mutating func execute(_ tag: UInt16, on queue: inout Queue<FaultTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        // The descriptor is in memory that is shared with the kernel, so it is checked again.
        guard let kind = FaultTarget.kind(descriptor), refusal(kind, descriptor, hasBoard: queue.board != nil) == nil
        else { return end(tag, .failed(EIO), on: &queue) }
        if isOff {
            count(FaultControl.State.refused)
            return end(tag, .failed(EIO), on: &queue)
        }
        let request = queue.requests[Int(tag)]
        if request.action == .error { return end(tag, .failed(request.failure.errno), on: &queue) }
        if drain.phase != .none, request.phase != .drained || kind != .flush { return wait(tag, on: &queue) }
        switch kind {
        case .flush:
            // A read-only disk has no cache, so it gets no flush; if one comes there is nothing to do.
            if readOnly { return end(tag, .done(0), on: &queue) }
            if cache.used > 0, request.phase != .drained { return wait(tag, on: &queue) }
            queue.push(.syncData(file: FaultTarget.dataFile, userData: RequestKey(tag: tag, .control).rawValue))
        case .discard:
            cache.drop(descriptor.startSector, UInt64(descriptor.sectors))
            guard let board = queue.board else { return end(tag, .failed(EOPNOTSUPP), on: &queue) }
            board.ask(
                .discard, queue: queue.number, tag: tag, offset: start &+ descriptor.startSector << 9,
                bytes: UInt64(descriptor.sectors) << 9)
            queue.wait(for: board, tag)
        case .write: return write(tag, descriptor, request, on: &queue)
        default:
            queue.requests[Int(tag)].length = descriptor.sectors << 9
            pushData(tag, descriptor, on: &queue)
        }
        active += 1
        return .pending
    }

    /// A write: into the cache if there is one, else into the file.
    private mutating func write(
        _ tag: UInt16, _ descriptor: UblkIODescriptor, _ request: FaultRequest, on queue: inout Queue<FaultTarget>
    ) -> Outcome {
        let sectors = request.action == .torn ? min(request.low, descriptor.sectors) : descriptor.sectors
        if sectors == 0 { return written(tag, descriptor, on: &queue) }
        // Before the control file says that a worker has served, none could know that a cache was lost.
        if cacheBlocks > 0, turn.isOnRecord {
            if cache.put(descriptor.startSector, UInt64(sectors), queue.bufferPointer(of: tag)) {
                memory.state[FaultControl.State.cached] = UInt64(cache.used)
                return written(tag, descriptor, on: &queue)
            }
            // It does not fit beside the others. One that does not fit alone goes straight into the file.
            if cache.used > 0 { return wait(tag, on: &queue) }
        }
        cache.drop(descriptor.startSector, UInt64(sectors))
        queue.requests[Int(tag)].length = sectors << 9
        pushData(tag, descriptor, on: &queue)
        active += 1
        return .pending
    }

    /// Submits a read or write from byte `moved` on.
    private func pushData(_ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<FaultTarget>) {
        let request = queue.requests[Int(tag)]
        let isRead = descriptor.operation == UblkIOOperation.read
        let sync = descriptor.forceUnitAccess ? IOUring.ReadWrite.dataSync : 0
        queue.push(
            .transfer(
                head: isRead ? FaultTarget.readHead : FaultTarget.writeHead,
                address: queue.buffer(of: tag) &+ UInt64(request.moved), length: request.length &- request.moved,
                offset: start &+ descriptor.startSector << 9 &+ UInt64(request.moved),
                operationFlags: isRead ? 0 : writeFlags | sync, userData: RequestKey(tag: tag, .data).rawValue,
                bufferIndex: tag))
    }

    mutating func finish(_ key: RequestKey, result: Int32, on queue: inout Queue<FaultTarget>) -> Outcome {
        if queue.requests[Int(key.tag)].phase == .delayed {
            // Whatever ended it: the time is over.
            queue.requests[Int(key.tag)].phase = .going
            return execute(key.tag, on: &queue)
        }
        let outcome = key.isKind(.data) ? moved(key.tag, result, on: &queue) : controlled(key.tag, result, on: &queue)
        if outcome != .pending {
            active -= 1
            beginDrain(on: &queue)
        }
        return outcome
    }

    /// A flush or a discard has come back.
    private mutating func controlled(_ tag: UInt16, _ result: Int32, on queue: inout Queue<FaultTarget>) -> Outcome {
        var result = result
        let isFlush = queue.descriptors[Int(tag)].operation == UblkIOOperation.flush
        if !isFlush, let board = queue.board {
            guard let done = board.result(queue: queue.number, tag: tag) else {
                queue.wait(for: board, tag)
                return .pending
            }
            result = done
        }
        if isOff { return end(tag, .failed(EIO), on: &queue) }
        switch result {
        case 0...: return end(tag, .done(0), on: &queue)
        case -EINTR where isFlush, -EAGAIN where isFlush:
            queue.requests[Int(tag)].retries += 1
            if queue.requests[Int(tag)].retries > Request.mostRetries { return end(tag, .failed(EIO), on: &queue) }
            queue.push(.syncData(file: FaultTarget.dataFile, userData: RequestKey(tag: tag, .control).rawValue))
            return .pending
        case -EINVAL where !isFlush, -ENOSYS where !isFlush: return end(tag, .failed(EOPNOTSUPP), on: &queue)
        default: return end(tag, .fileFailed(-result), on: &queue)
        }
    }

    /// A read or write has moved bytes, or not.
    private mutating func moved(_ tag: UInt16, _ result: Int32, on queue: inout Queue<FaultTarget>) -> Outcome {
        let descriptor = queue.descriptors[Int(tag)]
        let request = queue.requests + Int(tag)
        let isRead = descriptor.operation == UblkIOOperation.read
        guard bounds.containsData(descriptor), isRead || !readOnly, request.pointee.length <= descriptor.sectors << 9,
            request.pointee.moved < request.pointee.length
        else { return end(tag, .failed(EIO), on: &queue) }
        switch result {
        case 1...:
            guard UInt32(result) <= request.pointee.length - request.pointee.moved else {
                return end(tag, .failed(EIO), on: &queue)
            }
            request.pointee.moved += UInt32(result)
            if request.pointee.moved == request.pointee.length {
                if isOff { return end(tag, .failed(EIO), on: &queue) }
                return isRead ? wasRead(tag, descriptor, on: &queue) : written(tag, descriptor, on: &queue)
            }
            request.pointee.retries = 0
        case -EINTR, -EAGAIN:
            request.pointee.retries += 1
            // EAGAIN does not end when the owner has set O_NONBLOCK on the shared open file.
            if request.pointee.retries > Request.mostRetries { return end(tag, .failed(EIO), on: &queue) }
        // The file has become shorter than the disk: what is missing is not known.
        case 0: return end(tag, .failed(EIO), on: &queue)
        default: return end(tag, .fileFailed(-result), on: &queue)
        }
        pushData(tag, descriptor, on: &queue)
        return .pending
    }

    /// All bytes of a read are there: what the cache has goes over them, then bits flip.
    private mutating func wasRead(
        _ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<FaultTarget>
    ) -> Outcome {
        let buffer = queue.bufferPointer(of: tag)
        cache.overlay(descriptor.startSector, UInt64(descriptor.sectors), buffer)
        let request = queue.requests[Int(tag)]
        if request.action == .flip {
            for number in 0..<UInt64(request.low) {
                let roll = FaultDice.roll(seed, 64 + request.rule, request.match &* 64 &+ number)
                let bit = roll % (UInt64(descriptor.sectors) << 12)
                let byte = buffer + Int(bit / 8)
                byte.storeBytes(of: byte.load(as: UInt8.self) ^ 1 << UInt8(bit % 8), as: UInt8.self)
            }
        }
        return end(tag, .done(descriptor.sectors << 9), on: &queue)
    }

    /// What is to be written of a write is where it belongs.
    private mutating func written(
        _ tag: UInt16, _ descriptor: UblkIODescriptor, on queue: inout Queue<FaultTarget>
    ) -> Outcome {
        let request = queue.requests[Int(tag)]
        if request.action == .torn, !request.acknowledged {
            return end(tag, .failed(request.failure.errno), on: &queue)
        }
        let sectors = request.action == .torn ? request.low : descriptor.sectors
        if sectors > 0 { heal(descriptor.startSector, descriptor.startSector &+ UInt64(sectors) &- 1) }
        return end(tag, .done(descriptor.sectors << 9), on: &queue)
    }

    /// Leaves the state of the request as the next one needs it.
    private func end(_ tag: UInt16, _ outcome: Outcome, on queue: inout Queue<FaultTarget>) -> Outcome {
        queue.requests[Int(tag)] = FaultRequest()
        return outcome
    }
}

extension FaultRule.Failure {
    /// What the driver makes this error of (errno_to_blk_status, block/blk-core.c).
    var errno: Int32 {
        switch self {
        case .io: EIO
        case .noSpace: ENOSPC
        case .timeout: ETIMEDOUT
        case .medium: ENODATA
        case .transport: ENOLINK
        case .target: EREMOTEIO
        case .protection: EILSEQ
        }
    }
}
