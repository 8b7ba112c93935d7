import Glibc
import KernelABI
import Ring
import Targets

/// How the cache gets into the file.
struct Drain: Sendable {
    enum Phase: UInt8 {
        case none
        /// It begins when the file has no request any more. New requests wait.
        case wanted
        /// The queue's own submission writes one run of sectors after another.
        case writing
    }

    var phase: Phase = .none
    var run = FaultCache.Run()
    /// Bytes of the run that are written.
    var moved: UInt32 = 0
    var retries: UInt16 = 0
}

extension FaultTarget {
    /// The slot of the cache's own write (`Submissions.fault`).
    static let drainSlot: UInt8 = 1

    /// The request goes on when the cache is in the file. A read that began before a block left the cache would else return what
    /// the file had before.
    mutating func wait(_ tag: UInt16, on queue: inout Queue<FaultTarget>) -> Outcome {
        memory.wait(tag)
        if drain.phase == .none { drain.phase = .wanted }
        beginDrain(on: &queue)
        return .pending
    }

    /// Begins to write the cache, if that is wanted and the file is free.
    mutating func beginDrain(on queue: inout Queue<FaultTarget>) {
        guard drain.phase == .wanted, active == 0 else { return }
        drain.phase = .writing
        drain.run = FaultCache.Run()
        nextRun(on: &queue)
    }

    private mutating func nextRun(on queue: inout Queue<FaultTarget>) {
        guard let run = cache.run(from: drain.run.place) else { return endDrain(0, on: &queue) }
        drain.run = run
        drain.moved = 0
        drain.retries = 0
        pushRun(on: &queue)
    }

    private func pushRun(on queue: inout Queue<FaultTarget>) {
        queue.push(
            .transfer(
                head: FaultTarget.writeHead, address: drain.run.address &+ UInt64(drain.moved),
                length: UInt32(drain.run.count) << 9 &- drain.moved,
                offset: start &+ drain.run.sector << 9 &+ UInt64(drain.moved), operationFlags: writeFlags,
                userData: RequestKey(ownSlot: FaultTarget.drainSlot).rawValue))
    }

    /// The cache's write has come back.
    mutating func drained(_ result: Int32, on queue: inout Queue<FaultTarget>) {
        let length = UInt32(drain.run.count) << 9
        switch result {
        case 1... where UInt32(result) <= length - drain.moved:
            drain.moved += UInt32(result)
            drain.retries = 0
            if drain.moved == length {
                cache.finish(drain.run)
                return nextRun(on: &queue)
            }
        case -EINTR, -EAGAIN:
            drain.retries += 1
            if drain.retries > Request.mostRetries { return endDrain(EIO, on: &queue) }
        default: return endDrain(result < 0 ? -result : EIO, on: &queue)
        }
        pushRun(on: &queue)
    }

    /// The cache is in the file, or (`errno`) the file did not take it: then it keeps what it has, and flushes fail.
    private mutating func endDrain(_ errno: Int32, on queue: inout Queue<FaultTarget>) {
        typealias State = FaultControl.State
        if errno == 0 || isOff { cache.clear() }
        drain.phase = .none
        memory.state[State.cached] = UInt64(cache.used)
        if isOff { memory.state[State.off] = 1 }
        turn.isChanged = true
        // Some of them may want the cache in the file again, and then wait behind the others.
        for _ in 0..<memory.waitingCount {
            let tag = memory.takeWaiting()
            let operation = queue.descriptors[Int(tag)].operation
            let outcome: Outcome
            if errno != 0, !isOff, operation == UblkIOOperation.flush || operation == UblkIOOperation.write {
                queue.requests[Int(tag)] = FaultRequest()
                outcome = .fileFailed(errno)
            } else {
                queue.requests[Int(tag)].phase = .drained
                outcome = execute(tag, on: &queue)
            }
            if outcome != .pending { queue.complete(tag, outcome) }
        }
    }

    // MARK: The power

    /// From now on every request fails. What was not flushed is lost, all or a part of it.
    mutating func cut(on queue: inout Queue<FaultTarget>) {
        typealias State = FaultControl.State
        memory.state[State.threshold] = 0
        if isOff { return }
        memory.state[State.off] = 1
        count(State.cuts)
        let cuts = memory.state[State.cuts]
        let (isWriting, run) = (drain.phase == .writing, drain.run)
        let (seed, keepsSome) = (seed, keepsSome)
        let (lost, kept) = cache.filter { sector in
            // What is being written can no longer be lost.
            if isWriting, sector >= run.sector, sector - run.sector < UInt64(run.count) { return true }
            return keepsSome && FaultDice.roll(seed, 128 &+ cuts, sector) & 1 == 0
        }
        memory.state[State.stuck] = 0
        for tag in 0..<queue.depth where queue.requests[Int(tag)].phase == .stuck {
            queue.requests[Int(tag)] = FaultRequest()
            count(State.refused)
            queue.complete(tag, .failed(EIO))
        }
        memory.state[State.lost] &+= lost
        memory.state[State.kept] &+= kept
        log([], nil, 0, nil, detail: UInt32(clamping: lost), match: kept)
        guard cache.used > 0 else { return }
        memory.state[State.off] = 2
        if drain.phase == .none { drain.phase = .wanted }
        beginDrain(on: &queue)
    }

    /// The disk has power again, and an empty cache.
    mutating func restore() {
        memory.state[FaultControl.State.off] = 0
    }
}
